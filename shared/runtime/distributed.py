"""What processes tell one another; every function also works without a process group.

Only this file and `shared.networks.batchnorm` talk to torch.distributed. `gather_with_grad`,
`mean_over_processes`, `agree`, `word_of_main` and `refuse_together` are collective: every process
has to call them, in the same order.

The rows of a global batch are divided as evenly as they can be: process r of W has the rows
r B // W to (r + 1) B // W of B. The numbers of two processes differ by 1 at most.
"""

import itertools
import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from shared.runtime.errors import UserError
from shared.runtime.launcher import launcher_number

# How long processes wait for one another. The main process works alone while it assesses, writes
# or makes pages, and machines download their data at their own speed. torch's 10 minutes (nccl) and
# 30 (gloo) would end such a run. A process that has died is noticed at once all the same: its
# connections close, and its launcher ends the others.
PATIENCE = timedelta(hours=6)
_words = itertools.count()  # how often `word_of_main` was called
_LOST = re.compile("gloo|nccl|connection (closed|reset|refused)|broken pipe", re.I)

T = TypeVar("T")


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def rows_of(process: int, processes: int, total: int) -> slice:
    """The rows that a process has of a global batch of ``total`` rows."""
    return slice(process * total // processes, (process + 1) * total // processes)


def own_rows(total: int) -> slice:
    """The rows that this process has of a global batch of ``total`` rows."""
    return rows_of(rank(), world_size(), total)


def weight_of_own_rows(total: int) -> float:
    """Factor that makes a mean over this process's rows count by their number.

    With it the plain average over processes, which DDP takes of gradients and `mean_over_processes`
    of metrics, is the mean over all ``total`` rows. It is exactly 1 where all have equally many.
    """
    rows = own_rows(total)
    return (rows.stop - rows.start) * world_size() / total


def gather_with_grad(x: Tensor, total: int) -> Tensor:
    """The rows of all processes in the order of their ranks, (B, D) -> (N, D).

    The backward pass adds up the gradients of all processes' losses with respect to this process's
    rows. ``Accelerator.gather`` has no backward pass, so negatives on other processes would never
    be moved. When DDP averages the parameter gradients over processes, the result is exactly the
    gradient of the mean of the losses. A lone process gets ``x`` itself.

    Args:
        x: this process's rows; B as `own_rows` says.
        total: N, the rows of all processes.

    Raises:
        ValueError: this process should have another number of rows.
    """
    if world_size() == 1:
        return x
    rows = own_rows(total)
    if len(x) != rows.stop - rows.start:
        raise ValueError(
            f"process {rank()} of {world_size()} has {rows.stop - rows.start} of {total} rows, not"
            f" {len(x)}: divide them as own_rows does"
        )
    return _Gather.apply(x, total)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, total: int) -> Tensor:
        ctx.rows, world = own_rows(total), world_size()
        longest = -(-total // world)
        x = x.contiguous()
        if len(x) < longest:  # all must send equally many
            x = torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])])
        gathered = [torch.empty_like(x) for _ in range(world)]
        dist.all_gather(gathered, x)
        rows = [rows_of(process, world, total) for process in range(world)]
        numbers = [r.stop - r.start for r in rows]
        return torch.cat([g[:number] for g, number in zip(gathered, numbers, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad.clone(memory_format=torch.contiguous_format)  # (N, D); reduced in place
        dist.all_reduce(grad)
        return grad[ctx.rows], None  # (B, D)


@torch.no_grad()
def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of a tensor over processes, without gradient, for logs and metrics.

    What is a mean over rows must have its `weight_of_own_rows`.
    """
    if world_size() == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def agree(flag: bool, number: int) -> tuple[bool, int]:
    """Whether the flag is set on any process, and the smallest number: the same everywhere."""
    if world_size() == 1:
        return flag, number
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"  # nccl cannot reduce CPU tensors
    both = torch.tensor([int(flag), -number], device=device)
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    any_flag, negative = both.tolist()
    return bool(any_flag), -negative


def gather_all(items: list[T]) -> list[T]:
    """The items of all processes, in the order of their ranks; they must be picklable."""
    if world_size() == 1:
        return items
    parts: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def word_of_main(word: str) -> str:
    """The main process's word, the same everywhere; all processes must have met."""
    key, store = f"word/{next(_words)}", _store()
    store.set_timeout(PATIENCE)
    if rank() == 0:
        store.set(key, word)
    return store.get(key).decode()


def refuse_together(act: Callable[[], object], main: bool) -> None:
    """Let the main process act; where it is refused, all processes are, with its words.

    Args:
        act: what the main process does.
        main: whether this process is the main one. All processes must call this.

    Raises:
        UserError: what ``act`` has raised; of the other processes with the same message.
    """
    refusal: UserError | None = None
    if main:
        try:
            act()
        except UserError as error:
            refusal = error
    words = gather_all([str(refusal or "")])
    if refusal:
        raise refusal
    if word := next(filter(None, words), ""):
        raise UserError(word)


def fails_first(others_begin: float = 1.0) -> bool:
    """Whether this process is the first that fails, so that all together tell of an error once.

    The processes count in the store where they met. Where it cannot be reached, each is the first.

    Args:
        others_begin: seconds by which the processes after number 0 hold back, so that it tells
            what all of them meet.
    """
    if not _launched_together():
        return True
    held_back = others_begin if launcher_number("RANK", 0) > 0 else 0.0
    deadline = time.monotonic() + held_back
    try:
        store = _store()
        while store.add("failed", 0) == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        return store.add("failed", 1) == 1
    except (KeyError, RuntimeError):
        return True


def lost_contact(error: Exception) -> bool:
    """Whether the error says that another process cannot be reached, and so is no defect here."""
    if not (_launched_together() and isinstance(error, RuntimeError)):
        return False
    return isinstance(error, dist.DistError) or _LOST.search(str(error)) is not None


def _launched_together() -> bool:
    """Whether a launcher started several processes; they need not have met yet."""
    return launcher_number("WORLD_SIZE", 1) > 1


def _store() -> PrefixStore:
    """Where the launched processes meet, also before and after they are a group."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
    # a launcher that starts its processes anew keeps the store
    return PrefixStore(f"few-labels/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
