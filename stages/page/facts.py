"""Numbers and words that several sections of the page show: pure functions of a run's results."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from shared.config.labelset import LabelSet
from shared.config.methods import DEPLOYED, METHODS, REFERENCE, Method
from shared.runs.statistics import interval, worth
from shared.runtime.artifacts import Result
from shared.runtime.errors import UserError


@dataclass(frozen=True)
class Group:
    """The results of one method with one label set, one row per label draw."""

    method: Method
    labels: LabelSet
    n_labels: int
    parameters: int
    rows: Sequence[Result]

    @property
    def label_title(self) -> str:
        """What text calls the label set, with its number of labels."""
        return f"{self.n_labels:,} labels ({self.labels.title})"

    @property
    def folder(self) -> str:
        """Name of the folder of the first label draw."""
        return self.labels.folder(self.method.name, self.rows[0]["seed"])

    def measurements(self, metric: str) -> list[float]:
        """The values of a metric, one per label draw that has it."""
        values = [row.get(metric) for row in self.rows]
        return [value for value in values if value is not None]


def groups(rows: Iterable[Result]) -> dict[tuple[str, str], Group]:
    """The results by tag of the label set and name of the method, in the order of the table."""
    together: dict[tuple[str, str], list[Result]] = {}
    for row in rows:
        together.setdefault((row["labels"], row["stage"]), []).append(row)
    return {
        (tag, method): Group(
            METHODS[method],
            LabelSet.of_tag(tag),
            members[0]["n_labels"],
            members[0]["parameters"],
            members,
        )
        for (tag, method), members in together.items()
    }


@dataclass(frozen=True)
class Accuracy:
    """Mean top-1 accuracy with its 95% interval, shares in [0, 1].

    Attributes:
        mean: over the label draws.
        low: lower end of the interval.
        high: upper end of the interval.
        over: what the interval is over, in words.
    """

    mean: float
    low: float
    high: float
    over: str


def accuracy(top1: Sequence[float], n_test: int | None) -> Accuracy | None:
    """Mean accuracy with its 95% interval.

    Args:
        top1: of one method and label set, one per label draw.
        n_test: number of test images; None where unknown.

    Returns:
        The interval is Student's t over the draws or, for one draw, Wilson's over the test images.
        None where nothing was tested.
    """
    if not top1:
        return None
    mean, half = interval(top1)
    if half is not None:
        return Accuracy(mean, max(mean - half, 0), min(mean + half, 1), f"{len(top1)} label draws")
    if n_test:
        return Accuracy(mean, *wilson(mean, n_test), f"1 label draw, {n_test:,} test images")
    return Accuracy(mean, mean, mean, "1 label draw")


def wilson(share: float, n: int) -> tuple[float, float]:
    """95% interval of a share of n (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.975)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def method_to_deploy(results: Iterable[tuple[str, float]]) -> str:
    """The method with the role ``deployed`` or, where none is finished, the most accurate method.

    Args:
        results: name of a method and a top-1 accuracy, at least one; a method may occur often.
    """
    accuracies: dict[str, list[float]] = {}
    for method, top1 in results:
        accuracies.setdefault(method, []).append(top1)
    if DEPLOYED in accuracies:
        return DEPLOYED
    return max(accuracies, key=lambda method: float(np.mean(accuracies[method])))


def labels_worth(rows: Iterable[Result], tag: str, method: str, n_train: int | None) -> str:
    """How many labels the reference method needs for the same accuracy, in words.

    Args:
        rows: results of the run.
        tag: the label set with which
        method: the method, by name, has the accuracy.
        n_train: labeled training images in all, to give shares of them; None where unknown.

    Raises:
        UserError: where the run has too few results of the reference.
    """
    reference = METHODS[REFERENCE].short
    top1, tags = {}, {}
    for row in rows:
        if "top1" in row:
            top1[row["stage"], row["labels"], row["seed"]] = row["top1"]
            if row["stage"] == REFERENCE:
                tags[row["n_labels"]] = row["labels"]
    counts = sorted(tags)
    seeds = sorted(
        seed
        for name, labels, seed in top1
        if (name, labels) == (method, tag)
        and all((REFERENCE, tags[count], seed) in top1 for count in counts)
    )
    if len(counts) < 2 or not seeds:
        raise UserError(
            f"{reference} results at several label counts are needed; run pipeline.py"
            " with other --labels, or --table label_efficiency"
        )
    curves = [[top1[REFERENCE, tags[count], seed] for count in counts] for seed in seeds]
    accuracies = [top1[method, tag, seed] for seed in seeds]
    count, bounds = worth(counts, np.array(curves), np.array(accuracies))
    spread = ""
    if bounds:
        low, high = (_count_in_words(bound, counts, n_train) for bound in bounds)
        spread = f", 95% interval {low} to {high}"
    known = ", ".join(f"{count:,}" for count in counts[:-1]) + f" and {counts[-1]:,}"
    return (
        f"{_count_in_words(count, counts, n_train)}{spread}"
        f" ({plural(len(seeds), 'label draw')}; {reference} results at {known} labels)"
    )


def _count_in_words(count: float, counts: Sequence[int], n_train: int | None) -> str:
    """A number of labels as ``worth`` gives it, where 0 and infinity lie outside of ``counts``."""
    inside = min(max(count, counts[0]), counts[-1])
    share = float(f"{100 * inside / n_train:.2g}") if n_train else 0
    share_text = f" ({share:g}%)" if n_train else ""
    sign = "fewer than " if count == 0 else "more than " if count == math.inf else ""
    return f"{sign}{inside:,.0f} labels{share_text}"


def plural(count: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{count} {noun}{'s' * (count > 1)}"
