"""Colour spaces against scikit-image, the standard library and recorded values."""

import colorsys

import numpy as np
import pytest
import torch

from shared.data.colour_space import hue_and_chroma, lab_to_rgb, rgb_to_lab

LEVELS = torch.linspace(0, 1, 18)
EVERY = torch.cartesian_prod(LEVELS, LEVELS, LEVELS).T.view(1, 3, -1, 1)  # (1, 3, 5832, 1)


def test_lab_is_that_of_scikit_image():
    color = pytest.importorskip(
        "skimage.color", reason="scikit-image is not installed: pip install -e '.[test]'"
    )
    pixels = EVERY[0, :, :, 0].T.double().numpy()
    lab = rgb_to_lab(EVERY)[0, :, :, 0].T
    assert np.abs(lab.numpy() - color.rgb2lab(pixels)).max() < 1e-3
    shown = lab_to_rgb(lab.T[None, :, :, None])[0, :, :, 0].T
    assert np.abs(shown.numpy() - color.lab2rgb(lab.double().numpy())).max() < 1e-3
    impossible = torch.tensor([[40.0, 90.0, -100.0], [90, -100, 20], [60, 20, 100]])
    shown = lab_to_rgb(impossible.T[None, :, :, None])[0, :, :, 0].T
    with pytest.warns(UserWarning, match="negative Z values"):
        theirs = color.lab2rgb(np.array([[60.0, 20.0, 100.0], [5, 0, 80]]))[0]
    assert np.abs(shown[2].numpy() - theirs).max() < 1e-3
    assert np.abs(shown[:2].numpy() - color.lab2rgb(impossible[:2].numpy())).max() < 1e-3
    hue, _ = hue_and_chroma(EVERY)
    assert np.abs(hue.flatten().numpy() - color.rgb2hsv(pixels)[:, 0]).max() < 1e-5


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [  # as tables of CIELAB under D65 have them
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.74, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((2, -1, 0), (53.24, 80.09, 67.20)),  # clipped
    ],
)
def test_lab_of_known_colours(rgb, lab):
    converted = rgb_to_lab(torch.tensor(rgb).view(1, 3, 1, 1)).flatten()
    assert converted.tolist() == pytest.approx(lab, abs=0.02)


def test_lab_and_back_in_both_layouts_and_from_bfloat16():
    assert torch.allclose(lab_to_rgb(rgb_to_lab(EVERY)), EVERY, atol=1e-4)
    images = torch.rand(2, 3, 5, 7)
    last = images.to(memory_format=torch.channels_last)
    assert torch.allclose(rgb_to_lab(last), rgb_to_lab(images), atol=1e-4)
    assert rgb_to_lab(images.bfloat16()).dtype == torch.float32


def test_hue_is_that_of_the_standard_library():
    hue, chroma = hue_and_chroma(EVERY)
    for i in range(0, EVERY.shape[2], 7):
        pixel = EVERY[0, :, i, 0].tolist()
        assert hue[0, 0, i, 0].item() == pytest.approx(colorsys.rgb_to_hsv(*pixel)[0], abs=1e-5)
        assert chroma[0, 0, i, 0].item() == pytest.approx(max(pixel) - min(pixel))
    almost_red = torch.tensor([1.0, 0.0, 1e-9]).view(1, 3, 1, 1)
    assert hue_and_chroma(almost_red)[0].item() < 1
