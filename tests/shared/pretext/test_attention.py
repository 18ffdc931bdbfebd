"""Attention pooling: the places' order makes no difference, refusals, and that it learns."""

import pytest
import torch
from safetensors.torch import load_file

from shared.networks.heads import ProjectionHead
from shared.pretext.attention import AttentionHead
from stages import pretrain
from tests.support.pretext import learn, options_of


def test_shuffled_places_give_the_same_vector():
    head = AttentionHead(8, 2, ProjectionHead(8, 1, 5)).eval()
    places = torch.randn(3, 8, 4, 4)
    shuffled = places.flatten(2)[:, :, torch.randperm(16)].unflatten(2, (4, 4))
    assert torch.allclose(head(places), head(shuffled), atol=1e-6)
    other = places.clone()
    other[:, :, 0, 0] += 1
    assert not torch.allclose(head(places), head(other), atol=1e-4)


def test_the_artifact_is_the_encoder_alone(tmp_path):
    arguments = [*options_of("contrastive-attention"), f"--output={tmp_path}"]
    assert pretrain.main([*arguments, "--pretrain.steps=1"]) == 0
    names = load_file(tmp_path / "digits/pretrain/model.safetensors")
    assert {name.partition(".")[0] for name in names} == {"encoder"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attention.heads=7"], "attention.heads must be a divisor of the 64 channels of simclr"),
        (["--attention.heads=0"], "attention.heads must be 1 to 256, got 0"),
        (["--pretrain.memory=16"], "pretrain.memory must be 0 with pretrain.contextualisation=att"),
        (["--pretrain.loss=infomax"], "is an option of pretrain.loss=nt_xent or"),
        (["--pretrain.contextualisation=none", "--attention.heads=4"], "=attention, which is none"),
    ],
)
def test_what_does_not_fit_is_refused(options, message, tmp_path, capsys):
    arguments = [*options_of("contrastive-attention"), f"--output={tmp_path}", *options]
    try:
        code = pretrain.main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_it_learns(tmp_path):
    line = learn(tmp_path, "contrastive-attention", "--pretrain.steps=50")
    assert line["contrastive_top1"] > 0.12 > 5 / 47, line  # of 47 others
    assert line["loss"] < 0.95 * line["loss_of_chance"]
