"""One HTML file that tells a run: what came out, pictures, tables, and how it was made.

    python -m stages.page runs/digits                 # writes runs/digits/page.html
    python -m stages.page runs/digits docs/pictures   # and its pictures, one SVG file each

It shows what lies in the run's folder: the stages' ``meta.json`` and ``metrics.jsonl``, the tables
of ``pipeline.py --table``, and what ``stages.assess`` measured. What is not there is shown as
missing, with the command that makes it.
"""

import contextlib
import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from statistics import NormalDist
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from shared.config.schema import Config, load_config
from shared.data.batches import Batches
from shared.data.images import UNLABELED, Splits
from shared.data.sources import open_data
from shared.runs import statistics as tables
from shared.runs.results import TITLES, collect
from shared.runtime.artifacts import read_meta, write_atomically
from shared.runtime.errors import UserError, exit_code_2, usage
from stages.page import pictures
from stages.page.document import document, figure, html_table, missing, or_missing, pictures_of

COMPARED = ("supervised", "linear", "finetune", "distill")  # the lines of the label efficiency


@dataclass
class Run:
    """What was found in a run's folder.

    Attributes:
        folder: ``<output>/<run>``.
        rows: one per evaluated classifier, as ``shared.runs.results.collect`` gives them.
        metas: folder's name -> ``meta.json``.
        config: of the run, or why there is none.
        splits: the images, or why they could not be opened.
        assessed: (labels, seed) -> ``assess.json`` and the arrays beside it, or what is wrong.
    """

    folder: Path
    rows: list[dict[str, Any]]
    metas: dict[str, dict[str, Any]]
    config: Config | str
    splits: Splits | str
    assessed: dict[tuple[str, int], "Assessed | str"]

    @property
    def n_test(self) -> int | None:
        """Number of labeled test images, where known."""
        if isinstance(self.splits, str) or self.splits.test is None:
            return None
        return int((self.splits.test.labels != UNLABELED).sum())


class Assessed:
    """``assess.json`` and ``assess.npz`` of one label set and seed."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.told: dict[str, Any] = json.loads((folder / "assess.json").read_text())
            self.arrays: Mapping[str, np.ndarray] = {}
            if (folder / "assess.npz").exists():
                with np.load(folder / "assess.npz", allow_pickle=False) as file:
                    self.arrays = dict(file)
        except (OSError, ValueError, BadZipFile) as error:
            raise UserError(f"{folder} is damaged: {error}; run stages.assess again") from error

    @property
    def labels(self) -> str:
        """The label set, as in folders' names."""
        return self.told["about"]["labels"]

    def part(self, name: str) -> Any:
        """A part of the assessment; UserError where it failed or was not asked for."""
        if name in self.told.get("failed", {}):
            raise UserError(f"this part failed: {self.told['failed'][name]}")
        if name not in self.told:
            raise UserError(f"not measured; stages.assess --assess.parts {name} does it")
        return self.told[name]

    def array(self, name: str) -> np.ndarray:
        """An array; UserError where it is not there."""
        if name not in self.arrays:
            raise UserError(f"assess.npz in {self.folder.name} has no {name}")
        return self.arrays[name]


def read_run(folder: Path) -> Run:
    """Everything that the page shows of a run.

    Raises:
        UserError: where there is no such folder or no finished classifier in it.
    """
    if not folder.is_dir():
        raise UserError(f"no such run: {folder}")
    rows = collect(folder)
    if not rows:
        raise UserError(f"no finished classifier in {folder}; run pipeline.py first")
    metas = {path.parent.name: read_meta(path.parent) for path in folder.glob("*/meta.json")}
    config = _read_config(folder)
    splits: Splits | str = "the run's configuration could not be read"
    if isinstance(config, Config):
        try:
            splits = open_data(replace(config.data, workers=0), config.label_set, True)
        except UserError as error:
            splits = str(error)
    assessed: dict[tuple[str, int], Assessed | str] = {}
    for path in sorted(folder.glob("assess-*-seed*/assess.json")):
        labels, _, seed = path.parent.name.removeprefix("assess-").rpartition("-seed")
        try:
            assessed[labels, int(seed)] = Assessed(path.parent)
        except UserError as error:
            assessed[labels, int(seed)] = str(error)
    return Run(folder, rows, metas, config, splits, assessed)


def _read_config(folder: Path) -> Config | str:
    if not (folder / "config.yaml").exists():
        return f"{folder / 'config.yaml'} does not exist"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return load_config(["--config", str(folder / "config.yaml")], "page", "")
    except SystemExit:  # its way to refuse, with one line
        return said.getvalue().strip() or f"{folder / 'config.yaml'} could not be read"


# --- statistics --------------------------------------------------------------------------------


def groups(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The rows of every (labels, stage), in the order of the table."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["labels"], row["stage"]), []).append(row)
    return found


def accuracy(rows: Sequence[Mapping[str, Any]], n_test: int | None) -> dict[str, Any] | None:
    """Mean top-1 with its 95% interval.

    Args:
        rows: of one method and label set, one per label draw.
        n_test: number of test images.

    Returns:
        ``mean``, ``low``, ``high`` (shares), ``n`` and ``of``, what the interval is over: Student's
        t over the draws or, for one draw, Wilson's over the test images. None without a test.
    """
    values = [row["top1"] for row in rows if "top1" in row]
    if not values:
        return None
    mean, half = tables.interval(values)
    low, high, of = mean, mean, "1 label draw"
    if half is not None:
        low, high, of = max(mean - half, 0), min(mean + half, 1), f"{len(values)} label draws"
    elif n_test:
        low, high = wilson(mean, n_test)
        of = f"1 label draw, {n_test:,} test images"
    return {"mean": mean, "low": low, "high": high, "n": len(values), "of": of}


def wilson(share: float, n: int) -> tuple[float, float]:
    """95% interval of a share of n (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.975)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def winner(rows: Sequence[Mapping[str, Any]]) -> str:
    """The method to deploy: the distilled student or, where none is finished, the most accurate."""
    stages = {row["stage"] for row in rows}
    if "distill" in stages:
        return "distill"
    means = {
        stage: np.mean([row.get("top1", 0.0) for row in rows if row["stage"] == stage])
        for stage in stages
    }
    return max(means, key=lambda stage: means[stage])


def labels_worth(
    rows: Sequence[Mapping[str, Any]], labels: str, stage: str, n_train: int | None
) -> str:
    """How many labels supervised training needs for the same accuracy, in words.

    Args:
        rows: of the run.
        labels: the label set, and
        stage: the method, whose accuracy it is.
        n_train: labeled training images in all, to give shares of; None where unknown.

    Raises:
        UserError: where the run has too few supervised results to tell.
    """
    by = {(row["stage"], row["labels"], row["seed"]): row["top1"] for row in rows if "top1" in row}
    numbers = {row["n_labels"]: row["labels"] for row in rows if row["stage"] == "supervised"}
    counts = sorted(numbers)
    sets = [numbers[count] for count in counts]
    seeds = sorted(
        seed
        for of, name, seed in by
        if (of, name) == (stage, labels)
        and all(("supervised", other, seed) in by for other in sets)
    )
    if len(sets) < 2 or not seeds:
        raise UserError(
            "supervised results at several label counts are needed; run pipeline.py"
            " with other --labels, or --table label_efficiency"
        )
    reference = np.array([[by["supervised", name, seed] for name in sets] for seed in seeds])
    values = np.array([by[stage, labels, seed] for seed in seeds])
    point, bounds = tables.worth(counts, reference, values)

    def words(count: float) -> str:
        inside = min(max(count, counts[0]), counts[-1])
        percent = float(f"{100 * inside / n_train:.2g}") if n_train else 0
        share = f" ({percent:g}%)" if n_train else ""
        sign = "fewer than " if count == 0 else "more than " if count == math.inf else ""
        return f"{sign}{inside:,.0f} labels{share}"

    told = ""
    if bounds:
        low, high = map(words, bounds)
        told = ", in every resample" if low == high else f", 95% interval {low} to {high}"
    known = ", ".join(f"{count:,}" for count in counts[:-1]) + f" and {counts[-1]:,}"
    draws = f"{len(seeds)} label draw{'s' * (len(seeds) > 1)}"
    return f"{words(point)}{told} ({draws}; supervised results at {known} labels)"


def percent(share: float | None, digits: int = 1) -> str:
    """97.9, or a dash."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


def spoken(labels: str) -> str:
    """How a label set is called in text: 1%, 4 per class, or the file's name."""
    if labels.endswith("pct"):
        return labels.removesuffix("pct") + "%"
    return labels.replace("perclass", " per class")


# --- sections ----------------------------------------------------------------------------------


def summary(run: Run) -> str:
    """The data; for every label set what to deploy, its accuracy, and the labels' worth."""
    best = winner(run.rows)
    cards = ""
    by = groups(run.rows)
    for labels in dict.fromkeys(row["labels"] for row in run.rows):
        stage = (
            best
            if (labels, best) in by
            else winner([row for row in run.rows if row["labels"] == labels])
        )
        rows = by[labels, stage]
        name = f"{rows[0]['n_labels']:,} labels"
        got = accuracy(rows, run.n_test)
        big = "not evaluated"
        if got:
            big = f"{percent(got['mean'])}%"
            told = f"95% interval {percent(got['low'])} to {percent(got['high'])}; {got['of']}"
        else:
            told = "there are no test images with labels"
        lines = [f"<p class=big>{big}</p><p>To deploy: {escape(TITLES[stage])}; {told}.</p>"]
        values = {
            other: value["mean"]
            for (given, other), several in by.items()
            if given == labels and other != stage and (value := accuracy(several, run.n_test))
        }
        compared = {k: v for k, v in values.items() if k in ("supervised-student", "finetune")}
        better = {k: v for k, v in values.items() if got and v > got["mean"]}
        for title, some in {"For comparison": compared, "More accurate": better}.items():
            if some:
                told = "; ".join(f"{TITLES[k]} {percent(v)}%" for k, v in some.items())
                lines.append(f"<p>{title}: {escape(told)}.</p>")
        lines.append(or_missing("What these labels are worth", _worth, run, labels, stage))
        folder = run.folder / f"{stage}-{labels}-seed{rows[0]['seed']}"
        lines.append(f"<p>{rows[0]['parameters']:,} parameters, <code>{escape(str(folder))}</code>")
        cards += f"<article><h3>{escape(spoken(labels))} = {name}</h3>{''.join(lines)}</article>"
    return f'<p class="lead">{_data(run)}</p><div class="cards">{cards}</div>'


def _worth(run: Run, labels: str, stage: str) -> str:
    if stage == "supervised":
        return ""
    known = None
    if not isinstance(run.splits, str):
        known = int((run.splits.train.labels != UNLABELED).sum()) or None
    text = escape(labels_worth(run.rows, labels, stage, known))
    return f"<p>This equals supervised training from scratch on {text}.</p>"


def _data(run: Run) -> str:
    meta = next(iter(run.metas.values()))
    size = meta["image_size"]
    classes = next((m["classes"] for m in run.metas.values() if "classes" in m), [])
    name = run.config.data.train if isinstance(run.config, Config) else run.folder.name
    counts = "numbers of images unknown"
    if not isinstance(run.splits, str):
        counts = f"{len(run.splits.train):,} training images, {run.n_test or 'no'} test images"
    draws = len({row["seed"] for row in run.rows})
    return escape(
        f"Data: {name}; {counts}, {len(classes)} classes, {size} × {size} pixels;"
        f" {draws} label draw{'s' * (draws > 1)}."
    )


def results(run: Run) -> str:
    """The table of all label sets, mean and interval over the draws."""
    columns = {
        key: value for key, value in tables.METRICS.items() if any(key in row for row in run.rows)
    }
    grid = [["model", "labels", "parameters", *(title for title, _, _ in columns.values()), "n"]]
    dots = []
    for (labels, stage), rows in groups(run.rows).items():
        line = [
            TITLES[stage],
            f"{rows[0]['n_labels']:,} ({spoken(labels)})",
            f"{rows[0]['parameters']:,}",
        ]
        for key, (_, factor, digits) in columns.items():
            values = [factor * row[key] for row in rows if key in row]
            mean, half = tables.interval(values) if values else (None, None)
            line.append(
                "missing"
                if mean is None
                else f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half is not None else "")
            )
        grid.append([*line, str(len(rows))])
        dots.append(stage)
    caption = (
        "Test images. Mean over n label draws ± half the 95% interval of the mean (Student's t)."
        " NLL: mean negative log likelihood, nats; ECE: expected calibration error, 15 bins."
        " Click a title to sort."
    )
    return html_table(grid, caption, dots) + _left_out(run)


def _left_out(run: Run) -> str:
    """The stage folders that are no row of the table although they were begun."""
    begun = sorted(path.parent.name for path in run.folder.glob("*/settings.json"))
    text = "".join(
        missing(name, "unfinished; run the same command again")
        for name in begun
        if name not in run.metas
    )
    old = [
        name
        for name, meta in run.metas.items()
        if "result" in meta and meta["result"] not in run.rows
    ]
    return text + "".join(
        missing(name, "left out, because what it was made from has been redone; redo it too")
        for name in sorted(old)
    )


def efficiency(run: Run) -> str:
    """Accuracy against the number of labels, and against parameters."""
    curves: dict[str, list[dict[str, Any]]] = {}
    panels: dict[str, list[dict[str, Any]]] = {}
    for (labels, stage), rows in groups(run.rows).items():
        point = accuracy(rows, run.n_test)
        if point is None:
            continue
        point |= {"stage": stage, **{k: rows[0][k] for k in ("n_labels", "parameters")}}
        panels.setdefault(f"{rows[0]['n_labels']:,} labels ({spoken(labels)})", []).append(point)
        if stage in COMPARED:
            curves.setdefault(stage, []).append(point)
    if not panels:
        return missing("Accuracy against labels and parameters", "no test images with labels")
    over = sorted({point["of"] for points in panels.values() for point in points})
    bands = f"Bands and bars: 95% intervals over {escape(' or '.join(over))}."
    told, drawn = "", ""
    if len(panels) < 2:
        told += missing("A curve", "only one label set is finished; run other --labels too")
    for stage in COMPARED:
        if stage not in curves:
            told += missing(TITLES[stage], "not finished in this run")
    if curves:
        told_points = "; ".join(
            f"{pictures.METHODS[stage][0]} "
            + ", ".join(f"{percent(point['mean'])}% with {point['n_labels']}" for point in points)
            for stage, points in curves.items()
        )
        drawn += figure(
            "label-efficiency",
            pictures.label_efficiency(curves),
            f"Accuracy against the number of labels: {told_points}",
            f"Accuracy against the number of labels. {bands}",
        )
    names = list(panels)
    shown = sorted({0, (len(names) - 1) // 2, len(names) - 1})  # fewest, middle, most labels
    kept = {names[i]: panels[names[i]] for i in shown}
    told_points = "; ".join(
        f"{title}: "
        + ", ".join(f"{p['parameters']:,} parameters {percent(p['mean'])}%" for p in points)
        for title, points in kept.items()
    )
    some = f" {len(kept)} of {len(names)} label sets." if len(kept) < len(names) else ""
    drawn += figure(
        "parameters",
        pictures.accuracy_against_parameters(kept),
        f"Accuracy against parameters; {told_points}",
        f"Accuracy against the network's parameters.{some} {bands}",
    )
    return f'{told}<div class="pictures">{drawn}</div>'


def learning(run: Run) -> str:
    """A picture per stage of what ``metrics.jsonl`` holds."""
    shown = ""
    for stage, title in {"pretrain": "pretraining", **TITLES}.items():
        runs: dict[str, list[list[dict]]] = {}
        damaged = 0
        for row in [r for r in run.rows if r["stage"] == stage] or [{}]:
            name = f"{stage}-{row['labels']}-seed{row['seed']}" if row else stage
            lines, bad = _metrics(run.folder / name / "metrics.jsonl")
            damaged += bad
            if lines:
                runs.setdefault(spoken(row["labels"]) if row else "", []).append(lines)
        if not runs:
            if stage != "self-distill":  # which few runs ask for
                shown += missing(f"Learning curve, {title}", "no metrics.jsonl in this run")
            continue
        n = sum(map(len, runs.values()))
        kept = dict(list(runs.items())[:4])  # label sets
        caption = f"{title[0].upper()}{title[1:]}; {n} run{'s' * (n > 1)}"
        caption += ", thick: mean of a label set" if n > len(runs) else ""
        caption += f", the first {len(kept)} of {len(runs)} label sets" * (len(kept) < len(runs))
        caption += f"; {damaged} damaged lines left out" * bool(damaged)
        last = [lines[-1] for several in kept.values() for lines in several]
        alt = f"Learning curve, {title}: loss ends at " + ", ".join(
            f"{line['loss']:.3g}" for line in last[:8] if "loss" in line
        )
        drawn = pictures.learning_curves(stage, kept)
        shown += figure(f"learning-{stage}", drawn, alt, escape(caption) + ".")
    return f'<div class="pictures">{shown}</div>'


def _metrics(path: Path) -> tuple[list[dict], int]:
    """The readable lines of a metrics file, and the number of others."""
    lines: list[dict] = []
    bad = 0
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
            lines.append({key: float(value) for key, value in line.items()})
            bad += "step" not in lines[-1]
        except (ValueError, TypeError, AttributeError):
            bad += 1
    return [line for line in lines if "step" in line], bad


def views(run: Run, count: int = 6) -> str:
    """Images and two augmented views of each, as pretraining draws them."""
    if isinstance(run.config, str) or isinstance(run.splits, str):
        raise UserError(run.config if isinstance(run.config, str) else str(run.splits))
    images, cfg = run.splits.train, run.config
    data = replace(cfg.data, workers=0)
    count = min(count, len(images))
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    batches = Batches(
        images,
        np.arange(len(images)),
        data,
        cfg.augment,
        accelerator,
        seed=cfg.pretrain.seed,
        stage="pretrain",
        batch_size=count,
        views=2,
        clean=True,
    )
    batch = next(iter(batches.steps(0, 1)))
    assert batch.clean is not None
    first, second = batch.images.chunk(2)

    def shown(tensor: Tensor) -> np.ndarray:  # (b, 3, S, S), normalised -> (b, S, S, 3) in [0, 1]
        std, mean = (tensor.new_tensor(v).view(3, 1, 1) for v in (data.std, data.mean))
        return (tensor * std + mean).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()

    return figure(
        "views",
        pictures.pairs(shown(batch.clean), shown(first), shown(second)),
        f"{count} training images, each above two augmented views of it",
        f"{count} training images and two views of each, drawn as in pretraining"
        f" ({data.image_size} × {data.image_size} pixels, normalisation undone).",
    )


def assessments(run: Run) -> str:
    """What ``stages.assess`` measured, one part of the page per label set."""
    if not run.assessed:
        return missing(
            "Calibration, confusion, mistakes, map, retrieval, robustness, transfer",
            f"not measured; python -m stages.assess --config {run.folder / 'config.yaml'}"
            " --labels ... --seed ... does",
        )
    shown, text = {}, ""
    order = list(dict.fromkeys(row["labels"] for row in run.rows))  # by their number
    for labels, seed in sorted(run.assessed, key=lambda key: ([*order, key[0]].index(key[0]), key)):
        shown.setdefault(labels, []).append(seed)
    for labels, seeds in shown.items():
        found = run.assessed[labels, seeds[0]]
        title = f"{spoken(labels)} of the labels" if labels.endswith("pct") else spoken(labels)
        more = f" Also assessed, not shown: seeds {', '.join(map(str, seeds[1:]))}."
        text += f"<h3>{escape(title)}, seed {seeds[0]}</h3>"
        text += f"<p>{more}</p>" if seeds[1:] else ""
        if isinstance(found, str):
            text += missing(f"Assessment of {labels}", found)
            continue
        parts = {
            "Calibration, confusion, mistakes": _classifier,
            "Map of the features": _map,
            "Nearest neighbours": _neighbours,
            "Corruptions": _corruptions,
        }
        drawn = "".join(
            f'<div class="pictures">{or_missing(name, make, found)}</div>'
            for name, make in parts.items()
        )
        grids = {
            "Quality of the features": _features,
            "Images of another kind": _ood,
            "Transfer": _transfer,
            "Classical baselines": _baselines,
        }
        counted = "".join(or_missing(name, make, found) for name, make in grids.items())
        text += drawn + counted + _unchanged(found)
    return text


def _classifier(found: Assessed) -> str:
    told = found.part("classifiers")
    stage = winner([{"stage": stage, **values} for stage, values in told.items()])
    about, where = found.told["about"], f"classifiers/{stage}/"
    classes = list(about["classes"])
    targets, predictions, confidence, wrong, images = (
        found.array(where + name)
        for name in ("targets", "predictions", "confidence", "mistakes", "mistake_images")
    )
    matrix = found.array(where + "confusion")
    name, n, ece = TITLES[stage], len(targets), percent(told[stage]["ece"])
    text = figure(
        f"reliability-{found.labels}",
        pictures.reliability(stage, confidence, predictions == targets),
        f"Reliability diagram: expected calibration error {ece}%",
        f"Reliability of the {escape(name)}: share of right answers against confidence, 15 bins;"
        f" expected calibration error {ece}%, n = {n:,} test images.",
    )
    mistakes = int((predictions != targets).sum())
    text += figure(
        f"confusion-{found.labels}",
        pictures.confusion(matrix, classes),
        f"Confusion matrix of {len(classes)} classes: {mistakes} of {n} wrong",
        f"Confusion of the {escape(name)}: rows are true classes, numbers are images; grey right,"
        f" red wrong (n = {n:,}). The stronger, the larger the share of the row.",
    )
    if not len(wrong):
        return text + f"<p>The {escape(name)} made no mistake on {n:,} test images.</p>"
    kept = wrong[: len(images)][:12]
    of = [classes[i] for i in targets[kept]], [classes[i] for i in predictions[kept]]
    return text + figure(
        f"mistakes-{found.labels}",
        pictures.mistakes(_thumbnails(images[: len(kept)]), *of, confidence[kept]),
        "Most confident mistakes: "
        + "; ".join(f"{b} instead of {a}" for a, b in zip(*of, strict=True)),
        f"The {len(kept)} most confident of {mistakes} mistakes of the {escape(name)}.",
    )


def _thumbnails(images: np.ndarray, side: int = 96) -> np.ndarray:
    """(..., S, S, 3), large images thinned to about ``side`` pixels: the page stays small."""
    step = max(images.shape[-2] // side, 1)
    return images[..., ::step, ::step, :]


def _map(found: Assessed) -> str:
    told = found.part("map")
    classes = list(found.told["about"]["classes"])
    names = {
        "tsne": "t-SNE of the features",
        "umap": "UMAP of the features",
        "tsne_pixels": "t-SNE of the pixels, to compare with",
    }
    text = ""
    for method in sorted(told["methods"], key=list(names).index):
        points, targets = found.array(f"map/{method}"), found.array("map/targets")
        text += figure(
            f"map-{method}-{found.labels}",
            pictures.feature_map(points, targets, classes),
            f"{names[method]}: {len(points)} images as points, coloured by class",
            f"{names[method]}; {len(points):,} test images, coloured and named by class.",
        )
    return text


def _neighbours(found: Assessed) -> str:
    told = found.part("neighbours")
    targets = found.array("neighbours/targets")
    same = targets == found.array("neighbours/query_targets")[:, None]
    queries = np.linspace(0, len(same) - 1, min(len(same), 8)).astype(int)  # of all classes
    right = int(same[queries].sum())
    return figure(
        f"neighbours-{found.labels}",
        pictures.retrieval(
            _thumbnails(found.array("neighbours/query_images")[queries]),
            _thumbnails(found.array("neighbours/images")[queries]),
            same[queries],
        ),
        f"Retrieval sheet: {len(queries)} test images and the {same.shape[1]} nearest training"
        f" images; {right} of {same[queries].size} have the same class",
        f"Test images and the {same.shape[1]} training images nearest in feature space; a cross:"
        " another or an unknown class. Over all test images the nearest has the same class in"
        f" {percent(told['same_class_at_1'])}%, the nearest 8 in"
        f" {percent(told['same_class_at_8'])}%.",
    )


def _corruptions(found: Assessed) -> str:
    told = found.part("corruptions")
    stage = winner([{"stage": stage, "top1": share} for stage, share in told["clean"].items()])
    names = list(told["accuracy"][stage])
    means = "; ".join(
        f"{pictures.METHODS[of][0]} {percent(share)}% (untouched {percent(told['clean'][of])}%)"
        for of, share in told["mean"].items()
    )
    return figure(
        f"corruptions-{found.labels}",
        pictures.robustness(
            np.array([told["accuracy"][stage][name] for name in names]),
            names,
            told["clean"][stage],
        ),
        f"Accuracy of the {TITLES[stage]} under {len(names)} corruptions at 5 severities,"
        f" mean {percent(told['mean'][stage])}%",
        f"The {escape(TITLES[stage])} on corrupted test images, n = {told['n_images']:,}; the"
        f" stronger the colour, the more is lost. Mean over all corruptions: {escape(means)}.",
    )


def _features(found: Assessed) -> str:
    about = found.told["about"]
    head = [
        "features",
        "width",
        "labels",
        "logistic regression, top-1 %",
        "chosen",
        "nearest neighbours, top-1 %",
    ]
    grid = [head]
    for row in found.part("linear")["rows"]:
        layer = "encoder" if not row["layer"] else f"projection layer {row['layer']}"
        grid.append(
            [
                layer,
                str(row["width"]),
                f"{row['n_labels']:,} ({spoken(row['labels'])})",
                percent(row["top1"]),
                _chosen(row),
                percent(row["knn"]),
            ]
        )
    caption = (
        f"Frozen features of {escape(about['encoder'])}; n = {about['n_test']:,} test images."
        " What was chosen was chosen on a held-out part of the training labels, where these are"
        " enough for it."
    )
    text = html_table(grid, caption)

    def clusters() -> str:
        told = found.part("clusters")
        grid = [["k-means on", "accuracy by matching %", "NMI", "ARI"]]
        for name, values in {"features": told, "pixels": told["pixels"]}.items():
            grid.append(
                [name, percent(values["accuracy"]), f"{values['nmi']:.3f}", f"{values['ari']:.3f}"]
            )
        caption = (
            f"Clusters found on {told['n_images']:,} training images without labels, k ="
            f" {told['k']}, and compared with the classes of n = {about['n_test']:,} test images:"
            " NMI and ARI are 1 where they agree, 0 at chance."
        )
        return html_table(grid, caption)

    return text + or_missing("Clusters", clusters)


def _chosen(row: Mapping[str, Any]) -> str:
    """The parameters of a classical method, and whether they were chosen or are the default."""
    values = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, int | float) else f"{name} {value}"
        for name, value in row["hyper"].items()
    )
    return f"{values} ({row['chosen_by']})" if values else row["chosen_by"]


def _ood(found: Assessed) -> str:
    told = found.part("ood")
    stages = list(told["auroc"])
    grid = [["images", "n", *(pictures.METHODS[stage][0] for stage in stages)]]
    for name, n in told["sets"].items():
        grid.append([name, f"{n:,}", *(percent(told["auroc"][stage][name]) for stage in stages)])
    return html_table(
        grid,
        "Can the confidence tell the test images from images of another kind? AUROC, %: 100"
        " perfectly, 50 not at all.",
    )


def _transfer(found: Assessed) -> str:
    told = found.part("transfer")
    grid = [["input", "top-1 %", "NLL", "chosen"]]
    for row in told["rows"]:
        grid.append([row["input"], percent(row["top1"]), f"{row['nll']:.3f}", _chosen(row)])
    caption = (
        f"Logistic regression on another data set, {escape(str(told['data']))}:"
        f" {told['n_train']:,} training and {told['n_test']:,} test images,"
        f" {len(told['classes']) if isinstance(told['classes'], list) else told['classes']}"
        " classes."
    )
    return html_table(grid, caption)


def _baselines(found: Assessed) -> str:
    grid = [["method", "input", "labels", "unlabeled images", "top-1 %", "chosen"]]
    for row in found.part("baselines")["rows"]:
        numbers = f"{row['n_labels']:,}", f"{row['n_unlabeled']:,}", percent(row["top1"])
        grid.append([row["method"], row["input"], *numbers, _chosen(row)])
    n = found.told["about"]["n_test"]
    return html_table(grid, f"Classical methods of scikit-learn; n = {n:,} test images.")


def _unchanged(found: Assessed) -> str:
    hashes = found.told.get("hashes", {})
    changed = [name for name, pair in hashes.items() if pair["before"] != pair["after"]]
    if changed:
        return missing("Frozen networks", f"the assessment changed {', '.join(changed)}")
    return (
        f"<p>Hashes before and after the assessment are equal ({escape(', '.join(hashes))}):"
        " nothing was trained.</p>"
        if hashes
        else ""
    )


def grids(run: Run) -> str:
    """The tables that ``pipeline.py --table`` filled."""
    folders = sorted(path.parent for path in run.folder.glob("tables/*/summary.json"))
    if not folders:
        return missing(
            "Tables",
            f"none was filled; pipeline.py --config"
            f" {run.folder / 'config.yaml'} --table label_efficiency does",
        )
    return "".join(or_missing(f"Table {path.name}", _grid, path) for path in folders)


def _grid(folder: Path) -> str:
    try:
        told = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'summary.json'} is damaged ({error})") from error
    text = f"<h3>{escape(told['title'])}</h3>"
    for caption, grid in tables.blocks(told):
        text += html_table(grid, escape(caption) + ".")
    text += _sizes(told)
    notes = "".join(f"<li>[{i}] {escape(note)}</li>" for i, note in enumerate(told["messages"], 1))
    return text + (f'<ul class="notes">{notes}</ul>' if notes else "")


def _sizes(told: Mapping[str, Any]) -> str:
    """A table's accuracy against parameters, where its rows differ in size; else nothing."""
    panels: dict[str, list[dict[str, Any]]] = {}
    for cell in told["cells"]:
        if told["metric"] != "top1" or not cell["n"] or cell["method"] not in pictures.METHODS:
            continue
        mean, half = cell["mean"] / 100, (cell["half"] or 0) / 100
        panels.setdefault(cell["column"], []).append(
            {
                "stage": cell["method"],
                "name": cell["row"],
                "parameters": cell["parameters"][0],
                "mean": mean,
                "low": mean - half,
                "high": mean + half,
            }
        )
    if len({p["parameters"] for points in panels.values() for p in points}) < 3:
        return ""
    kept = dict(list(panels.items())[:3])
    return figure(
        f"table-{told['name']}",
        pictures.accuracy_against_parameters(kept),
        f"Accuracy against parameters of {', '.join(told['rows'])}; the table has the numbers",
        "Accuracy against the network's parameters, with 95% intervals over the repetitions"
        + (f"; {len(kept)} of {len(panels)} columns." if len(kept) < len(panels) else "."),
    )


def provenance(run: Run) -> str:
    """Commands, hardware, time, versions, commit, settings."""
    commands = ""
    for labels in dict.fromkeys(row["labels"] for row in run.rows):
        seeds = sorted({row["seed"] for row in run.rows if row["labels"] == labels})
        given = next(
            (
                m["labels"]["given"]
                for m in run.metas.values()
                if m.get("result", {}).get("labels") == labels
            ),
            labels,
        )
        commands += (
            f"for seed in {' '.join(map(str, seeds))}; do accelerate launch pipeline.py --config"
            f" {run.folder / 'config.yaml'} --labels {given} --seed $seed; done\n"
        )
    metas = [meta for meta in run.metas.values() if meta["kind"] in ("encoder", "classifier")]

    def several(values: Iterable[str | None]) -> str:
        return escape("; ".join(dict.fromkeys(value or "not recorded" for value in values)))

    seconds: dict[str, float] = {}
    for meta in metas:
        stage = meta.get("stage", "imported")
        seconds[stage] = seconds.get(stage, 0) + meta.get("seconds", 0)
    spent = ", ".join(f"{stage} {value:,.0f} s" for stage, value in seconds.items())
    facts = {
        "Hardware": several(
            f"{meta.get('processes', 1)} × {meta['hardware']}" if "hardware" in meta else None
            for meta in metas
        ),
        "Precision": several(meta.get("settings", {}).get("precision") for meta in metas),
        "Time": f"{escape(spent)}; in all {sum(seconds.values()) / 60:,.1f} minutes",
        "Versions": several(
            ", ".join(f"{k} {v}" for k, v in meta.get("versions", {}).items()) for meta in metas
        ),
        "Git commit": several(meta.get("git") for meta in metas),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items())
    text = f"<pre>{escape(commands)}</pre><dl>{listed}</dl>"
    if isinstance(run.config, str):
        return text + missing("Settings", run.config)
    settings = escape((run.folder / "config.yaml").read_text())
    return f"{text}<details><summary>All settings</summary><pre>{settings}</pre></details>"


# --- the page ----------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[Run], str]] = {
    "Results": results,
    "What the labels are worth": efficiency,
    "Tables": grids,
    "The classifier and the features": assessments,
    "What pretraining sees": views,
    "Learning curves": learning,
    "How it was made": provenance,
}


def page(run: Run) -> str:
    """The whole page as HTML."""
    bar = tqdm(SECTIONS.items(), "page", unit="section", disable=None)
    sections = {title: or_missing(title, make, run) for title, make in bar}
    title = f"{run.folder.resolve().name}: a classifier from few labels"
    return document(title, summary(run), sections)


def write_page(folder: Path, pictures_to: Path | None = None) -> Path:
    """Write ``<run>/page.html`` and return its path.

    Args:
        folder: ``<output>/<run>``.
        pictures_to: folder that gets the page's pictures as SVG files too.

    Raises:
        UserError: where the folder holds no finished run, or cannot be written.
    """
    path, text = folder / "page.html", page(read_run(folder))
    write_atomically(path, text)
    if pictures_to:
        for name, content in pictures_of(text).items():
            write_atomically(pictures_to / f"{name}.svg", content)
    return path


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Write the page of a run."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) not in (1, 2) or arguments[0].startswith("-"):
        return usage("python -m stages.page runs/NAME [FOLDER FOR THE PICTURES]", arguments)
    print(write_page(*map(Path, arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
