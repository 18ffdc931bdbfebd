"""Permutation: its matrix, the nearest permutation, and that it learns."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy.stats import kendalltau

from shared.config.pretext import Permutation as Options
from shared.config.schema import Config
from shared.config.sections import Data, Pretrain
from shared.data.batches import Batch
from shared.pretext.permutation import Permutation, kendall_tau, nearest_permutations
from shared.pretext.sinkhorn import sinkhorn
from tests.support.pretext import gratings, learn


def task(**options) -> Permutation:
    pretrain = Pretrain(task="permutation")
    config = Config(data=Data(image_size=36), pretrain=pretrain, permutation=Options(**options))
    return Permutation(config, Accelerator(cpu=True))


def orders(b: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((b, n)).argsort(1)


def test_the_hungarian_method_finds_the_permutation_under_noise():
    truth = orders(30, 9)
    scores = 3 * torch.nn.functional.one_hot(torch.from_numpy(truth), 9)
    noise = torch.rand(30, 9, 9, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(nearest_permutations(sinkhorn(scores + noise, 5)), truth)
    doubtful = torch.tensor([[[5.0, 4.0], [5.0, 1.0]]])  # both rows prefer the first column
    assert nearest_permutations(doubtful).tolist() == [[1, 0]]


def test_kendall_tau_is_that_of_scipy():
    a, b = orders(10, 9), orders(10, 9, seed=1)
    expected = [kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert kendall_tau(a, b) == pytest.approx(expected)
    assert kendall_tau(a, a).tolist() == [1.0] * 10
    assert kendall_tau(a, 8 - a).tolist() == [-1.0] * 10


def test_the_loss_is_the_mean_of_the_rows_and_falls_where_the_answer_is_right():
    made = task(sinkhorn_steps=3)
    truth = torch.from_numpy(orders(8, 9))
    equal = made.loss((torch.zeros(8, 81),), (truth,))
    assert equal.loss.item() == pytest.approx(math.log(9)) == made.chance
    right = 20.0 * torch.nn.functional.one_hot(truth, 9).flatten(1)
    answer = made.loss((right,), (truth,))
    assert answer.loss < 1e-3
    metrics = answer.metrics()
    for name in ("permutation_top1", "tiles_top1", "kendall_tau"):
        assert metrics[name] == 1
    assert metrics["top1_of_chance"] == 1 / math.factorial(9)
    noise = torch.randn(8, 81, generator=torch.Generator().manual_seed(0))
    by_hand = sinkhorn(noise.view(8, 9, 9), 3).exp()
    rows = [by_hand[i, j, truth[i, j]] for i in range(8) for j in range(9)]
    assert made.loss((noise,), (truth,)).loss.item() == pytest.approx(
        -torch.stack(rows).log().mean().item(), rel=1e-5
    )


def test_other_order_of_the_tiles_is_that_order_of_rows():
    """Input, target and rows of the matrix move together, so the loss stays."""
    made, b = task(), 4
    images = torch.rand(b, 3, 36, 36, generator=torch.Generator().manual_seed(0))
    places, cells = made.draw(np.random.default_rng(0), b)
    assert torch.equal(cells.sort(1).values, torch.arange(9).expand(b, -1))
    moved = torch.from_numpy(orders(1, 9, seed=2)[0])
    shown = Batch(images, torch.arange(b), None, (places, cells))
    other = shown._replace(drawn=(places[:, moved], cells[:, moved]))
    (tiles,), (moved_tiles,) = made.inputs(shown), made.inputs(other)
    assert torch.equal(moved_tiles.unflatten(0, (9, b)), tiles.unflatten(0, (9, b))[moved])
    scores = torch.randn(b, 9, 9, generator=torch.Generator().manual_seed(1))
    losses = [
        made.loss((x.flatten(1),), made.targets(y)).loss
        for x, y in ((scores, shown), (scores[:, moved], other))
    ]
    assert torch.allclose(*losses)


@pytest.mark.slow
def test_it_learns(tmp_path):
    line = learn(tmp_path, "permutation", "--augment.crop_area=[1,1]", pictures=gratings)
    assert line["permutation_top1"] > 0.5  # chance 1 / 24
    assert line["kendall_tau"] > 0.5
