"""One process at a time works in a folder, and the others are told which one.

The system's lock on the file ``.NAME.lock``, beside the folder, decides. The system gives it back
when its process ends, however that ends, so nothing has to be cleaned up after a crash. The file
says who has the lock.

Two things are left to the file itself. Some file systems lock within each machine alone. So its
holder touches the file every ``BEAT`` seconds, and who gets the lock of another machine's process
first watches whether that goes on. Some cannot lock at all. There the file alone keeps processes
apart, and a line says so. A process that was silent for so long that another took over is told so
before it writes (`require_held`).

No library does this. Those for locks take flock, which a forked worker keeps when its parent has
died (these are POSIX record locks), and none says who holds a lock or shows that it is alive.
"""

import errno
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from shared.runtime.errors import CannotWriteError, UserError
from shared.runtime.files import NO_LINK, NO_WAIT, machine, require_no_link
from shared.runtime.media import say

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BEAT = 10.0  # seconds between two signs of life
MISSED = 4  # so many beats later a process counts as dead
SHORT = 30.0  # seconds of patience with a process that only writes what it has ready
QUIET = 2.0  # seconds of waiting before a line says so
ADVICE = "choose another --run or --output"
MOST = 4096  # bytes that are read of a lock file


class BusyError(UserError):
    """Another process works there now."""


@dataclass
class _Held:
    """A lock of this process: its file, its note there, open where the system has locked it."""

    file: Path
    pid: int
    note: dict[str, Any]
    descriptor: int | None


_held: dict[Path, _Held] = {}


@contextmanager
def held(path: Path, patience: float = 0.0, advice: str = ADVICE) -> Iterator[None]:
    """`take` the lock of a file or folder, and give it back; one that was held stays."""
    file = _file_of(path) if take(path, patience, advice) else None
    try:
        yield
    finally:
        if file:  # by this name: a relative path means nothing once the working folder is gone
            _release(file)


def take(path: Path, patience: float = 0.0, advice: str = ADVICE) -> bool:
    """Take the lock of a file or folder until `release`, or the end of the process.

    Args:
        path: the file or folder; it need not be there. Its parent is made.
        patience: seconds to wait for another process; one line says that it waits.
        advice: how the user gets another path, for messages.

    Returns:
        Whether it is new; False where this process has it already.

    Raises:
        BusyError: another process has it; the message says which, since when, and what to do.
        UserError: the path is a link, through which would be written elsewhere.
        CannotWriteError: the lock file cannot be written.
    """
    require_no_link(path, path.parent)
    began, waits = time.monotonic(), False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _file_of(path)
        if file in _held and _held[file].pid == os.getpid():
            return False
        while (holder := _attempt(file, path)) is not None:
            waited = time.monotonic() - began
            # what is empty is just being written
            if waited >= patience + (0 if holder else 0.5):
                raise BusyError(
                    f"{path} is in use: {_who(holder)}; wait for its end or stop it, or {advice}"
                )
            if not waits and waited > QUIET:
                say(f"waiting for {path}: {_who(holder)}", error=True)
                waits = True
            time.sleep(0.1)
    except OSError as error:
        raise CannotWriteError(
            f"cannot write {path}: {error}; make it writable and make room, or {advice}"
        ) from error
    _beat()
    return True


def require_held(path: Path) -> None:
    """UserError where this process took a lock that another process has taken over since.

    That happens to one that was stopped or suspended for ``BEAT * MISSED`` seconds, where the
    system's lock does not reach the other process.
    """
    lock = _held.get(_file_of(path))
    if lock is not None and lock.pid == os.getpid() and not _is_ours(lock):
        raise UserError(
            f"another process took over {path} while this one was silent, or {lock.file.name} was"
            " removed; nothing more is written there; run the same command again"
        )


def release(path: Path) -> None:
    """Give a lock back and remove its file; nothing where this process does not have it."""
    _release(_file_of(path))


def release_all() -> None:
    """Give back all locks of this process."""
    for file in list(_held):
        _release(file)


def clear(path: Path) -> None:
    """Remove the lock that a process of this machine has left, killed as it gave it back."""
    with suppress(UserError, OSError):
        file = _file_of(path)
        if file in _held:  # to read it by a second descriptor would give it back
            return
        note, own = _note_at(file), _own_note()
        if (note.get("boot"), note.get("space")) == (own["boot"], own["space"]) and not _runs(note):
            with held(path):
                pass


def _file_of(path: Path) -> Path:
    """The lock file; the folder that it lies in has one name alone."""
    path = Path(os.path.abspath(path))
    return path.parent.resolve() / f".{path.name}.lock"


def _release(file: Path) -> None:
    lock = _held.pop(file, None)
    if lock is None or lock.pid != os.getpid():
        return
    with suppress(OSError):
        if _is_ours(lock):
            file.unlink()  # before the lock goes: what another process locks must be in its place
    if lock.descriptor is not None:
        os.close(lock.descriptor)


def _is_ours(lock: _Held) -> bool:
    """Whether the lock file is still there with the note of this process."""
    with suppress(OSError):
        if lock.descriptor is None:
            return _note_at(lock.file) == lock.note
        # a second descriptor would give the lock back when it is closed
        return _is_open_at(lock.file, lock.descriptor) and _note(lock.descriptor) == lock.note
    return False


# ------------------------------------------------------------------------------------ one attempt
def _attempt(file: Path, path: Path) -> dict[str, Any] | None:
    """Take a lock: None, or what its holder has noted."""
    while True:
        opened = _open(file)
        if opened is None:
            continue
        descriptor, new, writable = opened
        keep = False
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{file.name} is no regular file; remove it")
            locked, reason = _lock(descriptor, writable)
            if locked is False:
                return _note(descriptor)
            if not _is_open_at(file, descriptor):
                continue  # its holder has just finished and removed the file
            note = _note(descriptor)
            if (note or not (new or locked)) and _is_alive(note, locked is not None, file, path):
                return note
            if not writable or not (new or locked):  # a new file decides who is first
                if _is_open_at(file, descriptor) and _note(descriptor) == note:
                    file.unlink()
                continue
            lock = _Held(file, os.getpid(), _write_note(descriptor), descriptor)
            if locked is None:
                say(
                    f"note: the file system of {path} cannot lock ({reason}); {file.name} alone"
                    " keeps two runs apart there",
                    error=True,
                )
                time.sleep(0.2)  # another may just have taken this file for that of a dead process
                lock.descriptor = None
                if not _is_ours(lock):
                    continue
            keep = locked is not None
            _held[file] = lock
            return None
        finally:
            if not keep:
                os.close(descriptor)


def _open(file: Path) -> tuple[int, bool, bool] | None:
    """A lock file, whether it is new, and whether it can be written; None where it has just gone.

    What a colleague's crash has left in a common folder may be readable alone.
    """
    flags = NO_LINK | NO_WAIT
    try:
        return os.open(file, flags | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True, True
    except FileExistsError:
        pass
    try:
        return os.open(file, flags | os.O_RDWR), False, True
    except PermissionError:
        with suppress(FileNotFoundError):
            return os.open(file, flags | os.O_RDONLY), False, False
    except FileNotFoundError:
        pass
    return None


def _lock(descriptor: int, writable: bool) -> tuple[bool | None, str]:
    """Whether the system has locked the file for this process; None and why where it cannot."""
    if fcntl is None:
        return None, "on this system"
    try:
        kind = fcntl.LOCK_EX if writable else fcntl.LOCK_SH
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
        return True, ""
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False, ""
        return None, str(error)


def _is_open_at(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


# ----------------------------------------------------------------------------------- who holds it
def _own_note() -> dict[str, Any]:
    """This process, as others can recognise it: process ids are used again."""
    pid = os.getpid()
    return {**machine()._asdict(), "pid": pid, "started": psutil.Process(pid).create_time()}


def _write_note(descriptor: int) -> dict[str, Any]:
    note = {**_own_note(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(note).encode())
    return note


def _note(descriptor: int) -> dict[str, Any]:
    """What a lock file says; empty where it says nothing that can be understood."""
    if hasattr(os, "pread"):  # the signs of life read by the same descriptor
        text = os.pread(descriptor, MOST, 0)
    else:  # Windows, where each has its own
        os.lseek(descriptor, 0, os.SEEK_SET)
        text = os.read(descriptor, MOST)
    with suppress(ValueError, RecursionError):
        note = json.loads(text)
        if isinstance(note, dict):
            return note
    return {}


def _note_at(file: Path) -> dict[str, Any]:
    descriptor = os.open(file, os.O_RDONLY | NO_LINK | NO_WAIT)
    try:
        return _note(descriptor)
    finally:
        os.close(descriptor)


def _who(note: dict[str, Any]) -> str:
    """The holder in words; the file may hold anything."""
    pid, host, since = note.get("pid"), note.get("host"), note.get("since")
    if not isinstance(pid, int):
        return "another process works there"
    place = "".join(c for c in str(host)[:64] if c.isascii() and (c.isalnum() or c in "-._"))
    when = "".join(c for c in str(since)[:19] if c in "0123456789-: ")
    return f"process {pid} on {place} has worked there since {when}"


def _is_alive(note: dict[str, Any], can_lock: bool, file: Path, path: Path) -> bool:
    """Whether the process that a lock file names may still work, though it is not locked here."""
    own = _own_note()
    same_machine = note.get("boot") == own["boot"]
    if can_lock and same_machine:
        return False  # the system would have said so
    if same_machine and note.get("space") == own["space"]:
        return _runs(note)
    say(
        f"{path}: {_who(note)}; watching for {BEAT * MISSED:.0f} s whether it is still alive",
        error=True,
    )
    last, deadline = _touched(file), time.monotonic() + BEAT * MISSED
    while time.monotonic() < deadline:
        time.sleep(min(1.0, BEAT / 2))
        if _touched(file) != last:
            return True
    return False


def _runs(note: dict[str, Any]) -> bool:
    """Whether the process of a note of this machine is there; another one may have its number."""
    try:
        started = psutil.Process(note["pid"]).create_time()
        return abs(started - note["started"]) < 2
    except (psutil.Error, KeyError, TypeError, ValueError, OverflowError):
        return False


def _touched(file: Path) -> int | None:
    # by its name: closing a second descriptor of a file would give its lock back
    try:
        return os.stat(file, follow_symlinks=False).st_mtime_ns
    except OSError:
        return None


# ---------------------------------------------------------------------------------- signs of life
_pulse: threading.Thread | None = None


def _beat() -> None:
    """Touch the lock files of this process from now on, beside its work."""
    global _pulse
    if _pulse is None or not _pulse.is_alive():  # a forked process has none yet
        _pulse = threading.Thread(target=_go_on_beating, name="lock", daemon=True)
        _pulse.start()


def _go_on_beating() -> None:
    while True:
        time.sleep(BEAT)
        for lock in list(_held.values()):
            if lock.pid == os.getpid() and _is_ours(lock):
                with suppress(OSError):
                    os.utime(lock.file, follow_symlinks=False)
