"""What the sections of options say of their fields, and how they refuse a value."""

import difflib
import os
from collections.abc import Iterable
from dataclasses import field, fields
from typing import Any

from shared.runtime.bounds import LAYERS, LEVEL, SIDE, WIDTH

# The largest values of options, where the usual bound does not do.
MOST = 10**9
MOST_OF = {
    **dict.fromkeys(("threads", "workers"), 1024),
    **dict.fromkeys(("image_size", "cache"), SIDE),
    **dict.fromkeys(("head_width", "head_out"), WIDTH),
    **dict.fromkeys(("mean", "std"), LEVEL),
    "from_layer": LAYERS,
    **dict.fromkeys(("batch_size", "micro_batch", "labeled_batch_size", "memory"), 2**24),
    "max_pixels": 2**40,
}
LONGEST_TEXT, LONGEST_NAME = 3000, 255  # bytes: of a path, and of each name in it


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


def require_bounded(section: Any, prefix: str = "") -> None:
    """Refuse numbers that no machine takes, and text that no file system takes as a path."""
    for f in fields(section):
        value, key = getattr(section, f.name), f"{prefix}{f.name}"
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, str):
                _require_path(key, part)
            elif isinstance(part, int | float) and not f.name.endswith("seed"):
                most = MOST_OF.get(f.name, MOST)
                require(abs(part) <= most, key, value, f"at most {most:,}")


def _require_path(key: str, text: str) -> None:
    """ValueError where text cannot be a path, nor a part of one; every text may be printed."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key}={text} is not UTF-8; rename what it names") from error
    if "\0" in text:
        raise ValueError(f"{key}={text} has a NUL character")
    if len(encoded) > LONGEST_TEXT or max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
        raise ValueError(
            f"{key}={text} is too long; at most {LONGEST_TEXT} bytes, and {LONGEST_NAME} between"
            " two slashes"
        )
    if text.startswith("~") and os.path.expanduser(text).startswith("~"):
        raise ValueError(f"{key}={text}: there is no such user; write the path without ~")


def require_seed(key: str, value: int) -> None:
    """ValueError where NumPy would not take a seed."""
    require(0 <= value < 2**32, key, value, "0 to 2**32 - 1")
