"""Random views of images: draw, then apply.

`draw_boxes` and `draw` make one row of parameters per image from a NumPy generator; `crop_resize`
and `apply` turn images and parameters into a view, without chance and on any device. Generators
made from (seed, stage, step, view) make a view a function of those numbers and of the image's row
in the *global* batch, of which each process takes its rows.

    boxes = draw_boxes(augmentation, generator(*key), heights, widths, rows)  # (b, 4)
    draws = draw(augmentation, generator(*other_key), global_batch_size)[rows]
    crops = crop_resize(images, boxes, size)  # (b, 3, S, S)
    views = apply(augmentation, crops, draws)

Cropping is apart from the rest because workers crop large photos one by one, where they decode
them, and everything else runs on the batch, on the device.
Source: SimCLRv2, appendix A, and "tf2/data_util.py".
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.config.sections import Augmentation
from shared.data import image_ops as ops

MAX_ATTEMPTS = 100  # at a crop, before the whole image is taken
MAX_ROWS = 2**32  # of a global batch: so far apart lie the numbers of two attempts
LARGE = 2**15  # on CPU, images of more values are jittered one by one, to fit into the cache
# Half-widths of the jitter at color_strength 1: brightness, contrast, saturation, hue.
JITTER_RANGES = np.array([0.8, 0.8, 0.8, 0.2])
BRIGHTNESS = {"multiplicative": ops.adjust_brightness, "additive": ops.shift_brightness}


@dataclass(frozen=True)
class Draws:
    """What was drawn for each image of a batch, except its crop; ``draws[rows]`` selects rows.

    They stay on the CPU. They are small, and the rows that an operation changes are chosen from
    them there, so nothing has to wait for a GPU.

    Attributes:
        flip: (B,) bool.
        angle: (B,) float32, degrees.
        shear: (B,) float32, degrees.
        scale: (B, 2) float32, width and height of the warped window, as a share of the side.
        shift: (B, 2) float32, of its middle to the right and down, as a share of the side.
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

    @staticmethod
    def joined(parts: "Sequence[Draws]") -> "Draws":
        """Those of several views, one after the other."""
        names = [field.name for field in fields(Draws)]
        return Draws(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def augmentation_for(augment: Augmentation, kind: str) -> Augmentation | None:
    """The part of the augmentation that a stage uses: full, crop (no colour, no blur) or none."""
    if kind == "none":
        return None
    return augment if kind == "full" else replace(augment, color_strength=0.0, blur=0.0)


def warps(augmentation: Augmentation) -> bool:
    """Whether images are rotated, sheared, moved or zoomed in fractions of a pixel."""
    a = augmentation
    return bool(a.rotate or a.shear or a.translate or a.zoom_area != (1, 1))


# ---------------------------------------------------------------------------------- draw
def draw_boxes(
    augmentation: Augmentation,
    rng: np.random.Generator,
    heights: Sequence[int] | np.ndarray,
    widths: Sequence[int] | np.ndarray,
    rows: slice | None = None,
) -> Tensor:
    """Draw one crop per image, for square views: ``tf.image.sample_distorted_bounding_box``.

    Not torchvision's RandomResizedCrop: the aspect ratio is uniform (not its logarithm), and so is
    the height between those of the smallest and the largest area (not the area).

    A crop is a function of the generator's key, the image's row and the image's size, and of no
    other image. So any rows of a global batch can be drawn alone, by a process or a worker.

    Args:
        augmentation: its ``crop_*`` numbers are used.
        rng: fresh from ``shared.runtime.randomness.generator``.
        heights: (b,) image heights in pixels.
        widths: (b,) image widths in pixels.
        rows: the b rows of the global batch that these images are; None: the first ones.

    Returns:
        (b, 4) int64 of y, x, height, width in pixels.
    """
    H, W = np.asarray(heights), np.asarray(widths)
    boxes = np.stack([0 * H, 0 * W, H, W], axis=1)  # if no attempt succeeds
    if augmentation.crop_area != (1, 1):
        pending = np.arange(len(boxes))
        for numbers in _crop_numbers(rng, rows or slice(0, len(boxes))):
            *attempted, accepted = _place(
                augmentation, numbers[pending].T, H[pending], W[pending], np
            )
            boxes[pending[accepted]] = np.stack(attempted, axis=1)[accepted]
            pending = pending[~accepted]
            if not len(pending):
                break
    return torch.from_numpy(boxes.astype(np.int64))


def crop_numbers(rng: np.random.Generator, batch_size: int) -> list[list[float]]:
    """What the first attempt makes the crops of a global batch from: (B, 4), for `place_box`."""
    return next(_crop_numbers(rng, slice(0, batch_size))).tolist()


def _crop_numbers(rng: np.random.Generator, rows: slice) -> Iterator[np.ndarray]:
    """What each attempt makes the crops of these rows from: (b, 4) numbers, uniform in [0, 1).

    The generator counts: its block c, of four numbers, is a function of its key and of c. Row r of
    attempt k is block k * MAX_ROWS + r, so nothing has to be drawn for the other rows.
    """
    blocks = rng.bit_generator
    assert isinstance(blocks, np.random.Philox), "crops need a generator that counts"
    count = rows.stop - rows.start
    blocks.advance(rows.start)
    for _ in range(MAX_ATTEMPTS):
        yield rng.random((count, 4))[:: rows.step]
        blocks.advance(MAX_ROWS - count)


# What `_place` needs of numpy, for plain numbers: of one image they take a fiftieth of the time.
_PLAIN = SimpleNamespace(floor=math.floor, rint=round, sqrt=math.sqrt, minimum=min, maximum=max)


def place_box(
    augmentation: Augmentation, numbers: Sequence[float], height: int, width: int
) -> tuple[int, int, int, int] | None:
    """The crop of one image as `draw_boxes` makes it in its first attempt.

    Args:
        augmentation: its ``crop_*`` numbers are used.
        numbers: the image's row of `crop_numbers`.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        y, x, height, width in pixels; None where `draw_boxes` would make another attempt.
    """
    if augmentation.crop_area == (1, 1):
        return 0, 0, height, width
    y, x, h, w, accepted = _place(augmentation, numbers, height, width, _PLAIN)
    return (int(y), int(x), int(h), int(w)) if accepted else None


def _place(augmentation: Augmentation, numbers: Any, H: Any, W: Any, m: Any) -> tuple[Any, ...]:
    """One attempt, made from four numbers in [0, 1) and the image's size.

    Args:
        augmentation: its ``crop_*`` numbers are used.
        numbers: (4, b), or four numbers.
        H: (b,) heights, or one.
        W: (b,) widths, or one.
        m: numpy, or what stands for it where there is one image.

    Returns:
        y, x, height and width of the crop, and whether it is accepted.
    """
    u_aspect, u_height, u_y, u_x = numbers
    min_area, max_area = augmentation.crop_area[0] * H * W, augmentation.crop_area[1] * H * W
    min_aspect, max_aspect = augmentation.crop_aspect
    aspect = min_aspect + (max_aspect - min_aspect) * u_aspect  # width / height
    widest = m.floor((W + 0.5) / aspect)  # height at which the rounded width just fits
    highest = m.minimum(m.rint(m.sqrt(max_area / aspect)), m.minimum(widest, H))
    lowest = m.minimum(m.rint(m.sqrt(min_area / aspect)), highest)
    h = lowest + m.floor(u_height * (highest - lowest + 1))  # both ends included
    # Rounding may have pushed the area out of its range: by one row it comes back.
    h = h + (h * m.rint(h * aspect) < min_area)
    h = h - (h * m.rint(h * aspect) > max_area)
    w = m.rint(h * aspect)
    area = h * w
    accepted = (min_area <= area) & (area <= max_area) & (area > 0) & (h <= H) & (w <= W)
    accepted &= area >= augmentation.crop_min_covered * H * W
    # The upper end is left out, so the last possible offset is never drawn: as in TensorFlow.
    y, x = m.floor(u_y * m.maximum(H - h, 1)), m.floor(u_x * m.maximum(W - w, 1))
    return y, x, h, w, accepted


def draw(augmentation: Augmentation, rng: np.random.Generator, batch_size: int) -> Draws:
    """Draw everything but the crop for a (global) batch; "data_util.random_color_jitter".

    The amount of numbers taken from ``rng`` does not depend on the augmentation.
    """
    B = batch_size
    reach = augmentation.color_strength * JITTER_RANGES
    low, high = 1 - reach, 1 + reach  # brightness, contrast, saturation: factors
    low[3], high[3] = -reach[3], reach[3]  # hue: a shift
    if augmentation.brightness == "additive":
        low[0], high[0] = -reach[0], reach[0]
    sigma = rng.uniform(*augmentation.blur_sigma, B)
    if augmentation.blur_sigma_per == "batch":
        sigma[:] = sigma[0]
    area = rng.uniform(*augmentation.zoom_area, B)
    narrowest, widest = (np.log(aspect) for aspect in augmentation.crop_aspect)
    aspect = rng.uniform(narrowest, widest, B)
    # A window of the whole area has no room for another shape.
    aspect = np.exp(aspect) if augmentation.zoom_area != (1, 1) else np.ones(B)
    scale = np.sqrt(np.stack([area * aspect, area / aspect], axis=1))  # (B, 2)
    room = np.maximum(1 - scale, 0) / 2 + augmentation.translate
    # In this order: a new draw goes last, so that the others stay what they are.
    return Draws(
        flip=torch.from_numpy(rng.random(B) < augmentation.flip),
        angle=torch.from_numpy(rng.uniform(-augmentation.rotate, augmentation.rotate, B)).float(),
        shear=torch.from_numpy(rng.uniform(-augmentation.shear, augmentation.shear, B)).float(),
        scale=torch.from_numpy(scale).float(),
        shift=torch.from_numpy(rng.uniform(-room, room)).float(),
        jitter=torch.from_numpy(rng.random(B) < augmentation.jitter),
        order=torch.from_numpy(rng.random((B, 4)).argsort(axis=1)),
        factors=torch.from_numpy(rng.uniform(low, high, (B, 4))).float(),
        grayscale=torch.from_numpy(rng.random(B) < augmentation.grayscale),
        blur=torch.from_numpy(rng.random(B) < augmentation.blur),
        sigma=torch.from_numpy(sigma).float(),
    )


# ---------------------------------------------------------------------------------- apply
def apply(augmentation: Augmentation, images: Tensor, draws: Draws) -> Tensor:
    """Turn cropped images into views: flip, warp, colour, blur, in this order.

    Args:
        augmentation: the one that `draw` got.
        images: (B, 3, S, S), uint8 in 0..255 or float in [0, 1] or a little beyond.
        draws: B rows.

    Returns:
        (B, 3, S, S) float32 in [0, 1], on the device of the images.
    """
    images = ops.to_float(images)  # a copy, so in place from here
    device = images.device
    _change_(images, draws.flip, lambda x: x.flip(-1))
    if warps(augmentation):
        warp = (draws.angle, draws.shear, draws.scale, draws.shift)
        images = ops.affine_warp(images, *(ops.upload(values, device) for values in warp))
    if augmentation.color_strength > 0:
        color_jitter_(images, draws, augmentation.brightness)
    images.clamp_(0, 1)
    if augmentation.blur > 0 and draws.blur.any():
        per_batch = augmentation.blur_sigma_per == "batch"
        sigma = draws.sigma[:1] if per_batch else draws.sigma[draws.blur]
        radius = images.shape[-1] // 10 // 2  # 224 pixels: 23 taps
        widest = sigma.item() if per_batch else augmentation.blur_sigma[1]
        radius = min(radius, math.ceil(ops.GAUSSIAN_REACH * widest))
        sigma = ops.upload(sigma, device)
        _change_(images, draws.blur, lambda x: ops.gaussian_blur(x, sigma, radius).clamp_(0, 1))
    return images


def color_jitter_(images: Tensor, draws: Draws, brightness: str = "multiplicative") -> Tensor:
    """Jitter each image in its own order, then remove the colour where drawn; in place.

    Jittered images are clipped to [0, 1] after each of the four operations; the others are not.

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
    # without saturation and hue where all are grey; the first image tells most that are not
    if device.type == "cpu" and _are_grey(images[:1]) and _are_grey(images):
        operations = (*operations[:2], _keep, _keep)
    rows = draws.jitter.nonzero().squeeze(1)  # (J,)
    if device.type == "cpu" and images[0].numel() > LARGE:
        for row, order in zip(rows.tolist(), draws.order[rows].tolist(), strict=True):
            image, factors = images[row : row + 1], draws.factors[row]
            for k in order:
                operations[k](image, factors[k], out=image).clamp_(0, 1)
    else:
        # In each slot of the order, every operation runs once, on the images that have it in this
        # slot. For that the images are sorted by operation before each slot.
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


def _are_grey(images: Tensor) -> bool:
    return bool((images == images[:, :1]).all())


def _keep(images: Tensor, _factor: Tensor, out: Tensor) -> Tensor:
    """What saturation and hue make of grey images, to the last bit."""
    return images


def _change_(images: Tensor, where: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Change in place the images that the (B,) mask selects; the others are not copied."""
    rows = where.nonzero().squeeze(1)
    if len(rows) == len(images) == 1:  # a photo, in a worker
        images.copy_(change(images))
    elif len(rows):
        rows = ops.upload(rows, images.device)
        images[rows] = change(images.index_select(0, rows))
