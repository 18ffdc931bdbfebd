"""Stage 1: its losses as options, batches in parts, what it warns of and where it stops."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from shared.config.command_line import load_config
from shared.config.schema import Config
from shared.config.sections import Data, Pretrain
from shared.runtime.errors import UserError
from shared.runtime.tensors import sha256
from stages import pretrain
from tests.support.photo_run import run
from tests.support.toy_run import TINY, call, run_pretrain


def test_pretraining_on_what_is_hardly_meant_says_so():
    class Images(list):
        def decode(self, index: int) -> torch.Tensor:
            return torch.zeros(3, self[index], self[index] + 2, dtype=torch.uint8)

    config = Config(data=Data(image_size=8), pretrain=Pretrain(batch_size=128))
    assert pretrain.warnings_for(config, Images([8] * 128)) == []
    few, large = pretrain.warnings_for(config, Images([30] * 100))
    assert "a batch of 128 has some of the 100 images more than once" in few
    assert "the first image has 32 x 30 pixels, and the network sees 8 x 8" in large


@pytest.mark.parametrize("task", ["contrastive", "exemplar", "multi-task"])
def test_one_image_cannot_be_told_from_others(task):
    config, image = Config(pretrain=Pretrain(task=task)), SimpleNamespace()
    with pytest.raises(UserError, match="tells images apart, and there is 1 image"):
        pretrain.require_pairs([image], config)
    pretrain.require_pairs([image, image], config)
    pretrain.require_pairs([image], Config(pretrain=Pretrain(task="rotation")))


def test_losses_of_the_stage(tmp_path):
    """Each is the one that is asked for: near the value of a network that has learned nothing."""
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    for name, negatives in (("nt_xent", 62), ("nt_logistic", 31), ("margin_triplet", 31)):
        options = [f"--run={name}", f"--pretrain.loss={name}"]  # the recipe's temperature is 1
        lines, _ = run_pretrain(tmp_path, accelerator, *options)
        assert lines[0]["negatives_per_anchor"] == negatives
        assert lines[0]["loss"] == pytest.approx(lines[0]["loss_of_chance"], rel=0.25)
    lines, _ = run_pretrain(
        tmp_path,
        accelerator,
        "--run=sh",
        "--pretrain.loss=margin_triplet",
        "--pretrain.semi_hard=true",
        "--pretrain.margin=0.4",
    )
    assert lines[0]["negatives_per_anchor"] == 1
    assert 0 < lines[0]["loss"] <= lines[0]["loss_of_chance"] == 0.8


def test_one_part_is_the_whole_batch_bit_for_bit(tmp_path):
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    plain = run_pretrain(tmp_path, accelerator, "--run=plain")[1]
    one = run_pretrain(tmp_path, accelerator, "--run=one", "--pretrain.micro_batch=32")[1]
    parts = ["--pretrain.micro_batch=8", "--run=four"]
    four = run_pretrain(tmp_path, accelerator, *parts)[1]
    parts = ["--pretrain.micro_batch=8", "--run=lean", "--checkpoint_activations=true"]
    lean = run_pretrain(tmp_path, accelerator, *parts)[1]
    assert all(torch.equal(plain[name], one[name]) for name in plain)
    assert all(torch.equal(four[name], lean[name]) for name in four)
    assert not torch.equal(plain["encoder.stem.0.weight"], four["encoder.stem.0.weight"])


def test_non_finite_loss_stops_before_the_update(tmp_path, capsys):
    arguments = ["--pretrain.learning_rate=1e8", "--pretrain.checkpoint_every_steps=1"]
    assert call(pretrain.main, tmp_path, *arguments) == 2
    message = capsys.readouterr().err
    assert "the loss is nan at step" in message
    assert "learning rate" in message
    assert ".safetensors" in message  # the last good checkpoint


def test_what_is_done_is_read_by_any_number_of_processes(tmp_path):
    """Only a batch that is still to be trained on needs an image for each."""
    arguments = [*TINY, f"--output={tmp_path}"]
    config, _ = load_config(arguments, "", "")
    many = SimpleNamespace(
        num_processes=33,
        process_index=0,
        is_main_process=True,
        is_local_main_process=True,
        mixed_precision="no",
        print=print,
    )
    with pytest.raises(UserError, match=r"pretrain.batch_size=32 leaves some of the 33 processes"):
        pretrain.run(config, many)
    assert not (tmp_path / "digits").exists()
    assert pretrain.main(arguments) == 0
    assert pretrain.run(config, many) == tmp_path / "digits/pretrain"


def test_a_look_at_the_neighbours_changes_no_bit(photos, finished, tmp_path):
    """The log has what it saw, at its last line and when its time has come."""
    options = [f"--data.train={photos}", f"--output={tmp_path}", "--pretrain.knn_every_steps=1"]
    assert run(pretrain.main, *options) == 0
    made = tmp_path / "r/pretrain"
    weights = "model.safetensors"
    assert sha256(made / weights) == sha256(finished / "pretrain" / weights)
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["knn_top1"] <= 1 for line in lines)
    cfg = Pretrain(log_every_steps=50, knn_every_steps=120)
    due = [step for step in range(50, 401, 50) if pretrain.probe_is_due(step, cfg, 400)]
    assert due == [150, 250, 400]
