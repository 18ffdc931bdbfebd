"""What ``data.train``, ``data.test`` and ``data.unlabeled`` may name, opened as image sets.

A source is the embedded digits, a folder of images, a parquet file, or a data set of the hub. Which
labels training may see is decided in ``shared/data/labels.py``.
"""

import glob
import logging
import math
import os
import re
import sys
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from shared.config.labelset import LabelSet
from shared.config.schema import Data
from shared.data.cache import shrunk
from shared.data.images import UNLABELED, ImageSet, Splits, abbreviated, size_text
from shared.data.labels import find_images, read_csv
from shared.runtime.errors import UserError

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
    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # hides its eleven lines about retries
    try:
        return datasets.load_dataset(*args, **options)
    except ConnectionError as error:
        raise UserError(
            f"no folder or file is called {source!r}, and the hub cannot be reached"
        ) from error
    except Exception as error:  # its loaders raise all kinds of errors
        cause = error.__cause__ or error
        raise UserError(f"cannot load {source}: {' '.join(str(cause).split())[:300]}") from error


def _open_folder(root: Path, source: str) -> dict[str, datasets.Dataset]:
    """The splits of a folder: its train/ and test/ folders, or the folder itself as train.

    Hugging Face opens a folder with parquet or metadata files.
    """
    foreign = ("*.parquet", "metadata.csv", "metadata.jsonl")
    if any(next(root.glob(level + name), None) for level in ("", "*/") for name in foreign):
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
    splits = {part: _folder(folder) for part, folder in parts.items()}
    if not len(splits["train"]):
        raise UserError(
            f"no images in {source}: expected {source}/<class>/*.png or images"
            f" ({' '.join(SUFFIXES)})"
        )
    return splits


def _folder(root: Path) -> datasets.Dataset:
    """All images below a folder; its direct subfolders are the classes, if there are several."""
    paths = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        paths += [
            os.path.join(folder, name)
            for name in sorted(files)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    prefix = len(os.path.join(root, ""))
    parts = [path[prefix:].partition(os.sep) for path in paths]  # first name, separator, rest
    classes = sorted({name for name, separator, _ in parts if separator})
    columns: dict[str, list] = {"image": paths}
    features = datasets.Features(image=datasets.Image())
    if len(classes) > 1:
        number = {name: index for index, name in enumerate(classes)}
        columns["label"] = [
            number[name] if separator else UNLABELED for name, separator, _ in parts
        ]
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


def _choose_column(
    candidates: list[str], option: str | None, dataset: datasets.Dataset, kind: str, required: bool
) -> str | None:
    """The column that ``data.<kind>_column`` names, else the only candidate; None without any."""
    if option in dataset.column_names:
        return option
    if option is not None and required:
        raise UserError(
            f"data.{kind}_column={option} is not a column; there are"
            f" {', '.join(dataset.column_names)}"
        )
    if len(candidates) > 1:
        raise UserError(
            f"several {kind} columns: {', '.join(candidates)}; choose with --data.{kind}_column"
        )
    return candidates[0] if candidates else None


def _image_set(
    dataset: datasets.Dataset, data: Data, source: str, required: bool = True, labeled: bool = True
) -> ImageSet:
    """A split as an image set; ``required``: the columns that options name must be there."""
    features = dataset.features
    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    columns = columns or [name for name, feature in features.items() if _holds_bytes(feature)]
    image = _choose_column(columns, data.image_column, dataset, "image", required)
    if image is None:
        raise UserError(f"{source} has no image column; its columns are {', '.join(features)}")
    labels, classes = np.full(len(dataset), UNLABELED), ()
    if labeled:
        columns = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        columns = columns or [name for name in ("label", "labels", "class") if name in features]
        label = _choose_column(columns, data.label_column, dataset, "label", required)
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
    known_values = [value for value, is_known in zip(values, known, strict=True) if is_known]
    labels = np.full(len(values), UNLABELED)
    if isinstance(feature, datasets.ClassLabel):
        labels[known] = known_values
        return labels, tuple(feature.names)
    if not isinstance(feature, datasets.Value):
        raise UserError(f"data.label_column={column} holds {feature}, not one class per image")
    distinct, labels[known] = np.unique(np.array(known_values), return_inverse=True)
    if distinct.dtype.kind == "f" and (distinct == distinct.round()).all():
        distinct = distinct.astype(np.int64)  # whole numbers; a null among them made them floats
    return labels, tuple(str(value) for value in distinct)


def open_data(data: Data, labels: LabelSet, progress: bool = False) -> Splits:
    """Open training and test images, with the extra unlabeled ones behind the training images.

    Args:
        data: the section of the configuration.
        labels: the label set; a CSV file supplies the labels of images that have none.
        progress: show a bar while decoding.

    Raises:
        UserError: there is no such source, it holds no image, or the classes of training and test
            images differ.
    """
    return open_splits(data, labels.csv_file, progress)


@lru_cache(maxsize=1)
def open_splits(data: Data, table: Path | None, progress: bool) -> Splits:
    """As ``open_data``; the result is kept until other data are opened."""
    if not (progress and sys.stderr.isatty()):
        datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*Repo card metadata.*")
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # _load reports its errors
    sources = _open(data.train)
    name = "train" if "train" in sources else next(iter(sources))
    train = _image_set(sources[name], data, data.train)
    if table is not None:
        train = _labeled_by(train, table)
    test = _test_images(data, {key: part for key, part in sources.items() if key != name})
    train = _decoded(train, data, progress)
    if test is None:
        train, test = _hold_out(train, data)
        if train.classes and test is None and progress:
            _print_why_none_held_out(train)
    else:
        test = _same_classes(_decoded(test, data, progress), train)
    if data.unlabeled is not None:
        train = _append_unlabeled(train, data.unlabeled, data, progress)
    return Splits(train, test)


def _decoded(images: ImageSet, data: Data, progress: bool) -> ImageSet:
    """The images with their small copies, or in memory, or as they are."""
    if data.cache is not None:
        return shrunk(images, data, progress)
    return images.in_memory(data.loading, progress)


def _test_images(data: Data, others: dict[str, datasets.Dataset]) -> ImageSet | None:
    """The first test or validation split with labels: many test splits of the hub have none."""
    parts, source = others, data.train
    if data.test is not None:
        parts, source = _open(data.test), data.test
    names = [name for name in ("test", "validation", "val") if name in parts]
    if data.test is not None and not names:
        names = list(parts)[:1]
    for name in names:
        images = _image_set(parts[name], data, source, required=False)
        if (images.labels != UNLABELED).any():
            return images
    if data.test is not None:
        raise UserError(f"the test images in {data.test} have no labels")
    return None


def _labeled_by(images: ImageSet, file: Path) -> ImageSet:
    """The images with the labels of a CSV file, unless their own classes are those of the file."""
    rows = read_csv(file)
    classes = tuple(sorted({label for _, label in rows}))
    if not set(classes).isdisjoint(images.classes):
        return images
    number = {label: index for index, label in enumerate(classes)}
    labels = np.full(len(images), UNLABELED)
    ids = find_images(Splits(images, None), [name for name, _ in rows], file)
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


def _print_why_none_held_out(train: ImageSet) -> None:
    counts = np.bincount(train.labels[train.labels != UNLABELED])
    single = [train.classes[k] for k in np.flatnonzero(counts == 1)]
    names = f", {abbreviated(single)} with one image" if single else ""
    print(f"no test images: too few labeled ones to hold some out{names}; give --data.test")


def _same_classes(test: ImageSet, train: ImageSet) -> ImageSet:
    """The test images with the training images' class numbers; classes are matched by name."""
    if not train.classes or test.classes == train.classes:
        return test
    unknown = [name for name in test.classes if name not in train.classes]
    if unknown:
        raise UserError(
            f"the test images have classes that the training images lack: {abbreviated(unknown)}"
        )
    number = np.array([train.classes.index(name) for name in test.classes])
    labels = np.where(test.labels == UNLABELED, UNLABELED, number[test.labels])
    return replace(test, labels=labels, classes=train.classes)


def _append_unlabeled(train: ImageSet, source: str, data: Data, progress: bool) -> ImageSet:
    """The training images, and behind them those of ``data.unlabeled``, without their labels."""
    parts = _open(source)
    name = next((name for name in ("unlabeled", "train") if name in parts), next(iter(parts)))
    extra = _image_set(parts[name], data, source, required=False, labeled=False)
    extra = _decoded(extra, data, progress)
    pixels = None
    if train.pixels is not None and extra.pixels is not None:
        if train.pixels.shape[1:] == extra.pixels.shape[1:]:
            pixels = torch.cat([train.pixels, extra.pixels])
        elif data.loading == "memory":
            sizes = size_text(train.pixels[0]), size_text(extra.pixels[0])
            raise UserError(
                f"data.loading=memory needs images of one size, but those of data.train are"
                f" {sizes[0]} and those of data.unlabeled {sizes[1]}; give --data.loading workers"
            )
    copies = None
    if train.shrunk is not None and extra.shrunk is not None:
        copies = train.shrunk + extra.shrunk
    return replace(
        train,
        files=datasets.concatenate_datasets([train.files, extra.files]),
        names=np.concatenate([train.names, "unlabeled/" + extra.names]),
        labels=np.concatenate([train.labels, np.full(len(extra), UNLABELED)]),
        pixels=pixels,
        shrunk=copies,
    )
