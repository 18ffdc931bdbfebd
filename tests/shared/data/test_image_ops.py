"""Image operations: the recorded numbers of the authors' code, and what must always hold."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.data import image_ops as ops
from shared.data.image_ops import center_crop, crop_resize
from shared.data.images import rgb_pixels
from tests.support.recorded_images import ATOL, cases, photos, to_numpy, to_torch


@pytest.mark.parametrize("case", [c for c in cases("color/", "") if not c.endswith("/in")])
def test_colour_operation(recorded, case):
    arrays, _ = recorded
    values, name = case.split("/")
    images = to_torch(arrays[f"color/{values}/in"])
    if name == "grayscale":
        actual = ops.grayscale(images)
    else:
        operation, amount = name.split("_")
        actual = getattr(ops, f"adjust_{operation}")(images, torch.tensor([float(amount)]))
    np.testing.assert_allclose(to_numpy(actual)[0], arrays[f"color/{case}"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("case", cases("blur/", "/in"))
def test_blur(recorded, case):
    arrays, meta = recorded
    images, case_meta = to_torch(arrays[f"blur/{case}/in"]), meta[f"blur/{case}"]
    sigma = torch.full((len(images),), case_meta["sigma"])
    actual = ops.gaussian_blur(images, sigma, radius=case_meta["actual_taps"] // 2)
    expected = arrays[f"blur/{case}/out"].reshape(to_numpy(actual).shape)
    np.testing.assert_allclose(to_numpy(actual), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("case", cases("resize/", "/out_strided"))
def test_crop_resize(recorded, case):
    arrays, meta = recorded
    case_meta = meta[f"resize/{case}"]
    photo, stride = to_torch(arrays[case_meta["image"]]), case_meta["stride"]
    boxes = torch.tensor([case_meta["box_y_x_h_w"]])
    actual = to_numpy(crop_resize(photo, boxes, tuple(case_meta["out"])))[0]
    expected = arrays[f"resize/{case}/out_strided"]
    np.testing.assert_allclose(actual[::stride, ::stride], expected, rtol=0, atol=ATOL)
    summary = [actual.min(), actual.max(), actual.mean(dtype=np.float64)]
    np.testing.assert_allclose(summary, arrays[f"resize/{case}/min_max_mean"], atol=ATOL)


@pytest.mark.parametrize("case", cases("center_crop/", "/unclipped_strided"))
def test_center_crop(recorded, case):
    arrays, meta = recorded
    case_meta, key = meta[f"center_crop/{case}"], f"center_crop/{case}"
    photo, stride = to_torch(arrays[case_meta["image"]]), case_meta["stride"]
    actual = to_numpy(center_crop(photo, tuple(case_meta["out"])))[0]
    expected = arrays[f"{key}/unclipped_strided"].clip(0, 1)
    np.testing.assert_allclose(actual[::stride, ::stride], expected, rtol=0, atol=ATOL)
    np.testing.assert_allclose(actual.mean((1, 2)), arrays[f"{key}/final_row_mean"], atol=ATOL)


def test_center_crop_leaves_small_images_as_they_are():
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(center_crop(images, 32), images / 255, rtol=0, atol=1e-6)
    assert not torch.equal(center_crop(images, 32, proportion=0.875), images / 255)


def test_crop_resize_gives_each_image_its_own_box():
    images = photos(3, 20, 30)
    boxes = torch.tensor([[0, 0, 20, 30], [5, 10, 7, 9], [12, 3, 8, 20]])
    actual = crop_resize(images, boxes, 16)
    for i in range(3):
        alone = crop_resize(images[i : i + 1], boxes[i : i + 1], 16)
        torch.testing.assert_close(actual[i : i + 1], alone, rtol=0, atol=ATOL)
        y, x, h, w = boxes[i].tolist()  # nothing from outside the box comes in
        cut = crop_resize(
            images[i : i + 1, :, y : y + h, x : x + w], torch.tensor([[0, 0, h, w]]), 16
        )
        torch.testing.assert_close(alone, cut, rtol=0, atol=ATOL)


@pytest.mark.parametrize("size", [(11, 64), (50, 17)])
def test_antialias_is_the_usual_one(size):
    images = photos(2, 40, 48)
    actual = crop_resize(images, torch.tensor([[0, 0, 40, 48]]), size, antialias=True)
    expected = F.interpolate(images, size, mode="bicubic", antialias=True)
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=4e-3
    )  # positions are rounded to 1/1024
    assert (crop_resize(images, torch.tensor([[0, 0, 40, 48]]), size) - expected).abs().max() > 0.02


def test_photos_are_cropped_in_integers_as_in_floats():
    image = (photos(1, 150, 200) * 255).round().byte()
    for box in ([0, 0, 150, 200], [20, 30, 100, 90], [100, 150, 20, 25]):
        box = torch.tensor([box])
        actual = ops.crop_resize_photo(image, box, 64)
        assert actual.dtype == torch.uint8
        expected = crop_resize(image, box, 64, antialias=True).clamp(0, 1) * 255
        difference = (actual - expected).abs()
        assert difference.mean() < 0.5
        assert difference.flatten().quantile(0.999) < 1.5


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 11), st.floats(0.1, 3))
@settings(max_examples=20, deadline=None)
def test_blur_is_the_convolution_at_every_size(H, W, radius, sigma):
    images = torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(H))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).view(1, 1, 1, -1)
    expected = F.conv2d(images.view(6, 1, H, W), taps, padding=(0, radius))
    expected = F.conv2d(expected, taps.mT, padding=(radius, 0)).view(2, 3, H, W)
    actual = ops.gaussian_blur(images, torch.full((2,), sigma), radius)
    torch.testing.assert_close(actual, expected, rtol=0, atol=ATOL)


def test_operations_may_write_over_their_images():
    images = photos(4)
    for name in (
        "adjust_brightness",
        "shift_brightness",
        "adjust_contrast",
        "adjust_saturation",
        "adjust_hue",
    ):
        operation, amount = getattr(ops, name), torch.tensor([0.1, 0.2, 0.3, -0.1])
        before, expected = images.clone(), operation(images, amount)
        assert torch.equal(images, before)
        assert operation(before, amount, out=before) is before
        assert torch.equal(before, expected)


def test_gray_pixels_survive_saturation_and_hue():
    gray = torch.cat(
        [torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8), torch.rand(1, 1, 8, 8) - 0.2]
    )
    gray = gray.expand(3, 3, 8, 8)
    for factor in (0.0, 0.5, 1.8):
        actual = ops.adjust_saturation(gray, torch.full((3,), factor))
        torch.testing.assert_close(actual, gray, rtol=0, atol=ATOL)
    torch.testing.assert_close(ops.adjust_hue(gray, torch.full((3,), 0.2)), gray, rtol=0, atol=ATOL)
    # Where the resize overshot below black, S counts as 0 and all channels become V.
    below = torch.tensor([-0.1, -0.3, -0.2]).view(1, 3, 1, 1)
    actual = ops.adjust_saturation(below, torch.tensor([1.8]))
    torch.testing.assert_close(actual, torch.full((1, 3, 1, 1), -0.1))


@given(st.floats(-1 / 3, 1 / 3), st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_hue_turns_back_and_keeps_the_extremes(shift, seed):
    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    shifts = torch.tensor([shift, shift])
    turned = ops.adjust_hue(images, shifts)
    torch.testing.assert_close(turned.amax(1), images.amax(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(turned.amin(1), images.amin(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(ops.adjust_hue(turned, -shifts), images, rtol=0, atol=1e-4)


def warp(images, angle=0.0, shear=0.0, scale=(1.0, 1.0), shift=(0.0, 0.0)):
    rows = [torch.tensor([value] * len(images)) for value in (angle, shear, scale, shift)]
    return ops.affine_warp(images, *rows)


def test_affine_warp():
    images = photos(2, 12, 12)
    exactly = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(warp(images), images, **exactly)
    torch.testing.assert_close(warp(images, 90.0), images.rot90(1, (2, 3)), **exactly)
    torch.testing.assert_close(warp(images, -90.0), images.rot90(-1, (2, 3)), **exactly)
    line = torch.zeros(1, 3, 9, 9)
    line[..., 4] = 1  # vertical, through the middle
    leaning = warp(line, shear=45.0)[0, 0]
    assert torch.equal(leaning.argmax(1), torch.arange(8, -1, -1))


def test_affine_warp_shows_a_window():
    images = photos(2, 12, 12)
    # the middle third, three times as large: every third output pixel lies on an input pixel
    window = warp(images, scale=(1 / 3, 1 / 3))
    torch.testing.assert_close(window[..., 1::3, 1::3], images[..., 4:8, 4:8], rtol=0, atol=1e-5)
    # a window two pixels further right and one further down, black where it leaves the image
    moved = warp(images, shift=(2 / 12, 1 / 12))
    torch.testing.assert_close(moved[..., :-1, :-2], images[..., 1:, 2:], rtol=0, atol=1e-5)
    assert moved[..., -1, :].abs().max() < 1e-5
    assert moved[..., :, -2:].abs().max() < 1e-5


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_the_whole_image_at_its_own_size_is_the_image(H, W, seed):
    images = torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(seed))
    for antialias in (False, True):
        actual = crop_resize(images, torch.tensor([[0, 0, H, W]]), (H, W), antialias)
        torch.testing.assert_close(actual, images, rtol=0, atol=1e-6)


def test_grey_levels_are_divided_as_torch_divides_them():
    levels = torch.arange(256).to(torch.uint8)
    strided = levels.view(4, 8, 8).permute(2, 0, 1)
    for images in (levels, strided, levels.view(2, 2, 8, 8).flip(-1)[:, :1], levels[:0]):
        assert torch.equal(ops.to_unit(images), images.float() / 255)


@pytest.mark.parametrize("shape", [(300, 200), (41, 97), (20, 30)])
@pytest.mark.parametrize(("size", "share"), [(32, 1.0), (48, 0.875)])
def test_an_antialiased_photo_is_shown_as_pillow_shows_it(shape, size, share):
    """So that the lines in README that serve an ONNX file see the same pixels."""
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(photo)
    side = round(share * min(shape))
    left, top = ((length - side + 1) // 2 for length in image.size)
    cut = image.crop((left, top, left + side, top + side))
    expected = np.array(cut.resize((size, size), Image.BICUBIC))
    for pixels in (rgb_pixels(image), torch.from_numpy(photo).permute(2, 0, 1).contiguous()):
        shown = ops.center_crop_photo(pixels[None], size, True)
        assert np.array_equal((255 * shown[0]).round().permute(1, 2, 0).numpy(), expected)
