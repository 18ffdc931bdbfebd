"""Augmentation against the recorded numbers of the authors' code: values, then distributions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shared.config.sections import Augmentation, Distill, Finetune, Linear
from shared.data import augment
from shared.data import image_ops as ops
from shared.data.augment import apply, augmentation_for, color_jitter_, draw, draw_boxes
from shared.data.image_ops import crop_resize
from shared.runtime.randomness import generator
from tests.support.recorded_images import ATOL, cases, photos, to_numpy, to_torch

CROP_AND_FLIP = Augmentation(color_strength=0, blur=0)


def rng(seed=0):
    return generator(seed)


# ------------------------------------------------------------------ values
def test_colour_chain_in_one_batch(recorded):
    """All recorded orders together, so that each image must get its own operations."""
    arrays, meta = recorded
    names = cases("chain/", "/in")
    scripts = [meta[f"chain/{name}"] for name in names]
    factors = [[s[k] for k in ("brightness", "contrast", "saturation", "hue")] for s in scripts]
    draws = replace(
        draw(Augmentation(), rng(), len(names)),
        jitter=torch.tensor([s["u_apply"] < 0.8 for s in scripts]),
        order=torch.tensor([s["perm"] for s in scripts]),
        factors=torch.tensor(factors),
        grayscale=torch.tensor([s["u_gray"] < 0.2 for s in scripts]),
    )
    images = torch.cat([to_torch(arrays[f"chain/{name}/in"]) for name in names])
    actual = to_numpy(color_jitter_(images.clone(), draws))
    for i, name in enumerate(names):
        expected = arrays[f"chain/{name}/out"]
        np.testing.assert_allclose(actual[i], expected, rtol=0, atol=ATOL, err_msg=name)
    # A view is clipped at the end, jittered or not.
    plain = replace(draws, flip=torch.zeros(len(names), dtype=torch.bool))
    view = to_numpy(apply(Augmentation(blur=0), images, plain))
    np.testing.assert_allclose(view, actual.clip(0, 1), rtol=0, atol=ATOL)


def test_apply_runs_flip_colour_and_blur_in_this_order():
    augmentation = Augmentation(blur_sigma_per="image", rotate=20, shear=10)
    draws, images = draw(augmentation, rng(1), 24), photos(24, 40, 40)
    assert 0 < draws.flip.sum() < 24  # both sides of each coin occur
    assert 0 < draws.blur.sum() < 24
    actual = apply(augmentation, images, draws)
    for i in range(24):
        one, image = draws[i : i + 1], images[i : i + 1]
        image = image.flip(-1) if one.flip else image
        image = color_jitter_(
            ops.affine_warp(image, one.angle, one.shear, one.scale, one.shift), one
        ).clamp(0, 1)
        if one.blur:  # 40 pixels: 2 * int(40 // 10 / 2) + 1 = 5 taps
            image = ops.gaussian_blur(image, one.sigma, radius=2).clamp(0, 1)
        torch.testing.assert_close(actual[i : i + 1], image, rtol=0, atol=ATOL)


def test_large_images_one_by_one_are_jittered_as_in_a_batch(monkeypatch):
    images, draws = photos(12, 20, 20), draw(Augmentation(), rng(2), 12)
    together = color_jitter_(images.clone(), draws)
    monkeypatch.setattr(augment, "LARGE", 0)
    alone = color_jitter_(images.clone(), draws)
    torch.testing.assert_close(alone, together, rtol=0, atol=ATOL)
    assert not torch.equal(alone, images)


def test_apply_leaves_its_input_alone():
    images = photos(8)
    before = images.clone()
    apply(Augmentation(), images, draw(Augmentation(), rng(), 8))
    assert torch.equal(images, before)


def test_equal_images_come_out_different():
    images = photos(1).expand(64, 3, 32, 32)
    for augmentation in (Augmentation(), CROP_AND_FLIP):
        boxes = draw_boxes(augmentation, rng(), [32] * 64, [32] * 64)
        views = apply(augmentation, crop_resize(images, boxes, 32), draw(augmentation, rng(), 64))
        assert len(views.flatten(1).unique(dim=0)) == 64
    # The colour alone differs too: each image has its own factors.
    colour = apply(
        Augmentation(flip=0, jitter=1, grayscale=0, blur=0),
        images,
        draw(Augmentation(jitter=1), rng(), 64),
    )
    assert len(colour.flatten(1).unique(dim=0)) == 64


@pytest.mark.parametrize(
    "augmentation", [Augmentation(), Augmentation(blur_sigma_per="image", rotate=9)]
)
def test_a_slice_of_the_global_batch_is_what_one_process_makes(augmentation):
    images, mine = photos(24), slice(8, 16)
    boxes = draw_boxes(augmentation, rng(), [32] * 24, [32] * 24)
    draws = draw(augmentation, rng(), 24)
    assert len(draws[mine]) == 8
    everything = apply(augmentation, crop_resize(images, boxes, 32), draws)
    part = apply(augmentation, crop_resize(images[mine], boxes[mine], 32), draws[mine])
    torch.testing.assert_close(part, everything[mine], rtol=0, atol=ATOL)


def test_uint8_and_float_images_give_the_same_view():
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    draws, boxes = (
        draw(Augmentation(), rng(), 8),
        draw_boxes(Augmentation(), rng(), [32] * 8, [32] * 8),
    )
    for prepare in (lambda x: x, lambda x: crop_resize(x, boxes, 24)):
        ours, theirs = prepare(images), prepare(images / 255)
        torch.testing.assert_close(
            apply(Augmentation(), ours, draws),
            apply(Augmentation(), theirs, draws),
            rtol=0,
            atol=ATOL,
        )


@given(
    B=st.integers(1, 6),
    H=st.integers(4, 40),
    W=st.integers(4, 40),
    size=st.integers(4, 40),
    seed=st.integers(0, 2**16),
    brightness=st.sampled_from(["multiplicative", "additive"]),
    antialias=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_views_have_their_size_and_range(B, H, W, size, seed, brightness, antialias):
    augmentation = Augmentation(rotate=30, shear=15, brightness=brightness, color_strength=1.25)
    images = (torch.rand(B, 3, H, W, generator=torch.Generator().manual_seed(seed)) * 255).byte()
    boxes = draw_boxes(augmentation, rng(seed), [H] * B, [W] * B)
    crops = crop_resize(images, boxes, size, antialias)
    views = apply(augmentation, crops, draw(augmentation, rng(seed), B))
    assert views.shape == (B, 3, size, size)
    assert views.dtype == torch.float32
    assert 0 <= views.min() <= views.max() <= 1  # false if anything is NaN


def test_blur_of_white_is_not_whiter():
    augmentation = Augmentation(flip=0, jitter=0, grayscale=0, blur=1, blur_sigma_per="image")
    views = apply(augmentation, torch.ones(64, 3, 64, 64), draw(augmentation, rng(), 64))
    assert views.max() <= 1
    assert views.min() < 0.6  # beyond the border lies black


def test_flipping_twice_gives_the_image_back():
    augmentation, images = replace(CROP_AND_FLIP, flip=1.0), photos(4)
    draws = draw(augmentation, rng(), 4)
    once = apply(augmentation, images, draws)
    assert torch.equal(once, images.flip(-1))
    assert torch.equal(apply(augmentation, once, draws), images)


# ------------------------------------------------------------------ distributions
def assert_same_distribution(ours, theirs, what):
    """Two-sample Kolmogorov-Smirnov test (our seed is fixed, so the outcome is too)."""
    # Unchanged images are an atom of the distribution: the last digits must not split it.
    p = stats.ks_2samp(np.round(ours, 5), np.round(theirs, 5)).pvalue
    assert p > 1e-3, f"{what}: p = {p:.1e}"


@pytest.mark.parametrize("case", cases("boxes/", "/y_x_h_w"))
def test_boxes_are_distributed_as_recorded(recorded, case):
    arrays, meta = recorded
    theirs = arrays[f"boxes/{case}/y_x_h_w"].astype(np.int64)
    (H, W), n = meta[f"boxes/{case}"]["image_hw"], len(theirs)
    ours = draw_boxes(Augmentation(), rng(5), [H] * 5 * n, [W] * 5 * n).numpy()
    views = {
        "y": lambda y, x, h, w: y,
        "x": lambda y, x, h, w: x,
        "height": lambda y, x, h, w: h,
        "width": lambda y, x, h, w: w,
        "area": lambda y, x, h, w: h * w,
        "aspect": lambda y, x, h, w: w / h,
        "place": lambda y, x, h, w: y / np.maximum(H - h, 1),
        "right": lambda y, x, h, w: W - w - x,
    }
    for name, view in views.items():
        assert_same_distribution(view(*ours.T), view(*theirs.T), f"{case} {name}")
    # Heights and widths together, exactly: how often each pair (32 pixels) or bin occurs.
    edges = [np.linspace(0, side + 1, 17) for side in (H, W)]
    counts = np.stack(
        [np.histogram2d(b[:, 2], b[:, 3], bins=edges)[0].ravel() for b in (ours, theirs)]
    )
    counts = counts[:, counts.sum(0) >= 10]
    assert stats.chi2_contingency(counts).pvalue > 1e-3


def draw_box_in_words(augmentation, chance, H, W):
    """reference.md 10, sentence by sentence, one box at a time."""
    low, high = (share * H * W for share in augmentation.crop_area)
    for _ in range(100):
        aspect = chance.uniform(*augmentation.crop_aspect)
        smallest, largest = round((low / aspect) ** 0.5), round((high / aspect) ** 0.5)
        while round(largest * aspect) > W or largest > H:
            largest -= 1
        h = chance.integers(min(smallest, largest), largest + 1)
        if h * round(h * aspect) < low:
            h += 1
        if h * round(h * aspect) > high:
            h -= 1
        w = round(h * aspect)
        inside = 0 < h <= H and 0 < w <= W and low <= h * w <= high
        if inside and h * w >= augmentation.crop_min_covered * H * W:
            return h, w
    return H, W


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(crop_area=(0.1, 0.15)),
        Augmentation(crop_area=(0.3, 0.4), crop_aspect=(0.5, 2.5)),
        Augmentation(crop_area=(0.6, 0.7), crop_aspect=(0.8, 1.2)),
    ],
)
def test_boxes_of_tiny_images(augmentation):
    """On 9 x 8 pixels rounding decides everything."""
    n, chance = 4000, rng(8)
    ours = draw_boxes(augmentation, rng(9), [9] * 5 * n, [8] * 5 * n)[:, 2:].tolist()
    theirs = [draw_box_in_words(augmentation, chance, 9, 8) for _ in range(n)]
    shapes = sorted({(h, w) for h, w in theirs} | {(h, w) for h, w in ours})
    counts = np.array(
        [[sum((h, w) == shape for h, w in boxes) for shape in shapes] for boxes in (ours, theirs)]
    )
    counts = counts[:, counts.sum(0) >= 10]
    assert stats.chi2_contingency(counts).pvalue > 1e-3


@given(
    H=st.integers(1, 300),
    W=st.integers(1, 300),
    low=st.floats(0.01, 1),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_boxes_lie_in_the_image(H, W, low, seed):
    augmentation = Augmentation(crop_area=(low, 1.0))
    y, x, h, w = draw_boxes(augmentation, rng(seed), [H] * 20, [W] * 20).unbind(1)
    assert (y >= 0).all()
    assert (x >= 0).all()
    assert (y + h <= H).all()
    assert (x + w <= W).all()
    assert (h * w >= max(low, 0.1) * H * W * (1 - 1e-6)).all()


def test_boxes_of_images_of_many_sizes():
    heights, widths = rng(1).integers(20, 200, 500), rng(2).integers(20, 200, 500)
    boxes = draw_boxes(Augmentation(), rng(), heights, widths)
    assert boxes.dtype == torch.int64
    assert (boxes[:, 0] + boxes[:, 2] <= torch.from_numpy(heights)).all()
    assert (boxes[:, 1] + boxes[:, 3] <= torch.from_numpy(widths)).all()
    # A shape that no crop can have: after all attempts the whole image is taken.
    assert draw_boxes(Augmentation(), rng(), [1], [50]).tolist() == [[0, 0, 1, 50]]
    whole = Augmentation(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    assert draw_boxes(whole, rng(), [8, 9], [8, 9]).tolist() == [[0, 0, 8, 8], [0, 0, 9, 9]]


def test_the_box_of_a_row_is_its_own():
    """However the rows of a batch are divided, and whatever sizes the other images have."""
    sizes = rng(1).integers(1, 60, (2, 200))  # many need several attempts, some all of them
    whole = draw_boxes(Augmentation(), rng(), *sizes)
    for rows in (slice(50, 100), slice(3, 200, 8), *(slice(k, k + 1) for k in range(200))):
        part = draw_boxes(Augmentation(), rng(), *sizes[:, rows], rows)
        assert torch.equal(part, whole[rows])
    others = np.where(np.arange(200) % 2, sizes, 300)
    assert torch.equal(draw_boxes(Augmentation(), rng(), *others)[1::2], whole[1::2])
    again = draw_boxes(Augmentation(), rng(), *sizes[:, :5])  # of a smaller batch
    assert torch.equal(again, whole[:5])


CROPS = {
    "photos": Augmentation(),
    "large": Augmentation(crop_area=(0.3, 1.0)),
    "wide": Augmentation(crop_area=(0.05, 0.1), crop_aspect=(3.0, 9.0), crop_min_covered=0.0),
    "whole": Augmentation(crop_area=(1.0, 1.0)),
}


@pytest.mark.parametrize("name", CROPS)
def test_the_box_of_one_photo_is_that_of_its_row(name):
    """Made from plain numbers, where the first attempt is accepted."""
    augmentation = CROPS[name]
    heights, widths = np.concatenate(
        [rng(1).integers(1, 60, (200, 2)), rng(2).integers(60, 9000, (400, 2))]
    ).T.tolist()
    numbers = augment.crop_numbers(rng(), 600)
    boxes = draw_boxes(augmentation, rng(), heights, widths).tolist()
    refused = 0
    for row, height, width, box in zip(numbers, heights, widths, boxes, strict=True):
        first = augment.place_box(augmentation, row, height, width)
        refused += first is None
        assert first is None or list(first) == box
    assert (refused == 0) == (name == "whole")
    assert refused < 400


def test_attempts_are_independent_of_each_other_and_of_other_rows():
    """No number is used twice: not in another row, and not in another attempt."""
    attempts = augment._crop_numbers(rng(), slice(0, 1000))
    numbers = np.stack([next(attempts) for _ in range(20)])
    assert len(np.unique(numbers)) == 20 * 1000 * 4
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("case", cases("jitter/", "/in"))
def test_jitter_is_distributed_as_recorded(recorded, case):
    arrays, meta = recorded
    image, theirs = to_torch(arrays[f"jitter/{case}/in"]), arrays[f"jitter/{case}/per_draw"]
    n = len(theirs)
    draws = draw(Augmentation(color_strength=meta[f"jitter/{case}"]["strength"]), rng(3), n)
    views = torch.cat(
        [color_jitter_(image.repeat(250, 1, 1, 1), draws[i : i + 250]) for i in range(0, n, 250)]
    )
    change = (views - image).abs().flatten(1)
    ours = np.column_stack(
        [
            views.mean((2, 3)),
            views.flatten(1).std(1, correction=0),
            change.mean(1),
            (views[:, 0] - views[:, 1]).abs().flatten(1).amax(1),
            change.amax(1),
            (views >= 1).float().flatten(1).mean(1),
        ]
    )
    for k, column in enumerate(meta[f"jitter/{case}"]["columns"]):
        assert_same_distribution(ours[:, k], theirs[:, k], f"{case} {column}")
    for column in (5, 6):  # without colour; unchanged: 0.2 and 0.2 * 0.8 of the draws
        counts = [
            [(x[:, column] < 1e-6).sum(), (x[:, column] >= 1e-6).sum()] for x in (ours, theirs)
        ]
        assert stats.chi2_contingency(counts).pvalue > 1e-3


def test_blur_is_distributed_as_recorded(recorded):
    arrays, _ = recorded
    images, theirs = (
        to_torch(arrays["batch_blur/b8_64/in"]),
        arrays["batch_blur/b8_64/mean_abs_change"],
    )
    augmentation = Augmentation(flip=0, jitter=0, grayscale=0)
    ours = []
    for call in range(len(theirs)):
        views = apply(augmentation, images, draw(augmentation, rng(call), len(images)))
        ours.append((views - images).abs().mean((1, 2, 3)))
    ours = torch.stack(ours).numpy()  # (300, 8)
    chosen, recorded_chosen = ours > 1e-6, theirs > 1e-6
    counts = [[c.sum(), (~c).sum()] for c in (chosen, recorded_chosen)]
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    for i in range(8):  # how strongly, image by image
        assert_same_distribution(
            ours[chosen[:, i], i], theirs[recorded_chosen[:, i], i], f"image {i}"
        )


def test_warped_windows_are_drawn_inside_the_image():
    augmentation = Augmentation(crop_area=(1, 1), zoom_area=(0.3, 0.9), translate=0.05)
    draws = draw(augmentation, rng(3), 5000)
    area = draws.scale.prod(1)
    assert stats.kstest(area, "uniform", args=(0.3, 0.6)).pvalue > 1e-3
    aspect = (draws.scale[:, 0] / draws.scale[:, 1]).log()
    reach = math.log(4 / 3)
    assert stats.kstest(aspect, "uniform", args=(-reach, 2 * reach)).pvalue > 1e-3
    beyond = draws.shift.abs() + draws.scale / 2 - 0.5  # how far the window leaves the image
    assert beyond[draws.scale < 1].max() <= 0.05 + 1e-6
    assert beyond.max() > 0.049
    still = draw(Augmentation(), rng(3), 50)
    assert (still.scale == 1).all()
    assert (still.shift == 0).all()
    boxes = draw_boxes(augmentation, rng(3), [8] * 5, [9] * 5)
    assert boxes.tolist() == [[0, 0, 8, 9]] * 5  # crop_area (1, 1) crops nothing


def test_draws_of_each_coin_factor_and_order():
    n, augmentation = (
        20000,
        Augmentation(flip=0.3, rotate=15, shear=5, color_strength=0.5, blur=0.4),
    )
    draws = draw(augmentation, rng(11), n)
    for coin, p in (
        (draws.flip, 0.3),
        (draws.jitter, 0.8),
        (draws.grayscale, 0.2),
        (draws.blur, 0.4),
    ):
        assert stats.binomtest(int(coin.sum()), n, p).pvalue > 1e-3
    ranges = [(0.6, 1.4)] * 3 + [(-0.1, 0.1)]
    uniforms = [
        *zip(draws.factors.T, ranges, strict=True),
        (draws.angle, (-15, 15)),
        (draws.shear, (-5, 5)),
    ]
    for values, (low, high) in uniforms:
        assert stats.kstest(values, "uniform", args=(low, high - low)).pvalue > 1e-3
    _, counts = draws.order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3
    assert len(draws.sigma.unique()) == 1  # one for the batch, as the reference
    sigma = draw(replace(augmentation, blur_sigma_per="image"), rng(11), n).sigma
    assert stats.kstest(sigma, "uniform", args=(0.1, 1.9)).pvalue > 1e-3
    batch_sigmas = [draw(augmentation, rng(seed), 2).sigma[0].item() for seed in range(500)]
    assert stats.kstest(batch_sigmas, "uniform", args=(0.1, 1.9)).pvalue > 1e-3


def test_additive_brightness():
    augmentation = Augmentation(brightness="additive", flip=0, jitter=1, grayscale=0, blur=0)
    draws = draw(augmentation, rng(), 2000)
    assert stats.kstest(draws.factors[:, 0], "uniform", args=(-0.8, 1.6)).pvalue > 1e-3
    flat = torch.full((2000, 3, 2, 2), 0.5)  # brightness is all that changes it
    expected = (0.5 + draws.factors[:, 0]).clamp(0, 1)
    torch.testing.assert_close(
        apply(augmentation, flat, draws)[:, 0, 0, 0], expected, rtol=0, atol=ATOL
    )


def test_no_colour_at_strength_zero():
    images = photos(64)
    draws = draw(CROP_AND_FLIP, rng(), 64)
    actual = apply(CROP_AND_FLIP, images, draws)
    assert torch.equal(actual, torch.where(draws.flip.view(-1, 1, 1, 1), images.flip(-1), images))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_and_cpu_agree():
    augmentation = Augmentation(blur_sigma_per="image", rotate=10, shear=5)
    images = torch.randint(0, 256, (32, 3, 40, 40), dtype=torch.uint8)
    boxes, draws = (
        draw_boxes(augmentation, rng(), [40] * 32, [40] * 32),
        draw(augmentation, rng(), 32),
    )
    views = [
        apply(augmentation, crop_resize(x, boxes, 32), draws).cpu() for x in (images, images.cuda())
    ]
    torch.testing.assert_close(*views, rtol=0, atol=1e-5)


# ------------------------------------------------------------------- the part that a stage uses
def test_fine_tuning_and_distillation_crop_and_flip_alone():
    """No colour and no blur (reference.md 10), whatever the recipe says of pretraining's."""
    assert {Finetune().augmentation, Linear().augmentation, Distill().augmentation} == {"crop"}
    recipe = Augmentation(jitter=1.0, grayscale=1.0, blur=1.0, rotate=10, crop_area=(0.3, 1.0))
    ours = augmentation_for(recipe, "crop")
    assert (ours.flip, ours.rotate, ours.crop_area) == (0.5, 10, (0.3, 1.0))
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    still = augmentation_for(Augmentation(jitter=1.0, grayscale=1.0, blur=1.0), "crop")
    views = apply(still, images, draw(still, np.random.default_rng(0), 64))
    flipped = [torch.equal(view, image.flip(2)) for view, image in zip(views, images, strict=True)]
    same = [torch.equal(view, image) for view, image in zip(views, images, strict=True)]
    assert sum(flipped) + sum(same) == 64
    assert 10 < sum(flipped) < 54
    assert augmentation_for(recipe, "full") == recipe
    assert augmentation_for(recipe, "none") is None


@pytest.mark.parametrize("brightness", ["multiplicative", "additive"])
def test_grey_images_come_out_the_same_beside_a_coloured_one(brightness):
    """Alone they pass neither saturation nor hue, which would leave every bit of them."""
    grey = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)).mul(1.2).sub(0.1)
    grey = grey.expand(-1, 3, -1, -1)
    coloured = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    augmentation = Augmentation(blur=0, grayscale=0, flip=0, brightness=brightness)
    draws = draw(augmentation, rng(5), 41)
    together = apply(augmentation, torch.cat([grey, coloured]), draws)
    assert torch.equal(apply(augmentation, grey, draws[slice(40)]), together[:40])
