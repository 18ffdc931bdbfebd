"""Colours and blur of one photo, as `augment.apply` makes them, in about half the time.

Values stay in 0 .. 255, as they are in the crop and in the view, so nothing is scaled there and
back. What would change no pixel is left out, and so are taps of the blur that no grey level depends
on. A value is off by one grey level at most, and few are. The crop must be uint8, as
`image_ops.crop_resize_photo` makes it: the reference's may leave 0 .. 1, and takes the reference's
way.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.config.sections import Augmentation
from shared.data import image_ops as ops
from shared.data.augment import Draws

BEYOND = 1e-3  # of the blur's weight may be left out, far from the middle: a quarter of a level
TINY = 1e-6  # keeps grey pixels from dividing by zero
HUES = torch.tensor([0.0, 2.0, -2.0]).view(3, 1, 1)  # of red, green, blue: sixths of the circle
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # as `Draws.order` counts them


class Look(NamedTuple):
    """A row of `Draws` without what warps, in Python's numbers: to ask tensors takes too long."""

    flip: bool
    jitter: bool
    order: list[int]
    factors: list[float]
    grayscale: bool
    blur: bool
    sigma: float


def looks_of(draws: Draws) -> list[Look]:
    """All rows."""
    columns = (getattr(draws, name).tolist() for name in Look._fields)
    return [Look(*row) for row in zip(*columns, strict=True)]


def look_of_photo(augmentation: Augmentation, crop: Tensor, look: Look) -> Tensor:
    """Flip, colour and blur one crop.

    Args:
        augmentation: without a warp (``rotate``, ``shear``, ``translate``, ``zoom_area``).
        crop: (1, 3, S, S) uint8, on the CPU.
        look: what was drawn for it.

    Returns:
        (1, 3, S, S) uint8.
    """
    image = crop[0].contiguous()  # (3, S, S)
    if look.flip:
        image = image.flip(-1)
    coloured = augmentation.color_strength > 0
    jitter, grey = coloured and look.jitter, coloured and look.grayscale
    blur = augmentation.blur > 0 and look.blur
    if not (jitter or grey or blur):
        return image[None]
    view, white = image.float(), 255.0
    if jitter:
        white = _jitter_(view, look.order, look.factors, augmentation.brightness)
    if grey:
        red, green, blue = (w * plane for w, plane in zip(ops.GRAY_WEIGHTS, view, strict=True))
        view = red.add_(green).add_(blue)[None]  # (1, S, S)
    if blur:
        _blur_(view, look.sigma)
    half = view.new_tensor(0.5)  # to round
    view = ops.floor_to_uint8(torch.add(half, view, alpha=255 / white, out=view))
    return view.expand(1, 3, -1, -1)


def _jitter_(view: Tensor, order: list[int], factors: list[float], brightness: str) -> float:
    """Jitter the colours of (3, S, S), in place; the result is the value of white, at first 255.

    All operations keep ratios, so a factor of brightness need not be multiplied: white changes.
    """
    white = 255.0
    for k in order:
        factor = factors[k]
        if k == BRIGHTNESS and brightness == "multiplicative":
            white /= max(factor, TINY)
            if factor > 1:
                view.clamp_(max=white)
        elif k == BRIGHTNESS:
            view.add_(factor * white).clamp_(0, white)
        elif k == CONTRAST:
            means = view.mean((1, 2), keepdim=True).mul_(1 - factor)  # (3, 1, 1)
            torch.add(means, view, alpha=factor, out=view)
            if factor > 1:  # below, values move towards the mean
                view.clamp_(0, white)
        elif k == SATURATION:
            _saturation_(view, factor)
        else:
            _hue_(view, factor)
    return white


def _saturation_(view: Tensor, factor: float) -> None:
    """`image_ops.adjust_saturation` of one image (3, S, S) of values >= 0, in place."""
    red, green, blue = view
    high = torch.maximum(red, green)
    torch.maximum(high, blue, out=high)
    ratio: float | Tensor = factor
    if factor > 1:
        low = torch.minimum(red, green)
        torch.minimum(low, blue, out=low)
        span = torch.sub(high, low, out=low).clamp_min_(TINY)
        ratio = torch.div(high, span, out=span).clamp_max_(factor)
    torch.lerp(high, view, ratio, out=view)


def _hue_(view: Tensor, shift: float) -> None:
    """`image_ops.adjust_hue` of one image (3, S, S), in place."""
    red, green, blue = view
    high, low = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(high, blue, out=high)
    torch.minimum(low, blue, out=low)
    span = torch.sub(high, low, out=high).clamp_min_(TINY)
    side = green - blue
    hue = (green + blue).sub_(red).sub_(low)
    torch.addcdiv(hue.new_ones(()), hue, span, out=hue).copysign_(side)
    fullness = torch.sub(hue, HUES - 6 * shift, out=view).abs_().sub_(3).abs_().clamp_(1, 2)
    torch.addcmul(low.sub_(span), fullness, span, out=view)


def _blur_(view: Tensor, sigma: float) -> None:
    """`image_ops.gaussian_blur` of one image (C, S, S), in place, with the taps that matter."""
    side = view.shape[-1]
    middle, *others = _taps(sigma, side // 10 // 2)
    if not others:
        return
    radius, pixels = len(others), side * side
    down = view.new_zeros(pixels + 2 * radius * side)  # rows of zeros above and below
    across = view.new_zeros(side, side + 2 * radius)
    for plane in view:  # one at a time, to stay in the cache
        flat = plane.view(-1)
        down[radius * side :][:pixels] = flat
        flat.mul_(middle)
        for k, tap in enumerate(others, 1):
            flat.add_(down[(radius - k) * side :][:pixels], alpha=tap)
            flat.add_(down[(radius + k) * side :][:pixels], alpha=tap)
        across[:, radius : radius + side] = plane
        plane.mul_(middle)
        for k, tap in enumerate(others, 1):
            plane.add_(across[:, radius - k : radius - k + side], alpha=tap)
            plane.add_(across[:, radius + k : radius + k + side], alpha=tap)


def _taps(sigma: float, radius: int) -> list[float]:
    """Weights of the middle pixel and of those to one side, without those that do not matter."""
    taps = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    beyond = 2 * (taps.sum() - taps.cumsum()) / (2 * taps.sum() - taps[0])
    taps = taps[: 1 + np.count_nonzero(beyond > BEYOND)]
    return (taps / (2 * taps.sum() - taps[0])).tolist()
