"""Which images to label: by the features of stage 1, without a look at any label."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from shared.config.command import run_command
from shared.config.command_line import override, placed, read_config
from shared.config.methods import CLASSIFIERS, ancestors
from shared.config.schema import Config
from shared.data.images import UNLABELED, ImageSet, Splits
from shared.data.label_files import (
    can_be_listed,
    csv_text,
    find_images,
    marked,
    read_csv,
    read_rows,
)
from shared.data.labels import Choice, Labels, draw_labels, positions_of, read_choice
from shared.data.sources import open_run
from shared.networks.build import load_classifier, load_contrastive, require_same_input
from shared.runs.redo import same_run
from shared.runtime.artifacts import read_meta
from shared.runtime.errors import UserError, exit_code_2
from shared.runtime.files import did_you_mean, write_atomically
from shared.runtime.lock import held
from shared.runtime.media import abbreviated
from shared.runtime.progress import Progress, counted
from shared.runtime.randomness import generator
from shared.training.device import to_device
from shared.training.evaluate import outputs_of
from stages.suggest.arguments import WAYS, parser
from stages.suggest.choose import in_order_of_worth
from stages.suggest.sheet import sheet, thumbnail

IMAGES = 50_000  # whose features are looked at, at most, by lot
NAME, TEST_NAME = "to_label", "to_test"  # of the two files


class Labeled(NamedTuple):
    """The labels that are there.

    Attributes:
        rows: names of images and of their classes, also of images for testing.
        ids: (k,) int64 positions of those that training may see.
    """

    rows: list[tuple[str, str]]
    ids: np.ndarray


# -------------------------------------------------------------------------------- what is there
def open_labeled(config: Config, splits: Splits, text: str | None) -> Labeled:
    """The labels of ``text``, or of the run's own file of labels; none in the first round.

    Args:
        config: of the run, with these labels.
        splits: the images.
        text: value of ``--labels``.
    """
    label_set = config.label_set
    if label_set.csv_file is not None:
        columns = label_set.image_column, label_set.label_column
        table = read_csv(label_set.csv_file, *columns, splits.train.classes)
        ids = find_images(splits, [name for name, _ in table.labeled], table.file)
        return Labeled(list(dict.fromkeys(table.labeled)), np.unique(ids[ids >= 0]))
    if text is None:
        return Labeled([], np.zeros(0, np.int64))
    labels, train = draw_labels(splits, label_set, config.seed), splits.train
    rows = zip(train.names[labels.ids], labels.targets, strict=True)
    return Labeled([(name, train.classes[target]) for name, target in rows], labels.ids)


def labeled_in(file: Path, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Rows with a label of a file that may not be there yet."""
    return read_csv(file, classes=classes).labeled if file.exists() else []


def taken_beside(splits: Splits, file: Path, kept: Sequence[tuple[str, str]]) -> np.ndarray:
    """Positions of images that this file keeps, and of those in the one of the other kind beside.

    No image is suggested for training and for testing.
    """
    name = {NAME: TEST_NAME, TEST_NAME: NAME}[file.stem]
    beside = file.with_name(f"{name}.csv")
    rows = read_csv(beside).rows if beside.exists() else []
    positions = [
        find_images(splits, [name for name, _ in part], source)
        for part, source in ((kept, file), (rows, beside))
    ]
    return np.concatenate(positions)


def features(
    source: Path, config: Config, accelerator: Accelerator, images: ImageSet, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What a pretrained encoder makes of images: rows (n, F) of unit length, positions (n,)."""
    network, meta = load_contrastive(source)
    require_same_input(meta, config.data, source)
    rows, positions = _shown(network.encoder, config, accelerator, images, ids, "features")
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12), positions


def margins(
    config: Config, accelerator: Accelerator, images: ImageSet, ids: np.ndarray
) -> tuple[np.ndarray, str] | None:
    """How sure the run's last classifier of these labels is; None where there is none.

    Returns:
        The difference (n,) of the two highest probabilities, and the classifier's folder.
    """
    methods = [name for name, method in CLASSIFIERS.items() if method.saved]
    for method in reversed([name for name in methods if "pretrain" in ancestors(name)]):
        folder = config.folder_of(method)
        if (folder / "meta.json").exists():
            network, meta = load_classifier(folder)
            require_same_input(meta, config.data, folder)
            logits, _ = _shown(network, config, accelerator, images, ids, method)
            highest = torch.from_numpy(logits).softmax(1).topk(2).values
            return (highest[:, 0] - highest[:, 1]).numpy(), folder.name
    return None


def _shown(
    network: nn.Module,
    config: Config,
    accelerator: Accelerator,
    images: ImageSet,
    ids: np.ndarray,
    title: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs (n, F) of a network for images as evaluation shows them, and positions (n,)."""
    to_device(network, config, accelerator).eval().requires_grad_(False)
    return outputs_of(network, images, ids, config.data, accelerator, title)


# ------------------------------------------------------------------------------------- choosing
def suggest(
    config: Config,
    accelerator: Accelerator,
    budget: int,
    by: str,
    text: str | None = None,
    out: Path | None = None,
    test: bool = False,
    seed: int | None = None,
) -> None:
    """Write ``to_label.csv`` and ``to_label.html``; with ``test`` ``to_test`` in place of to_label.

    Args:
        config: of the run, with the labels that ``text`` names.
        accelerator: of this process.
        budget: images to suggest.
        by: of ``WAYS``.
        text: value of ``--labels``; None: the run's own file of labels, if it has one.
        out: folder of the two files; None: the run's.
        test: the images are for testing, so the file holds no others.
        seed: of the clusters or the lot; None: the run's.

    Raises:
        UserError: there are fewer images without a label, the run has no pretrained network, or
            labels in an earlier ``to_label.csv`` would be lost; nothing is written then.
    """
    read_meta(config.folder_of("pretrain"), "encoder")
    seed = config.seed if seed is None else seed
    file = (config.folder if out is None else out) / f"{TEST_NAME if test else NAME}.csv"
    splits = open_run(config, accelerator)
    images = splits.train
    labeled = open_labeled(config, splits, text)
    kept = labeled_in(file, splits.train.classes) if test else labeled.rows
    require_nothing_lost(file, kept)
    taken = np.concatenate([labeled.ids, taken_beside(splits, file, kept if test else [])])
    listable = np.array([can_be_listed(name) for name in images.names], bool)
    unlabeled = np.setdiff1d(images.training_ids[listable[images.training_ids]], taken)
    if budget > len(unlabeled):
        raise UserError(
            f"--budget {budget:,}, but {len(unlabeled):,} images have no label yet; give at most"
            f" {len(unlabeled)}"
        )
    if left_out := images.names[~listable].tolist():
        accelerator.print(
            f"note: not suggested: {abbreviated(left_out)}; no CSV file keeps spaces at the ends of"
            " a name"
        )
    seen = generator(seed, "suggest", "seen").permutation(unlabeled)[: max(IMAGES, budget)]
    ids = np.sort(np.concatenate([seen, labeled.ids]))
    rows, ids = features(config.folder_of("pretrain"), config, accelerator, images, ids)
    known = np.flatnonzero(np.isin(ids, labeled.ids))
    sureness = margins(config, accelerator, images, ids) if len(known) and by != "random" else None
    margin, classifier = sureness or (None, "")
    accelerator.print(rule(by, len(labeled.rows), classifier))
    chosen = ids[in_order_of_worth(rows, known, budget, by, seed, margin)]
    if accelerator.is_main_process:
        with held(file, advice="choose another --out"):
            require_nothing_lost(file, kept)  # it may be another by now
            write(file, config, images, kept, chosen)
    accelerator.print(next_command(config, file, budget, test))


def rule(by: str, labels: int, classifier: str) -> str:
    """How the images were chosen, in one line."""
    one = {
        "random": "images by lot",
        "kmeans": "of each cluster the image nearest to its centre",
        "typiclust": "of each cluster the image in its densest place",
    }[by]
    if by == "random":
        return f"suggested: {one}"
    order = f"first where {classifier} is least sure" if classifier else "large clusters first"
    if not labels:
        return f"suggested: {one}, {order}"
    return f"{labels:,} labels so far; suggested: {one}, clusters without a label, {order}"


def require_nothing_lost(file: Path, kept: Sequence[tuple[str, str]]) -> None:
    """UserError where writing the file anew would lose labels or columns that somebody added."""
    if not file.exists():
        return
    labels = set(read_csv(file, classes=[label for _, label in kept]).labeled) - set(kept)
    if labels:
        raise UserError(
            f"{file} has {len(labels):,} labels that would be lost; give it as --labels to go on"
            " from it, or another --out"
        )
    if len([column for column in read_rows(file).columns if column]) > 2:
        raise UserError(f"{file} has further columns, which would be lost; give another --out")


def write(
    file: Path,
    config: Config,
    images: ImageSet,
    kept: Sequence[tuple[str, str]],
    chosen: np.ndarray,
) -> None:
    """Write both files: the labels so far, then the chosen images (budget,) without a label."""
    names = images.names[chosen].tolist()
    text = csv_text([*kept, *((name, "") for name in names)])
    originals = replace(images, shrunk=None)  # a person needs more pixels than the network
    shown = Progress("thumbnails", len(chosen), "images").over(chosen)
    thumbnails = [thumbnail(originals.decode(int(index))) for index in shown]
    classes = sorted({*images.classes, *(label for _, label in kept)})
    title = f"{config.run}: which images to label"
    html = sheet(title, file.name, kept, names, thumbnails, classes)
    write_atomically(file, marked(text))
    write_atomically(file.with_suffix(".html"), html)


def next_command(config: Config, file: Path, budget: int, test: bool) -> str:
    """What was written, and what to do with it."""
    option = f"{'--data.test' if test else '--labels'} {shlex.quote(str(file))}"
    if test:  # beside the labels to train on
        labels = config.label_set.csv_file or config.folder / f"{NAME}.csv"
        option = f"--labels {shlex.quote(str(labels))} {option}"
    return (
        f"{counted(budget, 'image')} to label: {file}; {file.with_suffix('.html')} shows them, for"
        " a browser, which saves another file among its downloads\n"
        "next, when labels are in the CSV file:\n"
        f"  {same_run(config)} {option}"
    )


def choose(config: Config, accelerator: Accelerator) -> None:
    """Choose the images of ``--labels <n>suggested``, unless they are chosen.

    Their names are kept in the run's folder, where ``draw_labels`` finds them. They are chosen
    anew where the pretraining or the images are others than then, or one has no label any more.

    Args:
        config: the run; its label set is a suggested one.
        accelerator: of this process. All processes must call this.

    Raises:
        UserError: the run has no pretrained network, or fewer labeled images.
    """
    label_set = config.label_set
    assert label_set.choice is not None
    file = label_set.choice
    weights = read_meta(config.suggesting, "encoder")["weights_sha256"]
    images = open_run(config, accelerator).train
    made_from = {"weights": weights, "images": images.fingerprint}
    stored = read_choice(label_set) if file.is_file() else None
    accelerator.wait_for_everyone()  # all have read what one may write below
    names = stored["files"] if stored and stored.get("made_from") == made_from else []
    ids = positions_of(images, names, file)
    if not names or (images.labels[ids] == UNLABELED).any():
        names = _names_to_label(config, accelerator, images)
        ids = positions_of(images, names, file)
    labels = Labels(ids, images.labels[ids])
    choice = Choice(made_from=made_from, labels=labels.hash, files=names)
    if choice == stored:
        return
    if accelerator.is_main_process:
        write_atomically(file, json.dumps(choice, indent=1))
    accelerator.wait_for_everyone()
    accelerator.print(f"{config.labels}: chosen, {file}", *labels.notes(images.classes), sep="\n")


def _names_to_label(config: Config, accelerator: Accelerator, images: ImageSet) -> list[str]:
    """So many of the labeled images that training may see, without a look at their classes."""
    number, none = config.label_set.suggested or 0, np.zeros(0, np.int64)
    ids = np.flatnonzero(images.labels != UNLABELED)
    if number > len(ids):
        raise UserError(f"labels={config.labels}: only {len(ids):,} training images have a label")
    seen = generator(config.seed, "suggest", "seen").permutation(ids)[: max(IMAGES, number)]
    rows, ids = features(config.suggesting, config, accelerator, images, np.sort(seen))
    chosen = ids[in_order_of_worth(rows, none, number, WAYS[0], config.seed)]
    return images.names[chosen].tolist()


# ---------------------------------------------------------------------------------- the command
def config_of(run: Path, labels: str | None) -> Config:
    """The configuration of a run as it lies there, with these labels; only images to label.

    Raises:
        UserError: the folder is no run, or the labels are no label set.
    """
    if not run.is_dir():
        raise UserError(f"no such run: {run}{did_you_mean(run)}")
    if not (run / "pretrain" / "meta.json").exists():
        if (run / "meta.json").exists():
            raise UserError(f"{run} is the folder of a stage; give that of its run: {run.parent}")
        raise UserError(
            f"{run} has no pretrained network, whose features the choice needs; run"
            " python -m stages.pretrain --data.train IMAGES, or pipeline.py, to the end first"
        )
    config = read_config(run / "config.yaml")
    if labels is not None:
        config = override(config, {"labels": labels})
    # extra unlabeled images have no place in a file of labels
    config = replace(config, data=replace(config.data, unlabeled=None))
    return placed(config, run)


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Suggest images of one run: 0, or 2 after one line that says what is wrong."""
    arguments = parser().parse_args(argv)
    if arguments.budget < 1:
        raise UserError(f"--budget must be 1 or more, got {arguments.budget}")
    if arguments.test and arguments.by not in (None, "random"):
        raise UserError(f"--test draws by lot, not --by {arguments.by}; leave one of them out")
    if not 0 <= (arguments.seed or 0) < 2**32:
        raise UserError(f"--seed must be 0 to 2**32 - 1, got {arguments.seed}")
    options = {"text": arguments.labels, "out": arguments.out, "test": arguments.test}
    by = "random" if arguments.test else arguments.by or WAYS[0]
    return run_command(
        partial(suggest, budget=arguments.budget, by=by, seed=arguments.seed, **options),
        config_of(arguments.run, arguments.labels),
    )
