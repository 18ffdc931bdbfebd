"""The contrastive task by local-global mutual information (Deep InfoMax, arXiv 1808.06670).

One vector says what is in the whole image, and a feature map what is at each of its places. Two
small networks bring both to one width. A scalar product scores how well a vector and a place fit.
It is to be high where both are of the same image, and low where the place is of another one. What
the scores say is a lower bound on what vector and places know of each other, by one of three
estimates. Only the encoder is kept after pretraining.

What differs on purpose from rdevon/DIM ("functions/dim_losses.py"): the task has two views, and
each is compared within itself, or with ``--infomax.across`` each one's vector with the other's
places, as Bachman et al. do (AMDIM, arXiv 1906.00910). That takes more updates, because two crops
share less than an image and its own places: on made-up pictures of 8 pixels the bound is at 0.01
nats after 60 updates and at 0.5 after 300, within a view at 0.34 and 1.07. Scores are divided by
the root of the width, which keeps them small at first, as theirs. The global network has a layer
norm, too. The losses are moved by a constant, so that none of the Jensen-Shannon and the
noise-contrastive one is below 0.
There is neither the prior of the features nor the global term.
"""

import math

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.schema import Config
from shared.networks.encoders import map_and_features
from shared.networks.heads import ContrastiveModel
from shared.pretext.network import PretextModel
from shared.pretext.task import Answer, Metrics, Task, Tensors
from shared.runtime.distributed import gather_with_grad, own_rows
from shared.runtime.errors import UserError


class Infomax(Task):
    """Vectors and places of the same image find each other."""

    name = "contrastive"

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        self.cfg = config.infomax
        self.chance = math.log(4) if self.cfg.bound == "jsd" else 0.0

    @property
    def facts(self) -> str:
        """Which bound, and of what."""
        return f"{self.cfg.bound} bound of vectors and places, of width {self.cfg.width}"

    def network(self, model: ContrastiveModel) -> nn.Module:
        """With the networks on vectors and places."""
        size = self.config.data.image_size
        blank = next(model.parameters()).new_zeros(1, 3, size, size)
        was_training = model.training
        try:
            with torch.no_grad():
                places, _ = map_and_features(model.encoder.eval(), blank)
        except ValueError as error:
            raise UserError(str(error)) from error
        model.encoder.train(was_training)
        _, channels, height, width = places.shape
        if self.cfg.bound == "infonce":
            self.chance = math.log1p((self.batch_size - 1) * height * width)
        return PretextModel(model, [VectorAndPlaces(channels, model.features, self.cfg.width)])

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """Of a vector and P places of each view, (2b, 1 + P, D), with the places of all images."""
        first = own_rows(self.batch_size).start
        with torch.autocast(outputs[0].device.type, enabled=False):
            views = outputs[0].float().chunk(2)  # (b, 1 + P, D) each
            others = views[::-1] if self.cfg.across else views
            scores = [
                score(own[:, 0], gather_with_grad(other[:, 1:], self.batch_size))
                for own, other in zip(views, others, strict=True)
            ]
            losses = [self.bound(one, first) for one in scores]
        value = (losses[0] + losses[1]) / 2

        @torch.no_grad()
        def metrics() -> Metrics:
            rows = torch.arange(first, first + len(scores[0]), device=value.device)
            hits = [(one.mean(2).argmax(1) == rows).float().mean() for one in scores]
            return {
                "infomax_top1": self.weight * (hits[0] + hits[1]) / 2,
                "top1_of_chance": 1 / self.batch_size,
                "infomax_nats": self.chance - value.detach(),
            }

        return Answer(value, metrics)

    def bound(self, scores: Tensor, first: int) -> Tensor:
        """The chosen one, as a loss whose mean over processes is that of the batch."""
        if self.cfg.bound == "dv":
            return donsker_varadhan(scores, first, self.batch_size, self.weight)
        chosen = jensen_shannon if self.cfg.bound == "jsd" else noise_contrastive
        return self.weight * chosen(scores, first)


def score(vectors: Tensor, places: Tensor) -> Tensor:
    """Vectors (b, D) and places (N, P, D) -> how well they fit, (b, N, P)."""
    products = vectors @ places.flatten(0, 1).T / vectors.shape[1] ** 0.5
    return products.unflatten(1, places.shape[:2])


def divided(scores: Tensor, first: int) -> tuple[Tensor, ...]:
    """Scores with the places of the own image, and with those of all others.

    Args:
        scores: (b, N, P) of this process's vectors with the places of all images.
        first: row of the first of them among the N images.

    Returns:
        (b, P) and (b, (N - 1) P).
    """
    b, N, P = scores.shape
    own = torch.arange(first, first + b, device=scores.device)[:, None]
    others = torch.arange(N - 1, device=scores.device)
    others = others + (others >= own)  # (b, N - 1), without the own image
    return tuple(
        scores.gather(1, i[:, :, None].expand(-1, -1, P)).flatten(1) for i in (own, others)
    )


def jensen_shannon(scores: Tensor, first: int = 0) -> Tensor:
    """Return ln 4 less the bound on twice the Jensen-Shannon divergence; ln 4 for scores of 0.

    Args are those of `divided`. The mean over the rows.
    """
    own, others = divided(scores, first)
    return F.softplus(-own).mean() + F.softplus(others).mean()


def noise_contrastive(scores: Tensor, first: int = 0) -> Tensor:
    """ln(1 + (N - 1) P) less the InfoNCE bound on the mutual information.

    Each place of the own image is to be picked out among the places of all other images.
    Args are those of `divided`. The mean over the rows.
    """
    own, others = divided(scores, first)
    return F.softplus(others.logsumexp(1, keepdim=True) - own).mean()


def donsker_varadhan(scores: Tensor, first: int = 0, total: int = 0, weight: float = 1.0) -> Tensor:
    """Less the bound of Donsker and Varadhan on the mutual information; 0 where all scores are 0.

    Args:
        scores: as of `divided`.
        first: as of `divided`.
        total: N; unset: that of the scores.
        weight: of this process's rows.

    Returns:
        A scalar whose mean over processes is that of the batch.
    """
    total = total or scores.shape[1]
    own, others = divided(scores, first)
    each = gather_with_grad(others.logsumexp(1), total)  # (N,), of all processes
    return each.logsumexp(0) - math.log(total * others.shape[1]) - weight * own.mean()


class VectorAndPlaces(nn.Module):
    """Brings features and the places of a feature map to one width.

    Args:
        channels: C of the map.
        features: F.
        width: D.
    """

    sees = "both"

    def __init__(self, channels: int, features: int, width: int) -> None:
        super().__init__()
        self.place, self.vector = Block(channels, width), Block(features, width)

    def forward(self, places: Tensor, features: Tensor) -> Tensor:
        """Map (b, C, H, W) and features (b, F) -> (b, 1 + H W, D), the vector first."""
        of_places = self.place(places.flatten(2).mT)
        return torch.cat([self.vector(features)[:, None], of_places], 1)


class Block(nn.Module):
    """Two layers beside a linear shortcut, then a layer norm: (..., n) -> (..., D)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.shortcut = nn.Linear(inputs, width)
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., D)."""
        return self.norm(self.shortcut(x) + self.layers(x))
