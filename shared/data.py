"""Any Hugging Face data set, image folder or parquet file as one ``ImageSet``.

Small data sets sit in memory as uint8; of large ones the undecoded files are kept, and workers
decode them (``shared/batches.py``). Which labels training may see is decided in
``shared/labels.py``.
"""

import csv
import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from tqdm import tqdm

from shared.config import Data
from shared.errors import UserError

MEMORY_LIMIT = 2 * 2**30  # bytes of uint8 pixels that data.loading=auto keeps in memory
UNLABELED = -1
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def decode_image(source: str | bytes) -> Tensor:
    """Decode an image file to RGB, uint8 (3, H, W), turned as its EXIF orientation says.

    Grey becomes three equal channels, transparency is laid over white, palette and CMYK are
    converted, and 16-bit values are scaled to 8 bits.

    Args:
        source: path, or the encoded bytes.

    Raises:
        OSError: and other exceptions of Pillow, where the file cannot be read.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith(("I", "F")):  # 16 bits in a 16- or 32-bit container, or floats
        values = np.asarray(image, dtype=np.float64)
        full = 1.0 if image.mode == "F" and values.max() <= 1 else 255.0
        full = 65535.0 if values.max() > 255 else full
        image = Image.fromarray(np.uint8(np.clip(values / full, 0, 1) * 255 + 0.5))
    elif "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)  # (3, H, W)


@dataclass(frozen=True)
class ImageSet:
    """The images of one split, with names and what is known of their labels.

    Attributes:
        files: data set with one column ``image`` of undecoded images.
        names: (n,) file name below the folder, or row number.
        labels: (n,) int64, -1 where unknown.
        classes: class names in label order; empty where nothing is labeled.
        pixels: (n, 3, H, W) uint8 when the images are held in memory, else None.
        on_error: stop or skip, at an unreadable image.
    """

    files: datasets.Dataset
    names: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    on_error: str
    pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the names in their order, to notice that a folder's content changed."""
        return hashlib.sha256("\n".join(map(str, self.names)).encode()).hexdigest()[:16]

    def decode(self, index: int) -> Tensor:
        """Image ``index`` as uint8 (3, H, W).

        Raises:
            UserError: naming the file, where it cannot be read.
        """
        if self.pixels is not None:
            return self.pixels[index]
        item = self.files[int(index)]["image"]
        try:
            return decode_image(item["bytes"] if item["bytes"] is not None else item["path"])
        except _UNREADABLE as error:
            where = item["path"] or f"image {self.names[index]}"
            raise UserError(
                f"cannot read {where}: {error}; remove it or give --data.on_error skip"
            ) from error

    def select(self, indices: np.ndarray) -> "ImageSet":
        """The images at these positions."""
        return replace(
            self,
            files=self.files.select(indices),
            names=self.names[indices],
            labels=self.labels[indices],
            pixels=None if self.pixels is None else self.pixels[indices],
        )

    def in_memory(self, loading: str, progress: bool) -> "ImageSet":
        """Decode everything if ``loading`` asks for it or, with auto, if it is small and even.

        Unreadable images are dropped where ``on_error`` is skip, with one line that counts them.

        Raises:
            UserError: where images differ in size although ``loading`` is memory.
        """
        if loading == "workers" or not len(self):
            return self
        pixels: Tensor | None = None
        readable: list[int] = []
        for index in tqdm(
            range(len(self)), "decode", unit="image", disable=None if progress else True
        ):
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
                raise UserError(
                    f"data.loading=memory needs images of one size, but {self.names[readable[0]]} is"
                    f" {_size(pixels[0])} and {self.names[index]} is {_size(image)};"
                    " give --data.loading workers"
                )
            pixels[len(readable)] = image
            readable.append(index)
        if pixels is None:
            raise UserError(f"none of the {len(self)} images can be read")
        if len(readable) == len(self):
            return replace(self, pixels=pixels)
        if progress:
            bad = sorted(set(range(len(self))) - set(readable))
            names = ", ".join(map(str, self.names[bad[:3]]))
            print(f"skipped {len(bad)} unreadable of {len(self)} images: {names}", flush=True)
        kept = self.select(np.array(readable))
        return replace(kept, pixels=pixels[: len(readable)].clone())


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


def _open(source: str) -> dict[str, datasets.Dataset]:
    """All splits of a source, by name."""
    name, _, split = source.partition("@")
    name, _, config = name.partition(":")
    try:
        if source == "digits":
            return {"train": _digits()}
        path = Path(source).expanduser()
        if path.is_dir():
            # its own splits (train/, test/), class folders, flat images or parquet files
            return dict(_load(str(path)))
        if path.is_file() or path.suffix == ".parquet":
            if path.suffix != ".parquet":
                raise UserError(f"{source} is not a .parquet file, a folder or a hub name")
            return dict(_load("parquet", data_files={"train": str(path)}))
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            raise UserError(f"no such folder or file: {source}")
        if split:
            return {split: _load(name, config or None, split=split)}
        return dict(_load(name, config or None))
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(f"no folder, file or hub data set is called {source!r}") from error
    except (datasets.data_files.EmptyDatasetError, FileNotFoundError) as error:
        raise UserError(
            f"no images in {source}: expected {source}/<class>/*.png or images"
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        if isinstance(error, UserError):
            raise
        cause = error.__cause__ or error
        raise UserError(f"cannot load {source}: {' '.join(str(cause).split())[:300]}") from error


def _load(*args: Any, **options: Any) -> Any:
    try:
        return datasets.load_dataset(*args, **options)
    except ConnectionError as error:
        raise UserError(
            f"no folder or file is called {args[0]!r}, and the hub cannot be reached"
        ) from error


def _digits() -> datasets.Dataset:
    """scikit-learn's 1,797 scanned digits, 8 x 8 pixels in 17 grey levels."""
    bunch = load_digits()
    grey = np.uint8(np.rint(bunch.images * (255 / 16)))  # (1797, 8, 8)
    columns = {"image": [Image.fromarray(image) for image in grey], "label": bunch.target}
    names = [str(digit) for digit in range(10)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    return datasets.Dataset.from_dict(columns, features=features)


def _column(
    found: list[str], wanted: str | None, dataset: datasets.Dataset, kind: str
) -> str | None:
    if wanted is not None:
        if wanted not in dataset.column_names:
            raise UserError(f"data.{kind}_column={wanted} is not a column; there are"
                            f" {', '.join(dataset.column_names)}")  # fmt: skip
        return wanted
    if len(found) > 1:
        raise UserError(
            f"several {kind} columns: {', '.join(found)}; choose with --data.{kind}_column"
        )
    return found[0] if found else None


def _image_set(dataset: datasets.Dataset, data: Data, source: str) -> ImageSet:
    features = dataset.features
    kinds = {name: type(feature) for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind is datasets.Image]
    image = _column(images, data.image_column, dataset, "image")
    if image is None:
        raise UserError(f"{source} has no image column; its columns are {', '.join(kinds)}")
    found = [name for name, kind in kinds.items() if kind is datasets.ClassLabel]
    found = found or [name for name in ("label", "labels", "class") if name in kinds]
    label = _column(found, data.label_column, dataset, "label")
    labels, classes = np.full(len(dataset), UNLABELED), ()
    if label is not None:
        values = np.asarray(dataset.with_format("numpy")[label][:])
        if kinds[label] is datasets.ClassLabel:
            labels, classes = values.astype(np.int64), tuple(features[label].names)
        else:
            distinct, labels = np.unique(values, return_inverse=True)
            classes = tuple(str(value) for value in distinct)
    files = dataset.select_columns([image])
    files = files if image == "image" else files.rename_column(image, "image")
    files = files.cast_column("image", datasets.Image(decode=False))
    paths = pc.struct_field(files.data.column("image"), "path").to_pylist()  # type: ignore[attr-defined]
    root = Path(source).expanduser()
    if root.is_dir() and all(path and os.path.isabs(path) for path in paths):
        names = [os.path.relpath(path, root.absolute()) for path in paths]
    else:
        names = [path or str(row) for row, path in enumerate(paths)]
    return ImageSet(files, np.array(names, dtype=object), labels, classes, data.on_error)


class Splits(NamedTuple):
    """Training images (labeled or not) and test images; ``test`` is None where none has labels."""

    train: ImageSet
    test: ImageSet | None


@lru_cache(maxsize=1)
def open_data(data: Data, labels: str, progress: bool = False) -> Splits:
    """Open training and test images, with the extra unlabeled ones behind the training images.

    Args:
        data: the section of the configuration.
        labels: its ``labels``; a CSV file supplies the labels of images that have none.
        progress: show a bar while decoding.

    Raises:
        UserError: where there is no such source, no image in it, or classes that do not agree.
    """
    if not progress:
        datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*Repo card metadata.*")
    sources = _open(data.train)
    name = "train" if "train" in sources else next(iter(sources))
    train = _image_set(sources[name], data, data.train)
    if not train.classes and labels.endswith(".csv"):
        train = _labeled_by(train, Path(labels))
    test = None
    if data.test is not None:
        parts = _open(data.test)
        part = next((parts[k] for k in ("test", "validation") if k in parts), None)
        test = _image_set(part or next(iter(parts.values())), data, data.test)
    elif part := next((k for k in ("test", "validation") if k in sources and k != name), None):
        test = _image_set(sources[part], data, data.train)
    train = train.in_memory(data.loading, progress)
    if test is None:
        train, test = _hold_out(train, data)
    else:
        test = _same_classes(test.in_memory(data.loading, progress), train)
    if data.unlabeled is not None:
        train = _append(train, data, progress)
    return Splits(train, test)


def _labeled_by(images: ImageSet, file: Path) -> ImageSet:
    rows = read_csv(file)
    classes = tuple(sorted({label for _, label in rows}))
    number = {label: index for index, label in enumerate(classes)}
    labels = images.labels.copy()
    ids = find(Splits(images, None), [name for name, _ in rows], file)
    labels[ids] = [number[label] for _, label in rows]
    return replace(images, labels=labels, classes=classes)


def _hold_out(train: ImageSet, data: Data) -> tuple[ImageSet, ImageSet | None]:
    """Split off a stratified test part of the labeled images; the digits' is 360 images."""
    labeled = np.flatnonzero(train.labels != UNLABELED)
    size = 360 if data.train == "digits" else round(len(labeled) * data.test_fraction)
    counts = np.bincount(train.labels[labeled], minlength=len(train.classes))
    if not len(train.classes) or counts.min() < 2 or size < len(train.classes):
        return train, None
    _, test = train_test_split(
        labeled, test_size=size, stratify=train.labels[labeled], random_state=data.split_seed
    )
    rest = np.setdiff1d(np.arange(len(train)), test)
    return train.select(rest), train.select(np.sort(test))


def _same_classes(test: ImageSet, train: ImageSet) -> ImageSet | None:
    if not test.classes or (test.labels == UNLABELED).all():
        return None
    if not train.classes or test.classes == train.classes:
        return test
    unknown = [name for name in test.classes if name not in train.classes]
    if unknown:
        raise UserError(
            f"the test images have classes that the training images lack: {', '.join(unknown[:5])}"
        )
    number = np.array([train.classes.index(name) for name in test.classes])
    return replace(test, labels=number[test.labels], classes=train.classes)


def _append(train: ImageSet, data: Data, progress: bool) -> ImageSet:
    assert data.unlabeled is not None
    parts = _open(data.unlabeled)
    dataset = parts.get("unlabeled") or next(iter(parts.values()))
    more = _image_set(dataset, replace(data, label_column=None), data.unlabeled)
    more = more.in_memory(data.loading, progress)
    pixels = None
    if train.pixels is not None and more.pixels is not None:
        if train.pixels.shape[1:] == more.pixels.shape[1:]:
            pixels = torch.cat([train.pixels, more.pixels])
    return replace(
        train,
        files=datasets.concatenate_datasets([train.files, more.files]),
        names=np.concatenate([train.names, "unlabeled/" + more.names]),
        labels=np.concatenate([train.labels, np.full(len(more), UNLABELED)]),
        pixels=pixels,
    )


def read_text(file: Path) -> str:
    """Content of a label file; UserError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the label file {file}: {error}") from error


def read_csv(file: Path) -> list[tuple[str, str]]:
    """Rows (image name, class name) of a CSV file that begins with file,label."""
    rows = [row for row in csv.reader(read_text(file).splitlines()) if row]
    if not rows or [cell.strip() for cell in rows[0]] != ["file", "label"]:
        raise UserError(f"{file} must begin with the line file,label")
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise UserError(f"{file}, line {number}: expected file,label, got {','.join(row)!r}")
    return [(name.strip(), label.strip()) for name, label in rows[1:]]


def find(splits: Splits, names: list[str], file: Path) -> np.ndarray:
    """Positions of the named training images; -1 for those held out for testing."""
    train, test = splits
    position: dict[str, int] = {}
    for images, value in ((test, lambda _: -1), (train, lambda index: index)):
        for index, name in enumerate(images.names if images else ()):
            position[_short(str(name))] = position[str(name)] = value(index)
    unknown = [name for name in names if name not in position]
    if unknown:
        raise UserError(f"{file} names {len(unknown)} unknown images: {some(unknown)}; the images"
                        f" are called like {some(train.names)}")  # fmt: skip
    return np.array([position[name] for name in names], dtype=np.int64)


def _short(name: str) -> str:
    """The file's own name; the hub's ImageNet repeats the class in it: n01440764_1_n01440764."""
    return re.sub(r"^(n\d{8}_\d+)_n\d{8}(?=\.)", r"\1", os.path.basename(name))


def some(names: Iterable[Any]) -> str:
    """The first three and how many more, for messages."""
    names = [str(name) for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
