"""What a run's folder holds, whole, damaged or by half."""

import json
from dataclasses import replace

import pytest

from shared.config.schema import Config, dump
from shared.data.images import Splits
from shared.data.sources import open_data
from shared.runtime.errors import UserError
from stages.page import sections
from stages.page.blocks import Missing
from stages.page.read import Assessment, pretraining_views, read_run
from tests.support.photos import class_folders, make_folder
from tests.support.run_folder import assess


def test_a_run(bare):
    assess(bare)
    run = read_run(bare)
    assert isinstance(run.config, Config)
    assert (run.n_test, run.n_labeled) == (360, 1437)
    assert run.tags == ["1pct"]
    assert (run.unfinished, run.outdated) == ([], [])
    assert list(run.assessments) == [("1pct", 0)]
    assert run.assessments["1pct", 0].labels.title == "1%"


def test_unfinished_and_outdated(bare):
    (bare / "distill-1pct-seed1").mkdir()
    (bare / "distill-1pct-seed1/settings.json").write_text("{}")
    file = bare / "distill-1pct-seed0/meta.json"
    meta = json.loads(file.read_text())
    meta |= {"parent": "../pretrain", "settings": {"parent": "other weights"}}
    file.write_text(json.dumps(meta))
    run = read_run(bare)
    assert run.unfinished == ["distill-1pct-seed1"]
    assert run.outdated == ["distill-1pct-seed0"]
    assert not run.of_unknown_methods


def test_results_of_unknown_methods_are_named(bare):
    file = bare / "linear-1pct-seed0/meta.json"
    meta = json.loads(file.read_text())
    meta["result"]["stage"] = "old"
    file.write_text(json.dumps(meta))
    run = read_run(bare)
    assert run.of_unknown_methods == ["linear-1pct-seed0"]
    assert not run.outdated
    assert "old" not in [row["stage"] for row in run.rows]
    assert "linear-1pct-seed0" in [
        block.what for block in sections.results(run) if isinstance(block, Missing)
    ]


@pytest.mark.parametrize("name", ["assess-1pct", "assess-1pct-seedx", "assess--seed1"])
def test_folders_of_no_assessment(bare, name):
    (bare / name).mkdir()
    (bare / name / "assess.json").write_text("{}")
    assert not read_run(bare).assessments


@pytest.mark.parametrize("text", ["{", "[]", "1"])
def test_damaged_assessment(bare, text):
    where = assess(bare)
    (where / "assess.json").write_text(text)
    assert "damaged" in read_run(bare).assessments["1pct", 0]


def test_parts_of_an_assessment(bare):
    assess(bare)
    assessment = read_run(bare).assessments["1pct", 0]
    assert isinstance(assessment, Assessment)
    assert assessment.part("map")["n"] == 360
    assert assessment.array("map/tsne").shape == (360, 2)
    with pytest.raises(UserError, match="this part failed: no such folder or file: elsewhere"):
        assessment.part("transfer")
    with pytest.raises(UserError, match=r"--assess.parts nothing does it"):
        assessment.part("nothing")
    with pytest.raises(UserError, match=r"assess.npz in assess-1pct-seed0 has no map/umap"):
        assessment.array("map/umap")


def test_views_are_those_of_pretraining(bare, config):
    """Step 0 of the same generator; the images shown are in [0, 1] again after normalisation."""
    run = read_run(bare)
    plain = pretraining_views(run, 6)
    data = replace(config.data, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    other = pretraining_views(replace(run, config=replace(config, data=data)), 6)
    for before, after in zip(plain, other, strict=True):
        assert before.shape == (6, 8, 8, 3)
        assert abs(before - after).max() < 1e-6
    assert abs(plain[1] - plain[2]).max() > 0.1  # two views


def test_unknown_configuration(bare):
    (bare / "config.yaml").write_text("labls: 1pct\n")
    run = read_run(bare)
    assert "labls" in run.config
    assert (run.n_test, run.n_labeled) == (None, None)
    with pytest.raises(UserError, match="labls"):
        pretraining_views(run, 6)
    (bare / "config.yaml").unlink()
    assert read_run(bare).config == f"{bare / 'config.yaml'} does not exist"


@pytest.mark.parametrize("loading", ["auto", "workers"])
@pytest.mark.parametrize("field", ["unlabeled", "train"])
def test_images_that_the_run_never_saw_stay_out(bare, config, tmp_path, field, loading):
    """A run of somebody else may name any folder of this machine, as any of its images."""
    private = make_folder(tmp_path / "private", ["a/1.png", "b/2.png"])
    named = {field: str(private), "cache": 8, "cache_folder": str(tmp_path / "planted")}
    if loading == "auto":
        named |= {"cache": None}
    data = replace(config.data, loading=loading, **named)
    (bare / "config.yaml").write_text(dump(replace(config, data=data)))
    run = read_run(bare)
    assert "are not those that the run was made from" in str(run.splits)
    assert str(private) in str(run.splits)
    assert not (tmp_path / "planted").exists()
    with pytest.raises(UserError, match="are not those"):
        pretraining_views(run, 6)


def test_digits_too_must_be_those_of_the_run(bare):
    for file in bare.glob("*/meta.json"):
        meta = json.loads(file.read_text())
        meta["settings"]["images"] = "0" * 16
        file.write_text(json.dumps(meta))
    assert "the images in digits are not those" in str(read_run(bare).splits)


@pytest.mark.parametrize("changes", [{}, {"loading": "workers"}, {"cache": 8}])
def test_images_of_the_run_are_shown(bare, config, tmp_path, changes):
    photos = class_folders(tmp_path / "photos", 4)
    data = replace(config.data, train=str(photos), cache_folder=str(tmp_path / "c"), **changes)
    config = replace(config, data=data)
    (bare / "config.yaml").write_text(dump(config))
    file = bare / "pretrain/meta.json"
    meta = json.loads(file.read_text())
    meta["settings"]["images"] = open_data(config.data, config.label_set).train.fingerprint
    file.write_text(json.dumps(meta))
    run = read_run(bare)
    assert isinstance(run.splits, Splits)
    assert len(pretraining_views(run, 3)[0]) == 3
