"""Folders of stages: done or not, other settings, atomicity, a full disk, two at a time."""

import json
import os

import pytest
import torch

from shared.runtime import files as runtime_files
from shared.runtime import lock, stage_folder
from shared.runtime.artifacts import read_meta
from shared.runtime.files import temporary_name
from shared.runtime.lock import BusyError
from shared.runtime.stage_folder import StageFolder
from shared.runtime.tensors import load_tensors, sha256
from shared.training.optim import build_optimizer
from tests.support.disk import fill_the_disk
from tests.support.photos import process
from tests.support.stage_folder import META, SETTINGS, checkpointed, files, folder, message, network


# ------------------------------------------------------------------------------------- done or not
def test_a_stage_from_start_to_end(tmp_path):
    stage = folder(tmp_path)
    assert not stage.done
    stage.start("labels: 1pct\n")
    for where in ("run", "run/finetune"):
        assert (tmp_path / where / "config.yaml").read_text() == "labels: 1pct\n"
    assert not folder(tmp_path).done
    model = network()
    optimizer = build_optimizer("adamw", model, 0.1)
    stage.save_state(1, 0.5, model, optimizer)
    stage.finish(model, META)
    assert not (tmp_path / "run/finetune/state").exists()
    again = folder(tmp_path)
    assert again.done
    meta = read_meta(again.path)
    assert meta == again.meta
    assert meta["kind"] == "encoder"
    assert meta["weights_sha256"] == sha256(again.path / "model.safetensors")
    assert meta["settings"]["finetune.learning_rate"] == 0.1
    assert meta["versions"]["torch"] == torch.__version__.partition("+")[0]
    tensors, _ = load_tensors(again.path / "model.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("linked", ["finetune", "run"])
def test_a_finished_artifact_is_read_through_a_link(tmp_path, linked):
    """Also where a process that was killed has left its last checkpoint."""
    stage = folder(tmp_path / "first")
    stage.start("")
    stage.finish(network(), META)
    (stage.path / "state").mkdir()
    there = tmp_path / "first/run" / ("" if linked == "run" else linked)
    here = tmp_path / "second/run" / ("" if linked == "run" else linked)
    here.parent.mkdir(parents=True)
    here.symlink_to(there)
    assert folder(tmp_path / "second").done


def test_who_lost_the_folder_writes_nothing_more(tmp_path):
    stage, model = folder(tmp_path), network()
    stage.start("")
    optimizer = build_optimizer("lars", model, 0.1)
    (tmp_path / "run/.finetune.lock").write_text('{"pid": 7}')  # it was suspended meanwhile
    before = files(tmp_path)
    assert "another process took over" in message(stage.save_state, 1, 0.5, model, optimizer)
    assert "another process took over" in message(stage.finish, model, META)
    assert files(tmp_path) == before


def test_meta_is_written_last(tmp_path, monkeypatch):
    """Whatever happens before, the stage does not count as done."""
    written = []
    into_place = runtime_files.into_place

    def watch(path, write):
        written.append(path.name)
        into_place(path, write)

    monkeypatch.setattr(runtime_files, "into_place", watch)
    stage = folder(tmp_path)
    stage.start("")
    stage.finish(network(), META)
    assert written == [
        "config.yaml",
        "config.yaml",
        "settings.json",
        "model.safetensors",
        "meta.json",
    ]


def test_an_artifact_of_an_earlier_version_lacks_options_that_are_left_alone(tmp_path):
    made = folder(tmp_path)
    made.start("")
    made.finish(network(), META)
    settings = {**SETTINGS, "finetune.new_option": 3}
    options = {"force": False, "accelerator": process()}
    path, known = tmp_path / "run/finetune", {"finetune.new_option": 3}
    assert StageFolder(path, settings, defaults=known, **options).done
    changed = settings | {"finetune.new_option": 4}
    text = message(StageFolder, path, changed, defaults=known, **options)
    assert "was made with finetune.new_option=3, now it is 4" in text


def test_other_settings_are_refused_with_both_values(tmp_path):
    stage = folder(tmp_path)
    stage.start("")
    stage.finish(network(), META)
    before = files(tmp_path)
    says = message(folder, tmp_path, finetune__learning_rate=0.2)
    assert "finetune.learning_rate=0.1, now it is 0.2" in says
    assert "--force finetune" in says
    assert "--run" in says
    assert "labels=None, now it is abc" in message(folder, tmp_path, labels="abc")
    assert files(tmp_path) == before
    assert folder(tmp_path, data__mean=(0, 0, 0)).done  # tuple or list, 0 or 0.0


@pytest.mark.parametrize("begun", [True, False])
def test_what_a_stage_follows_makes_it_anew_without_force(tmp_path, begun):
    first = {**SETTINGS, "labels": "abc", "parent": "p"}
    options = {"force": False, "accelerator": process(), "follows": ("labels", "parent")}
    path, model = tmp_path / "run/finetune", network()
    stage = StageFolder(path, first, **options)
    stage.start("")
    if begun:
        stage.save_state(7, 1.5, model, build_optimizer("lars", model, 0.1))
    else:
        stage.finish(model, META)
    before = files(tmp_path)
    other_rate = first | {"labels": "x", "finetune.learning_rate": 0.2}
    assert "also changed: finetune" in message(StageFolder, path, other_rate, **options)
    assert "parent=p, now it is q" in message(StageFolder, path, first | {"parent": "q"}, **options)
    assert StageFolder(path, first, **options).done != begun
    stage = StageFolder(path, first | {"labels": "x", "parent": "q"}, **options)
    assert not stage.done
    assert files(tmp_path) == before  # until it starts
    stage.start("")
    assert stage.load_state(model, build_optimizer("lars", model, 0.1)) == (0, 0.0)
    assert not (path / "meta.json").exists()


def test_interrupted_stage_goes_on_or_is_refused(tmp_path):
    stage = folder(tmp_path)
    stage.start("")
    model = network()
    optimizer = build_optimizer("lars", model, 0.1)
    stage.save_state(7, 1.5, model, optimizer)
    before = files(tmp_path)
    assert "now it is 0.2" in message(folder, tmp_path, finetune__learning_rate=0.2)
    assert files(tmp_path) == before
    again = folder(tmp_path)
    assert not again.done
    assert again.load_state(network(), build_optimizer("lars", network(), 0.1)) == (7, 1.5)
    assert again.last_checkpoint().endswith("000000007.safetensors")


def test_settings_that_failed_before_the_first_checkpoint_bind_nobody(tmp_path):
    """A typo found after the folder was made must not ask for --force."""
    folder(tmp_path, finetune__learning_rate=99).start("")
    stage = folder(tmp_path)
    stage.start("")
    assert json.loads((stage.path / "settings.json").read_text())["finetune.learning_rate"] == 0.1
    assert stage.load_state(network(), build_optimizer("lars", network(), 0.1)) == (0, 0.0)
    assert stage.last_checkpoint() == "none yet"


def test_force_deletes_only_when_the_stage_starts(tmp_path):
    stage = folder(tmp_path)
    stage.start("")
    stage.finish(network(), META)
    before = files(tmp_path)
    forced = folder(tmp_path, force=True, finetune__learning_rate=0.2)
    assert not forced.done
    assert files(tmp_path) == before  # what is checked in between may still fail
    forced.start("")
    assert not (stage.path / "model.safetensors").exists()
    assert not folder(tmp_path, finetune__learning_rate=0.2).done


def test_only_the_main_process_writes(tmp_path):
    stage = folder(tmp_path, of=process(1, 2))
    model = network()
    stage.start("")
    stage.save_state(1, 0.0, model, build_optimizer("lars", model, 0.1))
    stage.finish(model, META)
    assert files(tmp_path) == {}


def test_full_disk_at_the_end_keeps_the_checkpoint(tmp_path, monkeypatch):
    """The weights fit, meta.json does not: not done, and the state is still there."""
    model = network()
    optimizer = build_optimizer("adamw", model, 0.01)
    stage = folder(tmp_path)
    stage.start("")
    stage.save_state(3, 1.0, model, optimizer)
    with monkeypatch.context() as patch:
        fill_the_disk(patch, after=1)
        assert "meta.json" in message(stage.finish, model, META)
    again = folder(tmp_path)
    assert not again.done
    assert again.load_state(model, optimizer) == (3, 1.0)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    stage = folder(tmp_path)
    says = message(stage.start, "")
    assert says.startswith("cannot write")
    assert "choose another --run or --output" in says


# --------------------------------------------------------------------------------- two at a time
def test_who_comes_second_changes_nothing(tmp_path, monkeypatch):
    one, two = folder(tmp_path), folder(tmp_path, finetune__learning_rate=0.3)
    one.start("")
    one.save_state(7, 1.5, network(), build_optimizer("lars", network(), 0.1))
    before = files(tmp_path)

    def busy(path):
        raise BusyError(f"{path} is in use")

    with monkeypatch.context() as patch:
        patch.setattr(stage_folder, "take", busy)
        assert "is in use" in message(two.start, "")
    assert files(tmp_path) == before
    assert "another process has worked" in message(two.start, "")  # it has ended meanwhile
    assert files(tmp_path) == before
    late = folder(tmp_path)
    one.finish(network(), META)
    assert not (tmp_path / "run/.finetune.lock").exists()
    assert "another process has worked" in message(late.start, "")


def test_what_a_kill_has_left_goes(tmp_path):
    """Of the moment between meta.json and the end, and of unfinished files."""
    stage, file = checkpointed(tmp_path)
    for name in ("config.yaml.tmp", "state/000000009.safetensors.tmp"):
        (stage.path / name).write_text("half")
    folder(tmp_path).start("")
    assert not list(stage.path.rglob("*.tmp"))
    assert file.exists()
    stage.finish(network(), META)
    (stage.path / "state").mkdir()
    (stage.path / "state/000000002.safetensors").write_text("")
    left = stage.path.with_name(f".{stage.path.name}.lock")
    left.write_text(json.dumps({**lock._own_note(), "started": 5.0}))
    child = os.fork()
    if not child:  # a temporary folder that could not be removed
        (stage.path / temporary_name()).mkdir()
        os._exit(0)
    os.waitpid(child, 0)
    assert list(stage.path.rglob("*.tmp"))
    assert folder(tmp_path).done
    assert not list(stage.path.rglob("*.tmp"))
    assert not (stage.path / "state").exists()
    assert not left.exists()


def test_a_finished_stage_without_its_network_is_said(tmp_path):
    stage, _ = checkpointed(tmp_path)
    stage.finish(network(), META)
    assert folder(tmp_path).done
    (stage.path / "model.safetensors").unlink()
    says = message(folder, tmp_path)
    assert "model.safetensors is missing" in says
    assert "--force finetune" in says
    assert not folder(tmp_path, force=True).done


def test_force_deletes_nothing_behind_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    stage, _ = checkpointed(tmp_path)
    (stage.path / "link").symlink_to(victim)
    folder(tmp_path, force=True).start("")
    assert os.listdir(victim) == ["file"]
    assert not (stage.path / "link").is_symlink()
    (tmp_path / "elsewhere/run").mkdir(parents=True)
    (tmp_path / "elsewhere/run/finetune").symlink_to(victim)
    says = message(folder(tmp_path / "elsewhere", force=True).start, "")
    assert "is a link" in says
    assert os.listdir(victim) == ["file"]
