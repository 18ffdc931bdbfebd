"""Colour: what is asked of a cell, what is refused, and that it learns."""

import dataclasses
import math
from functools import cache

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from shared.config.pretext import Colour as Options
from shared.config.schema import Config, Data, Pretrain
from shared.data.batches import Batch, normalize
from shared.data.colour_space import lab_to_rgb, rgb_to_lab
from shared.pretext.colour import CellHead, Colour
from shared.pretext.colour_targets import TARGETS, Classes, squares_of_srgb
from shared.runtime.errors import UserError
from stages import pretrain
from tests.support.pretext import learn, options_of
from tests.support.sources import opened

NORMALISED = Data(image_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


def colourful(n: int = 60, size: int = 16) -> torch.Tensor:
    """Images of cells in every colour, (n, 3, S, S) uint8: most are nearly grey, few are not."""
    generator = torch.Generator().manual_seed(0)
    lab = torch.rand(n, 3, size // 4, size // 4, generator=generator) * 2 - 1
    lab = lab**3 * torch.tensor([40.0, 80, 80]).view(1, 3, 1, 1)
    lab[:, 0] += 55
    pixels = lab_to_rgb(lab).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return (255 * pixels).round().to(torch.uint8)


@cache
def target(options: Options, sampled=None) -> Classes:
    made = TARGETS[options.target](options, 4)
    made.fit(colourful() if sampled is None else sampled)
    return made


def task(data: Data = NORMALISED, **options) -> Colour:
    config = Config(data=data, pretrain=Pretrain(task="colour"), colour=Options(**options))
    return Colour(config, Accelerator(cpu=True))


def folder(path, images):
    path.mkdir()
    for i, pixels in enumerate(images):
        Image.fromarray(np.asarray(pixels, np.uint8)).save(path / f"{i}.png")
    return opened(path, image_size=16).train


def test_the_network_sees_the_lightness_as_a_grey_image():
    pixels = torch.rand(3, 3, 16, 16)
    batch = Batch(normalize(pixels, NORMALISED), torch.arange(3), None)
    made = task()
    (grey,) = made.inputs(batch)
    shown = grey * torch.tensor(NORMALISED.std).view(3, 1, 1)
    shown = shown + torch.tensor(NORMALISED.mean).view(3, 1, 1)
    assert torch.allclose(shown, rgb_to_lab(pixels)[:, :1].expand_as(shown) / 100, atol=1e-5)
    turned = torch.cat([pixels[:, 1:], pixels[:, :1]], 1)  # other colours
    assert not torch.allclose(made.inputs(batch._replace(images=turned))[0], grey)
    (ab,) = made.targets(batch)
    means = rgb_to_lab(pixels)[:, 1:].unflatten(3, (4, 4)).unflatten(2, (4, 4)).mean((3, 5))
    assert torch.allclose(ab, means, atol=1e-3)


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
    assert made.top1(answer, ab).all()


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


def grey_image(i: int) -> np.ndarray:
    return np.repeat(np.random.default_rng(i).integers(0, 256, (16, 16, 1)), 3, axis=2)


@pytest.mark.parametrize("kind", ["grey", "almost", "tinted", "digits"])
def test_images_without_colours_are_refused(kind, tmp_path, capsys):
    """In one line, with what was measured, before anything is trained."""
    if kind == "digits":
        arguments = [a for a in options_of("colour") if not a.startswith("--data.train")]
        assert pretrain.main([*arguments, f"--output={tmp_path}"]) == 2
        error = capsys.readouterr().err
        assert "1,000 of 1,000 that were looked at (100%) are grey" in error
        assert error.count("\n") == 1
        return
    images = [grey_image(i) for i in range(20)]
    if kind == "almost":
        images[3] = images[3] * [1, 0, 0]
    if kind == "tinted":
        images = [np.full((16, 16, 3), (200, 120, 60)) for _ in range(20)]
    said = {"grey": r"20 of 20 .* \(100%\) are grey", "almost": r"19 of 20 .* \(95%\) are grey"}
    with pytest.raises(UserError, match=said.get(kind, "have one and the same")) as error:
        task().require(folder(tmp_path / "images", images))
    assert "\n" not in str(error.value)
    assert "--pretrain.task" in str(error.value)


def test_what_is_known_of_the_images_is_kept(tmp_path):
    images = folder(tmp_path / "images", colourful(30).permute(0, 2, 3, 1))
    made, again = task(), task()
    made.require(images)
    made.start(torch.nn.Linear(1, 1), images)
    again.memory.load_state_dict(made.memory.state_dict())
    assert again.chance == made.chance > 1
    assert torch.equal(again.target.weights, made.target.weights)
    assert made.facts == again.facts


@pytest.mark.parametrize(
    ("option", "allowed"),
    [("bin=2", "5 to 50"), ("rebalancing=1.5", "in [0, 1]"), ("window=4", "an odd number")],
)
def test_options_out_of_bounds_are_refused(option, allowed):
    name, value = option.split("=")
    with pytest.raises(ValueError, match=f"colour.{name} must be") as error:
        dataclasses.replace(Options(), **{name: type(getattr(Options(), name))(float(value))})
    assert allowed in str(error.value)


def test_it_learns(tmp_path):
    line = learn(tmp_path, "colour", "--pretrain.steps=40")
    assert line["colour_error"] < 0.5 * line["error_of_chance"]
    assert line["colour_top1"] > 0.7 > line["top1_of_chance"]
