"""Rotation feature decoupling: its halves, how ambiguous images count, and that it learns."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from shared.config.command_line import load_config
from shared.config.pretext import Decoupling as Options
from shared.config.schema import Config
from shared.config.sections import Model, Pretrain
from shared.pretext.decoupling import Decoupling, Halves, Uprightness, how_upright
from shared.training.stage import options_of
from tests.support.pretext import learn
from tests.support.sources import images

N, B, F = 12, 5, 8


def task(**options) -> Decoupling:
    torch.manual_seed(0)
    pretrain = Pretrain(task="decoupling", batch_size=B, steps=10, warmup_epochs=0)
    config = Config(model=Model(head_out=3), pretrain=pretrain, decoupling=Options(**options))
    made = Decoupling(config, Accelerator(cpu=True))
    made.halves = Halves(F, 3)
    made.start(torch.nn.Linear(1, 1), images(np.zeros(N)))
    return made


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    """Of one image's four copies: (4, 1, 4)."""
    return torch.tensor(probabilities).log()[:, None]


def test_a_copy_that_cannot_be_told_from_an_upright_image_is_upright():
    alike = logits_of([[0.25] * 4] * 4)
    assert torch.allclose(how_upright(alike), torch.tensor([[0.0, 1, 1, 1]]))
    sure = logits_of([[0.97, 0.01, 0.01, 0.01], *(3 * [[1e-4, 0.5, 0.2999, 0.2]])])
    assert how_upright(sure).max() < 1e-3
    half = logits_of([[0.5, 0, 0.5, 0]] * 4)  # as a 0, which stands on its head too
    assert torch.allclose(how_upright(half), torch.tensor([[0.0, 1, 1, 1]]))
    r = torch.tensor([0.01, 0.1, 0.2])
    some = logits_of([[1, 0, 0, 0], *([x, (1 - x) / 3, (1 - x) / 3, (1 - x) / 3] for x in r)])
    assert torch.allclose(how_upright(some)[0, 1:], 3 * r / (1 - r))


def test_weights_begin_late_lie_between_0_and_1_and_upright_images_count_fully():
    made, ids = task(from_share=0.3, momentum=0.0), torch.tensor([3, 7])
    p = torch.tensor([[0.0, 1, 0.5, 0.1], [0.0, 0, 0, 0]])
    for _ in range(2):
        made.upright.update(ids, p)
    assert made.first == 3
    assert torch.equal(made.weights(ids), torch.ones(2, 4))
    made.upright.update(ids, p)
    expected = torch.tensor([[1, 0, 0.75, 0.99], [1.0, 1, 1, 1]])
    assert torch.allclose(made.weights(ids), expected)
    assert torch.equal(made.weights(torch.tensor([0])), torch.ones(1, 4))  # not seen yet


def test_the_mean_is_that_of_the_last_times():
    upright = Uprightness(N, 0.5, torch.device("cpu"))
    first, second = torch.rand(2, 4), torch.rand(2, 4)
    upright.update(torch.tensor([1, 1]), first)  # an image twice: the last one counts
    upright.update(torch.tensor([1, 4]), second)
    assert torch.allclose(upright.p[1], 0.25 * first[1] + 0.5 * second[0])
    assert upright.updates == 2
    assert set(upright.state_dict()) == {"p", "updates"}


def test_ambiguous_copies_move_nothing():
    """With weight 0 the gradient of a copy's logits is 0, and the others keep theirs."""
    made = task(from_share=0.0, momentum=0.0)
    ids = torch.arange(B)
    p = torch.zeros(B, 4)
    p[2, 1:] = 1
    made.upright.update(ids, p)
    made.upright.updates.fill_(10)
    outputs = torch.randn(4 * B, sum(made.halves.widths), requires_grad=True)
    made.loss((outputs,), (ids,)).loss.backward()
    gradient = outputs.grad.unflatten(0, (4, B))[..., :4].abs().sum(2)  # (4, B)
    assert (gradient[1:, 2] == 0).all()
    assert (gradient[0] > 0).all()
    assert (gradient[:, [0, 1, 3, 4]] > 0).all()


def test_each_half_learns_its_own():
    torch.manual_seed(0)
    halves, features = Halves(F, 3), torch.randn(4 * B, F, requires_grad=True)
    logits, by_second, second, projections = halves(features).split(halves.widths, 1)
    assert torch.equal(second, features[:, F // 2 :])
    (of_rotation,) = torch.autograd.grad(logits.sum(), features, retain_graph=True)
    assert (of_rotation[:, F // 2 :] == 0).all()
    (of_probe,) = torch.autograd.grad(by_second.sum(), features, retain_graph=True)
    assert (of_probe == 0).all()
    (of_instances,) = torch.autograd.grad(projections.sum(), features, retain_graph=True)
    assert (of_instances[:, : F // 2] == 0).all()
    mean = second.unflatten(0, (4, B)).mean(0)
    assert torch.allclose(
        halves.instance(mean), projections.unflatten(0, (4, B)).mean(0), atol=1e-6
    )


def test_features_that_do_not_turn_are_drawn_nowhere():
    """The second half's loss is the mean square around the mean over rotations."""
    made = task()
    h = F // 2
    outputs = torch.zeros(4 * B, sum(made.halves.widths))
    made.instances.bank.vectors.fill_(0)
    assert made.loss((outputs,), (torch.arange(B),)).loss.item() == pytest.approx(made.chance)
    outputs[:B, 8 : 8 + h] = 4.0  # the upright copy differs
    spread = made.loss((outputs,), (torch.arange(B),)).loss.item() - made.chance
    assert spread == pytest.approx((3**2 + 3 * 1**2) / 4, rel=1e-5)


def test_options_of_instances_count_and_are_allowed(capsys):
    line = ["--pretrain.task=decoupling", "--instances.momentum=0.3"]
    config, _ = load_config(line, "", "")
    settings = options_of(config, "pretrain")
    assert (settings["instances.momentum"], settings["decoupling.gamma"]) == (0.3, 2.0)
    assert config.head_layers == 0
    several = ["--pretrain.task=multi-task", "--multi_task.tasks=rotation,decoupling:2"]
    assert load_config([*several, *line[1:]], "", "")[0].instances.momentum == 0.3
    with pytest.raises(SystemExit, match="2"):
        load_config(["--pretrain.task=decoupling", "--decoupling.from_share=1.5"], "", "")
    assert "decoupling.from_share must be in [0, 1], got 1.5" in capsys.readouterr().err


def test_it_learns(tmp_path):
    """The first half tells the turns, and by the second they stay at chance."""
    line = learn(tmp_path, "decoupling", "--decoupling.from_share=0.5", "--pretrain.steps=60")
    assert line["decoupling_top1"] > 0.7
    assert line["invariant_half_top1"] < 0.45
    assert 0.5 < line["decoupling_weight"] <= 1
