"""Rotation: by which quarter turn is the image rotated (Gidaris et al. 2018, arXiv 1803.07728)?

Each image passes in all four orientations. To tell them, the network has to know what is in the
picture and how it usually stands. On images that look alike from all sides the task cannot be
solved, and its accuracy stays below 100%.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.data.batches import Batch
from shared.networks.heads import ContrastiveModel
from shared.pretext.network import PretextModel
from shared.pretext.task import Answer, Metrics, Task, Tensors


class Rotation(Task):
    """Four classes, told by a linear layer on the encoder's features."""

    name = "rotation"
    chance = math.log(4)

    def network(self, model: ContrastiveModel) -> nn.Module:
        """With a linear layer of four classes."""
        return PretextModel(model, [nn.Linear(model.features, 4)])

    def inputs(self, batch: Batch) -> Tensors:
        """The images in all orientations: (4b, 3, S, S)."""
        return (all_rotations(batch.images),)

    def targets(self, batch: Batch) -> Tensors:
        """(4b,) int64 quarter turns."""
        turns = torch.arange(4, device=batch.images.device)
        return (turns.repeat_interleave(len(batch.images)),)

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """Cross-entropy of the logits (4b, 4)."""
        return classification(outputs[0], targets[0], self.weight, "rotation")


def all_rotations(images: Tensor) -> Tensor:
    """Images (b, 3, S, S) -> (4b, 3, S, S), turned by 0, 90, 180 and 270 degrees, anticlockwise."""
    return torch.cat([images.rot90(turns, (2, 3)) for turns in range(4)])


def classification(logits: Tensor, classes: Tensor, weight: float, name: str) -> Answer:
    """The cross-entropy of a task with classes, with its accuracy beside that of chance.

    Args:
        logits: (n, C).
        classes: (n,) int64.
        weight: of this process's rows.
        name: of the task, for the log.
    """
    logits = logits.float()

    def metrics() -> Metrics:
        accuracy = (logits.argmax(1) == classes).float().mean()
        return {f"{name}_top1": weight * accuracy, "top1_of_chance": 1 / logits.shape[1]}

    return Answer(weight * F.cross_entropy(logits, classes), metrics)
