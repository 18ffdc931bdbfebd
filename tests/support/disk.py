"""A disk without room."""

import errno
import os


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
