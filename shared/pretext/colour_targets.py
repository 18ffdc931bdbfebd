"""What a network may be asked of colours: a class, a number, or a histogram, for each cell.

A cell is a square of ``STRIDE`` x ``STRIDE`` pixels. Each target is a module. Its buffers hold what
it knows of the run's images, so that a resumed run has the same.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.config.pretext import Colour as Options
from shared.data.colour_space import hue_and_chroma, rgb_to_lab
from shared.pretext.sample import in_chunks

STRIDE = 4  # pixels per cell and side, as the resolution that Zhang et al. predict
GREY = 5.0  # an image whose |a| and |b| are nowhere larger is grey
REACH = 110  # the largest |a| and |b| of sRGB, rounded up
FAR = 1e4  # where the centres of classes lie that no image has
TEMPERATURE = 0.38  # of the annealed mean (Zhang et al., section 2.3)
AB_UNIT = 100.0  # regression answers in hundreds, which are about 1
HUE_WEIGHT = 5.0  # of the hue, beside the chroma, in a pixel of full chroma (Larsson et al.)


def is_coloured(ab: Tensor) -> Tensor:
    """Whether images are more than grey: (b, 2, g, g) of a and b -> (b,) bool."""
    return ab.abs().amax((1, 2, 3)) > GREY


def ab_of_cells(pixels: Tensor, cells: int) -> Tensor:
    """Pixels (b, 3, S, S) in [0, 1] -> mean a and b of the cells, (b, 2, g, g)."""
    return F.adaptive_avg_pool2d(rgb_to_lab(pixels)[:, 1:], cells)


class Target(nn.Module):
    """One kind of question; a subclass says which.

    Every colour is a place in a plane around grey: a and b of CIELAB, or chroma in the direction of
    the hue.

    Args:
        options: of the task.
        cells: g, per side of an image.

    Attributes:
        channels: what the network answers for a cell.
        chance: () the loss of a network that has learned nothing, over the sample.
        mean: (2,) the sample's mean colour.
    """

    channels: int
    chance: Tensor
    mean: Tensor

    def __init__(self, options: Options, cells: int) -> None:
        super().__init__()
        self.options, self.cells = options, cells
        self.register_buffer("chance", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(2))

    def fit(self, sampled: Tensor) -> None:
        """Learn the colours of a sample (n, 3, S, S) uint8."""
        plane = torch.cat([self.encode(pixels)[0] for pixels in in_chunks(sampled)])
        self.mean.copy_(plane.mean((0, 2, 3)))
        self.fit_plane(plane)
        losses = []
        for pixels in in_chunks(sampled):
            losses.append(self.loss(self.knows_nothing(len(pixels)), *self.encode(pixels)))
        self.chance.copy_(torch.cat(losses).mean())

    def fit_plane(self, plane: Tensor) -> None:
        """Learn more from the sample's colours (n, 2, g, g)."""

    def knows_nothing(self, b: int) -> Tensor:
        """The answer (b, channels, g, g) of a network that has learned nothing."""
        return torch.zeros(b, self.channels, self.cells, self.cells)

    def encode(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pixels (b, 3, S, S) in [0, 1] -> what the loss takes, the colours (b, 2, g, g) first."""
        return (ab_of_cells(pixels, self.cells),)

    def loss(self, answer: Tensor, *targets: Tensor) -> Tensor:
        """The loss (b,) of each image from answers (b, channels, g, g)."""
        raise NotImplementedError

    def decode(self, answer: Tensor) -> Tensor:
        """The colours (b, 2, g, g) that an answer means."""
        raise NotImplementedError


def distance(colours: Tensor, others: Tensor) -> Tensor:
    """Between two places of the plane, (b, 2, g, g) -> (b, g, g)."""
    return (colours - others).square().sum(1).sqrt()


class Classes(Target):
    """Which of the colours that the images have (Zhang et al. 2016, arXiv 1603.08511).

    The plane of a and b is cut into squares, of which those count that some image of the sample
    has. A colour is near several of them: it belongs to each by a Gaussian of its distance. Rare
    colours weigh more: by 1 / ((1 - r) / Q + r p) for a class of share p of Q classes, and by a
    factor that makes the mean weight 1.

    Attributes:
        centres: (K, 2) a and b of all squares that sRGB can show; ``FAR`` where no image has any.
        prior: (K,) shares of the classes in the sample's coloured images.
        near: (221 * 221, n) int16 the nearest squares of all whole numbers a, b.
        commonest: () int64, the most frequent class of the sample, grey images included.
    """

    centres: Tensor
    prior: Tensor
    near: Tensor
    commonest: Tensor

    def __init__(self, options: Options, cells: int) -> None:
        super().__init__(options, cells)
        self.squares = squares_of_srgb(options.bin)
        self.channels = len(self.squares)
        self.register_buffer("centres", self.squares.clone())
        self.register_buffer("prior", torch.zeros(self.channels))
        places, near = (2 * REACH + 1) ** 2, min(options.neighbours, self.channels)
        self.register_buffer("near", torch.zeros(places, near, dtype=torch.int16))
        self.register_buffer("commonest", torch.zeros((), dtype=torch.int64))

    def fit_plane(self, plane: Tensor) -> None:
        """Choose the classes, and count them."""
        whole = torch.arange(-REACH, REACH + 1.0)
        places = torch.cartesian_prod(whole, whole)
        exactly = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(places, self.squares, compute_mode=exactly)
        nearest = distances.argmin(1)[place_of(plane)]  # (n, g, g)
        counts = nearest.flatten().bincount(minlength=self.channels)
        self.commonest.copy_(counts.argmax())
        self.centres.copy_(self.squares.masked_fill(counts[:, None] == 0, FAR))
        distances.masked_fill_(counts == 0, FAR)
        self.near.copy_(distances.topk(self.near.shape[1], largest=False).indices)
        if (coloured := is_coloured(plane)).any():
            for colours in plane[coloured].split(50):
                classes, shares = self.classes_of(colours)
                self.prior.index_add_(0, classes.flatten(), shares.flatten())
            self.prior.div_(self.prior.sum())

    @property
    def used(self) -> Tensor:
        """(K,) bool: the squares that are classes."""
        return self.centres[:, 0] < FAR

    @property
    def weights(self) -> Tensor:
        """(K,) the weight of each class; 0 of squares that are none. Its mean is 1 by the prior."""
        r, used = self.options.rebalancing, self.used
        mixed = (1 - r) / used.sum() + r * self.prior
        weights = torch.where(used, 1 / mixed, 0)
        return weights / (weights * self.prior).sum().clamp_min(1e-12)

    def classes_of(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest classes of colours (b, 2, g, g), and their shares, which sum to 1.

        Returns:
            (b, g, g, n) int64 and float32.
        """
        classes = self.near[place_of(ab)].long()
        offsets = self.centres[classes] - ab.permute(0, 2, 3, 1)[..., None, :]
        squared = offsets.square().sum(-1)
        return classes, (-squared / (2 * self.options.sigma**2)).softmax(-1)

    def loss(self, answer: Tensor, *targets: Tensor) -> Tensor:
        """Weighted cross-entropy; 0 of a grey image."""
        ab = targets[0]
        scores = self.scores(answer).permute(0, 2, 3, 1)  # (b, g, g, K)
        classes, shares = self.classes_of(ab)
        entropy = -(shares * scores.gather(3, classes)).sum(3)  # (b, g, g)
        return (self.weights[self.nearest(ab)] * entropy).mean((1, 2)) * is_coloured(ab)

    def scores(self, answer: Tensor) -> Tensor:
        """Log probabilities (b, K, g, g)."""
        return answer.float().masked_fill(~self.used.view(1, -1, 1, 1), -FAR).log_softmax(1)

    def decode(self, answer: Tensor) -> Tensor:
        """The annealed mean: between the most probable colour, and the mean, which is pale."""
        sharp = (self.scores(answer) / TEMPERATURE).softmax(1)
        return torch.einsum("bkij,kc->bcij", sharp, self.centres)

    def nearest(self, ab: Tensor) -> Tensor:
        """(b, g, g) int64 the nearest class."""
        classes, shares = self.classes_of(ab)
        return classes.gather(3, shares.argmax(3, keepdim=True)).squeeze(3)


def place_of(ab: Tensor) -> Tensor:
    """Row of ``Classes.near`` for colours (b, 2, g, g): (b, g, g) int64."""
    whole = ab.round().clamp(-REACH, REACH).long() + REACH
    return whole[:, 0] * (2 * REACH + 1) + whole[:, 1]


def squares_of_srgb(side: float) -> Tensor:
    """Centres of the squares of the a, b plane in which sRGB has a colour: (K, 2) float32.

    In float64, so that no machine rounds a colour into another square.
    """
    levels = torch.linspace(0, 1, 18, dtype=torch.float64)
    pixels = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, -1, 1)
    ab = rgb_to_lab(pixels)[0, 1:, :, 0].T
    return side * (ab / side).round().unique(dim=0).float()


class Regression(Target):
    """The colour itself, by the squared distance: the mean of what is possible, which is pale."""

    channels = 2

    def knows_nothing(self, b: int) -> Tensor:
        """The mean colour everywhere."""
        return (self.mean / AB_UNIT).view(1, 2, 1, 1).expand(b, 2, self.cells, self.cells)

    def loss(self, answer: Tensor, *targets: Tensor) -> Tensor:
        """Mean squared distance, in hundreds of a and b."""
        return (answer.float() - targets[0] / AB_UNIT).square().sum(1).mean((1, 2))

    def decode(self, answer: Tensor) -> Tensor:
        """The colours."""
        return AB_UNIT * answer.float()


class Histograms(Target):
    """Histograms of hue and of chroma around each cell (Larsson et al. 2016, arXiv 1603.06668).

    A pixel counts in the hue's histogram as much as it has chroma, so that the hue of grey, which
    means nothing, counts nothing. The original counts all pixels alike.
    """

    def __init__(self, options: Options, cells: int) -> None:
        super().__init__(options, cells)
        self.channels = 2 * options.levels

    def encode(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Colours, hue's and chroma's histogram (b, levels, g, g), and the hue's weight (b, g, g).

        A histogram sums to 1; that of the hue is 0 where all is grey.
        """
        hue, chroma = hue_and_chroma(pixels)
        plane = torch.cat([chroma * (math.tau * hue).cos(), chroma * (math.tau * hue).sin()], 1)
        hues, chromas = self._histogram(hue, chroma), self._histogram(chroma, torch.ones_like(hue))
        weight = HUE_WEIGHT * self._window(chroma).squeeze(1)
        return F.adaptive_avg_pool2d(plane, self.cells), hues, chromas, weight

    def _histogram(self, values: Tensor, counts: Tensor) -> Tensor:
        """Of values (b, 1, S, S) in [0, 1], which count so much, around each cell."""
        levels = self.options.levels
        level = (values * levels).long().clamp_max(levels - 1)
        each = counts.new_zeros(len(values), levels, *values.shape[2:]).scatter_(1, level, counts)
        summed = self._window(each)
        return summed / summed.sum(1, keepdim=True).clamp_min(1e-12)

    def _window(self, values: Tensor) -> Tensor:
        """Means (b, C, g, g) of windows around the cells; none counts what is outside."""
        side = self.options.window
        beside = max(0, (side - 1) // 2 - 1)
        means = F.avg_pool2d(values, side, STRIDE, beside, count_include_pad=False)
        return means[..., : self.cells, : self.cells]

    def loss(self, answer: Tensor, *targets: Tensor) -> Tensor:
        """KL divergence of the chroma, and of the hue by its weight."""
        _, hues, chromas, weight = targets
        hue, chroma = answer.float().chunk(2, 1)
        return (divergence(chromas, chroma) + weight * divergence(hues, hue)).mean((1, 2))

    def decode(self, answer: Tensor) -> Tensor:
        """The mean chroma, in the mean direction of the hue."""
        hue, chroma = (part.softmax(1) for part in answer.float().chunk(2, 1))
        middles = (torch.arange(self.options.levels, device=answer.device) + 0.5).view(1, -1, 1, 1)
        middles = middles / self.options.levels
        directions = (math.tau * middles).cos(), (math.tau * middles).sin()
        plane = torch.stack([(hue * direction).sum(1) for direction in directions], 1)
        return F.normalize(plane, dim=1) * (chroma * middles).sum(1, keepdim=True)


def divergence(target: Tensor, answer: Tensor) -> Tensor:
    """KL(target || softmax(answer)) over dimension 1: (b, L, g, g) each -> (b, g, g).

    A target of zeros gives 0.
    """
    return -(target * answer.log_softmax(1)).sum(1) - torch.special.entr(target).sum(1)


TARGETS: dict[str, type[Target]] = {
    "classes": Classes,
    "regression": Regression,
    "histograms": Histograms,
}
