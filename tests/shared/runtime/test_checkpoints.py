"""Checkpoints: exact resuming, damaged ones, those of other settings, a full disk."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from shared.runtime import stage_folder, tensors
from shared.runtime.tensors import digest, load_tensors, save_tensors
from shared.training.optim import build_optimizer, set_learning_rate
from tests.support.disk import fill_the_disk
from tests.support.stage_folder import (
    META,
    SETTINGS,
    checkpointed,
    files,
    folder,
    message,
    network,
    train,
)


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


def test_newer_checkpoint_replaces_the_older(tmp_path):
    model = network()
    optimizer = build_optimizer("adamw", model, 0.01)
    stage = folder(tmp_path)
    for step in (9, 10, 1_000_000):
        stage.save_state(step, 0.0, model, optimizer)
        assert [f.name for f in (stage.path / "state").iterdir()] == [f"{step:09d}.safetensors"]
    assert stage.load_state(model, optimizer)[0] == 1_000_000


def test_an_older_checkpoint_that_cannot_be_deleted_goes_with_the_next(tmp_path, monkeypatch):
    model = network()
    optimizer = build_optimizer("adamw", model, 0.01)
    stage = folder(tmp_path)
    stage.save_state(1, 0.0, model, optimizer)
    unlink = Path.unlink

    def refuse(path, **options):
        if path.name == "000000001.safetensors":
            raise OSError(errno.EIO, "Input/output error")
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        stage.save_state(2, 0.0, model, optimizer)
    assert len(list((stage.path / "state").iterdir())) == 2
    stage.save_state(3, 0.0, model, optimizer)
    assert [f.name for f in (stage.path / "state").iterdir()] == ["000000003.safetensors"]


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

        patch.setattr(tensors, "save_file", save_file)
        message(stage.save_state, 6, 2.0, model, optimizer)
        message(stage.finish, model, META)
    assert files(tmp_path) == before
    assert stage.load_state(model, optimizer) == (3, 1.0)


# ---------------------------------------------------------------------------- damaged checkpoints
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
        (lambda t: {**t, "optimizer.١.exp_avg": t["optimizer.1.exp_avg"] + 1}, {}),
        (lambda t: {**t, "optimizer.01.exp_avg": t["optimizer.1.exp_avg"] + 1}, {}),
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


# ------------------------------------------------- checkpoints that somebody has written and hashed
def rewritten(tmp_path, name, change, notes=None) -> str:
    """What a stage says of a changed checkpoint that notes the hash of what it holds."""
    stage, model = folder(tmp_path), network()
    optimizer = build_optimizer(name, model, 0.1)
    train(model, optimizer, range(2))
    stage.save_state(2, 0.5, model, optimizer)
    file = stage.path / "state/000000002.safetensors"
    tensors, noted = load_tensors(file)
    del noted["sha256"]
    tensors, noted = change(tensors), {**noted, **(notes or {})}
    file.unlink()
    file = file.with_name(f"{int(noted['step']):09d}.safetensors")
    save_tensors(file, tensors, {**noted, "sha256": digest(tensors, noted)})
    other = network()
    return message(stage.load_state, other, build_optimizer(name, other, 0.1), 5)


def slots(tensors, function):
    """The same with each tensor of the optimizer under the name, or of the value, that it gets."""
    changed = {}
    for name, value in tensors.items():
        name, value = function(name, value) if name.startswith("optimizer.") else (name, value)
        changed |= {name: value} if name else {}
    return changed


FIRST = ("exp_avg", "momentum_buffer")  # of AdamW, and of the other two
FOREIGN = {
    "renamed": lambda name, x: (re.sub("exp_avg$|momentum_buffer", "evil", name), x),
    "left out": lambda name, x: ("" if name[10:12] == "0." and name.endswith(FIRST) else name, x),
    "one number": lambda name, x: (name, x.reshape(-1)[:1].clone()),
    "one number of many dimensions": lambda name, x: (name, x.reshape(-1)[:1].view(1, 1, 1)),
    "transposed": lambda name, x: (name, x.mT.contiguous() if x.ndim == 2 else x),
    "8 bits": lambda name, x: (name, x.to(torch.float8_e4m3fn)),
    "whole numbers": lambda name, x: (name, x.long()),
    "double": lambda name, x: (name, x.double()),
    "without dimensions": lambda name, x: (name, x.reshape(-1)[0].clone()),
}


@pytest.mark.parametrize("name", ["adamw", "lars", "sgd"])
@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_an_optimizer_gets_no_state_but_its_own(tmp_path, name, change):
    """AdamW's fused update reads and writes memory by the weight's size, whatever a moment's is."""
    says = rewritten(tmp_path, name, lambda tensors: slots(tensors, change))
    assert "optimizer.0" in says
    assert "redo the stage with --force finetune" in says


def test_counts_of_adamw_are_single_numbers(tmp_path):
    def like_weight(name, value):
        return name, torch.ones(8) if name.endswith("1.step") else value

    says = rewritten(tmp_path, "adamw", lambda tensors: slots(tensors, like_weight))
    assert "optimizer.1.step is (8,) torch.float32, needed is () torch.float32" in says


@pytest.mark.parametrize("also", ["evil", "x.y", "optimizer.0.evil", "optimizer.6.exp_avg"])
def test_a_checkpoint_holds_nothing_besides(tmp_path, also):
    says = rewritten(tmp_path, "adamw", lambda tensors: {**tensors, also: torch.ones(3)})
    assert f"{also!r} is not the network's" in says


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        ({"step": "6"}, "it notes step 6 of 5"),
        ({"step": "1000000000000"}, "it notes step 1,000,000,000,000 of 5"),
        ({"seconds": "1e308"}, "it notes step 2 and 1e+308 seconds"),
        ({"settings": "{}"}, "it was made with data.mean=None, now it is [0.0, 0.0, 0.0]"),
    ],
)
def test_what_a_checkpoint_notes_has_bounds(tmp_path, notes, reason):
    assert reason in rewritten(tmp_path, "lars", dict, notes)


def test_a_checkpoint_far_too_large_is_not_read(tmp_path, monkeypatch):
    """Of zeros that take no room on the disk, and hours to hash."""
    _, file = checkpointed(tmp_path)
    os.truncate(file, 2**40)
    monkeypatch.setattr(stage_folder, "read_checkpoint", lambda file: pytest.fail("it was read"))
    assert "it has 1,099,511,627,776 bytes, at most" in going_on(tmp_path)
    (file.parents[1] / "settings.json").write_text("{}")  # also not where settings differ
    assert "was made with data.mean=None" in message(folder, tmp_path)


def test_a_file_in_place_of_the_checkpoints_folder_is_refused_before_training(tmp_path):
    stage = folder(tmp_path)
    stage.path.mkdir(parents=True)
    (stage.path / "state").write_text("x")
    assert message(stage.start, "") == f"{stage.path / 'state'} is no folder; remove it"
