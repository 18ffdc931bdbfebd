"""Images made on the spot, for benchmarks and tests: nothing is downloaded.

Noise alone would be a lie, for its JPEG files are several times larger than those of photos and
slower to decode. These have the spectrum of photos (noise of several octaves, less of the fine
ones), edges (shapes) and grain: about 80 kB at 500 x 375 pixels and quality 90, near ImageNet's.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def photo(seed: int, width: int = 500, height: int = 375) -> Image.Image:
    """One RGB image, a function of its seed."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), rng.uniform(60, 190, 3))
    for octave in range(1, 8):
        cells = rng.normal(0, 1, (2**octave, 2**octave + 1, 3)).astype(np.float32)
        planes = [
            Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)
            for plane in np.moveaxis(cells, 2, 0)
        ]
        pixels += 60 / octave * np.stack([np.asarray(plane) for plane in planes], axis=2)
    image = Image.fromarray(np.uint8(pixels.clip(0, 255)))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.05, 0.3, 2) * (width, height)
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    grain = rng.normal(0, 10, (height, width, 1))
    return Image.fromarray(np.uint8((np.asarray(image) + grain).clip(0, 255)))


def make_photos(folder: Path, number: int) -> None:
    """``number`` JPEG files of about 500 x 375 pixels in different sizes, of two classes."""
    for seed in range(number):
        width, height = 500 - seed % 7, 375 + seed % 5
        photo(seed, width, height).save(_file(folder, seed, "jpg"), quality=90)


def make_small(folder: Path, number: int, side: int = 32) -> None:
    """``number`` PNG files of side x side pixels, and the same pixels as ``<folder>.npy``."""
    tiles = side * np.arange(8)
    pixels = []
    for seed in range(-(-number // 64)):  # 64 small images are cut from each large one
        large = np.asarray(photo(seed, 8 * side, 8 * side))
        pixels += [large[y : y + side, x : x + side] for y in tiles for x in tiles]
    for index, image in enumerate(pixels[:number]):
        Image.fromarray(image).save(_file(folder, index, "png"))
    np.save(folder.with_suffix(".npy"), np.stack(pixels[:number]))  # (n, side, side, 3) uint8


def _file(folder: Path, index: int, suffix: str) -> Path:
    path = folder / ("odd" if index % 2 else "even") / f"{index:05}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
