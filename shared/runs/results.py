"""The results of a run: its rows, which also lie in ``results.jsonl``, and their text."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from shared.config.labelset import LabelSet
from shared.config.methods import METHODS
from shared.runs.deployment import advise
from shared.runs.metrics import METRICS
from shared.runs.statistics import bounds_of_equal, interval
from shared.runs.text import aligned, mean_text
from shared.runtime.artifacts import ClassifierMeta, Result, is_outdated, read_meta
from shared.runtime.errors import UserError
from shared.runtime.files import write_atomically
from shared.runtime.lock import SHORT, held
from shared.runtime.media import abbreviated, printable, say
from shared.runtime.records import mismatch


def collect(run: Path) -> list[Result]:
    """One row per finished classifier of a run; imported ones, never evaluated, have none.

    Classifiers whose pretraining or teacher has been redone since are left out, and those of a
    method that this version does not know; a line on standard error names them. Another one says
    where the seeds of a row were made with other options or data, such as a file of labels before
    and after a correction. Copied folders, called otherwise than what they hold, are left out too.
    """
    metas = {path.parent: read_meta(path.parent) for path in sorted(run.glob("*/meta.json"))}
    metas = {path: meta for path, meta in metas.items() if "result" in meta}
    unknown = [path for path, meta in metas.items() if meta["result"]["stage"] not in METHODS]
    if unknown:
        names = ", ".join(repr(path.name) for path in unknown)
        say(f"left out, because this version has no such method: {names}", error=True)
    metas = {path: meta for path, meta in metas.items() if path not in unknown}
    copies = [path for path, meta in metas.items() if path.name != _folder_of(meta["result"])]
    if copies:
        names = (f"{path.name} holds {_folder_of(metas[path]['result'])}" for path in copies)
        say(
            "left out, because artifacts are called after what they hold, and copies would count"
            f" twice: {abbreviated(names)}",
            error=True,
        )
    metas = {path: meta for path, meta in metas.items() if path not in copies}
    outdated = [path for path, meta in metas.items() if is_outdated(path, meta)]
    if outdated:
        stages = ",".join(dict.fromkeys(metas[path]["stage"] for path in outdated))
        say(
            "left out, because what they were made from has been redone:"
            f" {', '.join(path.name for path in outdated)}; redo them with --force {stages} and"
            " their --labels and --seed",
            error=True,
        )
    current = [meta for path, meta in metas.items() if path not in outdated]
    for note in _notes_of_other_settings(current):
        say(note, error=True)
    rows: list[Result] = [meta["result"] for meta in current if "result" in meta]
    order = list(METHODS)
    rows.sort(key=lambda r: (r["n_labels"], r["labels"], r["seed"], order.index(r["stage"])))
    return rows


def _folder_of(result: Result) -> str:
    return LabelSet.of_tag(result["labels"]).folder(result["stage"], result["seed"])


def _notes_of_other_settings(metas: Iterable[ClassifierMeta]) -> list[str]:
    """A line for each label set of which seeds that are one row of a table differ otherwise too."""
    made_with: dict[tuple[str, str, str], set[str]] = {}
    for meta in metas:
        assert "result" in meta
        tag, method = meta["result"]["labels"], meta["result"]["stage"]
        label_set = LabelSet.of_tag(tag)
        drawn = label_set.file is None and not label_set.suggested  # by seed, on purpose
        settings = meta.get("settings", {})
        data = ("images", "test_images") if drawn else ("labels", "images", "test_images")
        for key, value in settings.items():
            # earlier versions did not note all of the data
            if "." in key or (key in data and value):
                made_with.setdefault((tag, method, key), set()).add(str(value))
    mixed = [row for row, values in made_with.items() if len(values) > 1]
    notes = []
    for name in dict.fromkeys(tag for tag, _, _ in mixed):
        methods = dict.fromkeys(method for tag, method, _ in mixed if tag == name)
        keys = dict.fromkeys(key for tag, _, key in mixed if tag == name)
        told = [key if "." in key else key.replace("_", " ") for key in keys]
        notes.append(
            f"note: the seeds of {printable(name)} differ in their {abbreviated(told)};"
            f" means over them, of {', '.join(methods)}, mix both: run pipeline.py again with the"
            " --seed of the older ones"
        )
    return notes


def write_results(run: Path) -> list[Result]:
    """`collect` the rows and save them as JSON lines, one process after the other."""
    path = run / "results.jsonl"
    with held(path, patience=SHORT):
        rows = collect(run)
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def advice_text(run: Path, rows: Sequence[Result]) -> str:
    """For every label set of the rows what to deploy, and whether pretraining paid."""
    paragraphs = []
    for tag in dict.fromkeys(row["labels"] for row in rows):
        same = [row for row in rows if row["labels"] == tag]
        if advice := advise(run, same):
            paragraphs.append(f"{tag}: " + "\n".join(advice.sentences))
    return "\n".join(paragraphs)


def results_text(rows: Sequence[Result]) -> str:
    """The rows as text; several seeds of one row become mean ± half its 95% interval."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for row in rows:
        if wrong := mismatch(row, Result, "its result"):
            name = f"{row['stage']}, {row['labels']}, seed {row['seed']}"
            raise UserError(f"{name}: {wrong}; redo it with --force {row['stage']}")
        groups.setdefault((row["labels"], row["stage"]), []).append(row)
    metrics = {key: metric for key, metric in METRICS.items() if any(key in row for row in rows)}
    several = any(len(group) > 1 for group in groups.values())
    head = ["model", "labels", "parameters", *(metric.title for metric in metrics.values())]
    lines, in_brackets = [[*head, "n"] if several else head], False
    for group in groups.values():
        first = group[0]
        title = METHODS[first["stage"]].title
        cells = [title, f"{first['labels']} ({first['n_labels']})", f"{first['parameters']:,}"]
        for key, metric in metrics.items():
            measured = [row.get(key, 0.0) * metric.factor for row in group if key in row]
            if not measured:
                cells.append("-")
                continue
            bounds = bounds_of_equal(measured, {row.get("n_test", 0) for row in group}, key)
            in_brackets |= bounds is not None
            cells.append(mean_text(*interval(measured), metric.digits, of_images=bounds))
        lines.append([*cells, str(len(group))] if several else cells)
    note = "\n±: half the 95% interval of the mean over n seeds, by Student's t" if several else ""
    if in_brackets:
        note += "; in brackets, where all are equal, the 95% interval of the test images"
    return aligned(lines) + note
