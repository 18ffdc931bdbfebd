"""The gradient of a whole batch, with the activations of one part in memory at a time.

A contrastive loss compares all images of a batch, so its gradient is no sum over parts. By the
chain rule it is d loss / d z times d z / d weights, and the second factor needs no other part. So a
first pass makes all embeddings z and keeps no activations. The loss of all of them gives
d loss / d z. A second pass makes the embeddings again, part by part, and carries that through the
network (gradient caching: Gao et al. 2021, arXiv 2101.06983).

Both passes see the same views and the same dropout, and batch norm counts each part once. Its
statistics are those of the part (ghost batch norm): only this differs from the batch in one piece.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.data.batches import Parts
from shared.runtime.randomness import seed_torch
from shared.training.losses import Pairs

Embedded = tuple[Tensor, Tensor | None]


class Contrast(NamedTuple):
    """A contrastive loss, and what it was computed of.

    Attributes:
        loss: scalar, weighted such that its average over processes is the loss of the batch.
        pairs: the embeddings that it compares.
        keys: (B, D), of all processes' second views: embeddings or, with a memory, keys.
    """

    loss: Tensor
    pairs: Pairs
    keys: Tensor


def backward_in_parts(
    net: nn.Module,
    batch: Parts,
    embed: Callable[[Tensor], Embedded],
    embed_again: Callable[[Tensor], Tensor],
    contrast: Callable[[Tensor, Tensor | None], Contrast],
    accelerator: Accelerator,
    key: tuple[str | int, ...],
) -> Contrast:
    """Add the gradient of the whole batch's loss to the network's gradients.

    Args:
        net: the trained network.
        batch: this process's part of the batch, in smaller parts.
        embed: images of a part -> embeddings, and keys or None.
        embed_again: images of a part -> embeddings alone, with gradient.
        contrast: all embeddings and keys of this process -> the loss.
        accelerator: averages the gradient over processes, once.
        key: of the randomness of this step.

    Returns:
        What ``contrast`` returns; loss and keys without gradient.
    """

    def seeded_parts() -> Iterator[Tensor]:
        for number, part in enumerate(batch):
            seed_torch(*key, number)
            yield part.images

    statistics = [buffer.clone() for buffer in net.buffers()]
    with torch.no_grad():
        embedded = [embed(images) for images in seeded_parts()]
        for buffer, value in zip(net.buffers(), statistics, strict=True):
            buffer.copy_(value)  # the second pass counts the batch
    z = in_order([z for z, _ in embedded], batch).requires_grad_()
    keys = [keys for _, keys in embedded if keys is not None]
    result = contrast(z, in_order(keys, batch) if keys else None)

    (grad,) = torch.autograd.grad(result.loss, z)  # collective: of the losses of all processes
    for number, images in enumerate(seeded_parts()):
        last = number == len(batch.rows) - 1
        with nullcontext() if last else accelerator.no_sync(net):
            embed_again(images).backward(_rows_of_part(grad, batch, number).flatten(0, 1))
    return Contrast(result.loss.detach(), result.pairs, result.keys.detach())


def in_order(parts: list[Tensor], batch: Parts) -> Tensor:
    """(V b, D) in the order of this process's b images, from (V b_i, D) of each part, V views."""
    whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for number, part in enumerate(parts):
        rows = _rows_of_part(whole, batch, number)
        rows.copy_(part.view_as(rows))
    return whole


def _rows_of_part(whole: Tensor, batch: Parts, number: int) -> Tensor:
    """A part's rows of (V b, D), as a view: (V, b_i, D)."""
    return whole.unflatten(0, (-1, batch.images))[:, batch.rows[number]]
