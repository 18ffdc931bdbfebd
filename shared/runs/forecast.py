"""The plan, before you pay: what a recipe's stages would take on this machine.

``pipeline.py --plan`` runs every stage for some seconds, as it is, on the recipe's own data in a
folder that is deleted afterwards, and scales up what it measured. Where the first stages of a large
network have taken long, the others are not run: their FLOPs tell. Where the data are on a hub that
cannot be reached, made-up images of the same size stand in. With ``--table`` it tells the time of
all that the table lacks; then the data must be there.
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
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from PIL import Image

from shared.config.methods import CLASSIFIERS, METHODS
from shared.config.optimizers import OPTIMIZERS
from shared.config.schema import Config
from shared.runs.cost import (
    HUB_SIZES,
    Cost,
    Counts,
    cost_of,
    count_images,
    known_counts,
    network_size,
)
from shared.runs.text import aligned
from shared.runtime.errors import UserError
from shared.runtime.files import write_atomically
from shared.runtime.media import say, say_block
from shared.runtime.progress import Progress, duration
from shared.runtime.randomness import generator
from shared.runtime.stop import Stopped
from shared.training.device import free_bytes
from shared.training.schedule import schedule_of
from shared.training.stage import RunStage

# SimCLRv2, table 1: depth and width of the networks, each without and with selective kernels
PAPER = [
    f"simclr_resnet{depth}_{width}x_sk{kernels}"
    for depth, width in ((50, 1), (50, 2), (101, 1), (101, 2), (152, 1), (152, 2))
    for kernels in (0, 1)
] + ["simclr_resnet152_3x_sk1"]
NOTHING_TRAINED = "nothing was trained, leave --plan out to train"
LONG = 6 * 3600  # seconds of training that are worth a warning
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
        seconds: expected, with all that comes before and after the updates.
        fixed_seconds: of these, what does not depend on the number of updates: to build the
            network, to evaluate and to save it.
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
    fixed_seconds: float
    peak_bytes: float
    disk_bytes: float
    probed_batch_size: int


class Probe(NamedTuple):
    """What was measured.

    Attributes:
        batch_size: images per update, 0 for an estimate.
        seconds_per_image: of an update.
        fixed_seconds: of the stage beside its updates; 0 for an estimate.
    """

    batch_size: int
    seconds_per_image: float
    fixed_seconds: float = 0.0


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
    _require_one_process(accelerator)
    lines, counts, note = measure(config, accelerator, stages, seconds)
    say_block(_text(lines, accelerator))
    if not all(line.probed_batch_size for line in lines):
        note += (
            "The rows without a batch were not measured: their time is from the FLOP/s of the"
            " others, and can be wrong by a factor of 2.\n"
        )
    done = [
        name
        for name in stages
        if (config.folder_of(name) / "meta.json").exists() and not config.forces(name)
    ]
    left = sum(line.seconds for line in lines if line.stage not in done)
    there = f" without {', '.join(done)}, which the run has already" if done else ""
    say_block(f"{note}In all {duration(left)} of training{there}.")
    for warning in warnings_of(lines, accelerator):
        say_block(warning)
    if config.data.train.startswith("ILSVRC/imagenet-1k"):
        rate = lines[0].flops / lines[0].seconds
        say_block(f"\n{paper_table(config, accelerator, counts.train, rate)}")
    path = config.folder / "plan.json"
    write_atomically(path, json.dumps([asdict(line) for line in lines], indent=1) + "\n")
    say(f"the same numbers: {path}; {NOTHING_TRAINED}")


def forecast_table(
    config: Config,
    accelerator: Accelerator,
    stages: Mapping[str, RunStage],
    missing: Sequence[tuple[str, Config]],
    seconds: float = 30,
) -> list[dict[str, Any]]:
    """Print what the artifacts that a table lacks would take, by method.

    Each method is measured once, with the recipe. The FLOPs of an artifact and its number of
    updates tell its time, so another network, task or batch can take twice as long, or half.

    Args:
        config: the recipe.
        accelerator: of this process.
        stages: by the method's name, in their order; called with a configuration of few steps.
        missing: method and configuration of each artifact.
        seconds: roughly how long to measure, in all.

    Returns:
        Of each method ``stage``, ``number`` of artifacts, and ``seconds`` of all of them, None
        where it was not measured.

    Raises:
        UserError: where the data cannot be opened, or a stage refuses them; on several processes.
        Stopped: where a signal asked for it.
    """
    _require_one_process(accelerator)
    number = Counter(method for method, _ in missing)
    label_sets = [job.labels for method, job in missing if method in CLASSIFIERS]
    if label_sets and config.labels not in label_sets:  # which the images may not have
        config = replace(config, labels=label_sets[0])
    trained = {name for name in number if name in METHODS and not METHODS[name].fitted}
    needed = {parent for name in trained for parent in config.ancestors_of(name)}
    if config.label_set.suggested and config.suggests_itself:
        needed.add("pretrain")
    probed = {
        name: run
        for name, run in stages.items()
        if name in trained | needed and not METHODS[name].fitted
    }
    lines = measure(config, accelerator, probed, seconds)[0] if trained else []
    rates = {line.stage: line.flops / (line.seconds - line.fixed_seconds) for line in lines}
    fixed = {line.stage: line.fixed_seconds for line in lines}
    times: dict[str, list[float]] = {name: [] for name in stages if name in trained}
    flops: dict[str, float] = {}  # of artifacts that differ in nothing but seeds and folders
    for method, of_job in missing:
        if method in trained:
            key = repr((method, _without_seeds(of_job)))
            if key not in flops:
                flops[key] = _flops_of(method, of_job, accelerator)
            times[method].append(flops[key] / rates[method] + fixed[method])
    say_block(_table_text(number, times))
    return [
        {"stage": name, "number": count, "seconds": sum(times[name]) if name in times else None}
        for name, count in number.items()
    ]


def _without_seeds(config: Config) -> Config:
    """The same for all repetitions of a cell."""
    teachers = tuple(f"teacher{i}" for i in range(len(config.distill.teacher_folders)))
    return replace(
        config,
        output="r",
        run="r",
        seed=0,
        suggested_by=None,
        pretrain=replace(config.pretrain, seed=0),
        finetune=replace(config.finetune, init=None),
        classical=replace(config.classical, init=None),
        distill=replace(config.distill, teacher=teachers or None),
    )


def _flops_of(method: str, config: Config, accelerator: Accelerator) -> float:
    """Of all updates of one artifact."""
    counts = count_images(config, labeled=method in CLASSIFIERS)
    steps = _length(method, config, counts)[1]
    cost = cost_of(method, config, counts, accelerator.mixed_precision)
    return cost.update * steps * config.training_of(method).batch_size


def _length(method: str, config: Config, counts: Counts) -> tuple[int, int]:
    """The images that a method trains on, and its updates."""
    images = counts.train if METHODS[method].all_images else counts.labeled
    return images, schedule_of(config.training_of(method), images).steps


def _table_text(number: Mapping[str, int], times: Mapping[str, Sequence[float]]) -> str:
    if not number:
        return "nothing is missing: the same command without --plan prints the table"
    lines = [["stage", "to make", "each", "in all"]]
    for name, each in times.items():
        low, high = duration(min(each)), duration(max(each))
        span = low if low == high else f"{low} to {high}"
        lines.append([name, f"{len(each):,}", span, duration(sum(each))])
    quick = [name for name in number if name not in times]
    lines += [[name, f"{number[name]:,}", "-", "-"] for name in quick]
    text = aligned(lines)
    if quick:
        text += (
            "\nWhat has no time was not measured: scikit-learn takes seconds, self-training up to"
            " two minutes."
        )
    if times:
        text += (
            f"\nIn all {duration(sum(map(sum, times.values())))} of training. The time is from the"
            " FLOPs, at the speed of the recipe's stages, and can be wrong by a factor of 2."
        )
    return text


def _require_one_process(accelerator: Accelerator) -> None:
    if accelerator.num_processes > 1:
        raise UserError(
            "--plan measures one process: python pipeline.py --plan; several share the time of its"
            " steps"
        )


def measure(
    config: Config, accelerator: Accelerator, stages: Mapping[str, RunStage], seconds: float
) -> tuple[list[StagePlan], Counts, str]:
    """Run every stage for a moment, in a folder that is deleted afterwards, and scale up.

    Args:
        config: the recipe.
        accelerator: of the only process.
        stages: by the method's name, in their order; called with a configuration of few steps.
        seconds: roughly how long to measure, in all.

    Returns:
        A plan for each stage; how many images there are; what is to be said about the data.

    Raises:
        UserError: where the data cannot be opened, or a stage refuses them.
        Stopped: where a signal asked for it.
    """
    fitted = [method for method in stages if METHODS[method].fitted]
    stages = {method: run for method, run in stages.items() if method not in fitted}
    lines: list[StagePlan] = []
    with tempfile.TemporaryDirectory() as folder:
        # every teacher has the same encoder; one that scikit-learn fits is not made here
        usual = replace(config.distill, taught_by="finetune")
        blind = replace(config.pretrain, knn_every_steps=0)
        by = None if config.suggests_itself else config.suggested_by
        small = replace(config, output=folder, run="probe", force="", suggested_by=by)
        small = replace(small, distill=usual, pretrain=blind)
        shown = accelerator.is_local_main_process  # as the stages, so that all share one decoding
        labeled = bool(stages.keys() & CLASSIFIERS)
        small, counts, note = _data_of(small, Path(folder) / "images", shown, labeled)
        pretrained = config.folder_of("pretrain").resolve()
        if "pretrain" not in stages and pretrained.exists():  # imported, or done before
            small.folder.mkdir()
            small.folder_of("pretrain").symlink_to(pretrained, target_is_directory=True)
        began = time.perf_counter()
        for method, run in Progress("measuring", len(stages), "stages").over(stages.items()):
            cost = cost_of(method, config, counts, accelerator.mixed_precision)
            late = time.perf_counter() - began > 2 * seconds
            if late and lines:
                rate = statistics.median(line.flops / line.seconds for line in lines)
                probe = Probe(0, cost.update / rate)
            else:
                share = seconds / len(stages)
                try:
                    probe = _measure(method, run, small, accelerator, cost, share)
                except Stopped as stopped:  # it names a state that is deleted with the folder
                    raise Stopped(
                        "stopped as asked while the stages were measured, before any training; the"
                        " same command begins again"
                    ) from stopped
                if config.training_of(method).has_teacher:  # of several, one was there
                    measured = cost_of(method, small, counts, accelerator.mixed_precision)
                    each = probe.seconds_per_image * cost.update / measured.update
                    probe = probe._replace(seconds_per_image=each)
            lines.append(_stage_plan(method, config, counts, cost, probe))
    if fitted:
        note += f"Not measured, because scikit-learn takes seconds: {', '.join(fitted)}.\n"
    return lines, counts, note


def warnings_of(plans: Sequence[StagePlan], accelerator: Accelerator) -> list[str]:
    """One line where the stages take very long, and one where they need more memory than is."""
    warnings = []
    seconds, peak = sum(p.seconds for p in plans), max(p.peak_bytes for p in plans)
    if seconds > LONG:
        warnings.append(
            f"warning: {duration(seconds)} is long; smaller are --data.image_size, --model.encoder"
            " and --pretrain.epochs, and for own images --budget 30min without --config"
        )
    if accelerator.device.type == "cuda":
        there = torch.cuda.mem_get_info()[1]
    else:
        there = psutil.virtual_memory().total
    if peak > there:
        warnings.append(
            f"warning: {peak / 2**30:.1f} GiB of memory are needed, there are"
            f" {there / 2**30:.1f}; smaller are --pretrain.micro_batch and the batches"
            " (docs/large.md)"
        )
    return warnings


# ------------------------------------------------------------------------------------------ data
def _data_of(
    config: Config, folder: Path, progress: bool, labeled: bool
) -> tuple[Config, Counts, str]:
    """The configuration to measure with, the counts of the recipe's data, and a note.

    Made-up images in ``folder`` stand in for a known data set that cannot be reached.
    """
    try:
        return config, count_images(config, progress, labeled), ""
    except UserError as error:
        name = config.data.train.partition("@")[0]
        if name not in HUB_SIZES:
            raise
        counts = known_counts(*HUB_SIZES[name], config.label_set)
        return _stand_in(config, folder), counts, f"Measured on made-up images: {error}.\n"


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
    return replace(config, data=config.data.of_another(str(folder)), labels="10perclass")


# ------------------------------------------------------------------------------- what is measured
def _measure(
    method: str, run: RunStage, config: Config, accelerator: Accelerator, cost: Cost, seconds: float
) -> Probe:
    """Run one stage on a small batch, then on as much of the recipe's as time and memory allow."""
    training = config.training_of(method)
    full, unit = training.batch_size, training.batch_unit
    in_memory = int(0.5 * free_bytes(accelerator) / cost.activations)
    slow = int(1e11 * seconds / cost.update)  # so many are in time on any machine
    batch = min(full, max(2 * unit, min(32, in_memory, slow) // unit * unit))
    probe = _run_for(2, batch, method, run, config, accelerator)
    in_time = int(seconds / (4 * probe.seconds_per_image))  # images of one of four steps
    batch = max(batch, min(full, in_memory, in_time) // unit * unit)
    seconds_per_step = batch * probe.seconds_per_image
    if 4 * seconds_per_step < seconds:
        steps = min(200, max(4, int(seconds / seconds_per_step)))
        probe = _run_for(steps, batch, method, run, config, accelerator)
    fixed = probe.fixed_seconds
    half = batch // 2 // unit * unit
    if batch == full or not half:
        return Probe(batch, probe.seconds_per_image, fixed)
    smaller = _run_for(2, half, method, run, config, accelerator)
    return Probe(batch, _in_full_batch(full, batch, probe, half, smaller), fixed)


def _in_full_batch(full: int, batch: int, probe: Probe, half: int, smaller: Probe) -> float:
    """Seconds per image in the recipe's batch, from those in a batch and in about half of it.

    What a step takes besides its images, such as the update, is less per image in a full batch.
    """
    each = probe.seconds_per_image
    one_more = (batch * each - half * smaller.seconds_per_image) / (batch - half)
    one_more = min(max(one_more, each / 5), each)  # the clock trembles
    return one_more + (each - one_more) * batch / full


def _run_for(
    steps: int,
    batch_size: int,
    method: str,
    run: RunStage,
    config: Config,
    accelerator: Accelerator,
) -> Probe:
    """Run a stage with another length and batch; the rest of the configuration stays."""
    training = replace(
        config.training_of(method).with_batch(batch_size),
        steps=steps,
        least_epochs=0.0,
        warmup_epochs=0.0,
        log_every_steps=max(1, steps // 4),
        checkpoint_every_steps=10**9,
    )
    section: dict[str, Any] = {training.section: training}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # else a later stage shows the largest of all
    short = replace(config, force="all", **section)
    began = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run(short, accelerator)
    seconds = time.monotonic() - began
    folder = short.folder_of(method)
    log = (folder / "metrics.jsonl").read_text().splitlines()
    if not any(method in other.made_from for other in METHODS.values()):
        shutil.rmtree(folder)
    rates = [json.loads(line)["images_per_second"] for line in log]
    each = 1 / statistics.median(rates[1:])  # the first has the start in it
    return Probe(batch_size, each, max(0.0, seconds - steps * batch_size * each))


def _stage_plan(method: str, config: Config, counts: Counts, cost: Cost, probe: Probe) -> StagePlan:
    """Scale up what was measured."""
    training = config.training_of(method)
    images, steps = _length(method, config, counts)
    seen = steps * training.batch_size
    fixed = probe.fixed_seconds
    if not probe.batch_size and method in CLASSIFIERS:
        fixed = counts.test * cost.prediction / cost.update * probe.seconds_per_image
    not_probed = max(0, training.images_at_once - probe.batch_size)
    return StagePlan(
        method,
        images,
        steps,
        training.batch_size,
        cost.parameters,
        flops=cost.update * seen,
        seconds=seen * probe.seconds_per_image + fixed,
        fixed_seconds=fixed,
        peak_bytes=_peak_bytes() + not_probed * cost.activations,
        disk_bytes=4 * cost.parameters * (2 + OPTIMIZERS[training.optimizer].slots),
        probed_batch_size=probe.batch_size,
    )


def _peak_bytes() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# ------------------------------------------------------------------------------------------- text
def paper_table(config: Config, accelerator: Accelerator, images: int, rate: float) -> str:
    """What pretraining the paper's 13 networks would take with this recipe.

    Args:
        config: its image size and its pretraining.
        accelerator: its precision.
        images: that are trained on.
        rate: FLOP/s of the probe.
    """
    epochs, passes = config.pretrain.epochs, config.passes_of("pretrain")
    lines = [["network", "parameters", "GFLOPs/image", "days here", "H100-hours"]]
    for name in PAPER:
        recipe = replace(config, model=replace(config.model, encoder=name))
        size = network_size("pretrain", recipe, Counts(0, 0, 0, 0), accelerator.mixed_precision)
        flops = passes * size.flops * images * epochs
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
        costs = [f"{line.flops / 1e15:,.3g}", duration(line.seconds)]
        memory = [f"{peak:.1f} GiB", f"{disk:,.0f} MiB"]
        lines.append([line.stage, *(f"{n:,}" for n in counts), *costs, *memory, probed])
    device = f"CPU ({torch.get_num_threads()} threads)"
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name()
    return f"1 x {device}, {accelerator.mixed_precision}\n{aligned(lines)}"
