"""The table of a run: a pure function of its rows, which also lie in ``results.jsonl``."""

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shared.runtime.artifacts import is_outdated, read_meta, write_atomically

# The order of the rows, and what they are called.
TITLES = {
    "supervised": "supervised from scratch",
    "supervised-student": "student's network, labels alone",
    "linear": "linear evaluation (frozen encoder)",
    "finetune": "fine-tuned teacher",
    "self-distill": "self-distilled teacher",
    "distill": "distilled student",
}


def collect(run: Path) -> list[Any]:
    """One row per finished classifier of a run; imported ones, never evaluated, have none.

    Classifiers whose pretraining or teacher has been redone since are left out; a line on standard
    error names them.
    """
    metas: Any = {path.parent: read_meta(path.parent) for path in sorted(run.glob("*/meta.json"))}
    metas = {path: meta for path, meta in metas.items() if "result" in meta}
    old = [path for path, meta in metas.items() if is_outdated(path, meta)]
    if old:
        print(f"left out, because what they were made from has been redone:"
              f" {', '.join(path.name for path in old)}; redo them with --force"
              f" {','.join(dict.fromkeys(metas[path]['stage'] for path in old))} and their --labels"
              " and --seed", file=sys.stderr)
    rows: list[Any] = [meta["result"] for path, meta in metas.items() if path not in old]
    order = list(TITLES)
    rows.sort(key=lambda r: (r["n_labels"], r["labels"], r["seed"], order.index(r["stage"])))
    return rows


def write_results(run: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Save the rows as JSON lines."""
    write_atomically(run / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Text table of the rows; several seeds of one row become mean ± standard deviation."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["labels"], row["stage"]), []).append(row)
    columns = {"top1": ("top-1 %", 100, 1), "top5": ("top-5 %", 100, 1), "nll": ("NLL", 1, 3),
               "ece": ("ECE %", 100, 1), "seconds": ("seconds", 1, 0)}
    columns = {key: value for key, value in columns.items() if any(key in row for row in rows)}
    several = any(len(group) > 1 for group in groups.values())
    head = ["model", "labels", "parameters", *(title for title, _, _ in columns.values())]
    lines = [[*head, "n"] if several else head]
    for group in groups.values():
        first = group[0]
        cells = [TITLES[first["stage"]], f"{first['labels']} ({first['n_labels']})",
                 f"{first['parameters']:,}"]
        for key, (_, scale, digits) in columns.items():
            cells.append(_spread([row[key] * scale for row in group if key in row], digits))
        lines.append([*cells, str(len(group))] if several else cells)
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: a head, a rule, the rest; the first column to the left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
