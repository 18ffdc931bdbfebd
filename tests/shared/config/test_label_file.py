"""Two files of labels of one name, of which a run can hold what only one of them made."""

import json
from dataclasses import replace

import pytest
import yaml

from shared.config.label_file import file_notes, require_one_file
from shared.config.schema import Config
from shared.runtime.errors import UserError

MADE = {"done": "meta.json", "begun": "config.yaml"}


@pytest.fixture
def two(tmp_path, monkeypatch):
    """The configuration of a run with labels of ``b/x.csv``; ``a/x.csv`` is another file."""
    monkeypatch.chdir(tmp_path)
    for folder, label in (("a", "cat"), ("b", "dog")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.csv").write_text(f"file,label\n1.png,{label}\n")
    return Config(labels="b/x.csv", output="out", run="r")


def make(config, stage: str, labels: str, how: str):
    """The folder of a stage that was done or begun with other labels."""
    folder = config.folder_of(stage)
    folder.mkdir(parents=True)
    if how == "done":
        (folder / "meta.json").write_text(json.dumps({"labels": {"given": labels}}))
    else:
        (folder / "config.yaml").write_text(yaml.safe_dump({"labels": labels}))


@pytest.mark.parametrize("how", MADE)
@pytest.mark.parametrize(
    ("stage", "labels"),
    [
        ("supervised", "a/x.csv"),
        ("distill", "./a/x.csv"),
        ("assess", "a/x.csv"),
        ("linear", "x.txt"),
    ],
)
def test_another_file_of_the_same_name_is_refused(two, tmp_path, stage, labels, how):
    (tmp_path / "x.txt").write_text("1.png\n")
    make(two, stage, labels, how)
    with pytest.raises(UserError) as error:
        require_one_file(two)
    for part in (two.folder_of(stage), labels.removeprefix("./"), "rename b/x.csv"):
        assert str(part) in str(error.value)
    require_one_file(replace(two, force="supervised,linear,finetune,assess"))
    require_one_file(replace(two, labels=labels))


@pytest.mark.parametrize("same", ["moved", "copied", "linked", "elsewhere"])
def test_a_file_that_is_the_same_or_gone_is_none(two, tmp_path, same):
    first, second = tmp_path / "a/x.csv", tmp_path / "b/x.csv"
    make(two, "finetune", "a/x.csv", "done")
    if same == "moved":
        first.replace(second)
    elif same == "copied":
        second.write_bytes(first.read_bytes())
    elif same == "linked":
        second.unlink()
        second.symlink_to(first)
    else:
        first.unlink()
    require_one_file(two)


def test_a_copied_run_has_a_file_of_its_own(two, tmp_path):
    """The labels are corrected in the copy, and the original stays as it is."""
    for run, label in (("first", "cat"), ("r", "dog")):
        (tmp_path / "out" / run).mkdir(parents=True)
        (tmp_path / "out" / run / "x.csv").write_text(f"file,label\n1.png,{label}\n")
    make(two, "finetune", "out/first/x.csv", "done")
    noted = {"output": "out", "run": "first", "labels": "out/first/x.csv"}
    (two.folder_of("finetune") / "config.yaml").write_text(yaml.safe_dump(noted))
    require_one_file(replace(two, labels=str(tmp_path / "out/r/x.csv")))
    with pytest.raises(UserError, match=r"rename b/x\.csv"):
        require_one_file(two)  # it lies in no run
    (tmp_path / "out/r/x.csv").unlink()
    with pytest.raises(UserError, match=r"rename b/x\.csv"):
        require_one_file(two)


def note(config, stage: str):
    """The folder of a stage that was begun just now."""
    folder = config.folder_of(stage)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in file_notes(config, stage).items():
        (folder / name).write_text(text)


@pytest.mark.parametrize("form", ["another seed", "seed of an old version", "of the base run"])
def test_another_file_in_a_folder_of_the_same_tag(two, form):
    first, second = replace(two, labels="a/x.csv"), replace(two, seed=1)
    if form == "another seed":
        note(first, "finetune")
    else:
        make(first, "finetune", "a/x.csv", "done")
    if form == "of the base run":
        second = replace(second, output="out/r/variants", run="k", force="finetune")
    with pytest.raises(UserError, match=r"b/x\.csv differ.* rename .* delete that folder"):
        require_one_file(second)
    require_one_file(replace(second, labels="a/x.csv"))
    require_one_file(replace(second, output="other"))


def test_a_relative_path_means_the_place_where_it_was_typed(two, tmp_path, monkeypatch):
    config = replace(two, labels="x.csv", output=str(tmp_path / "out"))
    first, second = tmp_path / "a/x.csv", tmp_path / "b/x.csv"
    monkeypatch.chdir(tmp_path / "a")
    assert file_notes(config, "pretrain") == {}
    note(config, "finetune")
    first.write_text(first.read_text() + "2.png,dog\n")  # it grows
    require_one_file(config)
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(UserError, match=rf"labels in {first}.*--force finetune to make it anew"):
        require_one_file(config)
    second.write_text("file,label\n1.png,cat\n")  # as the first was: it was moved, and replaced
    require_one_file(config)
    (config.folder_of("finetune") / "label_file.json").write_text("{")
    with pytest.raises(UserError, match="delete it"):
        require_one_file(config)


@pytest.mark.parametrize("content", ["{", "[]", '{"labels": 3}', '{"labels": {"given": ""}}'])
def test_what_is_damaged_is_told_by_its_stage(two, content):
    two.folder_of("finetune").mkdir(parents=True)
    for name in MADE.values():
        (two.folder_of("finetune") / name).write_text(content)
        require_one_file(two)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "/" + "x" * 5000])
def test_a_note_that_names_no_path_is_of_a_file_that_is_gone(two, name):
    make(two, "finetune", "a/x.csv", "done")
    note = two.folder_of("finetune") / "label_file.json"
    note.write_text(json.dumps({"file": name, "run": name, "sha256": ""}))
    require_one_file(two)


def test_drawn_labels_have_no_file(two):
    make(two, "finetune", "a/x.csv", "done")
    require_one_file(replace(two, labels="10pct"))
