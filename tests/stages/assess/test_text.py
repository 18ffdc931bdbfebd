"""The text of an assessment: every part, only some parts, failures."""

from pathlib import Path

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
        "nearest training images of the same class: first 99.7, first 8 99.7"
    )
    assert heads[4:] == ["classifiers", "scikit-learn on the same labels"]
    assert lines_of(blocks[1])[2][:4] == ["encoder", "(128)", "93.9", "97.2"]
    assert lines_of(blocks[5])[2] == ["logistic", "regression", "70.3", "93.9"]


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
