"""Tiles of an image: where they lie, how they are cut, and what tasks on them have in common.

A square image is divided into equal cells. Each has one tile. A tile is smaller than its cell, so
that a gap lies between two tiles, and it may be moved within the gap. Without that the borders of
two tiles would tell that they are neighbours, and the network would have to know nothing else.

For the same reason all tiles of an image get the mean and the deviation of the whole image, for
each channel. The originals take 0 and 1. The image's own values hide as much of a tile, and what
the network sees looks like the images of all later stages.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.data.image_ops import upload
from shared.networks.batchnorm import BatchNorm
from shared.networks.encoders import dry_run, known_encoder
from shared.networks.heads import ContrastiveModel
from shared.pretext.network import PretextModel
from shared.pretext.task import Task
from shared.runtime.errors import UserError

LEAST_DEVIATION = 1 / 255  # of pixels that are divided by it: a grey level


@dataclass(frozen=True)
class Grid:
    """Cells of a square image, with a tile in each.

    Args:
        image_size: S, pixels per side.
        side: g, cells per side. What is left of the image is divided between its borders.
        gap: share of a cell's side that lies between two tiles, in [0, 1).
        jitter: share of the gap through which a tile moves, in [0, 1]: 0 leaves it in the middle of
            its cell, 1 puts it anywhere in the cell.
    """

    image_size: int
    side: int
    gap: float
    jitter: float

    @property
    def tiles(self) -> int:
        """Their number n, numbered row by row."""
        return self.side**2

    @property
    def cell(self) -> int:
        """Pixels per side of a cell."""
        return self.image_size // self.side

    @property
    def gap_pixels(self) -> int:
        """Pixels between two tiles in the middle of their cells; no two are ever nearer than 0."""
        return int(self.gap * self.cell + 0.5)

    @property
    def tile(self) -> int:
        """T, pixels per side of a tile."""
        return self.cell - self.gap_pixels

    def draw(self, rng: np.random.Generator, batch_size: int, joint: bool = False) -> Tensor:
        """Where in their cells the tiles lie.

        Args:
            rng: of the step.
            batch_size: images B.
            joint: all tiles of an image lie alike, so that their distances stay.

        Returns:
            (B, n, 2) int64 of y, x in pixels, from 0 to ``gap_pixels``.
        """
        room = int(self.jitter * self.gap_pixels + 0.5)
        start = (self.gap_pixels - room) // 2
        number = 1 if joint else self.tiles
        places = rng.integers(start, start + room + 1, (batch_size, number, 2))
        return torch.from_numpy(places).expand(-1, self.tiles, -1)

    def cut(self, images: Tensor, places: Tensor, cells: Tensor | None = None) -> Tensor:
        """Copies of the tiles' pixels.

        Args:
            images: (b, C, S, S).
            places: (b, n, 2) int64, as drawn, on the CPU.
            cells: (b, n) int64, which cell each tile is of, on the CPU; None: in their order.

        Returns:
            (n b, C, T, T): the first tile of all images, then the second one of all.
        """
        b, C = images.shape[:2]
        numbers = torch.arange(self.tiles).expand(b, -1) if cells is None else cells
        cell = torch.stack([numbers // self.side, numbers % self.side], 2)  # (b, n, 2)
        first = (self.image_size - self.side * self.cell) // 2
        corners = upload((first + self.cell * cell + places).transpose(0, 1), images.device)
        device, span = images.device, torch.arange(self.tile, device=images.device)
        rows = corners[:, :, None, 0, None, None] + span[:, None]  # (n, b, 1, T, 1)
        columns = corners[:, :, None, 1, None, None] + span  # (n, b, 1, 1, T)
        image = torch.arange(b, device=device)[:, None, None, None]
        channel = torch.arange(C, device=device)[:, None, None]
        return images[image, channel, rows, columns].flatten(0, 1)


def alike(tiles: Tensor, images: Tensor) -> Tensor:
    """Give each tile, in each channel, the mean and the deviation of its whole image.

    Args:
        tiles: (n b, C, T, T) float32.
        images: (b, C, S, S) float32.
    """
    dims = (2, 3)
    own = torch.var_mean(tiles, dims, correction=0, keepdim=True)
    whole = torch.var_mean(images, dims, correction=0, keepdim=True)
    deviation, mean = whole[0].sqrt(), whole[1]  # (b, C, 1, 1) each
    unit = (tiles - own[1]) / own[0].sqrt().clamp_min(LEAST_DEVIATION)
    return (unit.unflatten(0, (-1, len(images))) * deviation + mean).flatten(0, 1)


class TileHead(nn.Module):
    """One hidden layer on the features of several tiles side by side, and a linear one.

    Args:
        features: F, the encoder's.
        groups: (m, k) numbers of tiles: which are laid side by side, in which order.
        outputs: width of the answer.
        hidden: width of the hidden layer, a dense map with batch norm and ReLU.
    """

    groups: Tensor

    def __init__(self, features: int, groups: Tensor, outputs: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("groups", groups, persistent=False)
        self.tiles = int(groups.max()) + 1
        self.layers = nn.Sequential(
            nn.Linear(groups.shape[1] * features, hidden, bias=False),
            BatchNorm(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features of the n tiles of b images (n b, F) -> answers (m b, outputs)."""
        tiles = features.unflatten(0, (self.tiles, -1))  # (n, b, F)
        together = tiles[self.groups].transpose(1, 2)  # (m, b, k, F)
        return self.layers(together.flatten(2).flatten(0, 1))


class TileTask(Task):
    """A task on the tiles of an image; a subclass says which, and what is asked."""

    cfg: Any
    head_width: int
    groups: Tensor
    outputs: int

    @cached_property
    def grid(self) -> Grid:
        """Where the tiles lie; by default the task has an option for the cells per side."""
        cfg = self.cfg
        return Grid(self.config.data.image_size, cfg.grid, cfg.gap, cfg.jitter)

    @property
    def facts(self) -> str:
        """What is asked, of how many tiles of which size."""
        tile = self.grid.tile
        return f"{super().facts}, {self.grid.tiles} tiles of {tile} x {tile} pixels"

    def network(self, model: ContrastiveModel) -> nn.Module:
        """With a hidden layer on the tiles' features, and a linear one.

        Raises:
            UserError: the encoder cannot take an image as small as a tile.
        """
        try:
            dry_run(model.encoder, 3, self.grid.tile)
        except (RuntimeError, AssertionError, ZeroDivisionError) as error:
            raise UserError(self._other_encoder(error)) from error
        head = TileHead(model.features, self.groups, self.outputs, self.head_width)
        return PretextModel(model, [head])

    def _other_encoder(self, error: Exception) -> str:
        """That the encoder cannot take a tile, and what to do."""
        name, tile = self.config.model.encoder, self.grid.tile
        reason = "cannot take so small an image"
        if known_encoder(name).fixed_input_size:
            reason = "takes images of one size alone"
        return (
            f"pretrain.task={self.name} shows the encoder tiles of {tile} x {tile} pixels, and"
            f" {name} {reason} ({str(error).splitlines()[0]}); take another --model.encoder, such"
            " as simclr_resnet18_1x_sk0, a larger --data.image_size or another --pretrain.task"
        )
