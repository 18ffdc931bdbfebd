"""An array that the processes of one machine share, so that it is in memory once.

It lies in a file without a name (``memfd_create``), which ends with the last process that has it:
a crash leaves nothing, and the size of ``/dev/shm`` does not count. One process makes it, and the
others open it as a file of that process (``/proc``). Where that cannot be, as on systems other than
Linux, each process has an array of its own.
"""

import math
import mmap
import os
from contextlib import suppress
from io import BufferedRandom
from pathlib import Path

import torch
from torch import Tensor

from shared.runtime.distributed import gather_all, rank, rows_of, world_size
from shared.runtime.files import machine

OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")  # 2: memory is granted when it is asked for


def shared_array(shape: tuple[int, ...]) -> tuple[Tensor, slice]:
    """A new array that the processes of this machine fill together. All processes must call this.

    It is whole when the processes have met again, as in `gather_all`.

    Args:
        shape: of the array, the same for all processes.

    Returns:
        The array, uint8, with any content; and the rows of it that this process has to fill: all
        where it does not share it.
    """
    if world_size() > 1:
        machines = gather_all([machine()])
        here = [process for process, its in enumerate(machines) if its == machine()]
        shared = _shared(math.prod(shape), here)
        if shared is not None:
            return shared.view(shape), rows_of(here.index(rank()), len(here), shape[0])
    return torch.empty(shape, dtype=torch.uint8), slice(0, shape[0])


def _shared(size: int, here: list[int]) -> Tensor | None:
    """So many bytes that these processes, of this machine, share; None where one of them cannot."""
    made = _make(size) if rank() == here[0] and len(here) > 1 else None
    own = f"/proc/{os.getpid()}/fd/{made.fileno()}" if made else ""
    mapped = _mapped(gather_all([own])[here[0]], size)
    is_mapped = gather_all([mapped is not None])  # until then its maker has the file open
    if made:
        made.close()
    if mapped is None or not all(is_mapped[process] for process in here):
        return None
    return torch.frombuffer(mapped, dtype=torch.uint8)


def _make(size: int) -> BufferedRandom | None:
    """A new file in memory, of so many bytes, which take room when they are written; or None."""
    with suppress(AttributeError, OSError):
        # there a file's is granted page by page, and a signal ends the process that finds none
        if OVERCOMMIT.read_text().strip() != "2":
            file = os.fdopen(os.memfd_create("images"), "w+b")
            file.truncate(size)
            return file
    return None


def _mapped(path: str, size: int) -> mmap.mmap | None:
    """A file of so many bytes, in the memory of this process; None where it cannot be."""
    if not path:
        return None
    with suppress(OSError, ValueError), open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), size)
    return None
