"""A folder of images as people have them: one walk, its splits, its classes, its metadata files.

The walk takes each real folder once, so links may loop. It takes a file for an image by its
suffix, and opens only files of other suffixes. One line says what was passed over.
"""

import heapq
import itertools
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.fingerprint import generate_random_fingerprint
from datasets.table import InMemoryTable
from PIL import Image
from pyarrow import json, parquet

from shared.data.images import UNLABELED
from shared.data.label_files import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    ImageIndex,
    columns_called,
    read_rows,
    require_one_image,
    way_out,
    western_note,
)
from shared.runtime.errors import UserError
from shared.runtime.files import open_regular
from shared.runtime.media import abbreviated, printable, say

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".jp2", ".avif", ".tga", ".ppm", ".pgm", ".pbm"),
)
# What Pillow recognises by content, where the suffix says nothing. Not TGA, which has no mark.
_FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM"),
    *("PSD", "QOI", "SGI", "TIFF", "WEBP", "XBM", "XPM"),
)
_NOT_ENTERED = (".", "__", "@eaDir", "$RECYCLE")  # beginnings: .git, __MACOSX, thumbnails, bin
# names of split folders in lower case, the usual one first
_SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev"),
}
_MAY_BE_CLASSES = ("valid", "dev")  # beside other folders, and without a train folder
CHUNK = 1_000_000  # images in an array, about
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


class Listed(NamedTuple):
    """How many images lie directly in a folder: ``folder`` is "" or ends with ``/``."""

    folder: str
    number: int


class Watched(NamedTuple):
    """What a walk went by: as long as it is the same, another walk would find the same.

    One thing may differ: an image that is a link is taken by its name alone, so what it leads to
    may become a folder or a pipe meanwhile. Reading the image says so.

    Attributes:
        path: of a folder, a link to one, or a file whose content was looked at; below the root.
        device: with ``inode`` what it is, behind links; None where nothing was there.
        inode: its number there.
        modified: time in nanoseconds; None where only what it is counts.
        changed: time in nanoseconds of the last change of all, which no call sets; on Windows
            that of birth.
    """

    path: str
    device: int | None
    inode: int | None
    modified: int | None
    changed: int | None


@dataclass
class Walk:
    """What lies below a folder; names are relative to it, with ``/`` between the parts.

    Attributes:
        begin: the folder as text, with ``/`` at its end.
        listed: folders with images, in the order of ``os.walk``: the files of a folder, then its
            folders.
        files: all of them in that order, those of a folder sorted, as Hugging Face stores files
            that lie elsewhere: paths without bytes. Arrow, for ten million Python strings take a
            gigabyte.
        odd: names of images that are not UTF-8, which ``files`` has in a printable form.
        folders: that were walked, without the root.
        metadata: files of the names that Hugging Face gives to tables of images.
        passed_over: number of other files by suffix, or by another reason.
        not_entered: hidden folders, links to folders that were walked already, folders that cannot
            be read; each with the reason where it is not hidden.
        watched: what this depends on.
        unread: number of folders that could not be read.
        opened: number of files whose content said whether they are images.
    """

    begin: str
    listed: list[Listed] = field(default_factory=list)
    files: pa.ChunkedArray = field(default_factory=lambda: _files("", []))
    odd: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    not_entered: list[str] = field(default_factory=list)
    watched: list[Watched] = field(default_factory=list)
    unread: int = 0
    opened: int = 0

    def __len__(self) -> int:
        return len(self.files)

    @property
    def images(self) -> list[str]:
        """The names of all images, each a Python string."""
        return self.names(self.files)

    def names(self, files: pa.ChunkedArray) -> list[str]:
        """The names of these files, each a Python string."""
        paths = pc.struct_field(files, "path")  # type: ignore[attr-defined]
        return pc.utf8_slice_codeunits(paths, len(self.begin)).to_pylist()  # type: ignore[attr-defined]

    def notes(self) -> list[str]:
        """A line for files and a line for folders that were passed over, where there are any."""
        lines = []
        if self.passed_over:
            kinds = [f"{count:,} {kind}" for kind, count in self.passed_over.most_common()]
            total = self.passed_over.total()
            lines.append(f"passed over, since no images: {total:,} ({abbreviated(kinds, 8)})")
        if self.not_entered:
            lines.append(f"folders that were not entered: {abbreviated(self.not_entered)}")
        return lines


def walk(root: Path) -> Walk:
    """Find the images below a folder.

    Links are followed after all real folders, so that a folder has its real name where it lies
    below the root. A link to a folder around the root is a loop. Only regular files are opened.
    """
    begin = os.path.join(root, "")
    found, seen = Walk(begin if is_text(begin) else printable(begin)), set()
    around = {_identity(os.stat(folder)) for folder in root.resolve().parents}
    images: list[tuple[str, pa.StringArray]] = []
    real, links = [""], []
    while real or links:
        is_link = not real
        folder = heapq.heappop(links) if is_link else real.pop()
        path = os.path.join(root, folder)
        try:
            status = os.stat(path)
            identity = _identity(status)
            if identity in seen or (is_link and identity in around):
                found.watched.append(Watched(folder, *identity, None, None))
                found.not_entered.append(f"{folder}/ (a link to a folder that is walked already)")
                continue
            seen.add(identity)
            with os.scandir(path) as entries:
                listed = list(entries)
        except OSError as error:
            found.unread += 1
            found.not_entered.append(f"{folder or '.'}/ ({error.strerror})")
            continue
        found.watched.append(_watched(folder, status))
        if folder:
            found.folders.append(folder if is_text(folder) else printable(folder))
        files = []
        for entry in listed:
            name = f"{folder}/{entry.name}" if folder else entry.name
            kind = _kind(entry)
            if kind == "folder":
                real.append(name)
            elif kind == "link to a folder":
                heapq.heappush(links, name)
            elif kind == "image" or (kind == "unknown" and _is_shown_image(entry, name, found)):
                files.append(entry.name)
            else:
                _pass_over(entry, name, kind, found)
        if files:
            images.append(_listed(found, f"{folder}/" if folder else "", sorted(files)))
    images.sort(key=lambda listed: listed[0].split("/")[:-1])
    found.listed = [Listed(folder, len(files)) for folder, files in images]
    found.files = _files(found.begin, images)
    found.not_entered.sort()
    return found


def _listed(found: Walk, folder: str, files: list[str]) -> tuple[str, pa.StringArray]:
    """The images of a folder; what is no text is kept apart and becomes printable."""
    if not is_text(folder + "".join(files)):
        found.odd += [name for file in files if not is_text(name := folder + file)]
        folder, files = printable(folder), [printable(file) for file in files]
    return folder, pa.array(files, pa.string())


def _is_shown_image(entry: os.DirEntry, name: str, found: Walk) -> bool:
    """Whether the content of a file says that it is an image; the file is watched."""
    found.watched.append(_watched(name, _status(entry.path)))
    found.opened += 1
    return _is_image(entry.path)


def _pass_over(entry: os.DirEntry, name: str, kind: str, found: Walk) -> None:
    """Note what is neither an image nor a folder to enter."""
    if kind == "hidden folder":
        found.not_entered.append(f"{name}/")
    elif kind == "metadata":
        found.metadata.append(name)
    elif kind == "unknown":
        found.passed_over[os.path.splitext(name)[1].lower() or "without suffix"] += 1
    else:
        if entry.is_symlink():
            found.watched.append(_watched(name, _status(entry.path)))
        found.passed_over[kind] += 1


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _status(path: str) -> os.stat_result | None:
    """What a path leads to; None for a link to nothing."""
    try:
        return os.stat(path)
    except OSError:
        return None


def _watched(path: str, status: os.stat_result | None) -> Watched:
    if status is None:
        return Watched(path, None, None, None, None)
    return Watched(path, *_identity(status), status.st_mtime_ns, status.st_ctime_ns)


def is_unchanged(root: Path, watched: Watched) -> bool:
    """Whether what a walk of a folder went by is what it was."""
    now = _watched(watched.path, _status(os.path.join(root, watched.path)))
    return now[:3] == watched[:3] and (watched.changed is None or now == watched)


def _kind(entry: os.DirEntry) -> str:
    """What the walk does with an entry of a folder; else why it passes over it."""
    name = entry.name
    try:
        if entry.is_dir():
            if name.startswith(_NOT_ENTERED):
                return "hidden folder"
            return "link to a folder" if entry.is_symlink() else "folder"
        regular = entry.is_file() or not os.path.lexists(os.path.realpath(entry.path))
    except OSError:  # a link to itself
        regular = True
    if name.startswith("."):
        return "hidden"
    if not regular:
        return "of no regular file"  # opening a FIFO would wait for ever
    if name.lower().endswith(SUFFIXES):
        return "image"  # also a link to nothing, which is an unreadable image
    return "metadata" if name in METADATA else "unknown"


@cache
def formats() -> list[str]:
    """The formats that are recognised by content here."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]  # some builds of Pillow lack some


def _is_image(path: str) -> bool:
    try:
        with open_regular(Path(path)) as file, Image.open(file, formats=formats()):
            return True
    except Exception:  # Pillow raises whatever its format does
        return False


def _place(name: str) -> list[tuple[bool, str]]:
    *folders, file = name.split("/")
    return [*((True, folder) for folder in folders), (False, file)]


# ---------------------------------------------------------------------------- splits and classes
class Part(NamedTuple):
    """A split of a folder: its images lie below ``folder``, its class folders in ``classes``.

    Both are "" or end with ``/``.
    """

    folder: str
    classes: str


def open_folder(
    root: Path, walked: Walk, source: str, on_error: str, progress: bool
) -> dict[str, datasets.Dataset]:
    """The images of a folder, by split: train, and test and validation where they are there.

    The columns are ``image`` (path), ``label`` where folders are classes, and those of
    ``metadata.csv``, ``.jsonl`` or ``.parquet``. Images that these files do not list stay, and have
    nulls there.

    Args:
        root: the folder, absolute.
        walked: what lies below it.
        source: what the user calls it.
        on_error: stop or skip, where names are no text or metadata name missing files.
        progress: print what was passed over and left out.

    Raises:
        UserError: there is no image, or none for training, or a metadata file cannot be read.
    """
    if not is_text(str(root)):
        raise UserError(f"the path {printable(root)} is not UTF-8; rename its folders")
    notes = walked.notes()
    if not walked.listed:
        passed_over = "".join(f"; {note}" for note in notes)
        raise UserError(
            f"no images in {source}: expected {source}/<class>/*.png or images"
            f" ({' '.join(SUFFIXES)}){passed_over}"
        )
    parts = _parts(walked.listed, source, notes)
    used = tuple(part.folder for part in parts.values())
    odd = [name for name in walked.odd if printable(name).startswith(used)]
    if odd and on_error == "stop":
        raise UserError(
            f"{len(odd):,} names of files or folders in {printable(root)} are not UTF-8:"
            f" {abbreviated(odd)}; rename them or give --data.on_error skip"
        )
    metadata = _read_metadata(root, walked, on_error, notes)
    splits: dict[str, datasets.Dataset] = {}
    classes: list[str] = []
    for kind, part in parts.items():
        splits[kind] = _dataset(root, walked, part, classes, metadata)
        label = splits[kind].features.get("label")
        if kind == "train" and isinstance(label, datasets.ClassLabel):
            classes = label.names
        notes += _empty_folders(walked, part)
    if classes and (others := sorted({key for row in metadata.values() for key in row})):
        notes.append(f"folders are the classes; --data.label_column takes {abbreviated(others)}")
    if progress:
        for note in notes:
            say(f"note: {printable(source)}: {note}")
    return splits


def _below(images: Iterable[Listed], folder: str) -> tuple[Counter[str], int]:
    """Number of images in each direct subfolder of a folder, and of those directly in it."""
    folders: Counter[str] = Counter()
    for name, number in images:
        if name.startswith(folder):
            folders[name[len(folder) :].partition("/")[0]] += number
    return folders, folders.pop("", 0)


def _split_of(folder: str) -> str | None:
    return next((kind for kind, names in _SPLITS.items() if folder.lower() in names), None)


def _descend(images: list[Listed], folder: str) -> str:
    """The first folder that holds several; ``folder`` itself where sole folders lead to none."""
    below, (folders, direct) = folder, _below(images, folder)
    while not direct and len(folders) == 1 and not _split_of(sole := next(iter(folders))):
        below += f"{sole}/"
        folders, direct = _below(images, below)
    return below if len(folders) > 1 or any(map(_split_of, folders)) else folder


def _parts(images: list[Listed], source: str, notes: list[str]) -> dict[str, Part]:
    """The splits of a folder, train first; what is left out is added to ``notes``."""
    top = _descend(images, "")
    if top:
        notes.append(f"the images are taken from the folder {printable(top)} in it")
    folders, direct = _below(images, top)
    ranks = {
        name: _SPLITS[kind].index(name.lower()) for name in folders if (kind := _split_of(name))
    }
    chosen: dict[str, str] = {}
    for name in sorted(ranks, key=lambda name: (ranks[name], name != name.lower(), name)):
        chosen.setdefault(str(_split_of(name)), name)
    if not chosen:
        return {"train": Part(top, top)}
    if "train" not in chosen:
        others = set(folders) - set(ranks)
        if others and all(name.lower() in _MAY_BE_CLASSES for name in ranks):
            notes.append(f"taken as classes, since there is no folder train/: {abbreviated(ranks)}")
            return {"train": Part(top, top)}
        raise UserError(
            f"{source} has a folder {top}{next(iter(chosen.values()))}/ but none called train/;"
            f" move the training images into {source}/{top}train/, or rename it if it is a class"
        )
    left = [f"{name}/ ({n:,})" for name, n in folders.items() if name not in chosen.values()]
    left += [f"files beside these folders ({direct:,})"] if direct else []
    if left:
        used = ", ".join(f"{name}/" for name in chosen.values())
        notes.append(f"the images come from {used}; images left out: {abbreviated(left)}")
    train = _descend(images, f"{top}{chosen['train']}/")
    deeper = train.removeprefix(f"{top}{chosen['train']}/")
    parts = {"train": Part(f"{top}{chosen.pop('train')}/", train)}
    for kind, name in chosen.items():
        folder = f"{top}{name}/"
        same = any(listed.folder.startswith(folder + deeper) for listed in images)
        parts[kind] = Part(folder, folder + deeper if same else folder)
    return parts


def _empty_folders(walked: Walk, part: Part) -> list[str]:
    filled = _below(walked.listed, part.classes)[0]
    folders = [name for name in walked.folders if name.startswith(part.classes)]
    empty = {name[len(part.classes) :].partition("/")[0] for name in folders} - filled.keys()
    names = [f"{part.classes}{name}/" for name in sorted(empty)]
    return [f"folders without images: {abbreviated(names)}"] if filled and names else []


def _dataset(
    root: Path,
    walked: Walk,
    part: Part,
    known: list[str],
    metadata: dict[str, dict[str, Any]],
) -> datasets.Dataset:
    """The images of one split; ``known``: the training images' classes, for a test split."""
    # those of a part come one after another
    inside = [listed.folder.startswith(part.folder) for listed in walked.listed]
    images = list(itertools.compress(walked.listed, inside))
    first = sum(listed.number for listed in walked.listed[: inside.index(True)])
    files = walked.files.slice(first, sum(listed.number for listed in images))
    columns: dict[str, list] = {}
    if metadata:
        rows = [metadata.get(name, {}) for name in walked.names(files)]
        for column in dict.fromkeys(key for row in rows for key in row):
            columns[column] = [row.get(column) for row in rows]
    own: dict[str, pa.ChunkedArray] = {"image": files}
    features = datasets.Features(image=datasets.Image())
    classes = sorted(_below(images, part.classes)[0])
    labeled = len(classes) > 1 or (bool(classes) and set(classes) <= set(known))
    if labeled and not columns_called(["image", *columns], LABEL_COLUMNS):
        number = {name: index for index, name in enumerate(classes)}
        inside = (listed.folder.removeprefix(part.classes) for listed in images)
        of_folders = [number.get(name.partition("/")[0], UNLABELED) for name in inside]
        labels = np.repeat(of_folders, [listed.number for listed in images])
        columns.pop("label", None)
        own["label"] = pa.chunked_array([pa.array(labels, pa.int64())])
        features["label"] = datasets.ClassLabel(names=[printable(name) for name in classes])
    dataset = as_dataset(own, features)
    try:
        others = [datasets.Dataset.from_dict(columns)] if columns else []
    except Exception as error:  # of many kinds, by the types that do not fit
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the metadata files of {root} do not fit together: {reason}") from error
    return datasets.concatenate_datasets([dataset, *others], axis=1)


def as_dataset(columns: dict[str, pa.ChunkedArray], features: datasets.Features) -> Any:
    """Columns in memory as a data set; its fingerprint is by lot, for that of all rows is slow."""
    return datasets.Dataset(
        InMemoryTable(pa.table(columns)),
        info=datasets.DatasetInfo(features=features),
        fingerprint=generate_random_fingerprint(),
    )


def _files(begin: str, images: list[tuple[str, pa.StringArray]]) -> pa.ChunkedArray:
    """The files of folders as Hugging Face stores files that lie elsewhere: paths, no bytes."""
    paths = [pc.binary_join_element_wise(begin + folder, files, "") for folder, files in images]  # type: ignore[attr-defined]
    ends = np.cumsum([len(part) for part in paths])
    cuts = np.flatnonzero(np.diff(ends // CHUNK)) + 1  # an array of text holds 2 GiB
    chunks = [
        pa.concat_arrays(paths[a:b])
        for a, b in zip([0, *cuts], [*cuts, len(paths)], strict=True)
        if a < b
    ]
    return pa.chunked_array(
        [
            pa.StructArray.from_arrays([pa.nulls(len(part), pa.binary()), part], ["bytes", "path"])
            for part in chunks
        ],
        datasets.Image().pa_type,
    )


def is_text(path: str) -> bool:
    """Whether a path can be written as UTF-8; others hold bytes that are no text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


# ------------------------------------------------------------------------------- metadata files
def _read_metadata(
    root: Path, walked: Walk, on_error: str, notes: list[str]
) -> dict[str, dict[str, Any]]:
    """The rows of all metadata files by the name of their image, without nested values."""
    rows: dict[str, dict[str, Any]] = {}
    images = set(walked.images) if walked.metadata else set()
    for file in sorted(walked.metadata, key=_place):
        columns = _read_table(root / file, file, notes)
        column = _column_of_images(list(columns), root / file)
        if column is None:
            notes.append(f"{file} is not read: it has no column file_name")
            continue
        names = [str(name) for name in columns.pop(column)]
        columns.pop("image", None)  # the images' own column
        meant = _images_meant(names, file, images, root)
        if column != "file_name" and not any(meant):
            notes.append(f"{file} is not read: its column {printable(column)} names no image")
            continue
        missing = []
        for name, image, *cells in zip(names, meant, *columns.values(), strict=True):
            row = dict(zip(columns, cells, strict=True))
            if image is None:
                missing.append(name)
            elif rows.setdefault(image, row) != row:
                raise UserError(f"{root / file} has several rows for {printable(name)}")
        if missing:
            line = f"{root / file} names {len(missing):,} missing images: {abbreviated(missing)}"
            if on_error == "stop":
                hint = way_out(sorted(images), missing)
                raise UserError(f"{line}; {hint}remove their rows or give --data.on_error skip")
            notes.append(line)
    if rows and (others := len(images) - len(rows)):
        notes.append(f"images that no metadata file lists stay: {others:,}")
    return rows


def _column_of_images(columns: list[str], file: Path) -> str | None:
    """The column with the images' names: Hugging Face's, or by the rule of label_files."""
    if "file_name" in columns:
        return "file_name"
    candidates = columns_called(columns, IMAGE_COLUMNS)
    if len(candidates) > 1:
        raise UserError(
            f"{file} has several image columns: {abbreviated(candidates, 12)}; call one file_name"
        )
    return candidates[0] if candidates else None


def _images_meant(names: list[str], file: str, images: set[str], root: Path) -> list[str | None]:
    """The image that each name of a metadata file means; None where there is none.

    That is the one at this path from the file's folder, or else one below it, as `ImageIndex` says.
    """
    folder = posixpath.dirname(file)
    paths = (posixpath.join(folder, name.replace("\\", "/")) for name in names)
    meant: list[str | None] = [
        path if path in images else None for path in map(posixpath.normpath, paths)
    ]
    others = [place for place, image in enumerate(meant) if image is None]
    if others:
        begin = posixpath.join(folder, "")
        below = sorted(name.removeprefix(begin) for name in images if name.startswith(begin))
        index, unclear = ImageIndex(below), [names[place] for place in others]
        positions = [index.positions(name) for name in unclear]
        require_one_image(unclear, positions, below, root / file)
        for place, found in zip(others, positions, strict=True):
            meant[place] = begin + below[found[0]] if found else None
    return meant


def _read_table(path: Path, file: str, notes: list[str]) -> dict[str, list[Any]]:
    """The columns of a metadata file, without those of nested values."""
    if path.suffix == ".csv":
        rows = read_rows(path)
        if rows.western:
            words = (text for cells in [rows.columns, *rows.cells] for text in cells)
            notes.append(f"{file}{western_note(words)}")
        columns = list(zip(*rows.cells, strict=True)) or [()] * len(rows.columns)
        names = [name for name in rows.columns if name]
        cells = {name: columns[rows.place(name, path)] for name in names}
        is_name = set(columns_called(names, IMAGE_COLUMNS))
        return {
            name: list(cells[name]) if name in is_name else _numbers_or_text(cells[name])
            for name in names
        }
    try:
        table = json.read_json(path) if path.suffix == ".jsonl" else parquet.read_table(path)
        nested = [name for name in table.column_names if pa.types.is_nested(table[name].type)]
        if called := columns_called(nested, LABEL_COLUMNS):
            notes.append(
                f"{file}: the column {abbreviated(called)} is not read: it holds lists or records,"
                " not one class per image"
            )
        return table.drop_columns(nested).to_pydict()
    except Exception as error:  # of many kinds: text that is no UTF-8, times beyond the calendar
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:300]}") from error


def _numbers_or_text(cells: Sequence[str]) -> list[Any]:
    """Cells as numbers where no text is lost by that, so that 9 is before 10; empty ones are None.

    Whole numbers lose the ``.0`` that programs write where another row of the column is empty.
    """
    values = {cell for cell in cells if cell}
    if all(re.fullmatch(r"-?[0-9]+(\.0)?", value) for value in values):
        values = {value.removesuffix(".0") for value in values}
        cells = [cell.removesuffix(".0") for cell in cells]
    for kind in (int, float):
        if all(_is_written_as(kind, value) for value in values):
            return [kind(cell) if cell else None for cell in cells]
    return [cell or None for cell in cells]


def _is_written_as(kind: type[int] | type[float], value: str) -> bool:
    """Whether a number of 64 bits has this text in Python."""
    try:
        number = kind(value)
    except ValueError:
        return False
    return str(number) == value and -(2**63) <= number < 2**63
