"""Statistics of a table: pure functions of its cells.

The functions compare these things, with these intervals:

    a cell          mean ± half the 95% interval of the mean, from Student's t over the repetitions;
                    where all are equal, the interval of the test images (Clopper and Pearson)
    two rows        the same over the differences of repetitions with the same label draw
    worth           the share of the labels that gives the supervised row the same accuracy
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np

from shared.config.labelset import LabelSet
from shared.config.methods import ancestors
from shared.runs.metrics import ACCURACIES, METRICS
from shared.runs.table import Paper, Table
from shared.runtime.artifacts import Result

ROUNDING = 1e-9  # a spread below it is none
FEWEST = 5  # repetitions of which an interval of the labels' worth is printed


class BaselineResult(TypedDict):
    """The result of a baseline."""

    n_labels: int
    n_test: int
    top1: float


class NoResult(TypedDict):
    """The result of a cell that is not done: empty."""


class CellLine(TypedDict):
    """One cell and repetition, a line of ``cells.jsonl``.

    ``labels`` is the tag of the label set, ``vary`` this repetition's value of each option that
    the table varies, ``message`` says why a cell failed, and ``folder`` is relative to the run's.
    ``updates`` are those of each stage that the cell is made from, the first stage first, and
    ``cpu_seconds`` those of all these stages, where they are known.
    """

    row: str
    column: str
    method: str
    labels: str
    seed: int
    vary: dict[str, Any]
    status: Literal["done", "failed", "missing"]
    message: str
    folder: str
    result: Result | BaselineResult | NoResult
    updates: NotRequired[list[int]]
    cpu_seconds: NotRequired[float]


class CellSummary(TypedDict):
    """A cell over its repetitions; ``mean`` and ``half`` in the metric's printed unit.

    ``n`` of ``of`` repetitions are done. ``notes`` count in the summary's messages, from 1.
    ``of_images`` are the bounds of an accuracy that all repetitions share, by the number of test
    images. ``updates`` and ``cpu_seconds`` are those of one repetition: the most, and the mean.
    """

    row: str
    column: str
    method: str
    labels: str
    mean: float | None
    half: float | None
    n: int
    of: int
    failed: int
    missing: int
    notes: list[int]
    parameters: list[int]
    n_labels: list[int]
    of_images: list[float] | None
    updates: list[int]
    cpu_seconds: float | None


class Difference(TypedDict):
    """A cell minus the one of the row it is compared with, over ``n`` pairs."""

    row: str
    column: str
    mean: float
    half: float | None
    n: int


class Worth(TypedDict):
    """Per cent of the labels that give the reference row a cell's accuracy, and its interval.

    A number outside the reference's curve is None; ``text`` says on which side it lies.
    """

    row: str
    column: str
    share: float | None
    low: float | None
    high: float | None
    text: str
    n: int


class Summary(TypedDict):
    """All numbers of a table, ``summary.json``; ``cells`` and so on in the order of the rows.

    ``rivals`` says which row of ``against`` each column takes.
    """

    name: str
    title: str
    metric: str
    rows: list[str]
    columns: list[str]
    seeds: list[int]
    vary: dict[str, list[Any]]
    repeated: str
    cells: list[CellSummary]
    messages: list[str]
    against: list[str]
    rivals: dict[str, str]
    differences: list[Difference]
    worth: list[Worth]
    worth_of: str | None
    paper: Paper | None


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
    return mean, float(_t_quantile(n) * np.std(values, ddof=1) / math.sqrt(n))


def _t_quantile(n: int) -> float:
    """97.5% of Student's distribution of n - 1 degrees of freedom lie below it."""
    from scipy.special import stdtrit  # at the end of a run: scipy makes its start slower

    return float(stdtrit(n - 1, 0.975))


def of_images(accuracy: float, images: int) -> tuple[float, float]:
    """The 95% interval of an accuracy in [0, 1] by the number of test images (Clopper, Pearson)."""
    from scipy.special import betaincinv  # as above

    right = round(accuracy * images)
    low = betaincinv(right, images - right + 1, 0.025) if right else 0.0
    high = betaincinv(right + 1, images - right, 0.975) if right < images else 1.0
    return float(low), float(high)


def bounds_of_equal(values: Sequence[float], tested: set[int], metric: str) -> list[float] | None:
    """The bounds of `of_images`, in the printed unit, where several accuracies are all equal.

    Args:
        values: of the repetitions, in the printed unit.
        tested: the numbers of test images that they are of.
        metric: what they are.
    """
    if not (len(set(values)) == 1 < len(values) and len(tested) == 1 and metric in ACCURACIES):
        return None
    factor, images = METRICS[metric].factor, next(iter(tested))
    return [factor * bound for bound in of_images(values[0] / factor, images)]


def repeated(table: Table, lines: Sequence[CellLine]) -> str:
    """What differs between the repetitions of a table, in words.

    Other training images need a pretraining of their own, also with the same seed.
    """
    pretrained = any(
        "pretrain" in ancestors(line["method"]) or line["method"].endswith(", features")
        for line in lines
    )
    n, vary = len(table.seeds), dict.fromkeys(table.vary)
    own: list[str] = []
    what = "label draw"
    if "data.split_seed" in vary:
        what, own = "split of the images", ["a label draw"]
    if pretrained and vary.keys() & {"pretrain.seed", "data.split_seed"}:
        own = [f"a {what}", *own]
        what = "pretraining"
    own += [option for option in vary if option not in ("pretrain.seed", "data.split_seed")]
    text = f"{n} {what}{'s' * (n > 1)}"
    if pretrained and what != "pretraining":
        text += " on one pretraining"
    if own:
        text += f", {'each ' * (n > 1)}with {' and '.join(own)} of its own"
    return text + _undrawn(lines)


def _undrawn(lines: Sequence[CellLine]) -> str:
    """What is said of columns or rows whose labels are not drawn: all labels, those of a file."""
    drawn: dict[tuple[str, str], bool] = {}  # of rows and columns: whether a cell's labels are
    for line in lines:
        labels = LabelSet.of_tag(line["labels"])
        for place in (("column", line["column"]), ("row", line["row"])):
            drawn[place] = drawn.get(place, False) or not (labels.share == 1 or labels.file)
    columns = [line["column"] for line in lines if not drawn["column", line["column"]]]
    rest = [line["row"] for line in lines if line["column"] not in columns]
    names = dict.fromkeys([*columns, *(row for row in rest if not drawn["row", row])])
    if not names:
        return ""
    return (
        f"; in {', '.join(names)} no label is drawn, and the rest differs with the random numbers"
        " of the training"
    )


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

    The interval is the jackknife's, of the logarithm of the share, with Student's t. A bootstrap of
    so few draws is too narrow: its 95% hold the true share in 52% (n = 2) to 84% (n = 5) of cases.

    Args:
        shares: (K,) label shares of the reference's curve, increasing.
        reference: (n, K) its accuracies, one row per label draw.
        values: (n,) accuracies of the method, on the same draws.

    Returns:
        The share for the means, and its 95% interval: none for fewer draws than ``FEWEST``, and
        none where the share lies outside the curve. 0 and infinity stand for shares outside.
    """
    share, n = crossing(shares, reference.mean(0), float(values.mean())), len(values)
    if n < FEWEST or not 0 < share < math.inf:
        return share, None
    others = [np.arange(n) != left_out for left_out in range(n)]
    each = np.array(
        [crossing(shares, reference[i].mean(0), float(values[i].mean())) for i in others]
    )
    logs = np.log(each.clip(shares[0], shares[-1]))
    half = _t_quantile(n) * math.sqrt((n - 1) * logs.var())
    low, high = share * math.exp(-half), share * math.exp(half)
    return share, (
        0.0 if low < shares[0] or each.min() == 0 else low,
        math.inf if high > shares[-1] or each.max() == math.inf else high,
    )


Groups = Mapping[tuple[str, str], Sequence[CellLine]]  # (row, column) -> repetitions
Values = Mapping[tuple[str, str], Mapping[str, float]]  # (row, column) -> repetition -> value


def summarize(table: Table, lines: Sequence[CellLine]) -> Summary:
    """All numbers of a table, JSON values.

    Args:
        table: its definition.
        lines: its cells, one per repetition.
    """
    rows, columns = list(table.rows), list(table.columns)
    groups = {
        (row, column): [line for line in lines if (line["row"], line["column"]) == (row, column)]
        for row in rows
        for column in columns
    }
    values = {place: _values(group, table.metric) for place, group in groups.items()}
    messages = sorted({line["message"] for line in lines if line["message"]})
    cells = [_cell(place, groups[place], values[place], messages, table.metric) for place in groups]
    rivals = _rivals(cells, table)
    return {
        "name": table.name,
        "title": table.title,
        "metric": table.metric,
        "rows": rows,
        "columns": columns,
        "seeds": list(table.seeds),
        "vary": table.vary,
        "repeated": repeated(table, lines),
        "cells": cells,
        "messages": messages,
        "against": list(table.against or rows[:1]),
        "rivals": rivals,
        "differences": _differences(values, rivals),
        "worth": _worth(values, groups, table.worth) if table.worth else [],
        "worth_of": table.worth,
        "paper": table.paper,
    }


def _values(group: Sequence[CellLine], metric: str) -> dict[str, float]:
    """Repetition -> value in the printed unit, where it was measured."""
    factor = METRICS[metric].factor
    values = {}
    for line in group:
        value = line["result"].get(metric)
        if value is not None:
            repetition = json.dumps([line["seed"], line["vary"]], sort_keys=True)
            values[repetition] = value * factor
    return values


def _cell(
    place: tuple[str, str],
    group: Sequence[CellLine],
    values: Mapping[str, float],
    messages: Sequence[str],
    metric: str,
) -> CellSummary:
    measured = list(values.values())
    mean, half = interval(measured) if measured else (None, None)
    reasons = sorted({line["message"] for line in group if line["message"]})

    results = [line["result"] for line in group]
    tested = {r["n_test"] for r in results if "n_test" in r}
    updates = [line["updates"] for line in group if "updates" in line]
    seconds = [line["cpu_seconds"] for line in group if "cpu_seconds" in line]
    return {
        "row": place[0],
        "column": place[1],
        "method": group[0]["method"] if group else "",
        "labels": group[0]["labels"] if group else "",
        "mean": mean,
        "half": half,
        "n": len(measured),
        "of": len(group),
        "failed": sum(line["status"] == "failed" for line in group),
        "missing": sum(line["status"] == "missing" for line in group),
        "notes": [messages.index(reason) + 1 for reason in reasons],
        "parameters": sorted({r["parameters"] for r in results if "parameters" in r}),
        "n_labels": sorted({r["n_labels"] for r in results if "n_labels" in r}),
        "of_images": bounds_of_equal(measured, tested, metric),
        "updates": max(updates, default=[]),
        "cpu_seconds": float(np.mean(seconds)) if seconds else None,
    }


def _rivals(cells: Sequence[CellSummary], table: Table) -> dict[str, str]:
    """Column -> the best of the rows that the others are compared with, where one is measured.

    Rows with fewer repetitions than another are left out: their mean is of other draws.
    """
    against, sign = table.against or list(table.rows)[:1], 1 if table.metric in ACCURACIES else -1
    best: dict[str, str] = {}
    for column in table.columns:
        those = [c for c in cells if c["column"] == column and c["row"] in against and c["n"]]
        whole = [c for c in those if c["n"] == max(other["n"] for other in those)]
        if whole:
            best[column] = max(whole, key=lambda c: sign * (c["mean"] or 0.0))["row"]
    return best


def _differences(values: Values, rivals: Mapping[str, str]) -> list[Difference]:
    """Row minus the column's rival over the repetitions that both have."""
    differences: list[Difference] = []
    for (row, column), of_row in values.items():
        rival = rivals.get(column, row)
        other = values[rival, column]
        pairs = [of_row[key] - other[key] for key in of_row if key in other]
        if row != rival and pairs:
            mean, half = interval(pairs)
            if half is not None and half < ROUNDING:
                half = None  # pairs that are all equal say nothing of the spread
            differences.append(
                {"row": row, "column": column, "mean": mean, "half": half, "n": len(pairs)}
            )
    return differences


def _worth(values: Values, groups: Groups, reference: str) -> list[Worth]:
    """What the labels are worth, for each cell in a column on the reference's curve."""
    share_of = {}  # column -> per cent of the labels
    for (row, column), group in groups.items():
        share = _percent_of_labels(group[0]["labels"]) if group else None
        if row == reference and share is not None and values[reference, column]:
            share_of[column] = share
    curve = sorted(share_of, key=lambda column: share_of[column])
    if len(curve) < 2:
        return []
    shares = [share_of[column] for column in curve]
    cells: list[Worth] = []
    for (row, column), of_row in values.items():
        if row == reference or column not in share_of:
            continue
        common = [key for key in of_row if all(key in values[reference, c] for c in curve)]
        if not common:
            continue
        of_reference = np.array([[values[reference, c][key] for c in curve] for key in common])
        point, bounds = worth(shares, of_reference, np.array([of_row[key] for key in common]))
        text = _share_text(point, shares)
        if bounds:
            text += f" [{_share_text(bounds[0], shares)} to {_share_text(bounds[1], shares)}]"
        cells.append(
            {
                "row": row,
                "column": column,
                "share": _finite(point),
                "low": _finite(bounds[0]) if bounds else None,
                "high": _finite(bounds[1]) if bounds else None,
                "text": text,
                "n": len(common),
            }
        )
    return cells


def _percent_of_labels(tag: str) -> float | None:
    """Per cent of the labels that a label set takes; None where it is no share."""
    share = LabelSet.of_tag(tag).share
    # 100 * 0.07 is 7.000000000000001
    return None if share is None else round(100 * share, 9)


def _finite(value: float) -> float | None:
    """JSON knows no infinity; the text beside it says ``> 100%``."""
    return value if math.isfinite(value) else None


def _share_text(value: float, shares: Sequence[float]) -> str:
    if value == 0:
        return f"< {shares[0]:g}%"
    return f"> {shares[-1]:g}%" if value == math.inf else f"{float(f'{value:.2g}'):g}%"
