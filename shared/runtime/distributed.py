"""What processes tell one another; every function also works without a process group.

Only this file and `shared.networks.batchnorm` talk to torch.distributed. All functions but `rank`
and `world_size` are collective: every process has to call them, in the same order.
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

T = TypeVar("T")


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


def gather_all(items: list[T]) -> list[T]:
    """The items of all processes, in the order of their ranks; they must be picklable."""
    if world_size() == 1:
        return items
    parts: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]
