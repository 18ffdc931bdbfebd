"""The listing of a large folder, kept in a file that all processes map into memory.

To list a million files takes seconds, and 100 bytes of memory for each. Whether a listing still
holds takes one look at each folder: a file that comes, goes or is renamed changes the time of its
folder. A link to an image is taken by its name; what it leads to is read when the image is.

The file holds two streams of Arrow, the images and what was watched, and at its end their SHA-256.
It may be deleted at any time. One that is damaged, of another folder or of another version counts
as not there.
"""

import hashlib
import json
import mmap
import os
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypedDict, cast

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from shared.data.folders import Listed, Walk, Watched, formats, is_unchanged, walk
from shared.runtime.errors import UserError
from shared.runtime.files import into_place, open_regular
from shared.runtime.lock import held
from shared.runtime.records import mismatch, parse_json

FEWEST = 10_000  # images of a folder whose listing is kept
SETTLED = 2 * 10**9  # ns: a later file may leave a younger folder's time as it is
PATIENCE = 60.0  # seconds to wait for a process that writes the same file
VERSION = f"1, Pillow {Image.__version__}"  # of the file and of the rules of the walk

_NOTES = b"few-labels"
_IMAGES = pa.schema([("image", datasets.Image().pa_type)])
_WATCHED = pa.schema(
    [
        ("path", pa.binary()),
        ("device", pa.uint64()),
        ("inode", pa.uint64()),
        ("modified", pa.int64()),
        ("changed", pa.int64()),
    ]
)


class _Notes(TypedDict):
    version: str
    begin: str
    listed: list[list[str | int]]
    odd: list[str]
    folders: list[str]
    metadata: list[str]
    passed_over: dict[str, int]
    not_entered: list[str]
    formats: list[str]  # that Pillow knows, where the content of files counts


def listing(root: Path, cache_folder: str) -> Walk:
    """What lies below a folder, as `walk` says, from the file of an earlier listing if that holds.

    Args:
        root: the folder, absolute.
        cache_folder: where listings are kept; empty: none is read or kept. Where it cannot be
            written none is kept.
    """
    try:
        path = path_of(root, cache_folder) if cache_folder else None
    except RuntimeError:
        path = None
    if path is None:
        return walk(root)
    if kept := _read(path, root):
        return kept
    began = time.time_ns()
    walked = walk(root)
    if len(walked) < FEWEST or not _is_settled(walked, began):
        return walked
    with suppress(UserError, OSError), held(path, PATIENCE):  # of several processes one writes
        kept = _read(path, root)
        if kept is None:
            into_place(path, partial(write, walked=walked))
            kept = _read(path, root)
    return kept or walked


def path_of(root: Path, cache_folder: str) -> Path:
    """The file of a folder's listing; a RuntimeError where nobody knows the user's home."""
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:24]
    return Path(cache_folder).expanduser() / f"{key}.listing"


def _is_settled(walked: Walk, began: int) -> bool:
    """Whether a change after a walk that ``began`` then (ns) would show in what was watched."""
    times = [max(w.modified or 0, w.changed) for w in walked.watched if w.changed is not None]
    return not walked.unread and max(times, default=0) < began - SETTLED


def write(file: BinaryIO, walked: Walk) -> None:
    """Write a listing into a new file, open for reading too."""
    notes: _Notes = {
        "version": VERSION,
        "begin": walked.begin,
        "listed": [list(listed) for listed in walked.listed],
        "odd": walked.odd,
        "folders": walked.folders,
        "metadata": walked.metadata,
        "passed_over": walked.passed_over,
        "not_entered": walked.not_entered,
        "formats": formats() if walked.opened else [],
    }
    schema = _IMAGES.with_metadata({_NOTES: json.dumps(notes)})
    paths, *numbers = zip(*walked.watched, strict=True)
    columns = [[os.fsencode(path) for path in paths], *numbers]
    watched = pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, _WATCHED, strict=True)], _WATCHED
    )
    for table in (pa.table([walked.files], schema), watched):
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    file.seek(0)
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    file.write(digest.digest())


def _read(path: Path, root: Path) -> Walk | None:
    """The listing of a file, its paths mapped into memory; None where it does not hold."""
    try:
        with open_regular(path) as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if hashlib.sha256(content[:-32]).digest() != content[-32:]:
            return None
        return _checked(pa.BufferReader(pa.py_buffer(content)), root)
    except (OSError, ValueError, TypeError, pa.ArrowException):  # of the file, JSON and Arrow
        return None


def _checked(content: pa.BufferReader, root: Path) -> Walk | None:
    """What a file says of a folder where all of it is as it was; its hash is known to be right."""
    stream = pa.ipc.open_stream(content)
    notes = parse_json((stream.schema.metadata or {}).get(_NOTES, b""))
    if mismatch(notes, _Notes) or not stream.schema.equals(_IMAGES):
        return None
    notes = cast(_Notes, notes)
    if (notes["version"], notes["begin"]) != (VERSION, os.path.join(root, "")):
        return None
    if notes["formats"] and notes["formats"] != formats():
        return None
    table = stream.read_all()
    watched = pa.ipc.open_stream(content).read_all()
    if not watched.schema.equals(_WATCHED):
        return None
    watched.validate(full=True)
    columns = (column.to_pylist() for column in watched.columns)
    for path, *numbers in zip(*columns, strict=True):
        if not is_unchanged(root, Watched(os.fsdecode(path), *numbers)):
            return None
    table.validate(full=True)
    listed = [Listed(str(folder), int(number)) for folder, number in notes["listed"]]
    if not _are_below(table.column(0), notes["begin"]) or len(table) != sum(
        number for _, number in listed
    ):
        return None
    return Walk(
        notes["begin"],
        listed,
        table.column(0),
        notes["odd"],
        notes["folders"],
        notes["metadata"],
        Counter(notes["passed_over"]),
        notes["not_entered"],
    )


def _are_below(files: pa.ChunkedArray, begin: str) -> bool:
    """Whether files are paths below a folder alone: a file from elsewhere must not name others."""
    paths, encoded = (pc.struct_field(files, name) for name in ("path", "bytes"))  # type: ignore[attr-defined]
    if files.null_count or paths.null_count or encoded.null_count < len(files):
        return False
    ups = pc.count_substring(paths, "/../")  # type: ignore[attr-defined]
    below = pc.and_(pc.starts_with(paths, begin), pc.equal(ups, begin.count("/../")))  # type: ignore[attr-defined]
    return bool(pc.all(below).as_py())  # type: ignore[attr-defined]
