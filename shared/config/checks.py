"""What the sections of options say of their fields, and how they refuse a value."""

import difflib
from collections.abc import Iterable
from dataclasses import field
from typing import Any


def not_hashed(default: Any) -> Any:
    """A field that changes how a run proceeds but not what it computes: left out of the hash."""
    return field(default=default, metadata={"hashed": False})


def only_with(default: Any, option: str, *values: Any, recipes: bool = False) -> Any:
    """A field that is read only where another option makes it count (``conditions``).

    Args:
        default: of the field.
        option: the other one: of the same section, or as ``section.name``.
        values: that it must have, one of them; none given: neither 0 nor unset.
        recipes: whether recipes set the field for whatever is chosen: then only a flag is refused.
    """
    return field(default=default, metadata={"only_with": (option, values), "recipes": recipes})


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    """Refuse the value of an option.

    Args:
        condition: whether the value is allowed.
        key: the option, ``section.name``.
        value: what it got.
        allowed: what it may be.

    Raises:
        ValueError: it is not allowed.
    """
    if not condition:
        raise ValueError(f"{key} must be {allowed}, got {value!r}")


def require_one_of(names: Iterable[str], key: str, value: str) -> None:
    """ValueError where the value of an option is none of these names; it has a similar one."""
    names = list(names)
    if value not in names:
        close = difflib.get_close_matches(value, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        allowed = ", ".join(map(repr, names))
        raise ValueError(f"{key} must be one of {allowed}, got {value!r}{hint}")
