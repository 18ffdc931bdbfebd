"""What ``data.train``, ``data.test`` and ``data.unlabeled`` may name, opened as image sets.

A source is the embedded digits, a folder of images, parquet files, or a data set of the hub. Which
labels training may see is decided in ``shared/data/labels.py``.
"""

import glob
import io
import logging
import os
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from accelerate import Accelerator
from datasets import config as datasets_config
from datasets.table import InMemoryTable
from huggingface_hub import constants as hub_constants
from PIL import Image
from pyarrow import parquet

from shared.config.label_file import require_one_file
from shared.config.labelset import LabelSet, is_csv
from shared.config.schema import Config
from shared.config.sections import Data
from shared.data.cache import shrunk
from shared.data.folders import ARCHIVES, SUFFIXES, formats, is_text, open_folder, split_of, walk
from shared.data.images import UNLABELED, Decoding, ImageSet, Splits, size_text
from shared.data.label_files import (
    ImageIndex,
    LabelTable,
    choose_column,
    chosen_class,
    class_text,
    content_columns,
    find_images,
    find_names,
    image_columns,
    is_label,
    label_columns,
    one_hot,
    read_csv,
    require_class_names,
    require_one_image,
    split_column,
)
from shared.data.listings import listing
from shared.data.names import Names
from shared.data.splits import (
    column_line,
    encoding_note,
    folders_line,
    for_testing,
    gives_the_classes,
    hold_out,
    labeled_by,
    no_test_line,
    one_label_each,
    one_side_line,
    read_labels,
    same_classes,
    split_by_column,
    split_line,
    table_line,
    untested_line,
    untrained_line,
    without_absent_classes,
)
from shared.runtime.errors import UserError
from shared.runtime.files import did_you_mean, open_regular, write_atomically
from shared.runtime.media import abbreviated, printable, say

_HUB_NAME = re.compile(
    r"(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<config>[\w.+-]+))?(@(?P<split>\w.*))?"
)

_PATTERN = re.compile(r"[*?]|\[.+\].*\.parquet$")  # of files; name@split[:50%] is the hub's
_SHARD = re.compile(r"(\w+)-[0-9]{5}-of-[0-9]{5}.*")  # unlabeled-00000-of-00001.parquet
TRIED = 20  # CSV files in a folder without labels that are looked into
_TO_PARQUET = (
    "write it as parquet: datasets.Dataset.from_file(FILE.arrow).to_parquet(FILE.parquet), or"
    " datasets.load_from_disk(FOLDER)[SPLIT].to_parquet(FILE.parquet)"
)
_TO_DO = {  # with files that are no source of images
    ".arrow": _TO_PARQUET,
    **dict.fromkeys(
        (".csv", ".tsv", ".txt"), "a file of labels goes to --labels, the images' folder here"
    ),
    **dict.fromkeys(
        (".npz", ".npy", ".h5", ".hdf5", ".mat", ".pkl", ".tfrecord"),
        "write its images as files, or encoded into a .parquet file",
    ),
    **dict.fromkeys(ARCHIVES, "unpack it and give the folder"),
}
OPENED: dict[tuple[Data, Path | None], Splits] = {}  # what `open_data` opened last


def _open(
    source: str, data: Data, progress: bool = False, known: Sequence[str] = ()
) -> dict[str, datasets.Dataset]:
    """All splits of a source, by name, with the labels in one column.

    Args:
        source: as ``data.train``.
        data: the other options.
        progress: print what of a folder is passed over, and which columns are one for each class.
        known: classes of the training images, where the source is another.
    """
    parts = _opened(source, data, progress, known)
    notes: dict[str, None] = {}
    for name, part in parts.items():
        parts[name], note = _with_one_column(part, data, 1 if known or name != "train" else 2)
        notes[note] = None
    for note in filter(None, notes) if progress else ():
        say(f"note: {source}: {note}")
    return parts


def _with_one_column(
    dataset: datasets.Dataset, data: Data, least: int
) -> tuple[datasets.Dataset, str]:
    """The rows, with a further column ``label`` where they have a column for each class; a note.

    ``least``: how many of the classes have to be there.
    """
    kinds, names = dataset.features.values(), dataset.column_names
    chosen = data.label_column in names or label_columns(names)
    if chosen or any(isinstance(kind, datasets.ClassLabel) for kind in kinds):
        return dataset, ""
    columns = _columns_of_bits(dataset)
    classes = one_hot({name: dataset[name][:] for name in columns})
    if classes is None:
        return dataset, ""
    if several := next((row for row in classes if len(row) > 1), None):
        note = f"{abbreviated(columns)} are no classes: an image has {abbreviated(several)}"
        return dataset, note
    labels = ["".join(row) for row in classes]
    if len(set(filter(None, labels))) < least:
        return dataset, ""
    labeled = cast(datasets.Dataset, dataset.add_column("label", labels))
    return labeled, f"a column for each class: {abbreviated(columns, 12)}"


def _columns_of_bits(dataset: datasets.Dataset) -> list[str]:
    """All columns but one, where they hold 0 and 1 in the first rows."""
    names = content_columns(dataset.column_names)
    plain = [name for name in names if _is_plain(dataset.features[name])]
    if len(plain) < 2:
        return []
    first = dataset.select_columns(plain)[:100]
    columns = [name for name in plain if one_hot({"0": first[name], "1": first[name]})]
    return columns if len(columns) == len(names) - 1 else []


def _plain_columns(dataset: datasets.Dataset) -> dict[str, Iterable[Any]]:
    """The columns of numbers or text, whose cells are read when they are asked for."""
    return {name: dataset[name] for name, kind in dataset.features.items() if _is_plain(kind)}


def _is_plain(feature: Any) -> bool:
    """Whether a column holds numbers or text."""
    kinds = ("bool", "int", "uint", "float", "string", "large_string")
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)


def _is_whole(feature: Any) -> bool:
    """Whether a column holds whole numbers."""
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint"))


def _opened(
    source: str, data: Data, progress: bool, known: Sequence[str]
) -> dict[str, datasets.Dataset]:
    """All splits of a source as they are."""
    if source == "digits":
        if progress and os.path.isdir(source):
            say("note: digits are scikit-learn's; the folder of this name is ./digits")
        return {"train": _digits()}
    path = Path(source).expanduser()
    if source.startswith("hf://"):
        return dict(_load(source, "parquet", data_files={"train": source}, progress=progress))
    if source and path.is_dir():
        return _open_folder(path.absolute(), source, data, progress, known)
    if _is_pattern(source):
        files = sorted(glob.glob(str(path), recursive=True))
        others = [file for file in files if not _is_parquet(Path(file))]
        if not files or others:
            what = f"matches {abbreviated(others)}" if files else "matches nothing"
            raise UserError(f"the pattern {source} {what}; it has to name .parquet files")
        parts = _by_split([Path(os.path.abspath(file)) for file in files], _root_of(path))
        if len(parts) > 1 and progress:
            sizes = (f"{split} ({len(files)})" for split, files in parts.items())
            say(f"note: {source}: files of several splits: {abbreviated(sizes)}")
        return _load_parquet(source, parts, progress)
    if _is_parquet(path) and path.is_file():
        return _load_parquet(source, {"train": [path]}, progress)
    hub = _HUB_NAME.fullmatch(source)
    if path.exists():
        to_do = f"; {_TO_DO[suffix]}" if (suffix := path.suffix.lower()) in _TO_DO else ""
        raise UserError(
            f"{source or 'an empty name'} is not a .parquet file, a folder or a hub name{to_do}"
        )
    if _is_parquet(path) or not hub:
        raise UserError(f"no such folder or file: {source}{did_you_mean(path)}")
    name, config, split = hub["name"], hub["config"], hub["split"]
    if progress:  # without a network the answer takes half a minute
        say(f"{printable(source)}: no folder or file here, so a data set of the hub is looked for")
    loaded = _load(source, name, config, split=split, progress=progress)
    return {split: loaded} if split else dict(loaded)


def _root_of(pattern: Path) -> Path:
    """The folder below which the files of a pattern lie, absolute."""
    above = pattern.absolute().parents
    return next(folder for folder in above if not glob.has_magic(str(folder)))


def _by_split(files: list[Path], root: Path) -> dict[str, list[Path]]:
    """Files by the word for a split in their paths below the root, or the hub's name of a shard."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        shard = _SHARD.fullmatch(file.name)
        split = split_of(os.path.relpath(file, root))
        splits.setdefault(split or (shard[1] if shard else "train"), []).append(file)
    return splits


def _load_parquet(
    source: str, parts: dict[str, list[Path]], progress: bool
) -> dict[str, datasets.Dataset]:
    """The splits of these files; each may have a list of classes of its own.

    Raises:
        UserError: a file is none of parquet, or those of a split do not fit together.
    """
    loaded = {}
    for split, files in parts.items():
        features = [_features(file) for file in files]
        other = next((k for k, columns in enumerate(features) if columns != features[0]), 0)
        lists = [*map(_class_lists, features)]
        try:
            if any(of_file != lists[0] for of_file in lists):
                raise UserError("they have different lists of classes")
            data_files = {"train": [glob.escape(str(file)) for file in files]}
            parts_of_one = _load(source, "parquet", data_files=data_files, progress=progress)
            loaded[split] = parts_of_one["train"]
        except UserError as error:
            if not other:
                raise
            raise UserError(
                f"{source}: {files[0].name} and {files[other].name} differ:"
                f" {_difference(features[0], features[other])}; write them alike"
            ) from error
    return loaded


def _difference(one: datasets.Features, other: datasets.Features) -> str:
    """The first column that two files have not alike, and what it is in both."""
    name = next(name for name in {**one, **other} if one.get(name) != other.get(name))
    return f"column {name} is {_type_text(one.get(name))} and {_type_text(other.get(name))}"


def _features(file: Path) -> datasets.Features:
    """The columns of a parquet file, and what they hold.

    Raises:
        UserError: it is none, or has several columns of one name.
    """
    try:
        with open_regular(file) as opened:
            begin = opened.read(40)
        schema = parquet.read_schema(file) if begin[:4] == b"PAR1" else None
        features = datasets.Features.from_arrow_schema(schema) if schema else datasets.Features()
    except Exception as error:  # of many kinds, by what is damaged
        raise UserError(f"cannot load {file}: {' '.join(str(error).split())[:300]}") from error
    if schema is None:
        kind = (
            "a pointer of Git LFS; call git lfs pull" if b"git-lfs" in begin else "no parquet file"
        )
        raise UserError(f"cannot load {file}: it is {'empty' if not begin else kind}")
    if repeated := [name for name, number in Counter(schema.names).items() if number > 1]:
        raise UserError(f"{file} has several columns called {abbreviated(repeated)}; rename them")
    return features


def _class_lists(features: datasets.Features) -> list[list[str]]:
    return [kind.names for kind in features.values() if isinstance(kind, datasets.ClassLabel)]


def _type_text(feature: Any) -> str:
    """What a column holds, for messages."""
    if isinstance(feature, datasets.ClassLabel):
        return f"of the classes {abbreviated(feature.names)}"
    if isinstance(feature, datasets.Value):
        return feature.dtype
    return "not there" if feature is None else "images, lists or records"


def _is_pattern(source: str) -> bool:
    """Whether a source is a pattern of names of files, and no file is called so itself."""
    return bool(_PATTERN.search(source)) and not os.path.exists(os.path.expanduser(source))


def _load(source: str, *args: Any, progress: bool, **options: Any) -> Any:
    """What Hugging Face makes of a source; ``progress``: print where a new copy of it lies."""
    began = time.time()
    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # hides its eleven lines about retries
    try:
        loaded = datasets.load_dataset(*args, **options)
        if progress:
            _print_new_copy(
                source, loaded.values() if isinstance(loaded, dict) else [loaded], began
            )
        return loaded
    except ConnectionError as error:
        raise UserError(
            f"no folder or file is called {source!r}, and the hub cannot be reached"
            f"{did_you_mean(source)}"
        ) from error
    except Exception as error:  # its loaders raise all kinds of errors
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300]
        if "BatchSize must be greater than 0" in reason:
            reason = "a parquet file there has no rows"
        hint = "" if os.path.exists(source) else did_you_mean(source)
        if source.startswith("hf://"):
            hint = "; the hub has to be reached, and the pattern to name its parquet files"
        raise UserError(f"cannot load {source}: {reason}{hint}") from error


def _print_new_copy(source: str, parts: Iterable[datasets.Dataset], began: float) -> None:
    """That a source was copied into the user's cache since ``began``, and stays there."""
    files = [Path(file["filename"]) for part in parts for file in part.cache_files]
    new = {file: file.stat() for file in files if file.exists()}
    size = sum(status.st_size for status in new.values() if status.st_mtime >= began)
    if size:
        say(
            f"note: {source} is copied as Arrow files ({size / 1e6:,.1f} MB) into"
            f" {files[0].parent}; they stay for later runs, until you delete that folder"
        )


@contextmanager
def offline() -> Iterator[None]:
    """Within the context the hub is not asked: only what lies in its cache can be opened."""
    before = datasets_config.HF_HUB_OFFLINE, hub_constants.HF_HUB_OFFLINE
    try:
        datasets_config.HF_HUB_OFFLINE = hub_constants.HF_HUB_OFFLINE = True
        yield
    finally:
        datasets_config.HF_HUB_OFFLINE, hub_constants.HF_HUB_OFFLINE = before


def _open_folder(
    root: Path, source: str, data: Data, progress: bool, known: Sequence[str]
) -> dict[str, datasets.Dataset]:
    """The splits of a folder: of the parquet files that hold its images, or of its image files."""
    walked = listing(root, data.cache_folder)
    files = list(_parquet_files(root)) if walked.passed_over[".parquet"] else []
    saved = ("dataset_dict.json", "state.json")  # of `save_to_disk`
    if not walked and any((root / file).is_file() for file in saved):
        raise UserError(f"{source} is a folder of Arrow files; {_TO_PARQUET}")
    tables = [file for file in files if not walked or _is_table_of_images(file)]
    if progress and (others := sorted({*files} - {*tables})):
        say(f"note: {source}: parquet files without images, not read: {_names_in(root, others)}")
    if progress and tables and walked:
        say(
            f"note: {source}: parquet files with images, which are read: {_names_in(root, tables)};"
            f" of the image files beside them ({len(walked):,}) only those that they name"
        )
    if not tables:
        return open_folder(root, walked, source, data.on_error, progress, known, data.class_folders)
    return _load_parquet(source, _by_split(tables, root), progress)


def _names_in(root: Path, files: list[Path]) -> str:
    return abbreviated(str(file.relative_to(root)) for file in files)


def _parquet_files(root: Path) -> Iterator[Path]:
    name = "*." + "".join(f"[{letter}{letter.upper()}]" for letter in "parquet")  # in any case
    files = sorted(file for level in ("", "*/") for file in root.glob(level + name))
    return (file for file in files if file.is_file() and file.name != "metadata.parquet")


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _is_table_of_images(file: Path) -> bool:
    """Whether the first rows of a parquet file hold images, or it has images' names and labels.

    A table of names with further columns may be of predictions, and is none.
    """
    try:
        with parquet.ParquetFile(file) as table:
            rows = next(table.iter_batches(8), None)
            if rows is None or not rows.num_rows:
                return False
            first = datasets.Dataset(InMemoryTable(pa.Table.from_batches([rows])))
    except Exception:  # of many kinds; who names the file itself is told the reason
        return False
    features = first.features
    if any(isinstance(feature, datasets.Image) for feature in features.values()):
        return True
    binary = [name for name, feature in features.items() if _holds_bytes(feature)]
    cells = (cell for name in binary for cell in rows.column(name).to_pylist())
    if any(_is_image(cell, file.parent) for cell in cells):
        return True
    columns, folder = content_columns(features), str(file.parent)
    labels = label_columns(columns)[:1] or _columns_of_bits(first)
    names = [name for name in columns if name not in labels]
    if not labels or len(names) != 1:
        return False
    return _names_files(first, names[0], folder, lambda: _Below(folder))


def _is_image(cell: Any, folder: Path) -> bool:
    """Whether a cell of a table is an encoded image, or the path of a file below the folder."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str):
        return (folder / _normal(cell)).is_file()
    try:
        with Image.open(io.BytesIO(cell), formats=formats()):
            return True
    except Exception:  # Pillow raises whatever its format does
        return False


def _are_class_folders(dataset: datasets.Dataset, label: str, source: str) -> bool:
    is_of_folders = isinstance(dataset.features[label], datasets.ClassLabel)
    return is_of_folders and _is_folder_of_files(dataset, source)


def _is_folder_of_files(dataset: datasets.Dataset, source: str) -> bool:
    """Whether a source is a folder whose image files are read, and no parquet files."""
    return Path(source).expanduser().is_dir() and dataset.info.builder_name is None


@cache
def _digits() -> datasets.Dataset:
    """scikit-learn's 1,797 scanned digits, 8 x 8 pixels in 17 grey levels.

    Its file is read here: to import scikit-learn takes a second of the processor.
    """
    package = find_spec("sklearn")
    assert package is not None
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",", dtype=np.int64)  # (1797, 65): levels, digit
    grey = np.uint8(np.rint(table[:, :-1] * (255 / 16))).reshape(-1, 8, 8)
    columns = {"image": [Image.fromarray(image) for image in grey], "label": table[:, -1]}
    names = [str(digit) for digit in range(10)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    return datasets.Dataset.from_dict(columns, features=features)


def _image_set(
    dataset: datasets.Dataset, data: Data, source: str, required: bool = True, labeled: bool = True
) -> ImageSet:
    """A split as an image set; ``required``: the columns that options name must be there."""
    features, folder = dataset.features, _folder_of(source)
    below = cache(lambda: _Below(folder or ""))  # a walk, for paths that are not there alone
    columns = _image_columns(dataset, data, folder, below)
    image = choose_column(
        "image", columns, dataset.column_names, data.image_column, source, required
    )
    if image is None:
        raise UserError(
            f"{source} has no image column; its columns are {_described(dataset)}; an image column"
            " holds encoded images (PNG, JPEG, ...) as bytes, or paths of files beside it"
        )
    labels, classes = np.full(len(dataset), UNLABELED), ()
    label = _label_column(dataset, data, source, required) if labeled else None
    if label is not None and isinstance(features[label], datasets.ClassLabel):
        table = cast(pa.Table, dataset.select_columns([label]).with_format("arrow")[:])
        numbers = table.column(0)
        labels, classes = _class_labels(numbers, features[label].names, label, source)
    elif label is not None:
        labels, classes = _labels(_values(dataset, label, source), features[label], label, source)
    edited = label is not None and not isinstance(features[label], datasets.ClassLabel)
    edited = edited and _is_folder_of_files(dataset, source)  # in a metadata file
    others = () if label else tuple(name for name in features if name != image)
    files = dataset.select_columns([image])
    files = files if image == "image" else files.rename_column(image, "image")
    if _is_whole(features[image]) and folder and _names_files(files, "image", folder, below):
        files = files.cast_column("image", datasets.Value("string"))  # ids
    try:
        files = files.cast_column("image", datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"data.image_column={image} holds no images in {source}") from error
    if folder:
        files = _with_paths_below(folder, files, source, below)
    names = _names(files, os.path.join(folder or Path(source).absolute(), ""))
    decoding = Decoding(data.load_truncated, data.max_pixels)
    return ImageSet(
        files,
        names,
        labels,
        classes,
        data.on_error,
        decoding=decoding,
        edited=edited,
        columns=others,
    )


def _described(dataset: datasets.Dataset) -> str:
    """The columns and what they hold, for messages."""

    def holds(name: str, feature: Any) -> str:
        if not isinstance(feature, datasets.Value):
            return "classes" if isinstance(feature, datasets.ClassLabel) else "lists or records"
        if "string" not in feature.dtype:
            return "nothing" if feature.dtype == "null" else feature.dtype
        texts = (cell for cell in dataset.select_columns([name])[:100][name] if cell)
        return f"text, such as {printable(next(texts, ''))[:40]!r}"

    columns = (f"{name} ({holds(name, kind)})" for name, kind in dataset.features.items())
    return abbreviated(columns, 12)


def _image_columns(
    dataset: datasets.Dataset, data: Data, folder: str | None, below: Callable[[], "_Below"]
) -> list[str]:
    """The columns that may hold the images: of the hub's kind, or of bytes, or of paths."""
    features = dataset.features
    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = {data.label_column, *label_columns(dataset.column_names)}
    others = {name: feature for name, feature in features.items() if name not in labels}
    columns = columns or [name for name, feature in others.items() if _holds_bytes(feature)]
    columns = columns or [n for n in others if folder and _names_files(dataset, n, folder, below)]
    return columns if len(columns) < 2 else image_columns(columns) or columns


def _names(files: datasets.Dataset, root: str) -> Names:
    """The paths below the root, row numbers where there is none or two are the same."""
    paths = pc.struct_field(files.data.column("image"), "path")  # type: ignore[attr-defined]
    if pc.all(pc.starts_with(paths, root), skip_nulls=False).as_py():  # type: ignore[attr-defined]
        names = Names.of_column(paths, len(root))  # a folder's own, which may be very many
    else:
        rows = pa.array(np.arange(len(paths)).astype(str))
        empty = pc.equal(pc.binary_length(paths), 0).fill_null(True)  # type: ignore[attr-defined]
        paths = pc.if_else(empty, rows, paths)  # type: ignore[attr-defined]
        inside = pc.starts_with(paths, root)  # type: ignore[attr-defined]
        paths = pc.if_else(inside, pc.utf8_slice_codeunits(paths, len(root)), paths)  # type: ignore[attr-defined]
        names = Names.of_column(paths)
    if not _are_distinct(paths):
        return Names.of(map(str, range(len(paths))))
    return names


def _are_distinct(texts: pa.ChunkedArray) -> bool:
    """Whether no two are the same; those of class folders are in order, which is seen at once."""
    ascend = pc.all(pc.less(texts[:-1], texts[1:])).as_py()  # type: ignore[attr-defined]
    return ascend or pc.count_distinct(texts).as_py() == len(texts)  # type: ignore[attr-defined]


def _label_column(dataset: datasets.Dataset, data: Data, source: str, required: bool) -> str | None:
    """The column of the labels: of the hub's kind for classes, or by the rule of label_files."""
    kinds = dataset.features.items()
    columns = [name for name, kind in kinds if isinstance(kind, datasets.ClassLabel)]
    columns = columns or label_columns(dataset.column_names)
    return choose_column(
        "label", columns, dataset.column_names, data.label_column, source, required
    )


def open_images(sources: Sequence[str | Path], data: Data, progress: bool = False) -> ImageSet:
    """Images without regard to labels: files, all images below folders, and parquet files.

    Nothing is decoded yet. The images are in the order of the sources and called as these are, with
    the path below a folder behind it. An image in a parquet file is called by its path there, or
    else by its row; behind the name of the file, where that is not the only source.

    Args:
        sources: paths.
        data: ``on_error``, ``image_column`` and what is read of unusual files.
        progress: say on standard error what of a folder is passed over.

    Raises:
        UserError: there is no such file or folder, a folder holds no image, or a parquet file
            cannot be read; and, unless ``on_error`` is skip, a name is no text.
    """
    _quiet(progress)
    parts: list[tuple[datasets.Dataset, Sequence[str]]] = []
    missing = [str(source) for source in sources if not os.path.lexists(source)]
    if missing and (data.on_error == "stop" or len(missing) == len(sources)):
        raise UserError(f"no such file or folder: {abbreviated(missing)}{did_you_mean(missing[0])}")
    files: list[str] = []
    odd: list[str] = []
    for source in map(Path, sources):
        if _is_parquet(source) and not os.path.isdir(source):
            table = _image_set(_open(str(source), data)["train"], data, str(source), labeled=False)
            names = table.names if len(sources) == 1 else [f"{source}/{n}" for n in table.names]
            parts += [_image_files(files), (table.files, list(names))]
            files = []
        elif os.path.isdir(source):
            walked = walk(source)
            notes = walked.notes()
            if not walked:
                raise UserError("; ".join([f"no images in {printable(source)}", *notes]))
            files += pc.struct_field(walked.files, "path").to_pylist()  # type: ignore[attr-defined]
            odd += [str(source / name) for name in walked.odd]
            odd += [] if is_text(str(source)) else [str(source)]
            if progress:
                for note in notes:
                    say(f"note: {printable(source)}: {note}", error=True)
        else:
            files.append(str(source) if is_text(str(source)) else printable(source))
            odd += [] if is_text(str(source)) else [str(source)]
    if odd and data.on_error == "stop":
        raise UserError(
            f"{len(odd):,} names of files are not UTF-8: {abbreviated(odd)}; rename them or give"
            " --data.on_error skip"
        )
    parts = [part for part in [*parts, _image_files(files)] if part[1]]
    names = Names.of(name for _, names in parts for name in names)
    rows = datasets.concatenate_datasets([rows for rows, _ in parts])
    unlabeled = np.full(len(names), UNLABELED)
    decoding = Decoding(data.load_truncated, data.max_pixels)
    return ImageSet(rows, names, unlabeled, (), data.on_error, decoding=decoding)


def _image_files(files: list[str]) -> tuple[datasets.Dataset, list[str]]:
    """Files as rows, and their names."""
    features = datasets.Features(image=datasets.Image(decode=False))
    return datasets.Dataset.from_dict({"image": files}, features=features), files


def _holds_bytes(feature: Any) -> bool:
    """Whether a column may be the images of a parquet file that another program wrote."""
    if isinstance(feature, dict):
        return "bytes" in feature or "path" in feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _folder_of(source: str) -> str | None:
    """The folder below which the paths of a source lie; None for the hub's and the digits."""
    path = Path(source).expanduser().absolute()
    if _is_pattern(source) and not source.startswith("hf://"):
        return str(_root_of(path))
    if source == "digits" or not path.exists():
        return None
    return str(path if path.is_dir() else path.parent)


class _Below:
    """The images below a folder, found by the paths of another machine."""

    def __init__(self, folder: str):
        self.names = sorted(walk(Path(folder)).images)
        self.index = ImageIndex(self.names)

    def path(self, name: str, source: str) -> str | None:
        """The path below the folder that a name means, None without any; UserError for several."""
        positions = self.index.positions(name)
        require_one_image([name], [positions], self.names, Path(source))
        return self.names[positions[0]] if positions else None


def _names_files(
    dataset: datasets.Dataset, column: str, folder: str, below: Callable[[], _Below]
) -> bool:
    """Whether the first rows of a column of text hold paths of files below the folder.

    A name without suffix counts in a column that is called as those of the images' names are.
    """
    feature = dataset.features[column]
    of_names = bool(image_columns([column]))
    of_text = isinstance(feature, datasets.Value) and "string" in feature.dtype
    if not of_text and not (of_names and _is_whole(feature)):
        return False
    cells = dataset.select_columns([column])[:100][column]
    paths = [str(cell) for cell in cells if cell is not None and cell != ""]
    if any(os.path.isfile(os.path.join(folder, _normal(path))) for path in paths):
        return True
    likely = [path for path in paths if of_names or path.lower().endswith(SUFFIXES)]
    return any(below().index.positions(path) for path in likely)


def _normal(path: str) -> str:
    return os.path.normpath(path if "/" in path else path.replace("\\", "/"))


def _with_paths_below(
    folder: str, files: datasets.Dataset, source: str, below: Callable[[], _Below]
) -> datasets.Dataset:
    """The files with absolute paths where there are no bytes; other paths are only names.

    A path where no file is means the image below the folder that `ImageIndex` finds.

    Raises:
        UserError: a path leads out of the folder; a parquet file from elsewhere must not choose
            which files of this machine are read.
    """
    root, normal_root = (os.path.join(name, "") for name in (folder, os.path.normpath(folder)))
    outside: list[str] = []

    def absolute(path: str) -> str:
        if path.startswith(root) and ".." not in path[len(root) :]:
            return path
        whole = os.path.normpath(os.path.join(normal_root, _normal(path)))
        is_there = whole.startswith(normal_root) and os.path.isfile(whole)
        if not is_there and (name := below().path(path, source)):
            return root + name
        if not whole.startswith(normal_root):
            outside.append(path)
        return root + whole[len(normal_root) :]

    column = files.data.column("image")  # type: ignore[attr-defined]
    paths = pc.struct_field(column, "path")  # type: ignore[attr-defined]
    own = pc.and_(pc.starts_with(paths, root), pc.invert(pc.match_substring(paths, "..")))  # type: ignore[attr-defined]
    if pc.all(own, skip_nulls=False).as_py():  # type: ignore[attr-defined]
        return files  # a folder's own, which may be very many
    chunks = column.chunks
    old, new = [], []
    for chunk in chunks:
        encoded, paths = (pc.struct_field(chunk, name) for name in ("bytes", "path"))  # type: ignore[attr-defined]
        lengths = pc.binary_length(encoded).to_pylist()  # type: ignore[attr-defined]
        old.append(paths.to_pylist())
        both = zip(old[-1], lengths, strict=True)
        new.append([path if length or not path else absolute(path) for path, length in both])
    if outside:
        raise UserError(
            f"{source} names {len(outside):,} images outside of its folder: {abbreviated(outside)};"
            " put the images beside it, with paths relative to it"
        )
    if new == old:
        return files
    structs = [
        pa.StructArray.from_arrays(
            [pc.struct_field(chunk, "bytes"), pa.array(paths, pa.string())],  # type: ignore[attr-defined]
            ["bytes", "path"],
        )
        for chunk, paths in zip(chunks, new, strict=True)
    ]
    table = InMemoryTable(pa.table({"image": pa.chunked_array(structs)}))
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=files.features))


def _values(dataset: datasets.Dataset, column: str, source: str) -> list:
    """All values of a column; UserError where some have no counterpart in Python."""
    try:
        return dataset[column][:]
    except Exception as error:  # of many kinds: times beyond the calendar, text that is no UTF-8
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{source}: cannot read the column {column}: {reason}") from error


def _class_labels(
    numbers: pa.ChunkedArray, classes: list, column: str, source: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Classes (n,) int64 and their names, of a column of the hub's kind for classes."""
    names = _class_names(classes, column, source)
    labels = np.array(numbers.fill_null(UNLABELED))  # a copy, which may be changed
    beyond = labels[(labels < UNLABELED) | (labels >= len(classes))]
    if len(beyond):
        raise UserError(
            f"{source}: column {column} holds the class {beyond[0]}, but its list of classes"
            f" has {len(classes)} names, 0 to {len(classes) - 1}:"
            f" {abbreviated(classes)}; mend the list, or the {len(beyond)} rows"
        )
    return labels, names


def _labels(
    values: list, feature: Any, column: str, source: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Classes (n,) int64 and their names; what is no label, ``is_label`` says."""
    if not isinstance(feature, datasets.Value):
        raise UserError(f"data.label_column={column} holds {feature}, not one class per image")
    if feature.dtype in ("binary", "large_binary"):
        try:
            values = [None if value is None else value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise UserError(f"{source}: column {column} holds bytes that are no text") from error
    values = [chosen_class(v, source) if isinstance(v, str) else v for v in values]
    known = np.array([is_label(value) for value in values], bool)
    known_values = [value for value, is_known in zip(values, known, strict=True) if is_known]
    labels = np.full(len(values), UNLABELED)
    distinct, labels[known] = np.unique(np.array(known_values), return_inverse=True)
    if distinct.dtype.kind == "f" and (np.abs(distinct) < 2**53).all() and not (distinct % 1).any():
        distinct = distinct.astype(np.int64)  # whole numbers; a null among them made them floats
    names = tuple(str(value) for value in distinct)
    require_class_names(names, source)
    return labels, names


def _class_names(names: list, column: str, source: str) -> tuple[str, ...]:
    """The names of a list of classes as text; a file may hold numbers, or anything."""
    texts = tuple(str(name) for name in names if isinstance(name, str | int | float))
    if len(set(texts)) < len(names):
        raise UserError(
            f"{source}: the classes of column {column} must be different texts, they are"
            f" {abbreviated(names)}; mend the list"
        )
    plain: dict[str, str] = {}
    for name in texts:
        if (other := plain.setdefault(class_text(name), name)) != name:
            raise UserError(
                f"{source}: the classes {other!r} and {name!r} differ in spaces or in how accents"
                " are written alone; rename one, or move its images to the other"
            )
    require_class_names(texts, source)
    return texts


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
    key = (data, labels.csv_file)
    if key not in OPENED:  # kept until other data are opened; the same on every process
        OPENED.clear()
        OPENED[key] = _open_splits(*key, partial(_decoded, data=data, progress=progress), progress)
    return OPENED[key]


def open_beside(data: Data, labels: LabelSet) -> Splits:
    """The images that `open_data` has opened, shown otherwise: those stay open, nothing is said.

    Raises:
        UserError: as `open_data`.
    """
    decoded = partial(_decoded, data=data, progress=False)
    return _open_splits(data, labels.csv_file, decoded, progress=False)


def look_at(data: Data, labels: LabelSet) -> Splits:
    """The same images without decoding any: unreadable ones are among them."""
    return _open_splits(data, labels.csv_file, lambda images: images, progress=False)


def open_run(config: Config, accelerator: Accelerator) -> Splits:
    """Open the images of a run; its folder keeps the names of those that were skipped.

    ``skipped.txt`` there has a line for each. All processes must call this.

    Raises:
        UserError: as ``open_data``; and where the run holds what another file of labels of the same
            name made.
    """
    require_one_file(config)
    splits = open_data(config.data, config.label_set, accelerator.is_local_main_process)
    skipped = [name for images in splits if images for name in images.skipped]
    if skipped and accelerator.is_main_process:
        names = "".join(f"{name}\n" for name in dict.fromkeys(skipped))
        write_atomically(config.folder / "skipped.txt", names)
    return splits


def _open_splits(
    data: Data, table: Path | None, decoded: Callable[[ImageSet], ImageSet], progress: bool
) -> Splits:
    _quiet(progress)
    _refuse_no_albums(data)  # before anything is downloaded
    sources = _open(data.train, data, progress)
    name = "train" if "train" in sources else next(iter(sources))
    _refuse_no_albums(data, sources[name])
    train = _image_set(sources[name], data, data.train, required=table is None)
    columns = sources[name].column_names
    labels = read_labels(table, data, columns, train.classes) if table else None
    others = {key: part for key, part in sources.items() if key != name}
    listed = None
    if labels is not None:
        train, listed = _labeled_parts(train, others, labels, data)
    column = None if labels else _label_column(sources[name], data, data.train, False)
    by_name, names = train.edited, train.names
    train, every_class = decoded(train), train.classes
    of_folders = column is not None and _are_class_folders(sources[name], column, data.train)
    if of_folders and train.skipped:
        train = without_absent_classes(train)
    whole = train
    if data.test is not None and is_csv(Path(data.test)):
        file = Path(data.test).expanduser()
        train, test = _listed_test_images(train, others, file, data, decoded)
    else:
        test = listed or _test_images(data, others, progress, train.classes)
        test = None if test is None else decoded(test)
    tested, file = "", Path(data.train)
    if labels is not None and labels.splits is not None:
        marks, names, file = labels.splits, [name for name, _ in labels.rows], labels.file
    else:
        marks = split_column(_plain_columns(sources[name]))
    if marks is not None:
        (train, test), tested = split_by_column(Splits(train, test), names, marks, file)
    by_name = by_name and test is None
    if test is not None:
        test, train = same_classes(test, train)
    splits = hold_out(Splits(train, test), data, by_name)
    by_name = by_name and data.hold_out != "lockbox"  # which goes by pixels
    if progress:
        lines = [table_line(labels, splits)] if labels else []
        lines += [f"test images: {data.test}{note}"] if (note := _test_note(data)) else []
        lines += [split_line(marks, tested)] if marks else []
        lines += [untrained_line(splits), "" if by_name else untested_line(splits)]
        if gone := sorted({*every_class} - {*train.classes}):
            lines.append(f"note: no readable image of {abbreviated(gone)}: not among the classes")
        if of_folders:
            lines.append(folders_line(whole))
        elif column and data.train != "digits":
            lines.append(column_line(column, whole))
        if not train.classes:
            lines += _tables_beside(data, train)
        if train.classes and splits.test is None:
            lines.append(no_test_line(train, data, by_name))
        elif by_name and splits.test is not None:  # a file without any label holds none out
            lines.append(one_side_line(splits, data))
        say(*filter(None, lines))
    if data.unlabeled is None:
        return splits
    extra = decoded(_unlabeled_images(data.unlabeled, data, progress))
    return Splits(_appended(splits.train, extra, data), splits.test)


def _refuse_no_albums(data: Data, train: datasets.Dataset | None = None) -> None:
    """UserError where folders shall be albums and the images lie in none, opened or not yet."""
    is_folder = Path(data.train).expanduser().is_dir()
    if not data.class_folders and not (
        is_folder if train is None else _is_folder_of_files(train, data.train)
    ):
        raise UserError(
            f"data.class_folders=false is for a folder of image files, which {data.train} is not;"
            " leave it out"
        )


def _tables_beside(data: Data, images: ImageSet) -> list[str]:
    """A line for each CSV file directly in the folder that has labels for these images."""
    lines, folder = [], Path(data.train).expanduser()
    for file in sorted(folder.glob("*.csv"))[:TRIED] if folder.is_dir() else ():
        with suppress(UserError):
            table = read_csv(file, data.image_column, data.label_column)
            if table.labeled:
                find_images(Splits(images, None), [table.labeled[0][0]], file)
                lines.append(f"note: {file} has labels, which --labels {file} uses")
    return lines


def _quiet(progress: bool) -> None:
    """Let Hugging Face show bars on a terminal alone, and no warnings: ``_load`` reports errors."""
    if not (progress and sys.stderr.isatty()):
        datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*Repo card metadata.*")
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)


def _decoded(images: ImageSet, *, data: Data, progress: bool) -> ImageSet:
    """The readable images: with their small copies, in memory, or as they are."""
    if data.cache is not None:
        return shrunk(images, data, progress)
    return images.loaded(data.loading, data.workers, progress)


def _labeled_parts(
    train: ImageSet, others: dict[str, datasets.Dataset], table: LabelTable, data: Data
) -> tuple[ImageSet, ImageSet | None]:
    """Training images with the labels of a file; and a split for testing that it labels too.

    The training images keep their own labels where the file has the same classes.
    """
    own = not gives_the_classes(table, train)
    for part in _unlabeled_splits(others, data) if data.test is None else ():
        with suppress(UserError):  # it names images of neither, which is said below
            names = [name for name, _ in table.rows]
            places = find_names([*train.names, *part.names], names, table.file)
            of_test = table.only(place >= len(train) for place in places)
            of_train = table.only(place < len(train) for place in places)
            if of_test.labeled and (own or of_train.labeled):
                return train if own else labeled_by(train, of_train), labeled_by(part, of_test)
    return train if own else labeled_by(train, table), None


def _unlabeled_splits(others: dict[str, datasets.Dataset], data: Data) -> Iterator[ImageSet]:
    """The splits for testing whose images have no label, so that a file may label them."""
    for name in ("test", "validation", "val"):
        if name in others:
            part = _image_set(others[name], data, data.train, required=False)
            if (part.labels == UNLABELED).all():
                yield part


def _test_images(
    data: Data, others: dict[str, datasets.Dataset], progress: bool, classes: Sequence[str]
) -> ImageSet | None:
    """The first test or validation split with labels: many test splits of the hub have none."""
    parts, source = others, data.train
    if data.test is not None:
        sorted_into = replace(data, class_folders=True)  # albums are those of train
        parts, source = _open(data.test, sorted_into, progress, classes), data.test
    names = [name for name in ("test", "validation", "val") if name in parts]
    if data.test is not None and not names:
        _refuse_same("test", source, data)
        names = list(parts)[:1]
    for name in names:
        images = _image_set(parts[name], data, source, required=False)
        if (images.labels != UNLABELED).any():
            unused = {
                key: part for key, part in (others | parts).items() if part is not parts[name]
            }
            _print_unused(unused, progress)
            return images
    if data.test is not None:
        raise UserError(f"the test images in {data.test} have no labels")
    _print_unused(others, progress)
    return None


def _refuse_same(option: str, source: str, data: Data) -> None:
    """UserError where an option names the training images once more."""
    paths = [os.path.realpath(os.path.expanduser(name)) for name in (source, data.train)]
    if paths[0] == paths[1]:
        raise UserError(
            f"data.{option} is {source}, the training images themselves; give others, or leave"
            f" --data.{option} out"
        )


def _print_unused(parts: dict[str, datasets.Dataset], progress: bool) -> None:
    if parts and progress:
        sizes = [f"{name} ({len(part):,} images)" for name, part in parts.items()]
        say(f"note: splits that are not used: {abbreviated(sizes)}")


def _listed_test_images(
    train: ImageSet,
    others: dict[str, datasets.Dataset],
    file: Path,
    data: Data,
    decoded: Callable[[ImageSet], ImageSet],
) -> tuple[ImageSet, ImageSet]:
    """Training and test images where a CSV file labels the test images.

    These are training images, which are held out then, or files beside the CSV file, or those of a
    split without labels.
    """
    table = read_csv(file, data.image_column, data.label_column, train.classes)
    names = [name for name, _ in table.labeled]
    if not names:
        raise UserError(f"the test images in {data.test} have no labels")
    root = os.path.join(Path(data.train).expanduser().absolute(), "")
    folder = file.absolute().parent
    beside = [os.path.normpath(folder / name.replace("\\", "/")) for name in names]
    # a file beside the list is meant before one of that name elsewhere
    known = set(train.names)
    outside = [os.path.isfile(p) and p.removeprefix(root) not in known for p in beside]
    if any(outside) and not all(outside):
        inner, outer = (printable(names[outside.index(side)]) for side in (False, True))
        raise UserError(
            f"{file} lists images of data.train, {inner}, and other ones, {outer}; give a file for"
            " one of both"
        )
    of_splits = () if any(outside) or known >= {*names} else _unlabeled_splits(others, data)
    for part in of_splits:
        with suppress(UserError):  # it names others
            return train, decoded(labeled_by(part, table.filled()))
    if not any(outside):
        classes, ids, targets = one_label_each(train, table)
        test = replace(train.select(ids), labels=targets, classes=classes)
        return for_testing(train, ids), test
    paths = {"image": list(dict.fromkeys(beside))}
    features = datasets.Features(image=datasets.Image())
    files = datasets.Dataset.from_dict(paths, features=features)
    test = _image_set(files, data, str(folder), required=False, labeled=False)
    return train, decoded(labeled_by(test, table.filled()))


def _test_note(data: Data) -> str:
    """What is said of a CSV file in data.test that is no UTF-8."""
    if data.test is None or not is_csv(file := Path(data.test).expanduser()):
        return ""
    return encoding_note(read_csv(file, data.image_column, data.label_column))


def _unlabeled_images(source: str, data: Data, progress: bool) -> ImageSet:
    """Those of ``data.unlabeled``, without their labels."""
    parts = _open(source, data, progress)
    name = next((name for name in ("unlabeled", "train") if name in parts), next(iter(parts)))
    if name != "unlabeled":
        _refuse_same("unlabeled", source, data)
    return _image_set(parts[name], data, source, required=False, labeled=False)


def _appended(train: ImageSet, extra: ImageSet, data: Data) -> ImageSet:
    """The training images, and behind them the unlabeled ones."""
    pixels = None
    if train.pixels is not None and extra.pixels is not None:
        if train.pixels.size == extra.pixels.size:
            pixels = train.pixels.followed_by(extra.pixels)
        elif data.loading == "memory":
            sizes = size_text(train.pixels.size), size_text(extra.pixels.size)
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
        names=train.names.followed_by(extra.names, "unlabeled/"),
        labels=np.concatenate([train.labels, np.full(len(extra), UNLABELED)]),
        pixels=pixels,
        skipped=train.skipped + tuple(f"unlabeled/{name}" for name in extra.skipped),
        shrunk=copies,
    )
