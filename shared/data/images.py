"""Images of one split as an ``ImageSet``, decoded in memory or on demand.

Small data sets sit in memory as uint8; of large ones the undecoded files are kept, and workers
decode them (``shared/data/batches.py``). ``shared/data/sources.py`` opens the sources.
"""

import hashlib
import io
import math
import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple, NoReturn

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import EpsImagePlugin, Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from shared.config.sections import MAX_PIXELS
from shared.data.names import Names
from shared.data.pixels import Pixels
from shared.runtime.distributed import gather_all, rank, world_size
from shared.runtime.errors import UserError
from shared.runtime.media import abbreviated, printable, say
from shared.runtime.progress import Progress
from shared.runtime.shared_memory import shared_array

MEMORY_LIMIT = 2 * 2**30  # bytes of uint8 pixels that data.loading=auto keeps in memory
CHECKED = 100_000  # images that are decoded at the start although on_error is stop
REASONED = 100  # skipped images that are decoded once more for the reason
FINGERPRINTED = 1000  # of images that are not in memory, how many files are hashed
UNLABELED = -1
_REMOVE_IT = "remove it or give --data.on_error skip"


class Decoding(NamedTuple):
    """What is read of unusual files: ``data.load_truncated`` and ``data.max_pixels``."""

    load_truncated: bool = False
    max_pixels: int = MAX_PIXELS


USUAL = Decoding()


def decode_image(source: str | bytes, decoding: Decoding = USUAL) -> Tensor:
    """Decode an image file to RGB, uint8 (3, H, W), upright as its EXIF orientation says.

    A grey image gets three equal channels. Transparent pixels are laid over white. Palette and CMYK
    images are converted, and 16-bit values are scaled to 8 bits.

    Args:
        source: path, or the encoded bytes.
        decoding: what is read of unusual files.

    Raises:
        Exception: the file cannot be read; each of Pillow's decoders raises its own.
    """
    _quiet_pillow()
    # Pillow's own switches, set here because they have to count in worker processes too
    ImageFile.LOAD_TRUNCATED_IMAGES = decoding.load_truncated
    Image.MAX_IMAGE_PIXELS = None  # it would only warn up to twice its limit
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
        if (pixels := file.width * file.height) > decoding.max_pixels:
            raise Image.DecompressionBombError(
                f"{file.width}x{file.height} pixels are {pixels:,}, and data.max_pixels allows"
                f" {decoding.max_pixels:,}"
            )
        ImageOps.exif_transpose(file, in_place=True)  # loads it; does not copy an upright image
        return rgb_pixels(file)


@cache
def _quiet_pillow() -> None:
    """Pillow warns of nothing in this process, and starts no other program.

    Of damaged EXIF data it names its own source file. Of EPS, whatever the file is called, it has
    Ghostscript execute the content.
    """
    EpsImagePlugin.gs_binary = False
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def rgb_pixels(image: Image.Image) -> Tensor:
    """A decoded image as RGB, uint8 (3, H, W); ``decode_image`` says how others are converted."""
    if image.mode.startswith(("I", "F")):
        levels = np.asarray(image, dtype=np.float64)
        if image.mode.startswith("I;16") or image.format == "PNG":
            white = 65535.0
        else:  # 32-bit integers and floats do not say which value is white
            white = next((level for level in (1.0, 255.0) if levels.max() <= level), 65535.0)
        image = Image.fromarray(np.uint8(np.clip(levels / white, 0, 1) * 255 + 0.5))
    elif "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image if image.mode == "RGB" else image.convert("RGB")  # without a needless copy
    try:  # Pillow's own memory, of four bytes a pixel: a copy takes a third as long as to decode
        pixels = torch.from_dlpack(pa.array(image).values).view(image.height, image.width, 4)
    except ValueError:  # it lies in several blocks, as that of large images does
        pixels = torch.from_numpy(np.array(image))
    return pixels[..., :3].permute(2, 0, 1)  # (3, H, W)


@dataclass(frozen=True)
class ImageSet:
    """The images of one split, their names and their labels, as far as these are known.

    Attributes:
        files: data set with one column ``image`` of undecoded images.
        names: n texts, each the file's name below the folder, or the row's number.
        labels: (n,) int64, -1 where unknown.
        classes: class names in label order; empty where no image is labeled.
        on_error: what to do with an unreadable image: stop or skip.
        pixels: when the images are held in memory, else None; selections and the processes of a
            machine share them.
        decoding: what is read of unusual files.
        held_out: (k,) int64 positions of images that are test images too, here without labels:
            stage 1 sees them, and no other stage.
        edited: whether the labels are in a file that people fill in beside the images or name with
            ``--labels``: it may grow, and test images are drawn by their names.
        columns: of a table, those that might hold labels, where none was chosen.
        skipped: names of the unreadable images that were left out when the images were opened.
        locked: names of images that were taken out for testing, and are in no set any more.
        shrunk: n small copies (3, h, w) uint8 of different sizes where ``data.cache`` asks for
            them, else None.
    """

    files: datasets.Dataset
    names: Names
    labels: np.ndarray
    classes: tuple[str, ...]
    on_error: str
    pixels: Pixels | None = None
    decoding: Decoding = USUAL
    held_out: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    edited: bool = False
    columns: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    locked: tuple[str, ...] = ()
    shrunk: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def training_ids(self) -> np.ndarray:
        """(n - k,) int64 positions of the images that stages 2 and 3 may see, ascending."""
        return np.delete(np.arange(len(self)), self.held_out)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the names in their order, and of the images: 16 hexadecimal digits.

        Images in memory are hashed by their pixels. To read all other files would take too long:
        the bytes of ``FINGERPRINTED`` of them are hashed, and in a parquet file, whose names are
        only row numbers, the length of every image.
        """
        digest = hashlib.sha256()
        for number, names in enumerate(self.names.blocks()):
            digest.update(("\n" * (number > 0) + "\n".join(names)).encode())
        if self.pixels is not None:
            for block in self.pixels.blocks():
                digest.update(block.numpy().data)
            return digest.hexdigest()[:16]
        encoded = pc.struct_field(self.files.data.column("image"), "bytes")  # type: ignore[attr-defined]
        digest.update(pc.binary_length(encoded).fill_null(-1).to_numpy())  # type: ignore[attr-defined]
        for index in np.linspace(0, len(self) - 1, min(len(self), FINGERPRINTED), dtype=int):
            with suppress(OSError):  # decoding reports it
                source = self.source(int(index))
                digest.update(source if isinstance(source, bytes) else Path(source).read_bytes())
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
        try:
            return decode_image(self.source(index), self.decoding)
        except Exception as error:  # each decoder has its own
            raise UserError(
                f"cannot read {self._title(index)}: {why_unreadable(error)};"
                f" {_REMOVE_IT}{f' or {remedy}' if (remedy := _remedy(error)) else ''}"
            ) from error

    def source(self, index: int) -> bytes | str:
        """The encoded image or its path; a FileNotFoundError where a parquet file has neither."""
        item = self._item(index)
        encoded, path = item.get("bytes"), item.get("path")
        if encoded:
            return encoded
        if path and os.path.isfile(path):  # to open a FIFO would wait for ever
            return path
        odd = ", or its name is not UTF-8" if path and "\\x" in path else ""
        raise FileNotFoundError(f"no such file{odd}" if path else "it is empty")

    def _item(self, index: int) -> dict:
        """``files[index]["image"]``, which takes three times as long: a thirtieth of two views."""
        selected = self.files._indices  # where `select` was called: which rows of the table
        row = int(index) if selected is None else selected.column(0)[int(index)].as_py()
        return self.files.data.column("image")[row].as_py() or {}  # type: ignore[attr-defined]

    def _title(self, index: int) -> str:
        """What messages call an image."""
        path = self._item(index).get("path")
        return printable(path or f"image {self.names[index]}")

    def select(self, indices: np.ndarray) -> "ImageSet":
        """The images at these positions, none of them held out."""
        return replace(
            self,
            files=self.files.select(indices),
            names=self.names.select(indices),
            labels=self.labels[indices],
            pixels=None if self.pixels is None else self.pixels.select(indices),
            held_out=np.zeros(0, np.int64),
            shrunk=None if self.shrunk is None else tuple(self.shrunk[i] for i in indices),
        )

    def loaded(self, loading: str, workers: int, progress: bool) -> "ImageSet":
        """Decode all images if ``loading`` is memory, or auto and they are few and of one size.

        All images are decoded once, however they are loaded, so that an unreadable one is found
        before anything is trained. Where ``on_error`` is skip, those are left out, and one line
        counts them: no label is spent on them, and no test counts them. The processes of a run
        share that work, and all leave out the same. Where ``on_error`` is stop, sets larger than
        ``CHECKED`` stop only when training meets the image.

        Args:
            loading: memory, workers or auto.
            workers: threads that look for unreadable images.
            progress: show a bar, and that line.

        Raises:
            UserError: images differ in size although ``loading`` is memory, none is readable, or
                one is not and ``on_error`` is stop; the message names the first and counts them.
        """
        if not len(self):
            return self
        if loading != "workers" and (images := self._in_memory(loading, workers, progress)):
            return images
        if self.on_error == "stop" and len(self) > CHECKED:
            unreadable = self._empty()  # images that were never there need no decoding
        else:
            unreadable = self._find_unreadable(np.arange(len(self)), workers, progress)
        if self.on_error == "stop" and len(unreadable):
            self.refuse(unreadable)
        return self.without(unreadable, progress)

    def _in_memory(self, loading: str, workers: int, progress: bool) -> "ImageSet | None":
        """The readable images in memory; None where ``loading`` is auto and they do not fit.

        The processes of a machine hold one copy together, and share the decoding.
        """
        n = len(self)
        first, shape = gather_all([self._first_readable()])[0]  # all go by the main process
        if first and self.on_error == "stop":
            self._refuse_from(0, workers, progress)
        if shape is None:
            return self.without(np.arange(n), progress)  # which refuses it
        if loading == "auto" and math.prod(shape) * n > MEMORY_LIMIT:
            return None
        pixels, own = shared_array((n, *shape))
        found = gather_all([self._decode_into(pixels, range(n)[own], progress)])
        unreadable = np.unique([index for bad, _ in found for index in bad]).astype(int)
        odd = min((odd for _, odd in found if odd), default=None)
        if self.on_error == "stop" and len(unreadable) and (not odd or unreadable[0] < odd[0]):
            self._refuse_from(unreadable[0], workers, progress)
        if odd and loading == "auto":
            return None
        if odd:
            names = printable(self.names[first]), printable(self.names[odd[0]])
            raise UserError(
                f"data.loading=memory needs images of one size, but {names[0]} is"
                f" {size_text(shape)} and {names[1]} is {size_text(odd[1])}; give"
                " --data.loading workers"
            )
        whole = replace(self, pixels=Pixels.of(pixels))
        return whole.without(unreadable, progress)

    def _first_readable(self) -> tuple[int, tuple[int, ...] | None]:
        """Position and shape of the first readable image; no shape where none is.

        Where ``on_error`` is stop, none counts but the very first.
        """
        for index in range(len(self)):
            with suppress(UserError):
                return index, tuple(self.decode(index).shape)
            if self.on_error == "stop":
                break
        return len(self), None

    def _decode_into(
        self, pixels: Tensor, own: range, progress: bool
    ) -> tuple[list[int], tuple[int, tuple[int, ...]] | None]:
        """Decode these images into their rows of an array (n, 3, H, W) uint8.

        Returns:
            The unreadable ones; and where an image has another size, its position and shape.
            Images behind it are not decoded, nor, where ``on_error`` is stop, behind the first
            unreadable one.
        """
        unreadable: list[int] = []
        bar = Progress("decoding", len(own), "images", shown=progress)
        for index in bar.over(own):
            try:
                image = self.decode(index)
            except UserError:
                unreadable.append(index)
                if self.on_error == "stop":
                    break
                continue
            if image.shape != pixels.shape[1:]:
                return unreadable, (index, tuple(image.shape))
            pixels[index] = image
        return unreadable, None

    def _empty(self) -> np.ndarray:
        """Positions of the rows of a parquet file that hold neither an image nor a path."""
        column = self.files.data.column("image")  # type: ignore[attr-defined]
        lengths = [
            pc.binary_length(pc.struct_field(column, field)).fill_null(0).to_numpy()  # type: ignore[attr-defined]
            for field in ("bytes", "path")
        ]
        return np.flatnonzero(np.add(*lengths) == 0)

    def _find_unreadable(self, ids: np.ndarray, workers: int, progress: bool) -> np.ndarray:
        """Those of the positions (k,) whose image cannot be decoded, ascending.

        The processes share the work, and threads, as decoding frees the interpreter.
        """

        def unreadable(block: np.ndarray) -> list[int]:
            bad = []
            for index in block.tolist():
                try:
                    self.decode(index)
                except UserError:
                    bad.append(index)
            return bad

        own = ids[rank() :: world_size()]
        blocks = np.array_split(own, -(-len(own) // 64)) if len(own) else []
        threads = max(1, min(workers, os.cpu_count() or 1))
        bar = Progress("checking", len(blocks), "blocks of 64 images", shown=progress)
        with ThreadPoolExecutor(threads) as pool:
            bad = [index for part in bar.over(pool.map(unreadable, blocks)) for index in part]
        return np.array(sorted(gather_all(bad)), dtype=int)

    def refuse(self, unreadable: Sequence[int] | np.ndarray) -> NoReturn:
        """UserError that names the first of these images and counts the others."""
        try:
            self.decode(int(unreadable[0]))
        except UserError as error:
            if len(unreadable) == 1:
                raise
            first, _, remedy = str(error).partition(_REMOVE_IT)
            raise UserError(
                f"{first}and {len(unreadable) - 1:,} more of the {len(self):,} images cannot be"
                f" read; remove them or give --data.on_error skip{remedy}"
            ) from error
        raise UserError(f"cannot read {self._title(int(unreadable[0]))} at times; try again")

    def _refuse_from(self, first: int, workers: int, progress: bool) -> NoReturn:
        """The same of an unreadable image and of all that are behind it, which are looked for."""
        rest = np.arange(first + 1, len(self))
        self.refuse([first, *self._find_unreadable(rest, workers, progress)])

    def without(self, unreadable: np.ndarray, progress: bool) -> "ImageSet":
        """The other images; one line counts those that are left out."""
        if len(unreadable) == len(self):
            why = self._why_skipped(unreadable)
            raise UserError(f"none of the {len(self)} images can be read{why}")
        if not len(unreadable):
            return self
        names = self.names[unreadable]
        if progress:
            where = " (skipped.txt in the run's folder has all)" if len(names) > 3 else ""
            what = f"{len(names)} unreadable of {len(self)} images"
            say(f"skipped {what}: {abbreviated(names)}{where}{self._why_skipped(unreadable)}")
        kept = self.select(np.delete(np.arange(len(self)), unreadable))
        return replace(kept, skipped=tuple(printable(name) for name in names))

    def _why_skipped(self, unreadable: np.ndarray) -> str:
        """Each reason once, with its images, and the option that reads them all the same."""
        kinds: dict[str, tuple[str, list[str]]] = {}
        for index in unreadable[:REASONED].tolist():
            try:
                decode_image(self.source(index), self.decoding)
            except Exception as error:  # each decoder has its own
                reason, remedy = why_unreadable(error), _remedy(error)
                reason += f" (to read it: {remedy})" if remedy else ""
                kind = re.sub("b'.*?'|[0-9,]+", "", reason)  # bytes, sizes and positions differ
                kinds.setdefault(kind, (reason, []))[1].append(self.names[index])
        commonest = sorted(kinds.values(), key=lambda kind: -len(kind[1]))
        parts = [f"; {abbreviated(names, 1)}: {reason}" for reason, names in commonest]
        if len(parts) > 5:
            parts[5:] = [f"; {len(parts) - 5} other reasons"]
        looked_at = f" (of the first {REASONED})" if len(unreadable) > REASONED else ""
        return "".join(parts) + looked_at


def why_unreadable(error: Exception) -> str:
    """What a decoder says of an image, on one line, for messages."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:  # without the path
        return error.strerror
    return printable(error)[:200] or type(error).__name__


def _remedy(error: Exception) -> str:
    """The option that reads such a file all the same, for messages."""
    if isinstance(error, Image.DecompressionBombError):
        return "a larger --data.max_pixels"
    return "--data.load_truncated true" if "truncated" in str(error) else ""


def size_text(shape: Sequence[int]) -> str:
    """``width x height`` of an image of the shape (3, H, W), for messages."""
    return f"{shape[2]}x{shape[1]}"


class Splits(NamedTuple):
    """Training images (labeled or not) and test images; ``test`` is None where none has labels."""

    train: ImageSet
    test: ImageSet | None
