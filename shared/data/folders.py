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
from dataclasses import dataclass, field, replace
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
    LABEL_COLUMNS,
    SPLITS,
    ImageIndex,
    columns_called,
    image_columns,
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
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
# What Pillow recognises by content, where the suffix says nothing. Not TGA, which has no mark.
_FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM"),
    *("PSD", "QOI", "SGI", "TIFF", "WEBP", "XBM", "XPM"),
)
_NOT_ENTERED = (".", "__", "@eaDir", "$RECYCLE")  # beginnings: .git, __MACOSX, thumbnails, bin
_KINDS = {word: (kind, rank) for kind, ws in SPLITS.items() for rank, word in enumerate(ws)}
_SPLIT_WORD = re.compile(
    rf"(?<![^\W0-9_])({'|'.join(sorted(_KINDS, key=len, reverse=True))})(?=sets?\b|[\W0-9_]|$)"
)
_NO_CLASSES = "\0/"  # a folder that cannot be, so nothing in it is a class
_PLAIN = "*"  # the rest of a name that is nothing but such a word
_UNLABELED = re.compile(r"(un|no|non|not|without)[\W_]?label(l?ed|s)?", re.I)  # folders of no class
_MAY_BE_NONE = re.compile(r"-1|none|null|nan|n[\W_]?a|unknown|unsorted|todo|\?+", re.I)
# names of folders of segmentation data, without what is no letter; pictures may be of a split
_PICTURES = r"(images?|imgs?|jpegimages|pictures|photos|rgb|leftimgbit|train|training|val|test)"
_MASKS = (
    r"(masks?|labels?|annot|annotations?|segmentation(s|class|object)?|groundtruths?|gt|trimaps?)"
)
_MAY_BE_CLASSES = ("valid", "dev")  # beside other folders, and without a train folder
CHUNK = 1_000_000  # images in an array, about
MOST_COLUMNS = 10_000  # of a metadata file
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
        links: names of images that are links, and the paths that these lead to in one step.
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
    links: dict[str, str] = field(default_factory=dict)

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
                if entry.is_symlink():
                    _add_link(entry, name, found)
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


def _add_link(entry: os.DirEntry, name: str, found: Walk) -> None:
    """Note what a link to an image leads to; the folders on the way there may be links too."""
    folder, file = os.path.split(os.path.join(os.path.dirname(entry.path), os.readlink(entry.path)))
    target = os.path.join(os.path.realpath(folder), file)
    if is_text(name + target):
        found.links[name] = target


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

    Both are "" or end with ``/``. Of albums ``classes`` is ``_NO_CLASSES``: no image lies there.
    """

    folder: str
    classes: str


def open_folder(
    root: Path,
    walked: Walk,
    source: str,
    on_error: str,
    progress: bool,
    known: Sequence[str] = (),
    class_folders: bool = True,
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
        known: classes of the training images, if these are others; a sole folder may be one.
        class_folders: whether folders are classes.

    Raises:
        UserError: there is no image, or none for training, or a metadata file cannot be read.
    """
    if not is_text(str(root)):
        raise UserError(f"the path {printable(root)} is not UTF-8; rename its folders")
    notes = walked.notes()
    if not walked.listed:
        passed_over = "".join(f"; {note}" for note in notes)
        if any(suffix in ARCHIVES for suffix in walked.passed_over):
            passed_over += "; unpack the archives"
        raise UserError(
            f"no images in {source}: expected {source}/<class>/*.png or images"
            f" ({' '.join(SUFFIXES)}){passed_over}"
        )
    parts = _parts(walked.listed, source, notes, class_folders)
    _refuse_masks(walked, parts["train"].classes, source)
    walked = _each_file_once(root, walked, parts, notes)
    used = tuple(part.folder for part in parts.values())
    odd = [name for name in walked.odd if printable(name).startswith(used)]
    if odd and on_error == "stop":
        raise UserError(
            f"{len(odd):,} names of files or folders in {printable(root)} are not UTF-8:"
            f" {abbreviated(odd)}; rename them or give --data.on_error skip"
        )
    metadata = _read_metadata(root, walked, on_error, notes)
    splits: dict[str, datasets.Dataset] = {}
    classes = [*known]
    for kind, part in parts.items():
        splits[kind] = _dataset(root, walked, part, classes, metadata)
        label = splits[kind].features.get("label")
        if kind == "train" and isinstance(label, datasets.ClassLabel):
            classes = label.names
        folders = sorted(_below(walked.listed, part.classes))
        within = _directly_in(part.classes, (listed.folder for listed in walked.listed))
        unlabeled = [f"{name}/" for name in sorted({*within} - {*folders})]
        if unlabeled and (classes or not metadata):
            notes.append(
                f"images without a class: {abbreviated(unlabeled)}; rename a folder that is a class"
            )
        unclear = [name for name in classes if _MAY_BE_NONE.fullmatch(name)]
        if kind == "train" and unclear:
            notes.append(
                f"{abbreviated(unclear)} is taken as a class; call a folder of images without a"
                " class unlabeled"
            )
        if kind == "train" and not classes and len(folders) > 1:
            notes.append(
                f"the metadata files have the labels; {abbreviated(folders)} are no classes"
            )
        notes += _empty_folders(walked, part)
    if classes and (others := sorted({key for row in metadata.values() for key in row})):
        notes.append(f"folders are the classes; --data.label_column takes {abbreviated(others)}")
    if progress:
        for note in notes:
            say(f"note: {printable(source)}: {note}")
    return splits


def _directly_in(folder: str, paths: Iterable[str]) -> list[str]:
    """The folders directly in a folder on the way to these paths, each once, in their order."""
    names = (path[len(folder) :].partition("/")[0] for path in paths if path.startswith(folder))
    return [*filter(None, dict.fromkeys(names))]


def _below(images: Iterable[Listed], folder: str) -> list[str]:
    """The folders with images directly in a folder, but for those called unlabeled or alike."""
    names = _directly_in(folder, (listed.folder for listed in images))
    return [name for name in names if not _UNLABELED.fullmatch(name)]


@cache
def _split_name(folder: str) -> tuple[str, int, str] | None:
    """Of a name with the word for a split: which split, the word's rank, and the rest of it."""
    name = re.sub(r"([a-z])([A-Z])", r"\1_\2", folder).lower()  # TestData is test_data
    name = re.sub(r"^[0-9]+[\W_]+", "", name)  # 01_train, 02_test
    if not (word := _SPLIT_WORD.search(name)):
        return None
    sides = (name[: word.start()], name[word.end() :])
    return *_KINDS[word[0]], _PLAIN.join(re.sub(r"[\W_]", "", side) for side in sides)


def split_of(name: str) -> str | None:
    """The split that a word in the name of a folder or file says: train, test or validation."""
    split = _split_name(name)
    return split and split[0]


def _is_plain(folder: str) -> bool:
    return (split := _split_name(folder)) is not None and split[2] == _PLAIN


def _descend(images: list[Listed], folder: str, into_splits: bool = False) -> str:
    """The first folder that holds several, or a split; ``folder`` where sole folders lead to none.

    Images that lie beside a sole folder do not matter. ``into_splits``: a folder called like a
    split is as any other.
    """
    below, folders = folder, _below(images, folder)
    while len(folders) == 1 and (into_splits or not _is_plain(folders[0])):
        below += f"{folders[0]}/"
        folders = _below(images, below)
    return below if len(folders) > 1 or (folders and not into_splits) else folder


def _splits_in(images: list[Listed], folder: str) -> dict[str, str]:
    """The split folders that lie directly in a folder, train among them; empty: there are none.

    Their names are alike but for the word: train, test; seg_train, seg_test; train_set, test_set.
    A train/ of images alone is a class where no folder beside it is called like another split.
    So are all folders of cat_train, cat_test, dog_train, dog_test.
    """
    folders = _below(images, folder)
    named = {name: split for name in folders if (split := _split_name(name))}
    alike: dict[str, dict[str, str]] = {}
    for name in sorted(named, key=lambda name: (named[name][1], name != name.lower(), name)):
        kind, _, rest = named[name]
        alike.setdefault(rest, {}).setdefault(kind, name)

    if "train" in (plain := alike.pop(_PLAIN, {})):
        within = _below(images, f"{folder}{plain['train']}/")
        others = any(kind != "train" for kind, _, _ in named.values())
        return plain if within or others or len(folders) == 1 else {}
    splits = [names for names in alike.values() if "train" in names and len(names) > 1]
    return splits[0] if len(splits) == 1 else {}


def _top(images: list[Listed], source: str) -> str:
    """The folder that holds the split folders, or else the class folders."""
    top = _descend(images, "")
    if any(map(_is_plain, _below(images, top))) or _splits_in(images, top):
        return top
    parents: dict[str, None] = {}  # of folders for training
    for name, _ in images:
        folders = name[len(top) :].split("/")[:-1] if name.startswith(top) else []
        for depth, folder in enumerate(folders):
            if split_of(folder) == "train":
                parents["".join(f"{above}/" for above in folders[:depth])] = None
    splits = {parent: _splits_in(images, top + parent) for parent in parents}
    holding = [parent for parent in parents if len(splits[parent]) > 1]
    if not holding:  # one folder may hold train/ alone, with class folders
        lone = [parent for parent in parents if _holds_train_alone(images, top + parent)]
        holding = lone if len(lone) == 1 else []
    depth = min((parent.count("/") for parent in holding), default=0)
    highest = [f"{top}{parent}" for parent in holding if parent.count("/") == depth]
    if len(highest) > 1:
        raise UserError(
            f"{source} has folders for training and testing in {abbreviated(highest)}; give one of"
            f" these as the source, or move the images to train/<class>/ and test/<class>/"
        )
    return highest[0] if highest else top


def _holds_train_alone(images: list[Listed], folder: str) -> bool:
    """Whether a folder holds nothing but a folder train/ with class folders."""
    folders = _below(images, folder)
    return (
        len(folders) == 1
        and _is_plain(folders[0])
        and len(_below(images, f"{folder}{folders[0]}/")) > 1
    )


def _left_out(images: list[Listed], used: tuple[str, ...]) -> list[str]:
    """The folders that hold no images of the used ones, with their numbers of images."""
    left: Counter[str] = Counter()
    for folder, number in images:
        if not folder.startswith(used):
            above = itertools.accumulate(folder.split("/")[:-1], lambda a, b: f"{a}/{b}")
            outside = (name for name in above if not any(f.startswith(f"{name}/") for f in used))
            left[next(outside, "")] += number
    names = [f"{name}/ ({left[name]:,})" for name in sorted(left) if name]
    return names + ([f"files beside these folders ({left['']:,})"] if left[""] else [])


def _parts(
    images: list[Listed], source: str, notes: list[str], class_folders: bool
) -> dict[str, Part]:
    """The splits of a folder, train first; what is left out is added to ``notes``."""
    top = _top(images, source) if class_folders else _descend(images, "")
    folders = _below(images, top)
    chosen = _splits_in(images, top)
    if not class_folders and len(chosen) < 2:  # an album may be called train
        return {"train": Part("", _NO_CLASSES)}
    if top:
        notes.append(f"the images are taken from the folder {printable(top)} in it")
    if not chosen:
        plain = [name for name in folders if _is_plain(name)]
        is_train = any(split_of(name) == "train" for name in plain)
        may_be = all(name.lower() in _MAY_BE_CLASSES for name in plain) and len(folders) > len(
            plain
        )
        if plain and not is_train and not may_be:
            raise UserError(
                f"{source} has a folder {top}{plain[0]}/ but none called train/;"
                f" move the training images into {source}/{top}train/, or rename it if it is a"
                " class"
            )
        if alike := sorted(name for name in folders if _split_name(name)):
            notes.append(f"taken as classes, not as splits: {abbreviated(alike)}")
        parts = {"train": Part("", top)}
        if left := _left_out(images, (top,)):
            notes.append(f"images without a class: {abbreviated(left)}")
    else:
        folder = f"{top}{chosen.pop('train')}/"
        parts = {"train": Part(folder, _descend(images, folder, into_splits=True))}
        deeper = parts["train"].classes.removeprefix(folder)
        for kind, name in chosen.items():
            folder = f"{top}{name}/"
            same = any(listed.folder.startswith(folder + deeper) for listed in images)
            classes = folder + deeper if same else _descend(images, folder, into_splits=True)
            parts[kind] = Part(folder, classes)
        if left := _left_out(images, tuple(part.folder for part in parts.values())):
            used = ", ".join(part.folder.removeprefix(top) for part in parts.values())
            notes.append(
                f"the images come from {printable(used)}; images left out: {abbreviated(left)}"
            )
    if not class_folders:
        return {kind: Part(part.folder, _NO_CLASSES) for kind, part in parts.items()}
    notes += _doubtful_classes(images, parts["train"].classes)
    return parts


def _refuse_masks(walked: Walk, folder: str, source: str) -> None:
    """UserError where class folders are called as those of pictures and of their masks.

    The files of most masks are called after a picture then.
    """
    plain = {re.sub(r"[\W0-9_]", "", n.casefold()): n for n in _below(walked.listed, folder)}
    pictures = next((n for word, n in plain.items() if re.fullmatch(_PICTURES, word)), "")
    is_of_masks = re.compile(f"{_PICTURES}?{_MASKS}")
    masks = next((n for word, n in plain.items() if is_of_masks.fullmatch(word)), "")
    if not (pictures and masks):
        return
    stems = [
        {
            os.path.splitext(os.path.basename(image))[0]
            for image in walked.images
            if image.startswith(f"{folder}{n}/")
        }
        for n in (pictures, masks)
    ]
    if 2 * sum(_is_called_after(stem, stems[0]) for stem in stems[1]) >= len(stems[1]):
        part = printable(os.path.join(source, folder, pictures))
        raise UserError(
            f"{source} has the folders {folder}{printable(pictures)}/ and"
            f" {folder}{printable(masks)}/, which look like pictures and their masks for"
            f" segmentation, not like classes; give the pictures alone, {part}, or rename the"
            " folders if they are classes"
        )


def _is_called_after(name: str, names: set[str]) -> bool:
    """Whether a name is one of these, or one of them with a word before or after it."""
    ends = [match.span() for match in re.finditer(r"[\W_]", name)]
    return name in names or any(name[:a] in names or name[b:] in names for a, b in ends)


def _doubtful_classes(images: list[Listed], folder: str) -> list[str]:
    """A note where class folders hold nothing but folders, which may be the classes meant."""
    within: dict[str, set[str]] = {}
    for name, _ in images:
        if name.startswith(folder) and name != folder:
            first, _, rest = name[len(folder) :].partition("/")
            within.setdefault(first, set()).add(rest.partition("/")[0])
    alike = next(iter(within.values()), set())
    if len(within) < 2 or any("" in names for names in within.values()):
        return []
    inner = sorted(set().union(*within.values()))
    if all(names == alike for names in within.values()):
        if len(alike) < 2 and not any(map(_split_name, alike)):
            return []
        return [
            f"each of the classes {abbreviated(sorted(within))} has the folders"
            f" {abbreviated(inner)}; if these are what counts, give one class folder as the"
            " source, or move the images"
        ]
    if any(len(names) < 2 for names in within.values()):
        return []
    return [
        f"the folders {abbreviated(inner)} within the classes {abbreviated(sorted(within))} are no"
        " classes of their own; if they are what counts, move them up"
    ]


def _each_file_once(root: Path, walked: Walk, parts: dict[str, Part], notes: list[str]) -> Walk:
    """The walk with one name for each file that links lead to; a split without images goes.

    That name is the file's own. It is a link's where links of the same split lead to all images of
    the file's folder: such a folder has the files, and the folders of the links say what they are.
    """
    used = tuple(part.folder for part in parts.values())
    links = {name: target for name, target in walked.links.items() if name.startswith(used)}
    if not links:
        return walked
    begin = os.path.join(os.path.realpath(root), "")
    images = walked.images
    inside = {begin + name for name in images if name.startswith(used)} & {*links.values()}
    of_folder = Counter(target.removeprefix(begin).rpartition("/")[0] for target in inside)
    sizes = {folder.removesuffix("/"): number for folder, number in walked.listed}
    dropped: set[str] = set()
    taken: set[str] = set()
    for name, target in sorted(links.items()):
        own = target.removeprefix(begin)
        folder = own.rpartition("/")[0]
        if target in taken:
            dropped.add(name)
        elif target in inside and own != name:
            same = all(name.startswith(part) == own.startswith(part) for part in used)
            dropped.add(own if same and of_folder[folder] == sizes[folder] else name)
        taken.add(target)
    if not dropped:
        return walked
    notes.append(f"further names of the same files, by links: {abbreviated(sorted(dropped), 4)}")
    gone = Counter(name.rpartition("/")[0] for name in dropped)
    listed = [Listed(folder, n - gone[folder.removesuffix("/")]) for folder, n in walked.listed]
    listed = [one for one in listed if one.number]
    for kind, part in list(parts.items()):
        if not any(folder.startswith(part.folder) for folder, _ in listed):
            parts.pop(kind)
    mask = pa.array([name not in dropped for name in images])
    return replace(walked, listed=listed, files=walked.files.filter(mask))


def _empty_folders(walked: Walk, part: Part) -> list[str]:
    filled = _directly_in(part.classes, (listed.folder for listed in walked.listed))
    empty = {*_directly_in(part.classes, walked.folders)} - {*filled}
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
    classes = sorted(_below(images, part.classes))
    labeled = len(classes) > 1 or (bool(classes) and set(classes) <= set(known))
    if labeled and not columns_called(["image", *columns], LABEL_COLUMNS):
        number = {name: index for index, name in enumerate(classes)}
        of_folders = [
            number.get(folder[len(part.classes) :].partition("/")[0], UNLABELED)
            if folder.startswith(part.classes)
            else UNLABELED
            for folder, _ in images
        ]
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
    candidates = image_columns(columns)
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
        _require_few(rows.columns, path)
        if rows.western:
            words = (text for cells in [rows.columns, *rows.cells] for text in cells)
            notes.append(f"{file}{western_note(words)}")
        columns = list(zip(*rows.cells, strict=True)) or [()] * len(rows.columns)
        names = [name for name in rows.columns if name]
        cells = {name: columns[rows.place(name, path)] for name in names}
        is_name = set(image_columns(names))
        return {
            name: list(cells[name]) if name in is_name else _numbers_or_text(cells[name])
            for name in names
        }
    try:
        if path.suffix == ".parquet":
            _require_few(parquet.read_schema(path).names, path)
        table = json.read_json(path) if path.suffix == ".jsonl" else parquet.read_table(path)
        _require_few(table.column_names, path)
        nested = [name for name in table.column_names if pa.types.is_nested(table[name].type)]
        if called := columns_called(nested, LABEL_COLUMNS):
            notes.append(
                f"{file}: the column {abbreviated(called)} is not read: it holds lists or records,"
                " not one class per image"
            )
        return table.drop_columns(nested).to_pydict()
    except UserError:
        raise
    except Exception as error:  # of many kinds: text that is no UTF-8, times beyond the calendar
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:300]}") from error


def _require_few(columns: list[str], path: Path) -> None:
    """UserError where a file has so many columns that to look at each takes minutes."""
    if len(columns) > MOST_COLUMNS:
        raise UserError(
            f"{path} has {len(columns):,} columns, and at most {MOST_COLUMNS:,} are read; leave"
            " file_name and label in it"
        )


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
