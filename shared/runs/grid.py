"""A grid of runs: which artifacts the cells of a table need, and how the missing ones are made.

A cell is one row, one column and one label draw (seed) of a table. It needs one classifier, and
that needs the artifacts it is made from. An artifact lies in the run's own folder if everything
that it depends on is as in the run's recipe. Else it lies in ``variants/<what differs>``. So the
cells of all tables share their artifacts, and they use what the pipeline made.
"""

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NotRequired, TypedDict, cast

from accelerate import Accelerator

from shared.config.command_line import override, placed, read_config
from shared.config.imported import first_pretraining, named_folders
from shared.config.labelset import LabelSet
from shared.config.methods import METHODS, depends_on
from shared.config.schema import VARIANTS, Config, dump, hashed_settings
from shared.config.sections import Classical, Data, Distill, Finetune
from shared.data.images import Splits
from shared.data.labels import draw_labels, read_choice
from shared.data.sources import look_at, open_data
from shared.networks.build import require_weights
from shared.pretext.build import make_task
from shared.runs.assessment import Baselines, read_assessment
from shared.runs.forecast import NOTHING_TRAINED, forecast_table
from shared.runs.possible import require_possible as refuse_impossible
from shared.runs.redo import changed_options
from shared.runs.statistics import BaselineResult, CellLine, summarize
from shared.runs.table import BASELINES, Table, dump_table, load_table, settable_options
from shared.runs.text import render
from shared.runtime.artifacts import ClassifierMeta, Result, read_meta
from shared.runtime.distributed import gather_all
from shared.runtime.errors import CannotWriteError, UserError
from shared.runtime.files import clean, did_you_mean, require_no_link, write_atomically
from shared.runtime.lock import SHORT, BusyError, held, release_all, take
from shared.runtime.media import abbreviated, say, say_block
from shared.runtime.progress import counted
from shared.runtime.records import listed, mismatch, read_lines
from shared.runtime.stop import Stopped, StopRequest
from shared.training.evaluate import WITHOUT_TOP5
from shared.training.stage import RunStage, require_an_image_each

# options of the data that decide how images are shown, and not which they are
_SHOWN = {name: getattr(Data, name) for name in ("image_size", "antialias", "mean", "std")}


@dataclass(frozen=True)
class Job:
    """One artifact.

    Attributes:
        method: of ``METHODS``, or assess.
        config: the configuration for its stage.
        path: its folder.
        parents: the artifacts that it is made from.
        suggested_by: the pretraining of its repetition, where that suggests its labels.
    """

    method: str
    config: Config
    path: Path
    parents: tuple["Job", ...] = ()
    suggested_by: "Job | None" = None

    @property
    def needs(self) -> tuple["Job", ...]:
        """All that has to be made before."""
        return (self.suggested_by, *self.parents) if self.suggested_by else self.parents

    @property
    def done(self) -> bool:
        """Whether it is there, made with whatever settings."""
        if self.method == "assess":
            there = (self.path / "assess.json").exists()
            return there and "baselines" in read_assessment(self.path)
        return (self.path / "meta.json").exists()


@dataclass(frozen=True)
class Cell:
    """One row, column and repetition; ``job`` makes it, or ``impossible`` says why none can."""

    row: str
    column: str
    method: str
    labels: str
    seed: int
    vary: dict[str, Any]
    job: Job | None = None
    impossible: str = ""


# ---------------------------------------------------------------------------- what a table needs
def expand(table: Table, config: Config) -> list[Cell]:
    """All cells of a table, in the order in which they are to be filled: seed after seed."""
    base = replace(config, table=None, plan=False)
    variants: dict[str, Config | str] = {}  # all seeds share one; or why the options are refused
    cells = []
    for seed, *choices in zip(table.seeds, *table.vary.values(), strict=True):
        vary = dict(zip(table.vary, choices, strict=True))
        repetition = _override(base, table.base | vary)
        for (row, of_row), (column, of_column) in product(
            table.rows.items(), table.columns.items()
        ):
            options = table.base | of_column | of_row | vary
            method = options.pop("method", "finetune")
            labels = str(options.pop("labels", base.labels))
            key = json.dumps(options, sort_keys=True)
            if key not in variants:
                variants[key] = _override(base, options)
            cell = Cell(row, column, method, labels, seed, vary)
            cells.append(_with_job(cell, variants[key], base, repetition))
    return cells


def _override(base: Config, options: Mapping[str, Any]) -> Config | str:
    options = {name: options[name] for name in options if name not in ("method", "labels")}
    try:
        return override(base, options)
    except UserError as error:
        return str(error)


def _with_job(cell: Cell, variant: Config | str, base: Config, repetition: Config | str) -> Cell:
    """The cell with what makes it.

    Args:
        cell: without it.
        variant: the cell's configuration, or why its options are refused.
        base: the run's.
        repetition: the configuration that all rows and columns have in common, or likewise.
    """
    if isinstance(variant, str):
        return replace(cell, impossible=variant)
    config, by = replace(variant, labels=cell.labels, seed=cell.seed), None
    try:
        if config.label_set.suggested:
            if isinstance(repetition, str):
                return replace(cell, impossible=repetition)
            if refusal := _other_images(config, repetition):
                return replace(cell, impossible=refusal)
            by = _suggested_by(repetition, base)
        return replace(cell, job=make_job(cell.method, config, base, by))
    except ValueError as error:  # the options of a parent, taken alone
        return replace(cell, impossible=str(error))


def _other_images(config: Config, repetition: Config) -> str:
    """Why the images of a cell cannot be suggested: they are others than the repetition's."""
    ours, common = (hashed_settings(each.data, "data") for each in (config, repetition))
    for option in ours:
        if ours[option] != common[option]:
            return (
                f"labels={config.labels} are suggested for all rows and columns by one pretraining,"
                f" which has {option}={common[option]} and not {ours[option]}; set it in the"
                " table's base"
            )
    return ""


def _suggested_by(repetition: Config, base: Config) -> Job | None:
    """The pretraining that suggests the labels of all rows; None where the run names another's."""
    if not base.suggested_by:
        return make_job("pretrain", repetition, base)
    return make_job("pretrain", base, base) if base.suggests_itself else None


def make_job(method: str, config: Config, base: Config, suggested_by: Job | None = None) -> Job:
    """The artifact of a method under ``config``, and where it lies in the run of ``base``.

    Every option that the artifact does not depend on is set back to ``base``. The pretraining
    ``suggested_by`` chooses its labels, where one does.
    """
    if method in BASELINES:
        return _assess_job(config, base, suggested_by)
    if method == "pretrain":  # which has neither labels nor a label draw
        alone = _alone(method, config, base)
        return Job(method, alone, alone.folder_of(method))
    alone = _alone(method, config, base, suggested_by)
    alone = replace(alone, labels=config.labels, seed=config.seed)
    path = alone.folder_of(method)
    kinds = config.parents_of(method)
    if kinds == ("pretrain",) and _given_pretraining(method, config):
        kinds = ()
    parents = tuple(make_job(kind, config, base, suggested_by) for kind in kinds)
    if any(parent.path.parent != path.parent for parent in parents):
        alone = _with_parents(alone, method, parents)
    return Job(method, alone, path, parents, suggested_by)


def _assess_job(config: Config, base: Config, suggested_by: Job | None) -> Job:
    """The assessment whose baselines a cell shows; it needs the pretrained features."""
    if given := config.linear.init:  # whose features they are
        linear = replace(base.linear, init=given)
        alone, parents = _alone("linear", replace(config, linear=linear), base, suggested_by), ()
    else:
        parents = (make_job("pretrain", config, base),)
        alone = _alone("pretrain", config, base, suggested_by)
    assess = replace(alone.assess, parts="baselines")
    alone = replace(alone, labels=config.labels, seed=config.seed, assess=assess)
    if parents and alone.folder != parents[0].path.parent:  # where the features lie
        alone = replace(alone, linear=replace(alone.linear, init=str(parents[0].path)))
    return Job("assess", alone, alone.folder_of("assess"), parents, suggested_by)


def _given_pretraining(method: str, config: Config) -> bool:
    """Whether the option ``init`` of the method, or of each of its teachers, names a folder."""
    if "pretrain" in METHODS[method].made_from:
        return bool(config.option(f"{METHODS[method].section}.init"))
    parents = config.parents_of(method)
    return bool(parents) and all(_given_pretraining(parent, config) for parent in parents)


def _alone(method: str, config: Config, base: Config, suggested_by: Job | None = None) -> Config:
    """``base`` with the options of ``config`` that the artifact depends on, and its run's folder.

    A given pretraining takes the place of the run's own: then the options of the pretrained network
    have no effect. The pretraining that suggests labels stands in the folder's name, unless it is
    the run's own.
    """
    needed = {key for name in (*config.ancestors_of(method), method) for key in depends_on(name)}
    if _given_pretraining(method, config):
        needed -= {"model", "pretrain"}
    usual = settable_options(base)
    changes = {
        option: value
        for option, value in settable_options(config).items()
        if value != usual[option]
        and (option in needed or option.split(".")[0] in needed)
        and option not in METHODS[method].independent
    }
    sections: dict[str, dict[str, Any]] = {}
    for option, value in changes.items():
        section, name = option.split(".")
        sections.setdefault(section, {})[name] = value
    changed: dict[str, Any] = {
        name: replace(getattr(base, name), **part) for name, part in sections.items()
    }
    if suggested_by and suggested_by.path != base.folder_of("pretrain"):
        changes["suggested_by"] = suggested_by.path.parent.name
    if not changes:
        return base
    if suggested_by:
        changed["suggested_by"] = str(suggested_by.path.parent)
    slug = _slug(changes)
    require_no_link(base.folder / VARIANTS / slug, base.folder)
    return replace(base, **changed, output=str(base.folder / VARIANTS), run=slug)


def _with_parents(config: Config, method: str, parents: Sequence[Job]) -> Config:
    """The configuration that names the parents' folders, because not all are of this run.

    The two kinds of stages name it by options of their own: ``init`` is a pretraining, ``teacher``
    a classifier, or several.
    """
    section = getattr(config, METHODS[method].section)
    if isinstance(section, Finetune | Classical):
        section = replace(section, init=str(parents[0].path))
    elif isinstance(section, Distill):
        # a self-distilled teacher from another folder is a teacher like any other
        folders = tuple(str(parent.path) for parent in parents)
        section = replace(section, teacher=folders)
        if parents[0].method == "self-distill":  # whose options are read no more
            usual = {key: getattr(Distill, key) for key in ("self_ema", "self_confidence")}
            section = replace(section, self_first=False, **usual)
    return replace(config, **{METHODS[method].section: section})


def _slug(changes: Mapping[str, Any]) -> str:
    """A folder's name that says what differs: ``pretrain.temperature-0.5_model.head_layers-2``."""
    text = "_".join(f"{option}-{_short(value)}" for option, value in changes.items())
    name = re.sub(r"[^\w.]+", "-", text).strip("-")
    if len(name) > 120:
        name = f"{name[:110]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def _short(value: object) -> object:
    """A value for a folder's name: numbers in few digits, but different ones stay different."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return value
    sign, size = "minus" * (value < 0), abs(value)
    if isinstance(size, float) and float(f"{size:g}") == size:
        return f"{sign}{size:g}"
    return f"{sign}{size}"


def in_order(cells: Sequence[Cell]) -> list[Job]:
    """The artifacts of all cells, each once, parents first."""
    jobs = {job.path: job for cell in cells if cell.job for job in _with_ancestors(cell.job)}
    return list(jobs.values())


def _without_suggestions(job: Job) -> Job:
    """The job and its parents, as if its labels had been given."""
    return replace(job, suggested_by=None, parents=tuple(map(_without_suggestions, job.parents)))


def _with_ancestors(job: Job) -> Iterator[Job]:
    """An artifact after all that it needs; what several need comes as often."""
    for parent in job.needs:
        yield from _with_ancestors(parent)
    yield job


# --------------------------------------------------------------------------------------- filling
def fill(
    config: Config,
    accelerator: Accelerator,
    stages: Mapping[str, RunStage],
    flags: Collection[str] = (),
) -> None:
    """Run what the table ``config.table`` lacks, write it, print it; or plan it.

    Args:
        config: the run; its folder holds the artifacts and ``tables/<name>``.
        accelerator: of this process.
        stages: by the method's name, and assess: each makes its artifact, or finds it done.
        flags: options that were given on the command line: they win over the table's ``base``.

    Raises:
        UserError: on a table that cannot be read, or of which a row, a column or a seed has no
            possible cell, or of which other options made all that is there and nothing is to be
            made, unless it is a plan; on a disk that cannot be written; with several processes also
            on a batch with fewer images than processes, before anything trains, and on a job that
            fails, since the others may not have noticed.
        Stopped: after saving, where a signal asked for it; the table so far is written.
    """
    assert config.table
    table = load_table(config.table)
    base = {option: value for option, value in table.base.items() if option not in flags}
    table = replace(table, base=base)
    cells = [_with_label_file(cell) for cell in expand(table, config)]
    if "suggested_by" in flags and not any(LabelSet.parse(c.labels).suggested for c in cells):
        raise UserError(
            f"suggested_by={config.suggested_by}, but no row or column of table {table.name} has"
            " labels=<n>suggested; leave it out"
        )
    cells = _with_one_test_set(cells)
    _require_hope(cells)
    jobs, sound = in_order(cells), set[Path]()
    outdated = gather_all([_outdated(jobs)])[0]
    if outdated and not config.plan:
        others = (job for job in jobs if job.path not in outdated)
        if not any(map(_is_to_be_made, others)):  # the table that is there stays
            raise UserError(_told_outdated(jobs, outdated))
    splits = open_data(  # bad data stop here
        config.data, config.label_set, accelerator.is_local_main_process
    )
    _require_measurable(table, cells, len(splits.train.classes))
    for cell in cells:
        for job in _with_ancestors(cell.job) if cell.job else ():
            if job.method in METHODS and job.path not in sound:
                with _placed(cell):
                    require_an_image_each(job.config, job.method, accelerator.num_processes)
                    require_published(job, {other.path for other in jobs})
            sound.add(job.path)
    cells = with_reasons(cells, accelerator)
    require_possible(cells, accelerator)
    jobs = in_order(cells)
    if outdated and accelerator.is_main_process:
        say(f"{_told_outdated(jobs, outdated)}. As it is, these cells will fail")
    if config.plan:
        missing = [
            (job.method, job.config) for job in jobs if job.path in outdated or _is_to_be_made(job)
        ]
        rows = forecast_table(config, accelerator, stages, missing)
        folder = _write_files(config, table, {"plan.json": json.dumps(rows, indent=1) + "\n"})
        return say(f"the same numbers: {folder / 'plan.json'}; {NOTHING_TRAINED}")
    if accelerator.is_main_process:
        _write_files(config, table, _definition(config, table))
    failures: dict[Path, str] = {}
    try:
        _make(jobs, accelerator, stages, failures)
    except Stopped:
        with suppress(UserError):  # no cell is finished yet
            if accelerator.is_main_process:
                write_table(config, table, cells, failures)
        raise
    if accelerator.is_main_process:
        say_block("\n" + write_table(config, table, cells, failures))


def _require_measurable(table: Table, cells: Sequence[Cell], classes: int) -> None:
    """UserError where nothing would be measured of what the table shows."""
    if table.metric == "top5" and 0 < classes <= WITHOUT_TOP5:
        raise UserError(
            f"table {table.name}: metric=top5 is for more than {WITHOUT_TOP5} classes, and the"
            f" images have {classes}; take top1"
        )
    shares = {LabelSet.parse(cell.labels).share for cell in cells if cell.row == table.worth}
    if table.worth and len(shares - {None}) < 2:
        raise UserError(
            f"table {table.name}: worth={table.worth}: what labels are worth is read off a curve,"
            " which needs columns with two shares of the labels or more, such as 1pct and 10pct;"
            " leave worth out"
        )


def require_possible(cells: Sequence[Cell], accelerator: Accelerator) -> None:
    """UserError where a row, a column or a seed has no possible cell; a line on each other one.

    A row may be impossible in some columns alone, such as a layer that their head lacks.
    """
    _require_hope(cells)
    impossible = {(cell.row, cell.column): cell for cell in cells if not cell.job}
    for cell in impossible.values() if accelerator.is_main_process else ():
        say(f"impossible: row {cell.row}, column {cell.column}: {cell.impossible}", error=True)


def _require_hope(cells: Sequence[Cell]) -> None:
    for kind in ("row", "column", "seed"):
        possible = {getattr(cell, kind) for cell in cells if cell.job}
        for cell in cells:
            if getattr(cell, kind) not in possible:
                with _placed(cell):
                    raise UserError(cell.impossible)


def with_reasons(cells: Sequence[Cell], accelerator: Accelerator) -> list[Cell]:
    """The same cells; those that data, labels or a stage would refuse are impossible now.

    What is done is not asked again. The images are looked at, and not decoded. All processes go by
    the main one, as free memory may differ.
    """
    jobs = {job.path: job for cell in cells if cell.job for job in _with_ancestors(cell.job)}
    ask = _Asked(accelerator, set(jobs))
    # one set of images after the other, so that each is opened once
    ordered = sorted(jobs.values(), key=lambda job: repr((job.config.data, job.config.labels)))
    done = {job.path for job in ordered if _is_done(job)}
    own = {job.path: ask.why_impossible(job) for job in ordered if job.path not in done}
    reasons = gather_all([own])[0]  # of what is not done
    answers = []
    for cell in cells:
        ancestors = _with_ancestors(cell.job) if cell.job and cell.job.path in reasons else ()
        reason = next(filter(None, (reasons.get(job.path) for job in ancestors)), "")
        answers.append(replace(cell, job=None, impossible=reason) if reason else cell)
    return answers


class _Asked:
    """Asks of each job what its stage would refuse, and of equal ones once.

    Args:
        accelerator: of this process.
        own: folders that the table makes itself.
    """

    def __init__(self, accelerator: Accelerator, own: Collection[Path]):
        self.accelerator, self.own = accelerator, own
        self._images: tuple[str, Splits] | None = None
        self._labels: dict[str, int] = {}
        self._reasons: dict[str, str] = {}

    def why_impossible(self, job: Job) -> str:
        """Empty where nothing speaks against it."""
        apart = {"run": "r", "output": "r", "seed": 0, "labels": "1pct", "suggested_by": None}
        unseen = replace(job.config, **apart)
        parents = [replace(each.config, run="r", output="r") for each in job.parents[:1]]
        try:
            splits = self._open(job.config)
            number = 0 if job.method == "pretrain" else self._number(job.config, splits)
            labels = job.config.label_set
            distilled = job.method in METHODS and METHODS[job.method].stage == "distill"
            given = distilled and job.config.given_teachers(job.method)
            told = (labels.csv_file, labels.tag if given else "")  # teachers are of some labels
            key = repr((job.method, number, unseen, parents, told))
            if key not in self._reasons:
                self._reasons[key] = self._refusal(job, splits, number)
            return self._reasons[key]
        except UserError as error:
            return str(error)

    def _open(self, config: Config) -> Splits:
        key = repr((config.data, config.label_set.csv_file))
        if self._images is None or self._images[0] != key:
            self._images = key, look_at(config.data, config.label_set)
        return self._images[1]

    def _number(self, config: Config, splits: Splits) -> int:
        key = repr((config.data, config.labels, config.seed))
        if key not in self._labels:
            drawn = draw_labels(splits, config.label_set.before_choice, config.seed)
            self._labels[key] = len(drawn.ids)
        return self._labels[key]

    def _refusal(self, job: Job, splits: Splits, labels: int) -> str:
        if job.method not in METHODS:  # assess
            return ""
        pretraining = next((each.config for each in job.parents if each.method == "pretrain"), None)
        try:
            refuse_impossible(
                job.config, job.method, splits, labels, self.accelerator, self.own, pretraining
            )
            if job.method == "pretrain":
                make_task(job.config, self.accelerator).require(splits.train)
        except UserError as error:
            return str(error)
        return ""


@contextmanager
def _placed(cell: Cell) -> Iterator[None]:
    """Let an error name the row and the column."""
    try:
        yield
    except UserError as error:
        raise UserError(f"row {cell.row}, column {cell.column}: {error}") from error


def _with_label_file(cell: Cell) -> Cell:
    """An impossible cell where its file of labels is missing or is no file."""
    file = LabelSet.parse(cell.labels).file
    if cell.job is None or not file or file.is_file():
        return cell
    reason = f"cannot read the label file {file}: there is no such file{did_you_mean(file)}"
    return replace(cell, job=None, impossible=reason)


def _with_one_test_set(cells: Sequence[Cell]) -> list[Cell]:
    """Impossible cells where a label file draws other test images than the first cell has.

    They are drawn by the names that are labeled, so two files may have different ones.
    """
    kinds = {_images_of(cell, cell.job): cell.job.config for cell in cells if cell.job}
    files = Counter(data for data, _ in kinds)
    tested: dict[str, tuple[str, list[str]]] = {}
    refusals: dict[tuple[str, Path | None], str] = {}
    for (data, file), config in kinds.items():
        with suppress(UserError):  # `with_reasons` tells what is wrong with them
            test = look_at(config.data, config.label_set).test if files[data] > 1 else None
            if test is None:
                continue
            first, names = tested.setdefault(data, (config.labels, [*test.names]))
            if [*test.names] != names:
                refusals[data, file] = (
                    f"labels={config.labels} and labels={first} draw different test images, by the"
                    " names that are labeled; give both the same: --data.test"
                )
    reasons = [refusals.get(_images_of(cell, cell.job), "") if cell.job else "" for cell in cells]
    return [
        replace(cell, job=None, impossible=reason) if reason else cell
        for cell, reason in zip(cells, reasons, strict=True)
    ]


def _images_of(cell: Cell, job: Job) -> tuple[str, Path | None]:
    """What decides the test images of a cell's job: how its data are split, and a file of labels.

    Repetitions whose labels are varied may have images of their own.
    """
    data = replace(job.config.data, unlabeled=None, cache=None, loading="auto", **_SHOWN)
    return repr((data, cell.vary.get("labels"))), job.config.label_set.csv_file


def require_published(job: Job, own: Collection[Path]) -> None:
    """UserError where a job starts from weights that are not there, published ones or imported.

    Args:
        job: done ones need none.
        own: folders that the table makes itself.
    """
    with suppress(UserError):  # its stage will say that it is damaged
        if job.done:
            return
    require_weights(job.config, job.method)
    if job.method == "pretrain" and (first := first_pretraining(job.config, "transitive.init")):
        read_meta(first, "encoder")
    method = METHODS[job.method]
    named = [method.network] if method.own_input else []
    named += [f"{method.section}.init"] if "pretrain" in method.made_from else []
    for option in named:
        folder = job.config.option(option)
        if folder and Path(folder) not in own:
            read_meta(Path(folder), "encoder")


def _make(
    jobs: Sequence[Job],
    accelerator: Accelerator,
    stages: Mapping[str, RunStage],
    failures: dict[Path, str],
) -> None:
    """Make every job; one that fails, or whose parent failed, is a new failure.

    What another command is making, and what needs that, waits until the rest is done.
    """
    clock, rest = _Clock(jobs), list(enumerate(jobs, 1))
    while rest:
        busy: dict[Path, BusyError] = {}
        later = []
        for number, job in rest:
            parents = [parent.path for parent in job.needs]
            if causes := [failures[path] for path in parents if path in failures]:
                failures[job.path] = causes[0]
                clock.leave_out(job)
                continue
            try:
                for path in parents:
                    if path in busy:
                        raise busy[path]
                _make_one(job, f"{number} of {len(jobs)}", accelerator, stages, failures, clock)
            except BusyError as error:
                if accelerator.num_processes > 1:
                    raise
                busy[job.path] = error
                later.append((number, job))
        if len(later) == len(rest):
            _wait(next(iter(busy.values())), clock)
        rest = later


def _wait(error: BusyError, clock: "_Clock") -> None:
    """Wait a moment for another command; one line says so, with the command's process."""
    if not clock.waits:
        say(f"the rest of the table is being made by others: {error}", error=True)
    clock.waits = True
    time.sleep(1.0)
    if StopRequest.agreed(0):
        raise Stopped("stopped as asked while others make the rest of the table")


def _make_one(
    job: Job,
    place: str,
    accelerator: Accelerator,
    stages: Mapping[str, RunStage],
    failures: dict[Path, str],
    clock: "_Clock",
) -> None:
    """Run the stage of a job; where it fails, that is a new failure.

    Raises:
        BusyError: another command is making it.
    """
    alone, forced = accelerator.num_processes == 1, job.config.forces(job.method)
    try:
        if alone and not _is_done(job):
            take(job.path)  # before the stage opens anything
        if _is_done(job):
            clock.leave_out(job)
        if job.path in clock.open:
            accelerator.print(f"[{place}{clock.left()}] {job.path}")
        began = time.perf_counter()
        stages[job.method](job.config, accelerator)
        clock.finish(job, time.perf_counter() - began)
    except CannotWriteError:
        raise
    except UserError as error:
        if not alone or (isinstance(error, BusyError) and not forced):
            raise
        if str(error) not in failures.values():
            say(f"failed: {error}", error=True)
        failures[job.path] = str(error)
        clock.leave_out(job)
        accelerator.free_memory()  # what was prepared; a stage that ends well does the same
    finally:
        release_all()  # also of a stage that failed


def _is_done(job: Job) -> bool:
    """Whether the artifact is there; of a damaged one its stage says so."""
    with suppress(UserError):
        return job.done
    return False


def _is_to_be_made(job: Job) -> bool:
    """Whether the artifact is not there, or is to be made again."""
    return job.config.forces(job.method) or not _is_done(job)


def _outdated(jobs: Sequence[Job]) -> dict[Path, dict[str, tuple[Any, Any]]]:
    """What was made, or begun, with other options than those of now: folder -> before and now."""
    found: dict[Path, dict[str, tuple[Any, Any]]] = {}
    for job in jobs:
        with suppress(UserError):  # of a damaged one its stage says more
            if job.method in METHODS and (changes := changed_options(job.config, job.method)):
                found[job.path] = changes
    return found


def _told_outdated(
    jobs: Sequence[Job], outdated: Mapping[Path, Mapping[str, tuple[Any, Any]]]
) -> str:
    """What was made with other options, and what to do."""
    methods = dict.fromkeys(job.method for job in jobs if job.path in outdated)
    changed = {key: values for changes in outdated.values() for key, values in changes.items()}
    told = [f"{key}={before}, now it is {now}" for key, (before, now) in changed.items()]
    more = f" and {counted(len(outdated) - 1, 'other artifact')}" if len(outdated) > 1 else ""
    return (
        f"{next(iter(outdated))}{more} {'were' if more else 'was'} made with"
        f" {abbreviated(told, 5)}; give this as it was, or another --run, or --force"
        f" {','.join(methods)}, which makes these methods again in all of the table, and what is"
        " made from them"
    )


class _Clock:
    """Estimates the time left: the mean seconds of each method, over the artifacts there are.

    A method that was never measured counts as the mean of the others, stage 1 left out, which takes
    many times as long. Before any of them was measured, only a least time is known.
    """

    def __init__(self, jobs: Sequence[Job]):
        self.seconds: dict[str, list[float]] = {}  # by method
        self.open: dict[Path, str] = {}  # folder -> method
        self.waits = False  # for other commands
        for job in jobs:
            self.open[job.path] = job.method
            with suppress(UserError):  # its stage will say that it is damaged
                if job.done:
                    del self.open[job.path]
                if job.done and job.method != "assess":
                    seconds = read_meta(job.path).get("seconds", 0.0)
                    self.seconds.setdefault(job.method, []).append(seconds)

    def finish(self, job: Job, seconds: float) -> None:
        """Note how long a job took; one that was done already says nothing."""
        if self.open.pop(job.path, None):
            self.seconds.setdefault(job.method, []).append(seconds)

    def leave_out(self, job: Job) -> None:
        """A job that cannot be made takes no time."""
        self.open.pop(job.path, None)

    def left(self) -> str:
        """``, about 12 min left``; nothing before anything was measured."""
        known = {method: mean(seconds) for method, seconds in self.seconds.items()}
        if not known:
            return ""
        usual = [seconds for method, seconds in known.items() if method != "pretrain"]
        unknown = mean(usual) if usual else 0.0
        left = sum(known.get(method, unknown) for method in self.open.values())
        sure = usual or known.keys() >= set(self.open.values())
        about = "about" if sure else "at least"
        return f", {about} {left / 60:.0f} min left" if left > 90 else f", {about} a minute left"


# --------------------------------------------------------------------------------- what is there
def read_cell(cell: Cell, run: Path, failures: Mapping[Path, str]) -> CellLine:
    """One line of ``cells.jsonl``: the cell, its status, its result."""
    line: CellLine = {
        "row": cell.row,
        "column": cell.column,
        "method": cell.method,
        "labels": LabelSet.parse(cell.labels).tag,
        "seed": cell.seed,
        "vary": cell.vary,
        "status": "missing",
        "message": "",
        "folder": "",
        "result": {},
    }
    if cell.job is None:
        return {**line, "status": "failed", "message": cell.impossible}
    line["folder"] = os.path.relpath(cell.job.path, run)
    if cell.job.path in failures:
        return {**line, "status": "failed", "message": failures[cell.job.path]}
    try:
        if not cell.job.done:
            return line
        if cell.method in BASELINES:
            result = _read_baseline(cell.method, cell.job)
        else:
            result = _read_result(cell.job)
    except UserError as error:
        return {**line, "status": "failed", "message": str(error)}
    return {**line, "status": "done", "result": result, **_budget(cell.job)}


class Budget(TypedDict):
    """What `CellLine` says of the budget of a cell."""

    updates: NotRequired[list[int]]
    cpu_seconds: NotRequired[float]


def _budget(job: Job) -> Budget:
    """The updates of each stage that an artifact is made from, and the CPU seconds of them all.

    A pretraining that only suggests labels does not count.
    """
    made = [each for each in _with_ancestors(_without_suggestions(job)) if each.method in METHODS]
    paths = dict.fromkeys(path for each in made for path in (*_given_to(each), each.path))
    metas = [read_meta(path) for path in paths if (path / "meta.json").exists()]
    budget: Budget = {}
    if updates := [meta["updates"] for meta in metas if "updates" in meta]:
        budget["updates"] = updates
    seconds = [meta["cpu_seconds"] for meta in metas if "cpu_seconds" in meta]
    if metas and len(seconds) == len(paths):
        budget["cpu_seconds"] = round(sum(seconds), 1)
    return budget


def _given_to(job: Job) -> list[Path]:
    """The artifacts that options name, which a method starts from or learns from."""
    method = METHODS[job.method]
    options = [f"{method.section}.init"] * ("pretrain" in method.made_from)
    options += ["distill.teacher"] * bool(job.config.given_teachers(job.method))
    return named_folders(job.config, options)


def _read_result(job: Job) -> Result:
    """The result of a method that was made as the job says; else UserError."""
    meta = cast(ClassifierMeta, read_meta(job.path))
    require_made_so(job)
    if "result" not in meta:
        raise UserError(f"{job.path} was never evaluated")
    if wrong := mismatch(meta["result"], Result, "its result"):
        raise UserError(f"{job.path}: {wrong}; redo it with --force {job.method}")
    return meta["result"]


def _read_baseline(name: str, job: Job) -> BaselineResult:
    """The result of a baseline, from ``assess.json``; UserError where it has none."""
    method, inputs = BASELINES[name]
    assessment = read_assessment(job.path)
    if reason := assessment["failed"].get("baselines"):
        raise UserError(f"{job.path}: {reason}")
    baselines = assessment.get("baselines", {"rows": []})
    if wrong := mismatch(baselines, Baselines, "the baselines"):
        raise UserError(f"{job.path} is damaged: {wrong}; run stages.assess again")
    _require_assessed_so(job)
    for row in baselines["rows"]:
        if (row["method"], row["input"]) == (method, inputs):
            n_test = assessment["about"]["n_test"]
            return {"n_labels": row["n_labels"], "n_test": n_test, "top1": row["top1"]}
    raise UserError(f"{job.path} has no {method} on {inputs}: every image is labeled")


def require_made_so(job: Job) -> None:
    """UserError where an artifact was made with other settings, or its parent was redone since.

    The stages say the same before they take an artifact for done; this needs no data.
    """
    settings = read_meta(job.path).get("settings", {})
    method = METHODS[job.method]
    expected: dict[str, Any] = {}
    for section in {key.partition(".")[0] for key in ("data", "augment", *method.depends)}:
        expected |= hashed_settings(getattr(job.config, section), section)
    for option in (*method.independent, method.network):
        expected.pop(option, None)  # the encoder may be that of another section
    for option, value in json.loads(json.dumps(expected)).items():
        if option in settings and settings[option] != value:
            raise UserError(
                f"{job.path} was made with {option}={settings[option]}, now it is {value}"
            )
    if job.config.label_set.suggested and job.method != "pretrain":
        _require_same_suggestions(job)
    noted = listed(settings.get("parent"))
    for number, parent in enumerate(job.parents):
        require_made_so(parent)
        if noted[number : number + 1] != [read_meta(parent.path)["weights_sha256"]]:
            raise UserError(f"{job.path} was made from another {parent.path} than lies there now")


def _require_assessed_so(job: Job) -> None:
    """UserError where an assessment is of another pretraining or other suggested labels."""
    for parent in job.parents:
        require_made_so(parent)
    if not (job.path / "meta.json").exists():  # a part of it failed; nothing says of what it is
        return
    source = Path(job.config.linear.init or job.config.folder_of("pretrain"))
    if read_meta(job.path)["weights_sha256"] != read_meta(source)["weights_sha256"]:
        raise UserError(
            f"{job.path} was made from another {source} than lies there now; pipeline.py --table"
            " makes it again"
        )
    if job.config.label_set.suggested:
        _require_same_suggestions(job)


def _require_same_suggestions(job: Job) -> None:
    """UserError where the labels are not those that the pretraining suggests now."""
    source, choice = job.config.suggesting, read_choice(job.config.label_set)
    again = f"make it again: --force {job.method}"
    weights = read_meta(source)["weights_sha256"]
    if choice.get("made_from", {}).get("weights", weights) != weights:
        raise UserError(
            f"the labels of {job.path} were suggested by another {source} than lies there now;"
            f" {again}"
        )
    labels = cast(ClassifierMeta, read_meta(job.path))["labels"]
    if choice.get("labels", labels["hash"]) != labels["hash"]:
        raise UserError(f"{job.path} was made with other labels than are suggested now; {again}")


def _refuse_other_images(cells: Sequence[Cell], lines: Sequence[CellLine]) -> None:
    """Fail the cells whose images are not those of the first cell with equal data options."""
    images_of: dict[str, list[Any]] = {}
    for cell, line in zip(cells, lines, strict=True):
        if cell.job is None or cell.job.method == "assess" or line["status"] != "done":
            continue
        settings = read_meta(cell.job.path).get("settings", {})
        images = [settings.get(key) for key in ("images", "test_images")]
        data = hashed_settings(cell.job.config.data) | _SHOWN
        data = json.dumps([data, cell.vary.get("labels")], default=str)
        if images != images_of.setdefault(data, images):
            line["status"], line["result"] = "failed", {}
            line["message"] = (
                f"{cell.job.path} was made of other images than the first cell; make it again:"
                f" --force {cell.job.method}"
            )


def write_table(
    config: Config, table: Table, cells: Sequence[Cell], failures: Mapping[Path, str]
) -> str:
    """Write ``<run>/tables/<name>/`` and return the table as text.

    Raises:
        UserError: where no cell is finished; a table written before stays then.
    """
    lines = [read_cell(cell, config.folder, failures) for cell in cells]
    _refuse_other_images(cells, lines)
    if not any(line["status"] == "done" for line in lines):
        messages = sorted({line["message"] for line in lines if line["message"]})
        reason = f": {messages[0]}" if messages else ""
        raise UserError(f"table {table.name}: no finished cell in {config.folder}{reason}")
    summary = summarize(table, lines)
    texts = render(summary, lines)
    files = {
        "cells.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "summary.json": json.dumps(summary, indent=1) + "\n",
        **{f"table.{suffix}": texts[suffix] for suffix in ("md", "csv", "tex")},
    }
    folder = _write_files(config, table, _definition(config, table) | files)
    return f"{texts['txt']}\n\nalso as Markdown, CSV and LaTeX in {folder}"


def _definition(config: Config, table: Table) -> dict[str, str]:
    """The files of a table that say what it is: with them `report` prints it while it is filled."""
    return {"config.yaml": dump(config), f"{table.name}.yaml": dump_table(table)}


def _write_files(config: Config, table: Table, files: Mapping[str, str]) -> Path:
    """Write files of a table, and return its folder."""
    folder = config.folder / "tables" / table.name
    require_no_link(folder, config.folder)
    with held(folder, patience=SHORT):
        clean(folder, alone=True)
        for name, text in files.items():
            write_atomically(folder / name, text)
    return folder


def read_cells(path: Path) -> list[CellLine]:
    """The lines of a ``cells.jsonl``; damaged ones are counted on standard error and left out."""
    lines, damaged = read_lines(path, CellLine)
    if damaged:
        say(f"{path}: {counted(damaged, 'line')} damaged and left out", error=True)
    return lines


def report(run: Path, name: str) -> str:
    """The table from what lies in the run's folder; nothing is trained.

    Raises:
        UserError: where the run or the table does not exist, or no cell is finished.
    """
    folder = run / "tables" / Path(name).stem
    written = folder / f"{folder.name}.yaml"  # with the flags of the call that filled the table
    table = load_table(str(written) if written.exists() else name)
    recipe = next((f for f in (folder, run) if (f / "config.yaml").exists()), None)
    if recipe is None:
        raise UserError(f"{run} is no run: it has no config.yaml{did_you_mean(run)}")
    config = read_config(recipe / "config.yaml")
    config = placed(config, run)
    cells = expand(table, config)
    jobs = {cell.job.path: cell.job for cell in cells if cell.job}
    failures = {}
    for line in read_cells(folder / "cells.jsonl"):
        path = run / line["folder"]
        if line["status"] == "failed" and path in jobs and not jobs[path].done:
            failures[path] = line["message"]
    return write_table(config, table, cells, failures)
