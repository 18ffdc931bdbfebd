"""A vote of nearest neighbours: what features say of an image's class without any training.

As in instance discrimination (Wu et al. 2018, arXiv 1805.01978, section 3.4): the most similar
images vote for their class, each with weight exp(similarity / temperature).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.sections import Data
from shared.data.images import UNLABELED, ImageSet
from shared.runtime.errors import UserError
from shared.runtime.randomness import generator
from shared.training.evaluate import outputs_of

VOTERS, TEMPERATURE = 20, 0.07
PROBED = 10_000  # images at most, so that a look costs the same for any number of images
ROWS = 1024  # of similarities at a time


def ballots(
    similar: Tensor, labels: Tensor, voters: int, temperature: float, classes: int
) -> Tensor:
    """Weights of the most similar images' votes, for each class: (q, classes), 0 or more.

    Args:
        similar: (q, n) similarities to n images, -inf to those that have no vote.
        labels: (n,) int64 classes of these.
        voters: how many vote, at most n.
        temperature: of the weights.
        classes: how many there are.
    """
    weights, near = similar.topk(voters)
    weights = (weights / temperature).exp()
    ballot = weights.new_zeros(len(similar), classes)
    return ballot.scatter_add_(1, labels[near].clamp(min=0), weights)


def votes(similar: Tensor, labels: Tensor, voters: int, temperature: float) -> Tensor:
    """The class that the most similar images vote for: (q,) int64; args as of `ballots`."""
    return ballots(similar, labels, voters, temperature, int(labels.max()) + 1).argmax(1)


def shares_of_votes(rows: Tensor, known: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Each class's share of the votes of the `VOTERS` nearest known rows, by the cosine.

    Args:
        rows: (q, F).
        known: (n, F).
        labels: (n,) int64 classes of these.
        classes: C, how many there are.

    Returns:
        (q, C); a row sums to 1.
    """
    known = F.normalize(known.float())
    parts = [
        ballots(
            F.normalize(part.float()) @ known.T,
            labels,
            min(VOTERS, len(known)),
            TEMPERATURE,
            classes,
        )
        for part in rows.split(ROWS)
    ]
    return F.normalize(torch.cat(parts), p=1)


def leave_one_out(features: Tensor, labels: Tensor) -> float:
    """Share of the rows whose class the `VOTERS` most similar others vote for, by the cosine.

    Args:
        features: (n, F) with n > 1.
        labels: (n,) int64 classes.
    """
    rows, hits = F.normalize(features.float()), 0
    for start in range(0, len(rows), ROWS):
        similar = rows[start : start + ROWS] @ rows.T
        similar.diagonal(start).fill_(-math.inf)
        voted = votes(similar, labels, min(VOTERS, len(rows) - 1), TEMPERATURE)
        hits += int((voted == labels[start : start + ROWS]).sum())
    return hits / len(rows)


class NeighbourProbe:
    """Looks at the labels of images now and then, to say how well features tell their classes.

    Args:
        images: those with a known class count, at most `PROBED` by lot.
        data: how they are shown.
        accelerator: of this process.

    Raises:
        UserError: fewer than two images have a class.
    """

    def __init__(self, images: ImageSet, data: Data, accelerator: Accelerator) -> None:
        known = np.flatnonzero(images.labels != UNLABELED)
        if len(known) < 2:
            raise UserError(
                f"pretrain.knn_every_steps needs images with a class, and {len(known)} of"
                f" {len(images):,} have one; leave it out"
            )
        lot = generator(0, "knn").permutation(len(known))[:PROBED]
        self.images, self.ids = images, known[np.sort(lot)]
        self.data, self.accelerator = data, accelerator

    def top1(self, encoder: nn.Module) -> float:
        """`leave_one_out` of the encoder's output; all processes must call it."""
        training = encoder.training
        encoder.eval()
        rows, at = outputs_of(
            encoder, self.images, self.ids, self.data, self.accelerator, title="nearest neighbours"
        )
        encoder.train(training)
        device = self.accelerator.device
        labels = torch.from_numpy(self.images.labels[at]).to(device)
        return leave_one_out(torch.from_numpy(rows).to(device), labels)
