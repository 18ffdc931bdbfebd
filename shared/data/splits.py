"""Which images are for training and which for testing, and what the labels of a CSV file change."""

import difflib
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import numpy as np

from shared.config.sections import Data
from shared.data.images import UNLABELED, ImageSet, Splits, decode_image
from shared.data.label_files import (
    HELD_OUT,
    MISSING,
    SKIPPED,
    SPLITS,
    LabelTable,
    SplitColumn,
    class_text,
    each_once,
    find_images,
    na_note,
    read_csv,
    western_note,
)
from shared.runtime.errors import UserError
from shared.runtime.media import abbreviated, printable
from shared.runtime.progress import counted

LOCKBOX = 0.2  # part of the labeled images that no choice of a recipe sees
COUNTED = 10  # classes whose numbers of images stand in the line on the classes
SINGLE = 30  # classes of one image, from which on they are doubted
LISTED = 30  # classes whose numbers of labels stand in one line


# ------------------------------------------------------------------------------ labels of a file
def read_labels(file: Path, data: Data, columns: list[str], classes: tuple[str, ...]) -> LabelTable:
    """Read a CSV file of labels for images of these classes, from a table with these columns.

    Raises:
        UserError: the file is bad, or neither has a column that an option names.
    """
    table = read_csv(file, data.image_column, data.label_column, classes)
    for kind, column in (("image", data.image_column), ("label", data.label_column)):
        if column is not None and column not in (*table.columns, *columns):
            raise UserError(
                f"data.{kind}_column={column} is not a column of {file}, nor of the images"
            )
    return table


def gives_the_classes(table: LabelTable, images: ImageSet) -> bool:
    """Whether the classes are those of the file: the images' own, if they have any, are others."""
    own = {class_text(name) for name in images.classes}
    return own.isdisjoint(label for _, label in table.labeled)


def labeled_by(images: ImageSet, table: LabelTable) -> ImageSet:
    """The images with the labels of a file in place of their own.

    Raises:
        UserError: a name fits no image, or several, or an image has several labels.
    """
    # rows without a label must be images of this set too
    find_images(Splits(images, None), [name for name, _ in table.rows], table.file)
    classes, ids, targets = one_label_each(images, table)
    labels = np.full(len(images), UNLABELED)
    labels[ids] = targets
    return replace(images, labels=labels, classes=classes, edited=True)


def one_label_each(
    images: ImageSet, table: LabelTable
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """What a file says of these images.

    Returns:
        The names of the classes in order, positions (k,) int64 of the labeled images, ascending,
        and their classes (k,) int64.

    Raises:
        UserError: as `labeled_by`.
    """
    classes = tuple(sorted({label for _, label in table.labeled}))
    number = {label: index for index, label in enumerate(classes)} | {"": UNLABELED}
    targets = np.array([number[label] for _, label in table.rows], dtype=np.int64)
    ids = np.full(len(targets), -1)
    names = [name for name, _ in table.labeled]
    ids[targets != UNLABELED] = find_images(Splits(images, None), names, table.file)
    return classes, *each_once(images, ids, targets, table)


def without_absent_classes(images: ImageSet) -> ImageSet:
    """The images with those classes alone that one of them has."""
    there = np.unique(images.labels[images.labels != UNLABELED])
    if len(there) == len(images.classes):
        return images
    labels = np.where(images.labels == UNLABELED, UNLABELED, np.searchsorted(there, images.labels))
    return replace(images, labels=labels, classes=tuple(images.classes[k] for k in there))


# ------------------------------------------------------------------------------------ test images
def hold_out(splits: Splits, data: Data, by_name: bool) -> Splits:
    """The splits with a part of the labeled images for testing, where no test images are given.

    Args:
        splits: training images, and test images if there are any.
        data: which part is held out, its share and its seed.
        by_name: the labels are in a file that people fill in, which may grow.

    Raises:
        UserError: the lockbox is empty, or has all images of a class.
    """
    if data.hold_out != "split":
        before, splits = splits, _lockbox(splits, data)
        if data.hold_out == "tuning":
            gone = {name for images in before if images for name in images.names}
            gone -= {*splits.train.names}
            splits = Splits(replace(splits.train, locked=tuple(sorted(gone))), None)
    if splits.test is not None:
        return splits
    part = _part_by_name(splits.train, data) if by_name else _stratified_part(splits.train, data)
    if not len(part):
        return splits
    if by_name:
        return Splits(for_testing(splits.train, part), splits.train.select(part))
    rest = np.delete(np.arange(len(splits.train)), part)
    return Splits(splits.train.select(rest), splits.train.select(part))


def split_by_column(
    splits: Splits, names: Iterable[str], column: SplitColumn, file: Path
) -> tuple[Splits, str]:
    """The splits where a column says which images are for training and which for testing.

    Only those for training train; stage 1 sees all. Where there are no test images yet, the labeled
    images of test become these, or else those of validation.

    Args:
        splits: as far as they are known.
        names: of the images that the column is about, one for each of its rows.
        column: of r rows.
        file: that holds it, for messages.

    Returns:
        The splits; and test or validation, if the test images are those.

    Raises:
        UserError: a name fits no image, or several; the message names ``file``.
    """
    train, test = splits
    tested = ""
    places = find_images(splits, [*names], file)
    kinds = np.array(column.splits)
    for kind in ("test", "validation"):
        ids = np.unique(places[(places >= 0) & (kinds == kind)])
        ids = ids[train.labels[ids] != UNLABELED]
        if test is None and len(ids):
            test, tested = train.select(ids), kind
    apart = np.unique(places[(places >= 0) & (kinds != "train")])
    return Splits(for_testing(train, np.union1d(train.held_out, apart)), test), tested


def _lockbox(splits: Splits, data: Data) -> Splits:
    """The splits whose test images no choice has seen, and training images without any of them.

    Copies of an image have the same pixels and lie on the same side. Other copies of the same
    picture, re-encoded ones, may not.
    """
    train, test = splits
    if test is not None:
        return Splits(train.select(train.training_ids), test)
    labeled = np.flatnonzero(train.labels != UNLABELED)
    drawn = np.array([draw_of_pixels(train, int(index)) for index in labeled])
    part, rest = labeled[drawn < LOCKBOX], labeled[drawn >= LOCKBOX]
    if not len(part) or set(train.labels[labeled]) - set(train.labels[rest]):
        raise UserError(
            f"data.hold_out={data.hold_out}: of {counted(len(labeled), 'labeled image')} the"
            f" lockbox takes {len(part):,}, none at all or all of a class; label more, or give"
            " --data.test"
        )
    others = np.delete(np.arange(len(train)), part)
    return Splits(train.select(others), train.select(part))


def draw_of_pixels(images: ImageSet, index: int) -> float:
    """A number in [0, 1), a function of the decoded image alone."""
    if images.pixels is None:  # not the small copy, which depends on data.cache
        pixels = decode_image(images.source(index), images.decoding)
    else:
        pixels = images.pixels[index]
    digest = hashlib.sha256(f"{tuple(pixels.shape)}".encode())
    digest.update(pixels.contiguous().numpy().data)
    return int.from_bytes(digest.digest()[:6]) / 2**48


def for_testing(train: ImageSet, ids: np.ndarray) -> ImageSet:
    """The training images, those at ``ids`` for stage 1 alone: held out, without their labels."""
    labels = train.labels.copy()
    labels[ids] = UNLABELED
    return replace(train, labels=labels, held_out=ids)


def _stratified_part(train: ImageSet, data: Data) -> np.ndarray:
    """Positions of a stratified part of the labeled images, with every class on both sides."""
    labeled = np.flatnonzero(train.labels != UNLABELED)
    counts = np.unique(train.labels[labeled], return_counts=True)[1]
    size = math.ceil(len(labeled) * data.test_fraction)
    if not len(counts) or counts.min() < 2 or not len(counts) <= size <= len(labeled) - len(counts):
        return labeled[:0]
    return labeled[stratified(train.labels[labeled], size, data.split_seed)]


def stratified(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Positions of a part whose classes have the shares that they have in the whole.

    It is the part that scikit-learn's ``train_test_split(stratify=labels)`` takes for testing, so
    the test images of a run do not depend on its version; to import it takes a second as well.

    Args:
        labels: (n,) int64.
        size: of the part, k; both it and the rest have at least one image for each class.
        seed: of the draw.

    Returns:
        (k,) int64, ascending.
    """
    rng = np.random.RandomState(seed)
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rest = _shares(counts, len(labels) - size, rng)
    part = _shares(counts - rest, size, rng)
    members = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    drawn = [rng.permutation(len(ids)) for ids in members]
    bounds = zip(members, drawn, rest, rest + part, strict=True)
    return np.sort(np.concatenate([ids[order[a:b]] for ids, order, a, b in bounds]))


def _shares(counts: np.ndarray, size: int, rng: np.random.RandomState) -> np.ndarray:
    """How many of each class (C,) make ``size`` in all, in proportion to the counts (C,).

    The fractions are rounded down; what is missing goes to the largest ones, by lot among equals.
    """
    exact = counts / counts.sum() * size
    shares = np.floor(exact)
    missing = int(size - shares.sum())
    fractions = exact - shares
    for fraction in np.unique(fractions)[::-1]:
        if missing <= 0:
            break
        equal = np.flatnonzero(fractions == fraction)
        chosen = rng.choice(equal, size=min(len(equal), missing), replace=False)
        shares[chosen] += 1
        missing -= len(chosen)
    return shares.astype(int)


def _part_by_name(train: ImageSet, data: Data) -> np.ndarray:
    """Positions of the labeled images whose names are drawn.

    A further label moves no other image to the other side, with one exception: of a class whose
    images are all drawn, the last one trains until another image of the class does.
    """
    drawn = _draw_of_names(train, data)
    test = (train.labels != UNLABELED) & (drawn < data.test_fraction)
    for number in range(len(train.classes)):
        members = np.flatnonzero(train.labels == number)
        if len(members) and test[members].all():
            test[members[drawn[members].argmax()]] = False
    return np.flatnonzero(test)


def _draw_of_names(images: ImageSet, data: Data) -> np.ndarray:
    """(n,) numbers in [0, 1), each a function of the image's name and ``data.split_seed`` alone."""
    texts = (f"{data.split_seed}/{normalize('NFC', name)}" for name in images.names)
    digests = (hashlib.sha256(text.encode(errors="surrogateescape")).digest() for text in texts)
    return np.array([int.from_bytes(digest[:6]) / 2**48 for digest in digests])


def same_classes(test: ImageSet, train: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Test and training images with the same class numbers; classes are matched by name.

    A file of labels may lack a class that test images have, because nobody has labeled one yet.
    Then the class is there without a label, and its test images count as wrong.

    Raises:
        UserError: class folders or a data set of training images lack a class, a file of labels
            lacks all of them, or one differs in upper and lower case.
    """
    if not train.classes or test.classes == train.classes:
        return test, train
    known = {class_text(name) for name in train.classes}
    unknown = [name for name in test.classes if class_text(name) not in known]
    folded = {class_text(name).casefold(): name for name in train.classes}
    other_case = [name for name in unknown if class_text(name).casefold() in folded]
    if unknown and (not train.edited or other_case or len(unknown) == len(test.classes)):
        hint = ""
        if other_case:
            trained = printable(folded[class_text(other_case[0]).casefold()])
            hint = f"upper and lower case of {printable(other_case[0])} and {trained} differ; "
        elif len(unknown) == len(test.classes) and not train.edited:
            hint = "if a file labels the training images, give it with --labels; "
        raise UserError(
            f"the test images have classes that the training images lack: {abbreviated(unknown)};"
            f" {hint}the training images have {abbreviated(train.classes)}; write the classes"
            " alike, move images of them to the training images, or take them out"
        )
    classes = tuple(sorted({*train.classes, *unknown})) if unknown else train.classes
    return _numbered(test, classes), _numbered(train, classes)


def _numbered(images: ImageSet, classes: tuple[str, ...]) -> ImageSet:
    """The images with the numbers of these classes, which hold all of theirs."""
    number = {class_text(name): index for index, name in enumerate(classes)}
    numbers = np.array([number[class_text(name)] for name in images.classes], dtype=np.int64)
    labels = np.where(images.labels == UNLABELED, UNLABELED, numbers[images.labels])
    return replace(images, labels=labels, classes=classes)


# ------------------------------------------------------------------------- what is said about it
def column_line(column: str, images: ImageSet) -> str:
    """Which column has the labels, and the classes."""
    return f"labels: column {printable(column)}, {_classes(images, ' (empty, or -1)')}"


def _images_of(images: ImageSet) -> dict[str, int]:
    """The number of labeled images of each class."""
    known = images.labels[images.labels != UNLABELED]
    counts = np.bincount(known, minlength=len(images.classes))
    return dict(zip(images.classes, counts.tolist(), strict=True))


def folders_line(images: ImageSet) -> str:
    """The classes of images in class folders."""
    return f"labels: class folders, {_classes(images)}"


def _classes(images: ImageSet, no_label: str = "") -> str:
    """The number of classes, and the first of them with their numbers of images.

    Args:
        images: some of them may have no label.
        no_label: how that is written there.
    """
    images_of = _images_of(images)
    without = len(images) - sum(images_of.values())
    unlabeled = f"{counted(without, 'image')} without one{no_label * bool(without)}"
    each = (f"{name} {count:,}" for name, count in images_of.items())
    listed = f"; {abbreviated(each, COUNTED)}" if images_of else ""
    classes = counted(len(images_of), "class", "classes")
    return f"{classes}, {unlabeled}{listed}{doubts_on_classes(images_of)}"


def table_line(table: LabelTable, splits: Splits) -> str:
    """What a CSV file gave: labels, rows without one, labels that train nothing and why."""
    labeled = dict.fromkeys(table.labeled)  # a row that is repeated counts once
    ids = find_images(splits, [name for name, _ in labeled], table.file)
    places = {name: int(place) for (name, _), place in zip(labeled, ids, strict=True)}
    images_of = Counter(label for _, label in labeled)
    classes = sorted(images_of)
    image, label = map(printable, table.columns)
    line = (
        f"labels: {table.file}, columns {image} and {label}, {counted(len(labeled), 'label')} of"
        f" {counted(len(classes), 'class', 'classes')}"
    )
    numbers = {
        "repeated": len(table.labeled) - len(labeled),
        "without a label (empty, or -1)": len(table.rows) - len(table.labeled),
        "of images for testing": int((ids == HELD_OUT).sum()),
        "of unreadable images": int((ids == SKIPPED).sum()),
        "of images that are not there": int((ids == MISSING).sum()),
    }
    rows = [f"{counted(number, 'row')} {what}" for what, number in numbers.items() if number]
    line += "".join(f", {row}" for row in rows)
    if missing := [name for name, place in places.items() if place == MISSING]:
        line += f": {abbreviated(missing)}"
    short = (name for name, k in places.items() if k >= 0 and not PurePosixPath(name).suffix)
    matched = ((name, splits.train.names[places[name]]) for name in short)
    if pair := next(((name, file) for name, file in matched if PurePosixPath(file).suffix), None):
        line += f"; names without suffix: {printable(pair[0])} is {printable(pair[1])}"
    if 1 < len(classes) <= LISTED:  # a misspelt class shows here
        line += f"; {abbreviated((f'{name} {images_of[name]:,}' for name in classes), LISTED)}"
    return line + doubts_on_classes(images_of) + encoding_note(table)


def doubts_on_classes(images_of: Mapping[str, int]) -> str:
    """What a line on labels says of classes that may not be meant so.

    Args:
        images_of: the number of images of each class.
    """
    doubts = ""
    folded: dict[str, list[str]] = {}
    for name in images_of:
        folded.setdefault(class_text(name).casefold(), []).append(name)
    if alike := [" and ".join(names) for names in folded.values() if len(names) > 1]:
        doubts += f"; {abbreviated(alike)} are different classes by upper and lower case alone"
    decimals = [name for name in images_of if re.fullmatch(r"-?[0-9]*\.[0-9]+(e-?[0-9]+)?", name)]
    single = sum(number == 1 for number in images_of.values())
    if any(float(name) % 1 for name in decimals):
        doubts += f"; each number is taken as a class: {abbreviated(decimals)}"
    elif single >= SINGLE and single >= 0.9 * len(images_of):
        doubts += f"; {single:,} classes have one image each: are they meant as classes?"
    return doubts + na_note(images_of)


def untrained_line(splits: Splits) -> str:
    """Classes that test images have and no labeled training image; empty where there are none."""
    train, test = splits
    if test is None or not train.classes:
        return ""
    trained = np.unique(train.labels[train.labels != UNLABELED])
    tested = np.unique(test.labels[test.labels != UNLABELED])
    known = [train.classes[k] for k in trained]
    alone = [train.classes[k] for k in np.setdiff1d(tested, trained)]
    if not known or not alone:
        return ""
    # more are no misspellings, and each is compared with all classes
    hint = _did_you_mean(hint for name in alone[:LISTED] for hint in _alike(name, known))
    return (
        f"note: no training image has the label of {abbreviated(alone)}, which test images have:"
        f" they count as wrong{hint}"
    )


def untested_line(splits: Splits) -> str:
    """Classes of labeled training images that no test image has; empty where there are none."""
    train, test = splits
    if test is None or (test.labels == UNLABELED).all():
        return ""
    labels, tested = _images_of(train), _images_of(test)
    alone = [name for name, number in labels.items() if number and not tested[name]]
    if not alone:
        return ""
    numbers = (f"{name} ({labels[name]:,})" for name in alone)
    return (
        f"note: no test image has the label of {abbreviated(numbers)}, which training images have:"
        f" that is not measured{_misspelt(alone, labels, tested)}"
    )


def _misspelt(names: Sequence[str], labels: Mapping[str, int], tested: Mapping[str, int]) -> str:
    """Of these names those that may be misspelt: a tested class has twice the labels, or more."""
    hints = []
    for name in names[:LISTED]:
        known = [k for k, number in tested.items() if number and labels[k] >= 2 * labels[name]]
        hints += _alike(name, known)
    return _did_you_mean(hints)


def _did_you_mean(hints: Iterable[str]) -> str:
    """The end of a note, from hints of `_alike`; empty where there are none."""
    named = [*hints]
    return f"; did you mean {abbreviated(named)}?" if named else ""


def _alike(name: str, known: Sequence[str]) -> list[str]:
    """The known class that is spelled most like a name, as a hint; empty where none is.

    Names that are alike but for their digits, grade1 and grade2, are no misspellings.
    """
    letters = re.sub(r"[0-9]", "", name)
    others = [other for other in known if re.sub(r"[0-9]", "", other) != letters]
    return [f"{other} by {name}" for other in difflib.get_close_matches(name, others, n=1)]


def encoding_note(table: LabelTable) -> str:
    """What is said of a CSV file that is no UTF-8; empty for others."""
    texts = (text for name, label in table.rows for text in (label, name))
    return western_note(texts) if table.western else ""


def split_line(column: SplitColumn, tested: str) -> str:
    """What a column of splits says: its rows, and on which of its splits is tested, if on any."""
    counts = Counter(column.splits)
    rows = [f"{split} {counts.pop(split):,}" for split in SPLITS if split in counts]
    line = f"splits: column {printable(column.name)}, {', '.join(rows)}"
    if counts:
        line += f"; {counted(counts.total(), 'row')} of {abbreviated(counts)} train nothing"
    return line + f"; tested on {tested}" * bool(tested)


def no_test_line(train: ImageSet, data: Data, by_name: bool) -> str:
    """Why no labeled images were held out: too few, or none whose name was drawn."""
    counts = np.bincount(train.labels[train.labels != UNLABELED])
    if by_name:
        return (
            f"no test images: of the {counts.sum()} labeled images none is drawn by its name"
            f" (data.test_fraction={data.test_fraction:g}); label more, or give --data.test"
        )
    single = [train.classes[k] for k in np.flatnonzero(counts == 1)]
    names = f", {abbreviated(single)} with one image" if single else ""
    return f"no test images: too few labeled ones to hold some out{names}; give --data.test"


def one_side_line(splits: Splits, data: Data) -> str:
    """Classes whose labeled images were all drawn for testing by their names, or none of them."""
    train, test = splits
    assert test is not None
    notes = []
    if len(untested := np.setdiff1d(np.arange(len(train.classes)), test.labels)):
        names = [train.classes[k] for k in untested]
        meant = _misspelt(names, _images_of(train), _images_of(test))
        notes.append(f"no test image of {abbreviated(names)}{meant}")
    drawn = (train.labels != UNLABELED) & (_draw_of_names(train, data) < data.test_fraction)
    if drawn.any():
        names = abbreviated(train.classes[k] for k in np.unique(train.labels[drawn]))
        notes.append(f"all images of {names} were drawn for testing, and one trains nevertheless")
    return f"note: {'; '.join(notes)}; label more of them" if notes else ""
