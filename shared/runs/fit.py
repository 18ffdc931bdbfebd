"""A recipe fitted to own images, to the machine and to the time.

This is what ``pipeline.py --data.train photos`` does where no ``--config`` is given. It starts from
``configs/image_folder.yaml`` on a GPU and from ``configs/small_machine.yaml`` elsewhere. It shrinks
what does not fit the images, measures every stage for a moment, and chooses the lengths by the
time. Options of the command line are never changed. The choice is kept in ``<run>/recipe.yaml`` and
holds for every later call, because measured speeds differ from call to call, and settings must not.
"""

import math
import os
import shlex
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from shared.config.command_line import KEPT, CommandLine, kept_origin, recipe_of
from shared.config.imported import pretraining_is_imported
from shared.config.methods import CLASSES_FITTED, CLASSIFIERS, METHODS
from shared.config.schema import RECIPES, Config
from shared.config.sections import Training
from shared.data import sources
from shared.data.cache import sample_sizes, smallest_side
from shared.data.images import MEMORY_LIMIT, UNLABELED
from shared.data.labels import draw_labels
from shared.runs.cost import Counts, cost_of
from shared.runs.forecast import LONG, StagePlan, measure, warnings_of
from shared.runs.redo import require_no_artifacts
from shared.runtime.errors import UserError
from shared.runtime.files import write_atomically
from shared.runtime.lock import SHORT, held
from shared.runtime.progress import counted, duration
from shared.training.device import free_bytes
from shared.training.schedule import schedule_of
from shared.training.stage import RunStage

USUAL_HOURS = 1.0  # what a machine without a GPU may take where no --budget is given
SPARED = 0.1  # share of the budget that the first choice leaves, because clocks tremble
MEASURED = 0.04  # share of the budget that measuring takes, about
FEW_LABELS = 0.25  # share of the budget that stages on the labels alone may take at full length
SHORTEST = 0.01  # times the recipe's length: so far a stage shrinks
SHORTEST_OF_FEW = 0.1  # the same of the stages on the labels; a few updates teach nothing
LONGEST = 5.0  # times the recipe's length: so far a large budget lengthens stages 1 and 3
CPU_FLOPS = 2.5e11  # of one core with AMX (docs/performance.md); others reach less
FEW = 20  # epochs of pretraining, of which fewer are worth a note
TAUGHT = 1_000  # labels, from which on the fine-tuned network teaches the student
TINY = 16  # images of fewer pixels per side are cropped in fractions of a pixel
LABELS = ("10pct", "25pct", "50pct", "100pct")  # of which the first with enough labels is taken


class Look(NamedTuple):
    """What is seen of the images before any is decoded.

    Attributes:
        counts: images for training, labels, test images, classes.
        side: the median of their shorter sides, in pixels; 0 where none could be read.
        longer: the median of their longer sides.
        equal: whether all have one size.
        labels: the label set, as ``--labels`` takes it; None where no classifier is to be trained.
    """

    counts: Counts
    side: int
    longer: int
    equal: bool
    labels: str | None


# --------------------------------------------------------------------------------- the whole choice
def fit(
    line: CommandLine, accelerator: Accelerator, stages: Mapping[str, RunStage], began: float
) -> "tuple[Config, Pace | None]":
    """Choose the settings, say why, and keep them.

    Args:
        line: the command line; its flags are left as they are.
        accelerator: of this process.
        stages: by the method's name, in their order; stage 1 alone where there are no labels yet.
        began: when the command was called, in seconds since 1970.

    Returns:
        The configuration, and with a budget what keeps to it.

    Raises:
        UserError: the data cannot be opened, the budget is too short, it is asked for on several
            processes, the run has artifacts but no recipe, or another process has chosen for it
            meanwhile.
    """
    if line.config.budget and accelerator.num_processes > 1:
        raise UserError(
            "--budget measures one process; leave it out, or call python pipeline.py without a"
            " launcher"
        )
    if line.origin == "open":
        require_no_artifacts(line.config)
    on_cpu = accelerator.device.type == "cpu"
    if not on_cpu:
        line = line.with_recipe(RECIPES / "image_folder.yaml")
    config, flags, pace, notes = line.config, line.flags, None, []
    look = look_at(config, flags, bool(stages.keys() & CLASSIFIERS))
    if look.labels and "labels" not in flags:
        config = replace(config, labels=look.labels)
    config = fit_size(config, flags, look, on_cpu)
    wanted = {name: stage for name, stage in stages.items() if config.asks_for(name)}
    config = fit_batches(config, flags, look.counts, accelerator, wanted)
    config = fit_warmups(config, flags, look.counts)
    config = fit_teacher(config, flags, look.counts)
    trained_ones = [name for name in wanted if not METHODS[name].fitted]
    may_change = any(is_free(METHODS[name].section, flags) for name in trained_ones)
    if accelerator.num_processes == 1 and (may_change or config.budget):
        config = fit_threads(config, flags, accelerator, wanted)
        config, plans = fit_lengths(config, flags, look.counts, accelerator, wanted, began)
        notes = warnings_of(plans, accelerator)
        expected = time.time() - began + sum(plan.seconds for plan in plans)
        peak = max(plan.peak_bytes for plan in plans)
        notes.insert(0, f"Expected: {duration(expected)} and {peak / 2**30:.1f} GiB of memory.")
        by_epochs = "pretrain" in wanted and not config.pretrain.steps
        if config.budget_seconds and by_epochs and config.pretrain.epochs < FEW:
            notes.append(note_on_few(config.pretrain.epochs))
        if config.budget_seconds:
            pace = Pace(plans, began + config.budget_seconds, flags, look)
    else:
        notes.append("The time was not measured.")
    if accelerator.num_processes > 1:  # memory that is free differs from process to process
        (config,) = broadcast_object_list([config])
    keep_first(line, config, look.labels, accelerator)
    accelerator.print(_reasons(config, flags, look, on_cpu, wanted), *notes, sep="\n")
    return config, pace


def note_on_few(epochs: float) -> str:
    """What is said of fewer than ``FEW`` epochs; at least 1.1 times, so never the same budget."""
    times = max(FEW / epochs, 1.1)
    return (
        f"note: {epochs:g} epochs of pretraining are few; for {FEW} give about {times:.1f} times"
        " the budget"
    )


def settings_as_before(config: Config) -> str:
    """One line for a run whose settings were chosen by an earlier call."""
    also = ""
    if config.budget:
        also = (
            "; --budget was for that choice (anew, from this pretraining: --run NAME"
            f" --pretrain.init {shlex.quote(str(config.folder))}; stages 2 and 3 alone:"
            " --finetune.steps N, --distill.epochs N, --force finetune,distill)"
        )
    return f"settings as chosen before: {config.folder / KEPT}{also}"


def keep_first(
    line: CommandLine, config: Config, labels: str | None, accelerator: Accelerator
) -> None:
    """`keep` a first choice, unless another process was first.

    Raises:
        UserError: it was. Its choice stays.
    """
    if not accelerator.is_main_process or config.plan:
        return
    kept = config.folder / KEPT
    with held(kept, patience=SHORT):
        if kept_origin(kept)[0] != line.origin:
            raise UserError(
                f"another process has chosen the settings of this run meanwhile: {kept}; wait for"
                " its end, then the same command goes on with them, or give another --run"
            )
        keep(config, labels, line.flags, accelerator)


def keep(
    config: Config, labels: str | None, flags: Collection[str], accelerator: Accelerator
) -> None:
    """Write the choice into the run's folder, unless it is only a plan."""
    if accelerator.is_main_process and not config.plan:
        write_atomically(config.folder / KEPT, recipe_of(config, labels, flags))


def change(config: Config, flags: Collection[str], options: Mapping[str, Any]) -> Config:
    """The configuration with these options, such as ``{"pretrain.epochs": 3}``, but for flags.

    Raises:
        UserError: a flag and an option contradict each other.
    """
    sections: dict[str, dict[str, Any]] = {}
    for option, value in options.items():
        section, _, name = option.partition(".")
        if option not in flags:
            sections.setdefault(section, {})[name] = value
    try:
        parts = {name: replace(getattr(config, name), **part) for name, part in sections.items()}
        return replace(config, **parts)
    except ValueError as error:
        raise UserError(f"the settings cannot be fitted to this flag: {error}") from error


def trained(config: Config, methods: Iterable[str] = METHODS) -> dict[str, Training]:
    """What is trained in steps: the methods, and the sections that say how."""
    sections = {name: config.training_of(name) for name in METHODS if name in set(methods)}
    return {name: part for name, part in sections.items() if isinstance(part, Training)}


# ----------------------------------------------------------------------------- what the images ask
def look_at(config: Config, flags: Collection[str], labeled_ones: bool = True) -> Look:
    """Open the images without decoding them, and choose a label set where none is named."""
    data = replace(config.data, loading="workers", cache=None)
    splits = sources.look_at(data, config.label_set)
    classes, labeled = len(splits.train.classes), 0
    label_sets = [config.labels] if "labels" in flags else LABELS
    if (
        "labels" not in flags
        and (splits.train.labels[splits.train.training_ids] == UNLABELED).any()
    ):
        label_sets = LABELS[-1:]  # few have a label, and all of these are for training
    for text in label_sets if labeled_ones else ():
        config = replace(config, labels=text)
        try:
            labeled = len(draw_labels(splits, config.label_set.before_choice, config.seed).ids)
        except UserError:
            if text == LABELS[-1] or "labels" in flags or not classes:
                raise
            continue
        if labeled >= 5 * classes:
            break
    sizes = sample_sizes(splits.train)  # (k, 2)
    side, longer = np.median(sizes.min(1)), np.median(sizes.max(1))
    tested = len(splits.test) if splits.test else 0
    counts = Counts(len(splits.train), labeled, tested, classes)
    labels = "10pct" if "labels" in flags else config.labels
    labels = labels if labeled_ones else None
    return Look(counts, int(side), int(longer), len(np.unique(sizes, axis=0)) == 1, labels)


def fit_size(config: Config, flags: Collection[str], look: Look, on_cpu: bool) -> Config:
    """No more pixels than the images have; small copies of them where that saves decoding."""
    least = 8 if on_cpu else 32
    size = max(least, min(config.data.image_size, look.side))
    config = change(config, flags, {"data.image_size": size})
    if on_cpu:
        config = change(config, flags, {"data.workers": os.cpu_count() or 1})
    if look.side < TINY:
        low = max(0.4, config.augment.crop_area[0])
        whole = {"augment.crop_area": (1.0, 1.0), "augment.crop_min_covered": 0.0}
        if not {"augment.crop_area", "augment.zoom_area"} & set(flags):
            config = change(config, flags, {**whole, "augment.zoom_area": (low, 1.0)})
    images = look.counts.train + look.counts.test
    in_memory = look.equal and 3 * look.side * look.longer * images <= MEMORY_LIMIT
    crops = smallest_side(config.data.image_size, config.augment.crop_area)
    if not on_cpu or (in_memory and look.side <= crops) or "data.loading" in flags:
        return change(config, flags, {"data.cache": None})
    # of very many images the copies are smaller, down to what the network sees
    bytes_of_copy = 3 * crops**2 * max(look.longer, 1) / max(look.side, 1)
    share = min(1.0, psutil.virtual_memory().total / 4 / (bytes_of_copy * images))
    side = max(config.data.image_size, int(crops * math.sqrt(share)))
    return change(config, flags, {"data.cache": side})


def fit_batches(
    config: Config,
    flags: Collection[str],
    counts: Counts,
    accelerator: Accelerator,
    methods: Collection[str] = METHODS,
) -> Config:
    """Batches of at most half the images, and of what fits into memory, in powers of two."""
    for name, training in trained(config, methods).items():
        all_images = METHODS[name].all_images
        images = counts.train if all_images else 2 * max(counts.labeled, 8)
        key = f"{training.section}.batch_size"
        most = max(4, 2 ** int(math.log2(max(images // 2, 1))))
        config = change(config, flags, {key: min(training.batch_size, most)})
    for name in trained(config, methods):
        activations = cost_of(name, config, counts, accelerator.mixed_precision).activations
        memory = 0.6 * free_bytes(accelerator) * accelerator.num_processes
        room = int(memory / max(activations, 1))
        if name == "pretrain" and "distill.student" not in flags:
            batches = [training.batch_size for training in trained(config, methods).values()]
            if max(batches) <= room:  # an image of the other stages takes no more
                break
        training = config.training_of(name)
        if training.images_at_once > (room := max(room, 4)):
            config = change(config, flags, _smaller_batch(training, room))
    return config


def _smaller_batch(training: Training, room: int) -> dict[str, int]:
    """The option that makes a batch fit: parts that divide it evenly, or halved until it does."""
    size = training.batch_size
    if hasattr(training, "micro_batch"):
        parts = [part for part in range(2, room + 1) if size % part == 0]
        return {f"{training.section}.micro_batch": parts[-1]} if parts else {}
    while size > room:
        size //= 2
    return {f"{training.section}.batch_size": size}


def fit_warmups(config: Config, flags: Collection[str], counts: Counts) -> Config:
    """No warmup is longer than a tenth of its stage."""
    for name, training in trained(config).items():
        images = counts.train if METHODS[name].all_images else max(counts.labeled, 1)
        epochs = training.epochs
        if training.steps:
            epochs = training.steps * training.batch_size / images
        warmup = min(training.warmup_epochs, 0.1 * epochs)
        config = change(config, flags, {f"{training.section}.warmup_epochs": round(warmup, 3)})
    return config


def fit_teacher(config: Config, flags: Collection[str], counts: Counts) -> Config:
    """The fine-tuned network teaches where labels are not few, or where no other is made."""
    if counts.labeled < TAUGHT and counts.classes <= CLASSES_FITTED and config.classical.enabled:
        return config
    return change(config, flags, {"distill.taught_by": "finetune"})


# -------------------------------------------------------------------------------- what time allows
def is_free(section: str, flags: Collection[str]) -> bool:
    """Whether the command line leaves the length of a section's stages open."""
    return not {f"{section}.epochs", f"{section}.steps"} & set(flags)


def fit_threads(
    config: Config,
    flags: Collection[str],
    accelerator: Accelerator,
    stages: Mapping[str, RunStage],
) -> Config:
    """One thread where more are not faster: in small networks they mostly wait for one another."""
    every = torch.get_num_threads()
    if "threads" in flags or every == 1 or accelerator.device.type != "cpu":
        return config
    name = next(name for name in stages if not METHODS[name].fitted)  # stage 1, unless imported
    first = {name: stages[name]}
    seconds = {}
    for threads in (every, 1):
        torch.set_num_threads(threads)
        plans, *_ = measure(config, accelerator, first, 2.0)
        seconds[threads] = _moving(plans[0])
    threads = every if seconds[every] < 0.9 * seconds[1] else 1
    torch.set_num_threads(threads)
    return replace(config, threads=threads)


def fit_lengths(
    config: Config,
    flags: Collection[str],
    counts: Counts,
    accelerator: Accelerator,
    stages: Mapping[str, RunStage],
    began: float,
) -> tuple[Config, list[StagePlan]]:
    """Measure, and choose lengths: those of all stages shrink, those of stages 1 and 3 also grow.

    Returns:
        The configuration, and the plan of each stage with its length.

    Raises:
        UserError: the budget is too short.
    """
    budget = config.budget_seconds
    limit = budget or (3600 * USUAL_HOURS if accelerator.device.type == "cpu" else math.inf)
    plans, *_ = measure(config, accelerator, stages, min(30.0, max(3.0, MEASURED * limit)))
    room = (1 - SPARED) * limit - (time.time() - began)
    factors = share_out(plans, flags, room, LONGEST if budget else 1.0)
    # pretraining, or the distillation where that is done
    first = next((plan for plan in plans if METHODS[plan.stage].all_images), plans[0])
    passes = first.steps * first.batch_size / first.images
    if budget and first.stage in factors and factors[first.stage] * passes < 1:
        needed = sum(plan.fixed_seconds for plan in plans) + _moving(first) / passes
        least = time.time() - began + 2 * needed
        raise UserError(
            f"--budget {config.budget} is too short for {counted(counts.train, 'image')}: less than"
            f" one pass over them; give {duration(least)} or more, or fewer images"
        )
    few = [plan for plan in plans if plan.stage in factors and not METHODS[plan.stage].all_images]
    of_few = sum(map(_moving, few))
    if budget and few and factors[few[0].stage] < SHORTEST_OF_FEW:
        fixed = sum(plan.seconds for plan in plans) - sum(map(_moving, plans))
        needed = fixed + SHORTEST_OF_FEW * of_few / FEW_LABELS
        raise UserError(
            f"--budget {config.budget} is too short for the stages on the labels: less than"
            f" {SHORTEST_OF_FEW:.0%} of their length; give"
            f" {duration(time.time() - began + needed / (1 - SPARED))} or more"
        )
    factors = {name: max(factor, SHORTEST) for name, factor in factors.items()}
    config = lengthen(config, flags, factors)
    config = fit_warmups(config, flags, counts)
    return config, [_of_length(plan, config) for plan in plans]


def share_out(
    plans: Sequence[StagePlan],
    flags: Collection[str],
    room: float,
    longest: float,
    room_of_few: float = 0.0,
) -> dict[str, float]:
    """By how much the length of each stage is multiplied, so that all take ``room`` seconds.

    Args:
        plans: of the stages.
        flags: options whose stages keep their length.
        room: seconds for all.
        longest: the largest factor. Only stages on all images get one above 1: a few labels are
            learned by heart soon. Stages on the labels take seconds and decide what the others were
            good for: they shrink only where they would take more than ``FEW_LABELS`` of the time.
        room_of_few: seconds that stages on the labels may take at least, even beyond the room.
    """
    free = [plan for plan in plans if is_free(METHODS[plan.stage].section, flags)]
    room -= sum(plan.seconds for plan in plans) - sum(map(_moving, free))
    room = max(room, 0.0)
    few = [plan for plan in free if not METHODS[plan.stage].all_images]
    many = [plan for plan in free if METHODS[plan.stage].all_images]
    of_few, of_many = sum(map(_moving, few)), sum(map(_moving, many))
    least = room / (of_few + of_many) if of_few + of_many else 1.0
    room_of_few = max(room_of_few, FEW_LABELS * room)
    factor_few = min(1.0, max(least, room_of_few / of_few)) if of_few else 1.0
    factor_many = max(0.0, room - factor_few * of_few) / of_many if of_many else 1.0
    return {plan.stage: factor_few for plan in few} | {
        plan.stage: min(longest, factor_many) for plan in many
    }


def _moving(plan: StagePlan) -> float:
    """Seconds that grow with the length."""
    return plan.seconds - plan.fixed_seconds


def lengthen(config: Config, flags: Collection[str], factors: Mapping[str, float]) -> Config:
    """Multiply the lengths of these methods' sections, to two digits; none loses its last step."""
    lengths: dict[str, float] = {}
    for name, factor in factors.items():
        training = config.training_of(name)
        key = f"{training.section}.{'steps' if training.steps else 'epochs'}"
        length = _two_digits(factor * (training.steps or training.epochs))
        lengths[key] = max(1, int(length)) if training.steps else length
    return change(config, flags, lengths)


def _two_digits(number: float) -> float:
    """Rounded down to two significant digits: the speed is not known to more."""
    digit = 10.0 ** (math.floor(math.log10(number)) - 1) if number > 0 else 1.0
    return round(math.floor(number / digit + 1e-9) * digit, 6)


def _of_length(plan: StagePlan, config: Config) -> StagePlan:
    """The plan with the number of updates that the configuration now asks for."""
    training: Training = config.training_of(plan.stage)
    steps = schedule_of(training, plan.images).steps
    factor = steps / plan.steps
    seconds = plan.fixed_seconds + factor * _moving(plan)
    return replace(plan, steps=steps, flops=factor * plan.flops, seconds=seconds)


class Pace:
    """Keeps a run within its budget: after each stage it looks at the clock.

    A stage that has not begun becomes shorter where those before took longer than was measured; the
    last one also uses up what they left. Stages on the labels are spared as by `share_out`, by the
    whole budget: however slow the pretraining was, fine-tuning in a few steps would waste it.

    Args:
        plans: of the stages, in their order.
        deadline: when all is to be done, in seconds since 1970.
        flags: options that stay as they are.
        look: what is seen of the images.
    """

    def __init__(
        self, plans: Sequence[StagePlan], deadline: float, flags: Collection[str], look: Look
    ):
        self.plans = {plan.stage: plan for plan in plans}
        self.deadline, self.flags, self.look = deadline, flags, look
        self._planned = self._spent = 0.0  # seconds of the stages that are done
        self._running, self._since = "", time.time()
        self._room_of_few = FEW_LABELS * (deadline - self._since)

    def before(self, method: str, config: Config, accelerator: Accelerator) -> Config:
        """The configuration for a stage and those after it."""
        now, names = time.time(), list(self.plans)
        if self._running in self.plans:
            self._planned += self.plans[self._running].seconds
            self._spent += now - self._since
            if not METHODS[self._running].all_images:
                self._room_of_few -= now - self._since
        self._running, self._since = method, now
        if method not in self.plans:
            return config
        rest = [self.plans[name] for name in names[names.index(method) :]]
        slowness = 1.0
        if self._planned > 5:
            slowness = min(max(self._spent / self._planned, 0.3), 4.0)
        section = METHODS[method].section
        begun = any(
            config.folder_of(name).exists()
            for name, other in METHODS.items()
            if other.section == section
        )
        if begun or not is_free(section, self.flags):
            return config
        spare = 3.0 if len(rest) > 1 else 1.0  # the table, and the end of the process
        room, few = (self.deadline - now - spare) / slowness, self._room_of_few / slowness
        longest = 1.0
        if len(rest) == 1:  # it grows into what the others left, but for what clocks tremble
            longest, room = 2.0, max((1 - SPARED) * room, min(room, rest[0].seconds))
        factor = max(share_out(rest, self.flags, room, longest, few)[method], SHORTEST)
        if 0.95 < factor < 1.1:
            return config
        config = lengthen(config, self.flags, {method: factor})
        config = fit_warmups(config, self.flags, self.look.counts)
        keep(config, self.look.labels, self.flags, accelerator)
        self.plans[method] = _of_length(self.plans[method], config)
        training = config.training_of(method)
        epochs = f"{training.epochs:g} epochs"
        length = counted(training.steps, "step") if training.steps else epochs
        accelerator.print(f"{method}: {length} now, to end within the budget")
        return config


# ------------------------------------------------------------------------ recipes taken as they are
def warnings_for(config: Config, counts: Counts, accelerator: Accelerator) -> list[str]:
    """One line each where a recipe's pretraining takes days on a CPU, or more memory than is there.

    It is counted, not measured, and only for images that are not small.
    """
    warnings: list[str] = []
    if accelerator.device.type != "cpu" or config.data.image_size < 64:
        return warnings
    if pretraining_is_imported(config):
        return warnings
    training = config.pretrain
    cost = cost_of("pretrain", config, counts, accelerator.mixed_precision)
    images = schedule_of(training, counts.train).steps * training.batch_size
    seconds = cost.update * images / (CPU_FLOPS * (os.cpu_count() or 1))
    needed, there = cost.activations * training.images_at_once, psutil.virtual_memory().total
    advice = "without --config the settings are fitted to this machine; --plan tells more"
    if seconds > LONG:
        warnings.append(f"warning: pretraining takes {duration(seconds)} or more here; {advice}")
    if needed > there:
        warnings.append(
            f"warning: pretraining needs {needed / 2**30:.0f} GiB of memory or more, here are"
            f" {there / 2**30:.0f}; {advice}"
        )
    return warnings


# ------------------------------------------------------------------------------------------- text
def _if_albums(config: Config) -> str:
    """What to do where folders that are taken as classes are none; empty where none is."""
    folders = Path(config.data.train).expanduser().is_dir() and config.data.class_folders
    if not folders or config.label_set.csv_file or config.data.test:
        return ""
    return " (if its folders are albums, no classes: --run NEW --data.class_folders false)"


def _reasons(
    config: Config, flags: Collection[str], look: Look, on_cpu: bool, stages: Collection[str]
) -> str:
    """One paragraph: what is there, what was chosen for these stages, and why."""
    counts, data, imported = look.counts, config.data, pretraining_is_imported(config)
    cores = counted(os.cpu_count() or 1, "core")
    machine = f"{cores} and no GPU" if on_cpu else f"one {torch.cuda.get_device_name()} per process"
    seen = f"typically {look.longer} x {look.side} pixels" if look.side else "none readable so far"
    why = "small networks, because large ones take days on a CPU" if on_cpu else "large networks"
    why = "the imported network and its student" if imported else why
    low, high = config.augment.crop_area
    crops = f"crops of {100 * low:g}% to {100 * high:g}% of an image"
    if config.augment.zoom_area[0] < low:
        crops = f"zooms to {100 * config.augment.zoom_area[0]:g}% of an image or more"
    size = f"{data.image_size} pixels"
    if on_cpu and "data.image_size" not in flags and not imported and look.side > data.image_size:
        size += (
            " with any budget (twice as many a side take four times as long, and these networks are"
            " for small images; --data.image_size decides)"
        )
    copies = f"; photos are shrunk once to {data.cache} pixels" if data.cache else ""
    lengths = [
        f"{title} {training.epochs:g} epochs of batches of {training.batch_size}"
        if not training.steps
        else f"{title} {counted(training.steps, 'step')}"
        for title, training in (
            ("pretraining", config.pretrain),
            ("fine-tuning", config.finetune),
            ("distillation", config.distill),
        )
        if training in trained(config, stages).values()
    ]
    time_given = f"a budget of {config.budget}" if config.budget else "no --budget"
    kept = f"kept in {config.folder / KEPT}" if not config.plan else "not kept, as it is a plan"
    labels = f"{counted(counts.labeled, 'label')} of {counted(counts.classes, 'class', 'classes')},"
    labels += f" {counts.test:,} for testing{_if_albums(config)}"
    labels = labels if look.labels else "for stage 1 alone, without labels"
    return (
        f"settings fitted to {config.data.train}: {counted(counts.train, 'image')} for training,"
        f" {labels}, {seen}; {machine}; {time_given}. Chosen: {why}"
        f" ({config.model.encoder} teaches {config.distill.student}), at {size}"
        f"{copies}; {crops}; {'; '.join(lengths)}. Flags win over all of it; it is {kept}, and"
        " another --run chooses anew."
    )
