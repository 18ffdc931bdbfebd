"""A plan before you pay: what a recipe's stages would take on this machine.

``pipeline.py --plan`` runs every stage for some seconds, as it is, on the recipe's own data in a
folder that is deleted afterwards, and scales up what it measured. Where the first stages of a large
network have taken long, the others are not run: their FLOPs tell. Where the data are on a hub that
cannot be reached, made-up images of the same size stand in. Parameters, FLOPs and the memory of
activations are counted on tensors without values.
"""

import contextlib
import io
import json
import re
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from shared.runtime.artifacts import ClassifierNetwork, write_atomically
from shared.config.schema import Config, Model, Training
from shared.data.sources import open_data
from shared.runtime.errors import UserError
from shared.data.labels import draw_labels
from shared.networks.build import build_classifier, build_contrastive, network_meta
from shared.runtime.randomness import generator
from shared.runs.results import aligned
from shared.training.schedule import schedule_of as plan

# images for training, for testing, classes: for a plan before the download
HUB_SIZES = {
    "ILSVRC/imagenet-1k": (1_281_167, 50_000, 1000),
    "uoft-cs/cifar10": (50_000, 10_000, 10),
    "zalando-datasets/fashion_mnist": (60_000, 10_000, 10),
    "tanganke/stl10": (5_000, 8_000, 10),
}
# SimCLRv2, table 1: depth, width, selective kernels
PAPER = [
    (50, 1, 0), (50, 1, 1), (50, 2, 0), (50, 2, 1), (101, 1, 0), (101, 1, 1), (101, 2, 0),
    (101, 2, 1), (152, 1, 0), (152, 1, 1), (152, 2, 0), (152, 2, 1), (152, 3, 1),
]
H100_FLOPS = 0.4 * 989e12  # 40% of the bf16 peak in NVIDIA's data sheet (dense): an assumption
SLOTS = {"lars": 1, "sgd": 1, "adamw": 2}  # optimizer states per parameter


@dataclass(frozen=True)
class Size:
    """What one image costs in a network.

    Attributes:
        parameters: of the network.
        flops: of the forward pass of one image; a multiplication and an addition count as two.
        activations: bytes that the forward pass of one image keeps for the backward pass.
    """

    parameters: int
    flops: int
    activations: int


def measure_size(build: Callable[[], nn.Module], image_size: int, precision: str) -> Size:
    """Count without computing: on tensors that have shapes and no values.

    Args:
        build: makes the network.
        image_size: pixels per side.
        precision: of the forward pass, ``bf16`` (autocast) or ``no``.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.device("meta"):
        network = build().to(dtype).train()
        images = torch.empty(2, 3, image_size, image_size, dtype=dtype)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, FlopCounterMode(display=False) as counter:
        network(images)
    own = {p.untyped_storage()._cdata for p in (*network.parameters(), *network.buffers())}
    activations = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    parameters = sum(p.numel() for p in network.parameters())
    return Size(parameters, counter.get_total_flops() // 2, activations // 2)


@dataclass(frozen=True)
class StagePlan:
    """One line of the plan.

    Attributes:
        stage: its name.
        images: that it trains on.
        steps: updates.
        batch_size: images per update, over all processes.
        parameters: of the network that it trains.
        flops: of the whole stage.
        seconds: expected, with the evaluation at its end.
        peak_bytes: memory of one process, expected.
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


def forecast(
    config: Config,
    accelerator: Accelerator,
    stages: Mapping[str, Callable[[Config, Accelerator], object]],
    seconds: float = 30,
) -> None:
    """Print the plan of a recipe and save it as ``<output>/<run>/plan.json``.

    Args:
        config: the recipe.
        accelerator: of this process.
        stages: by name, in their order; called with a configuration of few steps.
        seconds: roughly how long to measure, in all.

    Raises:
        UserError: where the data cannot be opened, or a stage refuses them; on several processes.
    """
    if accelerator.num_processes > 1:
        raise UserError("--plan measures one process: python pipeline.py --plan; several share the"
                        " time of its steps")
    with tempfile.TemporaryDirectory() as folder:
        probed = replace(config, output=folder, run="probe", force="")
        try:
            counts, note = count_images(probed), ""
        except UserError as error:
            name = config.data.train.partition("@")[0]
            if name not in HUB_SIZES:
                raise
            counts = known_counts(*HUB_SIZES[name], config.labels)
            note = f"Measured on made-up images: {error}.\n"
            probed = _stand_in(probed, Path(folder) / "images")
        lines: list[StagePlan] = []
        began = time.perf_counter()
        for stage, run in tqdm(stages.items(), "measuring", disable=None, leave=False):
            late = time.perf_counter() - began > 2 * seconds
            rate = statistics.median(x.flops / x.seconds for x in lines) if late else None
            share = seconds / len(stages)
            lines.append(_probe(stage, run, probed, config, accelerator, counts, share, rate))
    print(_table(lines, accelerator))
    if not all(line.probed_batch_size for line in lines):
        note += ("The rows without a batch were not measured: their time is from the FLOP/s of the"
                 " others, and can be wrong by a factor of 2.\n")
    print(note + f"In all {_duration(sum(line.seconds for line in lines))} of training.")
    if config.data.train.startswith("ILSVRC/imagenet-1k"):
        rate = lines[0].flops / lines[0].seconds
        print(f"\n{paper_table(config, accelerator, counts.train, rate)}")
    rows = [asdict(line) for line in lines]
    write_atomically(config.folder / "plan.json", json.dumps(rows, indent=1) + "\n")


@dataclass(frozen=True)
class Counts:
    """Images for training, with labels among them, and for testing; classes."""

    train: int
    labeled: int
    test: int
    classes: int


def count_images(config: Config) -> Counts:
    """Open the data and count."""
    splits = open_data(config.data, config.label_set)
    labeled = len(draw_labels(splits, config.label_set, config.seed).ids)
    test = len(splits.test) if splits.test else 0
    return Counts(len(splits.train), labeled, test, len(splits.train.classes))


def known_counts(train: int, test: int, classes: int, labels: str) -> Counts:
    """The counts of a data set that is not here, all of whose images have labels."""
    if share := re.fullmatch(r"([\d.]+)pct", labels):
        labeled = max(classes, round(train * float(share[1]) / 100))
    elif each := re.fullmatch(r"(\d+)perclass", labels):
        labeled = classes * int(each[1])
    else:
        labeled = len(Path(labels).read_text().split())
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
    data = replace(config.data, train=str(folder), test=None, unlabeled=None,
                   image_column=None, label_column=None)
    return replace(config, data=data, labels="10perclass")


def _probe(
    stage: str,
    run: Callable[[Config, Accelerator], object],
    probed: Config,
    config: Config,
    accelerator: Accelerator,
    counts: Counts,
    seconds: float,
    rate: float | None,
) -> StagePlan:
    """Measure one stage: few images first, then as much of the recipe's batch as time allows.

    And as much as half of the free memory holds. With a ``rate`` in FLOP/s nothing is measured.
    """
    section = {"supervised-student": "supervised", "self-distill": "distill"}.get(stage, stage)
    cfg: Training = getattr(config, section)
    images = counts.train if section in ("pretrain", "distill") else counts.labeled
    steps = plan(cfg, images).steps
    full = cfg.batch_size
    unit = getattr(cfg, "micro_batch", None) or accelerator.num_processes

    def timed(batch_size: int, steps: int) -> float:
        """Seconds per image."""
        short = _shortened(probed, section, batch_size, steps)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            folder = Path(str(run(short, accelerator)))
        accelerator.free_memory()
        log = (folder / "metrics.jsonl").read_text().splitlines()
        if stage not in ("pretrain", "finetune", "self-distill"):  # nothing is made from it
            shutil.rmtree(folder)
        rates = [json.loads(line)["images_per_second"] for line in log]
        return 1 / statistics.median(rates[1:])  # the first line has the start in it

    of_student = stage in ("supervised-student", "distill")
    encoder = config.distill.student if of_student else config.model.encoder
    precision = accelerator.mixed_precision
    size = network_size(stage, replace(config.model, encoder=encoder), config, counts, precision)
    views = 2 if stage == "pretrain" else 1
    fits = int(0.5 * _free_bytes(accelerator) / (views * size.activations)) // unit * unit

    flops = _flops_per_image(stage, size, config, counts, precision)
    if rate is None:
        slow = int(1e11 * seconds / flops)  # so many are in time on any machine
        batch = min(full, max(2 * unit, min(32, fits, slow) // unit * unit))
        each = timed(batch, 2)
        while batch * 2 <= min(full, fits) and 4 * 2 * batch * each < seconds:
            batch *= 2
        if full <= fits and 4 * full * each < seconds:
            batch = full
        if 4 * batch * each < seconds:
            each = timed(batch, min(200, max(4, int(seconds / (batch * each)))))
        half = batch // 2 // unit * unit
        if batch < full and half:  # what a step takes besides its images is less in a full batch
            one_more = (batch * each - half * timed(half, 2)) / (batch - half)
            one_more = min(max(one_more, each / 5), each)  # the clock trembles
            each = one_more + (each - one_more) * batch / full
    else:
        batch, each = 0, flops / rate

    evaluation = counts.test * each * size.flops / flops if stage != "pretrain" else 0
    held = getattr(cfg, "micro_batch", None) or full  # images whose activations exist at a time
    more = max(0, held - batch) * views * size.activations / accelerator.num_processes
    weights = 4 * size.parameters
    return StagePlan(
        stage, images, steps, full, size.parameters,
        flops=flops * steps * full,
        seconds=steps * full * each + evaluation,
        peak_bytes=_peak_bytes() + more,
        disk_bytes=weights * (2 + SLOTS[cfg.optimizer]),
        probed_batch_size=batch,
    )


def _flops_per_image(
    stage: str, size: Size, config: Config, counts: Counts, precision: str
) -> float:
    """Of one image in one update; a backward pass takes two forward passes."""
    cfg = config.pretrain
    if stage == "linear":
        return size.flops
    if stage in ("self-distill", "distill"):
        teacher = network_size("finetune", config.model, config, counts, precision)
        return 3 * size.flops + teacher.flops
    if stage != "pretrain":
        return 3 * size.flops
    views = 1 if cfg.negatives == "memory" else 2  # that are trained on; MoCo's other is a key
    passes = 3 * views
    if cfg.memory:  # of the averaged network
        passes += views
    if cfg.micro_batch and cfg.micro_batch < cfg.batch_size:  # embedded once more
        passes += views
    return passes * size.flops


def _shortened(config: Config, section: str, batch_size: int, steps: int) -> Config:
    """The stage with another length and batch, done anew; the rest of the configuration stays."""
    cfg = getattr(config, section)
    options: dict[str, Any] = {
        "batch_size": batch_size, "steps": steps, "warmup_epochs": 0.0,
        "log_every_steps": max(1, steps // 4), "checkpoint_every_steps": 10**9,
    }
    if getattr(cfg, "memory", 0):
        options["memory"] = max(1, cfg.memory // batch_size) * batch_size
    return replace(config, force="all", **{section: replace(cfg, **options)})


def network_size(stage: str, model: Model, config: Config, counts: Counts, precision: str) -> Size:
    """Of the network that a stage trains."""
    meta = network_meta(model, config.data)
    if stage == "pretrain":
        return measure_size(lambda: build_contrastive(meta), config.data.image_size, precision)
    few = counts.labeled <= round(0.1 * counts.train)
    layer = config.finetune.from_layer
    layer = int(few) if layer is None else layer
    from_layer = layer if stage in ("finetune", "self-distill") else 0
    classifier: ClassifierNetwork = {
        **meta,
        "classes": list(map(str, range(counts.classes))),
        "from_layer": from_layer,
    }
    return measure_size(lambda: build_classifier(classifier), config.data.image_size, precision)


def paper_table(config: Config, accelerator: Accelerator, images: int, rate: float) -> str:
    """What pretraining the paper's 13 networks would take with this recipe.

    Args:
        config: its epochs and image size count.
        accelerator: its precision, and number of processes.
        images: that are trained on.
        rate: FLOP/s of the probe.
    """
    epochs = config.pretrain.epochs
    lines = [["network", "parameters", "GFLOPs/image", "days here", "H100-hours"]]
    for depth, width, kernels in PAPER:
        name = f"simclr_resnet{depth}_{width}x_sk{kernels}"
        model = replace(config.model, encoder=name)
        size = network_size("pretrain", model, config, Counts(0, 0, 0, 0),
                            accelerator.mixed_precision)
        flops = 6.0 * size.flops * images * epochs
        here, there = flops / rate / 86400, flops / H100_FLOPS / 3600
        lines.append([name, f"{size.parameters:,}", f"{size.flops / 1e9:,.1f}",
                      f"{here:,.0f}", f"{there:,.0f}"])
    return (
        f"Pretraining the paper's networks, {epochs:g} epochs, at the {rate / 1e12:.2f} TFLOP/s"
        f" measured here, and at 40% of one H100's bf16 peak (assumed, not measured):\n"
        + aligned(lines)
    )


def _table(lines: list[StagePlan], accelerator: Accelerator) -> str:
    rows = [["stage", "images", "steps", "batch", "parameters", "PFLOPs", "time", "peak memory",
             "disk", "measured at batch"]]
    for line in lines:
        rows.append([
            line.stage, f"{line.images:,}", f"{line.steps:,}", f"{line.batch_size:,}",
            f"{line.parameters:,}", f"{line.flops / 1e15:,.3g}", _duration(line.seconds),
            f"{line.peak_bytes / 2**30:.1f} GiB", f"{line.disk_bytes / 2**20:,.0f} MiB",
            f"{line.probed_batch_size:,}" if line.probed_batch_size else "-",
        ])
    where = f"{accelerator.num_processes} x {_device(accelerator)}, {accelerator.mixed_precision}"
    return f"{where}\n{aligned(rows)}"


def _device(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU ({torch.get_num_threads()} threads)"


def _peak_bytes() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _free_bytes(accelerator: Accelerator) -> int:
    """Free memory of all processes' devices together; processes on a CPU share one memory."""
    if accelerator.device.type == "cuda":
        return torch.cuda.mem_get_info()[0] * accelerator.num_processes
    return psutil.virtual_memory().available


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"
