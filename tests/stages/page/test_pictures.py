"""What the pictures show is what they were given; their files are small, fixed and complete."""

import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config.methods import CLASSIFIERS, METHODS
from stages.page import pictures
from stages.page.pictures import Point

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


def point(method: str, x: int, mean: float) -> Point:
    return Point(method, x, mean, mean - 0.1, mean + 0.1)


def texts(figure) -> list[str]:
    root = ET.fromstring(pictures.svg(figure))
    return [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_every_method_has_its_own_look():
    for aspect in ("short", "color", "marker"):
        assert len({getattr(method, aspect) for method in CLASSIFIERS.values()}) == len(CLASSIFIERS)


def luminance(color: str) -> float:
    """WCAG 2's relative luminance."""
    values = [
        v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
        for v in mpl.colors.to_rgb(color)
    ]
    return float(np.dot([0.2126, 0.7152, 0.0722], values))


@pytest.mark.parametrize("color", sorted({method.color for method in CLASSIFIERS.values()}))
@pytest.mark.parametrize("ground", ["#ffffff", pictures.DARK[pictures.PAPER]])
def test_colours_stand_out_on_light_and_dark(color, ground):
    """3:1, which WCAG 2 asks of graphics."""
    low, high = sorted([luminance(color), luminance(ground)])
    assert (high + 0.05) / (low + 0.05) >= 3


def test_svg_is_the_same_each_time_and_has_text_and_dark_rules():
    curves = {"distill": [point("distill", 14, 0.9), point("distill", 144, 0.95)]}
    first, second = (pictures.svg(pictures.label_efficiency(curves)) for _ in range(2))
    assert first == second
    assert first.startswith("<svg")
    assert "prefers-color-scheme: dark" in first
    assert f"fill: {pictures.INK}" in first  # what the rules look for
    assert f"stroke: {pictures.INK}" in first
    assert "distilled" in texts(pictures.label_efficiency(curves))


def test_style_does_not_leak_and_others_do_not_leak_in():
    curves = {"linear": [point("linear", 14, 0.9)]}
    before = dict(mpl.rcParams)
    plain = pictures.svg(pictures.label_efficiency(curves))
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"font.size": 30, "xtick.direction": "in", "axes.ymargin": 0.4}):
        assert pictures.svg(pictures.label_efficiency(curves)) == plain


def test_label_efficiency_draws_means_and_bands():
    curves = {
        "supervised": [point("supervised", 144, 0.8), point("supervised", 14, 0.6)],
        "distill": [point("distill", 14, 0.9)],
    }
    ax = pictures.label_efficiency(curves).axes[0]
    assert ax.get_xscale() == "log"
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[14, 60], [144, 80]])
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(50)
    assert band[:, 1].max() == pytest.approx(90)
    assert list(ax.get_xticks()) == [14, 144]
    assert ax.get_ylim()[1] <= 100.5


def test_accuracy_against_parameters_has_a_panel_per_label_set():
    panels = {
        "1%": [point("finetune", 1000, 0.9), point("distill", 2000, 0.8)],
        "10%": [point("distill", 2000, 0.95)],
    }
    figure = pictures.accuracy_against_parameters(panels)
    assert [ax.get_title("left") for ax in figure.axes] == ["1%", "10%"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xydata(), [[1000, 90]])
    assert {"fine-tuned", "distilled"} <= set(texts(figure))


@pytest.mark.parametrize("counts", [[0], [0, 0], [0, 14]])
def test_counts_of_zero_have_no_place_on_the_axis(counts):
    points = [point("distill", count, 0.9) for count in counts]
    for figure in (
        pictures.label_efficiency({"distill": points}),
        pictures.accuracy_against_parameters({"1%": points}),
    ):
        assert list(figure.axes[0].get_xticks()) == [max(1, *counts)]
        assert pictures.svg(figure).startswith("<svg")


@pytest.mark.parametrize("stage", METHODS)
def test_learning_curves(stage):
    share = {"pretrain": "contrastive_top1", "distill": "agreement"}.get(stage, "top1")
    run = [
        {"step": step, "loss": 9.0 / step, share: 0.5, "loss_of_chance": 5.0}
        for step in (1, 2, 3, 4, 5)
    ]
    other = [{**line, "loss": 3 * line["loss"]} for line in run]
    loss, right = pictures.learning_curves(stage, {"1%": [run, other], "10%": [run]}).axes
    np.testing.assert_allclose(loss.lines[2].get_ydata(), [18, 9, 6, 4.5, 3.6])  # the mean
    np.testing.assert_allclose(right.lines[0].get_ydata(), 50)
    assert loss.get_yscale() == "linear"


def test_learning_curves_of_runs_that_log_differently_have_no_mean():
    runs = [[{"step": step, "loss": 1.0 / step**2} for step in range(1, n)] for n in (6, 9)]
    (loss,) = pictures.learning_curves("linear", {"": runs}).axes
    assert [len(line.get_xdata()) for line in loss.lines] == [5, 8]
    assert loss.get_yscale() == "log"  # it fell by more than 20


def test_reliability_bins():
    """Two full bins: 0.55 in the 9th (right in half the cases), 1.0 in the last (always)."""
    confidence = np.array([0.55, 0.55, 1.0, 1.0])
    upper, lower = pictures.reliability("distill", confidence, np.array([1, 0, 1, 1]) > 0).axes
    np.testing.assert_allclose(upper.lines[1].get_xydata(), [[55, 50], [100, 100]])
    heights = [patch.get_height() for patch in lower.patches]
    assert len(heights) == 15
    assert (heights[8], heights[14], sum(heights)) == (2, 2, 4)


def test_confusion_numbers_and_strengths():
    matrix = np.array([[3, 1], [0, 4]])
    figure = pictures.confusion(matrix, ["cat", "dog"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["3", "1", "4"]
    wrong, right = (image.get_array() for image in figure.axes[0].images)
    np.testing.assert_allclose(wrong[..., 3], [[0, 0.5], [0, 0]])  # root of 1 in 4
    np.testing.assert_allclose(right[..., 3], [[0.75**0.5, 0], [0, 1]])
    big = pictures.confusion(np.eye(50), [str(k) for k in range(50)])
    assert not big.axes[0].texts


def test_robustness_sorts_and_averages():
    accuracy = np.array([[0.5, 0.3], [0.9, 0.7]])
    figure = pictures.robustness(accuracy, ["snow_storm", "fog"], clean=0.95)
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["fog", "snow storm"]
    assert [text.get_text() for text in ax.texts] == ["90", "70", "80", "50", "30", "40"]
    assert "95.0" in ax.get_title("left")


def test_feature_map_names_classes_that_occur():
    points, labels = rng.normal(size=(40, 2)), np.repeat([0, 2], 20)
    figure = pictures.feature_map(points, labels, ["a", "b", "a very long name indeed"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["a", "a very long n…"]


def test_a_dollar_in_a_name_is_no_formula():
    names = ["$x$", "$\\broken$"]
    assert set(names) <= set(texts(pictures.confusion(np.eye(2), names)))
    panels = {names[0]: [Point("distill", 1, 0.9, 0.8, 1.0, names[1])]}
    assert set(names) <= set(texts(pictures.accuracy_against_parameters(panels)))
    assert names[0] in texts(pictures.robustness(np.ones((1, 2)), names[:1], 1.0))


def test_sheets_hold_every_image():
    sheets = {
        12: pictures.pairs(*IMAGES.reshape(3, 4, 8, 8, 3)),
        5: pictures.mistakes(IMAGES[:5], ["a"] * 5, ["b"] * 5, np.full(5, 0.9)),
        9: pictures.retrieval(
            IMAGES[:3], IMAGES[3:9].reshape(3, 2, 8, 8, 3), np.array([[1, 1], [0, 1], [0, 0]]) > 0
        ),
    }
    for number, figure in sheets.items():
        assert len(figure.axes[0].images) == number
        assert pictures.svg(figure).count("<image") == number
    crosses = [line for line in sheets[9].axes[0].lines if line.get_marker() == "x"]
    assert len(crosses) == 3
    assert "b 90%\ntrue: a" in [text.get_text() for text in sheets[5].axes[0].texts]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_names_at_the_end_never_touch(heights):
    ax = pictures.Figure(figsize=(4.5, 3.4)).subplots()
    ax.set_ylim(0, 100)
    pictures._end_labels(ax, [(y, str(y), {"color": "k", "marker": "o"}) for y in heights])
    places = sorted(text.xy[1] for text in ax.texts)
    points = 3.4 * 72 * ax.get_position().height * 0.95  # height of the axes
    assert (np.diff(places) * points > 9).all()  # the font's size
    assert np.mean(places) == pytest.approx(np.mean(heights) / 100, abs=1e-6)  # none is favoured


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (14, "14"),
        (1437, "1437"),
        (10_000, "10k"),
        (326_378, "326k"),
        (1_500_000, "1.5M"),
        (23_500_000, "24M"),
    ],
)
def test_short(count, text):
    assert pictures.short(count) == text
