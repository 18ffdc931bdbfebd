"""Metrics of a stage: resumed, on a full disk, and as wandb gets them."""

import json

import torch

from shared.config.sections import Linear
from shared.runtime.stage_folder import StageFolder
from shared.training.runlog import RunLog, read_log
from tests.support.photos import process
from tests.support.stage_folder import folder, message


def log_of(stage: StageFolder, start: int) -> RunLog:
    accelerator = process()
    accelerator.trackers, accelerator.log = [], lambda values, step: None
    return RunLog(stage, Linear(batch_size=4, log_every_steps=2), start, 9, accelerator)


def steps(stage: StageFolder) -> list[int]:
    lines = (stage.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_metrics_read_as_if_the_run_had_never_stopped(tmp_path, capsys):
    stage = folder(tmp_path)
    log = log_of(stage, 0)
    assert [step for step in range(1, 10) if log.due(step)] == [2, 4, 6, 8, 9]
    for step in (2, 4, 6):
        log.write(step, loss=torch.tensor(1 / 3))
    log.close()
    with (stage.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # killed here
    log = log_of(stage, 5)  # the last checkpoint
    assert "dropped 1 unreadable line" in capsys.readouterr().err
    assert steps(stage) == [2, 4]
    log.write(6, loss=0.25)
    assert steps(stage) == [2, 4, 6]
    first, *_, last = map(json.loads, (stage.path / "metrics.jsonl").read_text().splitlines())
    assert first["loss"] == 0.333333
    assert last["images_per_second"] > 0
    assert 0 <= last["waiting_for_data"] <= 1


def test_a_line_has_the_loss_beside_chance_and_is_not_logged(tmp_path, capsys, monkeypatch):
    stage = folder(tmp_path)
    log = log_of(stage, 0)
    now = {"now": log._progress.clock()}
    monkeypatch.setattr(log._progress, "clock", lambda: now["now"])
    batches = log.waiting(iter(range(9)))
    for step in range(1, 5):
        next(batches)
        now["now"] += 20
        log.write(step, 2.3, loss=torch.tensor(1.25), top1=0.5)
    next(batches)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" images/s")[0] for line in lines] == [
        "finetune: 2 of 9 steps, loss 1.25 (chance 2.3), top1 0.5, 0.2",
        "finetune: 4 of 9 steps, loss 1.25 (chance 2.3), top1 0.5, 0.2",
    ]
    assert "chance" not in (stage.path / "metrics.jsonl").read_text()


def test_what_cannot_be_read_is_counted(tmp_path):
    assert read_log(tmp_path) == ([], 0)
    lines = ['{"step": 1, "loss": 2}', '{"loss": 2}', "[1]", '{"step": "x"}', '{"step": 15', ""]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join([*lines, "\n"]).encode() + b'{"a\xff')
    assert read_log(tmp_path) == ([{"step": 1, "loss": 2.0}], 7)


class Wandb:
    """What matters of wandb and of its tracker in accelerate: one step, which never goes back."""

    name = "wandb"

    def __init__(self):
        self.tracker, self.step, self.history, self.axes = self, -1, [], {}

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, values, step=None):
        step = self.step + 1 if step is None else step
        if step > self.step:  # else a warning, and the values are dropped
            self.step = step
            self.history.append(values)


def test_wandb_gets_every_line_of_every_stage(tmp_path):
    """Each stage counts its steps from 1."""
    wandb = Wandb()
    accelerator = process()
    accelerator.trackers, accelerator.log = [wandb], wandb.log
    training = Linear(batch_size=4, log_every_steps=2)
    for stage in ("pretrain", "finetune"):
        log = RunLog(folder(tmp_path / stage, stage=stage), training, 0, 9, accelerator)
        for step in (2, 4):
            log.write(step, loss=step / 8)
        log.close()
    lines = [
        (stage, line[f"{stage}/step"], line[f"{stage}/loss"])
        for stage, line in zip(["pretrain"] * 2 + ["finetune"] * 2, wandb.history, strict=True)
    ]
    assert lines == [
        ("pretrain", 2, 0.25),
        ("pretrain", 4, 0.5),
        ("finetune", 2, 0.25),
        ("finetune", 4, 0.5),
    ]
    assert wandb.axes == {"pretrain/*": "pretrain/step", "finetune/*": "finetune/step"}


def test_metrics_on_a_full_disk(tmp_path):
    stage = folder(tmp_path)
    log = log_of(stage, 0)
    (stage.path / "metrics.jsonl").unlink()
    (stage.path / "metrics.jsonl").symlink_to("/dev/full")
    assert "No space left on device; make room" in message(log.write, 2, loss=0.1)
