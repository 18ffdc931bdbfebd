"""The second network: Adam by torch's optimizer, an answer per image, and a state to go on from."""

import copy
import math

import pytest
import torch

from shared.pretext.adversary import Adversary


def made(size: int = 16) -> Adversary:
    torch.manual_seed(0)
    return Adversary(size, 8, 1e-3)


MADE, TRUE = torch.rand(2, 4, 3, 16, 16) * 2 - 1


def test_it_learns_as_with_torchs_adam():
    adversary, network = made(), made().network.requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.5, 0.999))
    labels = torch.tensor([0.0] * 4 + [1.0] * 4)
    for _ in range(4):
        adversary.learn(MADE, TRUE, 1.0)
        logits = network(torch.cat([MADE, TRUE])).flatten()
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
        optimizer.step()
    for ours, theirs in zip(adversary.network.parameters(), network.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
        assert not ours.requires_grad
        assert ours.grad is None


def test_its_state_goes_on_to_the_same_bits():
    adversary = made()
    adversary.learn(MADE, TRUE, 1.0)
    state = copy.deepcopy(adversary.state_dict())
    torch.manual_seed(5)
    again = Adversary(16, 8, 1e-3)
    again.load_state_dict(state)
    for one in (adversary, again):
        one.learn(TRUE, MADE, 1.0)
    assert all(torch.equal(a, again.state_dict()[k]) for k, a in adversary.state_dict().items())
    without = copy.deepcopy(adversary)
    without.load_state_dict(state)
    without.mean0.zero_()  # the moments are part of it
    without.learn(TRUE, MADE, 1.0)
    assert not torch.equal(without.network[0].weight, again.network[0].weight)


@pytest.mark.parametrize("size", [8, 16, 28, 35])
def test_at_the_start_it_cannot_tell_and_judges_each_image_alone(size):
    adversary = made(size)
    images = torch.rand(5, 3, size, size) * 2 - 1
    assert adversary.loss(images, images.flip(0)).mean().item() == pytest.approx(math.log(2), 0.02)
    whole = adversary.believes(images)
    assert whole.shape == (5,)
    assert torch.allclose(adversary.believes(images[2:3]), whole[2:3], atol=1e-6)


def test_it_comes_to_tell():
    adversary = made()
    bright, dark = torch.full((2, 4, 3, 16, 16), 0.5) * torch.tensor([1, -1]).view(2, 1, 1, 1, 1)
    for _ in range(30):
        adversary.learn(dark, bright, 1.0)
    assert adversary.loss(dark, bright).max() < 0.3
