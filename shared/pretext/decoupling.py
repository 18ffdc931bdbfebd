"""Rotation feature decoupling (Feng et al. 2019, CVPR; philiptheother/FeatureDecoupling).

The encoder's features have two halves. A linear layer tells the rotation from the first half. The
second half is to be the same for all four rotations: it is drawn to its mean over them, and that
mean is told apart from the means of all other images, as the task ``instances`` does it.

Some images look upright when they are turned, and nothing can be learned from their rotation. In
the last part of the training such a copy counts 1 - p^gamma, where p says how upright it looks. An
image that is not turned always counts 1.

What differs on purpose: the original takes p from a first network, trained by positive-unlabeled
learning. Here one run does all: p is how likely an upright image looks like this copy, in relation
to a turned one, but at most 1, by the network's own logits; a running mean of it is kept for each
image and turn. So p is 1 for images that are alike from all sides. The options of the second half
are those of ``instances``, whose softmax is exact by default, and whose temperature is 0.1, where
the original draws 4,096 negatives and takes 0.07.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.schema import Config
from shared.data.batches import Batch
from shared.data.images import ImageSet
from shared.networks.heads import ContrastiveModel
from shared.pretext.instances import Instances, last_of_each
from shared.pretext.network import PretextModel
from shared.pretext.rotation import all_rotations
from shared.pretext.task import Answer, Metrics, Task, Tensors
from shared.runtime.distributed import gather_with_grad
from shared.training.schedule import schedule_of


class Halves(nn.Module):
    """The layers on both halves of the features (B, F), of width h = F // 2.

    Args:
        features: F.
        out: D, width of the vectors that tell images apart.
    """

    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.width, self.out = features // 2, out
        self.rotation = nn.Linear(self.width, 4)
        # the mean over rotations may come after it, as it is linear
        self.instance = nn.Linear(self.width, out)

    @property
    def widths(self) -> list[int]:
        """Of the parts of the answer."""
        return [4, 4, self.width, self.out]

    def forward(self, features: Tensor) -> Tensor:
        """(B, 4 + 4 + h + D): logits of both halves, the second half, its projection.

        The layer that tells rotations learns from the first half alone.
        """
        first, second = features[:, : self.width], features[:, self.width : 2 * self.width]
        weight, bias = self.rotation.weight.detach(), self.rotation.bias.detach()
        by_second = F.linear(second.detach(), weight, bias)
        return torch.cat([self.rotation(first), by_second, second, self.instance(second)], 1)


class Uprightness(nn.Module):
    """How upright each image looks in each orientation, and how many updates there were.

    Attributes:
        p: (n, 4) float32 in [0, 1]; 0 for what was not seen yet, and for images not turned.
        updates: () int64.
    """

    p: Tensor
    updates: Tensor

    def __init__(self, images: int, momentum: float, device: torch.device) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("p", torch.zeros(images, 4, device=device))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long, device=device))

    @torch.no_grad()
    def update(self, ids: Tensor, p: Tensor) -> None:
        """Take the new estimates (N, 4) of these images (N,) into the mean."""
        rows = last_of_each(ids, len(self.p))
        self.p[ids] = self.p[ids].lerp(p.index_select(0, rows), 1 - self.momentum)
        self.updates += 1


class Decoupling(Task):
    """Rotation by one half of the features, and instances by the other."""

    name = "decoupling"

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        self.cfg, self.instances = config.decoupling, Instances(config, accelerator)

    @property
    def facts(self) -> str:
        """Of both halves."""
        return f"4 rotations; {self.instances.facts}"

    @property
    def memory(self) -> nn.Module:
        """The vectors of all images, and how upright they look."""
        return nn.ModuleDict({"bank": self.instances.bank, "upright": self.upright})

    def require(self, images: ImageSet) -> None:
        """Refuse more images than the bank has room for."""
        self.instances.require(images)

    def network(self, model: ContrastiveModel) -> nn.Module:
        """With the layers on both halves."""
        self.halves = Halves(model.features, self.config.model.head_out)
        return PretextModel(model, [self.halves])

    def start(self, model: nn.Module, images: ImageSet) -> None:
        """Make the bank, and know when ambiguous images begin to count less."""
        self.instances.start(model, images)
        device = next(model.parameters()).device
        self.upright = Uprightness(len(images), self.cfg.momentum, device)
        steps = schedule_of(self.config.pretrain, len(images)).steps
        self.first = math.ceil(self.cfg.from_share * steps)
        self.chance = math.log(4) + self.instances.chance

    def draw(self, rng: np.random.Generator, batch_size: int) -> Tensors:
        """What ``instances`` draws."""
        return self.instances.draw(rng, batch_size)

    def inputs(self, batch: Batch) -> Tensors:
        """The images in all orientations: (4b, 3, S, S)."""
        return (all_rotations(batch.images),)

    def targets(self, batch: Batch) -> Tensors:
        """Those of ``instances``: (b,) positions of the images, and what was drawn."""
        return self.instances.targets(batch)

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """Of what `Halves` answers to (4b, F); it keeps how upright the images look."""
        ids = targets[0]
        with torch.autocast(outputs[0].device.type, enabled=False):
            answers = outputs[0].float().unflatten(0, (4, -1))  # (4, b, ...)
            logits, by_second, second, projections = answers.split(self.halves.widths, 2)
            turns = torch.arange(4, device=logits.device)[:, None].expand(4, len(ids))
            rotation = F.cross_entropy(logits.flatten(0, 1), turns.flatten(), reduction="none")
            weights = self.weights(ids)  # (b, 4)
            of_rotation = (rotation.view(4, -1) * weights.T).mean()
            of_mean = (second - second.mean(0).detach()).square().mean()
        instances = self.instances.loss((projections.mean(0),), targets)
        upright = gather_with_grad(how_upright(logits.detach()), self.batch_size)

        def metrics() -> Metrics:
            by_both = [(x.argmax(2) == turns).float().mean() for x in (logits, by_second)]
            return {
                **instances.metrics(),
                "decoupling_top1": self.weight * by_both[0],
                "invariant_half_top1": self.weight * by_both[1],
                "top1_of_chance": 0.25,
                "decoupling_weight": self.weight * weights.mean(),
            }

        loss = self.weight * (of_rotation + of_mean) + instances.loss
        return Answer(loss, metrics, (upright, instances._replace(loss=instances.loss.detach())))

    def weights(self, ids: Tensor) -> Tensor:
        """(b, 4): how much the rotations of these images count at the present update."""
        weights = 1 - self.upright.p[ids] ** self.cfg.gamma
        return torch.where(self.upright.updates < self.first, torch.ones_like(weights), weights)

    def update(self, model: nn.Module, answer: Answer) -> None:
        """Renew the bank, and how upright the images look."""
        upright, of_instances = answer.kept
        self.instances.update(model, of_instances)
        self.upright.update(of_instances.kept[0], upright)


def how_upright(logits: Tensor) -> Tensor:
    """Logits of the turns (4, b, 4) of images -> how upright each copy looks, (b, 4) in [0, 1].

    A copy is upright with the probability r of the first class, among four that are equally
    frequent. So an upright image looks like it 3 r / (1 - r) times as likely as a turned one does.
    """
    odds = math.log(3) + logits[..., 0] - logits[..., 1:].logsumexp(2)  # (4, b)
    p = odds.clamp(max=0).exp()
    p[0] = 0
    return p.T.contiguous()
