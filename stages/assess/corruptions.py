"""Common corruptions of images at five severities (Hendrycks & Dietterich 2019, arXiv 1903.12261).

Eleven of the fifteen of ImageNet-C and CIFAR-10-C: three kinds of noise, three of blur, and five
effects of cameras and file formats. Glass blur, frost, snow and fog are left out, because they need
a loop over pixels or photographs of their own.

The strengths are the authors', of CIFAR-10-C for images up to 32 pixels and of ImageNet-C above.
Lengths (radii, shifts) are theirs for 32 and 224 pixels. They grow with the side of the image, so
that a corruption covers the same share of it. Kernels are smooth in their length, so that fractions
of a pixel count. A grey image stays grey. We differ in four points: zoom blur averages eleven
zooms, elastic moves pixels once, pixelate averages areas (parts of pixels included) both ways, and
nothing is rounded to 8 bits.
"""

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from shared.data import image_ops as ops

GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "motion_blur", "zoom_blur"),
    "digital": ("brightness", "contrast", "elastic", "pixelate", "jpeg"),
}
NAMES = tuple(name for names in GROUPS.values() for name in names)
SEVERITIES = (1, 2, 3, 4, 5)

# Severity 1 to 5; units in `corrupt`. Lengths are in pixels of a 32 or 224 pixel image.
_SMALL = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": (0.3, 0.4, 0.5, 1.0, 1.5),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": (1.05, 1.10, 1.15, 1.20, 1.25),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic": (
        (0, 0, 2.56),
        (1.6, 6.4, 2.24),
        (2.56, 1.92, 1.92),
        (3.2, 1.28, 1.6),
        (3.2, 0.96, 0.96),
    ),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg": (80, 65, 58, 50, 40),
}
_LARGE = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": (3, 4, 6, 8, 10),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": (1.10, 1.15, 1.20, 1.25, 1.30),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic": (
        (488, 170.8, 24.4),
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg": (25, 18, 15, 10, 7),
}


def corrupt(images: Tensor, name: str, severity: int, rng: np.random.Generator) -> Tensor:
    """Corrupt a batch.

    Args:
        images: (B, 3, S, S) float in [0, 1].
        name: one of ``NAMES``.
        severity: 1 to 5.
        rng: draws noise, directions and shifts.

    Returns:
        (B, 3, S, S) float32 in [0, 1], on the device of the images.

    Raises:
        ValueError: an unknown name or severity.
    """
    if name not in NAMES or severity not in SEVERITIES:
        raise ValueError(
            f"corruption {name!r} at severity {severity!r}: choose of {', '.join(NAMES)} at 1 to 5"
        )
    B, _, S, _ = images.shape
    small = S <= 32
    strength = (_SMALL if small else _LARGE)[name][severity - 1]
    pixel = S / (32 if small else 224)  # what the authors' pixel is here
    match name:
        case "gaussian_noise":  # standard deviation
            noise = rng.standard_normal(images.shape, dtype=np.float32)
            out = images + strength * torch.from_numpy(noise).to(images.device)
        case "shot_noise":  # photons of a white pixel
            photons = rng.poisson(images.cpu().numpy() * strength) / strength
            out = torch.from_numpy(photons.astype(np.float32)).to(images.device)
        case "impulse_noise":  # share of values that become 0 or 1
            lot = torch.from_numpy(rng.random(images.shape, dtype=np.float32)).to(images.device)
            out = images.masked_fill(lot < strength / 2, 0).masked_fill(lot > 1 - strength / 2, 1)
        case "defocus_blur":  # radius of the disk
            axis = torch.linspace(-1, 1, 65)
            grid = torch.cartesian_prod(axis, axis)  # (65 * 65, 2)
            disk = grid[grid.square().sum(1) <= 1] * (strength * pixel)  # (P, 2)
            out = _convolve(images, _kernels(disk[None], torch.ones(len(disk))))
        case "motion_blur":  # length and standard deviation of the trace, to one side
            length, sigma = (pixel * value for value in strength)
            angle = torch.from_numpy(np.deg2rad(rng.uniform(-45, 45, B))).float()[:, None]
            along = torch.linspace(0, length, 65)
            trace = torch.stack([angle.sin() * along, angle.cos() * along], dim=2)  # (B, 65, 2)
            out = _convolve(images, _kernels(trace, torch.exp(-0.5 * (along / sigma) ** 2)))
        case "zoom_blur":  # largest factor
            out = images.clone()
            zero = images.new_zeros(B)
            for factor in np.linspace(1, strength, 11):
                window = images.new_full((B, 2), 1 / factor)
                out += ops.affine_warp(images, zero, zero, window, images.new_zeros(B, 2))
            out = out / 12
        case "brightness":  # added to the V of HSV
            high = images.amax(1, keepdim=True)  # (B, 1, S, S)
            new = (high + strength).clamp_max(1)
            out = torch.where(high > 0, images * (new / high.clamp_min(ops.TINY)), new)
        case "contrast":  # factor of the distance from each channel's mean
            out = ops.adjust_contrast(images, images.new_full((B,), strength))
        case "elastic":
            alpha, sigma, corner = (pixel * value for value in strength)
            out = _elastic(images, alpha, sigma, corner, rng)
        case "pixelate":  # share of the side that is left
            few = int(S * strength)
            there_and_back = (_areas(S, few) @ _areas(few, S)).to(images.device)
            out = there_and_back @ images @ there_and_back.T
        case _:  # JPEG quality
            out = torch.stack([_jpeg(image, strength) for image in images.cpu()]).to(images.device)
    out = out.float().clamp(0, 1)
    grey = (images == images[:, :1]).flatten(1).all(1).view(-1, 1, 1, 1)
    return torch.where(grey, out[:, :1], out)


def _kernels(points: Tensor, weights: Tensor) -> Tensor:
    """(B, P, 2) offsets (y, x) in pixels and (P,) weights -> (B, k, k) kernels that sum to 1.

    Every offset is a shift of the image with bilinear interpolation.
    """
    reach = math.ceil(points.abs().max().item())
    offsets = torch.arange(-reach, reach + 1)
    near = (1 - (points[..., None] - offsets).abs()).clamp_min(0)  # (B, P, 2, k)
    rows, columns = near.unbind(2)
    return torch.einsum("p,bpi,bpj->bij", weights / weights.sum(), rows, columns)


def _convolve(images: Tensor, kernels: Tensor) -> Tensor:
    """Each image with its own kernel, or all with one; borders mirrored."""
    B, C, H, W = images.shape
    k = kernels.shape[-1]
    kernels = kernels.to(images).expand(B, k, k).repeat_interleave(C, 0)[:, None]  # (B*C, 1, k, k)
    padded = F.pad(images, [k // 2] * 4, mode="reflect").view(1, B * C, H + k - 1, W + k - 1)
    return F.conv2d(padded, kernels, groups=B * C).view(B, C, H, W)


def _elastic(
    images: Tensor, alpha: float, sigma: float, corner: float, rng: np.random.Generator
) -> Tensor:
    """Shift pixels by a random affine map and by smooth noise.

    Args:
        images: (B, C, S, S).
        alpha: factor of the noise, which is uniform in [-1, 1] before it is smoothed.
        sigma: of the Gaussian that smooths it, in pixels.
        corner: largest shift of three corners of the inner square, which give the affine map.
        rng: of all of these.
    """
    B, _, S, _ = images.shape
    draws = rng.uniform(-corner, corner, (3, B, 2)), rng.uniform(-1, 1, (B, 2, S, S))
    corners, noise = (torch.from_numpy(draw).float().to(images.device) for draw in draws)
    # shifts d at (q, q), (q, -q), (-q, -q): d(y, x) = middle + along_y * y + along_x * x
    q = S / 3
    middle = (corners[0] + corners[2]) / 2  # (B, 2)
    along_y, along_x = (corners[1] - corners[2]) / (2 * q), (corners[0] - corners[1]) / (2 * q)
    place = torch.arange(S, device=images.device) - (S - 1) / 2  # pixels from the middle
    y, x = place.view(S, 1, 1), place.view(S, 1)
    affine = middle[:, None, None] + y * along_y[:, None, None] + x * along_x[:, None, None]
    smooth = _smoothing(S, sigma).to(images.device)
    shift = affine + alpha * (smooth @ noise @ smooth.T).permute(0, 2, 3, 1)  # (B, S, S, 2): y, x
    here = torch.stack(torch.meshgrid(place, place, indexing="ij"), dim=2)  # (S, S, 2)
    grid = ((here + shift) * (2 / S)).flip(-1)  # grid_sample wants x, y from -1 to 1
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _smoothing(size: int, sigma: float) -> Tensor:
    """(size, size): the Gaussian filter to 3 sigma with mirrored borders, as a matrix."""
    reach = round(3 * sigma)
    taps = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (taps / max(sigma, ops.TINY)) ** 2)
    source = (torch.arange(size)[:, None] + taps) % (2 * size)  # (size, taps)
    source = torch.minimum(source, 2 * size - 1 - source)
    matrix = torch.zeros(size, size)
    return matrix.scatter_add_(1, source, (weights / weights.sum()).expand(size, -1))


def _areas(pixels: int, cells: int) -> Tensor:
    """(pixels, cells): what share of a pixel each cell covers, both along the same line."""
    edges = torch.arange(pixels + 1) * (cells / pixels)
    left, right = edges[:-1, None], edges[1:, None]
    cell = torch.arange(cells)
    overlap = torch.minimum(right, cell + 1) - torch.maximum(left, cell)
    return overlap.clamp_min(0) * (pixels / cells)


def _jpeg(image: Tensor, quality: int) -> Tensor:
    """One image (3, S, S), written as JPEG and read again."""
    file = io.BytesIO()
    pixels = image.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
