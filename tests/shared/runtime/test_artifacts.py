"""Artifact folders: done or not, other settings, exact resuming, atomicity, nothing executed."""

import errno
import json
import os
import pickle
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shared.runtime import artifacts
from shared.runtime.artifacts import (
    StageFolder,
    is_outdated,
    load_tensors,
    read_meta,
    read_predictions,
    save_tensors,
    sha256,
    write_atomically,
)
from shared.runtime.files import clean
from shared.runtime.lock import BusyError
from shared.training.optim import build_optimizer, set_learning_rate
from tests.support.photos import process
from tests.support.stage_folder import SETTINGS, folder, message

META = {"kind": "encoder", "encoder": "x", "image_size": 8}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(step))
        set_learning_rate(optimizer, 0.1 / (step + 1))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def files(path: Path) -> dict[str, str]:
    """Every file below, with its hash."""
    return {str(f.relative_to(path)): sha256(f) for f in path.rglob("*") if f.is_file()}


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
    into_place = artifacts._into_place

    def watch(path, write):
        written.append(path.name)
        into_place(path, write)

    monkeypatch.setattr(artifacts, "_into_place", watch)
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


# ---------------------------------------------------------------------------------------- resuming
@pytest.mark.parametrize("name", ["adamw", "lars", "sgd"])
def test_resuming_is_exact(tmp_path, name):
    """Bit for bit the uninterrupted run, weights, statistics and optimizer alike."""
    model = network()
    optimizer = build_optimizer(name, model, 0.01, lr_scales={"0": 0.5})
    stage = folder(tmp_path)
    train(model, optimizer, range(5))
    stage.save_state(5, 12.5, model, optimizer)
    train(model, optimizer, range(5, 9))

    torch.manual_seed(1)
    other = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    resumed = build_optimizer(name, other, 0.01, lr_scales={"0": 0.5})
    assert stage.load_state(other, resumed) == (5, 12.5)
    train(other, resumed, range(5, 9))
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    for before, after in zip(optimizer.state.values(), resumed.state.values(), strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[slot], after[slot]) for slot in before)
    assert len(optimizer.state) == 6


@pytest.mark.parametrize("name", ["adamw", "lars", "sgd"])
def test_loaded_moments_lie_in_memory_as_their_weights_do(tmp_path, name):
    """The fused and foreach updates go through both side by side."""

    def channels_last() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)).to(
            memory_format=torch.channels_last
        )

    def update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(2, 3, 5, 5)).square().mean().backward()
        set_learning_rate(optimizer, 0.1)
        optimizer.step()
        optimizer.zero_grad()

    model, stage = channels_last(), folder(tmp_path)
    optimizer = build_optimizer(name, model, 0.01)
    update(model, optimizer)
    stage.save_state(1, 0.0, model, optimizer)
    other = channels_last()
    resumed = build_optimizer(name, other, 0.01)
    stage.load_state(other, resumed)
    for weight, moments in resumed.state.items():
        strides = {value.stride() for value in moments.values() if value.shape == weight.shape}
        assert strides == {weight.stride()}
    for both in ((model, optimizer), (other, resumed)):
        update(*both)
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


# ------------------------------------------------------------------------------------- provenance
@pytest.mark.parametrize("git", ["missing", "hangs", "forbidden", "no repository"])
def test_a_stage_finishes_whatever_git_does(tmp_path, monkeypatch, git):
    """A slim container has no git: all of pretraining must not be lost for a line of meta.json."""

    def run(command, **options):
        if git == "missing":
            raise FileNotFoundError(2, "No such file or directory", "git")
        if git == "forbidden":
            raise PermissionError(13, "Permission denied", "git")
        if git == "hangs":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, 128, "", "fatal: not a git repository")

    monkeypatch.setattr(artifacts.subprocess, "run", run)
    artifacts.provenance.cache_clear()
    stage = folder(tmp_path)
    stage.start("")
    stage.finish(network(), META)
    artifacts.provenance.cache_clear()
    assert read_meta(stage.path)["git"] is None


def test_versions_that_are_not_known_are_none(monkeypatch):
    """Metadata of packages are left out of some images too."""

    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(artifacts, "version", version)
    artifacts.provenance.cache_clear()
    assert set(artifacts.provenance()["versions"].values()) == {None}
    artifacts.provenance.cache_clear()


def test_newer_checkpoint_replaces_the_older(tmp_path):
    model = network()
    optimizer = build_optimizer("adamw", model, 0.01)
    stage = folder(tmp_path)
    for step in (9, 10, 1_000_000):
        stage.save_state(step, 0.0, model, optimizer)
        assert [f.name for f in (stage.path / "state").iterdir()] == [f"{step:09d}.safetensors"]
    assert stage.load_state(model, optimizer)[0] == 1_000_000


# ------------------------------------------------------------------------------- atomic, full disk
def fill_the_disk(monkeypatch, after: int = 0) -> None:
    """Every write from the ``after``-th on fails in the middle: half of the bytes are there."""
    fsync, count = os.fsync, iter(range(10**6))

    def full(descriptor):
        if next(count) < after:
            return fsync(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        os.truncate(path, os.path.getsize(path) // 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)


def test_full_disk_leaves_the_previous_version(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        says = message(write_atomically, path, "new and longer")
    assert says.startswith(f"cannot write {path}")
    assert "No space left on device" in says
    assert "make room or choose another --output, then run the same command again" in says
    assert path.read_text() == "old"
    assert files(tmp_path).keys() == {"a.json"}


def test_full_disk_at_a_checkpoint_leaves_the_last_one(tmp_path, monkeypatch):
    model = network()
    optimizer = build_optimizer("adamw", model, 0.01)
    stage = folder(tmp_path)
    train(model, optimizer, range(3))
    stage.save_state(3, 1.0, model, optimizer)
    before = files(tmp_path)
    train(model, optimizer, range(3, 6))
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        message(stage.save_state, 6, 2.0, model, optimizer)
    assert files(tmp_path) == before
    with monkeypatch.context() as patch:  # the writer itself may raise, too

        def save_file(tensors, path, notes):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(artifacts, "save_file", save_file)
        message(stage.save_state, 6, 2.0, model, optimizer)
        message(stage.finish, model, META)
    assert files(tmp_path) == before
    assert stage.load_state(model, optimizer) == (3, 1.0)


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


# ------------------------------------------------------------------------ damaged or hostile files
class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("content", ["pickle", "torch.save", "nothing", "huge header"])
def test_what_is_no_safetensors_file_is_never_executed(tmp_path, content):
    marker, path = tmp_path / "executed", tmp_path / "model.safetensors"
    if content == "pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    elif content == "torch.save":
        torch.save({"weight": Bomb(marker)}, path)
    elif content == "huge header":
        path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    else:
        path.write_bytes(b"")
    says = message(load_tensors, path)
    assert "model.safetensors is truncated or not a safetensors file" in says
    assert not marker.exists()
    if content == "pickle":
        pickle.loads(path.read_bytes())
        assert marker.exists()  # it would have worked


def test_truncated_weights_at_any_place(tmp_path):
    path = tmp_path / "model.safetensors"
    save_tensors(path, network().state_dict(), {"step": "1"})
    whole = path.read_bytes()
    for length in (1, 7, 8, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "truncated" in message(load_tensors, path)
    path.unlink()
    assert "does not exist" in message(load_tensors, path)


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
    (tmp_path / "finetune-1pct-seed0").mkdir()  # not finished
    text = message(read_meta, tmp_path, "classifier")
    assert text == f"{tmp_path} is the folder of a run; give one of its stages: {', '.join(stages)}"


def test_nothing_in_the_code_unpickles():
    root = Path(__file__).parents[3]
    sources = [root / "pipeline.py", *root.glob("shared/**/*.py"), *root.glob("stages/**/*.py")]
    assert len(sources) > 40
    for source in sources:
        text = source.read_text()
        for word in ("torch.load", "pickle.load", "allow_pickle=True", "joblib", "eval(", "exec("):
            assert not re.search(rf"\b{re.escape(word)}(?!\))", text), source


# ---------------------------------------------------------------------------- damaged checkpoints
def checkpointed(tmp_path) -> tuple[StageFolder, Path]:
    stage, model = folder(tmp_path), network()
    optimizer = build_optimizer("adamw", model, 0.1)
    train(model, optimizer, range(2))
    stage.start("")
    stage.save_state(2, 0.5, model, optimizer)
    return stage, stage.path / "state/000000002.safetensors"


def going_on(tmp_path) -> str:
    """What the stage says of its checkpoint; nothing of the network may have changed."""
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # a flipped bit may also lie in the settings, which are read first
    says = message(lambda: folder(tmp_path).load_state(model, build_optimizer("adamw", model, 0.1)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert "redo the stage with --force finetune" in says
    return says


def flip(position: int):
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[position] ^= 4
        file.write_bytes(content)

    return damage


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    "damage",
    [
        *(flip(position) for position in (0, 7, 9, 40, 300, 900, -1, -500)),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes() + b"more"),
        lambda file: (file.unlink(), file.mkdir()),
        pipe,
        lambda file: file.rename(file.with_name("000000003.safetensors")),
        lambda file: file.rename(file.with_name("odd.safetensors")),
    ],
)
def test_a_damaged_checkpoint_is_said_in_one_line(tmp_path, damage):
    _, file = checkpointed(tmp_path)
    damage(file)
    assert "cannot go on from the checkpoint" in going_on(tmp_path)


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize(
    ("change", "notes"),
    [
        (lambda t: dict(list(t.items())[::2]), {}),
        (lambda t: {k: v for k, v in t.items() if k[0] == "m"}, {}),  # none of the optimizer
        (lambda t: {k: v for k, v in t.items() if k[:11] != "optimizer.3"}, {}),
        (lambda t: {k: v.new_zeros(2, 2, 2) for k, v in t.items()}, {}),
        (lambda t: {f"x{k}": v for k, v in t.items()}, {}),
        (lambda t: {**t, "optimizer.-1.exp_avg": torch.zeros(3)}, {}),
        (lambda t: {**t, "optimizer.99.exp_avg": torch.zeros(3)}, {}),
        (lambda t: {**t, "optimizer.x": torch.zeros(3)}, {}),
        (lambda t: {k: v * float("nan") if v.is_floating_point() else v for k, v in t.items()}, {}),
        (lambda t: {k: v.half() if v.is_floating_point() else v for k, v in t.items()}, {}),
        (dict, {"step": "-1"}),
        (dict, {"step": "two"}),
        (dict, {"step": "3"}),
        (dict, {"step": None}),
        (dict, {"seconds": "nan"}),
        (dict, {"settings": "{"}),
    ],
)
def test_odd_checkpoints_are_refused_also_those_of_earlier_versions(
    tmp_path, change, notes, hashed
):
    """Those have no hash, which alone would tell."""
    _, file = checkpointed(tmp_path)
    tensors, noted = load_tensors(file)
    noted = {k: v for k, v in {**noted, **notes}.items() if v is not None}
    if not hashed:
        del noted["sha256"]
        noted.pop("settings" if "settings" not in notes else "", None)
    file.unlink()
    save_tensors(file, change(tensors), noted)
    says = going_on(tmp_path)
    assert not hashed or "it is damaged" in says


def test_a_checkpoint_belongs_to_its_settings(tmp_path):
    """Not to the settings.json beside it, which another process may have written since."""
    _, file = checkpointed(tmp_path)
    settings = {**SETTINGS, "finetune.learning_rate": 0.2}
    (file.parents[1] / "settings.json").write_text(json.dumps(settings))
    other = message(folder, tmp_path, finetune__learning_rate=0.2)
    assert "was made with finetune.learning_rate=0.1, now it is 0.2" in other
    assert folder(tmp_path).load_state(network(), build_optimizer("adamw", network(), 0.1))[0] == 2
    stage = folder(tmp_path / "other", stage="distill")
    copied = stage.path / "state"
    copied.mkdir(parents=True)
    file.rename(copied / file.name)
    says = message(stage.load_state, network(), build_optimizer("adamw", network(), 0.1))
    assert "it was made with stage=finetune, now it is distill" in says


def test_an_older_checkpoint_is_named_where_there_is_one(tmp_path):
    _, file = checkpointed(tmp_path)
    file.with_name("000000003.safetensors").write_bytes(b"torn")
    optimizer = build_optimizer("adamw", network(), 0.1)
    says = message(folder(tmp_path).load_state, network(), optimizer)
    assert "delete it, then the same command goes on from 000000002.safetensors" in says


# --------------------------------------------------------------------------------- two at a time
def test_who_comes_second_changes_nothing(tmp_path, monkeypatch):
    one, two = folder(tmp_path), folder(tmp_path, finetune__learning_rate=0.3)
    one.start("")
    one.save_state(7, 1.5, network(), build_optimizer("lars", network(), 0.1))
    before = files(tmp_path)

    def busy(path):
        raise BusyError(f"{path} is in use")

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "take", busy)
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
    assert folder(tmp_path).done
    assert not (stage.path / "state").exists()


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
    monkeypatch.setattr(artifacts, "ARRAYS", 100)
    assert "take more than 100 bytes" in message(read_predictions, tmp_path)


def test_all_that_a_crash_leaves_of_a_file_of_tensors_is_cleaned(tmp_path, monkeypatch):
    """safetensors writes under a name of its own; here it is killed before it takes that away."""

    def killed(tensors, path, notes):
        (Path(path).parent / ".tmpAbC123").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "save_file", killed)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # nor does anything else
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {})
    monkeypatch.undo()
    assert len(list(tmp_path.rglob("*"))) == 3
    clean(tmp_path, alone=True)
    assert list(tmp_path.iterdir()) == []
