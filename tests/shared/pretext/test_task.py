"""What holds of every pretext task: it resumes, passes in parts, and is shared by processes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load_file

from shared.config.command_line import load_config
from shared.config.pretext import TASK_SECTIONS, TASKS
from shared.config.schema import Config
from shared.data.images import UNLABELED
from shared.pretext.build import TASK_CLASSES
from shared.pretext.contrastive import Contrastive
from shared.pretext.instances import Instances
from shared.runtime.stop import StopRequest
from shared.training.stage import Stage
from stages import pretrain
from tests.support.gloo import fork, join
from tests.support.pretext import VARIANTS, options_of
from tests.support.stop import STOPPED, stopped_at

# Those of the default run have all that tasks have: no state, an averaged network or a bank, drawn
# images, tiles, a sample of the images, a second optimizer, several heads, companions.
QUICK = (
    "contrastive",
    "rotation",
    "instances-nce",
    "jigsaw",
    "colour",
    "inpainting-adversarial",
    "multi-task",
    "transitive",
)
OF_PROCESSES = ["instances-nce", "multi-task"]  # a bank, and several heads; others are slow
MOST_SLOW = [v if v in QUICK else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS]


def run(output, variant, *options, accelerator=None):
    """Log and weights of stage 1; by default in the precision and layout of this machine."""
    arguments = [*options_of(variant), f"--output={output}", "--pretrain.steps=4", *options]
    if accelerator is None:
        assert pretrain.main(arguments) == 0
        folder = output / "digits/pretrain"
    else:
        folder = pretrain.run(load_config(arguments, "", "")[0], accelerator)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return lines, load_file(folder / "model.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_task_has_a_record_a_class_and_variants():
    assert set(TASK_CLASSES) == set(TASKS)
    assert {options[0].rpartition("=")[2] for options in VARIANTS.values()} == set(TASKS)
    for name in TASKS:
        section = TASK_SECTIONS.get(TASKS[name].section)
        assert section is None or isinstance(getattr(Config(), TASKS[name].section), section)


@pytest.mark.parametrize("variant", MOST_SLOW)
def test_an_interrupted_task_goes_on_to_the_same_bits(variant, tmp_path, monkeypatch):
    """In the default precision; bank, averaged network and second optimizer are part of it."""
    monkeypatch.setattr(StopRequest, "received", None)
    default = ["--precision=auto"]
    lines, whole = run(tmp_path / "whole", variant, *default)
    assert all(line["loss"] > 0 and "loss_of_chance" in line for line in lines)
    arguments = [*options_of(variant), f"--output={tmp_path}", "--pretrain.steps=4", *default]
    with stopped_at(2, monkeypatch):
        assert pretrain.main(arguments) == STOPPED
    assert not (tmp_path / "digits/pretrain/meta.json").exists()
    again, resumed = run(tmp_path, variant, *default)
    assert same(whole, resumed)
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]


@pytest.mark.parametrize("variant", MOST_SLOW)
def test_one_part_is_the_whole_batch_and_four_are_allowed(variant, tmp_path):
    _, plain = run(tmp_path / "plain", variant)
    parts = "--pretrain.micro_batch"
    _, one = run(tmp_path / "one", variant, f"{parts}=8")
    assert same(plain, one)
    lines, four = run(tmp_path / "four", variant, f"{parts}=2")
    assert all(tensor.isfinite().all() for tensor in four.values())
    assert len(lines) == 4


def work(rank, processes, folder, variants):
    join(rank, processes, folder)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    for variant in variants:
        torch.save(
            run(folder, variant, f"--run={variant}", accelerator=accelerator),
            f"{folder}/{variant}-rank{rank}.pt",
        )
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "variants",
    [
        OF_PROCESSES,
        pytest.param(sorted({*VARIANTS} - {*OF_PROCESSES}), marks=pytest.mark.slow),
    ],
)
def test_processes_together_equal_one(variants, tmp_path, monkeypatch):
    """Three processes have 2, 3 and 3 of 8 images; some have none of the few labeled ones."""
    start = Instances.start

    def start_with_few_labels(self, model, images):
        labels = np.where(np.arange(len(images)) % 5 == 0, images.labels, UNLABELED)
        start(self, model, replace(images, labels=labels))

    monkeypatch.setattr(Instances, "start", start_with_few_labels)
    one, made = Accelerator(cpu=True, mixed_precision="no"), {}
    for variant in variants:  # first in this process, whose images the forks then have
        made[variant] = run(tmp_path / "one", variant, f"--run={variant}", accelerator=one)
        assert one._models == one._optimizers == []  # a stage that is done leaves the memory free
    fork(work, (3, str(tmp_path), variants), 3)
    for variant, (lines, weights) in made.items():
        for rank in range(3):
            others, theirs = torch.load(tmp_path / f"{variant}-rank{rank}.pt")
            for a, b in zip(lines, others, strict=True):
                assert a.keys() == b.keys(), variant
                for key in a.keys() - {"images_per_second", "seconds", "wait", "learning_rate"}:
                    if isinstance(a[key], float) and "second" not in key and "wait" not in key:
                        assert b[key] == pytest.approx(a[key], rel=1e-2, abs=2e-2), (variant, key)
            for name, tensor in weights.items():
                assert torch.allclose(theirs[name], tensor, rtol=2e-3, atol=2e-3), (variant, name)


def test_the_log_is_of_what_the_step_saw(tmp_path, monkeypatch):
    """So it stands before the update of a bank, of a memory, or of an adversary."""
    calls = []
    log, update = Stage.log, Contrastive.update
    monkeypatch.setattr(Stage, "log", lambda *a, **kw: calls.append("log") or log(*a, **kw))
    monkeypatch.setattr(Contrastive, "update", lambda *a: calls.append("update") or update(*a))
    run(tmp_path, "contrastive", "--pretrain.steps=2", "--pretrain.memory=16")
    assert calls == ["log", "update"] * 2


@pytest.mark.parametrize(
    ("first", "then", "line"),
    [
        ("rotation", "contrastive", "rotation; the head starts anew"),
        ("contrastive", "rotation", "contrastive; its projection head is left"),
        ("contrastive", "instances", ""),
    ],
)
def test_a_task_starts_from_what_another_has_left(first, then, line, tmp_path, capsys):
    run(tmp_path / "first", first, "--pretrain.steps=1")
    init = f"--pretrain.init={tmp_path / 'first/digits'}"
    rate = "--pretrain.learning_rate=1e-30"
    _, weights = run(tmp_path / "then", then, init, rate, "--pretrain.steps=1")
    theirs = load_file(tmp_path / "first/digits/pretrain/model.safetensors")
    both = "head." if line else "nothing"
    for name, tensor in weights.items():
        if not name.startswith(both) and "running" not in name and "batches" not in name:
            assert torch.allclose(tensor, theirs[name], atol=1e-20), name
    assert any(name.startswith("head.") for name in weights) == (then != "rotation")
    assert f"/first/digits/pretrain, {line}" in capsys.readouterr().out if line else True


def test_another_task_does_not_go_on_from_a_checkpoint(tmp_path, capsys):
    run(tmp_path, "rotation")
    arguments = [*options_of("instances"), f"--output={tmp_path}", "--pretrain.steps=4"]
    assert pretrain.main(arguments) == 2
    error = capsys.readouterr().err
    assert "pretrain.task=rotation, now it is instances" in error
    assert error.count("\n") == 1
