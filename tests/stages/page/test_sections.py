"""What the sections show of a run: blocks, before any template."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest

from shared.config.methods import CLASSIFIERS, METHODS
from shared.runs import deployment
from shared.runs.deployment import Gain
from shared.runtime.files import write_atomically
from stages.page import sections
from stages.page.assessment import assessments
from stages.page.blocks import Missing, Picture, Summary, Table
from stages.page.read import read_run
from tests.support.run_folder import fill_table


def test_outdated_results_are_named(bare):
    """What the student was made from has other weights now."""
    file = bare / "distill-1pct-seed0/meta.json"
    meta = json.loads(file.read_text())
    meta |= {"parent": "../pretrain", "settings": {"parent": "other weights"}}
    file.write_text(json.dumps(meta))
    table, *others = sections.results(read_run(bare))
    assert [block.what for block in others] == ["distill-1pct-seed0"]
    assert "distilled student" not in str(table)


def test_unknown_data_and_damaged_lines(bare):
    (bare / "config.yaml").write_text("labls: 1pct\n")
    with (bare / "finetune-1pct-seed0/metrics.jsonl").open("a") as file:
        file.write('{"step": 15')
    run = read_run(bare)
    (gallery,) = sections.learning(run)
    captions = [block.caption for block in gallery.blocks]
    assert "Fine-tuned teacher; 1 run; 1 damaged lines left out." in captions
    (block,) = sections.summary(run)
    assert "numbers of images unknown" in block.data
    (block,) = sections.provenance(run)
    assert "labls" in block.settings.why


def test_imported_weights_saw_no_image_of_the_run(bare):
    run = read_run(bare)
    train = replace(run.splits.train, held_out=np.arange(3))
    run = replace(run, splits=run.splits._replace(train=train))
    (summary,) = sections.summary(run)
    assert "test images, which stage 1 saw too" in summary.data
    pretrained = {"pretrain": run.metas["pretrain"] | {"stage": "import"}}
    (summary,) = sections.summary(replace(run, metas=run.metas | pretrained))
    assert "stage 1" not in summary.data


OTHERS = (
    "For comparison: SVM on pixels 50.0%; forest on pixels 50.0%; spreading 50.0%; SVM on gradients"
    " 50.0%; supervised 50.0%; student, labels alone 50.0%; published weights 50.0%; linear 50.0%;"
    " logistic 50.0%; neighbours 50.0%; "
)


def card_of(bare):
    run = read_run(bare)
    rows = [dict(row) for row in run.rows]
    for row in rows:
        row["top1"] = {"distill": 0.9, "finetune": 0.95}.get(row["stage"], 0.5)
    (summary,) = sections.summary(replace(run, rows=rows))
    assert isinstance(summary, Summary)
    (card,) = summary.cards
    return card


def test_a_card_names_better_methods(bare, monkeypatch):
    """The student is preferred where it is not clearly worse, and not by much."""
    monkeypatch.setattr(deployment, "gain", lambda *_: Gain(5.0, 6.0))
    monkeypatch.setattr(deployment, "CLOSE", 5.0)
    card = card_of(bare)
    assert (card.title, card.accuracy) == ("1% = 14 labels", "90.0%")
    assert card.sentences[0].startswith("To deploy: distilled student; 95% interval 86.5 to 92.7")
    assert card.sentences[1:3] == [f"{OTHERS}fine-tuned 95.0%.", "More accurate: fine-tuned 95.0%."]
    assert card.sentences[3].startswith("Fine-tuned teacher has +5.0 ± 6.0 points: not clearly")
    assert card.parameters == "78,330"
    assert card.folder == str(bare / "distill-1pct-seed0")


def test_a_card_names_the_best_where_nothing_is_noted_of_single_images(bare):
    """The student may be clearly worse."""
    card = card_of(bare)
    assert card.accuracy == "95.0%"
    assert card.sentences[0].startswith("To deploy: fine-tuned teacher; 95% interval 92.2 to 96.8")
    assert card.sentences[1] == f"{OTHERS}distilled 90.0%."
    assert card.sentences[2].startswith("Whether pretraining paid is undecided: +45.0 points")
    assert card.folder == str(bare / "finetune-1pct-seed0")


def test_a_new_row_of_the_methods_gets_its_curve(bare, monkeypatch):
    copy = replace(METHODS["linear"], name="linear-copy", title="a copy", short="copied")
    monkeypatch.setitem(METHODS, copy.name, copy)
    monkeypatch.setitem(CLASSIFIERS, copy.name, copy)
    run = read_run(bare)
    assert "a copy" in [block.what for block in sections.efficiency(run) if block.kind == "missing"]
    rows = [*run.rows, {**run.rows[0], "stage": copy.name}]
    run = replace(run, rows=rows)
    *others, gallery = sections.efficiency(run)
    assert [block.what for block in others] == ["A curve"]  # one label set alone
    for picture in gallery.blocks:
        assert "copied" in picture.svg
    (summary,) = sections.summary(run)
    assert "copied" in summary.cards[0].sentences[1]


def test_methods_that_the_run_asks_for_are_missed(bare):
    run = read_run(bare)
    blocks = {block.what for block in sections.efficiency(run) if isinstance(block, Missing)}
    assert blocks == {"A curve"}
    asked = replace(run.config, distill=replace(run.config.distill, self_first=True))
    run = replace(run, config=asked)
    blocks = {block.what for block in sections.efficiency(run) if isinstance(block, Missing)}
    assert blocks == {"A curve", "self-distilled teacher"}
    (gallery,) = sections.learning(run)
    what = [block.what for block in gallery.blocks if isinstance(block, Missing)]
    assert what == ["Learning curve, self-distilled teacher"]


def test_without_test_images(bare):
    run = read_run(bare)
    measured = ("top1", "top5", "nll", "ece")
    rows = [{k: v for k, v in row.items() if k not in measured} for row in run.rows]
    run = replace(run, rows=rows, metas={})
    (table,) = sections.results(run)
    assert table.header == ["model", "labels", "parameters", "seconds", "n"]
    (missing,) = sections.efficiency(run)
    assert missing.why == "no test images with labels"


def test_commands_can_be_pasted(bare):
    """A folder or a file of labels may have any name."""
    run = read_run(bare)
    folder = run.folder.parent / "my $(run)"
    metas = {name: meta | {"labels": {"given": "a b.txt"}} for name, meta in run.metas.items()}
    (block,) = sections.provenance(replace(run, folder=folder, metas=metas, config="no settings"))
    assert f"--config '{folder}/config.yaml' --labels 'a b.txt' --seed $seed" in block.commands


def test_tables(bare):
    folder = fill_table(bare)
    (bare / "tables/broken").mkdir()
    write_atomically(bare / "tables/broken/summary.json", "{")
    run = read_run(bare)
    broken, heading, table, *_ = sections.tables(run)
    assert isinstance(broken, Missing)
    assert "damaged" in broken.why
    assert f"stages.report {bare} --table broken writes it again" in broken.why
    assert heading.text == "A small table"
    assert isinstance(table, Table)
    contents = json.loads((folder / "summary.json").read_text())
    for size, cell in enumerate(contents["cells"], 1):
        cell |= {"parameters": [1000 * size], "n": 1, "mean": 50.0, "half": None}
    write_atomically(folder / "summary.json", json.dumps(contents))
    (picture,) = (block for block in sections.tables(run) if isinstance(block, Picture))
    assert picture.name == "table-small"


@pytest.mark.parametrize("name", ["bare", "my photos", "a'b"])
def test_commands_for_missing_parts_can_be_pasted(bare, name):
    run = read_run(bare.rename(bare.with_name(name)))
    recipe = f"--config {shlex.quote(str(run.folder / 'config.yaml'))}"
    (missing, *_) = assessments(run)
    assert missing.why == f"not measured; python -m stages.assess {recipe} does"
    (missing,) = sections.tables(run)
    command = f"python pipeline.py {recipe} --table label_efficiency"
    assert missing.why == f"none was filled; {command} does"


def test_a_file_of_labels_fills_no_table(bare):
    run = read_run(bare)
    run = replace(run, config=replace(run.config, labels="to_label.csv"))
    (missing,) = sections.tables(run)
    assert "images with known classes" in missing.why
