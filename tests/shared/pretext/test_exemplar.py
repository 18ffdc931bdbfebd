"""Exemplars: the triplets of several views, their number, and that the task learns."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from shared.config.command_line import load_config
from shared.config.pretext import Exemplar as Options
from shared.config.schema import Config
from shared.config.sections import Pretrain
from shared.pretext.exemplar import Exemplar
from shared.training.losses import nearest_is_own, semi_hard_triplet
from tests.support.pretext import learn

N, V, D = 5, 3, 4


def embeddings(seed: int = 0) -> torch.Tensor:
    return torch.randn(N, V, D, generator=torch.Generator().manual_seed(seed)).double()


def by_definition(z: torch.Tensor, margin: float) -> torch.Tensor:
    """Every triplet by itself, with the rule for the negative written out."""
    z = F.normalize(z, dim=2)
    losses = []
    for i, a, p in itertools.product(range(N), range(V), range(V)):
        if a != p:
            positive = (z[i, a] - z[i, p]).square().sum()
            others = (z[i, a] - z[torch.arange(N) != i].flatten(0, 1)).square().sum(1)
            farther = others[others > positive]
            negative = farther.min() if len(farther) else others.max()
            losses.append((positive - negative + margin).clamp(min=0))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("margin", [0.0, 0.5, 5.0])
def test_the_loss_and_its_gradient_are_those_of_the_definition(margin):
    ours, theirs = embeddings().requires_grad_(), embeddings().requires_grad_()
    loss, expected = semi_hard_triplet(ours, ours, margin), by_definition(theirs, margin)
    loss.backward()
    expected.backward()
    assert torch.allclose(loss, expected)
    assert torch.allclose(ours.grad, theirs.grad)


def test_where_no_other_image_is_farther_the_farthest_is_the_negative():
    """The views of an image point away from one another, and all others lie between."""
    z = torch.eye(2).repeat(N, 1, 1).double()
    z[:, 1] *= -1
    z[1:] = torch.tensor([1.0, 0.2]).double()
    assert semi_hard_triplet(z[:, :2], z[:, :2], 0.3) > 0
    z = torch.cat([z, z[:, :1]], 1)
    assert torch.allclose(semi_hard_triplet(z, z, 0.3), by_definition(z, 0.3))


def test_rows_of_a_process_have_their_part_of_the_whole():
    z = embeddings(1)
    parts = [(z[:2], 0), (z[2:], 2)]
    loss = sum(len(part) * semi_hard_triplet(part, z, 0.5, first) for part, first in parts)
    assert torch.allclose(loss / N, semi_hard_triplet(z, z, 0.5))
    found = sum(len(part) * nearest_is_own(part, z, first) for part, first in parts)
    assert torch.allclose(found / N, nearest_is_own(z, z))


def test_a_network_that_knows_nothing_is_at_chance_and_perfect_views_are_found():
    config = Config(pretrain=Pretrain(task="exemplar", batch_size=N), exemplar=Options(views=V))
    task = Exemplar(config, Accelerator(cpu=True))
    assert (task.views, task.facts, task.chance) == (V, "3 views of each image", 0.5)
    answer = task.loss((torch.ones(V * N, D),), ())
    assert answer.loss.item() == pytest.approx(task.chance)
    z = torch.eye(N).repeat(V, 1)  # all first views, then all second ones
    answer = task.loss((z,), ())
    assert answer.loss == 0
    assert answer.metrics() == {"exemplar_top1": 1.0, "top1_of_chance": (V - 1) / (N * V - 1)}


@pytest.mark.parametrize("shape", [(N, 1, D), (1, V, D)])
def test_one_view_or_one_image_has_no_triplet(shape):
    with pytest.raises(ValueError, match="two views and two images"):
        semi_hard_triplet(torch.ones(shape), torch.ones(shape), 0.5)


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ("--exemplar.views=1", "exemplar.views must be 2 to 256, got 1"),
        ("--exemplar.margin=-1", "exemplar.margin must be 0 or more, got -1.0"),
        ("--pretrain.batch_size=1", "pretrain.batch_size must be 2 or more"),
        ("--pretrain.augmentation=none", "pretrain.augmentation must be full or crop"),
    ],
)
def test_options_that_leave_nothing_to_learn_are_refused(option, allowed, capsys):
    with pytest.raises(SystemExit, match="2"):
        load_config(["--pretrain.task=exemplar", option], "", "")
    assert allowed in capsys.readouterr().err


@pytest.mark.slow
def test_it_learns(tmp_path):
    line = learn(tmp_path, "exemplar", "--exemplar.views=4")
    assert line["exemplar_top1"] > 0.5 > 10 * line["top1_of_chance"]
