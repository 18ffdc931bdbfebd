"""A disk without room, and files that may not grow."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


def fill_the_disk(monkeypatch, after: int = 0) -> None:
    """Every write from the ``after``-th on fails in the middle: half of the bytes are there."""
    fsync, count = os.fsync, iter(range(10**6))

    def full(descriptor):
        if next(count) < after:
            return fsync(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        os.truncate(path, os.path.getsize(path) // 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process can be longer: whichever library writes, the system refuses it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
