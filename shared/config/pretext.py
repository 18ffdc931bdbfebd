"""The pretext tasks of stage 1, as the command line knows them: one record each, and their options.

What a task does stands in ``shared/pretext/<task>.py``. This file needs no torch, so the command
line can check a name and an option at once. A new task is one record here, with the section of its
options where it has some, its class, and the line of that class in ``shared/pretext/build.py``.
"""

from dataclasses import dataclass
from typing import Literal

from shared.config.checks import require


@dataclass(frozen=True)
class TaskKind:
    """What the code knows of a pretext task before any image is opened.

    Attributes:
        name: as ``--pretrain.task`` gives it.
        title: what it asks of the network.
        views: random views of each image that its inputs are made of.
        inputs: cost of an image's inputs, in whole images that pass the encoder.
        embeds: whether it answers by the projection head, whose layers the artifact then keeps, so
            that fine-tuning may start from one of them; else the artifact has the encoder alone.
        augmentation: the usual kind of its views: full, or crop, without colours and blur.
        smallest: pixels per side that its images have at least.
    """

    name: str
    title: str
    views: int = 1
    inputs: float = 1.0
    embeds: bool = False
    augmentation: Literal["full", "crop"] = "crop"
    smallest: int = 4

    @property
    def section(self) -> str:
        """The name that the section of its options has, where there is one."""
        return self.name.replace("-", "_")


TASKS = {
    kind.name: kind
    for kind in (
        TaskKind(
            "contrastive",
            "which other view is of the same image (SimCLRv2)",
            views=2,
            inputs=2,
            embeds=True,
            augmentation="full",
        ),
        TaskKind("rotation", "by which quarter turn is the image rotated", inputs=4),
        TaskKind(
            "instances",
            "which image of all is this (a class for each)",
            embeds=True,
            augmentation="full",
        ),
        TaskKind(
            "patches",
            "in which of eight directions does one tile lie from another",
            inputs=0.45,
            smallest=32,
        ),
        TaskKind(
            "jigsaw", "in which order of a set are the tiles shuffled", inputs=0.6, smallest=32
        ),
        TaskKind(
            "permutation",
            "which tile belongs where (as a matrix)",
            inputs=0.75,
            smallest=32,
        ),
        TaskKind("colour", "which colours has the grey image", smallest=8),
        TaskKind("inpainting", "what was in the hole of the image", smallest=8),
    )
}


@dataclass(frozen=True)
class Instances:
    """Options of pretrain.task=instances (Wu et al. 2018, arXiv 1805.01978).

    Args:
        temperature: of the softmax over all images; the original takes 0.07 on ImageNet and 0.1
            on CIFAR-10.
        momentum: share of the old vector in an image's new vector of the memory bank.
        negatives: images that each one is told apart from, drawn anew in each step, by
            noise-contrastive estimation; unset: all images, by an exact softmax.
        neighbours: how many of the bank vote in the nearest-neighbour accuracy of the log.
    """

    temperature: float = 0.1
    momentum: float = 0.5
    negatives: int | None = None
    neighbours: int = 200

    def __post_init__(self) -> None:
        require(self.temperature > 0, "instances.temperature", self.temperature, "greater than 0")
        require(0 <= self.momentum < 1, "instances.momentum", self.momentum, "in [0, 1)")
        require((self.negatives or 1) >= 1, "instances.negatives", self.negatives, "1 or more")
        require(self.neighbours >= 1, "instances.neighbours", self.neighbours, "1 or more")


@dataclass(frozen=True)
class Patches:
    """Options of pretrain.task=patches (Doersch et al. 2015, arXiv 1505.05192).

    The image is divided into 3 x 3 cells, with a tile in each. The last four are improvements of
    Mundhenk et al. 2018, arXiv 1711.06379.

    Args:
        gap: share of a cell's side that lies between two tiles.
        jitter: share of the gap through which a tile moves.
        head_width: of the hidden layer on the features of two tiles.
        colors: of a tile; one keeps a channel by lot, as the original, blur keeps the brightness
            and smooths the rest, all changes nothing.
        joint_jitter: all tiles of an image move alike, so that their distances stay.
        aperture: smallest share of a tile's side that is seen, at a place by lot; the rest is
            blank. 1 shows all of it.
        turns: turn each image by a quarter turn by lot, which is asked, too: 32 classes.
    """

    gap: float = 1 / 3
    jitter: float = 0.3
    head_width: int = 4096
    colors: Literal["one", "blur", "all"] = "one"
    joint_jitter: bool = False
    aperture: float = 1.0
    turns: bool = False

    def __post_init__(self) -> None:
        _require_tiles("patches", self.gap, self.jitter, self.head_width)
        require(0.1 <= self.aperture <= 1, "patches.aperture", self.aperture, "in [0.1, 1]")


@dataclass(frozen=True)
class Jigsaw:
    """Options of pretrain.task=jigsaw (Noroozi and Favaro 2016, arXiv 1603.09246).

    Args:
        grid: cells per side, with a tile in each.
        gap: share of a cell's side that lies between two tiles.
        jitter: share of the gap through which a tile moves.
        permutations: orders in the set, each as different from the others as can be; the original
            takes 1000, and 100 did as well in later work.
        grayscale: probability that an image loses its colours.
        head_width: of the hidden layer on the features of all tiles.
    """

    grid: int = 3
    gap: float = 0.25
    jitter: float = 1.0
    permutations: int = 100
    grayscale: float = 0.3
    head_width: int = 4096

    def __post_init__(self) -> None:
        _require_tiles("jigsaw", self.gap, self.jitter, self.head_width)
        require(self.grid in (2, 3), "jigsaw.grid", self.grid, "2 or 3")
        number, most = self.permutations, 24 if self.grid == 2 else 10_000
        allowed = f"2 to {most:,} with jigsaw.grid={self.grid}"
        require(2 <= number <= most, "jigsaw.permutations", number, allowed)
        require(0 <= self.grayscale <= 1, "jigsaw.grayscale", self.grayscale, "in [0, 1]")


@dataclass(frozen=True)
class Permutation:
    """Options of pretrain.task=permutation (Santa Cruz et al. 2017, arXiv 1704.02729).

    Args:
        grid: cells per side, with a tile in each.
        gap: share of a cell's side that lies between two tiles.
        jitter: share of the gap through which a tile moves.
        sinkhorn_steps: how often columns and rows of the answer are divided by their sums; the
            original takes 1.
        head_width: of the hidden layer on the features of all tiles.
    """

    grid: int = 3
    gap: float = 0.15
    jitter: float = 1.0
    sinkhorn_steps: int = 1
    head_width: int = 4096

    def __post_init__(self) -> None:
        _require_tiles("permutation", self.gap, self.jitter, self.head_width)
        require(2 <= self.grid <= 4, "permutation.grid", self.grid, "2 to 4")
        steps = self.sinkhorn_steps
        require(1 <= steps <= 1000, "permutation.sinkhorn_steps", steps, "1 to 1000")


def _require_tiles(section: str, gap: float, jitter: float, head_width: int) -> None:
    """ValueError where tiles would be too small, or would leave their cells."""
    require(0 <= gap <= 0.5, f"{section}.gap", gap, "in [0, 0.5]")
    require(0 <= jitter <= 1, f"{section}.jitter", jitter, "in [0, 1]")
    require(head_width >= 1, f"{section}.head_width", head_width, "1 or more")


@dataclass(frozen=True)
class Colour:
    """Options of pretrain.task=colour (Zhang et al. 2016, arXiv 1603.08511).

    Args:
        target: classes are squares of the a, b plane of CIELAB that the images have; regression
            is a and b; histograms are of hue and chroma (Larsson et al. 2016, arXiv 1603.06668).
        bin: side of a class's square, in units of a and b.
        neighbours: classes that a colour belongs to, by its distance from each; the original takes
            5 in the paper and 10 in the code.
        sigma: standard deviation of that distance's Gaussian.
        rebalancing: how much of the class's share is in its weight's denominator, beside an even
            one: 0 weighs all classes alike, 1 weighs them by 1 / share.
        levels: of each histogram.
        window: side, in pixels, of what a histogram counts.
    """

    target: Literal["classes", "regression", "histograms"] = "classes"
    bin: float = 10.0
    neighbours: int = 10
    sigma: float = 5.0
    rebalancing: float = 0.5
    levels: int = 32
    window: int = 7

    def __post_init__(self) -> None:
        require(5 <= self.bin <= 50, "colour.bin", self.bin, "5 to 50")
        require(1 <= self.neighbours <= 50, "colour.neighbours", self.neighbours, "1 to 50")
        require(self.sigma > 0, "colour.sigma", self.sigma, "greater than 0")
        require(0 <= self.rebalancing <= 1, "colour.rebalancing", self.rebalancing, "in [0, 1]")
        require(2 <= self.levels <= 256, "colour.levels", self.levels, "2 to 256")
        window = self.window
        allowed = "an odd number of pixels, 1 to 31"
        require(1 <= window <= 31 and window % 2 == 1, "colour.window", window, allowed)


@dataclass(frozen=True)
class Inpainting:
    """Options of pretrain.task=inpainting (Pathak et al. 2016, arXiv 1604.07379).

    Args:
        region: what is painted over: random blobs, which is better, or the centre.
        share: of the pixels that are painted over.
        rim: width, as a share of the side, of the region's edge that the network still sees, and
            whose errors weigh 10 times; the original has 4 of 128 pixels.
        width: channels of the decoder's last layer, before the image.
        adversarial: weight of deceiving a second network, the rest goes to the squared error; the
            original takes 0.001 to 0.002; 0 has no such network.
        adversary_rate: learning rate of that network's Adam.
    """

    region: Literal["random", "centre"] = "random"
    share: float = 0.25
    rim: float = 4 / 128
    width: int = 64
    adversarial: float = 0.0
    adversary_rate: float = 2e-4

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "inpainting.share", self.share, "in (0, 1)")
        require(0 <= self.rim <= 0.25, "inpainting.rim", self.rim, "in [0, 0.25]")
        require(1 <= self.width <= 4096, "inpainting.width", self.width, "1 to 4096")
        weight, rate = self.adversarial, self.adversary_rate
        require(0 <= weight < 1, "inpainting.adversarial", weight, "in [0, 1)")
        require(rate > 0, "inpainting.adversary_rate", rate, "greater than 0")


# The sections of options, by their name; a task without options has none.
TASK_SECTIONS = {
    "instances": Instances,
    "patches": Patches,
    "jigsaw": Jigsaw,
    "permutation": Permutation,
    "colour": Colour,
    "inpainting": Inpainting,
}
