"""Which few labels training may see: drawn by lot, or read from a file."""

import csv
import hashlib
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.config.labelset import LabelSet
from shared.data.images import UNLABELED, ImageSet, Splits, abbreviated
from shared.runtime.artifacts import write_atomically
from shared.runtime.errors import UserError
from shared.runtime.progress import counted
from shared.runtime.randomness import generator


class Labels(NamedTuple):
    """The labeled images that training may see: positions (k,) and classes (k,), both int64."""

    ids: np.ndarray
    targets: np.ndarray

    @property
    def hash(self) -> str:
        """Hash of which images carry which label."""
        text = np.stack([self.ids, self.targets]).astype("<i8").tobytes()
        return hashlib.sha256(text).hexdigest()[:16]


def draw_labels(splits: Splits, labels: LabelSet, seed: int) -> Labels:
    """Pick the labeled images: stratified, at least one per class, a function of the seed.

    Args:
        splits: the data; only training images are picked.
        labels: a share of the labeled images, a number per class, a text file with one image name
            per line (as the published ImageNet subsets), or a CSV file with the columns file and
            label. Images that were held out for testing are left out of a file.
        seed: of the draw; it has no effect on files.

    Raises:
        UserError: there are fewer labels than classes, or a file cannot be read or names unknown
            images or classes.
    """
    if labels.file is not None:
        return _checked(splits.train, *_listed(splits, labels), labels.file)
    if (splits.train.labels == UNLABELED).all():
        raise UserError(
            f"labels={labels.text}, but the images have no labels; give a CSV file with"
            " the columns file and label: --labels labels.csv"
        )
    return _stratified(splits.train, labels, generator(seed, "labels"))


def _listed(splits: Splits, labels: LabelSet) -> tuple[np.ndarray, np.ndarray]:
    """Positions (k,) and classes (k,) of a file's training images; the file may repeat images."""
    train, file = splits.train, labels.file
    assert file is not None
    if labels.csv_file is None:
        lines = [line.strip() for line in read_text(file).splitlines()]
        ids = find_images(splits, [line for line in lines if line], file)
        ids = ids[ids >= 0]
        targets = train.labels[ids]
        if (targets == UNLABELED).any():
            raise UserError(f"{file} lists images without a known label; use a CSV file,label")
        return ids, targets
    rows = read_csv(file)
    unknown = sorted({label for _, label in rows} - set(train.classes))
    if unknown:
        raise UserError(
            f"{file} names unknown classes: {abbreviated(unknown)}; the images have"
            f" {abbreviated(train.classes)}"
        )
    ids = find_images(splits, [name for name, _ in rows], file)
    number = {name: index for index, name in enumerate(train.classes)}
    targets = np.array([number[label] for _, label in rows], dtype=np.int64)
    return ids[ids >= 0], targets[ids >= 0]


def _checked(train: ImageSet, ids: np.ndarray, targets: np.ndarray, file: Path) -> Labels:
    """Each image once, in order; UserError where a class has no label or an image has several."""
    ids, targets = np.unique(np.stack([ids, targets]), axis=1)  # (k,) each: in order, no repeats
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated):
        raise UserError(f"{file} gives several labels to {abbreviated(train.names[repeated])}")
    # a class without any labeled image needs no label here
    classes = np.unique(train.labels[train.labels != UNLABELED])
    if len(missing := np.setdiff1d(classes, targets)):
        raise UserError(
            f"{file} has {len(ids)} labels of images that training may see, and none of the classes"
            f" {abbreviated(train.classes[k] for k in missing)}; give at least one of each"
        )
    if not len(ids):
        raise UserError(f"{file} labels no image that training may see")
    return Labels(ids, targets)


def _stratified(images: ImageSet, labels: LabelSet, rng: np.random.Generator) -> Labels:
    # a class without any image, as in the first 1% of a sorted data set, gets no label
    members = [np.flatnonzero(images.labels == k) for k in range(len(images.classes))]
    members = [ids for ids in members if len(ids)]
    available = np.array([len(ids) for ids in members])
    if len(members) < 2:
        raise UserError(
            f"all labeled images are of one class, {abbreviated(images.classes)}; give images"
            " of two or more"
        )
    if labels.per_class is not None:
        counts = np.full(len(members), labels.per_class)
        if counts[0] < 1 or (counts > available).any():
            raise UserError(
                f"labels={labels.text}: the smallest class has {available.min()} images,"
                f" so it must be 1perclass to {available.min()}perclass"
            )
    else:
        counts = _proportional(available, labels, rng)
    ids = np.concatenate([rng.permutation(m)[:n] for m, n in zip(members, counts, strict=True)])
    ids = np.sort(ids)
    return Labels(ids, images.labels[ids])


def _proportional(available: np.ndarray, labels: LabelSet, rng: np.random.Generator) -> np.ndarray:
    """How many images of each class (C,) make up the share, where ``available`` (C,) are there."""
    share, classes = labels.share or 0.0, len(available)
    total = round(share * available.sum())
    if not 0 < share <= 1:
        raise UserError(f"labels={labels.text}: the share must be above 0 and at most 100pct")
    if total < classes:
        least = math.ceil(1e4 * classes / available.sum()) / 100
        raise UserError(
            f"labels={labels.text} is {total} of {available.sum()} images, fewer than the"
            f" {classes} classes; take at least {least:g}pct or 1perclass"
        )
    # one each, the rest by largest remainder; lots decide between classes with equal remainders
    quota = share * available
    counts = np.clip(np.floor(quota).astype(int), 1, available)
    while counts.sum() != total:
        step = 1 if counts.sum() < total else -1
        adjustable = (counts < available) if step > 0 else (counts > 1)
        need = np.where(adjustable, step * (quota - counts), -np.inf)
        counts[rng.choice(np.flatnonzero(need > need.max() - 1e-9 * quota.max()))] += step
    return counts


def write_labels(path: Path, images: ImageSet, labels: Labels) -> None:
    """Save which image carries which label, as a CSV file that ``--labels`` takes."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "label"])
    for id_, target in zip(labels.ids, labels.targets, strict=True):
        rows.writerow([images.names[id_], images.classes[target]])
    write_atomically(path, text.getvalue())


# ---------------------------------------------------------------------------------- label files
def read_text(file: Path) -> str:
    """Content of a label file; UserError if it cannot be read."""
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


def find_images(splits: Splits, names: list[str], file: Path) -> np.ndarray:
    """Positions (k,) int64 of the named training images; -1 for those held out for testing.

    A name is an image's whole name or the end of it, from any folder on.

    Raises:
        UserError: a name fits no image, or several; the message names ``file``.
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
            f"{file} names {counted(len(unknown), 'unknown image')}: {abbreviated(unknown)};"
            f" the images are called like {abbreviated(train.names)}"
        )
    ambiguous = [name for name in names if name not in whole and len(ends[name]) > 1]
    if ambiguous:
        raise UserError(
            f"{file}: {abbreviated(ambiguous)} may be several images; write more of the path,"
            f" as in {abbreviated(train.names)}"
        )
    return np.array(
        [whole[name] if name in whole else ends[name][0] for name in names], dtype=np.int64
    )


def _ends(name: str) -> Iterator[str]:
    """A path without its first folder, its first two, ...: of ``a/b/c`` b/c and c."""
    while "/" in name:
        name = name.partition("/")[2]
        yield name
    # the hub's ImageNet repeats the class: n01440764_1_n01440764.JPEG
    short = re.sub(r"^(n\d{8}_\d+)_n\d{8}(?=\.)", r"\1", name)
    if short != name:
        yield short
