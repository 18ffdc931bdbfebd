"""Files are made whole under a name that nobody can foresee, and read within bounds.

A file is written beside its name and moved into place. So a process that is killed at any moment
leaves the old file or the new one. The name in between is made for this one write, and only where
nothing has it: a link that somebody put there is not followed.
"""

import difflib
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedRandom, BufferedReader
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import psutil

from shared.runtime.errors import CannotWriteError, UserError

# what is not there on Windows
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a named pipe would wait for its other end
MOST_NAMES = 10_000  # of a folder that are compared with a misspelt one


def into_place(path: Path, write: Callable[[BufferedRandom], object]) -> None:
    """Write a file so that at any moment the old or the new one is there, whole.

    Args:
        path: the file; its folders are made.
        write: gets the new file, which is open. It may also write by the file's ``name``.

    Raises:
        OSError: the file cannot be written; nothing is left of it then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clean_once(path.parent, os.getpid())
    temporary = path.parent / temporary_name()
    try:
        with new_file(temporary) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            write(file)
        with temporary.open("rb") as file:  # safetensors has put another in its place, of mode 600
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):  # the folder itself may be what is missing
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | Callable[[BinaryIO], object]) -> None:
    """Write a result of a run with `into_place`.

    Args:
        path: the file.
        content: its text, or a function that writes it.

    Raises:
        CannotWriteError: the disk is full or not writable; what was there before stays.
    """
    text = None if callable(content) else content.encode()
    write = content if callable(content) else lambda file: file.write(text)
    try:
        into_place(path, write)
    except OSError as error:
        raise CannotWriteError(
            f"cannot write {path}: {error}; make room or choose another folder, then run the same"
            " command again (without --force): what is finished stays, and training goes on from"
            " the last checkpoint"
        ) from error


def new_file(path: Path) -> BufferedRandom:
    """Make a file, open for writing; FileExistsError where anything has its name, also a link."""
    return path.open("x+b")


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder in another one, which goes at the end with what is in it."""
    folder = parent / temporary_name()
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_name() -> str:
    """A new name, which says whose file it is, so that `clean` knows what a crash has left."""
    return f".{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"


class Machine(NamedTuple):
    """Where the number of a process means something.

    Attributes:
        host: name, which other machines may have too.
        boot: id of its last start, or its name again.
        space: the numbers of processes that are seen; a container has its own.
    """

    host: str
    boot: str
    space: str


@cache
def machine() -> Machine:
    """This machine."""
    host, boot, space = socket.gethostname(), "", ""
    with suppress(OSError):  # not Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    return Machine(host, boot or host, space)


def _machine() -> str:
    return hashlib.sha256(" ".join(machine()).encode()).hexdigest()[:8]


def clean(folder: Path, alone: bool = False) -> None:
    """Remove the unfinished files of processes that have died; what cannot be removed stays.

    What a machine left before its last start is told from nobody's and stays, unless ``alone``.

    Args:
        folder: is looked at itself, not those within it; a link is not followed.
        alone: nobody else writes there now, so that every ``*.tmp`` is a leftover.
    """
    if folder.is_symlink():
        return
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.endswith(".tmp") and (alone or _is_leftover(entry.name)):
                remove(Path(entry.path))


@cache
def _clean_once(folder: Path, process: int) -> None:
    """`clean` a folder where this process writes for the first time."""
    clean(folder)


def _is_leftover(name: str) -> bool:
    match = re.fullmatch(rf"\.{_machine()}-([0-9]{{1,9}})-[0-9a-f]{{16}}\.tmp", name)
    return match is not None and not psutil.pid_exists(int(match[1]))


def remove(path: Path) -> None:
    """Delete a file, a link (not what it leads to) or a folder, where there is one.

    Raises:
        OSError: it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def delete(path: Path) -> None:
    """`remove` what must not stay.

    Raises:
        CannotWriteError: it cannot be deleted.
    """
    try:
        remove(path)
    except OSError as error:
        raise CannotWriteError(
            f"cannot delete {path}: {error}; delete it yourself, or choose another folder, then run"
            " the same command again"
        ) from error


def require_no_link(path: Path, root: Path) -> None:
    """UserError where a part of a path below a folder is a link, which leads elsewhere."""
    for part in (path, *path.parents):
        if part == root:
            return
        if part.is_symlink():
            raise UserError(
                f"{part} is a link, and what is written there would land elsewhere; remove the link"
            )


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read; a pipe, a device or a folder is refused, where reading could never end.

    Raises:
        OSError: there is no such file, or it is no regular one.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # opening some devices does something
        raise OSError(f"{path.name} is no regular file")
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | NO_WAIT))


def is_private(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user, and nobody else may write there."""
    if os.name == "nt":  # the mode says nothing there
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def read_bytes(path: Path, limit: int) -> bytes:
    """What a regular file holds.

    Args:
        path: the file.
        limit: largest number of bytes.

    Raises:
        OSError: there is no such file, it is no regular one, or it is larger.
    """
    with open_regular(path) as file:
        # first its size: of a terabyte of zeros nothing is read
        is_larger = os.fstat(file.fileno()).st_size > limit
        content = b"" if is_larger else file.read(limit + 1)
    if is_larger or len(content) > limit:
        raise OSError(f"it is larger than {limit:,} bytes")
    return content


def did_you_mean(path: str | os.PathLike[str]) -> str:
    """The end of a message about a path that is not there: what exists and is called similarly.

    Returns:
        ``; did you mean runs/photos?`` as far down as the path exists then; empty where the first
        part that is missing resembles nothing beside it.
    """
    path = Path(path)
    place, corrected = Path(path.anchor), False
    for name in path.relative_to(path.anchor).parts:
        if not os.path.lexists(place / name):
            try:
                with os.scandir(place) as entries:
                    beside = [entry.name for entry in islice(entries, MOST_NAMES)]
            except OSError:  # a file, or a folder that may not be read
                break
            close = difflib.get_close_matches(name, beside, n=1)
            if not close:
                break
            name, corrected = close[0], True
        place /= name
    return f"; did you mean {place}?" if corrected else ""
