"""Images of one size in memory, of which image sets and processes hold one copy together."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**20  # bytes at a time, where all images are taken


@dataclass(frozen=True, eq=False)
class Pixels:
    """n images (3, H, W) uint8: rows of arrays, which other selections of them use too.

    ``pixels[3]`` is (3, H, W); ``pixels[positions]`` and ``pixels[2:5]`` are (k, 3, H, W).

    Attributes:
        arrays: (m, 3, H, W) uint8 each; nobody writes into them any more.
        rows: (n,) int64, which images of the arrays, counted from the first array on.
    """

    arrays: tuple[Tensor, ...]
    rows: Tensor

    @classmethod
    def of(cls, array: Tensor) -> "Pixels":
        """All images of an array (n, 3, H, W) uint8."""
        return cls((array,), torch.arange(len(array)))

    def select(self, indices: np.ndarray) -> "Pixels":
        """The images at these positions (k,); none is copied."""
        return Pixels(self.arrays, self.rows[torch.from_numpy(indices)])

    def followed_by(self, others: "Pixels") -> "Pixels":
        """These images, and behind them others of the same size; none is copied."""
        behind = others.rows + sum(map(len, self.arrays))
        return Pixels(self.arrays + others.arrays, torch.cat([self.rows, behind]))

    def blocks(self) -> Iterator[Tensor]:
        """All images in order, (k, 3, H, W) uint8 at a time."""
        number = max(1, BLOCK // math.prod(self.size))
        return (self[first : first + number] for first in range(0, len(self), number))

    @property
    def size(self) -> torch.Size:
        """3, H, W."""
        return self.arrays[0].shape[1:]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Tensor:
        rows = self.rows[key]
        if len(self.arrays) == 1:
            return self.arrays[0][rows]
        images, first = torch.empty((*rows.shape, *self.size), dtype=torch.uint8), 0
        for array in self.arrays:
            inside = (rows >= first) & (rows < first + len(array))
            images[inside] = array[rows[inside] - first]
            first += len(array)
        return images
