"""A classifier, or an encoder, on new images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.predict.command import main, predict

__all__ = ["main", "predict"]


def __getattr__(name: str) -> Any:
    """What the command's file offers, which takes seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stages.predict import command

    return getattr(command, name)
