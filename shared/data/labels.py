"""Which few labels training may see."""

import csv
import hashlib
import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.config.labelset import LabelSet
from shared.data.images import UNLABELED, ImageSet, Splits, find, read_csv, read_text, some
from shared.runtime.artifacts import write_atomically
from shared.runtime.errors import UserError
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
            a line (as the published ImageNet subsets), or a CSV file with the columns file, label.
            Of a file, the images that were held out for testing are left out.
        seed: of the draw; without effect for files.

    Raises:
        UserError: where there are fewer labels than classes, or a file names unknown images or
            classes.
    """
    train = splits.train
    file = labels.file
    if file is None:
        if (train.labels == UNLABELED).all():
            raise UserError(
                f"labels={labels.given}, but the images have no labels; give a CSV file with"
                " the columns file and label: --labels labels.csv"
            )
        return _stratified(train, labels, generator(seed, "labels"))
    if labels.table is not None:
        rows = read_csv(file)
        unknown = sorted({label for _, label in rows} - set(train.classes))
        if unknown:
            raise UserError(
                f"{file} names unknown classes: {some(unknown)}; the images have"
                f" {some(train.classes)}"
            )
        ids = find(splits, [name for name, _ in rows], file)
        number = {name: index for index, name in enumerate(train.classes)}
        targets = np.array([number[label] for _, label in rows], dtype=np.int64)[ids >= 0]
    else:
        lines = [line.strip() for line in read_text(file).splitlines()]
        ids = find(splits, [line for line in lines if line], file)
        targets = train.labels[ids[ids >= 0]]
        if (targets == UNLABELED).any():
            raise UserError(f"{file} lists images without a known label; use a CSV file,label")
    ids = ids[ids >= 0]
    ids, targets = np.unique(np.stack([ids, targets]), axis=1)  # (k,) each: in order, no repeats
    twice = ids[1:][ids[1:] == ids[:-1]]
    if len(twice):
        raise UserError(f"{file} gives several labels to {some(train.names[twice])}")
    # classes of which no image is labeled at all need none
    wanted = np.unique(train.labels[train.labels != UNLABELED])
    if len(missing := np.setdiff1d(wanted, targets)):
        raise UserError(
            f"{file} has {len(ids)} labels of images that training may see, and none of the classes"
            f" {some(train.classes[k] for k in missing)}; give at least one of each"
        )
    if not len(ids):
        raise UserError(f"{file} labels no image that training may see")
    return Labels(ids, targets)


def _stratified(images: ImageSet, labels: LabelSet, rng: np.random.Generator) -> Labels:
    # classes that have no image at all, as in the first 1% of a sorted data set, get no label
    members = [np.flatnonzero(images.labels == k) for k in range(len(images.classes))]
    members = [ids for ids in members if len(ids)]
    classes = len(members)
    available = np.array([len(ids) for ids in members])
    if classes < 2:
        raise UserError(
            f"all labeled images are of one class, {some(images.classes)}; give images"
            " of two or more"
        )
    if labels.per_class is not None:
        counts = np.full(classes, labels.per_class)
        if counts[0] < 1 or (counts > available).any():
            raise UserError(
                f"labels={labels.given}: the smallest class has {available.min()} images,"
                f" so it must be 1perclass to {available.min()}perclass"
            )
    else:
        share = labels.share or 0.0
        wanted = round(share * available.sum())
        if not 0 < share <= 1:
            raise UserError(f"labels={labels.given}: the share must be above 0 and at most 100pct")
        if wanted < classes:
            least = math.ceil(1e4 * classes / available.sum()) / 100
            raise UserError(
                f"labels={labels.given} is {wanted} of {available.sum()} images, fewer than the"
                f" {classes} classes; take at least {least:g}pct or 1perclass"
            )
        # one each, the rest by largest remainder; classes with equal remainders by lot
        quota = share * available
        counts = np.clip(np.floor(quota).astype(int), 1, available)
        while counts.sum() != wanted:
            step = 1 if counts.sum() < wanted else -1
            open_ = (counts < available) if step > 0 else (counts > 1)
            need = np.where(open_, step * (quota - counts), -np.inf)
            counts[rng.choice(np.flatnonzero(need > need.max() - 1e-9 * quota.max()))] += step
    ids = np.concatenate([rng.permutation(m)[:n] for m, n in zip(members, counts, strict=True)])
    ids = np.sort(ids)
    return Labels(ids, images.labels[ids])


def write_labels(path: Path, images: ImageSet, labels: Labels) -> None:
    """Save which image carries which label, as a CSV file that ``--labels`` takes."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "label"])
    for id_, target in zip(labels.ids, labels.targets, strict=True):
        rows.writerow([images.names[id_], images.classes[target]])
    write_atomically(path, text.getvalue())
