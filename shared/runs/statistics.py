"""Statistics and text of a table: pure functions of its cells.

A cell is a mapping as ``shared.runs.grid.read_cell`` makes it: row, column, seed, status, result. What
is compared, and with which intervals:

    a cell          mean ± half the 95% interval of the mean, from Student's t over the repetitions
    two rows        the same over the differences of repetitions with the same label draw
    worth           which share of the labels gives the supervised row the same accuracy
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from shared.runtime.randomness import generator
from shared.runs.results import aligned

# metric -> title, factor, decimals
METRICS = {
    "top1": ("top-1 %", 100, 1),
    "top5": ("top-5 %", 100, 1),
    "nll": ("NLL", 1, 3),
    "ece": ("ECE %", 100, 1),
    "seconds": ("seconds", 1, 0),
}
RESAMPLES = 2000  # of the bootstrap


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half the width of its 95% interval, by Student's t.

    Args:
        values: n independent measurements, n > 0.

    Returns:
        The half width is None for a single value, which says nothing of the spread.
    """
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return mean, None
    return mean, float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n))


def crossing(shares: Sequence[float], curve: Sequence[float], level: float) -> float:
    """Where an accuracy curve first reaches a level, linear in the logarithm of the labels.

    Args:
        shares: label shares, increasing, greater than 0.
        curve: accuracies there; where they fall, the best so far counts.
        level: the accuracy looked for.

    Returns:
        The share; 0.0 where already the first is at or above the level, infinity where none is.
    """
    best = np.maximum.accumulate(curve)
    if level > best[-1]:
        return math.inf
    k = int(np.searchsorted(best, level))  # the first that is not below
    if k == 0:
        return float(shares[0]) if best[0] == level else 0.0
    part = (level - best[k - 1]) / (best[k] - best[k - 1])
    return float(math.exp((1 - part) * math.log(shares[k - 1]) + part * math.log(shares[k])))


def worth(
    shares: Sequence[float], reference: np.ndarray, values: np.ndarray
) -> tuple[float, tuple[float, float] | None]:
    """Which share of the labels gives the reference the accuracy that a method has.

    Args:
        shares: (K,) label shares of the reference's curve, increasing.
        reference: (n, K) its accuracies, one row per label draw.
        values: (n,) accuracies of the method, on the same draws.

    Returns:
        The share for the means, and its 95% interval: percentiles of a bootstrap over the draws
        (None for one draw). 0 and infinity stand for shares outside the curve.
    """
    share = crossing(shares, reference.mean(0), float(values.mean()))
    n = len(values)
    if n < 2:
        return share, None
    draws = generator(n, "bootstrap").integers(n, size=(RESAMPLES, n))
    found = [crossing(shares, reference[d].mean(0), float(values[d].mean())) for d in draws]
    # of the sorted values themselves: there is nothing between a number and infinity
    low, high = np.quantile(found, (0.025, 0.975), method="closest_observation")
    return share, (float(low), float(high))


def summarize(table: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All numbers of a table, JSON values.

    Args:
        table: ``shared.runs.grid.Table`` as a mapping.
        lines: its cells, one per repetition.

    Returns:
        ``cells``, ``differences`` and ``worth`` as lists in the order of rows and columns, with
        the table's title, labels and published figures; values in the metric's printed unit.
    """
    rows, columns = list(table["rows"]), list(table["columns"])
    _, factor, _ = METRICS[table["metric"]]
    groups = {
        (row, column): [x for x in lines if (x["row"], x["column"]) == (row, column)]
        for row in rows
        for column in columns
    }
    values = {  # cell -> repetition -> value
        place: {
            json.dumps([line["seed"], line["vary"]], sort_keys=True):
                line["result"][table["metric"]] * factor
            for line in group if table["metric"] in line["result"]
        }
        for place, group in groups.items()
    }
    messages = sorted({line["message"] for line in lines if line["message"]})
    cells = []
    for (row, column), group in groups.items():
        done = list(values[row, column].values())
        mean, half = interval(done) if done else (None, None)
        reasons = {line["message"] for line in group if line["message"]}
        cells.append({
            "row": row, "column": column, "method": group[0]["method"] if group else "",
            "labels": group[0]["labels"] if group else "",
            "mean": mean, "half": half, "n": len(done), "of": len(group),
            "failed": sum(line["status"] == "failed" for line in group),
            "missing": sum(line["status"] == "missing" for line in group),
            "notes": [messages.index(reason) + 1 for reason in sorted(reasons)],
            "parameters": sorted({x["result"]["parameters"] for x in group
                                  if "parameters" in x["result"]}),
            "n_labels": sorted({x["result"]["n_labels"] for x in group
                                if "n_labels" in x["result"]}),
        })
    against = table["against"] or rows[0]
    return {
        "name": table["name"], "title": table["title"], "metric": table["metric"],
        "rows": rows, "columns": columns, "seeds": list(table["seeds"]), "vary": table["vary"],
        "cells": cells, "messages": messages, "against": against,
        "differences": _differences(values, rows, columns, against),
        "worth": _worth(values, groups, rows, columns, table["worth"]) if table["worth"] else [],
        "worth_of": table["worth"], "paper": table["paper"],
    }


Values = Mapping[tuple[str, str], Mapping[str, float]]


def _differences(
    values: Values, rows: Sequence[str], columns: Sequence[str], against: str
) -> list[dict[str, Any]]:
    """Row minus ``against`` over the repetitions that both have."""
    found = []
    for row in rows:
        for column in columns:
            one, other = values[row, column], values[against, column]
            both = [one[key] - other[key] for key in one if key in other]
            if row != against and both:
                mean, half = interval(both)
                found.append(
                    {"row": row, "column": column, "mean": mean, "half": half, "n": len(both)}
                )
    return found


def _worth(
    values: Values, groups: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    rows: Sequence[str], columns: Sequence[str], reference: str,
) -> list[dict[str, Any]]:
    share = {}  # column -> per cent of the labels
    for column in columns:
        tag = groups[reference, column][0]["labels"] if groups[reference, column] else ""
        if tag.endswith("pct") and values[reference, column]:
            share[column] = float(tag.removesuffix("pct"))
    curve = sorted(share, key=lambda column: share[column])
    found = []
    for row in rows:
        for column in columns:
            if row == reference or len(curve) < 2 or column not in share:
                continue
            shared = [k for k in values[row, column]
                      if all(k in values[reference, c] for c in curve)]
            if not shared:
                continue
            of_reference = np.array([[values[reference, c][k] for c in curve] for k in shared])
            of_row = np.array([values[row, column][k] for k in shared])
            shares = [share[c] for c in curve]
            point, bounds = worth(shares, of_reference, of_row)
            low, high = bounds or (None, None)
            text = _share(point, shares)
            if bounds:
                text += f" [{_share(bounds[0], shares)} to {_share(bounds[1], shares)}]"
            found.append({"row": row, "column": column, "share": _finite(point),
                          "low": _finite(low), "high": _finite(high), "text": text,
                          "n": len(shared)})
    return found


def _finite(value: float | None) -> float | None:
    """JSON knows no infinity; the text beside it says ``> 100%``."""
    return value if value is not None and math.isfinite(value) else None


def _share(value: float, shares: Sequence[float]) -> str:
    if value == 0:
        return f"< {shares[0]:g}%"
    return f"> {shares[-1]:g}%" if value == math.inf else f"{float(f'{value:.2g}'):g}%"


def render(summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The table as text for the screen, Markdown, LaTeX (booktabs), and all cells as CSV.

    Args:
        summary: what ``summarize`` returned.
        lines: the cells it was made from.

    Returns:
        ``txt``, ``md``, ``tex``, ``csv``.
    """
    parts = blocks(summary)
    notes = [f"[{i}] {message}" for i, message in enumerate(summary["messages"], 1)]
    text = [summary["title"]]
    markdown = [f"# {summary['title']}"]
    latex = [f"% {summary['title']}"]
    for caption, grid in parts:
        text.append(f"{caption}\n\n{aligned(grid)}")
        markdown.append(f"{caption}\n\n{_markdown(grid)}")
        latex.append(_latex(caption, grid))
    if notes:
        text.append("\n".join(notes))
        markdown.append("\n".join(f"- {note}" for note in notes))
        latex.append("\n".join(f"% {note}" for note in notes))
    return {
        "txt": "\n\n".join(text),
        "md": "\n\n".join(markdown) + "\n",
        "tex": "\n\n".join(latex) + "\n",
        "csv": _csv(lines),
    }


def blocks(summary: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Caption and grid of each part: the table, its differences, the labels' worth, the paper."""
    title, _, digits = METRICS[summary["metric"]]
    rows, columns = summary["rows"], summary["columns"]

    def grid(cell: Any, of: Iterable[str], *more: str) -> list[list[str]]:
        head = ["", *more, *columns]
        return [head] + [
            [row, *([_parameters(summary, row)] if more else []), *(cell(row, c) for c in columns)]
            for row in of
        ]

    def find(part: str, row: str, column: str) -> Mapping[str, Any] | None:
        same = [x for x in summary[part] if (x["row"], x["column"]) == (row, column)]
        return same[0] if same else None

    def main(row: str, column: str) -> str:
        cell = find("cells", row, column)
        assert cell
        notes = "".join(f" [{note}]" for note in cell["notes"])
        if not cell["n"]:
            return ("failed" if cell["failed"] else "missing") + notes
        some = f"{cell['n']}" if cell["n"] == cell["of"] else f"{cell['n']} of {cell['of']}"
        return f"{_number(cell['mean'], cell['half'], digits)} ({some}){notes}"

    def difference(row: str, column: str) -> str:
        found = find("differences", row, column)
        if not found:
            return "-"
        return f"{_number(found['mean'], found['half'], digits, '+')} ({found['n']})"

    repeats = f", each with its own {' and '.join(summary['vary'])}" if summary["vary"] else ""
    parts = [(
        f"{title}, mean ± half its 95% interval (number of runs) over {len(summary['seeds'])}"
        f" label draws{repeats}", grid(main, rows, "parameters"),
    )]
    others = [row for row in rows if row != summary["against"]]
    if summary["differences"]:
        parts.append((f"Difference to \"{summary['against']}\" on the same label draws, mean ± half"
                       " its 95% interval (pairs)", grid(difference, others)))
    if summary["worth"]:
        parts.append((
            f"What the labels are worth: \"{summary['worth_of']}\" needs this share of the labels"
            " for the same result (95% interval from a bootstrap over the label draws)",
            grid(lambda r, c: (find("worth", r, c) or {"text": "-"})["text"],
                 [row for row in rows if row != summary["worth_of"]]),
        ))
    if paper := summary["paper"]:
        shown = paper["cells"]
        wide = list(dict.fromkeys(column for cells in shown.values() for column in cells))
        parts.append((
            f"Published figures: {paper['source']}",
            [["", *wide]] + [[row, *(str(cells.get(c, "-")) for c in wide)]
                             for row, cells in shown.items()],
        ))
    return parts


def _parameters(summary: Mapping[str, Any], row: str) -> str:
    counts = {n for cell in summary["cells"] if cell["row"] == row for n in cell["parameters"]}
    return " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)})) if counts else "-"


def _number(mean: float, half: float | None, digits: int, sign: str = "") -> str:
    text = f"{mean:{sign}.{digits}f}"
    return text if half is None else f"{text} ± {half:.{digits}f}"


def _markdown(grid: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in grid]
    rule = "|---|" + "---:|" * (len(grid[0]) - 1)
    return "\n".join([lines[0], rule, *lines[1:]])


def _latex(caption: str, grid: Sequence[Sequence[str]]) -> str:
    special = str.maketrans({c: f"\\{c}" for c in "%&_#$"} | {c: f"${c}$" for c in "<>"})
    escaped = [[cell.translate(special).replace("±", r"$\pm$") for cell in row] for row in grid]
    lines = [" & ".join(row) + r" \\" for row in escaped]
    return "\n".join([
        f"% {caption}", rf"\begin{{tabular}}{{l{'r' * (len(grid[0]) - 1)}}}", r"\toprule", lines[0],
        r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}",
    ])


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """One line per cell and repetition."""
    measured = ["n_labels", "parameters", *METRICS]
    vary = list(lines[0]["vary"]) if lines else []
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["row", "column", "method", "labels", "seed", *vary, "status", *measured,
                  "message", "folder"])
    for line in lines:
        out.writerow([
            line["row"], line["column"], line["method"], line["labels"], line["seed"],
            *line["vary"].values(), line["status"],
            *(line["result"].get(key, "") for key in measured), line["message"], line["folder"],
        ])
    return text.getvalue()
