"""Inpainting: what was in the hole (context encoders; Pathak et al. 2016, arXiv 1604.07379)?

The network sees an image a quarter of which is painted over, in the middle or in drawn blobs, and
paints what was there. The feature map goes through a layer that joins all places of each channel,
and a decoder. The loss is the squared error in the hole, in pixels from -1 to 1. With
``--inpainting.adversarial`` a second network learns to tell the finished images from true ones, and
the first one is also to deceive it.

On purpose other than the original (pathak22/context-encoder ``train.lua``, ``train_random.lua``):
every image has blobs of its own, of exactly the share of pixels that is asked for. The decoder
paints the whole image in both cases, only the hole counts, and the adversary sees the image with
the hole filled. The rim that the network still sees and whose errors weigh more is on the hole's
inside for blobs too. The adversary learns after the first network's update, and its norms are those
of one image.
"""

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.schema import Config
from shared.data.batches import Batch, denormalize
from shared.data.image_ops import upload
from shared.data.images import ImageSet
from shared.networks.batchnorm import BatchNorm
from shared.networks.heads import ContrastiveModel
from shared.pretext.adversary import Adversary
from shared.pretext.network import PretextModel, map_size_of
from shared.pretext.sample import in_chunks, sample
from shared.pretext.task import Answer, Metrics, Task, Tensors
from shared.runtime.distributed import gather_all, refuse_together

FILL = tuple(value / 255 for value in (117, 104, 123))  # of red, green, blue, in the hole
RIM_WEIGHT = 10.0
COARSE = 0.06  # pixels of the blobs' noise per pixel of the image
ADVERSARY_WIDTH = 64
MOST = 16


class Inpainting(Task):
    """What was in the hole."""

    name = "inpainting"
    adversary: Adversary | None = None

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        self.cfg, self.data, self.size = config.inpainting, config.data, config.data.image_size
        self.noise = max(4, round(COARSE * self.size))
        self.rim = round(self.cfg.rim * self.size)
        self.variance = 0.0
        # noise, hole and its inner part, of the last batch
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def chance(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the mean colour of a sample, and of an adversary that cannot tell."""
        adversarial = self.cfg.adversarial
        return (1 - adversarial) * self.variance + adversarial * math.log(2)

    @property
    def facts(self) -> str:
        """What the hole is."""
        where = "in the middle" if self.cfg.region == "centre" else "in blobs"
        against = ", with an adversary" if self.cfg.adversarial else ""
        return f"{self.cfg.share:.0%} of each image painted over {where}{against}"

    @property
    def memory(self) -> Adversary | None:
        """The adversary with its optimizer, where there is one."""
        return self.adversary

    def network(self, model: ContrastiveModel) -> nn.Module:
        """With a decoder."""
        channels, side = map_size_of(model, self.size)
        return PretextModel(model, [Decoder(channels, side, self.size, self.cfg.width)])

    def start(self, model: nn.Module, images: ImageSet) -> None:
        """Make the adversary, and look what chance gives."""
        variances: list[float] = []

        def look() -> None:
            pixels = torch.cat([2 * chunk - 1 for chunk in in_chunks(sample(images, self.data))])
            variances.append(pixels.var((0, 2, 3), correction=0).mean().item())

        refuse_together(look, self.accelerator.is_main_process)
        self.variance = gather_all(variances)[0]
        if self.cfg.adversarial:
            adversary = Adversary(self.size, ADVERSARY_WIDTH, self.cfg.adversary_rate)
            self.adversary = adversary.to(next(model.parameters()).device)

    def draw(self, rng: np.random.Generator, batch_size: int) -> Tensors:
        """Coarse noise (B, n, n) float32 that makes the blobs."""
        if self.cfg.region == "centre":
            return ()
        noise = rng.random((batch_size, self.noise, self.noise), dtype=np.float32)
        return (torch.from_numpy(noise),)

    def hole(self, batch: Batch) -> Tensor:
        """(b, 1, S, S) float32, 1 in the region that is to be painted."""
        return self._regions(batch)[0]

    def _regions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The hole, and that of it which the network does not see; once for a batch's noise."""
        images = batch.images
        if self.cfg.region == "centre":
            hole = centre(len(images), self.size, self.cfg.share, images.device)
            return hole, inner(hole, self.rim)
        noise = batch.drawn[0]
        if self._last is None or self._last[0] is not noise:  # inputs and targets ask in turn
            hole = blobs(upload(noise, images.device), self.size, self.cfg.share)
            self._last = noise, hole, inner(hole, self.rim)
        return self._last[1:]

    def inputs(self, batch: Batch) -> Tensors:
        """The images with the hole, but for its rim, in one colour: (b, 3, S, S)."""
        _, hidden = self._regions(batch)
        both = upload(torch.tensor([self.data.mean, self.data.std, FILL]), batch.images.device)
        mean, std, fill = both.view(3, 3, 1, 1)
        return (torch.where(hidden > 0, (fill - mean) / std, batch.images),)

    def targets(self, batch: Batch) -> Tensors:
        """The pixels (b, 3, S, S) from -1 to 1, and their weights (b, 1, S, S), 0 outside."""
        hole, hidden = self._regions(batch)
        weights = RIM_WEIGHT * hole - (RIM_WEIGHT - 1) * hidden
        return 2 * denormalize(batch.images, self.data).clamp(0, 1) - 1, weights

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """Of the painted images (b, 3, S, S); it keeps the finished and the true ones."""
        painted, (pixels, weights) = outputs[0].float(), targets
        hole = weights > 0
        finished = torch.where(hole, painted, pixels)
        with torch.autocast(painted.device.type, enabled=False):
            errors = (finished - pixels).square().mean(1, keepdim=True)
            loss = (weighted_means(errors, weights)).mean()
            deceived = None
            if self.adversary is not None:
                deceived = F.softplus(-self.adversary.believes(finished)).mean()
                loss = loss.lerp(deceived, self.cfg.adversarial)

        @torch.no_grad()
        def metrics() -> Metrics:
            seen = weighted_means(pixels, (~hole).float()).view(-1, 3, 1, 1)
            known: dict[str, float | Tensor] = {
                "inpainting_error": self.weight * off(painted, pixels, hole),
                "error_of_chance": self.weight * off(seen, pixels, hole),
            }
            if self.adversary is not None:
                lost = self.adversary.loss(finished.detach(), pixels)
                known["adversary_loss"] = self.weight * lost.mean()
                # it is right where it loses less than one who cannot tell
                known["adversary_top1"] = self.weight * (lost < math.log(2)).float().mean()
                known["top1_of_chance"] = 0.5
            return known

        return Answer(self.weight * loss, metrics, (finished.detach(), pixels))

    def update(self, model: nn.Module, answer: Answer) -> None:
        """Let the adversary learn from the batch."""
        if self.adversary is not None:
            finished, pixels = answer.kept
            self.adversary.learn(finished, pixels, self.weight)


def weighted_means(values: Tensor, weights: Tensor) -> Tensor:
    """Mean over the pixels of each image: (b, C, S, S) by (b, 1, S, S) -> (b, C)."""
    return (values * weights).sum((2, 3)) / weights.sum((2, 3))


def off(painted: Tensor, pixels: Tensor, hole: Tensor) -> Tensor:
    """Mean distance in the hole, in parts of the range of pixels from -1 to 1."""
    return weighted_means((painted - pixels).abs() / 2, hole.float()).mean()


def centre(b: int, size: int, share: float, device: torch.device) -> Tensor:
    """A square in the middle with this share of the pixels: (b, 1, S, S) of 0 and 1."""
    side = min(size - 1, max(1, round(size * share**0.5)))
    hole = torch.zeros(b, 1, size, size, device=device)
    first = (size - side) // 2
    hole[:, :, first : first + side, first : first + side] = 1
    return hole


def blobs(noise: Tensor, size: int, share: float) -> Tensor:
    """The pixels where smooth noise is lowest: noise (b, n, n) -> (b, 1, S, S) of 0 and 1."""
    smooth = F.interpolate(noise[:, None], (size, size), mode="bicubic", align_corners=False)
    pixels = min(size**2 - 1, max(1, round(share * size**2)))
    lowest = smooth.flatten(1).kthvalue(pixels, dim=1).values
    return (smooth <= lowest.view(-1, 1, 1, 1)).float()


def inner(hole: Tensor, rim: int) -> Tensor:
    """The hole without its rim of so many pixels; where nothing would be left, all of it."""
    if rim == 0:
        return hole
    eroded = 1 - F.max_pool2d(1 - hole, 2 * rim + 1, 1, rim)
    left = eroded.amax((1, 2, 3), keepdim=True)
    return torch.where(left > 0, eroded, hole)


class Decoder(nn.Module):
    """Joins all places of each channel, and paints an image from that.

    A larger feature map is shrunk to ``MOST`` places per side, as the layer has their number
    squared of weights per channel.

    Args:
        channels: C of the feature map.
        side: H = W of the feature map.
        size: S of the image.
        width: channels before the last layer; twice as many at each step down, at most 8 times.
    """

    sees = "map"

    def __init__(self, channels: int, side: int, size: int, width: int) -> None:
        super().__init__()
        self.size, self.side = size, min(side, MOST)
        places = self.side**2
        self.join = nn.Parameter(torch.empty(channels, places, places))
        nn.init.normal_(self.join, std=places**-0.5)
        doublings = max(0, math.ceil(math.log2(size / self.side)))
        widths = [width * 2 ** min(k, 3) for k in range(doublings, -1, -1)]
        layers = [nn.Conv2d(channels, widths[0], 1), BatchNorm(widths[0]), nn.ReLU()]
        for wide, narrow in pairwise(widths):
            layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1), BatchNorm(narrow), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())

    def forward(self, features: Tensor) -> Tensor:
        """(b, C, H, W) -> pixels (b, 3, S, S) in (-1, 1)."""
        if features.shape[2] > self.side:
            features = F.adaptive_avg_pool2d(features, self.side)
        joined = torch.einsum("bcp,cpq->bcq", features.flatten(2), self.join)
        images = self.layers(joined.unflatten(2, (self.side, self.side)))
        if images.shape[2:] == (self.size, self.size):
            return images
        size = (self.size, self.size)
        return F.interpolate(images, size, mode="bilinear", align_corners=False)
