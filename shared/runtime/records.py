"""JSON files are read within bounds, and as the records that they should hold.

What a ``TypedDict`` says of a file is checked when the file is read. So what is damaged, edited or
hostile is told in one line there, and nowhere else.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import (
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from shared.runtime.errors import UserError
from shared.runtime.files import open_regular, read_bytes

# Bounds: bytes of a file and of a line of one, lists and objects in one another, whole numbers.
LARGEST, LONGEST, DEPTH, GREATEST = 2**26, 2**20, 40, 2**63

REDO = "delete its folder, or redo the stage with --force"  # the remedy for a stage's own file

R = TypeVar("R")


def read_json(path: Path, remedy: str, limit: int = LARGEST) -> dict[str, Any]:
    """An object from a JSON file.

    Args:
        path: the file.
        remedy: what the user can do where it is damaged, for the message.
        limit: largest number of bytes.

    Raises:
        UserError: it is damaged, no regular file, larger, or nested too deeply.
    """
    try:
        return parse_json(read_bytes(path, limit))
    except (OSError, ValueError) as error:
        raise damaged(path, error, remedy) from error


def read_record(
    path: Path, kind: type[R], remedy: str, limit: int = LARGEST, partial: bool = False
) -> R:
    """The record of a JSON file; UserError also where it is not of that kind.

    Args:
        path: the file.
        kind: a TypedDict.
        remedy: as of `read_json`.
        limit: largest number of bytes.
        partial: keys may be missing, as in files of earlier versions.
    """
    content = read_json(path, remedy, limit)
    if wrong := mismatch(content, kind, partial=partial):
        raise damaged(path, ValueError(wrong), remedy)
    return cast(R, content)


def read_lines(path: Path, kind: type[R], limit: int = 2**30) -> tuple[list[R], int]:
    """The records of a JSON Lines file, and the number of lines that hold none.

    A process that was killed leaves half a line at the end.

    Args:
        path: the file; without one there are no lines.
        kind: of each line.
        limit: largest number of bytes.

    Raises:
        UserError: it is no regular file, larger, or cannot be read.
    """
    records: list[R] = []
    number = 0
    try:
        for line in _lines(path, limit):
            number += 1
            try:
                content = parse_json(line)
            except ValueError:
                continue
            if not mismatch(content, kind):
                records.append(cast(R, content))
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}; remove it") from error
    return records, number - len(records)


def _lines(path: Path, limit: int) -> Iterator[bytes]:
    """Lines of a file; what is longer than a line may be comes in parts, which are no JSON."""
    with open_regular(path) as file:
        while line := file.readline(LONGEST):
            if file.tell() > limit:
                raise OSError(f"it is larger than {limit:,} bytes")
            yield line


def parse_json(text: str | bytes) -> dict[str, Any]:
    """An object from JSON text; ValueError where it is none, or nested too deeply."""
    try:
        content = json.loads(text)
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"nested more than {DEPTH} deep") from error
    if not isinstance(content, dict):
        raise ValueError("not an object")
    level: list[Any] = [content]
    for _ in range(DEPTH):
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not level:
            return content
    raise ValueError(f"nested more than {DEPTH} deep")


def listed(value: Any) -> list[Any]:
    """The values of a field that holds None, one value, or a list or tuple of several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def field_of(values: Sequence[Any]) -> Any:
    """What such a field holds: None, the one value, or the several as they are."""
    return values if len(values) > 1 else next(iter(values), None)


def damaged(path: Path, error: Exception, remedy: str) -> UserError:
    """What to say of a file that cannot be used, and what to do about it."""
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{path} is damaged ({reason}); {remedy}")


def mismatch(value: object, kind: Any, place: str = "it", partial: bool = False) -> str:
    """Why a value of JSON is not of a kind; empty where it is.

    Args:
        value: what was read.
        kind: a TypedDict (further keys are allowed), or what its keys may be: ``list[float]``, ...
        place: what the value is, for the message.
        partial: keys may be missing, as in files of earlier versions.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return ""
    if is_typeddict(kind):
        if not isinstance(value, dict):
            return _not(value, "an object", place)
        missing = set() if partial else kind.__required_keys__ - value.keys()
        if missing:
            return f"{place} lacks {', '.join(sorted(missing))}"
        hints = get_type_hints(kind).items()
        return _first(mismatch(value[k], hint, k, partial) for k, hint in hints if k in value)
    if origin in (Union, UnionType):
        wrong = [mismatch(value, one, place, partial) for one in inner]
        return "" if "" in wrong else wrong[0]
    if origin is Literal:
        return "" if value in inner else _not(value, f"one of {', '.join(inner)}", place)
    if origin in (list, Sequence):
        if not isinstance(value, list):
            return _not(value, "a list", place)
        return _first(mismatch(x, inner[0], f"an item of {place}", partial) for x in value)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            return _not(value, "an object", place)
        items = value.values()
        return _first(mismatch(x, inner[1], f"a value of {place}", partial) for x in items)
    return _not_plain(value, kind, place)


def _not_plain(value: object, kind: Any, place: str) -> str:
    """`mismatch` of what has no parts."""
    if isinstance(value, int) and abs(value) >= GREATEST:
        return f"{place} is too large a number"
    kinds = (int, float) if kind is float else (kind,)
    if isinstance(value, bool) and kind is not bool:
        return _not(value, kind.__name__, place)
    return "" if isinstance(value, kinds) else _not(value, kind.__name__, place)


def _not(value: object, wanted: str, place: str) -> str:
    return f"{place} is {value!r:.40}, needed is {wanted}"


def _first(wrong: Iterator[str]) -> str:
    return next(filter(None, wrong), "")
