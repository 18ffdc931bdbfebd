"""The listing of a large folder, kept in a file that all processes map into memory.

To list a million files takes seconds, and 100 bytes of memory for each. Whether a listing still
holds takes one look at each folder: a file that comes, goes or is renamed changes the time of its
folder. A link to an image is taken by its name; what it leads to is read when the image is.

That holds where the system gives each change its time: on the file systems of `LOCAL`, and for
folders that lie on one of them together. Of others no listing is kept.

The file holds two streams of Arrow, the images and what was watched, and at its end their SHA-256.
It may be deleted at any time, and nothing is ever written into it again, since processes have it
mapped. One that is damaged, of another folder, of another version or that others may write counts
as not there.
"""

import hashlib
import json
import mmap
import os
import re
import secrets
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from io import BufferedRandom
from itertools import accumulate
from pathlib import Path
from typing import TypedDict, cast

import datasets
import psutil
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from shared.data.folders import METADATA, Listed, Walk, Watched, formats, is_unchanged, walk
from shared.runtime.errors import UserError
from shared.runtime.files import into_place, is_private, machine, open_regular
from shared.runtime.lock import clear, held
from shared.runtime.records import mismatch, parse_json

FEWEST = 10_000  # images of a folder whose listing is kept
SETTLED = 2 * 10**9  # ns: a later file may leave a younger folder's time as it is
PATIENCE = 60.0  # seconds to wait for a process that lists the same folder
# File systems that give a folder a new time when a file comes or goes. Those over a network may
# tell it late, object stores and FUSE never. On Windows the time of change is that of birth.
LOCAL = (
    *("apfs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "overlay", "tmpfs", "ufs", "xfs"),
    "zfs",
)
VERSION = f"3, Pillow {Image.__version__}"  # of the file and of the rules of the walk

_NOTES = b"few-labels"
_IMAGES = pa.schema([("image", datasets.Image().pa_type)])
_WATCHED = pa.schema(
    [
        ("path", pa.binary()),
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
    links: dict[str, str]
    formats: list[str]  # that Pillow knows, where the content of files counts


def listing(root: Path, cache_folder: str) -> Walk:
    """What lies below a folder, as `walk` says, from the file of an earlier listing if that holds.

    Args:
        root: the folder, absolute.
        cache_folder: where listings are kept; empty: none is read or kept. Where it cannot be
            written none is kept.
    """
    if not cache_folder or os.name == "nt":
        return walk(root)
    try:
        folder = Path(cache_folder).expanduser() / "listings"
    except RuntimeError:  # nobody knows the user's home
        return walk(root)
    if kept := _kept(folder, root):
        clear(folder / _key(root))
        return kept
    began = time.time_ns()
    walked = walk(root)
    if len(walked) < FEWEST or not _is_settled(walked, began) or not _is_local(root):
        return walked
    with suppress(UserError, OSError):
        folder.parent.mkdir(0o700, parents=True, exist_ok=True)  # shrunk images lie there
        folder.mkdir(0o700, exist_ok=True)
        if is_private(folder.lstat()):
            with held(folder / _key(root), PATIENCE):  # of several processes one writes
                kept = _kept(folder, root)
                if kept is None:
                    keep(folder, root, walked)
                    kept = _kept(folder, root)
    return kept or walked


def _key(root: Path) -> str:
    """How the names of a folder's listings begin; machines may share the folder of listings."""
    host, path = os.fsencode(machine().host), os.fsencode(root)
    return f"{hashlib.sha256(host).hexdigest()[:8]}-{hashlib.sha256(path).hexdigest()[:24]}"


def _is_settled(walked: Walk, began: int) -> bool:
    """Whether a change after a walk that ``began`` then (ns) would show in what was watched."""
    times = [time for w in walked.watched for time in (w.modified, w.changed) if time is not None]
    devices = {w.device for w in walked.watched if w.device is not None}
    is_old = min(times, default=0) > 0 and max(times, default=0) < began - SETTLED
    return is_old and len(devices) == 1 and not walked.unread


def _is_local(root: Path) -> bool:
    """Whether a folder lies on one of the file systems of `LOCAL`."""
    kinds = {disk.mountpoint: disk.fstype for disk in psutil.disk_partitions(all=True)}
    folder = root.resolve()
    return next(
        (kinds[p] in LOCAL for f in (folder, *folder.parents) if (p := str(f)) in kinds), False
    )


def keep(folder: Path, root: Path, walked: Walk) -> None:
    """Write a new listing and remove the earlier ones, and this machine's of roots that are gone.

    What a process has mapped stays as it was until that process ends.

    Args:
        folder: of the listings; it is there.
        root: the folder that was walked.
        walked: what was there.

    Raises:
        OSError: the file cannot be written.
    """
    path = folder / f"{_key(root)}-{secrets.token_hex(8)}.listing"
    into_place(path, partial(write, walked=walked))
    path.chmod(0o600)
    for other in folder.glob(f"{_key(root)[:8]}-*.listing"):
        if other != path and (other.name.startswith(_key(root)) or not _has_root(other)):
            other.unlink(missing_ok=True)


def _has_root(path: Path) -> bool:
    """Whether the folder of a listing is still there."""
    try:
        with open_regular(path) as file:
            metadata = pa.ipc.open_stream(file).schema.metadata or {}
        return os.path.isdir(parse_json(metadata.get(_NOTES, b""))["begin"])  # type: ignore[index]
    except (OSError, ValueError, TypeError, LookupError, pa.ArrowException):
        return False


def write(file: BufferedRandom, walked: Walk) -> None:
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
        "links": walked.links,
        "formats": formats() if walked.opened else [],
    }
    schema = _IMAGES.with_metadata({_NOTES: json.dumps(notes)})
    paths, _, *numbers = zip(*walked.watched, strict=True)  # a device's number may change
    columns = [[os.fsencode(path) for path in paths], *numbers]
    watched = pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, _WATCHED, strict=True)], _WATCHED
    )
    for table in (pa.table([walked.files], schema), watched):
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    file.seek(0)
    file.write(hashlib.file_digest(file, "sha256").digest())


def _kept(folder: Path, root: Path) -> Walk | None:
    """The listing of a root that holds, from a folder of listings; None where there is none."""
    try:
        paths = list(folder.glob(f"{_key(root)}-*.listing")) if is_private(folder.lstat()) else []
    except OSError:
        return None
    return next(filter(None, (_read(path, root) for path in paths)), None)


def _read(path: Path, root: Path) -> Walk | None:
    """The listing of a file, its paths mapped into memory; None where it does not hold."""
    try:
        with open_regular(path) as file:
            if not is_private(os.fstat(file.fileno())):
                return None  # who may cut it off could stop a process that has it mapped
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
    device = os.stat(root).st_dev  # all of it lies there (_is_settled)
    for path, inode, *times in zip(*columns, strict=True):
        was = Watched(os.fsdecode(path), None if inode is None else device, inode, *times)
        if not is_unchanged(root, was):
            return None
    table.validate(full=True)
    listed = [Listed(str(folder), int(number)) for folder, number in notes["listed"]]
    if not _lie_in(table.column(0), notes["begin"], listed):
        return None
    if any(_leads_away(name) or name.split("/")[-1] not in METADATA for name in notes["metadata"]):
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
        links=notes["links"],
    )


def _leads_away(name: str) -> bool:
    """Whether a name leads out of the folder that it is relative to."""
    return name.startswith("/") or ".." in re.split(r"[/\\]", name)


def _lie_in(files: pa.ChunkedArray, begin: str, listed: list[Listed]) -> bool:
    """Whether these files lie directly in these folders, so many in each, one after another."""
    paths, encoded = (pc.struct_field(files, name) for name in ("path", "bytes"))  # type: ignore[attr-defined]
    if files.null_count or paths.null_count or encoded.null_count < len(files):
        return False
    if any(_leads_away(folder) for folder, _ in listed):
        return False
    ups = pc.match_substring_regex(paths, r"[/\\]\.\.(\\[^/]*)?$")  # type: ignore[attr-defined]
    folders, ends = [], []
    for chunk in pc.replace_substring_regex(paths, r"[^/]*$", "").chunks:  # type: ignore[attr-defined]
        runs = pc.run_end_encode(chunk, run_end_type=pa.int64())  # type: ignore[attr-defined]
        first = ends[-1] if ends else 0
        folders += runs.values.to_pylist()
        ends += [first + end for end in runs.run_ends.to_pylist()]
    return (
        not pc.any(ups).as_py()  # type: ignore[attr-defined]
        and folders == [begin + folder for folder, _ in listed]
        and ends == list(accumulate(number for _, number in listed))
    )
