"""Corruptions: range, determinism, strength, and each one's own definition."""

import colorsys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from sklearn.datasets import load_digits

from shared.runtime.randomness import generator
from stages.assess import corruptions
from stages.assess.corruptions import GROUPS, NAMES, SEVERITIES, corrupt

RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "elastic"}


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    np.testing.assert_allclose(a, b, atol=1e-5)


def photos(size: int = 16, n: int = 4) -> torch.Tensor:
    """Smooth coloured images in [0.1, 0.9]."""
    coarse = torch.from_numpy(generator(0).random((n, 3, 4, 4), dtype=np.float32))
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear") * 0.8 + 0.1


@pytest.mark.parametrize("size", [4, 8, 32, 48])
@pytest.mark.parametrize("name", NAMES)
def test_valid_images_and_a_function_of_the_generator(name, size):
    images = photos(size)
    before = images.clone()
    for severity in SEVERITIES:
        out = corrupt(images, name, severity, generator(1, severity))
        assert out.shape == images.shape
        assert out.dtype == torch.float32
        assert 0 <= out.min() <= out.max() <= 1
        assert out.isfinite().all()
        assert torch.equal(out, corrupt(images, name, severity, generator(1, severity)))
        other = corrupt(images, name, severity, generator(2, severity))
        assert torch.equal(out, other) == (name not in RANDOM)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", NAMES)
def test_grey_stays_grey_and_a_neighbour_in_the_batch_does_not_matter(name):
    images = photos()
    images[1] = images[1, :1]
    out = corrupt(images, name, 3, generator(0))
    assert torch.equal(out[1, 0], out[1, 1])
    assert torch.equal(out[1, 0], out[1, 2])
    assert not torch.equal(out[0, 0], out[0, 1])


@pytest.mark.parametrize("name", sorted({*NAMES} - {"elastic", "pixelate"}))
def test_stronger_with_severity(name):
    """On the 8 pixel digits too, where lengths are fractions of a pixel."""
    digits = torch.from_numpy(load_digits().images[:100] / 16).float()[:, None].expand(-1, 3, 8, 8)
    for images in (digits, photos(48)):
        change = [
            (corrupt(images, name, severity, generator(severity)) - images).abs().mean().item()
            for severity in SEVERITIES
        ]
        for weaker, stronger in pairwise(change):  # the published steps of some are almost equal
            assert stronger > 0.98 * weaker, change
        assert change[0] > 0.0005
        assert 1.5 * change[0] < change[4] < 0.5


@pytest.mark.parametrize("name", [*GROUPS["blur"], "elastic", "pixelate", "contrast", "jpeg"])
def test_even_images_stay_even(name):
    """Kernels sum to 1, and nothing comes in over the border."""
    even = torch.full((2, 3, 12, 12), 0.6)
    assert corrupt(even, name, 5, generator(0)).sub(0.6).abs().max() < 0.003


def test_noise_has_the_published_strength():
    even = torch.full((8, 3, 32, 32), 0.5)
    even[:, 0] += 0.01  # not grey: the channels are drawn apart
    noise = corrupt(even, "gaussian_noise", 3, generator(0)) - even
    assert noise.std().item() == pytest.approx(0.08, rel=0.02)
    assert abs(np.corrcoef(noise[:, 0].flatten(), noise[:, 1].flatten())[0, 1]) < 0.05
    shot = corrupt(even, "shot_noise", 5, generator(0)) - even
    assert shot.var().item() == pytest.approx(0.503 / 50, rel=0.05)  # Poisson: mean / photons
    impulse = corrupt(even, "impulse_noise", 5, generator(0))
    assert (impulse == 0).float().mean().item() == pytest.approx(0.035, abs=0.004)
    assert (impulse == 1).float().mean().item() == pytest.approx(0.035, abs=0.004)
    large = torch.full((2, 3, 64, 64), 0.5)
    assert (corrupt(large, "gaussian_noise", 1, generator(0)) - 0.5).std() == pytest.approx(
        0.08, rel=0.05
    )


def test_brightness_adds_to_the_value_of_hsv():
    images = torch.from_numpy(generator(3).random((1, 3, 8, 8), dtype=np.float32))
    images[0, :, 0, 0] = 0  # black has no hue
    out = corrupt(images, "brightness", 4, generator(0))[0].flatten(1).T.tolist()
    for before, after in zip(images[0].flatten(1).T.tolist(), out, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        wanted = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))
        assert after == pytest.approx(wanted, abs=1e-5)


def test_contrast_keeps_the_mean_of_each_channel():
    images = photos()
    out = corrupt(images, "contrast", 2, generator(0))
    mean = images.mean((2, 3), keepdim=True)
    close(out, mean + 0.5 * (images - mean))


def test_kernels_shift_bilinearly():
    kernel = corruptions._kernels(torch.tensor([[[0.25, -1.5]]]), torch.ones(1))[0]
    wanted = torch.zeros(5, 5)
    wanted[2, 0] = wanted[2, 1] = 0.75 / 2  # rows 0 and 1, columns -2 and -1 around the middle
    wanted[3, 0] = wanted[3, 1] = 0.25 / 2
    close(kernel, wanted)


def test_motion_is_one_sided_and_each_image_has_its_own_direction():
    point = torch.zeros(3, 3, 31, 31)
    point[:, :, 15, 15] = 1
    out = corrupt(point, "motion_blur", 5, generator(0))[:, 0]
    assert not torch.equal(out[0], out[1])
    weight = out.sum(1)  # along x
    for row in weight:
        assert row[16:].sum() < 0.35  # what the middle pixel's tent leaks, at most
        assert row[:15].sum() > 0.5
    assert out.sum((1, 2)).tolist() == pytest.approx([1, 1, 1], abs=1e-4)


def test_zoom_blur_leaves_the_middle_and_smears_the_rim():
    image = torch.zeros(1, 3, 33, 33)
    image[:, :, 16, 16] = image[:, :, 16, 3] = 1
    out = corrupt(image, "zoom_blur", 5, generator(0))[0, 0]
    assert out[16, 16] > 0.8
    assert out[16, 3] < 0.4
    assert out[16, :3].sum() > out[16, 4:8].sum()  # outwards


def test_elastic_moves_by_the_corners_and_by_the_noise():
    images = photos(12)
    still = corruptions._elastic(images, 0, 0, 0, generator(0))
    close(still, images)
    push = SimpleNamespace(uniform=lambda low, high, size: np.full(size, float(high)))
    for alpha, corner in ((0, 2), (2, 0)):  # all corners, or all of the noise, by two pixels
        out = corruptions._elastic(images, alpha, 1.0, corner, push)
        close(out[:, :, :-3, :-3], images[:, :, 2:-1, 2:-1])


def test_elastic_is_affine_through_the_three_corners():
    """Without noise, the pixel at a corner of the inner square moves as that corner does."""
    shifts = np.zeros((3, 1, 2))
    shifts[1] = (0.0, -1.0)  # the corner at (+q, -q) takes its colour from one pixel further left
    draws = iter([shifts, np.zeros((1, 2, 15, 15))])
    rng = SimpleNamespace(uniform=lambda low, high, size: next(draws))
    x = torch.arange(15.0).expand(1, 3, 15, 15)  # a pixel's colour is its column
    out = corruptions._elastic(x, 0, 1.0, 1.0, rng)[0, 0]
    middle, q = 7, 5
    assert out[middle + q, middle + q] == pytest.approx(middle + q, abs=1e-4)
    assert out[middle - q, middle - q] == pytest.approx(middle - q, abs=1e-4)
    assert out[middle + q, middle - q] == pytest.approx(middle - q - 1, abs=1e-4)


@pytest.mark.parametrize("sigma", [0.0, 0.7, 2.0, 30.0])
def test_smoothing_is_the_gaussian_filter(sigma):
    row = generator(5).random(9)
    smooth = corruptions._smoothing(9, sigma).double().numpy() @ row
    wanted = gaussian_filter1d(row, sigma, mode="reflect", truncate=3) if sigma else row
    np.testing.assert_allclose(smooth, wanted, atol=1e-6)


def test_pixelate_averages_areas():
    quarters = corruptions._areas(2, 8)
    assert quarters.tolist() == [[0.25] * 4 + [0] * 4, [0] * 4 + [0.25] * 4]
    assert corruptions._areas(5, 8).sum(1).tolist() == pytest.approx([1] * 5)
    out = corrupt(photos(64), "pixelate", 5, generator(0))  # 16 cells of 4 pixels
    cells = out.unflatten(3, (16, 4)).unflatten(2, (16, 4))
    assert (cells - cells[:, :, :, :1, :, :1]).abs().max() < 1e-5


@pytest.mark.parametrize(("name", "severity"), [("fog", 1), ("jpeg", 0), ("jpeg", 6)])
def test_unknown_ones_are_refused(name, severity):
    with pytest.raises(ValueError, match="choose of gaussian_noise, shot_noise"):
        corrupt(photos(), name, severity, generator(0))
