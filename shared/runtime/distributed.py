"""What processes tell one another; every function also works without a process group.

Only this file and `shared.networks.batchnorm` talk to torch.distributed. All functions but `rank`,
`world_size`, `fails_first` and `lost_contact` are collective: every process has to call them, in
the same order.
"""

import itertools
import os
import re
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

# How long processes wait for one another. The main process works alone while it assesses, writes
# or makes pages, and machines download their data at their own speed. torch's 10 minutes (nccl) and
# 30 (gloo) would end such a run. A process that has died is noticed at once all the same: its
# connections close, and its launcher ends the others.
PATIENCE = timedelta(hours=6)
_words = itertools.count()  # how often `word_of_main` was called
_LOST = re.compile("gloo|nccl|connection (closed|reset|refused)|broken pipe", re.I)


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_with_grad(x: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, (B, D) -> (N, D), with N = B * ranks.

    The backward pass adds up the gradients of all processes' losses with respect to this process's
    rows. ``Accelerator.gather`` has no backward pass, so negatives on other processes would never
    be moved. When DDP averages the parameter gradients over processes, the result is exactly the
    gradient of the mean of the losses. B must be the same everywhere. A lone process gets ``x``
    itself.
    """
    return _Gather.apply(x) if world_size() > 1 else x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.contiguous()
        rows = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(rows, x)
        return torch.cat(rows)  # (N, D)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad.clone(memory_format=torch.contiguous_format)  # (N, D); reduced in place
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]  # (B, D)


@torch.no_grad()
def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of a tensor over processes, without gradient, for logs and metrics."""
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


def word_of_main(word: str) -> str:
    """The main process's word, the same everywhere; all processes must have met."""
    key, store = f"word/{next(_words)}", _store()
    store.set_timeout(PATIENCE)
    if rank() == 0:
        store.set(key, word)
    return store.get(key).decode()


def fails_first(others_begin: float = 1.0) -> bool:
    """Whether this process is the first that fails, so that all together tell of an error once.

    The processes count in the store where they met. Where it cannot be reached, each is the first.

    Args:
        others_begin: seconds by which the processes after number 0 hold back, so that it tells
            what all of them meet.
    """
    if not _launched_together():
        return True
    held_back = others_begin if int(os.environ.get("RANK", "0")) > 0 else 0.0
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
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _store() -> PrefixStore:
    """Where the launched processes meet, also before and after they are a group."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
    # a launcher that starts its processes anew keeps the store
    return PrefixStore(f"few-labels/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
