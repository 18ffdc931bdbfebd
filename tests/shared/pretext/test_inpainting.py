"""Inpainting: the hole, what the loss sees, the adversary, and that it learns."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from shared.config.pretext import Inpainting as Options
from shared.config.schema import Config
from shared.config.sections import Data, Model, Pretrain
from shared.data.batches import Batch, normalize
from shared.networks.build import build_contrastive, network_meta
from shared.pretext import inpainting
from shared.pretext.inpainting import (
    FILL,
    Decoder,
    Inpainting,
    blobs,
    centre,
    inner,
)
from tests.support.pretext import learn, painted
from tests.support.sources import opened

DATA = Data(image_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
B = 16
PIXELS = torch.rand(B, 3, 16, 16)


def task(data: Data = DATA, **options) -> Inpainting:
    config = Config(
        model=Model(encoder="simclr_resnet8_1x_sk0"),
        data=data,
        pretrain=Pretrain(task="inpainting", batch_size=B),
        inpainting=Options(**options),
    )
    return Inpainting(config, Accelerator(cpu=True))


@pytest.fixture
def pictures(tmp_path):
    return opened(painted(tmp_path / "pictures", 16, 12), image_size=16).train


def batch(made: Inpainting) -> Batch:
    drawn = made.draw(np.random.default_rng(0), B)
    return Batch(normalize(PIXELS, made.data), torch.arange(B), None, drawn)


@pytest.mark.parametrize("region", ["random", "centre"])
def test_the_hole_is_of_one_colour_and_all_else_is_bit_equal(region):
    made = task(region=region, rim=0.0)
    images = batch(made)
    (seen,), hole = made.inputs(images), made.hole(images).bool()
    assert hole.float().mean((1, 2, 3)).tolist() == [0.25] * B
    outside = ~hole.expand_as(seen)
    assert torch.equal(seen[outside], images.images[outside])
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (made.data.mean, made.data.std))
    fill = torch.tensor(FILL).view(3, 1, 1).expand_as(seen)
    assert torch.allclose((seen * std + mean)[~outside], fill[~outside], atol=1e-6)


def test_a_hole_is_made_once_for_a_batch(monkeypatch):
    made, noises = task(), []
    monkeypatch.setattr(
        inpainting, "blobs", lambda noise, *a: noises.append(noise) or blobs(noise, *a)
    )
    first, second = batch(made), batch(made)._replace(drawn=made.draw(np.random.default_rng(1), B))
    for images in (first, second, first):
        hidden = (made.inputs(images)[0] != images.images).any(1)
        assert (made.targets(images)[1][:, 0].bool() >= hidden).all()
    assert len(noises) == 3


@pytest.mark.parametrize("region", ["random", "centre"])
@pytest.mark.parametrize("adversarial", [0.0, 0.01])
def test_the_loss_sees_the_hole_alone(region, adversarial, pictures):
    made = task(region=region, adversarial=adversarial)
    made.start(nn.Linear(1, 1), pictures)
    images = batch(made)
    pixels, weights = made.targets(images)
    painted = torch.rand(B, 3, 16, 16).requires_grad_()
    answer = made.loss((painted,), (pixels, weights))
    answer.loss.backward()
    hole = made.hole(images).bool().expand_as(painted)
    assert painted.grad[~hole].abs().max() == 0
    assert (painted.grad[hole] != 0).all()
    finished, true = answer.kept
    assert torch.equal(finished[~hole], true[~hole])
    assert made.adversary is None or all(p.grad is None for p in made.adversary.parameters())


def test_the_rim_is_seen_and_weighs_ten_times():
    made = task(region="centre", rim=1 / 16)
    images = batch(made)
    (seen,), (_, weights) = made.inputs(images), made.targets(images)
    unchanged = (seen == images.images).all(1)
    assert weights.unique().tolist() == [0, 1, 10]
    assert torch.equal(unchanged, weights[:, 0] != 1)
    assert (weights == 10).sum().item() == B * (8**2 - 6**2)


def test_a_rim_that_would_leave_no_hole_is_none():
    hole = torch.zeros(2, 1, 8, 8)
    hole[0, :, 2:4, 2:4], hole[1, :, 1:7, 1:7] = 1, 1
    within = inner(hole, 1)
    assert torch.equal(within[0], hole[0])
    assert within[1].sum() == 16
    at_the_border = torch.zeros(1, 1, 8, 8)
    at_the_border[..., :4] = 1
    assert inner(at_the_border, 1).sum() == 8 * 3  # the image's own border is no rim


def test_blobs_are_drawn_for_each_image_and_hang_together():
    noise = torch.from_numpy(np.random.default_rng(0).random((20, 4, 4), np.float32))
    regions = blobs(noise, 32, 0.25)
    assert regions.sum((1, 2, 3)).tolist() == [256] * 20
    assert len(regions.flatten(1).unique(dim=0)) == 20
    right = (regions[..., 1:] == regions[..., :-1]).float().mean()
    assert right > 0.9  # pixels drawn one by one would give 0.63
    for share in (1e-9, 1 - 1e-9):  # something is painted over, and something is left
        assert 0 < blobs(noise, 8, share).mean() < 1
        assert 0 < centre(2, 8, share, torch.device("cpu")).mean() < 1


@pytest.mark.parametrize(("side", "size"), [(1, 8), (4, 16), (7, 30), (5, 5), (20, 24)])
def test_the_decoder_paints_the_whole_image(side, size):
    decoder = Decoder(6, side, size, 4)
    features = torch.rand(2, 6, side, side, requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            images = decoder(features)
        assert images.shape == (2, 3, size, size)
        assert images.abs().max() <= 1
    images[:, :, 0, 0].float().sum().backward()
    assert (features.grad.abs().sum((0, 1)) > 0).all()  # each pixel depends on each place


def test_the_adversary_and_the_squared_error_are_weighed(pictures):
    made = task(adversarial=0.25)
    made.start(nn.Linear(1, 1), pictures)
    targets = made.targets(batch(made))
    answer = made.loss((torch.zeros(B, 3, 16, 16),), targets)
    alone = task().loss((torch.zeros(B, 3, 16, 16),), targets)
    finished, _ = answer.kept
    deceived = nn.functional.softplus(-made.adversary.believes(finished)).mean()
    assert answer.loss.item() == pytest.approx((0.75 * alone.loss + 0.25 * deceived).item())
    assert made.chance == pytest.approx(0.75 * made.variance + 0.25 * math.log(2))
    before = made.adversary.network[0].weight.clone()
    made.update(nn.Linear(1, 1), answer)
    assert not torch.equal(made.adversary.network[0].weight, before)
    assert answer.metrics()["top1_of_chance"] == 0.5


def test_the_error_of_chance_is_that_of_the_mean_of_what_is_seen():
    made = task(region="centre", rim=0.0)
    pixels, weights = made.targets(batch(made))
    seen = torch.stack([p[:, w[0] == 0].mean(1) for p, w in zip(pixels, weights, strict=True)])
    filled = seen.view(B, 3, 1, 1).expand_as(pixels)
    metrics = made.loss((filled,), (pixels, weights)).metrics()
    assert metrics["inpainting_error"] == pytest.approx(metrics["error_of_chance"])
    assert made.loss((pixels,), (pixels, weights)).metrics()["inpainting_error"] == 0


def test_sixteen_images_are_learned_by_heart():
    torch.manual_seed(0)
    made = task(region="centre", width=16)
    network = network_meta(made.config.model, made.data, 0)
    model = made.network(build_contrastive(network, False)).train()
    images = batch(made)
    targets, inputs = made.targets(images), made.inputs(images)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        answer = made.loss(model(*inputs), targets)
        answer.loss.backward()
        optimizer.step()
    assert answer.loss < 0.1 * made.loss((torch.zeros(B, 3, 16, 16),), targets).loss


@pytest.mark.parametrize(
    ("name", "value"), [("share", 1.0), ("rim", 0.5), ("adversarial", 1.0), ("adversary_rate", 0.0)]
)
def test_options_out_of_bounds_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"inpainting\.{name} must be .*, got {value}"):
        dataclasses.replace(Options(), **{name: value})


def test_it_learns(tmp_path):
    line = learn(tmp_path, "inpainting", "--pretrain.steps=50", "--inpainting.width=16")
    assert line["inpainting_error"] < 0.7 * line["error_of_chance"]
    assert line["loss"] < 0.5 * line["loss_of_chance"]
