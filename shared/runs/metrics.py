"""The columns of results: what `shared.training.evaluate` measures, and how tables print it."""

from typing import NamedTuple


class Metric(NamedTuple):
    """How a measurement is printed.

    Attributes:
        title: of its column.
        factor: from the measurement to the printed unit.
        digits: after the decimal point.
        meaning: what the title stands for, where readers may not know it.
    """

    title: str
    factor: int
    digits: int
    meaning: str = ""


# Keys of `shared.runtime.artifacts.Result`.
METRICS = {
    "top1": Metric("top-1 %", 100, 1),
    "top5": Metric("top-5 %", 100, 1),
    "nll": Metric("NLL", 1, 3, "mean negative log likelihood, nats"),
    "ece": Metric("ECE %", 100, 1, "expected calibration error, 15 bins"),
    "seconds": Metric("seconds", 1, 0),
}


ACCURACIES = ("top1", "top5")  # shares of the test images, of which more is better


def legend() -> str:
    """What the titles stand for: ``NLL: mean negative log likelihood, nats; ...``."""
    return "; ".join(
        f"{metric.title.removesuffix(' %')}: {metric.meaning}"
        for metric in METRICS.values()
        if metric.meaning
    )
