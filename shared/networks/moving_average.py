"""A network whose weights are a moving average of those of a trained one."""

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def averaged(model: M) -> M:
    """A copy, the average at the start; without gradients.

    Args:
        model: the network to be trained; call this before accelerate wraps it.
    """
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """After an update of the model: every parameter becomes decay * itself + (1 - decay) * its.

    Buffers, as the statistics of batch norm, are copied: they are averages themselves.

    Args:
        average: is changed.
        model: the trained network, without wrapper.
        decay: in [0, 1).
    """
    for old, current in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(current, 1 - decay)
    for buffer, current in zip(average.buffers(), model.buffers(), strict=True):
        buffer.copy_(current)
