"""Patches: in which direction does one tile lie from another (Doersch et al. 2015)?

An image has 3 x 3 tiles. The network sees each alone. Of the features of the middle one and one of
its neighbours, a small head says where the neighbour lies: eight classes (arXiv 1505.05192). As in
google/revisiting-self-supervised ("relative_patch_location.py") all nine pass the encoder once, for
eight questions.

The colours of a lens' fringes would tell where in a photo a tile was. So a tile keeps one channel
alone, or its colours are smoothed, which leaves a trace of them. The options colors=blur,
joint_jitter, aperture and turns are improvements of Mundhenk et al. 2018 (arXiv 1711.06379).

On purpose it differs: what is dropped becomes the image's mean, where the original ("train.py" of
cdoersch/deepcontext) has faint noise. No tile is made coarser. The head has one hidden layer and no
dropout. The brightness that blur keeps is the luma, not the L of Lab: what is left of the colours
is then smoothed by a linear map, and the luma stays, but for a ten-thousandth.
"""

import math
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from shared.config.schema import Config
from shared.config.sections import Data
from shared.data.batches import Batch, denormalize, normalize
from shared.data.image_ops import grayscale, upload
from shared.pretext.rotation import all_rotations, classification
from shared.pretext.task import Answer, Tensors
from shared.pretext.tiles import Grid, TileTask, alike

# From the middle tile, row by row: y, x. The opposite of direction d is 7 - d.
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
MIDDLE = 4
BLUR = 13  # pixels per side of the box that smooths colours, or as many as a smaller tile has


class Patches(TileTask):
    """Eight directions, and with ``turns`` four turns of the image for each."""

    name = "patches"

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        self.cfg = config.patches
        self.head_width = self.cfg.head_width
        self.outputs = 32 if self.cfg.turns else 8
        self.chance = math.log(self.outputs)
        neighbours = [MIDDLE + 3 * y + x for y, x in DIRECTIONS]
        self.groups = torch.tensor([[MIDDLE, neighbour] for neighbour in neighbours])

    @cached_property
    def grid(self) -> Grid:
        """Three cells per side."""
        return Grid(self.config.data.image_size, 3, self.cfg.gap, self.cfg.jitter)

    def draw(self, rng: np.random.Generator, batch_size: int) -> Tensors:
        """For each image: places, turns, kept channels, and windows of the aperture.

        Returns:
            (B, 9, 2) int64 places, (B,) int64 quarter turns, (B, 9) int64 channels, and (B, 9, 3)
            int64 of y, x and side in pixels.
        """
        shape, T = (batch_size, self.grid.tiles), self.grid.tile
        places = self.grid.draw(rng, batch_size, self.cfg.joint_jitter)
        turns = rng.integers(0, 4 if self.cfg.turns else 1, batch_size)
        channels = rng.integers(0, 3, shape)
        side = rng.integers(math.ceil(self.cfg.aperture * T), T + 1, shape)
        y, x = rng.integers(0, T - side + 1), rng.integers(0, T - side + 1)
        windows = np.stack([y, x, side], 2)
        return (places, *map(torch.from_numpy, (turns, channels, windows)))

    def inputs(self, batch: Batch) -> Tensors:
        """The tiles: (9b, 3, T, T)."""
        images, (places, turns, channels, windows) = batch.images, batch.drawn
        device = images.device
        if self.cfg.turns:
            turned = all_rotations(images).unflatten(0, (4, -1))
            images = turned[upload(turns, device), torch.arange(len(turns), device=device)]
        tiles = self.grid.cut(images, places)
        if self.cfg.colors == "blur":
            tiles = blur_colors(tiles, self.config.data)
        tiles = alike(tiles, images)
        blank = alike(torch.zeros_like(tiles[:, :, :1, :1]), images)  # (9b, 3, 1, 1): the means
        if self.cfg.colors == "one":
            kept = upload(channels.T.flatten(), device)[:, None]  # (9b, 1)
            kept = kept == torch.arange(3, device=device)
            tiles = torch.where(kept[:, :, None, None], tiles, blank)
        if self.cfg.aperture < 1:
            seen = within(upload(windows.transpose(0, 1).flatten(0, 1), device), self.grid.tile)
            tiles = torch.where(seen[:, None], tiles, blank)
        return (tiles,)

    def targets(self, batch: Batch) -> Tensors:
        """(8b,) int64 directions, or with ``turns`` directions + 8 quarter turns."""
        turns = upload(batch.drawn[1], batch.images.device)
        directions = torch.arange(8, device=turns.device)
        return ((directions[:, None] + 8 * turns).flatten(),)

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """Cross-entropy of the logits (8b, 8), or with ``turns`` (8b, 32)."""
        return classification(outputs[0], targets[0], self.weight, self.name)


def within(windows: Tensor, size: int) -> Tensor:
    """Which pixels of square images lie in their windows.

    Args:
        windows: (N, 3) int64 of y, x and side.
        size: T, of the images.

    Returns:
        (N, T, T) bool.
    """
    pixel = torch.arange(size, device=windows.device)
    y, x, side = windows[:, :, None].unbind(1)  # (N, 1) each
    rows, columns = (y <= pixel) & (pixel < y + side), (x <= pixel) & (pixel < x + side)
    return rows[:, :, None] & columns[:, None]


def blur_colors(images: Tensor, data: Data) -> Tensor:
    """Smooth what an image has beside its luma, by a box of 13 x 13 pixels.

    Args:
        images: (N, 3, T, T), normalised as ``data`` says.
        data: of the run.
    """
    pixels = denormalize(images, data)
    luma = grayscale(pixels)
    width = min(BLUR, (images.shape[-1] - 1) // 2 * 2 + 1)
    colors = F.avg_pool2d(pixels - luma, width, 1, width // 2, count_include_pad=False)
    return normalize(luma + colors, data)
