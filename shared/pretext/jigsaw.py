"""Jigsaw: in which order of a set are the tiles shuffled (Noroozi and Favaro 2016)?

The network sees each tile alone, and a head sees the features of all of them side by side, in an
order by lot. The orders are of a fixed set, and each is a class (arXiv 1603.09246). Orders that
differ in two tiles alone can hardly be told where two tiles look alike, so the set has orders that
differ in as many as can be.

On purpose it differs: the set is chosen by the smallest distance to those before, and by the mean
distance among equals, where the original ("select_permutations.py" of
bbrattoli/JigsawPuzzlePytorch) takes the mean alone and begins by lot; here all runs have the same
set. The head has one hidden layer and no dropout.
"""

import itertools
import math
from functools import cache, cached_property

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from shared.config.schema import Config
from shared.data.batches import Batch, denormalize, normalize
from shared.data.image_ops import grayscale, upload
from shared.pretext.rotation import classification
from shared.pretext.task import Answer, Tensors
from shared.pretext.tiles import TileTask, alike


class Jigsaw(TileTask):
    """A class for each order of the set."""

    name = "jigsaw"

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        self.cfg = config.jigsaw
        self.head_width, self.outputs = self.cfg.head_width, self.cfg.permutations
        self.chance = math.log(self.outputs)
        self.groups = torch.arange(self.grid.tiles)[None]

    @cached_property
    def orders(self) -> Tensor:
        """(P, n) int64: which cell each tile of an order is of."""
        return torch.from_numpy(permutation_set(self.grid.tiles, self.outputs).astype(np.int64))

    @property
    def facts(self) -> str:
        """With the number of orders, and in how many tiles two of them differ at least."""
        least = least_distance(self.orders.numpy())
        return f"{super().facts}, {self.outputs:,} orders that differ in {least} or more"

    def draw(self, rng: np.random.Generator, batch_size: int) -> Tensors:
        """For each image: places (B, n, 2) and class (B,), int64, and whether it is grey, bool."""
        places = self.grid.draw(rng, batch_size)
        classes = torch.from_numpy(rng.integers(0, self.outputs, batch_size))
        return places, classes, torch.from_numpy(rng.random(batch_size) < self.cfg.grayscale)

    def inputs(self, batch: Batch) -> Tensors:
        """The tiles in their order by lot: (n b, 3, T, T)."""
        places, classes, gray = batch.drawn
        images = batch.images
        if self.cfg.grayscale:
            data, lose = self.config.data, upload(gray, images.device).view(-1, 1, 1, 1)
            colorless = normalize(grayscale(denormalize(images, data)), data)
            images = torch.where(lose, colorless, images)
        return (alike(self.grid.cut(images, places, self.orders[classes]), images),)

    def targets(self, batch: Batch) -> Tensors:
        """(b,) int64 classes."""
        return (upload(batch.drawn[1], batch.images.device),)

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """Cross-entropy of the logits (b, P)."""
        return classification(outputs[0], targets[0], self.weight, self.name)


@cache
def permutation_set(n: int, number: int) -> np.ndarray:
    """Permutations that differ in many places, one after the other the one that is farthest.

    The first one keeps all in place. Each next one has the largest smallest distance to those
    before it; among equals the largest sum of distances, and then the first in lexical order.

    Args:
        n: of so many elements, at most 9.
        number: of permutations, from 1 to n!.

    Returns:
        (number, n) uint8.
    """
    elements = itertools.chain.from_iterable(itertools.permutations(range(n)))
    every = np.fromiter(elements, dtype=np.uint8).reshape(-1, n)
    columns = np.ascontiguousarray(every.T)  # (n, n!): ten times as fast as rows
    least = np.full(len(every), n, dtype=np.int64)
    total = np.zeros(len(every), dtype=np.int64)
    chosen = [0]
    for _ in range(number - 1):
        distance = np.zeros(len(every), dtype=np.uint8)  # Hamming's, to the last one
        for column, element in zip(columns, every[chosen[-1]], strict=True):
            distance += column != element
        np.minimum(least, distance, out=least)
        total += distance
        # those that are chosen have distance 0, so none is chosen twice
        chosen.append(int((least * (n * number) + total).argmax()))
    return every[chosen]


def least_distance(permutations: np.ndarray) -> int:
    """The smallest Hamming distance of two of (P, n) permutations."""
    n = permutations.shape[1]
    return min(
        (
            int((permutations[i + 1 :] != own).sum(1).min())
            for i, own in enumerate(permutations[:-1])
        ),
        default=n,
    )
