"""Random views of images: draw, then apply.

`draw_boxes` and `draw` make one row of parameters per image from a NumPy generator; `crop_resize`
and `apply` turn images and parameters into a view, without chance and on any device. A generator
made from (seed, stage, step) and used for the *global* batch makes a view a function of those
numbers and of the image's place in the batch: each process draws for all and slices its rows.

    rng = np.random.default_rng([seed, step, view])
    boxes = draw_boxes(policy, rng, heights, widths)  # (B, 4)
    draws = draw(policy, rng, len(boxes))
    views = apply(policy, crop_resize(images, boxes[mine], size, policy.antialias), draws[mine])

Cropping is apart from the rest because large photos are cropped one by one where they are decoded,
and everything else runs on the batch, on the device.
Source: SimCLRv2, appendix A, and "tf2/data_util.py".
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from shared.config.schema import Augmentation
from shared.data import image_ops as ops

MAX_ATTEMPTS = 100  # draws of a box before the whole image is taken
LARGE = 2**15  # on CPU, images of more values are jittered one by one: each fits into the cache
# Half-widths of the jitter at color_strength 1: brightness, contrast, saturation, hue.
JITTER_RANGES = np.array([0.8, 0.8, 0.8, 0.2])
BRIGHTNESS = {"multiplicative": ops.adjust_brightness, "additive": ops.shift_brightness}


@dataclass(frozen=True)
class Draws:
    """What was drawn for each image of a batch, crop excepted; ``draws[rows]`` takes some rows.

    They stay on the CPU: they are small, and as the rows that an operation touches are chosen
    from them there, a GPU never has to be waited for.

    Args:
        flip: (B,) bool.
        angle: (B,) float32, degrees.
        shear: (B,) float32, degrees.
        scale: (B, 2) float32, width and height of the warped window, as a share of the side.
        shift: (B, 2) float32, of its middle to the right and down, likewise.
        jitter: (B,) bool, whether the four operations of ``order`` take place.
        order: (B, 4) int64, a permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue.
        factors: (B, 4) float32, for brightness, contrast, saturation, hue.
        grayscale: (B,) bool.
        blur: (B,) bool.
        sigma: (B,) float32, pixels.
    """

    flip: Tensor
    angle: Tensor
    shear: Tensor
    scale: Tensor
    shift: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    grayscale: Tensor
    blur: Tensor
    sigma: Tensor

    def __getitem__(self, rows: slice | Tensor) -> "Draws":
        return Draws(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def __len__(self) -> int:
        return len(self.flip)


# ---------------------------------------------------------------------------------- draw
def draw_boxes(
    policy: Augmentation,
    rng: np.random.Generator,
    heights: Sequence[int] | np.ndarray,
    widths: Sequence[int] | np.ndarray,
) -> Tensor:
    """Draw one crop per image, for square views: ``tf.image.sample_distorted_bounding_box``.

    Not torchvision's RandomResizedCrop: the aspect ratio is uniform (not its logarithm), and so is
    the height between those of the smallest and the largest area (not the area).

    Args:
        policy: its ``crop_*`` numbers are used.
        rng: the source of chance; how much is taken from it depends on the sizes.
        heights: (B,) image heights in pixels.
        widths: (B,) image widths in pixels.

    Returns:
        (B, 4) int64 of y, x, height, width in pixels.
    """
    heights, widths = np.asarray(heights), np.asarray(widths)
    boxes = np.stack([0 * heights, 0 * widths, heights, widths], axis=1)  # if no draw succeeds
    pending = np.arange(len(boxes) if policy.crop_area != (1, 1) else 0)
    for _ in range(MAX_ATTEMPTS):
        if len(pending) == 0:
            break
        drawn, accepted = _draw_boxes_once(policy, rng, heights[pending], widths[pending])
        boxes[pending[accepted]] = drawn[accepted]
        pending = pending[~accepted]
    return torch.from_numpy(boxes.astype(np.int64))


def _draw_boxes_once(
    policy: Augmentation, rng: np.random.Generator, H: np.ndarray, W: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One attempt per image: boxes (B, 4) of y, x, height, width, and which are good (B,)."""
    min_area, max_area = policy.crop_area[0] * H * W, policy.crop_area[1] * H * W
    aspect = rng.uniform(*policy.crop_aspect, len(H))  # width / height
    widest = np.floor((W + 0.5) / aspect)  # height at which the rounded width just fits
    highest = np.minimum(np.rint(np.sqrt(max_area / aspect)), np.minimum(widest, H))
    lowest = np.minimum(np.rint(np.sqrt(min_area / aspect)), highest)
    h = rng.integers(lowest.astype(np.int64), highest.astype(np.int64), endpoint=True)
    # Rounding may have pushed the area out of its range: by one row it comes back.
    h = h + (h * np.rint(h * aspect) < min_area)
    h = h - (h * np.rint(h * aspect) > max_area)
    w = np.rint(h * aspect).astype(np.int64)
    area = h * w
    accepted = (min_area <= area) & (area <= max_area) & (area > 0) & (h <= H) & (w <= W)
    accepted &= area >= policy.crop_min_covered * H * W
    # The upper end is left out, so the last possible offset is never drawn: as in TensorFlow.
    y, x = rng.integers(0, np.maximum(H - h, 1)), rng.integers(0, np.maximum(W - w, 1))
    return np.stack([y, x, h, w], axis=1), accepted


def draw(policy: Augmentation, rng: np.random.Generator, batch_size: int) -> Draws:
    """Draw everything but the crop for a (global) batch; "data_util.random_color_jitter".

    The same amount is taken from ``rng`` whatever the policy.
    """
    B = batch_size
    reach = policy.color_strength * JITTER_RANGES
    low, high = 1 - reach, 1 + reach  # brightness, contrast, saturation: factors
    low[3], high[3] = -reach[3], reach[3]  # hue: a shift
    if policy.brightness == "additive":
        low[0], high[0] = -reach[0], reach[0]
    sigma = rng.uniform(*policy.blur_sigma, B)
    if policy.blur_sigma_per == "batch":
        sigma[:] = sigma[0]
    area, aspect = (
        rng.uniform(*policy.zoom_area, B),
        rng.uniform(np.log(policy.crop_aspect[0]), np.log(policy.crop_aspect[1]), B),
    )
    # A window of the whole area has no room for another shape.
    aspect = np.exp(aspect) if policy.zoom_area != (1, 1) else np.ones(B)
    scale = np.sqrt(np.stack([area * aspect, area / aspect], axis=1))  # (B, 2)
    room = np.maximum(1 - scale, 0) / 2 + policy.translate
    return Draws(
        flip=torch.from_numpy(rng.random(B) < policy.flip),
        angle=torch.from_numpy(rng.uniform(-policy.rotate, policy.rotate, B)).float(),
        shear=torch.from_numpy(rng.uniform(-policy.shear, policy.shear, B)).float(),
        scale=torch.from_numpy(scale).float(),
        shift=torch.from_numpy(rng.uniform(-room, room)).float(),
        jitter=torch.from_numpy(rng.random(B) < policy.jitter),
        order=torch.from_numpy(rng.random((B, 4)).argsort(axis=1)),
        factors=torch.from_numpy(rng.uniform(low, high, (B, 4))).float(),
        grayscale=torch.from_numpy(rng.random(B) < policy.grayscale),
        blur=torch.from_numpy(rng.random(B) < policy.blur),
        sigma=torch.from_numpy(sigma).float(),
    )


# ---------------------------------------------------------------------------------- apply
def apply(policy: Augmentation, images: Tensor, draws: Draws) -> Tensor:
    """Turn cropped images into views: flip, warp, colour, blur, in this order.

    Args:
        policy: as given to `draw`.
        images: (B, 3, S, S), uint8 in 0..255 or float in [0, 1] or a little beyond.
        draws: B rows.

    Returns:
        (B, 3, S, S) float32 in [0, 1], on the device of the images.
    """
    images = ops.to_float(images)  # a copy, so in place from here
    device = images.device
    _change_(images, draws.flip, lambda x: x.flip(-1))
    if policy.rotate or policy.shear or policy.translate or policy.zoom_area != (1, 1):
        warp = (draws.angle, draws.shear, draws.scale, draws.shift)
        images = ops.affine_warp(images, *(ops.upload(values, device) for values in warp))
    if policy.color_strength > 0:
        color_jitter_(images, draws, policy.brightness)
    images.clamp_(0, 1)
    if policy.blur > 0 and draws.blur.any():
        per_batch = policy.blur_sigma_per == "batch"
        sigma = draws.sigma[:1] if per_batch else draws.sigma[draws.blur]
        radius = images.shape[-1] // 10 // 2  # 224 pixels: 23 taps
        widest = sigma.item() if per_batch else policy.blur_sigma[1]
        radius = min(radius, math.ceil(ops.GAUSSIAN_REACH * widest))
        sigma = ops.upload(sigma, device)
        _change_(images, draws.blur, lambda x: ops.gaussian_blur(x, sigma, radius).clamp_(0, 1))
    return images


def color_jitter_(images: Tensor, draws: Draws, brightness: str = "multiplicative") -> Tensor:
    """Jitter in each image's own order, then remove the colour where drawn; in place.

    The jittered images are clipped to [0, 1] after each of the four operations, the others not.

    Args:
        images: (B, 3, H, W) float.
        draws: B rows.
        brightness: "multiplicative" or "additive".

    Returns:
        ``images``.
    """
    device = images.device
    operations = (
        BRIGHTNESS[brightness],
        ops.adjust_contrast,
        ops.adjust_saturation,
        ops.adjust_hue,
    )
    rows = draws.jitter.nonzero().squeeze(1)  # (J,)
    if device.type == "cpu" and images[0].numel() > LARGE:
        for row, order in zip(rows.tolist(), draws.order[rows].tolist(), strict=True):
            image, factors = images[row : row + 1], draws.factors[row]
            for k in order:
                operations[k](image, factors[k], out=image).clamp_(0, 1)
    else:
        # In each slot of the order, every operation runs once, on the images whose turn it is:
        # they are sorted by operation from slot to slot.
        jittered = images.index_select(0, ops.upload(rows, device))
        for slot in range(4):
            sorting = draws.order[rows, slot].argsort()
            rows = rows[sorting]
            counts = draws.order[rows, slot].bincount(minlength=4).tolist()
            jittered = jittered.index_select(0, ops.upload(sorting, device))
            factors = ops.upload(draws.factors[rows], device).split(counts)  # 4 of (J_k, 4)
            for k, part in enumerate(jittered.split(counts)):
                operations[k](part, factors[k][:, k], out=part).clamp_(0, 1)
        images[ops.upload(rows, device)] = jittered
    _change_(images, draws.grayscale, ops.grayscale)
    return images


def _change_(images: Tensor, where: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Change in place the images where the (B,) mask says so, and copy no others."""
    rows = where.nonzero().squeeze(1)
    if len(rows) == len(images) == 1:  # a photo, in a worker
        images.copy_(change(images))
    elif len(rows):
        rows = ops.upload(rows, images.device)
        images[rows] = change(images.index_select(0, rows))
