"""What one image costs in a network: parameters, FLOPs and memory, counted without computing."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Size:
    """What one image costs in a network.

    Attributes:
        parameters: of the network.
        flops: of the forward pass of one image; a multiplication and an addition count as two.
        activations: bytes that the forward pass of one image keeps for the backward pass.
    """

    parameters: int
    flops: int
    activations: int


def measure_size(build: Callable[[], nn.Module], image_size: int, precision: str) -> Size:
    """Count without computing: on tensors that have shapes and no values.

    Args:
        build: makes the network.
        image_size: pixels per side.
        precision: of the forward pass, ``bf16`` (autocast) or ``no``.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.device("meta"):
        network = build().to(dtype).train()
        images = torch.empty(2, 3, image_size, image_size, dtype=dtype)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, FlopCounterMode(display=False) as counter:
        network(images)
    own = {p.untyped_storage()._cdata for p in (*network.parameters(), *network.buffers())}
    activations = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    parameters = sum(p.numel() for p in network.parameters())
    return Size(parameters, counter.get_total_flops() // 2, activations // 2)
