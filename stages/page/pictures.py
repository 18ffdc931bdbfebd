"""Pictures of a run: plain numbers and arrays in, a matplotlib ``Figure`` out.

Every function draws at the size at which a phone still shows its text; ``svg`` gives the text of a
picture that follows the reader's light or dark colours. Accuracies are shares in [0, 1], drawn in
percent; images are (N, H, W, 3), uint8 or float in [0, 1].
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from PIL import Image

from shared.config.methods import METHODS
from shared.runtime.media import figure_text

INK, FAINT, PAPER = "#24292f", "#d0d5da", "#ffffff"
DARK = {INK: "#e3e6e9", FAINT: "#434a52", PAPER: "#16191d"}  # what they become on dark pages
RIGHT, WRONG = "#6b7280", "#C8372D"
LOSSLESS = 64  # pixels per side of a thumbnail, at most

STYLE = {
    "savefig.transparent": True,
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "svg.hashsalt": "few-labels",  # the same picture has the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}


@contextmanager
def _styled() -> Iterator[None]:
    """Draw with ``STYLE``, whatever the reader's own matplotlib is set to; also a decorator."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)  # type: ignore[arg-type]
        yield


@_styled()
def svg(figure: Figure) -> str:
    """The picture as SVG text with a transparent ground; it turns light where the page is dark."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue().decode()
    rules = "".join(
        f'[style*="{part}: {light}"]{{{part}:{dark}!important}}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    head, mark, rest = text[text.index("<svg") :].partition(">")
    # the reader's own sans-serif; what was measured with is wider than most
    rest = rest.replace("'DejaVu Sans', ", "system-ui, 'DejaVu Sans', ")
    return head + mark + style + rest


# --- curves -----------------------------------------------------------------------------------


SHARES = {  # what the stages count as right -> title
    "contrastive_top1": "partner found (%)",
    "top1": "right in batch (%)",
    "agreement": "agrees with teacher (%)",
}
DASHES = ["-", (0, (4, 1.5)), (0, (1, 1)), "-."]  # of the label sets
Curve = Sequence[Mapping[str, float]]  # lines of metrics.jsonl


def thumbnail(image: np.ndarray) -> str:
    """A small picture (S, S, 3) uint8 as a ``data:`` URI; the smallest ones lose nothing."""
    kind = "PNG" if len(image) <= LOSSLESS else "JPEG"
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


@_styled()
def learning_curves(method: str, runs: Mapping[str, Sequence[Curve]]) -> Figure:
    """Loss, and what the stage counts as right, while it trained.

    Args:
        method: its name.
        runs: title of a label set ("" where there is none) -> its runs. One thin line per run;
            their mean, thick, where all log at the same steps.
    """
    lines = [line for curves in runs.values() for curve in curves for line in curve]
    share = next((key for key in SHARES if any(key in line for line in lines)), None)
    panels = {"loss": ("loss (nats)", 1.0)} | ({share: (SHARES[share], 100.0)} if share else {})
    figure = Figure(layout="constrained", figsize=(4.5, 2.2))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (key, (title, scale)) in zip(axes, panels.items(), strict=True):
        ends = []
        for (labels, curves), dashes in zip(runs.items(), DASHES * len(runs), strict=False):
            points = [_points(curve, key, scale) for curve in curves]
            points = [array for array in points if len(array)]
            if points:
                look = {"color": METHODS[method].color, "ls": dashes}
                _draw_runs(ax, points, look, METHODS[method].marker)
                last = float(np.mean([array[-1, 1] for array in points]))
                ends.append((last, labels, look))
        if key == "loss":
            _loss_axis(ax, lines)
        ax.set(title=title, xlabel="updates", xlim=(0, max(line["step"] for line in lines)))
        if len(runs) > 1:
            _end_labels(ax, ends)
        ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    return figure


def _points(curve: Curve, key: str, scale: float) -> np.ndarray:
    """(N, 2) step and scaled value of the lines that have the key."""
    return np.array([(line["step"], scale * line[key]) for line in curve if key in line])


def _draw_runs(
    ax: Axes, points: Sequence[np.ndarray], look: Mapping[str, Any], marker: str
) -> None:
    """The runs of one label set, (N, 2) each, and their mean where all have the same steps."""
    look = dict(look)
    if len(points[0]) < 4:
        look |= {"marker": marker, "clip_on": False}
    thin = {"lw": 0.6, "alpha": 0.5, "marker": ""} if len(points) > 1 else {}
    for array in points:
        ax.plot(*array.T, **look | thin)
    same_steps = all(np.array_equal(array[:, 0], points[0][:, 0]) for array in points)
    if same_steps and len(points) > 1:
        ax.plot(*np.mean(points, axis=0).T, **look)


def _loss_axis(ax: Axes, lines: Curve) -> None:
    """Logarithmic where the loss falls far; a dotted line at the loss of chance, if it is known."""
    losses = [line["loss"] for line in lines if "loss" in line]
    if min(losses) > 0 and max(losses) > 20 * min(losses):
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
    chance = {line["loss_of_chance"] for line in lines if "loss_of_chance" in line}
    if len(chance) == 1:
        level = chance.pop()
        ax.axhline(level, color=INK, lw=0.8, ls=":")
        ax.annotate(
            "chance",
            (1, level),
            (-3, -3),
            ("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="top",
        )


def _end_labels(ax: Axes, ends: Sequence[tuple[float, str, Mapping[str, Any]]]) -> None:
    """Write names beside the axes at the heights of the curves' ends; names never touch.

    Args:
        ax: with its limits and scales as they will stay.
        ends: height, name, and the look (as of ``Axes.plot``) of a sample before the name.
    """
    figure = ax.get_figure(root=True)
    assert figure
    height = figure.get_size_inches()[1] * 72 * ax.get_position().height * 0.95  # points, about
    transform = ax.transScale + ax.transLimits  # data -> share of the axes, before any layout
    x = ax.get_xlim()[1]
    ends = sorted(ends, key=lambda end: end[0])
    wanted = np.array([transform.transform((x, y))[1] for y, _, _ in ends])
    gap, places = 11.5 / height, wanted.copy()
    for _ in range(200):  # neighbours that touch move apart by equal parts
        overlap = np.clip(gap - np.diff(places), 0, None)
        places[:-1] -= overlap / 2
        places[1:] += overlap / 2
    beside = {"transform": ax.transAxes, "clip_on": False}
    for (_, name, look), at, place in zip(ends, wanted, places, strict=True):
        ax.plot([1, 1.05], [at, place], color=FAINT, lw=0.8, **beside)
        sample = [1.06, 1.13] if look.get("ls") else [1.085]
        ax.plot(sample, [place] * len(sample), **{"ls": "", **look}, **beside)
        ax.annotate(
            figure_text(name),
            (sample[-1], place),
            (6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )


@dataclass(frozen=True)
class Point:
    """Accuracy of a method, a share, with its 95% interval.

    Attributes:
        method: its name.
        x: number of labels, or of parameters.
        mean: the accuracy.
        low: lower end of the interval.
        high: upper end of the interval.
        name: beside the point; empty: the method's.
    """

    method: str
    x: int
    mean: float
    low: float
    high: float
    name: str = ""


@_styled()
def label_efficiency(curves: Mapping[str, Sequence[Point]]) -> Figure:
    """Accuracy against the number of labels, with the band of the interval.

    Args:
        curves: name of a method -> its points, with x the number of labels.
    """
    figure = Figure(layout="constrained", figsize=(4.5, 3.4))
    ax = figure.subplots()
    ends = []
    for name, points in curves.items():
        method = METHODS[name]
        points = sorted(points, key=lambda point: point.x)
        n = np.array([point.x for point in points])
        mean, low, high = 100 * np.array([(p.mean, p.low, p.high) for p in points]).T
        ax.plot(n, mean, color=method.color, marker=method.marker)
        ax.fill_between(n, low, high, color=method.color, alpha=0.18, lw=0)
        ax.vlines(n, low, high, color=method.color, lw=0.8)
        look = {"color": method.color, "marker": method.marker}
        ends.append((n[-1], (mean[-1], method.short, look)))
    counts = sorted({point.x for points in curves.values() for point in points})
    _count_axis(ax, counts, "labels (log scale)")
    _accuracy_axis(ax)
    last = max(n for n, _ in ends)
    _end_labels(ax, [end for n, end in ends if n == last])
    for n, (y, name, _) in ends:
        if n != last:
            ax.annotate(name, (n, y), (6, -9), textcoords="offset points")
    return figure


@_styled()
def accuracy_against_parameters(panels: Mapping[str, Sequence[Point]]) -> Figure:
    """Accuracy against the size of the network, one panel per label set.

    Args:
        panels: title of the panel -> points, with x the number of parameters.
    """
    figure = Figure(layout="constrained", figsize=(4.5, 0.2 + 2.1 * len(panels)))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    counts = sorted({point.x for points in panels.values() for point in points})
    for ax, (title, points) in zip(axes, panels.items(), strict=True):
        ends = []
        for point in points:
            method, y = METHODS[point.method], 100 * point.mean
            look = {"color": method.color, "marker": method.marker}
            ax.vlines(point.x, 100 * point.low, 100 * point.high, color=method.color, lw=1)
            ax.plot(point.x, y, **look)
            ends.append((y, point.name or method.short, look))
        _count_axis(ax, counts, "parameters (log scale)" if ax is axes[-1] else "")
        _accuracy_axis(ax)
        _end_labels(ax, ends)
        ax.set_title(figure_text(title))
    return figure


def _count_axis(ax: Axes, counts: Sequence[int], title: str) -> None:
    """A logarithmic axis whose ticks are the numbers that occur, as far as they do not touch.

    It has no place for 0, which an edited run may hold.
    """
    counts = [count for count in counts if count > 0] or [1]
    ticks: list[int] = []
    spread = max(counts) / min(counts)
    for count in counts:
        if not ticks or count / ticks[-1] > max(spread**0.16, 1.1):
            ticks.append(count)
    margin = max(spread**0.06, 1.15)
    # the limits first: matplotlib warns of a logarithmic axis that has to find them among zeros
    ax.set(xlim=(min(counts) / margin, max(counts) * margin), xlabel=title)
    ax.set_xscale("log")
    ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())


def _accuracy_axis(ax: Axes) -> None:
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, 0), min(high, 100.5))
    ax.set_ylabel("test accuracy (%)")


def short(count: float) -> str:
    """A count in few characters: 14, 1437, 78k, 24M."""
    if count >= 1e6:
        return f"{count / 1e6:.{0 if count >= 1e7 else 1}f}M"
    return f"{count / 1e3:.0f}k" if count >= 1e4 else f"{count:.0f}"


# --- one classifier ----------------------------------------------------------------------------


@_styled()
def reliability(method: str, confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> Figure:
    """Share of right answers against their confidence.

    Args:
        method: name of the method whose answers they are.
        confidence: (N,) highest class probability.
        right: (N,) bool, whether that class is the true one.
        bins: of equal width, as the calibration error of ``shared.training.evaluate`` has them.
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    there = counts > 0
    mean = [
        np.bincount(place, weights=w, minlength=bins)[there] / counts[there]
        for w in (confidence, right)
    ]
    figure = Figure(layout="constrained", figsize=(4.0, 3.9))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    color, marker = METHODS[method].color, METHODS[method].marker
    upper.plot([0, 100], [0, 100], color=INK, lw=0.8, ls=":")
    upper.plot(100 * mean[0], 100 * mean[1], color=color, marker=marker)
    upper.text(100, 3, "dotted: perfectly calibrated", ha="right", va="bottom")
    upper.set(ylabel="right (%)", xlim=(0, 101), ylim=(0, 102))
    lower.bar((np.arange(bins) + 0.5) * 100 / bins, counts, width=90 / bins, color=color)
    lower.set(xlabel="confidence (%)", ylabel="images")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    return figure


@_styled()
def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """True classes in rows, predicted ones in columns; right answers and mistakes in two colours.

    Args:
        matrix: (C, C) numbers of images.
        classes: their C names.
    """
    n = len(classes)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    strength = np.sqrt(share)  # a few mistakes are to be seen
    side = min(max(3.6, 1.0 + 0.3 * n), 9)
    figure = Figure(layout="constrained", figsize=(side, side))
    ax = figure.subplots()
    ax.imshow(_tinted(WRONG, np.where(np.eye(n) > 0, 0, strength)), interpolation="none")
    ax.imshow(_tinted(RIGHT, np.eye(n) * strength), interpolation="none")
    if n <= 20:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                ax.text(
                    column,
                    row,
                    f"{count:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=_readable(float(strength[row, column])),
                )
    if n <= 40:
        turn = 90 if max(map(len, classes)) > 2 else 0
        ax.set_xticks(range(n), [_clip(name) for name in classes], rotation=turn)
        ax.set_yticks(range(n), [_clip(name) for name in classes])
    ax.set(xlabel="predicted", ylabel="true")
    _bare(ax)
    ax.spines[:].set(visible=True, color=FAINT)
    return figure


@_styled()
def robustness(accuracy: np.ndarray, corruptions: Sequence[str], clean: float) -> Figure:
    """Accuracy under each corruption and severity, the hardest last; the more lost, the darker.

    Args:
        accuracy: (K, S) shares; severities 1..S.
        corruptions: K names.
        clean: accuracy on the untouched images.
    """
    order = np.argsort(-accuracy.mean(1))
    names = [figure_text(corruptions[int(i)].replace("_", " ")) for i in order]
    with_mean = np.column_stack([accuracy, accuracy.mean(1)])[order]  # (K, S + 1)
    K, S = accuracy.shape
    figure = Figure(layout="constrained", figsize=(4.7, 0.8 + 0.23 * (K + 1)))
    ax = figure.subplots()
    lost = np.clip(clean - with_mean, 0, 1)
    ax.imshow(_tinted(WRONG, lost), aspect="auto", interpolation="none")
    for (row, column), value in np.ndenumerate(with_mean):
        ax.text(
            column,
            row,
            f"{100 * value:.0f}",
            ha="center",
            va="center",
            fontsize=8.5,
            color=_readable(float(lost[row, column])),
        )
    ax.set_xticks(range(S + 1), [*map(str, range(1, S + 1)), "mean"])
    ax.set_yticks(range(K), names)
    ax.axvline(S - 0.5, color=INK, lw=0.8)
    ax.set(xlabel="severity", title=f"accuracy (%); on untouched images {100 * clean:.1f}")
    _bare(ax)
    return figure


def _tinted(color: str, strength: np.ndarray) -> np.ndarray:
    """(H, W, 4) one colour, the more opaque the larger the strength; 0 draws nothing."""
    return np.dstack([np.broadcast_to(to_rgb(color), (*strength.shape, 3)), strength])


def _readable(strength: float) -> str:
    """Colour of a number on a tinted cell; the light one is not PAPER, which turns dark."""
    return "#fefefe" if strength > 0.6 else INK


def _bare(ax: Axes) -> None:
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _clip(name: str, length: int = 14) -> str:
    return figure_text(name if len(name) <= length else name[: length - 1] + "…")


@_styled()
def feature_map(points: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Figure:
    """Images as points in the plane, coloured by class and named at the middle of each class.

    Args:
        points: (N, 2).
        labels: (N,) int.
        classes: names in the order of the labels.
    """
    figure = Figure(layout="constrained", figsize=(4.7, 4.3))
    ax = figure.subplots()
    # light and dark turns of the hues, so that neighbours differ in more than hue
    colors = mpl.colormaps["tab20"](np.linspace(0, 1, 20))[:, :3]
    ax.scatter(
        *points.T,
        c=colors[labels % 20],
        s=max(2.0, min(14.0, 8000 / max(len(points), 1))),
        lw=0,
        rasterized=len(points) > 3000,
    )
    if len(classes) <= 40:
        for label in np.unique(labels):
            x, y = np.median(points[labels == label], axis=0)
            ax.text(
                x,
                y,
                _clip(str(classes[label])),
                ha="center",
                va="center",
                fontweight="bold",
                bbox={"boxstyle": "round,pad=0.15", "fc": PAPER, "ec": "none", "alpha": 0.8},
            )
    ax.set(xticks=[], yticks=[], aspect="equal")
    _bare(ax)
    return figure


# --- sheets of images --------------------------------------------------------------------------


@_styled()
def pairs(images: np.ndarray, first: np.ndarray, second: np.ndarray) -> Figure:
    """Images above the two augmented views that pretraining sees of each; (N, H, W, 3) each."""
    figure, ax = _sheet(len(images), 3, 0.65, left=0.6)
    rows = {"image": images, "view 1": first, "view 2": second}
    for row, (name, batch) in enumerate(rows.items()):
        ax.text(-0.1, row + 0.5, name, ha="right", va="center")
        for column, image in enumerate(batch):
            _put(ax, image, column, row)
    return figure


@_styled()
def mistakes(
    images: np.ndarray,
    true: Sequence[str],
    predicted: Sequence[str],
    confidence: np.ndarray,
    columns: int = 4,
) -> Figure:
    """Images that were put in a wrong class, with that class, its probability and the true one.

    Args:
        images: (N, H, W, 3).
        true: N class names.
        predicted: N class names.
        confidence: (N,) probability of the predicted class.
        columns: images in a row.
    """
    rows, side, above = -(-len(images) // columns), 0.95, 0.36
    figure, ax = _sheet(min(columns, len(images)), rows, side, above=above)
    for i, image in enumerate(images):
        row, column = i // columns * (1 + above / side), i % columns
        _put(ax, image, column, row, frame=WRONG)
        text = f"{_clip(predicted[i], 11)} {100 * confidence[i]:.0f}%\ntrue: {_clip(true[i], 9)}"
        ax.text(column + 0.03, row - 0.02, text, va="bottom", fontsize=8, linespacing=1.15)
    return figure


@_styled()
def retrieval(queries: np.ndarray, neighbours: np.ndarray, same: np.ndarray) -> Figure:
    """Test images and, in their rows, the training images nearest in feature space.

    Args:
        queries: (Q, H, W, 3).
        neighbours: (Q, K, H, W, 3), nearest first.
        same: (Q, K) bool, whether the neighbour has the query's class.
    """
    Q, K = same.shape
    figure, ax = _sheet(K + 1.4, Q, 0.55, head=0.25)
    ax.text(0.5, -0.06, "image", ha="center", va="bottom")
    ax.text(1.4, -0.06, "nearest first", va="bottom")
    for row in range(Q):
        _put(ax, queries[row], 0, row, frame=INK)
        for column in range(K):
            right = bool(same[row, column])
            _put(
                ax,
                neighbours[row, column],
                column + 1.4,
                row,
                frame=RIGHT if right else WRONG,
                cross=not right,
            )
    return figure


def _sheet(
    columns: float, rows: int, side: float, *, left: float = 0, head: float = 0, above: float = 0
) -> tuple[Figure, Axes]:
    """Bare axes in which an image takes one unit, ``side`` inches.

    Inches are kept for text: ``left`` of all, over the whole (``head``), ``above`` every row.
    """
    figure = Figure((left + columns * side, head + rows * (side + above)))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.axis("off")
    bottom = rows * (1 + above / side) - above / side
    ax.set(xlim=(-left / side, columns), ylim=(bottom, -(head + above) / side))
    ax.set_autoscale_on(False)
    return figure, ax


def _put(
    ax: Axes, image: np.ndarray, column: float, row: float, frame: str = FAINT, cross: bool = False
) -> None:
    """Draw an image in its unit square, with a frame; a cross says so without colour."""
    a, b = 0.04, 0.96
    # without interpolation the pixels go into the file as they are, and are enlarged on show
    ax.imshow(
        image,
        extent=(column + a, column + b, row + b, row + a),
        interpolation="none",
        aspect="auto",
        vmin=0,
        vmax=1,
    )
    ax.plot(np.array([a, b, b, a, a]) + column, np.array([a, a, b, b, a]) + row, color=frame, lw=1)
    if cross:
        ax.plot(column + 0.88, row + 0.14, "x", color=WRONG, markersize=5, mew=1.6)
