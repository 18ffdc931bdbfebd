"""Classifiers: shares of corruptions, and images of no class."""

from types import SimpleNamespace

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


def test_a_data_set_may_be_called_as_one_that_is_made_here(monkeypatch):
    images = ["x"] * 4
    monkeypatch.setattr(
        classifier_parts, "open_other", lambda *_: SimpleNamespace(test=images, train=None)
    )
    inputs = SimpleNamespace(
        config=SimpleNamespace(assess=SimpleNamespace(ood="noise")),
        test_images=["t"],
        test_ids=np.arange(1),
        accelerator=None,
        sample=lambda ids, *_: ids,
    )
    sets = classifier_parts._sets_of_no_class(inputs)
    assert list(sets) == ["shuffled pixels", "noise", "data set noise"]
    assert sets["noise"][0] == ["t"]
    assert sets["data set noise"][0] is images
