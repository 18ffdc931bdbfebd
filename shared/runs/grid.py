"""A grid of runs: which artifacts the cells of a table need, and filling what is missing.

A table is a YAML file in ``configs/tables``: rows and columns, each with the options that it
changes. A cell is one row, one column and one label draw (seed); it comes down to one classifier,
and that to the artifacts it is made from. An artifact lies in the run's own folder if everything
that it depends on is as the run's recipe says, and else in ``variants/<what differs>``. So the
cells of all tables share what they have in common, and what the pipeline made is used as it is.
"""

import difflib
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from accelerate import Accelerator

from shared.runtime.artifacts import read_json, read_meta, write_atomically
from shared.runtime.stop import Stopped
from shared.config.command_line import override, read_config
from shared.config.labelset import LabelSet
from shared.config.schema import (
    RECIPES,
    SECTIONS,
    Config,
    hashed_settings,
    dump,
)
from shared.data.sources import open_data
from shared.runtime.errors import CannotWriteError, UserError
from shared.runs.statistics import METRICS, render, summarize

# method -> the sections of the configuration that its artifact depends on
PRETRAINED = ("data", "augment", "model", "pretrain")
DEPENDS = {
    "pretrain": PRETRAINED,
    "supervised": ("data", "augment", "model", "supervised"),
    "supervised-student": ("data", "augment", "model", "supervised", "distill.student"),
    "linear": (*PRETRAINED, "linear"),
    "finetune": (*PRETRAINED, "finetune"),
    "self-distill": (*PRETRAINED, "finetune", "distill"),
    "distill": (*PRETRAINED, "finetune", "distill"),
}
# ... but not on these options of them
INDEPENDENT = {
    "supervised-student": ("model.encoder",),
    "self-distill": ("distill.student", "distill.temperature", "distill.self_first"),
}
# rows of the assessment (``stages.assess``): what scikit-learn makes of the same labels
BASELINES = {
    f"baseline: {method}, {rows}": (method, rows)
    for rows in ("pixels", "features")
    for method in ("logistic regression", "support vector machine", "self-training",
                   "label spreading")
}
METHODS = (*(method for method in DEPENDS if method != "pretrain"), *BASELINES)


@dataclass(frozen=True)
class Table:
    """What a table's YAML file says.

    Attributes:
        name: of the file.
        title: one line.
        rows: label -> options changed; ``method`` and ``labels`` besides those of the recipe.
        columns: likewise.
        base: options changed in every cell.
        seeds: of the label draws and of stages 2 and 3; a number n means 0 to n - 1.
        vary: option -> one value for each seed. So that repetitions differ in their pretraining or
            their test images too.
        metric: which measurement the table shows, of ``shared.runs.statistics.METRICS``.
        against: the row that the others are compared with; unset: the first.
        worth: the row whose accuracy over the number of labels says what the labels are worth.
        paper: source, and cells of the published table: row -> column -> value.
    """

    name: str
    title: str
    rows: dict[str, dict[str, Any]]
    columns: dict[str, dict[str, Any]]
    base: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    vary: dict[str, list[Any]] = field(default_factory=dict)
    metric: str = "top1"
    against: str | None = None
    worth: str | None = None
    paper: dict[str, Any] | None = None


def load_table(name: str) -> Table:
    """Read ``configs/tables/<name>.yaml``, or a path.

    Raises:
        UserError: no such file, no YAML of that form, an unknown key or method.
    """
    known = {file.stem: file for file in sorted((RECIPES / "tables").glob("*.yaml"))}
    file = known.get(name, Path(name))
    if not file.is_file():
        raise UserError(f"no table {name!r}; there are {', '.join(known)}, or give a YAML file")
    try:
        given = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return _table(file.stem, given)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error


def _table(name: str, given: Any) -> Table:
    if not isinstance(given, dict):
        raise ValueError("must have title, rows and columns")
    _only(given, [f.name for f in fields(Table) if f.name != "name"], "key")
    if missing := {"title", "rows", "columns"} - given.keys():
        raise ValueError(f"{', '.join(sorted(missing))} missing")
    given = {key: value for key, value in given.items() if value is not None}
    if not isinstance(given["title"], str):
        raise ValueError(f"title must be one line of text, got {given['title']!r}")
    if "paper" in given:
        paper = given["paper"]
        cells = paper.get("cells") if isinstance(paper, dict) and "source" in paper else None
        if not isinstance(cells, dict) or not all(isinstance(x, dict) for x in cells.values()):
            raise ValueError("paper must have source, and cells: row -> column -> value")
    for key in ("rows", "columns"):
        if not isinstance(given[key], dict) or not given[key]:
            raise ValueError(f"{key} must be a mapping from labels to options")
        given[key] = {str(label): options or {} for label, options in given[key].items()}
    options = ["method", "labels", *_flat(Config())]
    places = {"base": given.get("base", {}), "vary": given.get("vary", {})}
    places |= {f"{key}: {label}": value for key in ("rows", "columns")
               for label, value in given[key].items()}
    for place, changes in places.items():
        if not isinstance(changes, dict):
            raise ValueError(f"{place} must be a mapping from options to values, got {changes!r}")
        _only(changes, options, f"option in {place}")
        if "method" in changes:
            _only([changes["method"]], METHODS, f"method in {place}")
        labels = str(changes.get("labels", "1pct"))
        if place != "vary":
            try:
                LabelSet.parse(labels)
            except ValueError as error:
                message = str(error).replace("labels", f"labels in {place}", 1)
                raise ValueError(message) from error
    for (row, of_row), (column, of_column) in product(
        given["rows"].items(), given["columns"].items()
    ):
        if twice := of_row.keys() & of_column.keys():
            raise ValueError(f"row {row!r} and column {column!r} both set {', '.join(twice)}")
        if twice := (of_row.keys() | of_column.keys()) & places["vary"].keys():
            raise ValueError(f"vary sets {', '.join(twice)}, which row {row!r} or column"
                             f" {column!r} sets")
    seeds = given.get("seeds", 5)
    seeds = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise ValueError(f"seeds must be a number or a list of numbers, got {given['seeds']!r}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ from each other, got {seeds}")
    for key, values in places["vary"].items():
        if not isinstance(values, list) or len(values) != len(seeds):
            raise ValueError(f"vary: {key} must be a list of one value for each of the"
                             f" {len(seeds)} seeds, got {values!r}")
    _only([given.get("metric", "top1")], METRICS, "metric")
    for key in ("against", "worth"):
        _only([given[key]] if key in given else [], given["rows"], f"row in {key}")
    return Table(name, **{**given, "seeds": tuple(seeds)})


def _only(given: Collection[str], known: Collection[str], what: str) -> None:
    for name in given:
        if name not in known:
            section, _, option = str(name).partition(".")
            if what.startswith("option") and hasattr(getattr(Config(), section, None), option):
                raise ValueError(f"{what}: {name} is for the command line, not for a table")
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise ValueError(f"unknown {what}: {name}; {hint}")


@dataclass(frozen=True)
class Job:
    """One artifact.

    Attributes:
        method: of ``DEPENDS``, or assess.
        config: what its stage is to be run with.
        path: its folder.
        parents: what it is made from.
    """

    method: str
    config: Config
    path: Path
    parents: tuple["Job", ...] = ()

    @property
    def done(self) -> bool:
        """Whether it is there, made with whatever settings."""
        if self.method == "assess":
            return "baselines" in self.assessed()
        return (self.path / "meta.json").exists()

    def assessed(self) -> dict[str, Any]:
        """``assess.json``; empty where there is none."""
        file = self.path / "assess.json"
        return read_json(file) if file.exists() else {}


@dataclass(frozen=True)
class Cell:
    """One row, column and repetition; ``job`` makes it, or ``impossible`` says why none can."""

    row: str
    column: str
    method: str
    labels: str
    seed: int
    vary: dict[str, Any]
    job: Job | None
    impossible: str = ""


def expand(table: Table, config: Config) -> list[Cell]:
    """All cells of a table, in the order in which they are to be filled: seed after seed."""
    base = replace(config, table=None, plan=False)
    configs: dict[str, Config | str] = {}  # parsed once for all seeds; or the reason of refusal
    cells = []
    for seed, *values in zip(table.seeds, *table.vary.values(), strict=True):
        vary = dict(zip(table.vary, values, strict=True))
        for (row, of_row), (column, of_column) in product(
            table.rows.items(), table.columns.items()
        ):
            changes = table.base | of_row | of_column | vary
            method = changes.pop("method", "finetune")
            labels = str(changes.pop("labels", base.labels))
            key = json.dumps(changes, sort_keys=True)
            if key not in configs:
                try:
                    configs[key] = override(base, changes)
                except UserError as error:
                    configs[key] = str(error)
            variant = configs[key]
            cell = Cell(row, column, method, labels, seed, vary, None)
            if isinstance(variant, str):
                cells.append(replace(cell, impossible=variant))
                continue
            try:
                job = make_job(method, replace(variant, labels=labels, seed=seed), base)
                cells.append(replace(cell, job=job))
            except ValueError as error:  # the options of a parent, taken alone
                cells.append(replace(cell, impossible=str(error)))
    return cells


def make_job(method: str, config: Config, base: Config) -> Job:
    """The artifact of a method under ``config``, and where it lies in the run of ``base``.

    Everything that the artifact does not depend on is set back to ``base``.
    """
    if method in BASELINES:
        parent = make_job("pretrain", config, base)
        part = replace(parent.config.assess, parts="baselines")
        alone = replace(parent.config, labels=config.labels, seed=config.seed, assess=part)
        name = f"assess-{config.label_set.tag}-seed{config.seed}"
        return Job("assess", alone, alone.folder / name, (parent,))
    needed = DEPENDS[method]
    given = {"finetune": config.finetune.init, "linear": config.linear.init}
    init = given["linear" if method == "linear" else "finetune"]
    if init and "pretrain" in needed and method != "pretrain":
        needed = tuple(section for section in needed if section not in ("model", "pretrain"))
    now, usual = _flat(config), _flat(base)
    changes = {
        key: value
        for key, value in now.items()
        if value != usual[key]
        and (key in needed or key.split(".")[0] in needed)
        and key not in INDEPENDENT.get(method, ())
    }
    sections: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    alone = replace(base, **{k: replace(getattr(base, k), **v) for k, v in sections.items()})
    if changes:
        alone = replace(alone, output=str(base.folder / "variants"), run=_slug(changes))
    if method == "pretrain":
        return Job(method, alone, alone.folder / "pretrain")
    alone = replace(alone, labels=config.labels, seed=config.seed)
    path = alone.folder / f"{method}-{config.label_set.tag}-seed{config.seed}"
    if method.startswith("supervised"):
        return Job(method, alone, path)

    if method in ("finetune", "linear"):
        if init:
            return Job(method, alone, path)
        parent = make_job("pretrain", config, base)
        if parent.path.parent != path.parent:
            stage = replace(getattr(alone, method), init=str(parent.path))
            alone = replace(alone, **{method: stage})
        return Job(method, alone, path, (parent,))

    itself = method == "distill" and config.distill.self_first
    parent = make_job("self-distill" if itself else "finetune", config, base)
    if parent.path.parent != path.parent:
        # a self-distilled teacher from another folder is a teacher like any other
        first = alone.distill.self_first if method == "self-distill" else False
        stage = replace(alone.distill, teacher=str(parent.path), self_first=first)
        alone = replace(alone, distill=stage)
    return Job(method, alone, path, (parent,))


def _flat(config: Config) -> dict[str, Any]:
    """``{"pretrain.temperature": 1.0, ...}``: what decides the result, and given pretrainings."""
    flat = {k: v for name in SECTIONS for k, v in hashed_settings(getattr(config, name), name).items()}
    return flat | {"finetune.init": config.finetune.init, "linear.init": config.linear.init}


def _slug(changes: Mapping[str, Any]) -> str:
    """A folder's name that says what differs: ``pretrain.temperature-0.5_model.head_layers-2``."""
    shown = {k: f"{v:g}" if isinstance(v, float) else v for k, v in changes.items()}
    text = "_".join(f"{key}-{value}" for key, value in shown.items())
    name = re.sub(r"[^\w.]+", "-", text).strip("-")
    if len(name) > 120:
        name = f"{name[:110]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def in_order(cells: Sequence[Cell]) -> list[Job]:
    """The artifacts of all cells, each once, parents first."""

    def walk(job: Job) -> Iterator[Job]:
        for parent in job.parents:
            yield from walk(parent)
        yield job

    jobs = {job.path: job for cell in cells if cell.job for job in walk(cell.job)}
    return list(jobs.values())


def fill(
    config: Config,
    accelerator: Accelerator,
    stages: Mapping[str, Callable[[Config, Accelerator], object]],
    flags: Collection[str] = (),
) -> None:
    """Run what the table ``config.table`` lacks, write it, print it.

    Args:
        config: the run; its folder holds the artifacts and ``tables/<name>``.
        accelerator: of this process.
        stages: method -> what makes its artifact, or finds it done.
        flags: options that were given on the command line: they win over the table's ``base``.

    Raises:
        UserError: on a table that cannot be read, a disk that cannot be written; with several
            processes also on a job that fails, since the others may not have noticed.
        Stopped: after saving, where a signal asked for it; the table so far is written.
    """
    assert config.table
    table = load_table(config.table)
    base = {key: value for key, value in table.base.items() if key not in flags}
    table = replace(table, base=base)
    cells = expand(table, config)
    jobs = in_order(cells)
    open_data(config.data, config.label_set, accelerator.is_local_main_process)  # bad data stop here
    failures: dict[Path, str] = {}
    clock = _Clock(jobs)
    try:
        for number, job in enumerate(jobs, 1):
            lost = [failures[parent.path] for parent in job.parents if parent.path in failures]
            if lost:
                failures[job.path] = lost[0]
                continue
            if job.path in clock.open:
                accelerator.print(f"[{number} of {len(jobs)}{clock.left(job)}] {job.path}")
            try:
                with clock.measure(job):
                    stages[job.method](job.config, accelerator)
            except CannotWriteError:
                raise
            except UserError as error:
                if accelerator.num_processes > 1:
                    raise
                if str(error) not in failures.values():
                    print(f"failed: {error}", file=sys.stderr)
                failures[job.path] = str(error)
            accelerator.free_memory()  # it holds on to every model that it prepared
    except Stopped:
        with suppress(UserError):  # no cell is finished yet
            if accelerator.is_main_process:
                write_table(config, table, cells, failures)
        raise
    if accelerator.is_main_process:
        print("\n" + write_table(config, table, cells, failures))


class _Clock:
    """Estimates the time left from the artifacts there are: the mean of each method."""

    def __init__(self, jobs: Sequence[Job]):
        self.taken: dict[str, list[float]] = {}
        self.open: dict[Path, str] = {}
        self.began = 0.0
        self.job: Job | None = None
        for job in jobs:
            self.open[job.path] = job.method
            with suppress(UserError):  # not there; or damaged, which its stage will say
                if job.done:
                    del self.open[job.path]
                if job.done and job.method != "assess":
                    seconds = read_meta(job.path).get("seconds", 0.0)
                    self.taken.setdefault(job.method, []).append(seconds)

    def measure(self, job: Job) -> "_Clock":
        self.job = job
        return self

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        assert self.job
        if self.open.pop(self.job.path, None) and not any(error):
            seconds = time.perf_counter() - self.began
            self.taken.setdefault(self.job.method, []).append(seconds)

    def left(self, job: Job) -> str:
        """``, about 12 min left``; nothing before anything was measured."""
        if not self.taken:
            return ""
        usual = mean(s for seconds in self.taken.values() for s in seconds)
        seconds = sum(mean(self.taken.get(method, [usual])) for method in self.open.values())
        return f", about {seconds / 60:.0f} min left" if seconds > 90 else ", a minute left"


def read_cell(cell: Cell, run: Path, failures: Mapping[Path, str]) -> dict[str, Any]:
    """One line of ``cells.jsonl``: the cell, its status (done, failed, missing), its result."""
    line: dict[str, Any] = {
        "row": cell.row, "column": cell.column, "method": cell.method,
        "labels": LabelSet.parse(cell.labels).tag, "seed": cell.seed, "vary": cell.vary,
        "status": "missing", "message": "", "folder": "", "result": {},
    }
    if cell.job is None:
        return {**line, "status": "failed", "message": cell.impossible}
    line["folder"] = os.path.relpath(cell.job.path, run)
    if cell.job.path in failures:
        return {**line, "status": "failed", "message": failures[cell.job.path]}
    try:
        if not cell.job.done:
            return line
        if cell.job.method == "assess":
            return read_baseline(line, cell.job)
        meta = read_meta(cell.job.path, "classifier")
        require_made_so(cell.job)
    except UserError as error:
        return {**line, "status": "failed", "message": str(error)}
    if "result" not in meta:
        message = f"{cell.job.path} was never evaluated"
        return {**line, "status": "failed", "message": message}
    images = [meta["settings"].get(key) for key in ("images", "test_images")]
    return {**line, "status": "done", "result": meta["result"], "images": images}


def read_baseline(line: dict[str, Any], job: Job) -> dict[str, Any]:
    """The line of a baseline, from ``assess.json``."""
    method, rows = BASELINES[line["method"]]
    told = job.assessed()
    for row in told["baselines"]["rows"]:
        if (row["method"], row["input"]) == (method, rows):
            measured = {key: row[key] for key in ("n_labels", *METRICS) if key in row}
            return {**line, "status": "done", "result": measured}
    message = f"{job.path} has no {method} on {rows}: every image is labeled"
    return {**line, "status": "failed", "message": message}


def require_made_so(job: Job) -> None:
    """UserError where an artifact was made with other settings, or its parent was redone since.

    The stages say the same before they take an artifact for done; this needs no data.
    """
    meta = read_meta(job.path)
    made = meta.get("settings", {})
    config = job.config
    section = {"supervised-student": "supervised", "self-distill": "distill"}.get(
        job.method, job.method
    )
    expected = {
        k: v
        for name in ("data", "augment", section)
        for k, v in hashed_settings(getattr(config, name), name).items()
    }
    if job.method == "pretrain":
        expected |= hashed_settings(config.model, "model")
    for key, value in json.loads(json.dumps(expected)).items():
        if key in made and made[key] != value:
            raise UserError(f"{job.path} was made with {key}={made[key]}, now it is {value}")
    for parent in job.parents:
        require_made_so(parent)
        if made.get("parent") != read_meta(parent.path)["weights_sha256"]:
            raise UserError(f"{job.path} was made from another {parent.path} than lies there now")


def write_table(
    config: Config, table: Table, cells: Sequence[Cell], failures: Mapping[Path, str]
) -> str:
    """Write ``<run>/tables/<name>/`` and return the table as text.

    Raises:
        UserError: where no cell is finished; a table written before stays then.
    """
    lines = [read_cell(cell, config.folder, failures) for cell in cells]
    first: dict[str, list] = {}  # of equal data options: the images
    for line, cell in zip(lines, cells, strict=True):
        images = line.pop("images", None)
        if images is None or cell.job is None:
            continue
        data = first.setdefault(json.dumps(hashed_settings(cell.job.config.data), default=str), images)
        if images != data:
            message = f"{cell.job.path} was made of other images than the first cell"
            line |= {"status": "failed", "result": {}, "message": message}
    if not any(line["status"] == "done" for line in lines):
        messages = sorted({line["message"] for line in lines if line["message"]})
        reason = f": {messages[0]}" if messages else ""
        raise UserError(f"table {table.name}: no finished cell in {config.folder}{reason}")
    folder = config.folder / "tables" / table.name
    write_atomically(folder / "cells.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_atomically(folder / "config.yaml", dump(config))
    definition = {key: value for key, value in asdict(table).items() if key != "name"}
    definition["seeds"] = list(table.seeds)
    write_atomically(folder / f"{table.name}.yaml", yaml.safe_dump(definition, sort_keys=False))
    summary = summarize(asdict(table), lines)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    texts = render(summary, lines)
    for suffix in ("md", "csv", "tex"):
        write_atomically(folder / f"table.{suffix}", texts[suffix])
    return f"{texts['txt']}\n\nalso as Markdown, CSV and LaTeX in {folder}"


def read_cells(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``cells.jsonl``; damaged ones are named on standard error and left out."""
    lines = []
    for number, text in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            line = json.loads(text)
            lines.append({key: line[key] for key in
                          ("row", "column", "method", "labels", "seed", "vary", "status",
                           "message", "folder", "result")})
        except (ValueError, KeyError, TypeError):
            print(f"{path}: line {number} is damaged and left out", file=sys.stderr)
    return lines


def report(run: Path, name: str) -> str:
    """The table from what lies in the run's folder; nothing is trained.

    Raises:
        UserError: where the run or the table does not exist, or no cell is finished.
    """
    folder = run / "tables" / Path(name).stem
    used = folder / f"{folder.name}.yaml"  # with what the flags of the call changed
    table = load_table(str(used) if used.exists() else name)
    recipe = next((f for f in (folder, run) if (f / "config.yaml").exists()), None)
    if recipe is None:
        raise UserError(f"{run} is no run: it has no config.yaml")
    config = read_config(recipe / "config.yaml")
    config = replace(config, output=str(run.parent), run=run.name)
    recorded = {run / line["folder"]: line["message"]
                for line in read_cells(folder / "cells.jsonl")
                if line["status"] == "failed" and line["folder"]}
    cells = expand(table, config)
    jobs = {cell.job.path: cell.job for cell in cells if cell.job}
    failures = {path: why for path, why in recorded.items()
                if path in jobs and not jobs[path].done}
    return write_table(config, table, cells, failures)
