"""Imported networks bring their input along: nobody types size, mean and standard deviation.

What ``stages.import_weights`` makes says in ``meta.json`` which images its network was made for.
Where a run has it in place of stage 1, or an option names it, these settings are those of the run,
unless flags say otherwise. Only JSON is read here, because the command line has to answer at once.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from shared.config.schema import Config, pretraining_in
from shared.runtime.errors import UserError
from shared.runtime.records import REDO, listed, read_json

INPUT = ("image_size", "mean", "std", "antialias")  # of the section data
NAMED_BY = ("finetune.init", "linear.init", "classical.init", "distill.teacher")


def imported(folder: Path) -> dict[str, Any] | None:
    """``meta.json`` of an imported network; None where the folder holds none."""
    try:
        meta = read_json(folder / "meta.json", REDO)
    except UserError:  # the stage that needs the artifact says what is wrong with it
        return None
    return meta if meta.get("stage") == "import" else None


def pretraining_is_imported(config: Config) -> bool:
    """Whether imported weights take the place of the run's stage 1."""
    return imported(config.folder_of("pretrain")) is not None


def named_folders(config: Config, options: Iterable[str] = NAMED_BY) -> list[Path]:
    """The artifact folders that these options name."""
    return [Path(folder) for option in options for folder in listed(config.option(option))]


def first_pretraining(config: Config, option: str) -> Path | None:
    """The artifact of stage 1 that an option names by its folder, or by that of its run.

    Raises:
        UserError: it is the one that this run makes.
    """
    if not (name := config.option(option)):
        return None
    folder = pretraining_in(Path(name))
    if folder.resolve() == config.folder_of("pretrain").resolve():
        raise UserError(f"{option}={folder} is what this run makes; give another --run")
    return folder


def imported_options(
    config: Config, folders: Iterable[Path], flags: Collection[str]
) -> dict[str, Any]:
    """The options that imported networks decide.

    Args:
        config: the run's.
        folders: of artifacts; those that are not imported decide nothing.
        flags: options that were given, and stay.

    Returns:
        Option -> value: of ``data`` how the network sees images; ``finetune.from_layer`` 0 of one
        without a projection head; of the run's own stage 1 also ``model.encoder``, so that the row
        from scratch is the same network.

    Raises:
        UserError: two of them were made for different images.
    """
    options: dict[str, Any] = {}
    decided_by: dict[str, Path] = {}
    for folder in folders:
        meta = imported(folder) or {}
        own = {f"data.{key}": meta[key] for key in INPUT if key in meta}
        head = meta.get("head")
        if isinstance(head, dict) and head.get("layers") == 0:
            own |= {"finetune.from_layer": 0, "classical.from_layer": 0}
        if meta and folder == config.folder_of("pretrain"):
            own["model.encoder"] = meta.get("encoder")
        for option, value in own.items():
            if option not in flags and options.setdefault(option, value) != value:
                raise UserError(
                    f"{decided_by[option]} was made for {option}={options[option]}, {folder} for"
                    f" {value}; give --{option}, or one of them in a run of its own"
                )
            decided_by.setdefault(option, folder)
    return options
