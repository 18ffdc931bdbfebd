"""The part ``labels`` of an assessment: labels to check, near duplicates, outliers.

Three files in the assessment's folder, made for spreadsheets:

    <labels>-to-check.csv   file,label,suggested,score: all labels that training may see, those that
                            may be wrong first, with another class suggested; corrected in the
                            column label, it is a file for --labels. Labels of test images that the
                            run's own file of labels holds are kept in it, and not judged; so are
                            its rows without a label
    twins.csv               group,file,set,known_label: images that look the same
    outliers.csv            file,set,known_label,distance: images that look like no other one
"""

import itertools
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.config.schema import Config
from shared.data.batches import denormalize
from shared.data.images import UNLABELED, ImageSet
from shared.data.label_files import can_be_listed, csv_text, find_images, marked, read_csv
from shared.runs.assessment import LabelCheck, Outlier, Suspect, Twin, better_than_guess
from shared.runtime.files import write_atomically
from shared.runtime.media import printable, say
from stages.assess import doubts
from stages.assess.inputs import Arrays, Inputs

COLUMNS = ("file", "label", "suggested", "score")
MARK = "-to-check"
POOL = 100_000  # training and test images, each, among which twins and outliers are searched
PICTURES = 60  # stored of each list


class Pool(NamedTuple):
    """Images among which twins and outliers are searched: training images, then test images.

    Attributes:
        sets: training, or training and test: name -> images and positions (n,) in them.
        known: (N,) int64 classes of all of them, -1 where unknown.
        features: (N, F).
        pictures: (N, P), from `doubts.small_pictures`.
    """

    sets: dict[str, tuple[ImageSet, np.ndarray]]
    known: np.ndarray
    features: np.ndarray
    pictures: np.ndarray

    def twin(self, place: int, classes: tuple[str, ...]) -> Twin:
        """What is said of the image at a place of the pool."""
        name, images, position = self.find(place)
        known = int(self.known[place])
        label = None if known == UNLABELED else classes[known]
        return {"file": str(images.names[position]), "set": name, "label": label}

    def find(self, place: int) -> tuple[str, ImageSet, int]:
        """The name of the set of the image at a place, the set, and its position there."""
        for name, (images, positions) in self.sets.items():
            if place < len(positions):
                return name, images, int(positions[place])
            place -= len(positions)
        raise IndexError(place)

    def images(self, inputs: Inputs, places: list[int]) -> np.ndarray:
        """Stored pictures (n, S, S, 3) uint8 of the images at these places."""
        wanted, start, shown = np.array(places, dtype=np.int64), 0, []
        for images, positions in self.sets.values():
            of_set = (wanted >= start) & (wanted < start + len(positions))
            shown.append(inputs.pictures(images, positions[wanted[of_set] - start]))
            start += len(positions)
        # the pictures are in the order of the sets: put them back into that of the places
        first = np.argsort(wanted >= len(self.sets["training"][1]), kind="stable")
        return np.concatenate(shown)[np.argsort(first)]


def why_impossible(inputs: Inputs) -> str | None:
    """Why labels cannot be judged; None where they can."""
    if find_spec("cleanlab") is None:
        return "it needs cleanlab, not installed here; pip install -e '.[labels]'"
    targets = inputs.labels.targets
    if len(np.unique(targets[doubts.can_be_judged(targets)])) < 2:
        return (
            f"--labels {inputs.config.labels} has too few labels to judge one by the others: two"
            " classes at least need two labels each"
        )
    return None


def labels(inputs: Inputs) -> tuple[LabelCheck, Arrays] | None:
    """Labels that may be wrong, near duplicates within and between the sets, and outliers."""
    pool = _open_pool(inputs)
    if not inputs.is_main:
        return None
    train, classes, seed = inputs.splits.train, inputs.splits.train.classes, inputs.config.seed
    positions = pool.sets["training"][1]
    # an unreadable image may have been skipped
    of_label = np.isin(inputs.labels.ids, positions)
    ids, targets = inputs.labels.ids[of_label], inputs.labels.targets[of_label]
    judgement = doubts.doubts(pool.features[np.searchsorted(positions, ids)], targets, seed)
    right = (judgement.suggested == targets)[judgement.judged]
    largest_class = float(np.bincount(targets[judgement.judged]).max() / len(right))
    if not better_than_guess(len(right), float(right.mean()), largest_class):
        judgement = judgement._replace(suspects=judgement.suspects[:0])
    suspects: list[Suspect] = [
        {
            "file": str(train.names[ids[k]]),
            "label": classes[targets[k]],
            "suggested": classes[judgement.suggested[k]],
            "score": float(judgement.quality[k]),
        }
        for k in judgement.suspects
    ]
    neighbours, distances = doubts.nearest_others(pool.features, seed)
    groups = _leaks_first(doubts.twins(pool.pictures, neighbours), len(positions))
    far, distance = doubts.outliers(distances)
    outliers: list[Outlier] = [
        {**pool.twin(place, classes), "distance": float(distance[place])} for place in far
    ]
    numbers: LabelCheck = {
        "file": file_name(inputs.config),
        "judged": len(judgement.judged),
        "folds": judgement.folds,
        "agreement": float(right.mean()),
        "largest_class": largest_class,
        "not_judged": [classes[k] for k in np.setdiff1d(targets, targets[judgement.judged])],
        "suspects": suspects,
        "looked_at": {name: len(ids) for name, (_, ids) in pool.sets.items()},
        "twins": [[pool.twin(place, classes) for place in group] for group in groups],
        "outliers": outliers,
    }
    _write(inputs, numbers, ids, judgement)
    first = list(itertools.chain.from_iterable(groups))[:PICTURES]
    return numbers, {
        "suspects": inputs.pictures(train, ids[judgement.suspects[:PICTURES]]),
        "twins": pool.images(inputs, first),
        "outliers": pool.images(inputs, far[:PICTURES].tolist()),
    }


def _open_pool(inputs: Inputs) -> Pool:
    """The images, with what the encoder makes of them; every process computes its share."""
    train, test, data = inputs.splits.train, inputs.splits.test, inputs.config.data

    def both(batch: Tensor, *_: object) -> Tensor:
        pixels = denormalize(batch.cpu(), data)
        features = inputs.apply(inputs.pretrained.encoder, batch)
        return torch.cat([features, doubts.small_pictures(pixels).to(batch.device)], dim=1)

    rest = np.setdiff1d(inputs.train_ids, inputs.labels.ids)
    others = inputs.sample(rest, max(POOL - len(inputs.labels.ids), 0), "twins")
    wanted = {"training": (train, np.union1d(inputs.labels.ids, others))}
    if test is not None:
        wanted["test"] = test, inputs.sample(inputs.test_ids, POOL, "twins")
    sets, known, rows = {}, [], []
    for name, (images, ids) in wanted.items():
        of_set, positions = inputs.rows(both, images, ids, data, f"{name} images")
        sets[name] = images, positions
        classes = images.labels.copy()
        if name == "training":
            classes[inputs.labels.ids] = inputs.labels.targets
        known.append(classes[positions])
        rows.append(of_set)
    every = np.concatenate(rows)
    width = 3 * min(data.image_size, doubts.SIDE) ** 2
    return Pool(sets, np.concatenate(known), every[:, :-width], every[:, -width:])


def _leaks_first(groups: list[np.ndarray], training: int) -> list[np.ndarray]:
    """Groups within training and test first; ``training`` counts the training images."""
    return sorted(groups, key=lambda group: not group[0] < training <= group[-1])


# ----------------------------------------------------------------------------------- the CSV files
def file_name(config: Config) -> str:
    """Name of the file of labels; that of a file that was checked before has a number."""
    tag = config.label_set.tag
    before = re.fullmatch(rf"(.+{MARK})(?:-([0-9]{{1,9}}))?", tag)
    return f"{before[1]}-{int(before[2] or 1) + 1}.csv" if before else f"{tag}{MARK}.csv"


def files(config: Config) -> list[Path]:
    """The files that the part leaves."""
    folder = config.folder_of("assess")
    return [folder / name for name in (file_name(config), "twins.csv", "outliers.csv")]


def _write(inputs: Inputs, numbers: LabelCheck, ids: np.ndarray, judgement: doubts.Doubts) -> None:
    """Write the three files; ``ids`` (k,) are the positions of the images with labels."""
    to_check, twins, outliers = files(inputs.config)
    rows = _label_rows(inputs, ids, judgement)
    kept = [row for row in rows if can_be_listed(row[0])]
    if len(kept) < len(rows):
        say(
            f"note: not in {printable(to_check)}: {len(rows) - len(kept):,} labels of images whose"
            " names have spaces at their ends; no CSV file keeps these"
        )
    _write_csv(to_check, kept, COLUMNS)
    in_groups = [
        (str(number), printable(twin["file"]), twin["set"], twin["label"] or "")
        for number, group in enumerate(numbers["twins"], 1)
        for twin in group
    ]
    _write_csv(twins, in_groups, ("group", "file", "set", "known_label"))
    far = [
        (printable(of["file"]), of["set"], of["label"] or "", f"{of['distance']:.4f}")
        for of in numbers["outliers"]
    ]
    _write_csv(outliers, far, ("file", "set", "known_label", "distance"))


def _write_csv(path: Path, rows: list[tuple[str, ...]], columns: tuple[str, ...]) -> None:
    """Write a CSV file; one with other content, which somebody may have edited, is kept."""
    text = marked(csv_text(rows, columns))
    if path.exists() and path.read_bytes() != text.encode():
        numbered = (path.with_suffix(f".{number}.csv") for number in itertools.count(1))
        copy = next(other for other in numbered if not other.exists())
        path.rename(copy)
        say(f"note: {printable(path)} was there with other content; kept as {copy.name}")
    write_atomically(path, text)


def _label_rows(
    inputs: Inputs, ids: np.ndarray, judgement: doubts.Doubts
) -> list[tuple[str, str, str, str]]:
    """Rows of the file of labels: suspects, the other labels, rows without a label."""
    train, label_set = inputs.splits.train, inputs.config.label_set
    place = {int(position): k for k, position in enumerate(ids)}  # image -> its row in judgement
    if label_set.csv_file is None:
        names = map(str, train.names[inputs.labels.ids])
        classes = (train.classes[k] for k in inputs.labels.targets)
        listed = list(zip(names, classes, inputs.labels.ids.tolist(), strict=True))
    else:
        columns = label_set.image_column, label_set.label_column
        table = read_csv(label_set.csv_file, *columns, train.classes)
        positions = find_images(inputs.splits, [name for name, _ in table.rows], table.file)
        pairs = zip(table.rows, positions.tolist(), strict=True)
        listed = [(name, label, position) for (name, label), position in pairs]
    order = {int(k): number for number, k in enumerate(judgement.suspects)}
    rows: dict[tuple[str, str], tuple[int, tuple[str, str, str, str]]] = {}
    for name, label, position in listed:
        k = place.get(position, -1) if label else -1
        suggested = train.classes[judgement.suggested[k]] if k in order else ""
        judged = k >= 0 and not np.isnan(judgement.quality[k])
        score = f"{judgement.quality[k]:.4f}" if judged else ""
        rank = order.get(k, len(order) + (not label))
        rows.setdefault((name, label), (rank, (name, label, suggested, score)))
    return [row for _, row in sorted(rows.values(), key=lambda ranked: ranked[0])]


def next_command(config: Config) -> str:
    """What to do with the files."""
    to_check, twins, outliers = files(config)
    recipe, table = (shlex.quote(str(path)) for path in (config.folder / "config.yaml", to_check))
    options = f" --config {recipe} --labels {table}"
    # the options of another file of labels must not choose a column of this one
    for kind, column in (("image", "file"), ("label", "label")):
        if getattr(config.data, f"{kind}_column") in {*COLUMNS} - {column}:
            options += f" --data.{kind}_column {column}"
    return (
        f"labels to check, the suspects first: {printable(to_check)}\n"
        f"twins: {printable(twins)}; outliers: {printable(outliers)}\n"
        "next, when the column label is corrected (an empty cell: no label):\n"
        f"  python pipeline.py{options}"
    )
