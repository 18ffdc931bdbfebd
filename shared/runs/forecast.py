"""A plan before you pay: what a recipe's stages would take on this machine.

``pipeline.py --plan`` runs every stage for some seconds, as it is, on the recipe's own data in a
folder that is deleted afterwards, and scales up what it measured. Where the first stages of a large
network have taken long, the others are not run: their FLOPs tell. Where the data are on a hub that
cannot be reached, made-up images of the same size stand in.
"""

import contextlib
import io
import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from shared.config.labelset import LabelSet
from shared.config.methods import CLASSIFIERS, METHODS
from shared.config.optimizers import OPTIMIZERS
from shared.config.schema import Config, Distill, Finetune, Pretrain
from shared.data.labels import draw_labels, read_csv, read_text
from shared.data.sources import open_data
from shared.networks.build import build_classifier, build_contrastive, network_meta
from shared.networks.size import Size, measure_size
from shared.runs.text import aligned
from shared.runtime.artifacts import ClassifierNetwork, write_atomically
from shared.runtime.errors import UserError
from shared.runtime.randomness import generator
from shared.training.schedule import schedule_of

RunStage = Callable[[Config, Accelerator], object]

# images for training, for testing, classes: for a plan before the download
HUB_SIZES = {
    "ILSVRC/imagenet-1k": (1_281_167, 50_000, 1000),
    "uoft-cs/cifar10": (50_000, 10_000, 10),
    "zalando-datasets/fashion_mnist": (60_000, 10_000, 10),
    "tanganke/stl10": (5_000, 8_000, 10),
}
# SimCLRv2, table 1: depth and width of the networks, each without and with selective kernels
PAPER = [
    f"simclr_resnet{depth}_{width}x_sk{kernels}"
    for depth, width in ((50, 1), (50, 2), (101, 1), (101, 2), (152, 1), (152, 2))
    for kernels in (0, 1)
] + ["simclr_resnet152_3x_sk1"]
H100_FLOPS = 0.4 * 989e12  # 40% of the bf16 peak in NVIDIA's data sheet (dense): an assumption


@dataclass(frozen=True)
class StagePlan:
    """One line of the plan.

    Attributes:
        stage: its name.
        images: that it trains on.
        steps: updates.
        batch_size: images per update.
        parameters: of the network that it trains.
        flops: of the whole stage.
        seconds: expected, with the evaluation at its end.
        peak_bytes: memory of the process, expected.
        disk_bytes: the artifact, and the checkpoint while it trains.
        probed_batch_size: of the probe; smaller where the recipe's would have taken too long, 0
            where earlier stages had taken too long already and their FLOP/s were taken.
    """

    stage: str
    images: int
    steps: int
    batch_size: int
    parameters: int
    flops: float
    seconds: float
    peak_bytes: float
    disk_bytes: float
    probed_batch_size: int


@dataclass(frozen=True)
class Counts:
    """Images for training, with labels among them, and for testing; classes."""

    train: int
    labeled: int
    test: int
    classes: int


def forecast(
    config: Config, accelerator: Accelerator, stages: Mapping[str, RunStage], seconds: float = 30
) -> None:
    """Print the plan of a recipe and save it as ``<output>/<run>/plan.json``.

    Args:
        config: the recipe.
        accelerator: of this process.
        stages: by the method's name, in their order; called with a configuration of few steps.
        seconds: roughly how long to measure, in all.

    Raises:
        UserError: where the data cannot be opened, or a stage refuses them; on several processes.
    """
    if accelerator.num_processes > 1:
        raise UserError(
            "--plan measures one process: python pipeline.py --plan; several share the time of its"
            " steps"
        )
    lines: list[StagePlan] = []
    with tempfile.TemporaryDirectory() as folder:
        probe = replace(config, output=folder, run="probe", force="")
        probe, counts, note = _data_of(probe, Path(folder) / "images")
        began = time.perf_counter()
        for method, run in tqdm(stages.items(), "measuring", disable=None, leave=False):
            cost = cost_of(method, config, counts, accelerator.mixed_precision)
            late = time.perf_counter() - began > 2 * seconds
            if late and lines:
                rate = statistics.median(line.flops / line.seconds for line in lines)
                batch, each = 0, cost.update / rate
            else:
                share = seconds / len(stages)
                batch, each = _measure(method, run, probe, accelerator, cost, share)
            lines.append(_stage_plan(method, config, counts, cost, batch, each))
    print(_text(lines, accelerator))
    if not all(line.probed_batch_size for line in lines):
        note += (
            "The rows without a batch were not measured: their time is from the FLOP/s of the"
            " others, and can be wrong by a factor of 2.\n"
        )
    print(note + f"In all {_duration(sum(line.seconds for line in lines))} of training.")
    if config.data.train.startswith("ILSVRC/imagenet-1k"):
        rate = lines[0].flops / lines[0].seconds
        print(f"\n{paper_table(config, accelerator, counts.train, rate)}")
    rows = [asdict(line) for line in lines]
    write_atomically(config.folder / "plan.json", json.dumps(rows, indent=1) + "\n")


# ------------------------------------------------------------------------------------------ data
def _data_of(config: Config, folder: Path) -> tuple[Config, Counts, str]:
    """The configuration to measure with, the counts of the recipe's data, and a note.

    Made-up images in ``folder`` stand in for a known data set that cannot be reached.
    """
    try:
        return config, count_images(config), ""
    except UserError as error:
        name = config.data.train.partition("@")[0]
        if name not in HUB_SIZES:
            raise
        counts = known_counts(*HUB_SIZES[name], config.label_set)
        return _stand_in(config, folder), counts, f"Measured on made-up images: {error}.\n"


def count_images(config: Config) -> Counts:
    """Open the data and count."""
    splits = open_data(config.data, config.label_set)
    labeled = len(draw_labels(splits, config.label_set, config.seed).ids)
    test = len(splits.test) if splits.test else 0
    return Counts(len(splits.train), labeled, test, len(splits.train.classes))


def known_counts(train: int, test: int, classes: int, labels: LabelSet) -> Counts:
    """The counts of a data set that is not here, all of whose images have labels."""
    if labels.share is not None:
        labeled = max(classes, round(train * labels.share))
    elif labels.per_class is not None:
        labeled = classes * labels.per_class
    elif labels.csv_file is not None:
        labeled = len(read_csv(labels.csv_file))
    else:
        assert labels.file is not None
        labeled = len(read_text(labels.file).split())
    return Counts(train, labeled, test, classes)


def _stand_in(config: Config, folder: Path) -> Config:
    """A folder of two classes: JPEGs of ImageNet's usual size, or PNGs of the recipe's."""
    size = config.data.image_size
    width, height, suffix = (500, 375, "jpg") if size > 96 else (size, size, "png")
    for i in range(128):
        rng = generator(0, "stand-in", i)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        path = folder / "ab"[i % 2] / f"{i}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
    local: dict[str, None] = dict.fromkeys(("test", "unlabeled", "image_column", "label_column"))
    return replace(
        config, data=replace(config.data, train=str(folder), **local), labels="10perclass"
    )


# -------------------------------------------------------------------------------- what is counted
class Cost(NamedTuple):
    """What one image costs in a method: FLOPs of an update and a prediction, bytes, parameters."""

    update: float
    prediction: float
    activations: int  # that an update keeps for its backward pass
    parameters: int


def cost_of(method: str, config: Config, counts: Counts, precision: str) -> Cost:
    """Count what one image costs; a backward pass takes two forward passes."""
    size = network_size(method, config, counts, precision)
    training, teacher = config.training_of(method), config.parent_of(method)
    update, views = 3 * size.flops, 1
    if isinstance(training, Pretrain):
        views = 2
        trained = 1 if training.negatives == "memory" else 2  # MoCo's other view is a key
        parts = training.micro_batch and training.micro_batch < training.batch_size
        # the averaged network sees the views too, and parts are embedded twice
        passes = 3 + bool(training.memory) + bool(parts)
        update = passes * trained * size.flops
    elif METHODS[method].frozen:
        update = size.flops  # the encoder is frozen
    elif isinstance(training, Distill) and teacher:
        update += network_size(teacher, config, counts, precision).flops
    return Cost(update, size.flops, views * size.activations, size.parameters)


def network_size(method: str, config: Config, counts: Counts, precision: str) -> Size:
    """Of the network that a method trains."""
    model = replace(config.model, encoder=config.encoder_of(method))
    meta = network_meta(model, config.data)
    if METHODS[method].stage == "pretrain":
        return measure_size(lambda: build_contrastive(meta), config.data.image_size, precision)
    classifier: ClassifierNetwork = {
        **meta,
        "classes": [str(number) for number in range(counts.classes)],
        "from_layer": _kept_layers(method, config, counts),
    }
    return measure_size(lambda: build_classifier(classifier), config.data.image_size, precision)


def _kept_layers(method: str, config: Config, counts: Counts) -> int:
    """Layers of the projection head in a classifier; of students, only a teacher's copy has any."""
    training = config.training_of(method)
    if isinstance(training, Finetune):
        return training.kept_layers(counts.labeled, counts.train)
    teacher = config.parent_of(method)
    if teacher is None or METHODS[teacher].network != METHODS[method].network:
        return 0
    return _kept_layers(teacher, config, counts)


# ------------------------------------------------------------------------------- what is measured
def _measure(
    method: str, run: RunStage, config: Config, accelerator: Accelerator, cost: Cost, seconds: float
) -> tuple[int, float]:
    """Run one stage on a small batch, then on as much of the recipe's as time and memory allow.

    Returns:
        The batch size that was measured last, and the seconds per image.
    """
    training = config.training_of(method)
    full, unit = training.batch_size, getattr(training, "micro_batch", None) or 1
    in_memory = int(0.5 * _free_bytes(accelerator) / cost.activations)
    slow = int(1e11 * seconds / cost.update)  # so many are in time on any machine
    batch = min(full, max(2 * unit, min(32, in_memory, slow) // unit * unit))
    each = _seconds_per_image(method, run, config, accelerator, batch, 2)
    in_time = int(seconds / (4 * each))  # images of one of four steps
    batch = max(batch, min(full, in_memory, in_time) // unit * unit)
    if 4 * batch * each < seconds:
        steps = min(200, max(4, int(seconds / (batch * each))))
        each = _seconds_per_image(method, run, config, accelerator, batch, steps)
    return batch, each


def _seconds_per_image(
    method: str,
    run: RunStage,
    config: Config,
    accelerator: Accelerator,
    batch_size: int,
    steps: int,
) -> float:
    """Run a stage with another length and batch; the rest of the configuration stays."""
    training = config.training_of(method)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "steps": steps,
        "warmup_epochs": 0.0,
        "log_every_steps": max(1, steps // 4),
        "checkpoint_every_steps": 10**9,
    }
    if isinstance(training, Pretrain) and training.memory:
        options["memory"] = max(1, training.memory // batch_size) * batch_size
    section = {METHODS[method].section: replace(training, **options)}
    short = replace(config, force="all", **section)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run(short, accelerator)
    accelerator.free_memory()
    folder = short.folder_of(method)
    log = (folder / "metrics.jsonl").read_text().splitlines()
    if not any(method in other.made_from for other in METHODS.values()):
        shutil.rmtree(folder)
    rates = [json.loads(line)["images_per_second"] for line in log]
    return 1 / statistics.median(rates[1:])  # the first line has the start in it


def _stage_plan(
    method: str, config: Config, counts: Counts, cost: Cost, batch: int, each: float
) -> StagePlan:
    """Scale up ``each``, the seconds per image, which were measured with ``batch`` images."""
    training = config.training_of(method)
    images = counts.train if METHODS[method].all_images else counts.labeled
    steps, full = schedule_of(training, images).steps, training.batch_size
    tested = counts.test if method in CLASSIFIERS else 0
    held = getattr(training, "micro_batch", None) or full  # images whose activations exist at once
    return StagePlan(
        method,
        images,
        steps,
        full,
        cost.parameters,
        flops=cost.update * steps * full,
        seconds=steps * full * each + tested * each * cost.prediction / cost.update,
        peak_bytes=_peak_bytes() + max(0, held - batch) * cost.activations,
        disk_bytes=4 * cost.parameters * (2 + OPTIMIZERS[training.optimizer].slots),
        probed_batch_size=batch,
    )


def _free_bytes(accelerator: Accelerator) -> int:
    if accelerator.device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def _peak_bytes() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# ------------------------------------------------------------------------------------------- text
def paper_table(config: Config, accelerator: Accelerator, images: int, rate: float) -> str:
    """What pretraining the paper's 13 networks would take with this recipe.

    Args:
        config: its epochs and image size count.
        accelerator: its precision.
        images: that are trained on.
        rate: FLOP/s of the probe.
    """
    epochs = config.pretrain.epochs
    lines = [["network", "parameters", "GFLOPs/image", "days here", "H100-hours"]]
    for name in PAPER:
        recipe = replace(config, model=replace(config.model, encoder=name))
        size = network_size("pretrain", recipe, Counts(0, 0, 0, 0), accelerator.mixed_precision)
        flops = 6.0 * size.flops * images * epochs
        times = [f"{flops / rate / 86400:,.0f}", f"{flops / H100_FLOPS / 3600:,.0f}"]
        lines.append([name, f"{size.parameters:,}", f"{size.flops / 1e9:,.1f}", *times])
    return (
        f"Pretraining the paper's networks, {epochs:g} epochs, at the {rate / 1e12:.2f} TFLOP/s"
        f" measured here, and at 40% of one H100's bf16 peak (assumed, not measured):\n"
        + aligned(lines)
    )


def _text(plans: list[StagePlan], accelerator: Accelerator) -> str:
    sizes = ["stage", "images", "steps", "batch", "parameters"]
    lines = [[*sizes, "PFLOPs", "time", "peak memory", "disk", "measured at batch"]]
    for line in plans:
        counts = (line.images, line.steps, line.batch_size, line.parameters)
        peak, disk = line.peak_bytes / 2**30, line.disk_bytes / 2**20
        probed = f"{line.probed_batch_size:,}" if line.probed_batch_size else "-"
        costs = [f"{line.flops / 1e15:,.3g}", _duration(line.seconds)]
        memory = [f"{peak:.1f} GiB", f"{disk:,.0f} MiB"]
        lines.append([line.stage, *(f"{n:,}" for n in counts), *costs, *memory, probed])
    device = f"CPU ({torch.get_num_threads()} threads)"
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name()
    return f"1 x {device}, {accelerator.mixed_precision}\n{aligned(lines)}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"
