"""Numbers and words of the page."""

import pytest

from shared.config.methods import METHODS
from shared.runs.text import percent
from shared.runtime.errors import UserError
from stages.page import facts


def row(stage: str, n: int, seed: int, top1: float) -> dict:
    return {"stage": stage, "labels": f"{n}perclass", "n_labels": n, "seed": seed, "top1": top1}


def test_labels_worth():
    """Half way between 10 and 1000 labels, on the logarithm, are 100."""
    rows = [
        row("supervised", 10, 0, 0.5),
        row("supervised", 1000, 0, 0.9),
        row("distill", 10, 0, 0.7),
    ]
    text = facts.labels_worth(rows, "10perclass", "distill", 1000)
    assert text == "100 labels (10%) (1 label draw; supervised results at 10 and 1,000 labels)"
    rows += [
        row("supervised", 10, 1, 0.5),
        row("supervised", 1000, 1, 0.9),
        row("distill", 10, 1, 0.7),
        row("distill", 10, 2, 0.1),
        row("supervised", 10, 2, 0.1),
    ]
    text = facts.labels_worth(rows, "10perclass", "distill", None)  # seed 2 is not complete
    assert text.startswith("100 labels (2 label draws;")  # too few for an interval
    rows += [
        row(stage, n, seed, top1 + (seed - 4) / 100)
        for seed in (2, 3, 4, 5, 6)
        for stage, n, top1 in (
            ("supervised", 1000, 0.9),
            ("supervised", 10, 0.5),
            ("distill", 10, 0.7),
        )
    ]
    text = facts.labels_worth(rows, "10perclass", "distill", None)
    assert "labels, 95% interval" in text
    assert "(7 label draws;" in text
    with pytest.raises(UserError, match="several label counts"):
        facts.labels_worth(rows[1:3], "10perclass", "distill", None)


@pytest.mark.parametrize(
    ("top1", "start"), [(0.4, "fewer than 10 labels (1%)"), (0.95, "more than 1,000 labels (100%)")]
)
def test_labels_worth_outside_of_what_is_known(top1, start):
    rows = [row("supervised", 10, 0, 0.5), row("supervised", 1000, 0, 0.9)]
    rows += [row("distill", 10, 0, top1)]
    assert facts.labels_worth(rows, "10perclass", "distill", 1000).startswith(start)


def test_interval():
    assert facts.wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert facts.accuracy([0.5], 10).low == pytest.approx(0.2366, abs=1e-4)
    for unknown in (None, 0):
        assert facts.accuracy([0.5], unknown).low == 0.5  # nothing known of the spread
    two = facts.accuracy([0.5, 0.6], 10)
    assert (two.mean, two.over) == (0.55, "2 label draws")
    assert (two.low, two.high) == (0, 1)  # Student's t: 0.55 ± 0.64
    assert facts.accuracy([], 10) is None


def test_groups():
    rows = [row("distill", 10, seed, 0.5) | {"parameters": 78} for seed in (3, 4)]
    del rows[1]["top1"]
    (place, group), *others = facts.groups(rows).items()
    assert not others
    assert place == ("10perclass", "distill")
    assert group.method is METHODS["distill"]
    assert group.label_title == "10 labels (10 per class)"
    assert group.folder == "distill-10perclass-seed3"
    assert group.measurements("top1") == [0.5]
    assert group.measurements("ece") == []


def test_student_is_deployed_else_the_most_accurate():
    results = [("finetune", 0.9), ("linear", 0.8)]
    assert facts.method_to_deploy(results) == "finetune"
    assert facts.method_to_deploy([*results, ("distill", 0.7)]) == "distill"
    assert facts.method_to_deploy([*results, ("finetune", 0.6)]) == "linear"  # of the means


def test_words():
    assert (percent(0.9789), percent(None), percent(0.5, 0)) == (
        "97.9",
        "-",
        "50",
    )
    assert (facts.plural(1, "run"), facts.plural(2, "run")) == ("1 run", "2 runs")
