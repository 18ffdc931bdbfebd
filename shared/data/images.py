"""Images of one split as an ``ImageSet``, decoded in memory or on demand.

Small data sets sit in memory as uint8; of large ones the undecoded files are kept, and workers
decode them (``shared/data/batches.py``). ``shared/data/sources.py`` opens the sources.
"""

import hashlib
import io
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from shared.runtime.errors import UserError
from shared.runtime.progress import Progress, counted

MEMORY_LIMIT = 2 * 2**30  # bytes of uint8 pixels that data.loading=auto keeps in memory
FINGERPRINTED = 1000  # of images that are not in memory, how many files are hashed
UNLABELED = -1
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def decode_image(source: str | bytes) -> Tensor:
    """Decode an image file to RGB, uint8 (3, H, W), upright as its EXIF orientation says.

    A grey image gets three equal channels. Transparent pixels are laid over white. Palette and CMYK
    images are converted, and 16-bit values are scaled to 8 bits.

    Args:
        source: path, or the encoded bytes.

    Raises:
        OSError: the file cannot be read; Pillow also raises the others of ``_UNREADABLE``.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
        ImageOps.exif_transpose(file, in_place=True)  # loads it; does not copy an upright image
        image: Image.Image = file
    if image.mode.startswith(("I", "F")):
        levels = np.asarray(image, dtype=np.float64)
        if image.mode.startswith("I;16") or file.format == "PNG":
            white = 65535.0
        else:  # 32-bit integers and floats do not say which value is white
            white = next((level for level in (1.0, 255.0) if levels.max() <= level), 65535.0)
        image = Image.fromarray(np.uint8(np.clip(levels / white, 0, 1) * 255 + 0.5))
    elif "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image if image.mode == "RGB" else image.convert("RGB")  # without a needless copy
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)


@dataclass(frozen=True)
class ImageSet:
    """The images of one split, their names and their labels, as far as these are known.

    Attributes:
        files: data set with one column ``image`` of undecoded images.
        names: (n,) file name below the folder, or row number.
        labels: (n,) int64, -1 where unknown.
        classes: class names in label order; empty where no image is labeled.
        on_error: what to do with an unreadable image: stop or skip.
        pixels: (n, 3, H, W) uint8 when the images are held in memory, else None.
        shrunk: n small copies (3, h, w) uint8 of different sizes where ``data.cache`` asks for
            them, else None.
    """

    files: datasets.Dataset
    names: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    on_error: str
    pixels: Tensor | None = None
    shrunk: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the names in their order, and of the images: 16 hexadecimal digits.

        Images in memory are hashed by their pixels. To read all other files would take too long:
        the bytes of ``FINGERPRINTED`` of them are hashed, and in a parquet file, whose names are
        only row numbers, the length of every image.
        """
        digest = hashlib.sha256("\n".join(map(str, self.names)).encode())
        if self.pixels is not None:
            digest.update(self.pixels.numpy().data)
            return digest.hexdigest()[:16]
        encoded = pc.struct_field(self.files.data.column("image"), "bytes")  # type: ignore[attr-defined]
        digest.update(pc.binary_length(encoded).fill_null(-1).to_numpy())  # type: ignore[attr-defined]
        for index in np.linspace(0, len(self) - 1, min(len(self), FINGERPRINTED), dtype=int):
            with suppress(OSError):  # decoding reports it
                item = self.files[int(index)]["image"]
                digest.update(item["bytes"] or Path(item["path"]).read_bytes())
        return digest.hexdigest()[:16]

    @cached_property
    def labels_fingerprint(self) -> str:
        """Hash of the known labels and of the class names: 16 hexadecimal digits."""
        text = "\n".join(self.classes).encode() + self.labels.astype("<i8").tobytes()
        return hashlib.sha256(text).hexdigest()[:16]

    def decode(self, index: int) -> Tensor:
        """Image ``index`` as uint8 (3, H, W).

        Raises:
            UserError: the file cannot be read; the message names it.
        """
        if self.pixels is not None:
            return self.pixels[index]
        if self.shrunk is not None:
            return self.shrunk[index]
        item = self.files[int(index)]["image"]
        try:
            return decode_image(item["bytes"] if item["bytes"] is not None else item["path"])
        except _UNREADABLE as error:
            name = item["path"] or f"image {self.names[index]}"
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
            raise UserError(
                f"cannot read {name}: {reason}; remove it or give --data.on_error skip"
            ) from error

    def select(self, indices: np.ndarray) -> "ImageSet":
        """The images at these positions."""
        return replace(
            self,
            files=self.files.select(indices),
            names=self.names[indices],
            labels=self.labels[indices],
            pixels=None if self.pixels is None else self.pixels[indices],
            shrunk=None if self.shrunk is None else tuple(self.shrunk[i] for i in indices),
        )

    def in_memory(self, loading: str, progress: bool) -> "ImageSet":
        """Decode all images if ``loading`` is memory, or auto and they are few and of one size.

        Where ``on_error`` is skip, unreadable images are dropped, and one line counts them.

        Args:
            loading: memory, workers or auto.
            progress: show a bar, and that line.

        Raises:
            UserError: images differ in size although ``loading`` is memory, or none is readable.
        """
        if loading == "workers" or not len(self):
            return self
        pixels: Tensor | None = None
        readable: list[int] = []
        bar = Progress("decoding", len(self), "images", shown=progress)
        for index in bar.over(range(len(self))):
            try:
                image = self.decode(index)
            except UserError:
                if self.on_error == "stop":
                    raise
                continue
            if pixels is None:
                if loading == "auto" and image.numel() * len(self) > MEMORY_LIMIT:
                    return self
                pixels = torch.empty((len(self), *image.shape), dtype=torch.uint8)
            if image.shape != pixels.shape[1:]:
                if loading == "auto":
                    return self
                first, other = self.names[readable[0]], self.names[index]
                raise UserError(
                    f"data.loading=memory needs images of one size, but {first} is"
                    f" {size_text(pixels[0])} and {other} is {size_text(image)}; give"
                    " --data.loading workers"
                )
            pixels[len(readable)] = image
            readable.append(index)
        if pixels is None:
            raise UserError(f"none of the {counted(len(self), 'image')} can be read")
        if len(readable) == len(self):
            return replace(self, pixels=pixels)
        if progress:
            names = self.names[np.setdiff1d(np.arange(len(self)), readable)]
            total = counted(len(self), "image")
            print(f"skipped {len(names)} unreadable of {total}: {abbreviated(names)}")
        kept = self.select(np.array(readable))
        return replace(kept, pixels=pixels[: len(readable)].clone())


def size_text(image: Tensor) -> str:
    """``width x height`` of an image (3, H, W), for messages."""
    return f"{image.shape[2]}x{image.shape[1]}"


class Splits(NamedTuple):
    """Training images (labeled or not) and test images; ``test`` is None where none has labels."""

    train: ImageSet
    test: ImageSet | None


def abbreviated(names: Iterable[Any]) -> str:
    """The first three names, and how many follow, for messages."""
    names = [str(name) for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
