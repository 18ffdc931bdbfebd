"""Transitive invariance (Wang et al. 2017, arXiv 1708.02901): alike across images and views.

The original has videos: two images A and B are alike by a first network, and a tracker gives
another view of each, A' and B'. As (A, B), (A, A') and (B, B') are alike, so is (A', B').

This is the still-image reading. A first pretraining makes features of all images. B is drawn from
the nearest neighbours of A, and A' and B' are further random views. All four views of a pair are
drawn together: every pair that follows from the three is a positive. A triplet loss on the cosine
distance pushes away what is not yet farther.

What differs on purpose: there are no videos and no tracker. A pair's negatives are all views of the
other pairs of the batch, neighbours among them or not, and the semi-hard one counts (`Exemplar`);
the original first takes random ones and then the hardest. The embedding is the projection head's.

The neighbours are found once, when the run begins. They are part of a checkpoint, so a run that
goes on takes them from there.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.imported import first_pretraining
from shared.config.schema import Config
from shared.data.images import ImageSet
from shared.networks.build import input_of, load_contrastive
from shared.pretext.exemplar import Exemplar
from shared.runtime.artifacts import read_meta
from shared.runtime.errors import UserError
from shared.training.device import to_device
from shared.training.evaluate import outputs_of
from shared.training.losses import semi_hard_triplet

ROWS = 1024  # similarities of so many images with all others are in memory at once


class Neighbours(nn.Module):
    """The nearest others of each image: (n, k) int64, on the CPU, where images are drawn."""

    nearest: Tensor

    def __init__(self, nearest: Tensor) -> None:
        super().__init__()
        self.register_buffer("nearest", nearest)


class Transitive(Exemplar):
    """Views of an image and of its neighbour find one another."""

    name = "transitive"

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        self.cfg = config.transitive
        self.chance = self.cfg.margin  # where all distances are equal
        source = first_pretraining(config, "transitive.init")
        assert source is not None
        self.source: Path = source
        self.companions = self.partners

    @property
    def facts(self) -> str:
        """Whose neighbours count."""
        return f"partners among {self.cfg.neighbours} neighbours by {self.source}"

    @property
    def settings(self) -> dict[str, str]:
        """The hash of the first network."""
        return {"transitive.encoder": read_meta(self.source, "encoder")["weights_sha256"]}

    @property
    def memory(self) -> Neighbours:
        """The neighbours of all images."""
        return self.neighbours

    def require(self, images: ImageSet) -> None:
        """Refuse fewer images than neighbours."""
        if self.cfg.neighbours >= len(images):
            raise UserError(
                f"transitive.neighbours must be less than the {len(images)} images, got"
                f" {self.cfg.neighbours}"
            )

    def start(self, model: nn.Module, images: ImageSet) -> None:
        """Make room for the neighbours of all images."""
        self.neighbours = Neighbours(
            torch.zeros(len(images), self.cfg.neighbours, dtype=torch.long)
        )

    def begin(self, images: ImageSet) -> None:
        """Find the neighbours of all images by the first network."""
        network, meta = load_contrastive(self.source)
        encoder = to_device(network.encoder, self.config, self.accelerator)
        encoder.eval().requires_grad_(False)
        data, everything = input_of(meta, self.config.data), np.arange(len(images))
        rows, positions = outputs_of(
            encoder, images, everything, data, self.accelerator, title="neighbours"
        )
        places = torch.from_numpy(positions)
        near = nearest(torch.from_numpy(rows).to(self.accelerator.device), self.cfg.neighbours)
        # an unreadable image, which on_error=skip replaces, is its own neighbour
        table = torch.arange(len(images))[:, None].repeat(1, self.cfg.neighbours)
        table[places] = places[near.cpu()]
        self.neighbours.nearest.copy_(table)

    def partners(self, rng: np.random.Generator, ids: np.ndarray) -> np.ndarray:
        """For images (B,) a neighbour of each, (B,)."""
        ranks = rng.integers(0, self.cfg.neighbours, len(ids))
        return self.neighbours.nearest.numpy()[ids, ranks]

    def triplets(self, z: Tensor, z_all: Tensor, first: int) -> Tensor:
        """On the cosine distance, which is half the squared one."""
        return semi_hard_triplet(z, z_all, 2 * self.cfg.margin, first) / 2


def nearest(features: Tensor, k: int) -> Tensor:
    """The k most similar others of each row (n, F), by the cosine: (n, k) int64."""
    rows = F.normalize(features.float())
    found = []
    for start in range(0, len(rows), ROWS):
        similar = rows[start : start + ROWS] @ rows.T
        similar.diagonal(start).fill_(-torch.inf)
        found.append(similar.topk(k).indices)
    return torch.cat(found)
