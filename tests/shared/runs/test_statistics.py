"""Statistics against SciPy and by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from shared.runs.statistics import crossing, interval, of_images, repeated, summarize, worth
from shared.runs.text import render
from tests.support.tables import TOY, toy_line, toy_lines

accuracies = st.integers(0, 360).map(lambda right: right / 360)


@given(st.lists(accuracies, min_size=2, max_size=20).filter(lambda v: len(set(v)) > 1))
def test_interval_is_students(values):
    mean, half = interval(values)
    low, high = scipy.stats.t.interval(
        0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values)
    )
    assert half is not None
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-12)


def test_interval_of_one():
    assert interval([0.7]) == (0.7, None)


@given(
    st.lists(accuracies, min_size=2, max_size=7),
    st.floats(-0.2, 1.2),
)
def test_crossing(curve, level):
    shares = [2.0**k for k in range(len(curve))]
    share = crossing(shares, curve, level)
    best = np.maximum.accumulate(curve)
    if level > max(curve):
        assert share == math.inf
    elif level < curve[0]:
        assert share == 0
    else:
        at = np.interp(math.log(share), np.log(shares), best)
        assert at == pytest.approx(level, abs=1e-6)
        # the first such place: below it the curve is lower
        assert np.interp(math.log(share) - 1e-3, np.log(shares), best) <= level + 1e-6


def test_crossing_is_linear_in_the_logarithm():
    assert crossing([1, 100], [0.5, 0.9], 0.7) == pytest.approx(10)


def test_worth_brackets_the_point():
    rng = np.random.default_rng(0)
    shares = [1.0, 10.0, 100.0]
    reference = np.array([0.7, 0.9, 0.99]) + rng.normal(0, 0.005, (8, 3))
    share, bounds = worth(shares, reference, 0.95 + rng.normal(0, 0.005, 8))
    assert bounds is not None
    assert bounds[0] < share < bounds[1]
    assert 10 < bounds[0] < bounds[1] < 100
    assert worth(shares, reference[:4], np.full(4, 0.8))[1] is None  # too few draws
    assert worth(shares, reference, np.full(8, 1.2)) == (math.inf, None)
    assert worth(shares, reference, np.full(8, 0.2)) == (0.0, None)


def test_worth_near_an_end_of_the_curve_is_open_there():
    rng = np.random.default_rng(0)
    shares = [1.0, 10.0, 100.0]
    reference = np.array([0.7, 0.9, 0.99]) + rng.normal(0, 0.02, (5, 3))
    first, _, last = reference.mean(0)
    for level, end in ((first + 0.002, 0), (last - 0.002, 1)):
        _, bounds = worth(shares, reference, np.full(5, level))
        assert bounds is not None
        assert bounds[end] == (0.0, math.inf)[end]


@pytest.mark.parametrize("n", [5, 8])
def test_the_interval_of_worth_holds_its_level(n):
    """In 95% of simulated studies it holds the true share; a bootstrap of five did in 84%."""
    rng, shares, level = np.random.default_rng(n), [1.0, 10.0, 100.0], 0.86
    curve, studies = np.array([0.7, 0.9, 0.99]), 500
    true, held = crossing(shares, curve, level), 0
    for _ in range(studies):
        draw = rng.normal(0, 0.01, (n, 1))  # what a draw adds to all that is trained on it
        reference = curve + draw + rng.normal(0, 0.01, (n, 3))
        _, bounds = worth(shares, reference, level + draw[:, 0] + rng.normal(0, 0.01, n))
        assert bounds is not None
        held += bounds[0] <= true <= bounds[1]
    assert 0.92 < held / studies < 0.98


@pytest.fixture
def lines():
    return toy_lines()


def test_summary(lines):
    summary = summarize(TOY, lines)
    assert json.loads(json.dumps(summary)) == summary
    cells = {(c["row"], c["column"]): c for c in summary["cells"]}
    assert len(cells) == 6
    assert cells["a", "1%"]["mean"] == pytest.approx(60)
    assert cells["a", "1%"]["half"] == pytest.approx(
        scipy.stats.t.ppf(0.975, 2) * 10 / math.sqrt(3)
    )
    part = cells["b_1", "100%"]
    assert (part["n"], part["of"], part["failed"], part["missing"]) == (1, 3, 1, 1)
    assert part["half"] is None
    # pairs have the same draw: the difference has no spread although the rows have
    difference = summary["differences"][0]
    assert (difference["row"], difference["column"], difference["n"]) == ("b_1", "1%", 3)
    assert difference["mean"] == pytest.approx(10)
    assert difference["half"] is None  # and ± 0.0 would make it certain
    assert [d["n"] for d in summary["differences"]] == [3, 1]
    assert [(w["row"], w["column"]) for w in summary["worth"]] == [("b_1", "1%"), ("b_1", "100%")]
    assert summary["messages"] == ["impossible", "too bad | so sad"]


@pytest.mark.parametrize(("right", "images"), [(360, 360), (0, 12), (350, 375), (1, 2)])
def test_the_interval_of_images_is_clopper_and_pearsons(right, images):
    low, high = of_images(right / images, images)
    reference = scipy.stats.binomtest(right, images).proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx((reference.low, reference.high))


def test_equal_runs_are_not_without_doubt():
    """100.0 ± 0.0 of 360 images is 99.0 to 100; where runs differ, Student's t says it."""
    lines = [toy_line("a", "100%", seed, 1.0) for seed in range(3)]
    lines += [toy_line("b_1", "100%", seed, 0.9 + seed / 100) for seed in range(3)]
    for line in lines:
        line["result"]["n_test"] = 360
    cells = {(c["row"], c["column"]): c for c in summarize(TOY, lines)["cells"]}
    assert cells["a", "100%"]["of_images"] == pytest.approx([98.98, 100], abs=0.01)
    assert cells["b_1", "100%"]["of_images"] is None
    assert "100.0 [99.0, 100.0] (3)" in render(summarize(TOY, lines), lines)["md"]
    seconds = summarize(replace(TOY, metric="seconds"), lines)["cells"]
    assert {cell["of_images"] for cell in seconds} == {None}


@pytest.mark.parametrize(
    ("vary", "text"),
    [
        ({}, "3 label draws on one pretraining"),
        ({"pretrain.seed": [0, 1, 2]}, "3 pretrainings, each with a label draw of its own"),
        (
            {"pretrain.seed": [0, 1, 2], "data.split_seed": [0, 1, 2]},
            "3 pretrainings, each with a split of the images and a label draw of its own",
        ),
        (  # other images need another pretraining
            {"data.split_seed": [0, 1, 2]},
            "3 pretrainings, each with a split of the images and a label draw of its own",
        ),
        (
            {"distill.temperature": [1, 2, 3]},
            "3 label draws on one pretraining, each with distill.temperature of its own",
        ),
    ],
)
def test_what_was_repeated_is_said(vary, text):
    table = replace(TOY, vary=vary)
    assert repeated(table, [toy_line("a", "1%", 0)]) == text
    assert repeated(table, [toy_line("a", "100%", 0)]).startswith(f"{text}; in 100% no label is")


@pytest.mark.parametrize("rows", ["ab", "ba"])
def test_rows_without_a_draw_are_said_too(rows):
    labels = {"a": "1pct", "b": "100pct"}
    lines = [{**toy_line(row, "x", 0), "labels": labels[row]} for row in rows]
    assert repeated(TOY, lines).endswith(
        "; in b no label is drawn, and the rest differs with the random numbers of the training"
    )
    assert "no label" not in repeated(TOY, lines[:1]) or rows == "ba"


def test_what_is_done_and_not_measured_is_not_called_missing(lines):
    text = render(summarize(replace(TOY, metric="top5", worth=None), lines), lines)["txt"]
    row = next(line for line in text.splitlines() if line.startswith("a "))
    assert "missing" not in row
    assert "failed" not in row


def test_varied_labels_are_one_column_of_the_file():
    lines = [{**toy_line("a", "x", seed, 0.5), "vary": {"labels": "1pct"}} for seed in (0, 1)]
    head = render(summarize(TOY, lines), lines)["csv"].splitlines()[0].split(",")
    assert head.count("labels") == 1


def test_without_pretraining_none_is_said():
    line = {**toy_line("a", "1%", 0), "method": "supervised"}
    assert repeated(replace(TOY, vary={"pretrain.seed": [0, 1, 2]}), [line]) == "3 label draws"
    split = replace(TOY, vary={"data.split_seed": [7]}, seeds=(4,))
    assert repeated(split, [line]) == "1 split of the images, with a label draw of its own"
    line["method"] = "baseline: label spreading, features"
    assert repeated(replace(TOY, seeds=(4,)), [line]) == "1 label draw on one pretraining"


def test_the_best_of_several_rivals_is_compared_with(lines):
    """Per column; a row with fewer draws is no rival there."""
    summary = summarize(replace(TOY, against=("a", "b_1")), lines)
    assert summary["rivals"] == {"1%": "b_1", "100%": "a"}  # b_1 has one of three draws at 100%
    assert [(d["row"], d["column"]) for d in summary["differences"]] == [
        ("a", "1%"),
        ("b_1", "100%"),
    ]
    text = render(summary, lines)["txt"]
    assert 'the best of 2 rivals in each column (1% "b_1", 100% "a")' in text
    assert summarize(replace(TOY, against=("c",)), lines)["differences"] == []


def test_only_draws_that_both_rows_have_are_compared(lines):
    """Also where the row that is compared with lacks one."""
    lost = [x for x in lines if (x["row"], x["column"], x["seed"]) != ("a", "1%", 1)]
    difference = summarize(TOY, lost)["differences"][0]
    assert (difference["row"], difference["n"]) == ("b_1", 2)
    assert summarize(TOY, lost)["worth"][0]["n"] == 2
