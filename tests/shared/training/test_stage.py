"""What a stage does around its step: what may be saved, and how a stopped run goes on."""

import hashlib
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from shared.config.schema import Config
from shared.config.sections import Distill, Finetune, Pretrain
from shared.data.batches import Batches
from shared.runtime.errors import UserError
from shared.training.device import read_later
from shared.training.stage import Stage, require_an_image_each
from stages import finetune, pretrain
from tests.support.toy_run import call


# -------------------------------------------------------------------------------------- checkpoints
class Kept(Stage):
    """A stage of five steps, without folder and data, that notes what it saves."""

    def __init__(self, model: nn.Module, saved: list[int]):
        self.method, self.training = "finetune", Finetune(checkpoint_every_steps=2)
        self.schedule, self.state = SimpleNamespace(steps=5), model
        self.optimizer = torch.optim.SGD(model.parameters(), 0.1)
        self.seconds_before = self._began = 0.0
        self.folder = SimpleNamespace(
            last_checkpoint=lambda: "state/2.safetensors",
            save_state=lambda step, *rest: saved.append(step),
        )


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_checkpoints_are_saved_when_due():
    saved, model = [], network()
    for step in range(1, 6):
        Kept(model, saved).checkpoint(step)
    assert saved == [2, 4]  # after the last step the artifact itself


@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [4, 5])
def test_what_is_not_finite_is_never_saved(name, value, step):
    """Neither as a checkpoint (step 4) nor as the artifact (step 5)."""
    saved, model = [], network()
    model.state_dict()[name].view(-1)[1] = value
    with pytest.raises(
        UserError, match=f"weights are not finite after step {step} of finetune"
    ) as e:
        Kept(model, saved).checkpoint(step)
    assert "last good checkpoint: state/2.safetensors" in str(e.value)
    assert saved == []


def test_a_loss_that_is_no_number_stops_with_step_and_rate():
    stage = Kept(network(), [])
    stage.step, stage.learning_rate = 7, 0.1
    loss = torch.tensor(2.0, requires_grad=True)
    stage.require_finite(read_later(loss))
    for value in (float("nan"), float("-inf")):
        with pytest.raises(UserError) as error:
            stage.require_finite(read_later(loss * value))
        assert f"the loss is {value} at step 7 of finetune (learning rate 0.1)" in str(error.value)
        assert "last good checkpoint: state/2.safetensors" in str(error.value)


def weights(folder) -> str:
    return hashlib.sha256((folder / "digits/pretrain/model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(("made", "micro_batch"), [(0, None), (1, 16), (3, None)])
def test_what_was_learned_is_saved_where_a_batch_cannot_be_made(
    made, micro_batch, tmp_path, monkeypatch, capsys
):
    """An unreadable image, or a worker that the system has ended."""
    options = [f"--pretrain.micro_batch={micro_batch or 'null'}", "--pretrain.log_every_steps=1"]
    assert call(pretrain.main, tmp_path / "whole", *options) == 0
    name = "steps_in_parts" if micro_batch else "steps"
    steps = getattr(Batches, name)

    def steps_until(self, *arguments):
        yield from itertools.islice(steps(self, *arguments), made)
        raise UserError("cannot read a.png")

    with monkeypatch.context() as patch:
        patch.setattr(Batches, name, steps_until)
        assert call(pretrain.main, tmp_path / "ended", *options) == 2
    assert capsys.readouterr().err.count("error: cannot read a.png\n") == 1
    states = [int(file.stem) for file in tmp_path.glob("ended/digits/pretrain/state/*.safetensors")]
    assert states == [made] * bool(made)
    assert call(pretrain.main, tmp_path / "ended", *options) == 0
    assert weights(tmp_path / "ended") == weights(tmp_path / "whole")
    log = (tmp_path / "ended/digits/pretrain/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4, 5, 6]


# ------------------------------------------------------------------------------- earlier versions
def as_of_an_earlier_version(folder):
    """Training could be antialiased then; evaluation was not."""
    meta = json.loads((folder / "meta.json").read_text())
    del meta["antialias"]
    meta["settings"]["augment.antialias"] = meta["settings"].pop("data.antialias")
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("antialias", ["false", "true"])
def test_what_was_trained_before_evaluation_was_antialiased(antialias, tmp_path, capsys):
    """The pretraining is kept; a classifier that was measured on other pictures is not."""
    options = [f"--data.antialias={antialias}", "--pretrain.steps=1", "--finetune.steps=1"]
    for main, stage in ((pretrain.main, "pretrain"), (finetune.main, "finetune-1pct-seed0")):
        assert call(main, tmp_path, *options) == 0
        as_of_an_earlier_version(tmp_path / "digits" / stage)
    capsys.readouterr()
    assert call(pretrain.main, tmp_path, *options) == 0
    assert "pretrain: already done" in capsys.readouterr().out
    if antialias == "false":
        assert call(finetune.main, tmp_path, *options) == 0
        assert "finetune: already done" in capsys.readouterr().out
    else:
        assert call(finetune.main, tmp_path, *options) == 2
        message = capsys.readouterr().err
        assert "was made with data.antialias=False, now it is True" in message
        assert "--force finetune" in message


# ------------------------------------------------------------------------------------- processes
@pytest.mark.parametrize("processes", range(1, 17))
def test_batches_are_taken_whatever_their_remainder(processes):
    config = Config(pretrain=Pretrain(batch_size=64, micro_batch=16))
    require_an_image_each(config, "pretrain", processes)


def test_batches_with_fewer_images_than_processes_are_refused():
    config = Config(finetune=Finetune(batch_size=2))
    require_an_image_each(config, "finetune", 2)
    with pytest.raises(UserError) as error:
        require_an_image_each(config, "finetune", 3)
    assert str(error.value) == (
        "finetune.batch_size=2 leaves some of the 3 processes without an image; give"
        " --finetune.batch_size 3 or more, or start fewer processes"
    )
    require_an_image_each(config, "pretrain", 4)
    parts = Config(pretrain=Pretrain(batch_size=64, micro_batch=2))
    with pytest.raises(UserError, match=r"pretrain.micro_batch=2 leaves some of the 4 processes"):
        require_an_image_each(parts, "pretrain", 4)


def test_labeled_batches_count_where_there_are_any():
    without = Distill(batch_size=6, labeled_batch_size=2)
    require_an_image_each(Config(distill=without), "distill", 3)
    mixed = Distill(batch_size=6, labeled_batch_size=2, labeled_weight=0.5)
    for method in ("distill", "self-distill"):
        with pytest.raises(UserError, match=r"distill.labeled_batch_size=2 leaves some of the 3"):
            require_an_image_each(Config(distill=mixed), method, 3)


def test_what_is_done_is_read_by_any_number_of_processes(tmp_path):
    config = Config(output=str(tmp_path), finetune=Finetune(batch_size=2))
    folder = config.folder_of("finetune")
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"finetune.batch_size=2"):
        require_an_image_each(config, "finetune", 3)
    (folder / "meta.json").touch()
    require_an_image_each(config, "finetune", 3)
    for force in ("finetune", "pretrain", "all"):
        with pytest.raises(UserError, match=r"finetune.batch_size=2"):
            require_an_image_each(replace(config, force=force), "finetune", 3)
    require_an_image_each(replace(config, force="distill"), "finetune", 3)
