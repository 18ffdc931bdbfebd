"""The sections of a configuration: frozen dataclasses, one for the images and one for each stage.

The defaults are the paper's (ImageNet, ResNet-50). Those of single pretext tasks are in `pretext`.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from shared.config.checks import not_hashed, only_with, require, require_one_of, require_seed
from shared.config.methods import TEACHERS
from shared.config.optimizers import OPTIMIZERS
from shared.config.pretext import TASKS
from shared.runtime.records import field_of, listed

WEIGHT_FORMATS = (".safetensors", ".bin", ".pth", ".pt")  # of published weights
MAX_PIXELS = 178_956_970  # Pillow's limit, against small files that decode to huge images
Loss = Literal[
    "nt_xent",
    "dcl",
    "nt_logistic",
    "margin_triplet",
    "pair",
    "prototypes",
    "infomax",
]
PAIRWISE = ("nt_xent", "dcl", "nt_logistic", "margin_triplet", "pair")  # views with views


@dataclass(frozen=True)
class Data:
    """Data: where the images and their labels come from.

    Args:
        train: training images: digits (embedded), a folder (root/class/*.png, or images only; also
            in train/ and test/, also with metadata.csv), a .parquet file or a pattern of several
            ('shards/*.parquet'), or a Hugging Face hub name; name:config and name@split pick a
            part, and hf://datasets/name/*.parquet picks parquet files there.
        test: test images, likewise. Unset: the test or validation split of train, or else a
            part of its labeled images: stratified, and no stage trains on it; where a CSV gives the
            labels, drawn by the images' names, and stage 1 sees them without their labels. Or a CSV
            file that labels images of train, or files beside it, as in labels.
        unlabeled: more images without labels, likewise; used in pretraining and distillation.
        image_column: column of the images where it cannot be guessed; in a CSV of their names.
        label_column: column of the labels where its name is not label, class, category or target.
        class_folders: whether the folders in train are classes; false: they are albums, and only a
            file of labels says what is in an image.
        image_size: pixels per side that the networks see.
        antialias: widen the resize filter where an image is shrunk, in training, evaluation and
            stages.predict alike; the reference does not.
        mean: subtracted per channel, for images in [0, 1]; the paper subtracts nothing.
        std: divided by per channel; with timm's pretrained weights give their mean and std.
        test_fraction: part of the labeled images held out where there is no test split.
        split_seed: seed of that part.
        hold_out: which images are for testing. split is as test says. lockbox takes a fifth of the
            labeled images by a hash of their pixels, the same at every seed, or the test images
            where there are some. tuning, to choose a recipe, leaves these out and holds out a part
            of the others, of test_fraction, by split_seed.
        on_error: stop at an unreadable image, or skip: look for all at the start, leave them out,
            and list them in skipped.txt in the run's folder.
        load_truncated: read what there is of an image file that is cut off; the rest is grey. Else
            it is unreadable.
        max_pixels: an image of more pixels is unreadable; it would take 3 bytes of memory a pixel.
        loading: memory keeps all images as uint8 in memory, workers decodes while training; auto
            takes memory up to 2 GiB of equally large images.
        workers: processes that decode images.
        cache: decode each image once, shrink its shorter side to so many pixels, and keep these
            copies in one file; for images that are much larger than the crops need, and for small
            ones of different sizes. Unset: no copies.
        cache_folder: where these files lie, for all runs, and the listings of local folders of
            10,000 images and more; empty: no listing is kept. They may be deleted.
    """

    # not the names but the images themselves count (ImageSet.fingerprint): a folder may be moved
    train: str = not_hashed("digits")
    test: str | None = not_hashed(None)
    unlabeled: str | None = not_hashed(None)
    image_column: str | None = None
    label_column: str | None = None
    class_folders: bool = not_hashed(True)
    image_size: int = 224
    antialias: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    test_fraction: float = 0.2
    split_seed: int = 0
    hold_out: Literal["split", "lockbox", "tuning"] = "split"
    on_error: Literal["stop", "skip"] = "stop"
    load_truncated: bool = False
    max_pixels: int = MAX_PIXELS
    loading: Literal["auto", "memory", "workers"] = "auto"
    workers: int = not_hashed(8)
    cache: int | None = None
    cache_folder: str = not_hashed("~/.cache/few-labels")

    def __post_init__(self) -> None:
        require(self.image_size >= 4, "data.image_size", self.image_size, "at least 4 pixels")
        require(0 < self.test_fraction < 1, "data.test_fraction", self.test_fraction, "in (0, 1)")
        require(min(self.std) > 0, "data.std", self.std, "greater than 0")
        require(self.max_pixels >= 1, "data.max_pixels", self.max_pixels, "1 or more")
        require(self.workers >= 0, "data.workers", self.workers, "0 or more")
        require((self.cache or 4) >= 4, "data.cache", self.cache, "at least 4 pixels, or null")
        allowed = "null without a data.cache_folder"
        require(not self.cache or bool(self.cache_folder), "data.cache", self.cache, allowed)
        require_seed("data.split_seed", self.split_seed)

    def of_another(self, source: str) -> "Data":
        """How images are read, for another source: without what is said of this one's parts."""
        own = ("test", "unlabeled", "image_column", "label_column", "class_folders")
        defaults = Data()
        return replace(self, train=source, **{name: getattr(defaults, name) for name in own})


@dataclass(frozen=True)
class Augmentation:
    """How random views are made. The defaults are SimCLR's for pretraining on ImageNet.

    Fine-tuning and distillation only crop and flip: ``color_strength`` 0 and ``blur`` 0.

    Args:
        crop_area: smallest and largest share of the image that a crop covers; (1, 1) crops nothing.
        crop_aspect: smallest and largest width / height of a crop.
        crop_min_covered: a crop that covers less of the image is drawn again (the reference's
            min_object_covered: together with crop_area from 0.08, no crop is below 0.1).
        flip: probability of mirroring left and right.
        rotate: rotation in degrees, uniform between minus and plus this; 0 switches it off.
        shear: shear in degrees, uniform between minus and plus this; 0 switches it off.
        zoom_area: smallest and largest share of the image's area that the warped window covers, at
            an aspect ratio of crop_aspect: a crop in fractions of a pixel, in one resampling with
            rotation and shear. Better than crop_area for tiny images; (1, 1) switches it off.
        translate: how far the warped window may leave the image, as a share of the side.
        jitter: probability of changing brightness, contrast, saturation and hue.
        color_strength: strength of the jitter (CIFAR-10: 0.5); 0 switches off all colour changes,
            grayscale too.
        brightness: SimCLRv2 multiplies, SimCLR's first version adds.
        grayscale: probability of removing the colour.
        blur: probability of a Gaussian blur; 0 switches it off (CIFAR-10).
        blur_sigma: smallest and largest standard deviation of the blur in pixels.
        blur_sigma_per: one standard deviation for the whole batch, as the reference, or per image.
        antialias: the old name of data.antialias.
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    crop_min_covered: float = 0.1
    flip: float = 0.5
    rotate: float = 0.0
    shear: float = 0.0
    zoom_area: tuple[float, float] = (1.0, 1.0)
    translate: float = 0.0
    jitter: float = 0.8
    color_strength: float = 1.0
    brightness: Literal["multiplicative", "additive"] = "multiplicative"
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_sigma_per: Literal["batch", "image"] = "batch"
    antialias: bool | None = not_hashed(None)

    def __post_init__(self) -> None:
        area, aspect, sigma = self.crop_area, self.crop_aspect, self.blur_sigma
        zoom = self.zoom_area
        rules = [
            ("crop_area", "two numbers 0 < low <= high <= 1", 0 < area[0] <= area[1] <= 1),
            ("crop_aspect", "two numbers 0 < low <= high", 0 < aspect[0] <= aspect[1]),
            ("crop_min_covered", "in [0, crop_area's high]", 0 <= self.crop_min_covered <= area[1]),
            ("flip", "in [0, 1]", 0 <= self.flip <= 1),
            ("rotate", "in [0, 180] degrees", 0 <= self.rotate <= 180),
            ("shear", "in [0, 80] degrees", 0 <= self.shear <= 80),
            ("zoom_area", "two numbers 0 < low <= high <= 1", 0 < zoom[0] <= zoom[1] <= 1),
            ("translate", "in [0, 1]", 0 <= self.translate <= 1),
            ("jitter", "in [0, 1]", 0 <= self.jitter <= 1),
            # Above 1.25 the lowest contrast factor would be negative.
            ("color_strength", "in [0, 1.25]", 0 <= self.color_strength <= 1.25),
            (
                "brightness",
                "multiplicative or additive",
                self.brightness in ("multiplicative", "additive"),
            ),
            ("grayscale", "in [0, 1]", 0 <= self.grayscale <= 1),
            ("blur", "in [0, 1]", 0 <= self.blur <= 1),
            ("blur_sigma", "two numbers 0 < low <= high", 0 < sigma[0] <= sigma[1]),
            ("blur_sigma_per", "batch or image", self.blur_sigma_per in ("batch", "image")),
        ]
        for name, allowed, holds in rules:
            if not holds:
                raise ValueError(f"augment.{name} must be {allowed}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Model:
    """Model: the network that is pretrained and then fine-tuned as the teacher.

    Args:
        encoder: any timm model; the paper's are simclr_resnet{18..200}_{1..4}x_sk{0,1}.
        pretrained: start pretraining from timm's published weights: true takes them from the hub, a
            .safetensors file is read in their place.
        head_layers: layers of the projection head; the paper takes 3.
        head_width: width of its hidden layers; unset: that of the encoder's output.
        head_out: width of its output, on which the contrastive loss works.
    """

    encoder: str = "simclr_resnet50_1x_sk0"
    pretrained: bool | str = False
    head_layers: int = 3
    head_width: int | None = None
    head_out: int = 128

    def __post_init__(self) -> None:
        require(1 <= self.head_layers <= 4, "model.head_layers", self.head_layers, "1 to 4")
        require(
            self.head_width is None or self.head_width >= 1,
            "model.head_width",
            self.head_width,
            "1 or more, or null",
        )
        require(self.head_out >= 1, "model.head_out", self.head_out, "1 or more")


@dataclass(frozen=True)
class Training:
    """What the loops have in common.

    Args:
        epochs: passes over the stage's images.
        steps: number of updates, in place of epochs.
        least_epochs: with steps, at least so many passes over the images, so that a length for few
            labels grows with them; 0, or steps in a flag: steps alone.
        batch_size: images per update over all processes; may exceed the number of images.
        optimizer: lars for large batches, adamw for small networks, sgd (Nesterov).
        learning_rate: peak rate before scaling.
        learning_rate_scaling: sqrt is rate x sqrt(batch size), linear is rate x batch size / 256.
        warmup_epochs: epochs of linear warmup; then half a cosine to 0.
        weight_decay: of kernels (sgd also decays biases); never of batch norm.
        momentum: of lars and sgd; beta1 of adamw.
        log_every_steps: steps between lines of metrics.jsonl.
        checkpoint_every_steps: steps between two checkpoints, from which a stopped run goes on.
    """

    section: ClassVar[str]
    has_teacher: ClassVar[bool] = False  # whether a teacher sees each image too

    epochs: float = 100
    steps: int | None = None
    least_epochs: float = 0.0
    batch_size: int = 1024
    optimizer: str = "lars"
    learning_rate: float = 0.1
    learning_rate_scaling: Literal["sqrt", "linear", "none"] = "sqrt"
    warmup_epochs: float = 0
    weight_decay: float = 0.0
    momentum: float = 0.9
    log_every_steps: int = not_hashed(50)
    checkpoint_every_steps: int = not_hashed(1000)

    def __post_init__(self) -> None:
        for key, at_least in (
            ("steps", 1),
            ("batch_size", 1),
            ("log_every_steps", 1),
            ("checkpoint_every_steps", 1),
        ):
            value = getattr(self, key)
            if value is not None:
                require(value >= at_least, f"{self.section}.{key}", value, f"{at_least} or more")
        for key in ("epochs", "learning_rate"):
            value = getattr(self, key)
            require(value > 0, f"{self.section}.{key}", value, "greater than 0")
        for key in ("least_epochs", "warmup_epochs", "weight_decay"):
            value = getattr(self, key)
            require(value >= 0, f"{self.section}.{key}", value, "0 or more")
        require(0 <= self.momentum < 1, f"{self.section}.momentum", self.momentum, "in [0, 1)")
        require_one_of(OPTIMIZERS, f"{self.section}.optimizer", self.optimizer)

    @property
    def images_at_once(self) -> int:
        """Images whose activations are in memory at the same time, over all processes."""
        return self.batch_size

    @property
    def batch_unit(self) -> int:
        """``batch_size`` is a multiple of this number of images."""
        return 1

    def with_batch(self, size: int) -> Self:
        """The same training with another batch size, a multiple of ``batch_unit``."""
        return replace(self, batch_size=size)

    def kept_layers(self, labels: int, images: int, head_layers: int) -> int:
        """Layers of the projection head in the classifier that is trained.

        Args:
            labels: number of labeled images.
            images: number of training images.
            head_layers: that there are.
        """
        return 0


@dataclass(frozen=True)
class Pretrain(Training):
    """Stage 1, pretraining: all images, no labels (SimCLRv2, section 2; appendix B.1).

    Args:
        task: what the network learns to tell; contrastive is the paper's, and the options from
            loss to negatives are for it. Others have a section of their name.
        augmentation: of the views; auto is what is usual for the task.
        batch_size: images per update over all processes.
        micro_batch: images per forward pass, where batch_size does not fit into memory; the
            gradient is that of the whole batch.
        loss: nt_xent is the paper's; SimCLR compares it with nt_logistic and margin_triplet;
            dcl leaves the positive out of the denominator; pair is Hadsell's; prototypes (SwAV) and
            infomax (Deep InfoMax) have sections.
        contextualisation: attention pools the feature map before a projection head of its own,
            which is not kept.
        quantisation: gumbel compares with few learned vectors (code_book).
        temperature: of nt_xent, dcl, nt_logistic, prototypes; the paper takes 0.1 on ImageNet.
        margin: of similarities for margin_triplet, of distances (0 to 2) for pair.
        init: run or artifact folder of another pretraining, whose encoder, and projection head if
            both tasks have one, this one starts from, as where images came later.
        semi_hard: one negative per anchor (nt_logistic, margin_triplet, pair), the most similar of
            those that are less similar than the positive.
        memory: second views of earlier steps kept as further negatives, embedded by a moving
            average of the network; 0 keeps none, the paper takes 65536. As large as the number
            of images, it makes an image its own negative.
        memory_momentum: share of the old average in the new one, per update.
        negatives: batch+memory adds the memory to the batch, as SimCLRv2; memory takes it alone,
            with first views as queries and second views as keys, as MoCo.
        seed: of initialisation, order and augmentation; label draws, by --seed, share it.
        knn_every_steps: steps between neighbours' accuracies.
    """

    section: ClassVar[str] = "pretrain"

    task: str = "contrastive"
    augmentation: Literal["auto", "full", "crop", "none"] = "auto"
    epochs: float = 800
    batch_size: int = 4096
    warmup_epochs: float = 40
    weight_decay: float = 1e-4
    init: str | None = not_hashed(None)  # the hash of its weights counts
    micro_batch: int | None = None
    loss: Loss = only_with("nt_xent", "task", "contrastive")
    temperature: float = only_with(
        0.1, "loss", "nt_xent", "dcl", "nt_logistic", "prototypes", recipes=True
    )
    contextualisation: Literal["none", "attention"] = only_with("none", "loss", *PAIRWISE)
    quantisation: Literal["none", "gumbel"] = only_with("none", "loss", *PAIRWISE)
    margin: float = only_with(0.8, "loss", "margin_triplet", "pair")
    semi_hard: bool = only_with(False, "loss", "nt_logistic", "margin_triplet", "pair")
    memory: int = only_with(0, "loss", "nt_xent")
    memory_momentum: float = only_with(0.999, "memory")
    negatives: Literal["batch+memory", "memory"] = "batch+memory"
    seed: int = 0
    knn_every_steps: int = not_hashed(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        every = self.knn_every_steps
        require(every >= 0, "pretrain.knn_every_steps", every, "0 or more")
        require_one_of(TASKS, "pretrain.task", self.task)
        require(self.temperature > 0, "pretrain.temperature", self.temperature, "greater than 0")
        memory, momentum, size = self.memory, self.memory_momentum, self.batch_size
        require(
            memory >= 0 and memory % size == 0,
            "pretrain.memory",
            memory,
            f"0 or a multiple of pretrain.batch_size={size}",
        )
        require(0 <= momentum < 1, "pretrain.memory_momentum", momentum, "in [0, 1)")
        micro = self.micro_batch
        require(
            micro is None or (micro > 0 and size % micro == 0),
            "pretrain.micro_batch",
            micro,
            f"a divisor of pretrain.batch_size={size}, or null",
        )
        require(self.margin >= 0, "pretrain.margin", self.margin, "0 or more")
        for key in ("contextualisation", "quantisation"):
            allowed = f"0 with pretrain.{key}={getattr(self, key)}"
            require(getattr(self, key) == "none" or not memory, "pretrain.memory", memory, allowed)
        require(
            memory > 0 or self.negatives != "memory",
            "pretrain.memory",
            memory,
            "greater than 0 with pretrain.negatives=memory",
        )
        require_seed("pretrain.seed", self.seed)

    @property
    def images_at_once(self) -> int:
        """``micro_batch``, or the whole batch."""
        return self.micro_batch or self.batch_size

    @property
    def batch_unit(self) -> int:
        """``micro_batch``, or 1."""
        return self.micro_batch or 1

    def with_batch(self, size: int) -> Self:
        """The same training with another batch size, and about the same memory."""
        memory = max(1, self.memory // size) * size if self.memory else 0
        return replace(self, batch_size=size, memory=memory)


@dataclass(frozen=True)
class OwnCrops(Training):
    """What stages 2 and 3 have in common: they may crop otherwise than the pretraining.

    Args:
        crop_area: in place of augment.crop_area; unset: that one.
        zoom_area: in place of augment.zoom_area; unset: that one.
    """

    crop_area: tuple[float, float] | None = None
    zoom_area: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("crop_area", "zoom_area"):
            low, high = getattr(self, key) or (1.0, 1.0)
            allowed = "two numbers 0 < low <= high <= 1, or null"
            require(0 < low <= high <= 1, f"{self.section}.{key}", getattr(self, key), allowed)

    def views_of(self, augment: Augmentation) -> Augmentation:
        """The augmentation of this stage, from that of the run."""
        crop, zoom = self.crop_area or augment.crop_area, self.zoom_area or augment.zoom_area
        covered = min(augment.crop_min_covered, crop[1])
        return replace(augment, crop_area=crop, zoom_area=zoom, crop_min_covered=covered)


FEW_BATCHES = 4  # of labels; configs/tuning/digits_finetune.yaml tells how it was chosen


@dataclass(frozen=True)
class Finetune(OwnCrops):
    """Stage 2, fine-tuning on the labeled images (SimCLRv2, section 2; appendix B.2).

    Args:
        init: artifact folder of stage 1; unset: this run's own.
        from_layer: how many layers of the projection head are kept and tuned; unset: 1 for up to
            10% of the labels, else 0, as in the paper. More is worth a try with few labels.
        fresh_head: start the kept layers at random, as a control: their width stays, what stage 1
            taught them is gone. They have the linear layer's rate, and their batch norm takes the
            statistics of the batch, as it has no others.
        encoder_rate: learning rate of everything below the new linear layer, as a multiple.
        freeze_after_block: freeze the beginning of a simclr_resnet, batch norm included: 0 the
            stem, k also the first k groups of blocks, 4 all of it; unset: nothing, as the paper.
        linear_init: zero as in the paper, or class_means of the pretrained features, which is
            robust with very few labels.
        batch_norm: batch uses the statistics of the batch, frozen those of pretraining (and no
            dropout), which is better where a batch holds only a handful of different images; auto
            is frozen for fewer labels than four batches hold, else batch.
        augmentation: crop is random crop (and flip, rotation, shear where the recipe has them), as
            in the paper; full adds the colours of pretraining; none shows the plain image.
        auxiliary: rotation also asks by which quarter turn each image is rotated, which was found
            to help against corruptions (Hendrycks et al. 2019); the classifier stays a plain one.
        auxiliary_weight: of that loss beside the classes'.
    """

    section: ClassVar[str] = "finetune"

    init: str | None = not_hashed(None)
    epochs: float = 60
    learning_rate: float = 0.005
    from_layer: int | None = None
    fresh_head: bool = False
    encoder_rate: float = 1.0
    freeze_after_block: int | None = None
    linear_init: Literal["zero", "class_means"] = "zero"
    batch_norm: Literal["batch", "frozen", "auto"] = "batch"
    augmentation: Literal["crop", "full", "none"] = "crop"
    auxiliary: Literal["none", "rotation"] = "none"
    auxiliary_weight: float = only_with(0.5, "auxiliary", "rotation")

    def __post_init__(self) -> None:
        super().__post_init__()
        key = f"{self.section}.encoder_rate"
        require(self.encoder_rate >= 0, key, self.encoder_rate, "0 or more")
        key = f"{self.section}.auxiliary_weight"
        require(self.auxiliary_weight > 0, key, self.auxiliary_weight, "greater than 0")
        key = f"{self.section}.freeze_after_block"
        require((self.freeze_after_block or 0) >= 0, key, self.freeze_after_block, "0 or more")
        key = f"{self.section}.from_layer"
        require((self.from_layer or 0) >= 0, key, self.from_layer, "0 or more")

    def kept_layers(self, labels: int, images: int, head_layers: int) -> int:
        """``from_layer``; where it is unset, 1 for up to 10% of the labels and 0 for more.

        0 too where there is no projection head, as of published weights and of some pretext tasks.
        """
        if not head_layers:
            return 0
        if self.from_layer is not None:
            return self.from_layer
        return int(labels <= round(0.1 * images))

    def batch_statistics(self, labels: int) -> bool:
        """Whether batch norm takes the statistics of the batch, with that number of labels."""
        if self.batch_norm == "auto":
            return labels >= FEW_BATCHES * self.batch_size
        return self.batch_norm == "batch"


@dataclass(frozen=True)
class Linear(Finetune):
    """Comparison, linear evaluation: the encoder frozen, a linear layer on its output."""

    section: ClassVar[str] = "linear"

    epochs: float = 90
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    learning_rate_scaling: Literal["sqrt", "linear", "none"] = "linear"
    from_layer: int | None = 0
    encoder_rate: float = 0.0
    batch_norm: Literal["batch", "frozen", "auto"] = "frozen"

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = "none, because a frozen encoder cannot learn from it"
        require(self.auxiliary == "none", "linear.auxiliary", self.auxiliary, allowed)
        allowed = "false, because a frozen layer cannot learn"
        require(not self.fresh_head, "linear.fresh_head", self.fresh_head, allowed)


@dataclass(frozen=True)
class Classical:
    """Comparison, classical: what scikit-learn makes of the same labels, in seconds.

    Args:
        enabled: whether pipeline.py makes these rows.
        init: artifact folder of stage 1 for the row on its features; unset: this run's own.
        published: artifact folder of published weights (stages.import_weights), for a row that says
            what they are worth without any pretraining; it sees images of their own size.
        from_layer: how many layers of the projection head the rows on features keep below the
            regression; 0 takes the encoder's output. With few labels 2 can be much better.
        self_training: the regression on features also learns from up to 5,000 images without a
            label; where it is sure of a class, it takes that class for the label. It may help or
            do harm (docs/results/ideas.md).
        neighbours: whether pipeline.py also makes a row of nearest neighbours on these features;
            a table that names the row makes it in any case.
        pixel_images: how many images the rows on pixels and gradients learn from at most, labeled
            ones first, by lot. It keeps them to seconds; more are a stronger rival.
    """

    section: ClassVar[str] = "classical"

    enabled: bool = not_hashed(True)
    init: str | None = not_hashed(None)
    published: str | None = not_hashed(None)
    from_layer: int = 0
    self_training: bool = False
    neighbours: bool = not_hashed(False)
    pixel_images: int = 2_000

    def __post_init__(self) -> None:
        require(self.from_layer >= 0, "classical.from_layer", self.from_layer, "0 or more")
        require(
            1 <= self.pixel_images <= 100_000,
            "classical.pixel_images",
            self.pixel_images,
            "from 1 to 100,000",
        )

    def kept_layers(self, labels: int, images: int, head_layers: int) -> int:
        """``from_layer``, whatever the number of labels; 0 where there is no projection head."""
        return self.from_layer if head_layers else 0


@dataclass(frozen=True)
class Supervised(Finetune):
    """Comparison, supervised: the same network from scratch, and the student's, on the labels."""

    section: ClassVar[str] = "supervised"

    epochs: float = 500
    learning_rate: float = 0.05
    learning_rate_scaling: Literal["sqrt", "linear", "none"] = "linear"
    weight_decay: float = 1e-4
    warmup_epochs: float = 5
    from_layer: int | None = 0
    augmentation: Literal["crop", "full", "none"] = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = "false, because all of this network starts at random"
        require(not self.fresh_head, "supervised.fresh_head", self.fresh_head, allowed)


@dataclass(frozen=True)
class Distill(OwnCrops):
    """Stage 3, distillation into a student on all images (SimCLRv2, section 2, eq. 2 and 3).

    Args:
        teacher: artifact folder of a classifier, or a list of them; unset: what taught_by names.
        taught_by: finetune, as in the paper, features-logistic, which overfits less where labels
            are very few (classical.from_layer), or a list of both: probabilities are averaged.
        student: any timm model, as model.encoder.
        student_pretrained: start the student from published weights, as model.pretrained.
        temperature: of both softmaxes; the paper takes 1.0, and 0.1 for a student of the teacher's
            own architecture.
        images: all, or labeled, which shows what the unlabeled images are worth (the number of
            updates stays that of all images).
        labeled_weight: weight of the cross-entropy on labeled images, the rest goes to distillation
            (1 - alpha of eq. 3); 0 uses unlabeled images only.
        labeled_batch_size: labeled images per update where labeled_weight is not 0.
        teacher_view: same shows the teacher the student's augmented image, clean the plain one.
        augmentation: as for fine-tuning.
        self_first: distill the teacher into its own (first one's) architecture first and that one
            into the student, as the paper's best results do.
        self_temperature: of self_first without self_ema.
        self_ema: decay of the average of the weights, from the teacher's on, that teaches
            self_first pseudo labels, as Semi-ViT (docs/reference.md, 11).
        self_confidence: smallest probability of such a label.
        bootstrap: share of the student's own prediction in its targets.
    """

    section: ClassVar[str] = "distill"
    has_teacher: ClassVar[bool] = True

    epochs: float = 400
    batch_size: int = 4096
    warmup_epochs: float = 20
    weight_decay: float = 1e-4
    teacher: tuple[str, ...] | str | None = not_hashed(None)
    taught_by: tuple[str, ...] | str = "finetune"
    student: str = "simclr_resnet50_1x_sk0"
    student_pretrained: bool | str = False
    temperature: float = 1.0
    images: Literal["all", "labeled"] = "all"
    labeled_weight: float = 0.0
    labeled_batch_size: int = 256
    teacher_view: Literal["same", "clean"] = "same"
    augmentation: Literal["crop", "full", "none"] = "crop"
    self_first: bool = False
    self_temperature: float = 0.1
    self_ema: float = only_with(0.0, "self_first")
    self_confidence: float = only_with(0.6, "self_ema")
    bootstrap: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("temperature", "self_temperature"):
            value = getattr(self, key)
            require(value > 0, f"distill.{key}", value, "greater than 0")
        for key in ("teacher", "taught_by"):
            value = getattr(self, key)
            names = listed(value)
            require(value is None or len(names) > 0, f"distill.{key}", value, "one or a list")
            require(len(set(names)) == len(names), f"distill.{key}", value, "different ones")
            object.__setattr__(self, key, field_of(names))  # a list of one is that one
        for name in self.teachers:
            require_one_of(TEACHERS, "distill.taught_by", name)
        weight, size = self.labeled_weight, self.labeled_batch_size
        require(0 <= weight < 1, "distill.labeled_weight", weight, "in [0, 1)")
        require(size >= 1, "distill.labeled_batch_size", size, "1 or more")
        for key in ("self_ema", "self_confidence", "bootstrap"):
            value = getattr(self, key)
            require(0 <= value < 1, f"distill.{key}", value, "in [0, 1)")
        names = self.teacher_folders or self.teachers
        allowed = f"0 with several teachers ({', '.join(names)}), as it starts from one"
        require(len(names) == 1 or not self.self_ema, "distill.self_ema", self.self_ema, allowed)
        unread = not self.self_ema or self.self_temperature == Distill.self_temperature
        allowed = "left out with distill.self_ema, whose labels are hard"
        require(unread, "distill.self_temperature", self.self_temperature, allowed)

    @property
    def teachers(self) -> tuple[str, ...]:
        """The methods that ``taught_by`` names."""
        return tuple(listed(self.taught_by))

    @property
    def teacher_folders(self) -> tuple[str, ...]:
        """The folders that ``teacher`` names; none where it is unset."""
        return tuple(listed(self.teacher))


# What stages.assess can measure, in its order.
ASSESSMENTS = (
    "linear",
    "neighbours",
    "clusters",
    "map",
    "classifiers",
    "corruptions",
    "ood",
    "transfer",
    "baselines",
    "labels",
)


@dataclass(frozen=True)
class Assess:
    """Optional stage 4, assessment: the quality of the features and of the classifiers.

    Args:
        parts: all, or some of linear, neighbours, clusters, map, classifiers, corruptions, ood,
            transfer, baselines, labels, separated by commas.
        ood: out-of-distribution images, given as data.train, on which the classifiers should be
            less sure than on the test images; besides the test images with their pixels shuffled,
            and noise.
        transfer: labeled images of another kind, given as data.train, on which a linear classifier
            is trained and tested with the frozen features.
        map_points: test images on the two-dimensional map.
        max_images: training images whose features are looked at, the labeled ones among them.
    """

    parts: str = not_hashed("all")
    ood: str | None = None
    transfer: str | None = None
    map_points: int = 3000
    max_images: int = 50_000

    def __post_init__(self) -> None:
        for part in self.parts.split(","):
            require_one_of(("all", *ASSESSMENTS), "assess.parts", part)
        require(self.map_points >= 10, "assess.map_points", self.map_points, "10 or more")
        require(self.max_images >= 10, "assess.max_images", self.max_images, "10 or more")
