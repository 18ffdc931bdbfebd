"""Colours as lightness and two axes of colour (CIELAB), and as hue and chroma.

Pixels are sRGB in [0, 1] under daylight (D65, 2 degrees: IEC 61966-2-1, CIE 15), as scikit-image
takes them. Sums are written out, because a matrix product would be rounded to fewer digits on some
devices.
"""

import torch
from torch import Tensor

TO_XYZ = (  # linear red, green and blue -> X, Y, Z
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
TO_RGB = tuple(map(tuple, torch.tensor(TO_XYZ, dtype=torch.float64).inverse().tolist()))
WHITE = (0.95047, 1.0, 1.08883)  # X, Y, Z of white
TINY = 1e-12  # keeps grey pixels from dividing by zero


def rgb_to_lab(images: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 1] -> lightness L in 0..100, a and b about -110..110.

    Values outside [0, 1], as a resize filter makes, are clipped. The result is float32 or better.
    """
    rgb = images.to(torch.promote_types(images.dtype, torch.float32)).clamp(0, 1)
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    x, y, z = (
        _cube_root(axis / white)
        for axis, white in zip(_product(TO_XYZ, linear), WHITE, strict=True)
    )
    return torch.cat([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """The inverse of `rgb_to_lab`; colours that sRGB cannot show are clipped to [0, 1]."""
    lightness, a, b = lab.float().split(1, dim=1)
    y = (lightness + 16) / 116
    roots = y + a / 500, y, (y - b / 200).clamp_min(0)
    xyz = [
        white * torch.where(root > 6 / 29, root**3, (root - 16 / 116) / 7.787)
        for root, white in zip(roots, WHITE, strict=True)
    ]
    linear = torch.cat(_product(TO_RGB, torch.cat(xyz, dim=1)), dim=1).clamp(0, 1)
    curved = 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, 12.92 * linear)


def hue_and_chroma(images: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (B, 3, H, W) in [0, 1] -> the hue of HSV in [0, 1), and largest - smallest channel.

    Returns:
        (B, 1, H, W) float32 each. The hue of a grey pixel is 0.
    """
    rgb = images.float().clamp(0, 1)
    red, green, blue = rgb.split(1, dim=1)
    high, low = rgb.amax(1, keepdim=True), rgb.amin(1, keepdim=True)
    chroma = high - low
    span = chroma.clamp_min(TINY)
    sixths = torch.where(
        high == red,
        (green - blue) / span,
        torch.where(high == green, (blue - red) / span + 2, (red - green) / span + 4),
    )
    hue = sixths.remainder(6) / 6
    return torch.where(hue < 1, hue, 0.0), chroma  # a tiny negative's remainder is rounded to 6


def _product(matrix: tuple[tuple[float, ...], ...], channels: Tensor) -> list[Tensor]:
    """Rows of the matrix times channels (B, 3, H, W): three of (B, 1, H, W)."""
    first, second, third = channels.split(1, dim=1)
    return [a * first + b * second + c * third for a, b, c in matrix]


def _cube_root(values: Tensor) -> Tensor:
    """The cube root, by a line near 0 as CIELAB has it."""
    return torch.where(
        values > 0.008856, values.clamp_min(0.008856) ** (1 / 3), 7.787 * values + 16 / 116
    )
