"""Local-global information: bounds at their limits and on Gaussians, the scores, that it learns."""

import math

import pytest
import torch
from torch import nn

from shared.networks.encoders import create_encoder, map_and_features, map_size
from shared.pretext.infomax import (
    VectorAndPlaces,
    divided,
    donsker_varadhan,
    jensen_shannon,
    noise_contrastive,
    score,
)
from tests.support.pretext import learn

N, P = 7, 3


def scores(own: float, other: float) -> torch.Tensor:
    """(N, N, P): these for places of the own image, and for those of others."""
    same = torch.eye(N)[:, :, None].expand(N, N, P)
    return own * same + other * (1 - same)


def test_scores_are_divided_into_own_and_others():
    x = torch.randn(4, N, P, generator=torch.Generator().manual_seed(0))
    own, others = divided(x, 2)
    for i in range(4):
        assert torch.equal(own[i], x[i, i + 2])
        rest = [j for j in range(N) if j != i + 2]
        assert torch.equal(others[i].view(N - 1, P), x[i, rest])


def test_equal_scores_know_nothing():
    for value in (0.0, 3.0):
        assert donsker_varadhan(scores(value, value)).item() == pytest.approx(0, abs=1e-6)
        chance = math.log(1 + (N - 1) * P)
        assert noise_contrastive(scores(value, value)).item() == pytest.approx(chance)
    assert jensen_shannon(scores(0, 0)).item() == pytest.approx(math.log(4))


def test_perfect_scores_reach_the_bounds():
    assert jensen_shannon(scores(50, -50)).item() == pytest.approx(0, abs=1e-6)  # ln 4 less ln 4
    assert noise_contrastive(scores(50, 0)).item() == pytest.approx(0, abs=1e-6)
    assert donsker_varadhan(scores(50, 0)).item() == pytest.approx(-50)  # it has no limit


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_the_bounds_on_gaussians(rho):
    """By the best critic, the log of the densities' ratio: DV is -ln(1 - rho^2) / 2."""
    generator, n = torch.Generator().manual_seed(0), 1500
    x, noise = torch.randn(2, n, dtype=torch.float64, generator=generator)
    y = rho * x + math.sqrt(1 - rho**2) * noise
    a, b, left = x[:, None], y[None], 1 - rho**2
    ratio = -(rho**2 * (a**2 + b**2) - 2 * rho * a * b) / (2 * left) - math.log(left) / 2
    true = -math.log(left) / 2
    u = ratio[:, :, None]
    assert -donsker_varadhan(u).item() == pytest.approx(true, abs=0.05)
    nce = math.log(n) - noise_contrastive(u).item()
    assert true - 0.06 < nce < true + 0.05
    # twice the divergence of p and q, whose mixture has the density (p + q) / 2
    own, others = divided(u, 0)
    both = (math.log(2) - torch.log1p((-own).exp())).mean()
    both += (math.log(2) - torch.log1p(others.exp())).mean()
    assert math.log(4) - jensen_shannon(u).item() == pytest.approx(both.item())
    assert -1e-3 < both < math.log(4)
    worse = 0.5 * u  # any other critic gives less
    assert donsker_varadhan(worse) >= donsker_varadhan(u)
    assert jensen_shannon(worse) >= jensen_shannon(u)


def test_processes_together_have_the_loss_of_all():
    x = torch.randn(N, N, P, generator=torch.Generator().manual_seed(1))
    for bound in (jensen_shannon, noise_contrastive):
        parts = 3 * bound(x[:3], 0) + 4 * bound(x[3:], 3)
        assert torch.allclose(parts / N, bound(x))


def test_a_vector_is_scored_with_each_place():
    vectors, places = torch.randn(2, 4), torch.randn(3, 5, 4)
    expected = torch.einsum("bd,npd->bnp", vectors, places) / 2
    assert torch.allclose(score(vectors, places), expected, atol=1e-6)


def test_places_are_of_the_last_map_but_one_and_the_features_those_of_the_encoder():
    images = torch.rand(2, 3, 8, 8)
    encoder = create_encoder("simclr_resnet8_1x_sk0", 8).eval()
    places, features = map_and_features(encoder, images)
    assert places.shape == (2, 32, 4, 4)
    assert map_size(encoder, 8) == (64, 2)
    assert torch.equal(features, encoder(images))
    encoder.train()
    encoder.set_grad_checkpointing(True)
    assert map_and_features(encoder, images)[0].requires_grad
    vit = create_encoder("test_vit", 32).eval()
    assert torch.allclose(
        map_and_features(vit, torch.zeros(1, 3, 32, 32))[1], vit(torch.zeros(1, 3, 32, 32))
    )
    head = VectorAndPlaces(32, 64, 6)
    assert head(places, features).shape == (2, 17, 6)
    with pytest.raises(ValueError, match="Sequential does not give its inner feature maps"):
        map_and_features(nn.Sequential(), images)


@pytest.mark.parametrize("bound", ["jsd", pytest.param("infonce", marks=pytest.mark.slow)])
def test_it_learns(bound, tmp_path):
    options = [f"--infomax.bound={bound}", "--pretrain.steps=60"]
    line = learn(tmp_path, "contrastive-infomax", *options)
    assert line["infomax_top1"] > 4 * line["top1_of_chance"], line
    assert line["infomax_nats"] > 0.3, line
    assert line["loss"] < line["loss_of_chance"] - 0.3


@pytest.mark.slow
def test_it_learns_across_views_with_more_updates(tmp_path):
    line = learn(tmp_path, "contrastive-infomax", "--infomax.across=true", "--pretrain.steps=300")
    assert line["infomax_top1"] > 4 * line["top1_of_chance"], line
    assert line["loss"] < line["loss_of_chance"] - 0.3
