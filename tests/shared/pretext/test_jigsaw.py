"""Jigsaw: the set of orders, its classes, and that it learns."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from shared.config.pretext import Jigsaw as Options
from shared.config.schema import Config
from shared.config.sections import Data, Pretrain
from shared.data.batches import Batch
from shared.pretext.jigsaw import Jigsaw, least_distance, permutation_set
from tests.support.pretext import gratings, learn


def task(**options) -> Jigsaw:
    pretrain = Pretrain(task="jigsaw")
    config = Config(data=Data(image_size=36), pretrain=pretrain, jigsaw=Options(**options))
    return Jigsaw(config, Accelerator(cpu=True))


def batch(made: Jigsaw, b: int = 6) -> Batch:
    images = torch.rand(b, 3, 36, 36, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(b), None, made.draw(np.random.default_rng(0), b))


def test_orders_are_distinct_permutations_far_from_each_other():
    orders = permutation_set(9, 20)
    assert (np.sort(orders, 1) == np.arange(9)).all()
    assert len(np.unique(orders, axis=0)) == 20
    assert least_distance(orders) == 7  # of 9
    rng = np.random.default_rng(0)
    assert least_distance(rng.random((20, 9)).argsort(1)) < 7  # those by lot


def test_the_set_is_greedy_by_its_definition():
    """Each next one has the largest smallest distance, then the largest sum."""
    orders = permutation_set(4, 24)
    assert len(np.unique(orders, axis=0)) == 24  # all there are
    for i in range(1, 24):
        distances = (orders[i:, None] != orders[None, :i]).sum(2)  # of all that are left
        keys = [(int(d.min()), int(d.sum())) for d in distances]
        assert keys[0] == max(keys)
    assert np.array_equal(permutation_set(4, 5), orders[:5])  # a longer set begins as a shorter one
    assert least_distance(orders[:1]) == 4


def test_the_inverse_order_restores_the_tiles():
    made = task(grayscale=0.0, permutations=7)
    shown = batch(made)
    places, classes, gray = shown.drawn
    (shuffled,) = made.inputs(shown)
    made.orders = torch.arange(9).expand(7, -1)  # all classes keep the tiles in place
    order = permutation_set(9, 7).astype(np.int64)[classes]  # (b, 9)
    images, rows = torch.arange(6)[:, None], torch.from_numpy(order)
    inverse = rows.argsort(1)
    restored = shuffled.unflatten(0, (9, 6)).transpose(0, 1)[images, inverse]
    unmoved = made.inputs(shown._replace(drawn=(places[images, inverse], classes, gray)))[0]
    assert torch.equal(restored, unmoved.unflatten(0, (9, 6)).transpose(0, 1))


def test_gray_images_have_no_colours_and_others_keep_them():
    made = task(grayscale=0.5, grid=2, permutations=5)
    shown = batch(made, 20)
    gray = shown.drawn[2]
    assert 3 < gray.sum() < 17
    (tiles,) = made.inputs(shown)
    spread = tiles.unflatten(0, (4, 20)).std(2).amax((0, 2, 3))  # of the channels: (20,)
    assert torch.equal(spread < 1e-4, gray)


def test_a_network_that_knows_nothing_is_at_chance():
    made = task(permutations=24, grid=2)
    answer = made.loss((torch.zeros(6, 24),), made.targets(batch(made)))
    assert answer.loss.item() == pytest.approx(math.log(24)) == made.chance
    assert answer.metrics()["top1_of_chance"] == 1 / 24
    assert "24 orders that differ in" in made.facts


def test_it_learns(tmp_path):
    line = learn(tmp_path, "jigsaw", "--augment.crop_area=[1,1]", pictures=gratings)
    assert line["jigsaw_top1"] > 0.5  # chance 1 / 6
