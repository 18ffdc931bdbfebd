"""Standard output and standard error, which may end before the work does.

A closed pager, a dead ``tee``, a full disk or a terminal that has gone end no work: what a command
is for lies in files, and a training of days must not end with the window that shows it. What is
written after the first failure goes nowhere. At its end the command says so by its exit code.
"""

import errno
import os
import sys
from contextlib import suppress
from typing import TextIO

CLOSED_PIPE = 141  # 128 + SIGPIPE, as a shell says it
_failures: list[OSError] = []  # of standard output, since the command began


class OutputLostError(Exception):
    """Standard output cannot be written, and the command is for nothing else."""


def begin() -> None:
    """A command begins; where its caller closed a standard stream, nothing takes its place.

    The next file that is opened would get the stream's number. What a library writes to standard
    error would then stand in that file.
    """
    _failures.clear()
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def write(text: str, *, error: bool = False) -> bool:
    """Write text to standard output or standard error at once; whether it was written.

    Characters that the encoding lacks become escapes.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        if stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
        stream.flush()
    except OSError as failure:
        if not error:
            _failures.append(failure)
        if stream is not None:
            _to_nowhere(stream)
    return error or not _failures


def first_failure() -> OSError | None:
    """Why the command could not write standard output, if so."""
    return _failures[0] if _failures else None


def _to_nowhere(stream: TextIO) -> None:
    """What waits in the stream, and all that follows, is written to nothing."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
