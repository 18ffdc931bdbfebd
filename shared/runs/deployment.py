"""Which classifier of a run to deploy, and whether pretraining paid: from what is in its folder.

The rule. Of the rows with the same labels the one with the highest test accuracy is deployed. A
row that is not clearly worse is preferred: the student, because it is small, if it is at most
``CLOSE`` points behind the best saved network; then that network, because it is ready. Clearly
means that the 95% interval of the difference leaves zero out. Rows are compared image by image on
the same test images, and where there are several label draws, also draw by draw. Pretraining paid
where the row to deploy, or else the best pretrained one, is clearly better than the best row
without it. Fewer than ``FEW`` test images decide nothing.
"""

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from shared.config.labelset import LabelSet
from shared.config.methods import DEPLOYED, METHODS, ancestors
from shared.runs.statistics import interval
from shared.runtime.artifacts import Result, read_predictions

FEW = 50  # test images
CLOSE = 2.0  # points of accuracy that a small network may cost, where few images leave all open

Rows = Mapping[str, Sequence[Result]]  # method -> its evaluated rows, one per label draw


@dataclass(frozen=True)
class Gain:
    """How much more accurate one method is than another, in per cent of the test images.

    Attributes:
        points: the difference.
        half: half its 95% interval; None where the rows cannot be compared.
    """

    points: float
    half: float | None

    @property
    def clear(self) -> bool:
        """Whether zero is outside the interval."""
        return self.half is not None and abs(self.points) > self.half

    def __str__(self) -> str:
        half = "" if self.half is None else f" ± {self.half:.1f}"
        return f"{self.points:+.1f}{half} points"


@dataclass(frozen=True)
class Advice:
    """What to deploy.

    Attributes:
        method: its name.
        ready: the same, or where its model is not saved the most accurate one that is; None where
            there is none.
        deploy: what to deploy, in a sentence.
        reasons: why not the most accurate one; whether pretraining paid.
    """

    method: str
    ready: str | None
    deploy: str
    reasons: list[str]

    @property
    def sentences(self) -> list[str]:
        """All of them."""
        return [self.deploy, *self.reasons]


def advise(run: Path, rows: Sequence[Result]) -> Advice | None:
    """What to deploy of the rows of one label set; None where none was tested.

    Args:
        run: folder of the run, which holds what the rows say of each test image.
        rows: results with the same labels.

    Raises:
        UserError: where a file of predictions is damaged.
    """
    by_method: dict[str, list[Result]] = {}
    for row in rows:
        if "top1" in row:
            by_method.setdefault(row["stage"], []).append(row)
    if not by_method:
        return None

    def order(method: str) -> tuple[float, bool, bool, int]:
        """By accuracy; of equal ones the student, what is saved, and what is small come first."""
        size = by_method[method][0]["parameters"]
        return _accuracy(by_method[method]), method == DEPLOYED, METHODS[method].saved, -size

    ranked = sorted(by_method, key=order, reverse=True)
    best = ranked[0]
    ready = [method for method in ranked if METHODS[method].saved][:1]
    tested = _test_images(run, by_method[best])
    undecided = tested is not None and tested < FEW
    small = []  # few images cannot show that the student is worse
    if DEPLOYED in by_method and not undecided:
        behind = _accuracy(by_method[ready[0]]) - _accuracy(by_method[DEPLOYED])
        small = [DEPLOYED] if round(100 * behind, 6) <= CLOSE else []
    candidates = [*small, *ready, best]
    gains = {method: gain(run, by_method[best], by_method[method]) for method in candidates}
    as_good = (m for m in candidates if m == best or gains[m].half is not None)
    method = next(m for m in as_good if m == best or not gains[m].clear)
    reasons = [_why_not(best, gains[method], method)] if method != best else []
    if tested is not None and undecided:
        reasons.insert(0, _too_few(run, by_method[method][0], tested))
    reasons += _pretraining(run, by_method, ranked, method, undecided)
    asked = method if METHODS[method].saved else next(iter(ready), None)
    return Advice(method, asked, _deploy(run, by_method, method, undecided), reasons)


def _deploy(run: Path, rows: Rows, method: str, undecided: bool) -> str:
    verb = "For now, deploy" if undecided else "Deploy"
    labels = LabelSet.of_tag(rows[method][0]["labels"])
    folder = run / labels.folder(method, rows[method][0]["seed"])
    share = f"{100 * _accuracy(rows[method]):.1f}% of the test images right"
    if METHODS[method].saved:
        return f"{verb}: {METHODS[method].title} ({folder}), {share}."
    return (
        f"{verb}: {METHODS[method].title}, {share}; its model is not saved: fit it with the"
        f" hyper-parameters in {folder / 'meta.json'}."
    )


def _too_few(run: Path, row: Result, tested: int) -> str:
    """What is missing; where a person gives the labels in a file, also how to get it."""
    too_few = f"Undecided: {tested} test images are too few to tell the rows apart"
    if LabelSet.of_tag(row["labels"]).file is None:
        return f"{too_few}."
    more = f"python -m stages.suggest {shlex.quote(str(run))} --budget {FEW} --test"
    return f"{too_few}; to draw more: {more}"


def _why_not(best: str, more: Gain, deployed: str) -> str:
    """Why the row with the highest accuracy is not the one to deploy."""
    reason = "the student is smaller" if deployed == DEPLOYED else "its model is not saved"
    return f"{_title(best)} has {more}: not clearly more, and {reason}."


def _pretraining(
    run: Path, rows: Rows, ranked: Sequence[str], deployed: str, undecided: bool
) -> list[str]:
    """Whether pretraining paid; nothing where there are only rows with, or without."""
    pretrained = [method for method in ranked if "pretrain" in ancestors(method)]
    others = [method for method in ranked if method not in pretrained]
    if not pretrained or not others:
        return []
    ours = deployed if deployed in pretrained else pretrained[0]
    without = others[0]
    difference = gain(run, rows[ours], rows[without])
    best = f"{METHODS[without].title}, {100 * _accuracy(rows[without]):.1f}%"
    of_ours = "" if ours == deployed else f" of {METHODS[ours].title}"
    against = f"{difference}{of_ours} over the best row without it ({best})"
    if undecided:
        return [f"Whether pretraining paid is undecided, for want of test images: {against}."]
    if not difference.clear:
        return [f"Whether pretraining paid is undecided: {against}."]
    return [f"Pretraining {'paid' if difference.points > 0 else 'did not pay here'}: {against}."]


def gain(run: Path, rows: Sequence[Result], others: Sequence[Result]) -> Gain:
    """How much more accurate some rows are than others: paired, with the 95% interval.

    Over the test images that both rows saw, and of several label draws in common also by Student's
    t over their differences: the wider one counts. Few draws may agree by chance, and all of them
    are tested on the same images.

    Args:
        run: folder of the run.
        rows: of one method, one per label draw.
        others: of another method, with the same labels.
    """
    pairs = [(a, b) for a in rows for b in others if a["seed"] == b["seed"]]
    if not pairs:
        return Gain(100 * (_accuracy(rows) - _accuracy(others)), None)
    points, of_draws = interval([100 * (a.get("top1", 0) - b.get("top1", 0)) for a, b in pairs])
    halves = [half for half in (of_draws, _half_of_images(run, pairs)) if half]
    return Gain(points, max(halves, default=None))


def _half_of_images(run: Path, pairs: Sequence[tuple[Result, Result]]) -> float | None:
    """Half the interval that the choice of test images leaves; None where they are not noted.

    Agresti and Min 2005: from the discordant pairs, with one half added to each kind, so that few
    images do not look certain. Of several draws an image counts with its mean difference.
    """
    differences: Counter[int] = Counter()
    images = 0
    for pair in pairs:
        first, second = (_right(run, row) for row in pair)
        if first is None or second is None or first.keys() != second.keys():
            return None
        images += len(first)
        differences.update({image: right - second[image] for image, right in first.items()})
    each = [total / len(pairs) for total in differences.values()]
    n = images / len(pairs) + 2
    variance = (sum(mean**2 for mean in each) + 1 - sum(each) ** 2 / n) / n**2
    return 100 * 1.96 * math.sqrt(variance)


def _right(run: Path, row: Result) -> dict[int, bool] | None:
    """Test image -> whether the row is right; None where it was not noted."""
    folder = run / LabelSet.of_tag(row["labels"]).folder(row["stage"], row["seed"])
    arrays = read_predictions(folder)
    if arrays is None:
        return None
    right = arrays["predictions"] == arrays["targets"]
    return dict(zip(arrays["positions"].tolist(), right.tolist(), strict=True))


def _test_images(run: Path, rows: Sequence[Result]) -> int | None:
    right = _right(run, rows[0])
    return None if right is None else len(right)


def _accuracy(rows: Sequence[Result]) -> float:
    return mean(row.get("top1", 0.0) for row in rows)


def _title(method: str) -> str:
    title = METHODS[method].title
    return title[0].upper() + title[1:]
