"""The files of an assessment: saved, read, damaged, and as earlier versions wrote them."""

import json
from pathlib import Path

import numpy as np
import pytest

from shared.runs.assessment import Assessment, read_arrays, read_assessment, save_assessment
from shared.runtime.errors import UserError
from tests.support.run_folder import assess

RECORDED = Path(__file__).parents[3] / "docs/results/digits/assess-1pct-seed0.json"


def test_what_is_saved_is_read(tmp_path):
    assessment = json.loads(RECORDED.read_text())
    save_assessment(tmp_path / "new", assessment, {"map/tsne": np.eye(2)})
    assert read_assessment(tmp_path / "new") == assessment
    arrays = read_arrays(tmp_path / "new")
    assert list(arrays) == ["map/tsne"]
    np.testing.assert_array_equal(arrays["map/tsne"], np.eye(2))
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [
        "assess.json",
        "assess.npz",
    ]


def test_the_type_has_the_keys_of_earlier_files(tmp_path):
    folder = assess(tmp_path)
    keys = Assessment.__required_keys__ | Assessment.__optional_keys__
    for content in (json.loads(RECORDED.read_text()), read_assessment(folder)):
        assert content.keys() <= keys
    assert len(read_arrays(folder)) > 20


def test_arrays_may_be_missing(tmp_path):
    assert read_arrays(tmp_path) == {}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"about": {}}', '"text"'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "assess.json").write_text(content)
    with pytest.raises(UserError, match=r"is damaged: .*; run stages.assess again"):
        read_assessment(tmp_path)


def test_damaged_arrays_are_named(tmp_path):
    folder = assess(tmp_path)
    whole = (folder / "assess.npz").read_bytes()
    for content in (b"", b"x", whole[: len(whole) // 2]):
        (folder / "assess.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged: .*; run stages.assess again"):
            read_arrays(folder)


def test_no_assessment(tmp_path):
    with pytest.raises(UserError, match="is damaged"):
        read_assessment(tmp_path)
