"""Which few labels training may see: drawn by lot, or read from a file."""

import csv
import hashlib
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np

from shared.config.labelset import LabelSet
from shared.data.images import UNLABELED, ImageSet, Splits
from shared.data.label_files import (
    MOST_BYTES,
    class_text,
    csv_text,
    each_once,
    find_images,
    find_names,
    read_csv,
    read_list,
)
from shared.runtime.errors import UserError
from shared.runtime.files import open_regular, write_atomically
from shared.runtime.media import abbreviated, csv_lines, csv_value, printable
from shared.runtime.progress import counted
from shared.runtime.randomness import generator
from shared.runtime.records import read_record

CHOOSE_AGAIN = "delete it; pipeline.py with the same options chooses again"  # a damaged `Choice`


class Choice(TypedDict):
    """What was chosen to be labeled, as the file of a choice has it.

    Attributes:
        made_from: the hash of the ``weights`` whose features suggested, and that of the ``images``.
        labels: `Labels.hash` of these images.
        files: their names.
    """

    # files of earlier versions lack these two
    made_from: NotRequired[dict[str, str]]
    labels: NotRequired[str]
    files: list[str]


def read_choice(labels: LabelSet) -> Choice:
    """The images that were suggested, as many as they are; UserError where none are, or damaged."""
    if labels.choice is None or not labels.choice.is_file():
        raise UserError(
            f"labels={labels.text}: no images are chosen yet; pipeline.py with the same options"
            " chooses them after its pretraining"
        )
    choice = read_record(labels.choice, Choice, CHOOSE_AGAIN)
    if not len(choice["files"]) == len({*choice["files"]}) == labels.suggested:
        raise UserError(
            f"{labels.choice} is damaged: it names {counted(len({*choice['files']}), 'image')} for"
            f" labels={labels.text}; {CHOOSE_AGAIN}"
        )
    return choice


class Labels(NamedTuple):
    """The labeled images that training may see: positions (k,) and classes (k,), both int64."""

    ids: np.ndarray
    targets: np.ndarray

    @property
    def hash(self) -> str:
        """Hash of which images carry which label."""
        text = np.stack([self.ids, self.targets]).astype("<i8").tobytes()
        return hashlib.sha256(text).hexdigest()[:16]

    def notes(self, classes: Sequence[str]) -> list[str]:
        """A line that names the classes without any label, where there are some."""
        absent = np.setdiff1d(np.arange(len(classes)), self.targets)
        names = abbreviated(classes[k] for k in absent)
        return (
            [f"note: no label for {names}, which the network cannot learn"] if len(absent) else []
        )


def notes_on_list(splits: Splits, labels: LabelSet) -> list[str]:
    """A line that counts the images of a text file that training may not see, if there are any."""
    if labels.file is None or labels.csv_file is not None:
        return []
    places = find_images(splits, read_list(labels.file), labels.file)
    if not (unused := int((places < 0).sum())):
        return []
    return [f"note: {labels.file}: {counted(unused, 'image')} for testing or unreadable"]


def draw_labels(splits: Splits, labels: LabelSet, seed: int) -> Labels:
    """Pick the labeled images, a function of the label set and the seed.

    Args:
        splits: the data; only training images are picked.
        labels: a share of the labeled images or a number per class, stratified, at least one per
            class; a number at random, which may miss classes; a number suggested by features, which
            were chosen before (``stages.suggest``); a text file with one image name per line (as
            the published ImageNet subsets), or a CSV file (``label_files``). Images that were held
            out for testing are left out of a file.
        seed: of the draw; it has no effect on files.

    Raises:
        UserError: there are fewer labels than classes, or a file cannot be read or names unknown
            images or classes.
    """
    if labels.file is not None:
        return _checked(splits.train, _listed(splits, labels), labels.file)
    if (splits.train.labels == UNLABELED).all():
        columns = splits.train.columns
        named = f", or the column of the labels: --data.label_column, of {abbreviated(columns, 12)}"
        raise UserError(
            f"labels={labels.text}, but the images have no labels; give a CSV file with"
            f" the columns file and label: --labels labels.csv{named if columns else ''};"
            " python -m stages.suggest says which images to label"
        )
    if labels.number is not None:
        return _by_number(splits.train, labels, generator(seed, "labels"))
    return _stratified(splits.train, labels, generator(seed, "labels"))


def positions_of(images: ImageSet, names: list[str], file: Path) -> np.ndarray:
    """Where the images are that a file of a choice names: (n,) int64, ascending.

    Raises:
        UserError: a name fits no image, or several.
    """
    return np.sort(np.array(find_names(list(images.names), names, file), dtype=np.int64))


def _by_number(images: ImageSet, labels: LabelSet, rng: np.random.Generator) -> Labels:
    """So many labels at random, or those that were chosen; a class may have none."""
    number = labels.number or 0
    labeled = np.flatnonzero(images.labels != UNLABELED)
    if number > len(labeled):
        raise UserError(f"labels={labels.text}: only {len(labeled):,} training images have a label")
    if labels.random:
        ids = np.sort(rng.permutation(labeled)[:number])
    else:
        files = read_choice(labels)["files"]
        assert labels.choice
        ids = positions_of(images, files, labels.choice)
        if len(lost := ids[images.labels[ids] == UNLABELED]):
            raise UserError(
                f"labels={labels.text}: {abbreviated(images.names[lost])} of {labels.choice} no"
                " longer have a label that training may see; pipeline.py with the same options"
                " chooses again"
            )
    sure = not (labels.random and labels.suggested)  # else others will be suggested
    if sure and len(classes := np.unique(images.labels[ids])) < 2:
        raise UserError(
            f"labels={labels.text}: all of these images are of one class,"
            f" {printable(images.classes[classes[0]])}; take more of them, or another --seed"
        )
    return Labels(ids, images.labels[ids])


def _listed(splits: Splits, labels: LabelSet) -> Labels:
    """The training images of a file, each once, in order."""
    train, file = splits.train, labels.file
    assert file is not None
    if labels.csv_file is None:
        places = find_images(splits, read_list(file), file)
        ids = np.unique(places[places >= 0])
        if (train.labels[ids] == UNLABELED).any():
            raise UserError(f"{file} lists images without a known label; use a CSV file,label")
        return Labels(ids, train.labels[ids])
    table = read_csv(file, labels.image_column, labels.label_column, train.classes)
    rows = table.rows
    number = {class_text(name): index for index, name in enumerate(train.classes)}
    number[""] = UNLABELED
    unknown = sorted({label for _, label in rows} - number.keys())
    if unknown:
        raise UserError(
            f"{file} names unknown classes: {abbreviated(unknown)}; the images have"
            f" {abbreviated(train.classes)}"
        )
    ids = find_images(splits, [name for name, _ in rows], file)
    if not any(label for _, label in rows):
        raise UserError(
            f"{file} has no label yet; write classes into it (a sheet of stages.suggest saves"
            " another file, among the downloads of the browser)"
        )
    targets = np.array([number[label] for _, label in rows], dtype=np.int64)
    return Labels(*each_once(train, ids, targets, table))


def _checked(train: ImageSet, labels: Labels, file: Path) -> Labels:
    """The labels as they are; UserError where a class has none, or there is one class alone."""
    ids, targets = labels
    # a class without any labeled image needs no label here
    classes = np.unique(train.labels[train.labels != UNLABELED])
    if len(missing := np.setdiff1d(classes, targets)):
        raise UserError(
            f"{file} has {len(ids)} labels of images that training may see, and none of the classes"
            f" {abbreviated(train.classes[k] for k in missing)}; give at least one of each"
        )
    if len(np.unique(targets)) < 2:
        raise UserError(
            f"{file} has {counted(len(ids), 'label')} of images that training may see, of"
            f" {counted(len(np.unique(targets)), 'class', 'classes')}; give labels of two or more"
            " classes, of images that are not in --data.test (an empty cell and -1 are no label;"
            " call classes 0 and 1, or by names)"
        )
    return labels


def _stratified(images: ImageSet, labels: LabelSet, rng: np.random.Generator) -> Labels:
    members = _members(images.labels, len(images.classes))
    available = np.array([len(ids) for ids in members])
    if len(members) < 2:
        raise UserError(
            "all labeled images are of one class,"
            f" {printable(images.classes[images.labels.max()])}; give images of two or more (an"
            " empty cell and -1 are no label; call classes 0 and 1, or by names)"
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


def _members(labels: np.ndarray, classes: int) -> list[np.ndarray]:
    """Positions (n_k,) of each class's images, ascending, by one sort for all classes.

    A class without any image, as in the first 1% of a sorted data set, is left out: it gets no
    label.
    """
    narrow = labels.astype(np.min_scalar_type(classes))  # two bytes sort much faster than eight
    order = np.argsort(narrow, kind="stable")  # UNLABELED wraps to the largest value: it is last
    order = order[: np.count_nonzero(labels != UNLABELED)]
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    return np.split(order, starts)


def _proportional(available: np.ndarray, labels: LabelSet, rng: np.random.Generator) -> np.ndarray:
    """How many images of each class (C,) make up the share, where ``available`` (C,) are there."""
    share, classes = labels.share or 0.0, len(available)
    total = round(share * available.sum())
    if total < classes:
        least = math.ceil(1e4 * classes / available.sum()) / 100
        raise UserError(
            f"labels={labels.text} is {total} of {available.sum()} images, fewer than the"
            f" {classes} classes; take at least {least:g}pct or 1perclass"
        )
    # one each, the rest by largest remainder; lots decide between classes with equal remainders
    quota = share * available
    counts = np.clip(np.floor(quota).astype(int), 1, available)
    surplus = counts.sum() - total
    step = -1 if surplus > 0 else 1
    last = np.ones_like(available) if surplus > 0 else available  # no count goes beyond it
    need = np.where(counts == last, -np.inf, step * (quota - counts))
    tie = 1e-9 * quota.max()
    for _ in range(abs(surplus)):
        chosen = rng.choice(np.flatnonzero(need > need.max() - tie))
        counts[chosen] += step
        at_end = counts[chosen] == last[chosen]
        need[chosen] = -np.inf if at_end else step * (quota[chosen] - counts[chosen])
    return counts


def write_labels(path: Path, images: ImageSet, labels: Labels) -> None:
    """Save which image carries which label, as a CSV file that ``--labels`` takes."""
    rows = zip(images.names[labels.ids], labels.targets, strict=True)
    write_atomically(path, csv_text((name, images.classes[target]) for name, target in rows))


def write_names(path: Path, images: ImageSet) -> None:
    """Save the names of the images in their order."""
    write_atomically(path, csv_lines([("file",), *((name,) for name in images.names)]))


def read_names(path: Path) -> list[str]:
    """The names that `write_names` saved.

    Raises:
        UserError: it is damaged, no regular file, or larger than a label file may be.
    """
    names: list[str] = []
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            for row in csv.reader(text, strict=True):
                if len(row) != 1 or "\0" in row[0] or (not names and row[0] != "file"):
                    raise ValueError(f"row {len(names) + 1} is {printable(row)[:60]}")
                names.append(csv_value(row[0]))
        if not names:
            raise ValueError("it is empty")
    except (OSError, ValueError, csv.Error) as error:
        reason = printable(error)[:200]
        raise UserError(
            f"cannot read {path}: {reason}; remove it to go on with the images that are there now"
        ) from error
    return names[1:]
