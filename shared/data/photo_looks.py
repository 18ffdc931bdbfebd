"""Colours and blur of one photo, as `augment.apply` makes them, in about half the time.

Values stay in 0 .. 255, as they are in the crop and in the view, so nothing is scaled there and
back. What would change no pixel is left out. Operations run plane by plane, to stay in the cache.
The blur leaves out taps that no grey level depends on. A value is off by one grey level at most,
and few are. The crop must be uint8, as `image_ops.crop_resize_photo` makes it: the reference's may
leave 0 .. 1, and takes the reference's way.
"""

import math

import numpy as np
import torch
from torch import Tensor

from shared.config.schema import Augmentation
from shared.data import image_ops as ops
from shared.data.augment import Draws

REACH = 3.3  # standard deviations of the blur that matter: 0.1% lies beyond
TINY = 1e-6  # keeps grey pixels from dividing by zero
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # as `Draws.order` counts them


def look_of_photo(augmentation: Augmentation, crop: Tensor, draws: Draws) -> Tensor:
    """Flip, colour and blur one crop.

    Args:
        augmentation: without a warp (``rotate``, ``shear``, ``translate``, ``zoom_area``).
        crop: (1, 3, S, S) uint8, on the CPU.
        draws: one row.

    Returns:
        (1, 3, S, S) uint8.
    """
    image = crop[0].contiguous()  # (3, S, S)
    if draws.flip:
        image = image.flip(-1)
    coloured = augmentation.color_strength > 0
    jitter, grey = coloured and bool(draws.jitter), coloured and bool(draws.grayscale)
    blur = augmentation.blur > 0 and bool(draws.blur)
    if not (jitter or grey or blur):
        return image[None]
    view, white = image.float(), 255.0
    if jitter:
        order, factors = draws.order[0].tolist(), draws.factors[0].tolist()
        white = _jitter_(view, order, factors, augmentation.brightness)
    if grey:
        red, green, blue = (w * plane for w, plane in zip(ops.GRAY_WEIGHTS, view, strict=True))
        view = red.add_(green).add_(blue)[None]  # (1, S, S)
    if blur:
        view = _blurred(view, draws.sigma.item())
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
            for plane, mean in zip(view, view.mean((1, 2)), strict=True):
                torch.add(mean * (1 - factor), plane, alpha=factor, out=plane)
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
    if factor > 1:
        low = torch.minimum(red, green)
        torch.minimum(low, blue, out=low)
        span = torch.sub(high, low, out=low).clamp_min_(TINY)
        ratio = torch.div(high, span, out=span).clamp_max_(factor)
        for plane in view:
            torch.lerp(high, plane, ratio, out=plane)
    else:
        for plane in view:
            torch.lerp(high, plane, factor, out=plane)


def _hue_(view: Tensor, shift: float) -> None:
    """`image_ops.adjust_hue` of one image (3, S, S), in place."""
    red, green, blue = view
    high, low = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(high, blue, out=high)
    torch.minimum(low, blue, out=low)
    span = torch.sub(high, low, out=high)
    hue = (green + blue).sub_(red).sub_(low).div_(span.clamp_min(TINY)).add_(1)
    side = green - blue
    hue.copysign_(side).add_(6 * shift)
    empty = low.sub_(span)
    fullness = side
    for plane, own in zip(view, (0, 2, -2), strict=True):
        torch.sub(hue, own, out=fullness).abs_().sub_(3).abs_().clamp_(1, 2)
        torch.addcmul(empty, fullness, span, out=plane)


def _blurred(view: Tensor, sigma: float) -> Tensor:
    """`image_ops.gaussian_blur` of one image (C, S, S), with the taps that matter."""
    side = view.shape[-1]
    radius = min(side // 10 // 2, math.ceil(REACH * sigma))
    taps = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    middle, *others = (taps / (2 * taps.sum() - taps[0])).tolist()
    down = view.new_zeros(side + 2 * radius, side)
    across = view.new_zeros(side, side + 2 * radius)
    inner = slice(radius, radius + side)
    for plane in view:  # one at a time, to stay in the cache
        down[inner] = plane
        between = torch.mul(plane, middle, out=across[:, inner])
        for k, tap in enumerate(others, 1):
            between.add_(down[radius - k : radius - k + side], alpha=tap)
            between.add_(down[radius + k : radius + k + side], alpha=tap)
        torch.mul(between, middle, out=plane)
        for k, tap in enumerate(others, 1):
            plane.add_(across[:, radius - k : radius - k + side], alpha=tap)
            plane.add_(across[:, radius + k : radius + k + side], alpha=tap)
    return view
