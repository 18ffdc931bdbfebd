"""The text of an assessment: every part, only some parts, failures."""

from pathlib import Path

import pytest

from shared.runs.assessment import read_assessment
from stages.assess.text import assessment_text

RECORDED = Path(__file__).parents[3] / "docs/results/digits/assess-1pct-seed0.json"


def recorded(tmp_path):
    (tmp_path / "assess.json").write_bytes(RECORDED.read_bytes())
    return read_assessment(tmp_path)


def lines_of(block: str) -> list[list[str]]:
    return [line.split() for line in block.splitlines()]


def test_every_part_has_its_block(tmp_path):
    blocks = assessment_text(recorded(tmp_path)).split("\n\n")
    heads = [block.split("  ")[0] for block in blocks]
    assert heads[1:3] == ["frozen features", "k-means"]
    assert heads[3].startswith(
        "nearest training images of the same class: first 99.7, first 8 99.6"
    )
    assert heads[4:6] == ["classifiers", "scikit-learn on the same labels"]
    assert [head.split()[0] for head in heads[6:]] == ["8", "twins,", "outliers,"]
    assert lines_of(blocks[1])[2][:4] == ["encoder", "(128)", "95.0", "95.0"]
    assert lines_of(blocks[5])[2] == ["logistic", "regression", "70.3", "95.0"]


def test_the_classifiers_block_has_the_parts_that_are_there(tmp_path):
    assessment = recorded(tmp_path)
    stages = len(assessment["classifiers"])
    for parts, columns in (
        (("classifiers", "corruptions", "ood"), 1 + 4 + len(assessment["ood"]["sets"])),
        (("corruptions",), 4),
        (("classifiers",), 1),
        ((), None),
    ):
        chosen = {key: assessment[key] for key in ("about", "failed", *parts)}
        blocks = assessment_text(chosen).split("\n\n")
        assert len(blocks) == (1 if columns is None else 2)
        if columns is not None:
            rows = blocks[1].splitlines()[2:]
            assert len(rows) == stages
            assert len(rows[0].split()) == len(["supervised", "from", "scratch"]) + columns


def test_failures_come_last(tmp_path):
    chosen = {"about": recorded(tmp_path)["about"], "failed": {"map": "no memory"}}
    assert assessment_text(chosen).endswith("\n\nmap failed: no memory")


def checked(**others) -> dict:
    """The part labels with one suspect, one leak and one outlier, all with an odd name."""
    odd = {"file": "a\nb\x1b[2J.png", "set": "training", "label": "c\rd"}
    return {
        "file": "1pct-to-check.csv",
        "judged": 14,
        "folds": 2,
        "agreement": 0.5,
        "not_judged": ["x\ny"],
        "suspects": [{"file": odd["file"], "label": "cat", "suggested": "d\x07g", "score": 0.01}],
        "looked_at": {"training": 30, "test": 5},
        "twins": [[odd, {**odd, "set": "test", "label": "e"}]],
        "outliers": [{**odd, "label": None, "distance": 1.0}],
        **others,
    }


def labels_text(tmp_path, **others) -> str:
    chosen = {"about": recorded(tmp_path)["about"], "failed": {}, "labels": checked(**others)}
    return assessment_text(chosen)


def test_labels_to_check_are_told_without_control_characters(tmp_path):
    text = labels_text(tmp_path)
    assert not {"\x1b", "\r", "\x07"} & set(text)
    assert "14 labels judged" in text
    assert "agrees with 50.0%: 1 may be wrong" in text
    assert r"not judged, for want of a second label: x\ny" in text
    assert r"a\nb\x1b[2J.png cat d\x07g 0.010" in " ".join(text.split())
    assert "1 group of 2 images; leak: 1 group lies in training and test" in text
    assert "1 group with different labels" in text
    assert r"a\nb\x1b[2J.png (training, c\rd) = a\nb\x1b[2J.png (test, e)" in text
    assert r"a\nb\x1b[2J.png (training): distance 1.000" in text


@pytest.mark.parametrize(
    ("judged", "agreement", "largest_class", "better"),
    [
        (30, 0.1, 0.1, False),
        (30, 0.2, 0.1, False),  # 9.5 to 37.3
        (30, 0.4, 0.1, True),
        (200, 0.9, 0.92, False),
        (60_000, 0.11, 0.1, True),
        (4, 1.0, 0.5, True),
    ],
)
def test_labels_are_not_doubted_where_a_guess_is_as_good(
    tmp_path, judged, agreement, largest_class, better
):
    numbers = {"judged": judged, "agreement": agreement, "largest_class": largest_class}
    text = labels_text(tmp_path, suspects=[], **numbers)
    assert ("may be wrong" in text) == better
    assert ("warning: a guess is as good" in text) != better
    assert better or f"the largest class has {100 * largest_class:.1f}%" in text


@pytest.mark.parametrize(
    ("looked_at", "words"),
    [
        ({"training": 30, "test": 5}, "0 groups of 0 images; none lies in training and test"),
        ({"training": 30}, "among 30 training and 0 test images: 0 groups of 0 images"),
    ],
)
def test_nothing_to_check(tmp_path, looked_at, words):
    text = labels_text(tmp_path, suspects=[], twins=[], outliers=[], looked_at=looked_at)
    assert words in text
    assert "leak" not in text
    assert text.endswith("by their features: 0")


def test_long_lists_are_cut(tmp_path):
    part = checked()
    many = {key: part[key] * 300 for key in ("suspects", "twins", "outliers")}
    many["twins"][0] = many["twins"][0] * 200
    text = labels_text(tmp_path, **many)
    assert len(text.splitlines()) < 60
    assert "300 may be wrong" in text
