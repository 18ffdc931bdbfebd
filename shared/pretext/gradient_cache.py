"""The gradient of a whole batch, with the activations of one part in memory at a time.

A contrastive loss compares all images of a batch, so its gradient is no sum over parts. By the
chain rule it is d loss / d z times d z / d weights, and the second factor needs no other part. So a
first pass makes all embeddings z and keeps no activations. The loss of all of them gives
d loss / d z. A second pass makes the embeddings again, part by part, and carries that through the
network (gradient caching: Gao et al. 2021, arXiv 2101.06983).

Both passes see the same views and the same dropout, and batch norm counts each part once. Its
statistics are those of the part (ghost batch norm): only this differs from the batch in one piece.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.data.batches import Batch, Parts
from shared.pretext.network import as_tuple
from shared.pretext.task import Answer, Task, Tensors
from shared.runtime.randomness import seed_torch


def backward_in_parts(
    net: nn.Module,
    batch: Parts,
    task: Task,
    accelerator: Accelerator,
    key: tuple[str | int, ...],
) -> Answer:
    """Add the gradient of the whole batch's loss to the network's gradients.

    Args:
        net: the trained network.
        batch: this process's part of the batch, in smaller parts.
        task: what the network sees of a part, and the loss of all outputs of this process.
        accelerator: averages the gradient over processes, once.
        key: of the randomness of this step.

    Returns:
        What the task answers; its loss without gradient.
    """

    def seeded_parts() -> Iterator[Batch]:
        for number, part in enumerate(batch):
            seed_torch(*key, number)
            yield part

    statistics = [buffer.clone() for buffer in net.buffers()]
    outputs, targets = [], []
    with torch.no_grad():
        for part in seeded_parts():
            outputs.append(as_tuple(net(*task.inputs(part))))
            targets.append(task.targets(part))
        for buffer, value in zip(net.buffers(), statistics, strict=True):
            buffer.copy_(value)  # the second pass counts the batch
    whole = tuple(output.requires_grad_() for output in in_order(outputs, batch))
    answer = task.loss(whole, in_order(targets, batch))

    grads = torch.autograd.grad(answer.loss, whole)  # collective: of the losses of all processes
    for number, part in enumerate(seeded_parts()):
        last = number == len(batch.rows) - 1
        with nullcontext() if last else accelerator.no_sync(net):
            own = [_rows_of_part(grad, batch, number).flatten(0, 1) for grad in grads]
            torch.autograd.backward(as_tuple(net(*task.inputs(part))), own)
    return answer._replace(loss=answer.loss.detach())


def in_order(parts: Sequence[Tensors], batch: Parts) -> Tensors:
    """(k b, ...) in the order of this process's b images, from (k b_i, ...) of each part."""
    wholes = []
    for pieces in zip(*parts, strict=True):
        whole = pieces[0].new_empty(sum(map(len, pieces)), *pieces[0].shape[1:])
        for number, piece in enumerate(pieces):
            rows = _rows_of_part(whole, batch, number)
            rows.copy_(piece.view_as(rows))
        wholes.append(whole)
    return tuple(wholes)


def _rows_of_part(whole: Tensor, batch: Parts, number: int) -> Tensor:
    """A part's rows of (k b, ...), as a view: (k, b_i, ...)."""
    return whole.unflatten(0, (-1, batch.images))[:, batch.rows[number]]
