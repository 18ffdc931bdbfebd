"""``data.cache``: photos decoded and shrunk once, and kept in one file for all runs.

To decode a photo and cut two small views takes a hundred times as long as to cut them from a small
copy of it. A copy keeps the photo's shape, so that crops see its borders and evaluation its
middle, as without a cache: only its shorter side shrinks, to ``data.cache`` pixels.

The file holds the pixels of all images, (h, w, 3) uint8 one after the other, and at its end their
heights and widths, (n, 2) int32. It is mapped into memory: pages are read when they are needed.

It lies in a folder where this user alone may write, and belongs to this user: who may change it
could show other images, and who may cut it off could stop a process that has it mapped.
"""

import hashlib
import io
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from shared.config.sections import Data
from shared.data.images import ImageSet
from shared.runtime.errors import CannotWriteError, UserError
from shared.runtime.files import clean, into_place, is_private, open_regular
from shared.runtime.lock import clear, held
from shared.runtime.media import say
from shared.runtime.progress import Progress
from shared.runtime.stop import Stopped, StopRequest

AT_ONCE = 256  # images that the threads decode before they are written

_UNFIT = "damaged, or another user's, or others may write into it"


def shrunk(images: ImageSet, data: Data, progress: bool) -> ImageSet:
    """The images with their small copies, which are made unless a file has them.

    Where ``on_error`` is skip, unreadable images are dropped, and one line counts them.

    Args:
        images: not in memory.
        data: ``cache``, the pixels of the shorter side; ``cache_folder``; ``workers``.
        progress: show how far it is, and that line.

    Raises:
        UserError: an image cannot be read, or none; the file cannot be written, or others may
            write in its folder.
        Stopped: a signal asked for it; what was shrunk so far is lost.
    """
    assert data.cache is not None
    if not len(images):
        return images
    advice = "give another --data.cache_folder"
    try:
        folder = Path(data.cache_folder).expanduser()
    except RuntimeError as error:  # nobody knows the user's home
        raise UserError(f"data.cache_folder={data.cache_folder}: {error}; {advice}") from error
    path = folder / f"{_key(images, data.cache)}.images"
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        if not is_private(folder.stat()):
            raise UserError(
                f"shrunk images in {folder} could be anybody's: the folder belongs to another user,"
                f" or others may write there; take that right from them (chmod go-w), or {advice}"
            )
        copies = _read(path, len(images))  # one that is ready may lie where nobody can write
        if copies is None:
            with held(path, math.inf, advice):  # of several processes one shrinks
                copies = _read(path, len(images))
                if copies is None:
                    if progress and os.path.lexists(path):
                        say(f"note: {path} is {_UNFIT}; it is made again", error=True)
                    _write(path, images, data, progress)
                    copies = _read(path, len(images))
        else:
            clear(path)
    except OSError as error:
        raise CannotWriteError(
            f"cannot write the shrunk images to {path}: {error}; make room, or {advice}"
        ) from error
    if copies is None:
        raise UserError(f"{path} is {_UNFIT}, though it was just made; {advice}")
    unreadable = np.flatnonzero([copy.numel() == 0 for copy in copies])
    if len(unreadable) and images.on_error == "stop":
        images.refuse(unreadable)
    return replace(images, shrunk=copies).without(unreadable, progress)


def shrink(image: Tensor, side: int) -> Tensor:
    """A copy whose shorter side has ``side`` pixels; a smaller image stays as it is.

    Args:
        image: (3, H, W) uint8.
        side: in pixels.

    Returns:
        (3, h, w) uint8, resized with the antialiased bicubic filter.
    """
    height, width = image.shape[1:]
    shorter = min(height, width)
    if shorter <= side:
        return image
    size = [round(side * length / shorter) for length in (height, width)]
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0]


def smallest_side(image_size: int, crop_area: tuple[float, float]) -> int:
    """The ``data.cache`` at which no crop of an image has fewer pixels than its view.

    Args:
        image_size: side of a view in pixels.
        crop_area: smallest and largest share of the image that a crop covers.
    """
    return math.ceil(image_size / math.sqrt(crop_area[0]))


def _key(images: ImageSet, side: int) -> str:
    """Hash of the images and of the side; a file that was changed has another size or time."""
    digest = hashlib.sha256(f"{images.fingerprint} {side} {images.decoding}".encode())
    paths = pc.struct_field(images.files.data.column("image"), "path").to_pylist()  # type: ignore[attr-defined]
    for path in paths:
        if path and os.path.exists(path):
            status = os.stat(path)
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def _read(path: Path, number: int) -> tuple[Tensor, ...] | None:
    """The copies (3, h, w) uint8 of so many images; None where there is no file to trust."""
    try:
        if path.is_symlink():
            return None
        with open_regular(path) as file:
            if not is_private(os.fstat(file.fileno())):
                return None
            file.seek(-8 * number, os.SEEK_END)
            sizes = np.frombuffer(file.read(), "<i4").reshape(number, 2).astype(int)
            length = file.tell() - 8 * number
            areas = sizes.prod(1)
            if (sizes < 0).any() or (areas > length // 3).any():
                return None
            ends = np.cumsum(3 * areas)
            if (ends < 0).any() or ends[-1] != length:  # a sum that overflows turns negative
                return None
            # what is changed stays in memory; a map may not be empty
            pixels = np.memmap(file, np.uint8, "c", shape=length + 8 * number)[:length]
    except OSError:
        return None
    parts = np.split(np.asarray(pixels), ends[:-1])
    return tuple(
        torch.from_numpy(part.reshape(*size, 3)).permute(2, 0, 1)
        for part, size in zip(parts, sizes, strict=True)
    )


def _write(path: Path, images: ImageSet, data: Data, progress: bool) -> None:
    """Shrink all images into a file, which is moved into place at the end."""

    def write(file: BinaryIO) -> None:
        sizes = []
        bar = Progress("decoding and shrinking", len(images), "images", shown=progress)
        for copy in bar.over(_copies(images, data)):
            file.write(np.ascontiguousarray(copy.permute(1, 2, 0).numpy()).data)
            sizes.append(copy.shape[1:])
        file.write(np.array(sizes, "<i4").data)

    clean(path.parent)
    into_place(path, write)
    path.chmod(0o600)


def _copies(images: ImageSet, data: Data) -> Iterator[Tensor]:
    """The copies in order; an unreadable image has none, (3, 0, 0)."""

    def copy(index: int) -> Tensor:
        try:
            return shrink(images.decode(index), data.cache or 0)
        except UserError:
            return torch.zeros(3, 0, 0, dtype=torch.uint8)

    threads = max(1, min(data.workers, os.cpu_count() or 1))
    with ThreadPoolExecutor(threads) as pool:  # Pillow and torch let other threads run
        for first in range(0, len(images), AT_ONCE):
            if StopRequest.received:
                raise Stopped("stopped as asked while the images were shrunk; begin again")
            yield from pool.map(copy, range(first, min(first + AT_ONCE, len(images))))


def sample_sizes(images: ImageSet, most: int = 200) -> np.ndarray:
    """Heights and widths (k, 2) of up to so many images, evenly spread, from their headers.

    Unreadable images are left out; where none is readable there is one row of zeros.
    """
    sizes = []
    for index in np.linspace(0, len(images) - 1, min(len(images), most), dtype=int):
        try:
            source = images.source(index)
            with Image.open(source if isinstance(source, str) else io.BytesIO(source)) as image:
                sizes.append((image.height, image.width))
        except Exception:  # Pillow raises all kinds of errors; decoding reports the image
            continue
    return np.array(sizes or [(0, 0)])
