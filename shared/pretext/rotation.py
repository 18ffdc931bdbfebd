"""Rotation: by which quarter turn is the image rotated (Gidaris et al. 2018, arXiv 1803.07728)?

Each image passes in all four orientations. To tell them, the network has to know what is in the
picture and how it usually stands. On images that look alike from all sides the task cannot be
solved, and its accuracy stays below 100%.

It also helps fine-tuning (`RotationAided`), which Hendrycks et al. 2019 (arXiv 1906.12340) found to
make a classifier robust. As in their multiclass_ood/train_auxiliary.py (hendrycks/ss-ood) all four
orientations pass at once, and only the upright ones have classes. Their translations are left out,
and so is their score of unknown images, which needs the layer that is thrown away here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.config.sections import Finetune
from shared.data.batches import Batch
from shared.networks.heads import Classifier, ContrastiveModel
from shared.pretext.network import PretextModel
from shared.pretext.task import Answer, Metrics, Task, Tensors
from shared.runtime.errors import UserError


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
        return (quarter_turns(len(batch.images), batch.images.device),)

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """Cross-entropy of the logits (4b, 4)."""
        return classification(outputs[0], targets[0], self.weight, "rotation")


def all_rotations(images: Tensor) -> Tensor:
    """Images (b, 3, S, S) -> (4b, 3, S, S), turned by 0, 90, 180 and 270 degrees, anticlockwise."""
    return torch.cat([images.rot90(turns, (2, 3)) for turns in range(4)])


def quarter_turns(images: int, device: torch.device) -> Tensor:
    """The turns of `all_rotations` of so many images: (4b,) int64, 0 to 3."""
    return torch.arange(4, device=device).repeat_interleave(images)


class RotationAided(Classifier):
    """A classifier while it is fine-tuned with rotation's help; it shares the classifier's parts.

    One pass sees all orientations, so batch norm normalises the upright images by the statistics of
    all of them, and it is these that it remembers for evaluation.

    Args:
        classifier: what is kept; frozen parts stay frozen.
    """

    def __init__(self, classifier: Classifier) -> None:
        nn.Module.__init__(self)  # not a network of its own
        self.encoder, self.layers = classifier.encoder, classifier.layers
        self.linear, self.frozen = classifier.linear, classifier.frozen
        self.rotation = nn.Linear(self.linear.in_features, 4)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images (b, 3, S, S) -> logits of the classes (b, C) and of the turns (4b, 4), float32."""
        features = self.features(all_rotations(images))
        return self.linear(features[: len(images)]).float(), self.rotation(features).float()


def aided_by_rotation(model: Classifier, cfg: Finetune) -> RotationAided:
    """The classifier with a second linear layer; refused where nothing below the two is trained."""
    below = [*model.encoder.parameters(), *model.layers.parameters()]
    if not cfg.encoder_rate or not any(weight.requires_grad for weight in below):
        raise UserError(
            f"{cfg.section}.auxiliary=rotation has nothing to teach: everything below the linear"
            f" layer is frozen; set {cfg.section}.encoder_rate and freeze_after_block otherwise, or"
            " leave it out"
        )
    return RotationAided(model)


def told_turns(logits: Tensor, weight: float) -> Answer:
    """What `RotationAided` makes of its turns (4b, 4), with its own names for the log."""
    turns = quarter_turns(len(logits) // 4, logits.device)
    answer = classification(logits, turns, weight, "rotation")

    def metrics() -> Metrics:
        top1 = answer.metrics()["rotation_top1"]
        return {
            "rotation_loss": answer.loss,
            "rotation_top1": top1,
            "rotation_top1_of_chance": 1 / 4,
        }

    return answer._replace(metrics=metrics)


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
