"""Prototypes: codes are balanced, each view predicts the other one's, and it learns."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from shared.config.command_line import load_config
from shared.config.pretext import Prototypes as Options
from shared.config.schema import Config, dump
from shared.config.sections import Model, Pretrain
from shared.networks.heads import ContrastiveModel, ProjectionHead
from shared.pretext.build import make_task
from shared.pretext.contrastive import Contrastive
from shared.pretext.network import PretextModel, heads_of, kept_part
from shared.pretext.prototypes import PrototypeHead, Prototypes
from shared.training.losses import swapped_codes
from shared.training.stage import options_of
from stages import pretrain
from tests.support.pretext import learn
from tests.support.pretext import options_of as command_line

B, K, D = 24, 6, 5


def task(batch_size: int = B, **options) -> Prototypes:
    config = Config(
        model=Model(head_out=D),
        pretrain=Pretrain(loss="prototypes", batch_size=batch_size),
        prototypes=Options(**{"number": K, **options}),
    )
    made = make_task(config, Accelerator(cpu=True))
    assert isinstance(made, Prototypes)
    return made


def cosines(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, K, generator=generator) * 2 - 1


@pytest.mark.parametrize("epsilon", [0.02, 0.05, 1.0])
def test_codes_are_balanced(epsilon):
    """Although one prototype is the nearest of nearly all images."""
    scores = 0.5 * cosines(B)
    scores[:, 2] += 0.6
    assert (scores.argmax(1) == 2).float().mean() > 0.6
    codes = task(epsilon=epsilon, sinkhorn_steps=300).codes(scores)
    assert torch.allclose(codes.sum(1), torch.ones(B), atol=1e-5)
    assert torch.allclose(codes.sum(0), torch.full((K,), B / K), rtol=0.02)
    few = task(epsilon=epsilon).codes(scores)
    assert torch.allclose(few.sum(1), torch.ones(B), atol=1e-5)
    assert few.sum(0).max() < 0.7 * (scores / epsilon).softmax(1).sum(0).max()


def test_equal_scores_have_the_loss_of_chance():
    for number in (2, K, 50):
        made = task(number=number)
        loss = made.loss((torch.full((2 * B, number), 0.3),), ()).loss
        assert loss.item() == pytest.approx(made.chance) == pytest.approx(math.log(number))
        assert made.facts == f"{number} prototypes"
    assert task(number=3000).facts == "3,000 prototypes"


def test_each_view_predicts_the_code_of_the_other():
    made, scores = task(), cosines(2 * B)
    first, second = scores.chunk(2)
    total = 0.0
    for own, other in ((first, second), (second, first)):
        codes = made.codes(other)  # balanced within a view, as in main_swav.py
        for i in range(B):
            total -= (codes[i] * (own[i] / 0.1).log_softmax(0)).sum().item()
    answer = made.loss((scores,), ())
    assert answer.loss.item() == pytest.approx(total / (2 * B), rel=1e-5)
    metrics = answer.metrics()
    assert metrics["top1_of_chance"] == 1 / K
    assert 1 <= metrics["prototypes_used"] <= K
    assert made.loss((torch.eye(K).repeat(8, 1),), ()).metrics()["prototypes_top1"] == 1


def test_one_prototype_for_all_is_seen_in_the_log():
    scores = torch.zeros(2 * B, K)
    scores[:, 1] = 1
    assert task().loss((scores,), ()).metrics()["prototypes_used"] < 1.1
    even = task().loss((0 * scores,), ()).metrics()
    assert float(even["prototypes_used"]) == pytest.approx(K, rel=1e-5)


def test_gradient_reaches_encoder_and_prototypes_and_not_the_codes():
    torch.manual_seed(0)
    model = ContrastiveModel(nn.Sequential(nn.Flatten(), nn.Linear(12, 8)), ProjectionHead(8, 2, D))
    made = task()
    net = made.network(model)
    (scores,) = net(torch.randn(2 * B, 3, 2, 2))
    assert scores.shape == (2 * B, K)
    scores.retain_grad()
    made.loss((scores,), ()).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())

    fixed = scores.detach().requires_grad_()  # the gradient of the predictions alone
    codes = torch.cat([made.codes(view) for view in fixed.detach().chunk(2)]).requires_grad_()
    swapped_codes(fixed, codes, 0.1).backward()
    assert codes.grad is None
    assert torch.allclose(scores.grad, fixed.grad, atol=1e-7)


def test_prototypes_are_of_unit_length_and_in_float32():
    torch.manual_seed(0)
    head, z = PrototypeHead(D, K), 7 * torch.randn(B, D)
    scores = head(z)
    assert torch.allclose(scores, F.normalize(z) @ F.normalize(head.weight).T)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        head.weight.mul_(30)
        assert torch.allclose(head(z), scores, atol=1e-6)
        assert head(z).dtype == torch.float32


def test_the_artifact_is_without_prototypes(tmp_path):
    arguments = [*command_line("contrastive-prototypes"), f"--output={tmp_path}"]
    assert pretrain.main([*arguments, "--pretrain.steps=2"]) == 0
    folder = tmp_path / "digits/pretrain"
    assert not [name for name in load_file(folder / "model.safetensors") if "prototype" in name]
    names = {name.partition(".")[0] for name in load_file(folder / "model.safetensors")}
    assert names == {"encoder", "head"}
    settings = json.loads((folder / "meta.json").read_text())["settings"]
    assert (settings["pretrain.loss"], settings["prototypes.number"]) == ("prototypes", 12)
    model = ContrastiveModel(nn.Identity(), ProjectionHead(4, 1, D))
    network = task().network(model)
    assert isinstance(network, PretextModel)
    assert isinstance(heads_of(network)[0], PrototypeHead)
    assert kept_part(network).head is model.head


def test_options_count_with_the_loss_alone():
    plain, _ = load_config([], "", "")
    chosen, _ = load_config(["--pretrain.loss=prototypes"], "", "")
    other, _ = load_config(["--pretrain.task=rotation"], "", "")
    part = dataclasses.replace(chosen, pretrain=Pretrain(task="multi-task", loss="prototypes"))
    for config, counts in ((plain, False), (chosen, True), (other, False), (part, True)):
        assert ("prototypes.epsilon" in options_of(config, "pretrain")) == counts
        assert ("\nprototypes:\n" in dump(config)) == counts
    made = make_task(plain, Accelerator(cpu=True))
    assert type(made) is Contrastive


LOSS = "--pretrain.loss=prototypes"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([LOSS, "--prototypes.number=1"], "prototypes.number must be 2 to 32,768, got 1"),
        ([LOSS, "--prototypes.epsilon=0"], "prototypes.epsilon must be 0.001 or more, got 0.0"),
        ([LOSS, "--prototypes.epsilon=nan"], "prototypes.epsilon"),
        ([LOSS, "--prototypes.sinkhorn_steps=0"], "prototypes.sinkhorn_steps must be 1 to 1000"),
        (
            [LOSS, "--pretrain.semi_hard=true"],
            "is an option of pretrain.loss=nt_logistic or margin_triplet or pair",
        ),
        (
            [LOSS, "--pretrain.memory=64"],
            "is an option of pretrain.loss=nt_xent, which is prototypes",
        ),
        (
            ["--prototypes.number=50"],
            "prototypes.number=50 is an option of pretrain.loss=prototypes, which is nt_xent;"
            " leave it out, or give --pretrain.loss prototypes",
        ),
        (
            [LOSS, "--pretrain.task=rotation", "--prototypes.number=50"],
            "is an option of pretrain.task=contrastive, which is rotation",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        load_config(["--pretrain.batch_size=64", *options], "", "")
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_it_learns(tmp_path):
    line = learn(tmp_path, "contrastive-prototypes", "--pretrain.temperature=0.2")
    assert line["loss"] < 0.9 * line["loss_of_chance"]
    assert line["prototypes_top1"] > 0.25 > 2.9 * line["top1_of_chance"]
    assert line["prototypes_used"] > 6
