"""The pretext tasks of stage 1, as the command line knows them: one record each, and their options.

What a task does stands in ``shared/pretext/<task>.py``. This file needs no torch, so the command
line can check a name and an option at once. A new task is one record here, with the section of its
options where it has some, its class, and the line of that class in ``shared/pretext/build.py``.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from shared.config.checks import not_hashed, only_with, require, require_one_of
from shared.runtime.bounds import WIDTH

_WEIGHT = re.compile(r"[0-9]{1,12}(\.[0-9]{0,12})?([eE]-?[0-9]{1,2})?")


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
        batch: images that a batch has at least.
        uses: other tasks that it consists of, whose options count too.
        alone: whether it cannot be a part of several tasks.
    """

    name: str
    title: str
    views: int = 1
    inputs: float = 1.0
    embeds: bool = False
    augmentation: Literal["full", "crop"] = "crop"
    smallest: int = 4
    batch: int = 1
    uses: tuple[str, ...] = ()
    alone: bool = False

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
            batch=2,
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
            "jigsaw",
            "in which order of a set are the tiles shuffled",
            inputs=0.6,
            smallest=32,
            batch=2,
        ),
        TaskKind(
            "permutation",
            "which tile belongs where (as a matrix)",
            inputs=0.75,
            smallest=32,
            batch=2,
        ),
        TaskKind("colour", "which colours has the grey image", smallest=8),
        TaskKind("inpainting", "what was in the hole of the image", smallest=8),
        TaskKind(
            "exemplar",
            "which other views are of the same image, of several",
            views=8,
            inputs=8,
            embeds=True,
            augmentation="full",
            batch=2,
        ),
        TaskKind("multi-task", "several tasks at once", alone=True),
        TaskKind(
            "decoupling",
            "how is the image rotated, by one half of the features; which is it, by the other",
            inputs=4,
            uses=("instances",),
        ),
        TaskKind(
            "transitive",
            "which views are of the same image, or of its neighbour by a first network",
            views=4,
            inputs=4,
            embeds=True,
            augmentation="full",
            batch=2,
            alone=True,
        ),
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
    neighbours: int = not_hashed(200)

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
    jitter: float = only_with(0.3, "gap")
    head_width: int = 4096
    colors: Literal["one", "blur", "all"] = "one"
    joint_jitter: bool = only_with(False, "jitter")
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
    jitter: float = only_with(1.0, "gap")
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
    jitter: float = only_with(1.0, "gap")
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
    bin: float = only_with(10.0, "target", "classes")
    neighbours: int = only_with(10, "target", "classes")
    sigma: float = only_with(5.0, "target", "classes")
    rebalancing: float = only_with(0.5, "target", "classes")
    levels: int = only_with(32, "target", "histograms")
    window: int = only_with(7, "target", "histograms")

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
    adversary_rate: float = only_with(2e-4, "adversarial")

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "inpainting.share", self.share, "in (0, 1)")
        require(0 <= self.rim <= 0.25, "inpainting.rim", self.rim, "in [0, 0.25]")
        require(1 <= self.width <= 4096, "inpainting.width", self.width, "1 to 4096")
        weight, rate = self.adversarial, self.adversary_rate
        require(0 <= weight < 1, "inpainting.adversarial", weight, "in [0, 1)")
        require(rate > 0, "inpainting.adversary_rate", rate, "greater than 0")


@dataclass(frozen=True)
class Exemplar:
    """Options of pretrain.task=exemplar (Dosovitskiy et al. 2014; Kolesnikov et al. 2019).

    Args:
        views: random views of each image, all of one class.
        margin: by how much the squared distance of another image's view, between embeddings of unit
            length, is to exceed that of the image's own.
    """

    views: int = 8
    margin: float = 0.5

    def __post_init__(self) -> None:
        require(2 <= self.views <= 256, "exemplar.views", self.views, "2 to 256")
        require(self.margin >= 0, "exemplar.margin", self.margin, "0 or more")


@dataclass(frozen=True)
class MultiTask:
    """Options of pretrain.task=multi-task (Doersch & Zisserman 2017, arXiv 1708.07860).

    Args:
        tasks: its parts, each with the weight of its loss: rotation:1,contrastive:0.5; a part
            without a number has weight 1, and one of weight 0 is left out.
    """

    tasks: str = "rotation:1,contrastive:1"

    def __post_init__(self) -> None:
        positive = max(self.weights.values()) > 0
        require(positive, "multi_task.tasks", self.tasks, "one part or more of a weight above 0")

    @cached_property
    def weights(self) -> dict[str, float]:
        """The weight of each part, 0 too.

        Raises:
            ValueError: a part is unknown or there twice, or has a weight that is none.
        """
        key, weights = "multi_task.tasks", {}
        for part in self.tasks.split(","):
            name, colon, weight = (text.strip() for text in part.partition(":"))
            able = [task for task, kind in TASKS.items() if not kind.alone]
            allowed = f"tasks that can share a batch, so {name} is none; take {', '.join(able)}"
            require(name in able or name not in TASKS, key, self.tasks, allowed)
            require_one_of(able, key, name)
            require(name not in weights, key, self.tasks, f"different tasks, so {name} only once")
            number = not colon or _WEIGHT.fullmatch(weight) is not None
            example = f"tasks with weights of 0 to 1,000,000, like {name}:0.5"
            require(number and float(weight or 1) <= 1e6, key, part, example)
            weights[name] = float(weight or 1)
        return weights


@dataclass(frozen=True)
class Decoupling:
    """Options of pretrain.task=decoupling (Feng et al. 2019); those of instances count too.

    Args:
        gamma: a rotated image that is upright with probability p counts 1 - p^gamma.
        from_share: after this share of the updates; before, all count 1. The paper takes 6/7.
        momentum: share of the old estimate of p in the new one, each time an image is seen.
    """

    gamma: float = 2.0
    from_share: float = 0.857
    momentum: float = 0.5

    def __post_init__(self) -> None:
        require(self.gamma > 0, "decoupling.gamma", self.gamma, "greater than 0")
        require(0 <= self.from_share <= 1, "decoupling.from_share", self.from_share, "in [0, 1]")
        require(0 <= self.momentum < 1, "decoupling.momentum", self.momentum, "in [0, 1)")


@dataclass(frozen=True)
class Transitive:
    """Options of pretrain.task=transitive (Wang et al. 2017, arXiv 1708.02901).

    Args:
        init: run or artifact folder of a first pretraining, whose features say which images are
            neighbours.
        neighbours: of each image, among which its partner is drawn.
        margin: by how much the cosine distance of another pair's view is to exceed that of its own.
    """

    init: str | None = not_hashed(None)  # the hash of its weights counts
    neighbours: int = 5
    margin: float = 0.5

    def __post_init__(self) -> None:
        require(self.neighbours >= 1, "transitive.neighbours", self.neighbours, "1 or more")
        require(self.margin >= 0, "transitive.margin", self.margin, "0 or more")


@dataclass(frozen=True)
class Prototypes:
    """Options of pretrain.loss=prototypes (SwAV: Caron et al. 2020, arXiv 2006.09882).

    Args:
        number: of prototypes, to which the images are assigned in equal shares.
        epsilon: how even an image's assignment is: larger is more even.
        sinkhorn_steps: how often the assignments are balanced over prototypes and images.
        frozen_steps: updates before which the prototypes stay; the original takes those of the
            first epoch.
    """

    only_with: ClassVar = ("pretrain.loss", ("prototypes",))

    number: int = 3000
    epsilon: float = 0.05
    sinkhorn_steps: int = 3
    frozen_steps: int = 0

    def __post_init__(self) -> None:
        number, epsilon, steps = self.number, self.epsilon, self.sinkhorn_steps
        require(2 <= number <= WIDTH, "prototypes.number", number, f"2 to {WIDTH:,}")
        require(epsilon >= 0.001, "prototypes.epsilon", epsilon, "0.001 or more")
        require(1 <= steps <= 1000, "prototypes.sinkhorn_steps", steps, "1 to 1000")
        require(self.frozen_steps >= 0, "prototypes.frozen_steps", self.frozen_steps, "0 or more")


@dataclass(frozen=True)
class Infomax:
    """Options of pretrain.loss=infomax (Deep InfoMax: Hjelm et al. 2019, arXiv 1808.06670).

    Args:
        bound: on the mutual information: jsd by the Jensen-Shannon divergence, dv by Donsker and
            Varadhan, infonce.
        width: of what vectors and places of the feature map are brought to.
        across: compare the vector of each view with the places of the other one, as AMDIM; that
            takes several times as many updates.
    """

    only_with: ClassVar = ("pretrain.loss", ("infomax",))

    bound: Literal["jsd", "dv", "infonce"] = "jsd"
    width: int = 2048
    across: bool = False

    def __post_init__(self) -> None:
        require(1 <= self.width <= WIDTH, "infomax.width", self.width, f"1 to {WIDTH:,}")


@dataclass(frozen=True)
class Attention:
    """Options of pretrain.contextualisation=attention (Set Transformer, arXiv 1810.00825).

    Args:
        heads: of the attention, a divisor of the feature map's channels.
    """

    only_with: ClassVar = ("pretrain.contextualisation", ("attention",))

    heads: int = 8

    def __post_init__(self) -> None:
        require(1 <= self.heads <= 256, "attention.heads", self.heads, "1 to 256")


@dataclass(frozen=True)
class CodeBook:
    """Options of pretrain.quantisation=gumbel (wav2vec 2.0, arXiv 2006.11477).

    Args:
        groups: code books, from each of which one entry is chosen.
        entries: of each code book.
        temperature: of the choice's gradient, at first.
        decay: of the temperature, at each update.
        least_temperature: below which it does not sink.
        diversity: weight of the term that keeps the entries in even use.
    """

    only_with: ClassVar = ("pretrain.quantisation", ("gumbel",))

    groups: int = 2
    entries: int = 320
    temperature: float = 2.0
    decay: float = 0.999995
    least_temperature: float = 0.5
    diversity: float = 0.1

    def __post_init__(self) -> None:
        require(1 <= self.groups <= 64, "code_book.groups", self.groups, "1 to 64")
        require(2 <= self.entries <= WIDTH, "code_book.entries", self.entries, f"2 to {WIDTH:,}")
        start, least = self.temperature, self.least_temperature
        require(start > 0, "code_book.temperature", start, "greater than 0")
        require(0 < self.decay <= 1, "code_book.decay", self.decay, "in (0, 1]")
        allowed = f"greater than 0, and at most code_book.temperature={start}"
        require(0 < least <= start, "code_book.least_temperature", least, allowed)
        require(self.diversity >= 0, "code_book.diversity", self.diversity, "0 or more")


# The sections of options, by their name; a task without options has none. What a section calls
# ``views`` takes the place of the views in the record of its task. A section that is not of a task
# says with ``only_with`` of what it is (``conditions``).
TASK_SECTIONS = {
    "instances": Instances,
    "patches": Patches,
    "jigsaw": Jigsaw,
    "permutation": Permutation,
    "colour": Colour,
    "exemplar": Exemplar,
    "multi_task": MultiTask,
    "inpainting": Inpainting,
    "decoupling": Decoupling,
    "transitive": Transitive,
    "prototypes": Prototypes,
    "infomax": Infomax,
    "attention": Attention,
    "code_book": CodeBook,
}
