"""Rotation: exact turns, its chance, and that it learns."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from shared.config.schema import Config
from shared.config.sections import Pretrain
from shared.data.batches import Batch
from shared.pretext.rotation import Rotation, all_rotations
from tests.support.pretext import learn


def batch(b: int = 5) -> Batch:
    return Batch(torch.rand(b, 3, 6, 6), torch.arange(b), None)


def task() -> Rotation:
    return Rotation(Config(pretrain=Pretrain(task="rotation")), Accelerator(cpu=True))


def test_four_turns_are_the_image_again_bit_for_bit():
    images = batch().images
    turned = all_rotations(images).unflatten(0, (4, -1))  # (4, b, 3, S, S)
    assert torch.equal(turned[0], images)
    for turns in range(4):
        again = all_rotations(turned[turns]).unflatten(0, (4, -1))
        assert torch.equal(again[(4 - turns) % 4], images)


def test_classes_are_even_and_belong_to_their_turn():
    (inputs,), (turns,) = task().inputs(batch()), task().targets(batch())
    assert turns.bincount().tolist() == [5, 5, 5, 5]
    images = torch.arange(36.0).view(1, 1, 6, 6).expand(2, 3, 6, 6)
    (inputs,) = task().inputs(Batch(images, torch.arange(2), None))
    (turns,) = task().targets(Batch(images, torch.arange(2), None))
    for image, number in zip(inputs, turns, strict=True):
        assert torch.equal(image, images[0].rot90(int(number), (1, 2)))


def test_a_network_that_knows_nothing_is_at_chance():
    answer = task().loss((torch.zeros(20, 4),), task().targets(batch()))
    assert answer.loss.item() == pytest.approx(math.log(4)) == task().chance
    assert answer.metrics() == {"rotation_top1": 0.25, "top1_of_chance": 0.25}


def on_their_heads(folder: Path, size: int, number: int = 48) -> Path:
    """Pictures that look the same when they stand on their heads, as 0 and 8 do."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    band = np.abs(np.linspace(-200, 200, size))[:, None, None]  # dark in the middle
    for i in range(number):
        marks = np.kron(rng.uniform(0, 25, (4, 4, 3)), np.ones((size // 4, size // 4, 1)))
        pixels = band + marks + marks[::-1, ::-1]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def test_images_that_look_alike_upside_down_are_told_half_of_the_time_at_most(tmp_path):
    """The network learns how they lie, and then guesses between two turns."""
    whole = ("--augment.crop_area=[1,1]", "--augment.crop_aspect=[1,1]", "--pretrain.steps=40")
    top1 = learn(tmp_path, "rotation", *whole, pictures=on_their_heads)["rotation_top1"]
    assert 0.4 < top1 < 0.56  # 0.5, where rounding turns no more than six of 96 answers


def test_it_learns(tmp_path):
    """Pictures with an upper side: their turns are told within seconds."""
    assert learn(tmp_path, "rotation")["rotation_top1"] > 0.9
