"""Any Hugging Face data set, image folder or parquet file as one ``ImageSet``.

Small data sets sit in memory as uint8; of large ones the undecoded files are kept, and workers
decode them (``shared/data/batches.py``). Which labels training may see is decided in
``shared/data/labels.py``.
"""

import csv
import glob
import hashlib
import io
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from tqdm import tqdm

from shared.config.labelset import LabelSet
from shared.config.schema import Data
from shared.runtime.errors import UserError

MEMORY_LIMIT = 2 * 2**30  # bytes of uint8 pixels that data.loading=auto keeps in memory
FINGERPRINTED = 1000  # files of images not in memory whose bytes are looked at
UNLABELED = -1
SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".jp2",
    ".avif",
    ".ppm",
    ".pgm",
    ".pbm",
)
_HUB_NAME = re.compile(
    r"(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<config>[\w.+-]+))?(@(?P<split>\w.*))?"
)
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
        ImageOps.exif_transpose(file, in_place=True)  # loads it, and copies no upright one
        image: Image.Image = file
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        if image.mode.startswith("I;16") or file.format == "PNG":
            full = 65535.0
        else:  # 32-bit integers or floats do not say what white is
            full = next((full for full in (1.0, 255.0) if values.max() <= full), 65535.0)
        image = Image.fromarray(np.uint8(np.clip(values / full, 0, 1) * 255 + 0.5))
    elif "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image if image.mode == "RGB" else image.convert("RGB")  # without a needless copy
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)


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
        """Hash of the names in their order, and of the images.

        Of the pixels where they are in memory. Else, because reading it all would take too long,
        of the bytes of ``FINGERPRINTED`` files, and of the length of every one in a parquet file,
        whose names are only row numbers.
        """
        digest = hashlib.sha256("\n".join(map(str, self.names)).encode())
        if self.pixels is not None:
            digest.update(self.pixels.numpy().data)
            return digest.hexdigest()[:16]
        encoded = pc.struct_field(self.files.data.column("image"), "bytes")  # type: ignore[attr-defined]
        digest.update(pc.binary_length(encoded).fill_null(-1).to_numpy())  # type: ignore[attr-defined]
        for index in np.linspace(0, len(self) - 1, min(len(self), FINGERPRINTED), dtype=int):
            with suppress(OSError):  # decoding it will say so
                item = self.files[int(index)]["image"]
                digest.update(item["bytes"] or Path(item["path"]).read_bytes())
        return digest.hexdigest()[:16]

    @cached_property
    def labels_fingerprint(self) -> str:
        """Hash of what is known of the labels, and of the classes' names."""
        text = "\n".join(self.classes).encode() + self.labels.astype("<i8").tobytes()
        return hashlib.sha256(text).hexdigest()[:16]

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
            what = "not an image" if isinstance(error, UnidentifiedImageError) else error
            raise UserError(
                f"cannot read {where}: {what}; remove it or give --data.on_error skip"
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
                    "data.loading=memory needs images of one size, but"
                    f" {self.names[readable[0]]} is {_size(pixels[0])} and {self.names[index]} is"
                    f" {_size(image)}; give --data.loading workers"
                )
            pixels[len(readable)] = image
            readable.append(index)
        if pixels is None:
            raise UserError(f"none of the {len(self)} images can be read")
        if len(readable) == len(self):
            return replace(self, pixels=pixels)
        if progress:
            bad = np.setdiff1d(np.arange(len(self)), readable)
            print(f"skipped {len(bad)} unreadable of {len(self)} images: {some(self.names[bad])}")
        kept = self.select(np.array(readable))
        return replace(kept, pixels=pixels[: len(readable)].clone())


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


def _open(source: str) -> dict[str, datasets.Dataset]:
    """All splits of a source, by name."""
    if source == "digits":
        return {"train": _digits()}
    path = Path(source).expanduser()
    if source and path.is_dir():
        return _open_folder(path.absolute(), source)
    if path.suffix == ".parquet" and path.is_file():
        return dict(_load(source, "parquet", data_files={"train": glob.escape(str(path))}))
    hub = _HUB_NAME.fullmatch(source)
    if path.exists():
        raise UserError(f"{source} is not a .parquet file, a folder or a hub name")
    if path.suffix == ".parquet" or not hub:
        raise UserError(f"no such folder or file: {source}")
    name, config, split = hub["name"], hub["config"], hub["split"]
    loaded = _load(source, name, config, split=split)
    return {split: loaded} if split else dict(loaded)


def _load(source: str, *args: Any, **options: Any) -> Any:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its eleven lines of retries
    try:
        return datasets.load_dataset(*args, **options)
    except ConnectionError as error:
        raise UserError(
            f"no folder or file is called {source!r}, and the hub cannot be reached"
        ) from error
    except Exception as error:  # its many loaders raise anything, and mean the data
        cause = error.__cause__ or error
        raise UserError(f"cannot load {source}: {' '.join(str(cause).split())[:300]}") from error


def _open_folder(root: Path, source: str) -> dict[str, datasets.Dataset]:
    """A folder's train/ and test/ folders, or itself; parquet and metadata files are the hub's."""
    foreign = ("*.parquet", "metadata.csv", "metadata.jsonl")
    if any(next(root.glob(p + name), None) for p in ("", "*/") for name in foreign):
        return dict(_load(source, str(root)))
    parts = {
        part: root / part
        for part in ("train", "test", "validation", "val")
        if (root / part).is_dir()
    }
    if parts and "train" not in parts:
        raise UserError(
            f"{source} has a folder {next(iter(parts))}/ but none called train/; move"
            f" the training images into {source}/train/"
        )
    parts = parts or {"train": root}
    found = {part: _folder(folder) for part, folder in parts.items()}
    if not len(found["train"]):
        raise UserError(
            f"no images in {source}: expected {source}/<class>/*.png or images"
            f" ({' '.join(SUFFIXES)})"
        )
    return found


def _folder(root: Path) -> datasets.Dataset:
    """The images in and below a folder; its own folders are the classes, if there are several."""
    paths = []
    for here, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        paths += [
            os.path.join(here, name)
            for name in sorted(files)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    below = len(os.path.join(root, ""))
    tops = [path[below:].partition(os.sep) for path in paths]
    classes = sorted({top for top, inside, _ in tops if inside})
    columns: dict[str, list] = {"image": paths}
    features = datasets.Features(image=datasets.Image())
    if len(classes) > 1:
        number = {name: index for index, name in enumerate(classes)}
        columns["label"] = [number[top] if inside else UNLABELED for top, inside, _ in tops]
        features["label"] = datasets.ClassLabel(names=classes)
    return datasets.Dataset.from_dict(columns, features=features)


def _digits() -> datasets.Dataset:
    """scikit-learn's 1,797 scanned digits, 8 x 8 pixels in 17 grey levels."""
    levels, digits = load_digits(return_X_y=True)
    grey = np.uint8(np.rint(levels * (255 / 16))).reshape(-1, 8, 8)
    columns = {"image": [Image.fromarray(image) for image in grey], "label": digits}
    names = [str(digit) for digit in range(10)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    return datasets.Dataset.from_dict(columns, features=features)


def _column(
    found: list[str], wanted: str | None, dataset: datasets.Dataset, kind: str, need: bool
) -> str | None:
    if wanted in dataset.column_names:
        return wanted
    if wanted is not None and need:
        raise UserError(
            f"data.{kind}_column={wanted} is not a column; there are"
            f" {', '.join(dataset.column_names)}"
        )
    if len(found) > 1:
        raise UserError(
            f"several {kind} columns: {', '.join(found)}; choose with --data.{kind}_column"
        )
    return found[0] if found else None


def _image_set(
    dataset: datasets.Dataset, data: Data, source: str, need: bool = True, labeled: bool = True
) -> ImageSet:
    """Find the columns; ``need`` is whether the named ones must be there."""
    features = dataset.features
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    found = found or [name for name, feature in features.items() if _holds_bytes(feature)]
    image = _column(found, data.image_column, dataset, "image", need)
    if image is None:
        raise UserError(f"{source} has no image column; its columns are {', '.join(features)}")
    labels, classes = np.full(len(dataset), UNLABELED), ()
    if labeled:
        found = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        found = found or [name for name in ("label", "labels", "class") if name in features]
        label = _column(found, data.label_column, dataset, "label", need)
        if label is not None:
            labels, classes = _labels(dataset[label][:], features[label], label)
    files = dataset.select_columns([image])
    files = files if image == "image" else files.rename_column(image, "image")
    try:
        files = files.cast_column("image", datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"data.image_column={image} holds no images in {source}") from error
    paths = pc.struct_field(files.data.column("image"), "path").to_pylist()  # type: ignore[attr-defined]
    root = os.path.join(Path(source).expanduser().absolute(), "")
    names = [path.removeprefix(root) for path in paths if path]
    if len(set(names)) < len(paths):  # no names, or ambiguous ones
        names = [str(row) for row in range(len(paths))]
    return ImageSet(files, np.array(names, dtype=object), labels, classes, data.on_error)


def _holds_bytes(feature: Any) -> bool:
    """Whether a column may be the images of a parquet file that another program wrote."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _labels(values: list, feature: Any, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Classes (n,) int64 and their names; null, NaN and -1 mean an unlabeled image."""
    known = np.array([value not in (None, UNLABELED) and value == value for value in values], bool)
    labels = np.full(len(values), UNLABELED)
    if isinstance(feature, datasets.ClassLabel):
        labels[known] = [value for value, there in zip(values, known, strict=True) if there]
        return labels, tuple(feature.names)
    if not isinstance(feature, datasets.Value):
        raise UserError(f"data.label_column={column} holds {feature}, not one class per image")
    distinct, labels[known] = np.unique(
        np.array([value for value, there in zip(values, known, strict=True) if there]),
        return_inverse=True,
    )
    if distinct.dtype.kind == "f" and (distinct == distinct.round()).all():
        distinct = distinct.astype(np.int64)  # whole numbers, made float by a null among them
    return labels, tuple(str(value) for value in distinct)


class Splits(NamedTuple):
    """Training images (labeled or not) and test images; ``test`` is None where none has labels."""

    train: ImageSet
    test: ImageSet | None


def open_data(data: Data, labels: LabelSet, progress: bool = False) -> Splits:
    """Open training and test images, with the extra unlabeled ones behind the training images.

    Args:
        data: the section of the configuration.
        labels: the label set; a CSV file supplies the labels of images that have none.
        progress: show a bar while decoding.

    Raises:
        UserError: where there is no such source, no image in it, or classes that do not agree.
    """
    return open_splits(data, labels.table, progress)


@lru_cache(maxsize=1)
def open_splits(data: Data, table: Path | None, progress: bool) -> Splits:
    """What ``open_data`` returns, kept until other data are asked for."""
    if not (progress and sys.stderr.isatty()):
        datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*Repo card metadata.*")
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors become ours
    sources = _open(data.train)
    name = "train" if "train" in sources else next(iter(sources))
    train = _image_set(sources[name], data, data.train)
    if table is not None:
        train = _labeled_by(train, table)
    test = _test_images(data, {key: part for key, part in sources.items() if key != name})
    train = train.in_memory(data.loading, progress)
    if test is None:
        train, test = _hold_out(train, data)
        if train.classes and test is None and progress:
            counts = np.bincount(train.labels[train.labels != UNLABELED])
            single = [train.classes[k] for k in np.flatnonzero(counts == 1)]
            which = f", {some(single)} with one image" if single else ""
            print(f"no test images: too few labeled ones to hold some out{which}; give --data.test")
    else:
        test = _same_classes(test.in_memory(data.loading, progress), train)
    if data.unlabeled is not None:
        train = _append(train, data, progress)
    return Splits(train, test)


def _test_images(data: Data, others: dict[str, datasets.Dataset]) -> ImageSet | None:
    """The first labeled one of the test and validation splits; the hub's tests may lack labels."""
    parts, source = others, data.train
    if data.test is not None:
        parts, source = _open(data.test), data.test
    names = [name for name in ("test", "validation", "val") if name in parts]
    if data.test is not None and not names:
        names = list(parts)[:1]
    for name in names:
        images = _image_set(parts[name], data, source, need=False)
        if (images.labels != UNLABELED).any():
            return images
    if data.test is not None:
        raise UserError(f"the test images in {data.test} have no labels")
    return None


def _labeled_by(images: ImageSet, file: Path) -> ImageSet:
    """Labels from a CSV file, where the images have none or folders that are not its classes."""
    rows = read_csv(file)
    classes = tuple(sorted({label for _, label in rows}))
    if not set(classes).isdisjoint(images.classes):
        return images
    number = {label: index for index, label in enumerate(classes)}
    labels = np.full(len(images), UNLABELED)
    ids = find(Splits(images, None), [name for name, _ in rows], file)
    labels[ids] = [number[label] for _, label in rows]
    return replace(images, labels=labels, classes=classes)


def _hold_out(train: ImageSet, data: Data) -> tuple[ImageSet, ImageSet | None]:
    """Split off a stratified test part of the labeled images, with every class on both sides."""
    labeled = np.flatnonzero(train.labels != UNLABELED)
    counts = np.unique(train.labels[labeled], return_counts=True)[1]
    size = math.ceil(len(labeled) * data.test_fraction)
    if not len(counts) or counts.min() < 2 or not len(counts) <= size <= len(labeled) - len(counts):
        return train, None
    _, test = train_test_split(
        labeled, test_size=size, stratify=train.labels[labeled], random_state=data.split_seed
    )
    rest = np.setdiff1d(np.arange(len(train)), test)
    return train.select(rest), train.select(np.sort(test))


def _same_classes(test: ImageSet, train: ImageSet) -> ImageSet:
    if not train.classes or test.classes == train.classes:
        return test
    unknown = [name for name in test.classes if name not in train.classes]
    if unknown:
        raise UserError(
            f"the test images have classes that the training images lack: {some(unknown)}"
        )
    number = np.array([train.classes.index(name) for name in test.classes])
    labels = np.where(test.labels == UNLABELED, UNLABELED, number[test.labels])
    return replace(test, labels=labels, classes=train.classes)


def _append(train: ImageSet, data: Data, progress: bool) -> ImageSet:
    assert data.unlabeled is not None
    parts = _open(data.unlabeled)
    name = next((name for name in ("unlabeled", "train") if name in parts), next(iter(parts)))
    more = _image_set(parts[name], data, data.unlabeled, need=False, labeled=False)
    more = more.in_memory(data.loading, progress)
    pixels = None
    if train.pixels is not None and more.pixels is not None:
        if train.pixels.shape[1:] == more.pixels.shape[1:]:
            pixels = torch.cat([train.pixels, more.pixels])
        elif data.loading == "memory":
            raise UserError(
                f"data.loading=memory needs images of one size, but those of data.train are"
                f" {_size(train.pixels[0])} and those of data.unlabeled {_size(more.pixels[0])};"
                " give --data.loading workers"
            )
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
    """Positions of the named training images; -1 for those held out for testing.

    An image may be named by its whole name or by the end of it, from any folder on.

    Raises:
        UserError: where a name fits no image, or several.
    """
    train, test = splits
    whole: dict[str, int] = {}
    ends: dict[str, list[int]] = {}
    for images in (train, test):
        for index, name in enumerate(images.names if images else ()):
            position = index if images is train else -1
            whole.setdefault(name, position)
            for end in _ends(name):
                ends.setdefault(end, []).append(position)
    unknown = [name for name in names if name not in whole and name not in ends]
    if unknown:
        raise UserError(
            f"{file} names {len(unknown)} unknown images: {some(unknown)}; the images"
            f" are called like {some(train.names)}"
        )
    several = [name for name in names if name not in whole and len(ends[name]) > 1]
    if several:
        raise UserError(
            f"{file}: {some(several)} may be several images; write more of the path,"
            f" as in {some(train.names)}"
        )
    return np.array(
        [whole[name] if name in whole else ends[name][0] for name in names], dtype=np.int64
    )


def _ends(name: str) -> Iterator[str]:
    """What is left of a path without its first folder, first two, ...: ``a/b/c``: b/c, c."""
    while "/" in name:
        name = name.partition("/")[2]
        yield name
    # the hub's ImageNet repeats the class: n01440764_1_n01440764.JPEG
    short = re.sub(r"^(n\d{8}_\d+)_n\d{8}(?=\.)", r"\1", name)
    if short != name:
        yield short


def some(names: Iterable[Any]) -> str:
    """The first three and how many more, for messages."""
    names = [str(name) for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
