"""Files are made fresh, whole, with the usual mode, and never through a link; leftovers go."""

import os
import stat

import numpy as np
import pytest
import torch

from shared.runtime import files
from shared.runtime.errors import UserError
from shared.runtime.files import (
    clean,
    delete,
    did_you_mean,
    into_place,
    machine,
    read_bytes,
    remove,
    require_no_link,
    temporary_name,
    write_atomically,
)
from shared.runtime.tensors import save_arrays, save_tensors
from tests.support.disk import fill_the_disk
from tests.support.irregular import NO_FILE
from tests.support.stage_folder import files as files_below
from tests.support.stage_folder import message

WRITERS = {
    "text": lambda path: write_atomically(path, "new"),
    "tensors": lambda path: save_tensors(path, {"x": torch.zeros(2)}, {}),
    "arrays": lambda path: save_arrays(path, {"x": np.zeros(2)}),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_file_has_the_mode_that_the_user_asks_for(tmp_path, write):
    before = os.umask(0o027)
    try:
        write(tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("planted", ["file", "file.tmp", "foreseen"])
def test_no_link_is_followed(tmp_path, write, planted, monkeypatch):
    """Also where somebody could foresee the new file's name."""
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    folder.mkdir()
    if planted == "foreseen":
        monkeypatch.setattr(files, "temporary_name", lambda: planted)
        (folder / planted).symlink_to(victim)
        with pytest.raises(ValueError, match="File exists"):
            write(folder / "file")
    else:
        (folder / planted).symlink_to(victim)
        write(folder / "file")
        assert not (folder / "file").is_symlink()
    assert victim.read_text() == "precious"


def test_what_fails_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("old")

    def fail(file):
        file.write(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        into_place(tmp_path / "file", fail)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("folder", [True, False])
def test_what_must_go_and_cannot_is_said(tmp_path, monkeypatch, folder):
    path = tmp_path / "it"
    path.mkdir() if folder else path.write_text("")

    def refuse(*args, **options):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", refuse)
        patch.setattr(files.Path, "unlink", refuse)
        assert message(delete, path).startswith(f"cannot delete {path}: ")
    delete(path)
    assert not path.exists()
    delete(path)  # what is not there need not go


def test_leftovers_of_dead_processes_go(tmp_path, monkeypatch):
    child = os.fork()
    if not child:
        (tmp_path / temporary_name()).write_text("")
        (tmp_path / temporary_name()).mkdir()
        os._exit(0)
    os.waitpid(child, 0)
    own = temporary_name()
    monkeypatch.setattr(files, "_machine", lambda: "01234567")
    others = temporary_name()  # of another machine
    monkeypatch.undo()
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    for name in (own, others, "notes.tmp", "keep"):
        (tmp_path / name).write_text("")
    (tmp_path / "link.tmp").symlink_to(victim)
    clean(tmp_path)
    kept = {own, others, "notes.tmp", "link.tmp", "keep", "victim"}
    assert set(os.listdir(tmp_path)) == kept
    clean(tmp_path, alone=True)
    assert set(os.listdir(tmp_path)) == {"keep", "victim"}
    assert (victim / "file").read_text() == "precious"
    clean(tmp_path / "not there")


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_who_writes_cleans_what_a_crash_has_left_there(tmp_path, write):
    """Commands without a folder of their own too: suggest, page, tables, results."""
    child = os.fork()
    if not child:
        (tmp_path / temporary_name()).write_text("half")
        (tmp_path / temporary_name()).mkdir()
        os._exit(0)
    os.waitpid(child, 0)
    alive = temporary_name()
    (tmp_path / alive).write_text("of a process that works")
    assert len(os.listdir(tmp_path)) == 3
    write(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == sorted([alive, "file"])


def test_removing(tmp_path):
    (tmp_path / "folder/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    assert (tmp_path / "folder/inner").exists()
    remove(tmp_path / "folder")
    remove(tmp_path / "folder")
    assert not os.listdir(tmp_path)


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_bytes(tmp_path / "file", 4)
    os.truncate(tmp_path / "file", 2**40)
    with pytest.raises(OSError, match="is larger"):  # before any of the zeros is read
        read_bytes(tmp_path / "file", 2**40 - 1)


def test_what_is_no_regular_file_is_not_read(make_irregular, tmp_path):
    make_irregular(tmp_path / "odd")
    with pytest.raises(OSError, match=NO_FILE):
        read_bytes(tmp_path / "odd", 5)


def test_cleaning_and_writing_stop_at_a_link(tmp_path):
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    (elsewhere / "table").mkdir(parents=True)
    (elsewhere / "notes.tmp").write_text("precious")
    run.mkdir()
    (run / "tables").symlink_to(elsewhere)
    clean(run / "tables", alone=True)
    assert (elsewhere / "notes.tmp").exists()
    for path in (run / "tables", run / "tables/table", run / "tables/none/deeper"):
        with pytest.raises(UserError, match="tables is a link"):
            require_no_link(path, run)
    require_no_link(run / "none", run)
    (tmp_path / "linked").symlink_to(run)
    require_no_link(tmp_path / "linked/x", tmp_path / "linked")  # the user's own


@pytest.mark.parametrize("part", range(3))
def test_two_machines_of_one_name_or_numbers_are_two(part, monkeypatch):
    own, name = machine(), temporary_name()
    other = own._replace(**{own._fields[part]: "another"})
    monkeypatch.setattr(files, "machine", lambda: other)
    assert temporary_name().split("-")[0] != name.split("-")[0]


def test_full_disk_leaves_the_previous_version(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        says = message(write_atomically, path, "new and longer")
    assert says.startswith(f"cannot write {path}")
    assert "No space left on device" in says
    assert "make room or choose another folder, then run the same command again" in says
    assert path.read_text() == "old"
    assert files_below(tmp_path).keys() == {"a.json"}


@pytest.mark.parametrize(
    ("missing", "meant"),
    [
        ("runs/phots", "runs/photos"),
        ("runs/phots/finetune-1pc-seed0", "runs/photos/finetune-1pct-seed0"),
        ("rnus/photos/absent/deeper", "runs/photos"),
        ("./runs/../labls.csv", "runs/../labels.csv"),
        ("runs/photos/finetune-1pct-seed0", ""),  # it is there
        ("labels.csv/x", ""),  # below a file
        ("quite/different", ""),
        ("runs/photos/" + "long" * 100, ""),
        ("", ""),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_misspelt_path_names_the_similar_one(missing, meant, absolute, tmp_path, monkeypatch):
    (tmp_path / "runs/photos/finetune-1pct-seed0").mkdir(parents=True)
    (tmp_path / "labels.csv").touch()
    monkeypatch.chdir(tmp_path)
    if absolute:
        missing, meant = tmp_path / missing, meant and tmp_path / meant
    assert did_you_mean(missing) == (f"; did you mean {meant}?" if meant else "")
