"""What the page shows of an assessment; a damaged part costs itself alone."""

import json

import numpy as np

from stages.page.assessment import assessments
from stages.page.blocks import Gallery, Heading, Missing, Paragraph, pictures_in
from stages.page.read import read_run
from tests.support.run_folder import assess


def missing(blocks) -> list[Missing]:
    """All missing places, those of galleries too."""
    flat = [
        b for block in blocks for b in (block.blocks if isinstance(block, Gallery) else [block])
    ]
    return [block for block in flat if isinstance(block, Missing)]


def test_damaged_arrays(bare):
    where = assess(bare)
    whole = (where / "assess.npz").read_bytes()
    (where / "assess.npz").write_bytes(whole[: len(whole) // 2])
    (block,) = missing(assessments(read_run(bare)))
    assert "damaged" in block.why


def test_edited_assessment_costs_its_part_alone(bare):
    where = assess(bare)
    numbers = json.loads((where / "assess.json").read_text())
    del numbers["map"], numbers["clusters"]["nmi"]
    (where / "assess.json").write_text(json.dumps(numbers))
    places = {block.what: block.why for block in missing(assessments(read_run(bare)))}
    assert list(places) == ["Map of the features", "Clusters", "Transfer"]
    assert "--assess.parts map" in places["Map of the features"]
    assert "KeyError('nmi')" in places["Clusters"]


def test_parts_of_another_form_cost_themselves_alone(bare):
    where = assess(bare)
    numbers = json.loads((where / "assess.json").read_text())
    numbers["map"]["methods"] = ["pca"]
    numbers["ood"] = []
    numbers["hashes"] = {"encoder": {"before": "a"}}
    (where / "assess.json").write_text(json.dumps(numbers))
    places = [block.what for block in missing(assessments(read_run(bare)))]
    names = ["Map of the features", "Images of another kind", "Transfer", "Frozen networks"]
    assert places == names


def test_one_seed_per_label_set_is_shown(bare):
    for labels, seed in (("1pct", 1), ("10pct", 0), ("1pct", 0), ("4perclass", 2)):
        assess(bare, labels, seed)
    blocks = list(assessments(read_run(bare)))
    headings = [block.text for block in blocks if isinstance(block, Heading)]
    assert headings == [
        "1% of the labels, seed 0",
        "10% of the labels, seed 0",
        "4 per class, seed 2",
    ]
    assert blocks[1] == Paragraph("Also assessed, not shown: seeds 1.")
    names = [picture.name for picture in pictures_in(blocks)]
    assert len(set(names)) == len(names)
    assert {"confusion-1pct", "confusion-4perclass"} <= set(names)


def test_changed_networks_are_named(bare):
    where = assess(bare)
    numbers = json.loads((where / "assess.json").read_text())
    numbers["hashes"] |= {"classifier": {"before": "a", "after": "b"}}
    (where / "assess.json").write_text(json.dumps(numbers))
    block = missing(assessments(read_run(bare)))[-1]
    assert (block.what, block.why) == ("Frozen networks", "the assessment changed classifier")


def test_no_mistake(bare):
    where = assess(bare)
    with np.load(where / "assess.npz") as file:
        arrays = dict(file)
    name = "classifiers/distill"
    arrays[f"{name}/predictions"] = arrays[f"{name}/targets"]
    arrays[f"{name}/mistakes"] = arrays[f"{name}/mistakes"][:0]
    np.savez(where / "assess.npz", **arrays)
    _, gallery, *_ = assessments(read_run(bare))
    last = gallery.blocks[-1]
    assert last == Paragraph("The distilled student made no mistake on 360 test images.")
