"""The sections of the page: what each one shows of a run, as blocks."""

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from shared.config.labelset import LabelSet
from shared.config.methods import CLASSIFIERS, METHODS, REFERENCE
from shared.config.schema import Config
from shared.runs.deployment import advise
from shared.runs.metrics import METRICS, legend
from shared.runs.statistics import Summary as TableSummary
from shared.runs.statistics import interval
from shared.runs.text import blocks as table_parts
from shared.runs.text import mean_text, percent
from shared.runtime.artifacts import ClassifierMeta, Meta
from shared.runtime.records import read_record
from shared.training.runlog import read_log
from stages.page import pictures
from stages.page.assessment import assessments
from stages.page.blocks import (
    Block,
    Card,
    Gallery,
    Heading,
    Missing,
    Notes,
    Paragraph,
    Picture,
    Provenance,
    Summary,
    Table,
    or_missing,
)
from stages.page.facts import (
    Group,
    accuracy,
    groups,
    labels_worth,
    method_to_deploy,
    plural,
)
from stages.page.pictures import Point, svg
from stages.page.read import Run, pretraining_views

# --- summary -----------------------------------------------------------------------------------


def summary(run: Run) -> Iterator[Block]:
    """The data; for every label set what to deploy, its accuracy, and the labels' worth."""
    by_place = groups(run.rows)
    cards = []
    for tag in run.tags:
        same_labels = {name: group for (labels, name), group in by_place.items() if labels == tag}
        advice = advise(run.folder, [row for group in same_labels.values() for row in group.rows])
        untested = method_to_deploy((name, 0.0) for name in same_labels)
        group = same_labels[advice.method if advice else untested]
        cards.append(_card(run, group, same_labels.values(), advice.reasons if advice else []))
    yield Summary(_data(run), cards)


def _card(run: Run, group: Group, same_labels: Iterable[Group], reasons: Sequence[str]) -> Card:
    """What to deploy for one label set.

    Args:
        run: its test images and its supervised results.
        group: the results of the method to deploy.
        same_labels: the results of all methods with this label set.
        reasons: why this method, and whether pretraining paid.
    """
    result = accuracy(group.measurements("top1"), run.n_test)
    name = group.method.title
    means = {
        other.method: value.mean
        for other in same_labels
        if other is not group and (value := accuracy(other.measurements("top1"), run.n_test))
    }
    better = {m: v for m, v in means.items() if result and v > result.mean}
    if result:
        bounds = f"{percent(result.low)} to {percent(result.high)}"
        sentences = [f"To deploy: {name}; 95% interval {bounds}; {result.over}."]
    else:
        sentences = [f"To deploy: {name}; there are no test images with labels."]
    for title, others in {"For comparison": means, "More accurate": better}.items():
        if others:
            accuracies = "; ".join(f"{m.short} {percent(v)}%" for m, v in others.items())
            sentences.append(f"{title}: {accuracies}.")
    return Card(
        f"{group.labels.title} = {group.n_labels:,} labels",
        f"{percent(result.mean)}%" if result else "not evaluated",
        [*sentences, *reasons],
        or_missing("What these labels are worth", _worth, run, group),
        f"{group.parameters:,}",
        str(run.folder / group.folder),
    )


def _worth(run: Run, group: Group) -> Iterator[Block]:
    if group.method.name != REFERENCE:
        count = labels_worth(run.rows, group.labels.tag, group.method.name, run.n_labeled)
        yield Paragraph(f"This equals {METHODS[REFERENCE].short} training from scratch on {count}.")


def _data(run: Run) -> str:
    size = next(iter(run.metas.values()))["image_size"]
    classes = next((meta["classes"] for meta in run.metas.values() if "classes" in meta), [])
    name = run.config.data.train if isinstance(run.config, Config) else run.folder.name
    counts = "numbers of images unknown"
    if not isinstance(run.splits, str):
        train = run.splits.train
        counts = f"{len(train.training_ids):,} training images, {run.n_test or 'no'} test images"
        imported = run.metas.get("pretrain", {}).get("stage") == "import"
        if len(train.held_out) and not imported:
            counts += ", which stage 1 saw too, without their labels"
    draws = plural(len({row["seed"] for row in run.rows}), "label draw")
    return f"Data: {name}; {counts}, {len(classes)} classes, {size} × {size} pixels; {draws}."


# --- results -----------------------------------------------------------------------------------


def results(run: Run) -> Iterator[Block]:
    """The table of all label sets: mean and interval over the draws."""
    columns = {key: column for key, column in METRICS.items() if any(key in r for r in run.rows)}
    titles = [column.title for column in columns.values()]
    rows, methods = [], []
    for group in groups(run.rows).values():
        cells = [
            _mean(group.measurements(key), column.factor, column.digits)
            for key, column in columns.items()
        ]
        labels = f"{group.n_labels:,} ({group.labels.title})"
        size, draws = f"{group.parameters:,}", str(len(group.rows))
        rows.append([group.method.title, labels, size, *cells, draws])
        methods.append(group.method.name)
    yield Table(
        ["model", "labels", "parameters", *titles, "n"],
        rows,
        "Test images. Mean over n label draws ± half the 95% interval of the mean (Student's t)."
        f" {legend()}. Click a title to sort.",
        methods,
    )
    for name in run.unfinished:
        yield Missing(name, "unfinished; run the same command again")
    for name in run.outdated:
        yield Missing(name, "left out, because what it was made from has been redone; redo it too")
    for name in run.of_unknown_methods:
        yield Missing(name, "left out, because this version has no such method")


def _mean(measurements: list[float], factor: float, digits: int) -> str:
    """Mean ± half its interval."""
    if not measurements:
        return "missing"
    return mean_text(*interval([factor * value for value in measurements]), digits)


def efficiency(run: Run) -> Iterator[Block]:
    """Accuracy against the number of labels, and against parameters."""
    curves: dict[str, list[Point]] = {}
    panels: dict[str, list[Point]] = {}
    over = set()
    for group in groups(run.rows).values():
        value = accuracy(group.measurements("top1"), run.n_test)
        if value is None:
            continue
        over.add(value.over)
        name, bounds = group.method.name, (value.mean, value.low, value.high)
        if group.method.saved:  # the others are no networks
            point = Point(name, group.parameters, *bounds)
            panels.setdefault(group.label_title, []).append(point)
        curves.setdefault(name, []).append(Point(name, group.n_labels, *bounds))
    if not curves:
        yield Missing("Accuracy against labels and parameters", "no test images with labels")
        return
    if len({point.x for points in curves.values() for point in points}) < 2:
        yield Missing("A curve", "only one label set is finished; run other --labels too")
    for name, method in CLASSIFIERS.items():
        if name not in curves and run.asks_for(name):
            yield Missing(method.title, "not finished in this run")
    bands = f"Bands and bars: 95% intervals over {' or '.join(sorted(over))}."
    pictures_ = [_accuracy_against_labels(curves, bands)]
    if panels:
        pictures_.append(_accuracy_against_parameters(panels, bands))
    yield Gallery(pictures_)


def _accuracy_against_labels(curves: Mapping[str, list[Point]], bands: str) -> Picture:
    texts = []
    for name, points in curves.items():
        values = ", ".join(f"{percent(point.mean)}% with {point.x}" for point in points)
        texts.append(f"{METHODS[name].short} {values}")
    return Picture(
        "label-efficiency",
        svg(pictures.label_efficiency(curves)),
        f"Accuracy against the number of labels: {'; '.join(texts)}",
        f"Accuracy against the number of labels. {bands}",
    )


def _accuracy_against_parameters(panels: Mapping[str, list[Point]], bands: str) -> Picture:
    titles = list(panels)
    drawn = sorted({0, (len(titles) - 1) // 2, len(titles) - 1})  # fewest, middle, most labels
    chosen = {titles[i]: panels[titles[i]] for i in drawn}
    texts = []
    for title, points in chosen.items():
        values = ", ".join(f"{point.x:,} parameters {percent(point.mean)}%" for point in points)
        texts.append(f"{title}: {values}")
    part = f" {len(chosen)} of {len(titles)} label sets." if len(chosen) < len(titles) else ""
    return Picture(
        "parameters",
        svg(pictures.accuracy_against_parameters(chosen)),
        f"Accuracy against parameters; {'; '.join(texts)}",
        f"Accuracy against the network's parameters.{part} {bands}",
    )


# --- tables of grids of runs -------------------------------------------------------------------


def tables(run: Run) -> Iterator[Block]:
    """The tables that ``pipeline.py --table`` filled."""
    folders = sorted(path.parent for path in run.folder.glob("tables/*/summary.json"))
    if not folders and isinstance(run.config, Config) and run.config.label_set.file:
        yield Missing("Tables", "none was filled; they draw labels from images with known classes")
    elif not folders:
        recipe = shlex.quote(str(run.folder / "config.yaml"))
        command = f"python pipeline.py --config {recipe} --table label_efficiency"
        yield Missing("Tables", f"none was filled; {command} does")
    for folder in folders:
        yield from or_missing(f"Table {folder.name}", _table, folder)


def _table(folder: Path) -> Iterator[Block]:
    run = shlex.quote(str(folder.parents[1]))
    remedy = f"python -m stages.report {run} --table {shlex.quote(folder.name)} writes it again"
    contents = read_record(folder / "summary.json", TableSummary, remedy, partial=True)
    yield Heading(contents["title"])
    for caption, (header, *rows) in table_parts(contents):
        yield Table(header, rows, f"{caption}.")
    yield from _sizes(folder.name, contents)
    if messages := contents["messages"]:
        yield Notes([f"[{number}] {message}" for number, message in enumerate(messages, 1)])


def _sizes(name: str, contents: TableSummary) -> Iterator[Block]:
    """A table's accuracy against parameters, where its rows differ in size; else nothing."""
    panels: dict[str, list[Point]] = {}
    for cell in contents["cells"]:
        if contents["metric"] != "top1" or cell["mean"] is None or cell["method"] not in METHODS:
            continue
        mean, half = cell["mean"] / 100, (cell["half"] or 0) / 100
        size, bounds = cell["parameters"][0], (mean, mean - half, mean + half)
        point = Point(cell["method"], size, *bounds, name=cell["row"])
        panels.setdefault(cell["column"], []).append(point)
    if len({point.x for points in panels.values() for point in points}) < 3:
        return
    chosen = dict(list(panels.items())[:3])
    part = f"; {len(chosen)} of {len(panels)} columns." if len(chosen) < len(panels) else "."
    yield Picture(
        f"table-{name}",
        svg(pictures.accuracy_against_parameters(chosen)),
        f"Accuracy against parameters of {', '.join(contents['rows'])}; the table has the numbers",
        "Accuracy against the network's parameters, with 95% intervals over the repetitions" + part,
    )


# --- pretraining and training ------------------------------------------------------------------


def views(run: Run) -> Iterator[Block]:
    """Images and two augmented views of each, as pretraining draws them."""
    images, first, second = pretraining_views(run, 6)
    count, size = images.shape[:2]
    yield Picture(
        "views",
        svg(pictures.pairs(images, first, second)),
        f"{count} training images, each above two augmented views of it",
        f"{count} training images and two views of each, drawn as in pretraining"
        f" ({size} × {size} pixels, normalisation undone).",
    )


def learning(run: Run) -> Iterator[Block]:
    """The learning curves: a picture per stage."""
    blocks: list[Block] = []
    for name, method in METHODS.items():
        folders = {  # of a stage -> title of its label set; stage 1 has none
            LabelSet.of_tag(row["labels"]).folder(name, row["seed"]): LabelSet.of_tag(row["labels"])
            for row in run.rows
            if row["stage"] == name
        }
        curves: dict[str, list[list[dict[str, float]]]] = {}
        n_damaged = 0
        for folder, labels in (folders or {name: None}).items():
            lines, damaged = read_log(run.folder / folder)
            n_damaged += damaged
            if lines:
                curves.setdefault(labels.title if labels else "", []).append(lines)
        if curves:
            blocks.append(_learning_curves(name, curves, n_damaged))
        elif run.asks_for(name) and not method.fitted:
            blocks.append(
                Missing(f"Learning curve, {method.title}", "no metrics.jsonl in this run")
            )
    yield Gallery(blocks)


def _learning_curves(
    name: str, curves: Mapping[str, list[list[dict[str, float]]]], n_damaged: int
) -> Picture:
    """The picture of one method.

    Args:
        name: of the method.
        curves: title of the label set -> its runs, each the lines of ``metrics.jsonl``.
        n_damaged: number of lines that could not be read.
    """
    title = METHODS[name].title
    n_runs = sum(map(len, curves.values()))
    chosen = dict(list(curves.items())[:4])  # label sets
    caption = f"{title[0].upper()}{title[1:]}; {plural(n_runs, 'run')}"
    if n_runs > len(curves):
        caption += ", thick: mean of a label set"
    if len(chosen) < len(curves):
        caption += f", the first {len(chosen)} of {len(curves)} label sets"
    if n_damaged:
        caption += f"; {n_damaged} damaged lines left out"
    last = [lines[-1] for runs in chosen.values() for lines in runs]
    losses = ", ".join(f"{line['loss']:.3g}" for line in last[:8] if "loss" in line)
    return Picture(
        f"learning-{name}",
        svg(pictures.learning_curves(name, chosen)),
        f"Learning curve, {title}: loss ends at {losses}",
        f"{caption}.",
    )


# --- provenance --------------------------------------------------------------------------------


def provenance(run: Run) -> Iterator[Block]:
    """Commands, hardware, time, versions, commit, settings."""
    path = run.folder / "config.yaml"
    settings = Missing("Settings", run.config) if isinstance(run.config, str) else path.read_text()
    commands = "".join(_command(run, tag) + "\n" for tag in run.tags)
    metas = [meta for meta in run.metas.values() if meta["kind"] in ("encoder", "classifier")]
    yield Provenance(commands, _circumstances(metas), settings)


def _command(run: Run, tag: str) -> str:
    """The command that makes all results of a label set."""
    seeds = sorted({row["seed"] for row in run.rows if row["labels"] == tag})
    classifiers = [meta for meta in run.metas.values() if "result" in meta]
    same = (meta for meta in classifiers if meta["result"]["labels"] == tag)
    labels = next((meta["labels"]["given"] for meta in same), tag)
    path = shlex.quote(str(run.folder / "config.yaml"))
    return (
        f"for seed in {' '.join(map(str, seeds))}; do accelerate launch pipeline.py --config"
        f" {path} --labels {shlex.quote(labels)} --seed $seed; done"
    )


def _circumstances(metas: Iterable[Meta | ClassifierMeta]) -> dict[str, str]:
    """Where and with what the artifacts were made.

    Args:
        metas: ``meta.json`` of each artifact.
    """
    hardware, precisions, versions, commits = [], [], [], []
    seconds: dict[str, float] = {}
    for meta in metas:
        has_hardware = "hardware" in meta
        hardware.append(f"{meta.get('processes', 1)} × {meta['hardware']}" if has_hardware else "")
        precisions.append(meta.get("settings", {}).get("precision"))
        versions.append(", ".join(f"{k} {v}" for k, v in meta.get("versions", {}).items()))
        commits.append(meta.get("git"))
        stage = meta.get("stage", "imported")
        seconds[stage] = seconds.get(stage, 0) + meta.get("seconds", 0)
    times = ", ".join(f"{stage} {time:,.0f} s" for stage, time in seconds.items())
    return {
        "Hardware": _distinct(hardware),
        "Precision": _distinct(precisions),
        "Time": f"{times}; in all {sum(seconds.values()) / 60:,.1f} minutes",
        "Versions": _distinct(versions),
        "Git commit": _distinct(commits),
    }


def _distinct(texts: Iterable[str | None]) -> str:
    return "; ".join(dict.fromkeys(text or "not recorded" for text in texts))


# heading -> section, in the order of the page
SECTIONS: dict[str, Callable[[Run], Iterator[Block]]] = {
    "Results": results,
    "What the labels are worth": efficiency,
    "Tables": tables,
    "The classifier and the features": assessments,
    "What pretraining sees": views,
    "Learning curves": learning,
    "How it was made": provenance,
}
