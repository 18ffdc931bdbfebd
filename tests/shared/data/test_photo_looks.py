"""Views of one photo in uint8: equal to the reference's operations but for rounding."""

from dataclasses import replace

import pytest
import torch

from shared.config.sections import Augmentation
from shared.data import augment
from shared.data.photo_looks import look_of_photo, looks_of
from shared.runtime.randomness import generator

PHOTOS = Augmentation(blur_sigma_per="image")
CASES = {
    "photos": PHOTOS,
    "colours": replace(PHOTOS, blur=0.0, grayscale=0.0, jitter=1.0),
    "strong": replace(PHOTOS, color_strength=1.25, jitter=1.0),
    "additive": replace(PHOTOS, brightness="additive", jitter=1.0),
    "grey": replace(PHOTOS, grayscale=1.0, blur=1.0),
    "blur": replace(PHOTOS, color_strength=0.0, blur=1.0),
    "flip": replace(PHOTOS, color_strength=0.0, blur=0.0),
    "batch": Augmentation(blur=1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_view_is_off_by_one_grey_level_at_most(name):
    augmentation = CASES[name]
    # at 160 pixels the reference's blur has more taps than matter
    count, side = (8, 160) if augmentation.blur else (24, 40)
    random = torch.Generator().manual_seed(1)
    crops = torch.randint(0, 256, (count, 3, side, side), generator=random).to(torch.uint8)
    crops[:3] = torch.tensor([0, 255, 7], dtype=torch.uint8).view(3, 1, 1, 1)  # black, white, grey
    crops[3, 1] = 0  # colours without green
    draws = augment.draw(augmentation, generator(0, name), count)
    looks, shares = looks_of(draws), []
    for i, crop in enumerate(crops.split(1)):
        before = crop.clone()
        crop = crop.contiguous(memory_format=torch.channels_last) if i % 2 else crop
        view = look_of_photo(augmentation, crop, looks[i])
        assert view.shape == crop.shape
        assert view.dtype == torch.uint8
        assert torch.equal(crop, before)  # the photo's other view is cut from the same pixels
        exact = (augment.apply(augmentation, crop, draws[i : i + 1]) * 255 + 0.5).to(torch.uint8)
        off = (view.int() - exact.int()).abs()
        assert off.max() <= 1
        shares.append((off > 0).float().mean())
    assert torch.stack(shares).mean() < 0.01
