"""Batched image operations, equal to the authors' TensorFlow ones ("tf2/data_util.py").

Every function is deterministic and works on any device. It takes images (B, C, H, W) and one
parameter per image, and returns images; `shared.data.augment` draws the parameters.
Two operations are TensorFlow's and differ from torchvision's: contrast keeps the mean of each
channel, and saturation scales the S of HSV.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # of red, green, blue: tf.image.rgb_to_grayscale
TINY = 1e-12  # keeps gray pixels (max = min) from dividing by zero
NO_WEIGHT = 1e-12  # taps of the blur with less weight are left out
GAUSSIAN_REACH = (-2 * math.log(NO_WEIGHT)) ** 0.5  # 7.4 standard deviations to there


def to_float(images: Tensor) -> Tensor:
    """Copy images to float32; uint8 is scaled from 0..255 to [0, 1], floats keep their values."""
    copy = images.to(torch.float32, copy=True)
    return copy.div_(255) if images.dtype == torch.uint8 else copy


def to_unit(images: Tensor) -> Tensor:
    """uint8 in 0..255 as float32 in [0, 1]; on the CPU by NumPy, in one pass over the memory."""
    if images.device.type != "cpu":
        return images.float().div_(255)
    unit = torch.empty(images.shape)
    np.divide(images.numpy(), np.float32(255), out=unit.numpy(), dtype=np.float32)
    return unit


def floor_to_uint8(images: Tensor) -> Tensor:
    """Floats from 0 to below 256, on the CPU, as uint8: NumPy is five times as fast as torch."""
    return torch.from_numpy(images.numpy().astype(np.uint8))


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Copy from the CPU to ``device``; from pinned memory, so that nothing waits for a GPU."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)  # (B,) -> (B, 1, 1, 1)


# ---------------------------------------------------------------------------------- geometry
def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply by matrices: rows (B, S, H) @ image (H, W) @ columns^T (W, T); B may be 1."""
    B, C, H, W = images.shape
    images = torch.matmul(images.reshape(B, C * H, W), columns.mT)  # (B, C*H, T)
    images = images.view(B, C, H, columns.shape[1])
    return torch.matmul(rows[:, None], images)  # (B, C, S, T)


def _cubic_taps(
    start: Tensor, length: Tensor, size: int, antialias: bool, most: int
) -> tuple[Tensor, Tensor]:
    """Which pixels, with which weights, resize pixels start .. start + length - 1 to ``size``.

    Keys' cubic with a = -0.5 and half-pixel centres. As in TensorFlow, source positions are rounded
    to 1/1024, pixels outside the box are left out, and the other weights are renormalised.

    Args:
        start: (B,) first pixel.
        length: (B,) number of pixels.
        size: of the output.
        antialias: widen the filter when shrinking.
        most: the largest length; it decides how many taps there are.

    Returns:
        Positions, int64, and weights, both (B, size, taps); taps that are not needed weigh 0.
    """
    scale = (length / size).view(-1, 1, 1)  # (B, 1, 1) source pixels per output pixel
    centers = (torch.arange(size, device=start.device) + 0.5).view(-1, 1) * scale - 0.5
    centers = (centers * 1024).round() / 1024  # (B, size, 1)
    stretch = scale.clamp_min(1) if antialias else torch.ones_like(scale)
    taps = math.ceil(4 * max(most / size, 1)) if antialias else 4
    first = (centers - 2 * stretch).floor() + 1
    source = first + torch.arange(taps, device=start.device)  # (B, size, taps)
    inside = (source >= 0) & (source < length.view(-1, 1, 1))
    distance = (source - centers).abs_().div_(stretch)
    # The cubic in two pieces: x = (2 - d)+ is right for 1 <= d < 2; y = (1 - d)+ corrects d < 1.
    x = distance.neg_().add_(2).clamp_min_(0)
    y = (x - 1).clamp_min_(0)
    weights = (x - 1).mul_(x).mul_(x).mul_(0.5)  # x^2 (x - 1) / 2
    weights.addcmul_(y.square(), y.mul_(-2).add_(1))  # + y^2 (1 - 2y)
    weights *= inside
    weights.div_(weights.sum(-1, keepdim=True))
    last = length.view(-1, 1, 1) - 1
    return source.long().clamp_min_(0).minimum(last) + start.view(-1, 1, 1), weights


def _matrices(taps: tuple[Tensor, Tensor], pixels: int) -> Tensor:
    """Taps as matrices (B, size, pixels)."""
    places, weights = taps
    zeros = weights.new_zeros(*places.shape[:2], pixels)
    return zeros.scatter_add_(2, places, weights)


def _weighted_rows(table: Tensor, taps: tuple[Tensor, Tensor]) -> Tensor:
    """Sums of rows: table (R, N), taps (1, size, taps) of its rows -> (size, N)."""
    places, weights = taps
    return F.embedding_bag(places[0], table, per_sample_weights=weights[0], mode="sum")


def crop_resize(
    images: Tensor, boxes: Tensor, size: int | tuple[int, int], antialias: bool = False
) -> Tensor:
    """Cut a box out of each image and resize it with the bicubic filter.

    The result may leave [0, 1] a little, as the filter overshoots; it is not clipped, because the
    reference clips only after the first colour operation. ``tf.image.resize(..., BICUBIC)``.

    Args:
        images: (B, C, H, W), uint8 in 0..255 or float in [0, 1].
        boxes: (B, 4), or (1, 4) for all, int64 of y, x, height, width in pixels; on the CPU.
        size: side of the output in pixels, or its (height, width).
        antialias: widen the filter when shrinking, as Pillow does. The reference does not.

    Returns:
        (B, C, size, size) float32, on the device of the images.
    """
    height, width = (size, size) if isinstance(size, int) else size
    whole = torch.tensor([0, 0, height, width])
    if images.shape[-2:] == (height, width) and bool((boxes == whole).all()):
        return to_float(images)  # the filter would change no bit
    # Rows and columns outside all boxes need no work. Of one large photo these are many.
    top, left = boxes[:, :2].amin(0).tolist()
    bottom, right = (boxes[:, :2] + boxes[:, 2:]).amax(0).tolist()
    tallest, widest = boxes[:, 2:].amax(0).tolist()
    images = images[:, :, top:bottom, left:right]
    B, C, H, W = images.shape
    y, x, h, w = upload(boxes, images.device).unbind(1)
    if height == width:  # both axes at once
        start, length = torch.cat([y - top, x - left]), torch.cat([h, w])
        places, weights = _cubic_taps(start, length, width, antialias, max(tallest, widest))
        rows, columns = zip(places.chunk(2), weights.chunk(2), strict=True)
    else:
        rows = _cubic_taps(y - top, h, height, antialias, tallest)
        columns = _cubic_taps(x - left, w, width, antialias, widest)
    if B > 1:
        return _separable(to_float(images), _matrices(rows, H), _matrices(columns, W))
    # One photo: the matrices are nearly all zero. A decoded photo lies in memory as (H, W, C), and
    # it keeps that layout until it is small.
    if images.dtype == torch.uint8:
        rows = rows[0], rows[1] / 255
    image = images[0].permute(1, 2, 0).float().reshape(H, W * C)
    image = _weighted_rows(image, rows).t().reshape(W, C * height)
    image = _weighted_rows(image, columns).t().contiguous()  # (C * height, width)
    return image.view(1, C, height, width)


def crop_resize_photo(image: Tensor, box: Tensor, size: int | tuple[int, int]) -> Tensor:
    """``crop_resize`` with ``antialias`` of one decoded photo, in integers: 5 times as fast.

    As in Pillow, rows are rounded and clipped before columns are resized.

    Args:
        image: (1, C, H, W) uint8, on the CPU.
        box: (1, 4) int64 of y, x, height, width in pixels.
        size: side of the output in pixels, or its (height, width).

    Returns:
        (1, C, size, size) uint8.
    """
    y, x, h, w = box[0].tolist()
    part = image[:, :, y : y + h, x : x + w]
    channels, stride = part.shape[1], part.stride()
    if channels == 3 and (stride[1], stride[3]) == (1, 4):
        # Pillow keeps four bytes a pixel. Of four channels torch makes no copy before it resizes.
        part = part.as_strided((1, 4, h, w), stride)
    shape = (size, size) if isinstance(size, int) else size
    return F.interpolate(part, shape, mode="bicubic", antialias=True)[:, :channels]


def crop_share(height: int, width: int) -> float:
    """Share of the shorter side that evaluation keeps: the reference's rule, by the view's size.

    0.875, and 1 (no crop, and no resize where the image has that size) up to 32 pixels.
    """
    return 1.0 if max(height, width) <= 32 else 0.875


def center_crop(
    images: Tensor,
    size: int | tuple[int, int],
    proportion: float | None = None,
    antialias: bool = False,
) -> Tensor:
    """The view used for evaluation: cut out the middle and resize it; "data_util.center_crop".

    Args:
        images: (B, C, H, W), uint8 in 0..255 or float in [0, 1].
        size: side of the output in pixels, or its (height, width).
        proportion: share of the shorter side that is kept. None is `crop_share` of the view.
        antialias: widen the filter when shrinking, as the views of training may do.

    Returns:
        (B, C, size, size) float32 in [0, 1].
    """
    box = _central_box(images, size, proportion)
    return crop_resize(images, box, size, antialias).clamp_(0, 1)


def center_crop_photo(image: Tensor, size: int | tuple[int, int], antialias: bool) -> Tensor:
    """``center_crop`` of one decoded photo; with ``antialias`` in Pillow's integers.

    Torch's integers (``crop_resize_photo``) have fewer bits: of 1,000 values 2 are off by one. So a
    program with Pillow could name another class than we do, where two are as likely.

    Args:
        image: (1, 3, H, W) uint8, on the CPU.
        size: side of the output in pixels, or its (height, width).
        antialias: widen the filter when shrinking.

    Returns:
        (1, C, size, size) float32 in [0, 1].
    """
    if not antialias:
        return center_crop(image, size)
    y, x, h, w = _central_box(image, size)[0].tolist()
    height, width = (size, size) if isinstance(size, int) else size
    part = image[0, :, y : y + h, x : x + w].permute(1, 2, 0).contiguous()
    resized = Image.fromarray(part.numpy()).resize((width, height), Image.Resampling.BICUBIC)
    return to_float(torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None])


def _central_box(
    images: Tensor, size: int | tuple[int, int], proportion: float | None = None
) -> Tensor:
    """(1, 4) int64 of y, x, height, width in pixels of the part that evaluation shows."""
    height, width = (size, size) if isinstance(size, int) else size
    if proportion is None:
        proportion = crop_share(height, width)
    H, W = images.shape[-2:]
    aspect = width / height
    if aspect > W / H:
        h, w = round(proportion / aspect * W), round(proportion * W)
    else:
        h, w = round(proportion * H), round(proportion * aspect * H)
    return torch.tensor([[(H - h + 1) // 2, (W - w + 1) // 2, h, w]])


def affine_warp(
    images: Tensor, angle: Tensor, shear: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    """A rotated, sheared window of each image, bilinear, black outside; not in the reference.

    Args:
        images: (B, C, S, S) float.
        angle: (B,) degrees, counter-clockwise about the window's middle.
        shear: (B,) degrees by which vertical lines lean.
        scale: (B, 2) width and height of the window, as a share of the image's side.
        shift: (B, 2) of the window's middle to the right and down, likewise.
    """
    cos, sin, slope = angle.deg2rad().cos(), angle.deg2rad().sin(), shear.deg2rad().tan()
    (width, height), (right, down) = scale.unbind(1), (2 * shift).unbind(1)
    # Rows of the matrix that takes output to input coordinates, both from -1 to 1.
    x_row = torch.stack([cos * width, (cos * slope - sin) * height, right], dim=1)
    y_row = torch.stack([sin * width, (sin * slope + cos) * height, down], dim=1)
    matrix = torch.stack([x_row, y_row], dim=1)  # (B, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)  # (B, S, S, 2)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


# ---------------------------------------------------------------------------------- colour
# None of these clips. The reference clips after each step of the jitter, see `shared.data.augment`.
# ``out`` receives the result and may be the images themselves: new memory costs more than the sums.
def adjust_brightness(images: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply each image by its ``factor`` (B,); SimCLRv2's brightness."""
    return torch.mul(images, _column(factor), out=out)


def shift_brightness(images: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """Add ``shift`` (B,) to each image; the brightness of SimCLR's first version."""
    return torch.add(images, _column(shift), out=out)


def adjust_contrast(images: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Scale the distance from the mean of each channel by ``factor`` (B,)."""
    mean = images.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    factor = _column(factor)
    return torch.mul(images, factor, out=out).add_(mean * (1 - factor))


def _extremes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and smallest channel of each pixel, (B, 1, H, W)."""
    red, green, blue = images.split(1, dim=1)  # faster on CPU than amax and amin
    high, low = torch.maximum(red, green), torch.minimum(red, green)
    return torch.maximum(high, blue, out=high), torch.minimum(low, blue, out=low)


def adjust_saturation(images: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Scale the S of HSV by ``factor`` (B,) >= 0, at most to 1; hue and value stay.

    Changing S alone moves the channels along a line to the largest one, so neither the hue nor the
    conversion to HSV is needed: x' = V + (x - V) * S' / S, with S' / S = min(factor, 1 / S).
    """
    high, low = _extremes(images)  # V, and V * (1 - S)
    ratio = high / (high - low).clamp_min_(TINY)  # 1 / S
    # S counts as 0 where V <= 0 (negative pixels occur where the resize overshot).
    ratio = torch.minimum(ratio, _column(factor)).clamp_min_(0)
    return torch.lerp(high, images, ratio, out=out)


def adjust_hue(images: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """Turn the hue by ``shift`` (B,), a fraction of the circle, at most 1/3 either way.

    Largest and smallest channel of each pixel stay as they are ("tf.image.adjust_hue").
    """
    high, low = _extremes(images)
    span = high - low  # (B, 1, H, W)
    red, green, blue = images.split(1, dim=1)
    # The hue in sixths of the circle, from -3 to 3: red 0, green 2, blue -2. Its distance from red
    # is a sum: 0 where red is largest and the others are equal, 3 where red is smallest and the
    # others are equal. Its side is a sign. Branches would be 30 times as slow in torch on CPU.
    hue = (green + blue).sub_(red).sub_(low).div_(span.clamp_min(TINY)).add_(1)
    hue = hue.copysign_(green - blue).add_(6 * _column(shift))
    # A channel is full within one sixth of its own hue and empty beyond two. Both |.| fold the
    # circle: angles from -7 to 7 give the right value without a remainder.
    own = torch.arange(-2, 4, 2, device=images.device).roll(-1).view(1, 3, 1, 1)
    fullness = (hue - own).abs_().sub_(3).abs_().clamp_(1, 2)  # (B, 3, H, W): 1 empty, 2 full
    return torch.addcmul(low - span, fullness, span, out=out)


def grayscale(images: Tensor) -> Tensor:
    """Replace all three channels by the luma 0.2989 R + 0.587 G + 0.114 B."""
    red, green, blue = (w * x for w, x in zip(GRAY_WEIGHTS, images.split(1, dim=1), strict=True))
    return (red + green + blue).expand_as(images)


# ---------------------------------------------------------------------------------- blur
def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur each image with its own ``sigma`` (B,) in pixels and 2 * radius + 1 taps.

    Beyond the border the image counts as zero, so borders darken ("data_util.gaussian_blur").
    """
    offsets = torch.arange(radius + 2, device=images.device)  # the last one means "too far"
    taps = torch.exp(-0.5 * (offsets / sigma.view(-1, 1)) ** 2)  # (B, radius + 2)
    taps.masked_fill_(taps < NO_WEIGHT, 0)  # denormal floats are 30 times as slow on CPUs
    taps[:, -1] = 0
    taps = taps / (2 * taps.sum(1, keepdim=True) - taps[:, :1])  # the middle tap counts once

    # The convolution as products with blocks of its band matrix; zeros off the band are left out.
    block = 32
    i = torch.arange(block, device=images.device)
    j = torch.arange(block + 2 * radius, device=images.device) - radius
    band = taps[:, None, (i[:, None] - j).abs_().clamp_max_(radius + 1)]  # (B, 1, block, reach)

    def blocks(side: int) -> Iterator[tuple[slice, Tensor]]:
        """Which pixels the next ``block`` outputs see, and the weights (B, 1, block, seen)."""
        for first in range(0, side, block):
            seen = slice(max(first - radius, 0), min(first + block + radius, side))
            start, last = seen.start - first + radius, seen.stop - first + radius
            yield seen, band[:, :, : side - first, start:last]

    H, W = images.shape[-2:]
    images = torch.cat([weights @ images[:, :, seen] for seen, weights in blocks(H)], dim=2)
    return torch.cat([images[..., seen] @ weights.mT for seen, weights in blocks(W)], dim=3)
