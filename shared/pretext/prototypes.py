"""The contrastive task by prototypes (SwAV: Caron et al. 2020, arXiv 2006.09882).

Views are not compared with one another but with prototypes, which are trained vectors. A view's
code is its share in each prototype, such that all prototypes get equal shares of the batch
(Sinkhorn). Each view has to predict the code of the other view of its image: so two views of an
image belong together, and no single code fits all images. The prototypes are thrown away after
pretraining; encoder and projection head are kept, as of the other losses.

What differs from the authors' main_swav.py on purpose: there are two views and no smaller ones. The
codes come from the batch alone, without a queue. The prototypes are divided by their length where
they are used, not after each step, and learn from the first step on, unless
``--prototypes.frozen_steps`` says otherwise: where they learn fast, codes of 0.05 and a temperature
of 0.1 need that. Codes balance the whole batch
of all processes, also where it passes in parts.
"""

import math

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.schema import Config
from shared.networks.heads import ContrastiveModel
from shared.pretext.network import PretextModel
from shared.pretext.sinkhorn import sinkhorn
from shared.pretext.task import Answer, Metrics, Task, Tensors
from shared.runtime.distributed import gather_with_grad, own_rows
from shared.training.losses import swapped_codes


class PrototypeHead(nn.Module):
    """Cosines of projections with prototypes, in float32 whatever the autocast state.

    Args:
        width: D, of the projections.
        number: K, of the prototypes.

    Attributes:
        weight: (K, D), the prototypes; their lengths have no meaning.
        frozen: whether the prototypes learn nothing.
    """

    sees = "projection"
    frozen = False

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(number, width)))

    def forward(self, projections: Tensor) -> Tensor:
        """Projections (B, D) -> cosines (B, K)."""
        with torch.autocast(projections.device.type, enabled=False):
            weight = F.normalize(self.weight.float())
            if self.frozen:  # a gradient of 0, as several processes wait for one
                weight = weight.detach() + 0 * weight
            return F.normalize(projections.float()) @ weight.T


class Prototypes(Task):
    """Each view predicts the other one's code."""

    name = "contrastive"

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        self.cfg, self.temperature = config.prototypes, config.pretrain.temperature
        self.chance = math.log(self.cfg.number)  # where all prototypes are equally likely

    @property
    def facts(self) -> str:
        """How many prototypes there are."""
        return f"{self.cfg.number:,} prototypes"

    def network(self, model: ContrastiveModel) -> nn.Module:
        """With the prototypes on the projection head."""
        self.head = PrototypeHead(model.head.widths[-1], self.cfg.number)
        return PretextModel(model, [self.head])

    def at(self, step: int) -> None:
        """Let the prototypes learn after the first steps."""
        super().at(step)
        self.head.frozen = step < self.cfg.frozen_steps

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """Of the scores (2b, K), with codes from those of all processes."""
        scores, own = outputs[0], own_rows(self.batch_size)
        views = [gather_with_grad(v, self.batch_size) for v in scores.detach().chunk(2)]
        codes = torch.cat([self.codes(view)[own] for view in views])  # (2b, K)
        loss = self.weight * swapped_codes(scores, codes, self.temperature)

        def metrics() -> Metrics:
            hits = scores.detach().argmax(1) == codes.argmax(1).roll(len(codes) // 2)
            shares = (views[0] / self.temperature).softmax(1).mean(0)  # (K,), of the whole batch
            return {
                "prototypes_top1": self.weight * hits.float().mean(),
                "top1_of_chance": 1 / self.cfg.number,
                "prototypes_used": torch.special.entr(shares).sum().exp(),
            }

        return Answer(loss, metrics)

    def codes(self, scores: Tensor) -> Tensor:
        """Shares of the prototypes in each image: (B, K) of the cosines (B, K) of one view.

        A row sums to 1, and a column to about B / K.
        """
        with torch.autocast(scores.device.type, enabled=False):
            return sinkhorn(scores.float() / self.cfg.epsilon, self.cfg.sinkhorn_steps).exp()
