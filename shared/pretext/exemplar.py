"""Exemplars: which other views are of the same image (Dosovitskiy et al. 2014, arXiv 1406.6909)?

Several random views of an image form a class. A layer with a class for each image would grow with
the images. So the views are compared with one another: the triplet loss draws the views of an image
together, and pushes away the nearest views of other images that are not nearer than its own
(Kolesnikov et al. 2019, arXiv 1901.09005; google/revisiting-self-supervised).

What differs on purpose: the embedding is the projection head's, from which fine-tuning may start;
the reference has one linear layer of 1,000. The reference normalises each number over the batch
(axis 0); here each embedding has unit length, as the triplet loss asks. Views have the colours of
the recipe; the reference only makes two of three images grey.
"""

from accelerate import Accelerator
from torch import Tensor

from shared.config.schema import Config
from shared.pretext.task import Answer, Metrics, Task, Tensors
from shared.runtime.distributed import gather_with_grad, own_rows
from shared.training.losses import nearest_is_own, semi_hard_triplet


class Exemplar(Task):
    """The views of an image find one another."""

    name = "exemplar"

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        self.chance = config.exemplar.margin  # where all distances are equal

    @property
    def facts(self) -> str:
        """How many views of an image there are."""
        return f"{self.views} views of each image"

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """Of the projections (V b, D), with those of all processes."""
        z = outputs[0].unflatten(0, (self.views, -1)).transpose(0, 1)  # (b, V, D)
        z_all, first = gather_with_grad(z, self.batch_size), own_rows(self.batch_size).start

        def metrics() -> Metrics:
            top1 = nearest_is_own(z, z_all, first)
            chance = (self.views - 1) / (self.batch_size * self.views - 1)
            return {f"{self.name}_top1": self.weight * top1, "top1_of_chance": chance}

        return Answer(self.weight * self.triplets(z, z_all, first), metrics)

    def triplets(self, z: Tensor, z_all: Tensor, first: int) -> Tensor:
        """The loss of this process's images (b, V, D), the rows from ``first`` on of (B, V, D)."""
        return semi_hard_triplet(z, z_all, self.config.exemplar.margin, first)
