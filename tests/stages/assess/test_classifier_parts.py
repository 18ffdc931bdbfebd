"""Classifiers: shares of corruptions, and images of no class."""

import numpy as np
import pytest
import torch

from stages.assess import classifier_parts
from stages.assess.classifier_parts import _corruption_shares
from stages.assess.corruptions import NAMES, SEVERITIES


def test_built_in_images_of_no_class():
    images = torch.rand(3, 3, 4, 4)
    images[1] = images[1, :1]
    shuffled = classifier_parts.shuffle_pixels(images, np.random.default_rng(0))
    colours = [{tuple(p) for p in i.flatten(1).T.tolist()} for i in (images[0], shuffled[0])]
    assert colours[0] == colours[1]
    assert not torch.equal(images, shuffled)
    noise = classifier_parts.noise(images, np.random.default_rng(0))
    assert torch.equal(noise[1, 0], noise[1, 2])
    assert not torch.equal(noise[0, 0], noise[0, 2])


def test_shares_of_corruptions_are_sorted_by_name():
    shares = np.arange((1 + 55) * 2).reshape(56, 2) / 200
    numbers = _corruption_shares(shares, ["supervised", "finetune"], 7)
    assert numbers["clean"] == {"supervised": 0, "finetune": 1 / 200}
    assert list(numbers["accuracy"]["finetune"]) == list(NAMES)
    flat = [x for name in NAMES for x in numbers["accuracy"]["finetune"][name]]
    assert flat == shares[1:, 1].tolist()
    assert numbers["mean"]["finetune"] == pytest.approx(np.mean(flat))
    assert numbers["severities"] == list(SEVERITIES)
