"""What is asked of the colours of a cell: classes, numbers and histograms."""

import math
from functools import cache

import pytest
import torch

from shared.config.pretext import Colour as Options
from shared.data.colour_space import lab_to_rgb
from shared.pretext.colour import CellHead
from shared.pretext.colour_targets import TARGETS, Classes, squares_of_srgb
from tests.support.pretext import colourful


@cache
def target(options: Options, sampled=None) -> Classes:
    made = TARGETS[options.target](options, 4)
    made.fit(colourful() if sampled is None else sampled)
    return made


def test_soft_classes_are_those_of_the_definition():
    """Gaussian of the distance to the nearest ones, against a search among all of them."""
    made = target(Options())
    assert 20 < made.used.sum() < made.channels == len(squares_of_srgb(10.0))
    ab = made.encode(colourful(4).float() / 255)[0]
    classes, shares = made.classes_of(ab)
    assert torch.allclose(shares.sum(-1), torch.ones(4, 4, 4))
    assert made.used[classes].all()
    distances = torch.cdist(ab.permute(0, 2, 3, 1), made.centres)
    near = distances.topk(10, largest=False)
    exact = (-near.values.square() / 50).softmax(-1)
    dense, expected = torch.zeros(2, 4, 4, 4, made.channels)
    dense.scatter_(3, classes, shares)
    expected.scatter_(3, near.indices, exact)
    assert (dense - expected).abs().max() < 0.02  # only the tenth may differ, by rounding
    assert torch.equal(
        classes.gather(3, shares.argmax(3, keepdim=True))[..., 0], near.indices[..., 0]
    )


def test_what_is_encoded_is_decoded_within_a_square():
    made = target(Options())
    ab = made.encode(colourful(8).float() / 255)[0]
    classes, shares = made.classes_of(ab)
    answer = torch.full((8, made.channels, 4, 4), -30.0)
    answer.scatter_(1, classes.permute(0, 3, 1, 2), shares.log().permute(0, 3, 1, 2))
    inside = ab.norm(dim=1) < 60  # at the border of what there is all neighbours lie inside
    error = (made.decode(answer) - ab).norm(dim=1)
    assert error[inside].max() < 10
    assert torch.equal(made.scores(answer).argmax(1), made.nearest(ab))


def test_weights_have_mean_one_and_rare_classes_weigh_more():
    for rebalancing in (0.0, 0.5, 1.0):
        made = target(Options(rebalancing=rebalancing))
        assert (made.weights * made.prior).sum().item() == pytest.approx(1)
        assert made.prior.sum().item() == pytest.approx(1)
        order = made.prior[made.used].argsort()
        weights = made.weights[made.used][order]
        assert (weights[:-1] >= weights[1:]).all()
        assert (weights.max() > 1.01 * weights.min()) == (rebalancing > 0)
        assert made.weights[~made.used].sum() == 0


def test_a_grey_image_loses_nothing_and_chance_is_that_of_equal_answers():
    made = target(Options())
    grey = colourful(2).float().mean(1, keepdim=True).expand(-1, 3, -1, -1) / 255
    answer = torch.randn(2, made.channels, 4, 4)
    assert made.loss(answer, *made.encode(grey)).tolist() == [0, 0]
    flat = target(Options(rebalancing=0.0))
    assert flat.chance.item() == pytest.approx(math.log(flat.used.sum()), rel=1e-4)
    assert made.chance.item() == pytest.approx(flat.chance.item(), rel=0.2)


def test_rebalancing_paints_in_stronger_colours():
    """The best answer without looking: weighed up, rare colours pull it away from grey."""
    chroma = {}
    for rebalancing in (0.0, 0.5):
        made = target(Options(rebalancing=rebalancing))
        ab = made.encode(colourful().float() / 255)[0]
        classes, shares = made.classes_of(ab)
        own = classes.gather(3, shares.argmax(3, keepdim=True))
        weighed = torch.zeros(made.channels)
        weighed.index_add_(0, classes.flatten(), (made.weights[own] * shares).flatten())
        best = (weighed / weighed.sum()).clamp_min(1e-12).log().requires_grad_()
        made.loss(best.view(1, -1, 1, 1).expand(60, -1, 4, 4), ab).mean().backward()
        assert best.grad.abs().max() < 1e-4  # it is the best
        chroma[rebalancing] = (best.exp() * made.centres.norm(dim=1)).sum()
    assert chroma[0.5] > 1.2 * chroma[0.0]


def test_regression_is_paler_than_histograms():
    """Half of the images in one colour, half in the opposite one, and nothing to tell them."""
    lab = torch.tensor([[60.0, 40, 20], [60, -40, -20]]).view(2, 3, 1, 1)
    both = (255 * lab_to_rgb(lab)).round().to(torch.uint8).expand(2, 3, 16, 16)
    regression = target(Options(target="regression"), both)
    mean = regression.decode(regression.knows_nothing(1))
    ab = regression.encode(both / 255)[0]
    assert mean.norm(dim=1).mean() < 0.25 * ab.norm(dim=1).mean()
    histograms = target(Options(target="histograms"), both)
    plane, hues, chromas, _ = histograms.encode(both / 255)
    best = torch.cat([hues.mean(0), chromas.mean(0)]).clamp_min(1e-6).log()[None]
    painted = histograms.decode(best).norm(dim=1).mean()
    assert painted > 0.9 * plane.norm(dim=1).mean()


def test_histograms_sum_to_one_and_the_hue_of_grey_has_no_weight():
    made = target(Options(target="histograms"))
    pixels = colourful(4).float() / 255
    pixels[0] = pixels[0].mean(0)
    plane, hues, chromas, weight = made.encode(pixels)
    assert torch.allclose(chromas.sum(1), torch.ones(4, 4, 4), atol=1e-5)
    assert torch.allclose(hues[1:].sum(1), torch.ones(3, 4, 4), atol=1e-5)
    assert weight[0].abs().max() < 1e-5
    assert plane[0].norm(dim=0).max() < 1e-5
    itself = torch.cat([hues, chromas], 1).clamp_min(1e-12).log()
    targets = (plane, hues, chromas, weight)
    assert made.loss(itself, *targets).abs().max() < 1e-4
    assert (made.loss(torch.randn_like(itself), *targets) > 0).all()


def test_a_histogram_counts_the_window_around_its_cell():
    made = TARGETS["histograms"](Options(target="histograms", window=3), 2)
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[0, 0, :3, :3] = 1  # red, in the first cell's window alone
    _, hues, chromas, weight = made.encode(pixels)
    assert hues[0, 0, 0, 0] == chromas[0, 31, 0, 0] == 1
    assert chromas[0, 0].flatten().tolist() == [0, 1, 1, 1]
    assert weight[0].flatten().tolist() == [5, 0, 0, 0]


@pytest.mark.parametrize("kind", ["classes", "regression", "histograms"])
def test_gradients_are_finite_in_both_precisions(kind):
    made = target(Options(target=kind))
    head = CellHead(6, made.channels, 4)
    targets = made.encode(colourful(3).float() / 255)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            answer = head(torch.rand(3, 6, 2, 2))
        assert answer.shape == (3, made.channels, 4, 4)
        made.loss(answer, *targets).mean().backward()
        assert all(p.grad.isfinite().all() for p in head.parameters())
