"""Artifact folders: damaged descriptions and predictions, ancestors."""

import json

import numpy as np
import pytest

from shared.runtime import tensors
from shared.runtime.artifacts import is_outdated, read_meta, read_predictions
from tests.support.stage_folder import META, message


def test_read_meta_refuses(tmp_path):
    assert "no such artifact folder" in message(read_meta, tmp_path / "nowhere")
    assert "holds no finished artifact" in message(read_meta, tmp_path)
    for text in ("{", "[]", ""):
        (tmp_path / "meta.json").write_text(text)
        assert "is damaged" in message(read_meta, tmp_path)
    (tmp_path / "meta.json").write_text('{"kind": "encoder"}')
    assert "it lacks encoder, image_size, weights_sha256" in message(read_meta, tmp_path)


@pytest.mark.parametrize("stages", [["pretrain"], ["distill-1pct-seed0", "pretrain"]])
def test_the_folder_of_a_run_is_answered_with_its_stages(tmp_path, stages):
    for stage in stages:
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "meta.json").write_text("{}")
        (tmp_path / stage / "model.safetensors").touch()
    (tmp_path / "finetune-1pct-seed0").mkdir()  # not finished
    (tmp_path / "pixels-svm-1pct-seed0").mkdir()
    (tmp_path / "pixels-svm-1pct-seed0" / "meta.json").write_text("{}")  # its model is not saved
    text = message(read_meta, tmp_path, "classifier")
    assert text == f"{tmp_path} is the folder of a run; give one of its stages: {', '.join(stages)}"


# ----------------------------------------------------------------------------- damaged meta.json
@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 3.5},
        {"image_size": 0},
        {"image_size": 10**12},
        {"std": [float("inf"), 1, 1]},
        {"std": [0, 1, 1]},
        {"mean": [float("nan"), 1, 1]},
        {"mean": [0, 0]},
        {"head": {"layers": -1, "width": 8, "out": 8}},
        {"head": {"layers": 3, "width": 10**9, "out": 8}},
        {"head": []},
        {"classes": "cat"},
        {"settings": []},
        {"parent": 3},
        {"result": {}},
        {"labels": 3},
    ],
)
def test_no_network_is_like_that(tmp_path, change):
    meta = {**META, "weights_sha256": "x", **change}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert "meta.json is damaged (" in message(read_meta, tmp_path)


@pytest.mark.parametrize(
    ("redone", "outdated"), [(None, False), ("first", True), ("second", True), ("older", True)]
)
def test_one_of_several_teachers_was_redone(tmp_path, redone, outdated):
    """Both were made from one pretraining, ``older``."""
    parents = {"older": [], "first": "../older", "second": "../older"}
    parents["student"] = ["../first", "../second"]
    for name, parent in parents.items():
        (tmp_path / name).mkdir()
        noted = ["w"] * len(parent) if isinstance(parent, list) else "w"
        meta = {**META, "weights_sha256": "new" if name == redone else "w"}
        meta |= {"parent": parent or None, "settings": {"parent": noted or None}}
        (tmp_path / name / "meta.json").write_text(json.dumps(meta))
    student = tmp_path / "student"
    assert is_outdated(student, read_meta(student)) == outdated
    (tmp_path / "older/meta.json").unlink()  # what is not there is as good as it ever was
    assert is_outdated(student, read_meta(student)) == (outdated and redone != "older")
    (tmp_path / "first/meta.json").unlink()
    assert is_outdated(student, read_meta(student)) == (redone == "second")


def test_ancestors_in_a_circle(tmp_path):
    for name, parent in (("a", "../b"), ("b", "../a"), ("c", ".")):
        (tmp_path / name).mkdir()
        meta = {**META, "weights_sha256": "x", "parent": parent, "settings": {"parent": "x"}}
        (tmp_path / name / "meta.json").write_text(json.dumps(meta))
    for name in "abc":
        assert not is_outdated(tmp_path / name, read_meta(tmp_path / name))


@pytest.mark.parametrize(
    "rows",
    [
        {"positions": np.arange(3)},
        dict.fromkeys(("positions", "predictions", "targets"), np.zeros(3)),
        dict.fromkeys(("positions", "predictions", "targets"), np.zeros((3, 1), np.int64)),
        {"positions": np.arange(3), "predictions": np.arange(3), "targets": np.arange(2)},
    ],
)
def test_damaged_predictions(tmp_path, rows, monkeypatch):
    np.savez(tmp_path / "predictions.npz", **rows)
    assert "predictions.npz is damaged" in message(read_predictions, tmp_path)
    good = dict.fromkeys(("positions", "predictions", "targets"), np.arange(3))
    np.savez_compressed(tmp_path / "predictions.npz", **good)
    assert read_predictions(tmp_path).keys() == good.keys()
    monkeypatch.setattr(tensors, "ARRAYS", 100)
    assert "take more than 100 bytes" in message(read_predictions, tmp_path)
