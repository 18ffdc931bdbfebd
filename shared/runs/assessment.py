"""What ``stages.assess`` leaves in ``<output>/<run>/assess-<labels>-seed<seed>``.

``assess.json`` is an `Assessment`; it is there from the first finished part on. Every accuracy and
every other share is in [0, 1]. ``assess.npz`` holds the arrays of the parts, named
``<part>/<name>``. T is the number of test images with a class, C that of classes, S the side of a
stored picture; positions count in the test or the training images.

    map/positions (M,)  map/targets (M,)
    map/tsne (M, 2)  map/tsne_pixels (M, 2)  map/umap (M, 2), where umap-learn is installed
    neighbours/query_positions (Q,)  neighbours/query_targets (Q,)
    neighbours/query_images (Q, S, S, 3) uint8
    neighbours/positions (Q, 8)  neighbours/targets (Q, 8), -1 unknown
    neighbours/similarity (Q, 8)  neighbours/images (Q, 8, S, S, 3) uint8
    classifiers/<stage>/positions (T,)  .../targets (T,)  .../predictions (T,)
    classifiers/<stage>/confidence (T,): the largest probability
    classifiers/<stage>/confusion (C, C): rows are the true classes
    classifiers/<stage>/mistakes (m,): indices into the T, most confident first
    classifiers/<stage>/mistake_images (m, S, S, 3) uint8
    corruptions/clean (S, S, 3) uint8: one test image
    corruptions/examples (names, 5, S, S, 3) uint8: the same image, corrupted
    ood/<set>/examples (8, S, S, 3) uint8
    labels/suspects (n, S, S, 3) uint8  labels/twins (n, S, S, 3) uint8
    labels/outliers (n, S, S, 3) uint8: of the first images of each list, twins group by group

The part labels leaves three CSV files too, which ``stages/assess/label_part.py`` tells.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

import numpy as np
from scipy.stats import binomtest

from shared.runs.text import percent
from shared.runtime.errors import UserError
from shared.runtime.files import read_bytes, write_atomically
from shared.runtime.media import abbreviated
from shared.runtime.progress import counted
from shared.runtime.records import LARGEST, mismatch, parse_json
from shared.runtime.tensors import load_arrays, save_arrays

Input = Literal["features", "pixels"]


class Metrics(TypedDict):
    """What `shared.training.evaluate.classification_metrics` measures."""

    top1: float
    top5: NotRequired[float]
    nll: float
    ece: float


class About(TypedDict):
    """The run and the images.

    Attributes:
        labels: tag of the label set.
        n_labels: labels that training may see.
        n_train: training images.
        n_train_seen: training images whose features were computed.
        n_test: test images with a class.
        seed: of the label draw.
        classes: their names.
        encoder: of the pretrained network.
        image_size: pixels per side.
        classifiers: stage -> name of the classifier's folder.
    """

    labels: str
    n_labels: int
    n_train: int
    n_train_seen: int
    n_test: int
    seed: int
    classes: list[str]
    encoder: str
    image_size: int
    classifiers: dict[str, str]


class Hashes(TypedDict):
    """Of one network's parameters and buffers; they are equal where nothing was trained."""

    before: str
    after: str


class Choice(TypedDict):
    """How the hyper-parameters of a classical method were chosen.

    Attributes:
        hyper: their names and values.
        chosen_by: validation, or default where too few labels could be held out.
        validation: accuracy on held-out labeled training images, or None.
    """

    hyper: dict[str, Any]
    chosen_by: Literal["validation", "default"]
    validation: float | None


class LinearRow(Metrics, Choice):
    """Logistic regression on one layer's frozen features.

    Attributes:
        layer: of the projection head; 0 is the encoder's output.
        width: number of features.
        labels: tag of the label set, or "all".
        n_labels: their number.
        knn: accuracy of the nearest neighbours' vote.
    """

    layer: int
    width: int
    labels: str
    n_labels: int
    knn: float


class Linear(TypedDict):
    """``best_layer``: labels -> the best layer by validation, where there was a validation."""

    rows: list[LinearRow]
    best_layer: dict[str, int]


class Neighbours(TypedDict):
    """Share of the 1 and k = 8 nearest training images that have the test image's class.

    None where no neighbour's class is known.
    """

    k: int
    same_class_at_1: float | None
    same_class_at_8: float | None


class ClusterQuality(TypedDict):
    """Agreement of clusters with classes.

    Attributes:
        nmi: normalised mutual information.
        ari: adjusted Rand index.
        accuracy: where each cluster gets the class of the best one-to-one matching.
    """

    nmi: float
    ari: float
    accuracy: float


class Clusters(ClusterQuality):
    """k-means on features, found on ``n_images`` training images; ``pixels``: on pixels."""

    k: int
    n_images: int
    pixels: ClusterQuality


class Map(TypedDict):
    """``methods``: tsne, tsne_pixels and, where umap-learn is installed, umap; ``n`` images."""

    n: int
    methods: list[str]


class ClassifierRow(Metrics):
    """A classifier on the test images."""

    title: str
    parameters: int
    n_labels: int


class Corruptions(TypedDict):
    """Accuracy of the classifiers on corrupted test images.

    Attributes:
        n_images: test images.
        names: of the corruptions.
        groups: name -> noise, blur or digital.
        severities: 1 to 5.
        clean: stage -> accuracy on the images as they are.
        mean: stage -> mean over corruptions and severities.
        accuracy: stage -> name -> accuracy at each severity.
    """

    n_images: int
    names: list[str]
    groups: dict[str, str]
    severities: list[int]
    clean: dict[str, float]
    mean: dict[str, float]
    accuracy: dict[str, dict[str, list[float]]]


class OutOfDistribution(TypedDict):
    """How well confidence separates test images from images of no class.

    Attributes:
        sets: name -> number of images.
        auroc: stage -> name -> chance that a test image gets the higher confidence.
        confidence: stage -> name, or "test" -> mean of the largest probability.
    """

    sets: dict[str, int]
    auroc: dict[str, dict[str, float]]
    confidence: dict[str, dict[str, float]]


class TransferRow(Metrics, Choice):
    """Logistic regression on another data set."""

    input: Input


class Transfer(TypedDict):
    """``data`` names the other data set; ``classes`` is the number of its classes."""

    data: str
    classes: int
    n_train: int
    n_test: int
    rows: list[TransferRow]


class Baseline(Choice):
    """A method of scikit-learn; the methods: ``stages.assess.features.classical_baselines``."""

    method: str
    top1: float
    n_labels: int
    n_unlabeled: int


class BaselineRow(Baseline):
    """The same, with what it works on."""

    input: Input


class Baselines(TypedDict):
    """What scikit-learn makes of the same labels."""

    rows: list[BaselineRow]


class Suspect(TypedDict):
    """A label that may be wrong.

    Attributes:
        file: name of the image.
        label: that it has.
        suggested: the likeliest class.
        score: out-of-sample probability of its label, in [0, 1].
    """

    file: str
    label: str
    suggested: str
    score: float


class Twin(TypedDict):
    """An image that looks like another one: its name, training or test, its label if known."""

    file: str
    set: str
    label: str | None


class Outlier(Twin):
    """An image that looks like no other one.

    ``distance``: to its 50th nearest neighbour, of few images to a nearer one, between features of
    unit length.
    """

    distance: float


class LabelCheck(TypedDict):
    """What may be wrong with the labels and the images.

    Attributes:
        file: the CSV file of the labels, in the assessment's folder.
        judged: labels that were judged.
        folds: parts of the labeled images that were held out in turn.
        agreement: share of the judged labels that are the likeliest class.
        largest_class: share of the judged labels that are of the class with the most; earlier
            versions did not note it.
        not_judged: classes with a single label.
        suspects: the likeliest wrong first.
        looked_at: images among which twins and outliers were searched, by training and test.
        twins: groups of near duplicates; those within training and test come first.
        outliers: the farthest first.
    """

    file: str
    judged: int
    folds: int
    agreement: float
    largest_class: NotRequired[float]
    not_judged: list[str]
    suspects: list[Suspect]
    looked_at: dict[str, int]
    twins: list[list[Twin]]
    outliers: list[Outlier]


def better_than_guess(judged: int, agreement: float, largest_class: float) -> bool:
    """Whether an accuracy on so many labels is clearly above the share of the largest class.

    To say the largest class of every image is the best guess. Clearly: the 95% interval of the
    accuracy (Wilson 1927) lies above.
    """
    return _interval(judged, agreement)[0] > largest_class


def _interval(judged: int, agreement: float) -> tuple[float, float]:
    interval = binomtest(round(agreement * judged), judged).proportion_ci(method="wilson")
    return interval.low, interval.high


def suspects_line(part: LabelCheck) -> str:
    """How many labels were judged, and how many may be wrong, if that can be told."""
    judged, agreement = part["judged"], part["agreement"]
    line = (
        f"{counted(judged, 'label')} judged by a logistic regression on frozen features"
        f" that has not seen the image ({part['folds']} parts in turn), which agrees with"
        f" {percent(agreement)}%"
    )
    guess = part.get("largest_class", 0.0)  # earlier versions did not note it
    if better_than_guess(judged, agreement, guess):
        line += f": {len(part['suspects']):,} may be wrong"
    else:
        low, high = map(percent, _interval(judged, agreement))
        line += (
            f" (95% interval {low} to {high}); warning: a guess is as good, the largest class has"
            f" {percent(guess)}%, so no label is doubted; pretrain longer, or label more images"
        )
    if names := part["not_judged"]:
        line += f"; not judged, for want of a second label: {abbreviated(names)}"
    return line


def twins_line(part: LabelCheck) -> str:
    """How many images look the same, how many groups are leaks or have different labels."""
    groups, (images, train, test) = part["twins"], _looked_at(part)
    line = (
        f"twins, images that look the same, among {images}:"
        f" {counted(len(groups), 'group')} of {sum(map(len, groups)):,} images"
    )
    if leaks := sum(len({twin["set"] for twin in group}) > 1 for group in groups):
        lie = "lies" if leaks == 1 else "lie"
        line += f"; leak: {counted(leaks, 'group')} {lie} in training and test"
    elif train and test:
        line += "; none lies in training and test"
    if different := sum(has_different_labels(group) for group in groups):
        line += f"; {counted(different, 'group')} with different labels"
    return line


def has_different_labels(group: Sequence[Twin]) -> bool:
    """Whether two twins of a group have different labels."""
    return len({twin["label"] for twin in group} - {None}) > 1


def outliers_line(part: LabelCheck) -> str:
    """How many images look like no other one."""
    return f"outliers, images far from all others by their features: {len(part['outliers']):,}"


def _looked_at(part: LabelCheck) -> tuple[str, int, int]:
    train, test = (part["looked_at"].get(name, 0) for name in ("training", "test"))
    return f"{train:,} training and {test:,} test images", train, test


class Assessment(TypedDict):
    """``assess.json``.

    Attributes:
        about: the run and the images.
        seconds: part -> seconds that it took.
        made_from: part -> hash of everything that its numbers depend on.
        failed: part -> message; a failed part has no key of its own.
        hashes: "encoder" or a stage -> hashes; written after the last part.
    """

    about: About
    seconds: dict[str, float]
    made_from: dict[str, str]
    failed: dict[str, str]
    linear: NotRequired[Linear]
    neighbours: NotRequired[Neighbours]
    clusters: NotRequired[Clusters]
    map: NotRequired[Map]
    classifiers: NotRequired[dict[str, ClassifierRow]]
    corruptions: NotRequired[Corruptions]
    ood: NotRequired[OutOfDistribution]
    transfer: NotRequired[Transfer]
    baselines: NotRequired[Baselines]
    labels: NotRequired[LabelCheck]
    hashes: NotRequired[dict[str, Hashes]]


# what is not a part
CORE = ("about", "seconds", "made_from", "failed", "hashes")


def read_assessment(folder: Path) -> Assessment:
    """``assess.json`` of an assessment's folder; a damaged part is among those that failed.

    Raises:
        UserError: it does not exist or is damaged.
    """
    file = folder / "assess.json"
    try:
        content = parse_json(read_bytes(file, LARGEST))
        if missing := {"about", "failed"} - content.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        core = {key: content[key] for key in CORE if key in content}
        if wrong := mismatch(core, Assessment, partial=True):
            raise ValueError(wrong)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error}; run stages.assess again") from error
    for part in content.keys() - {*CORE}:
        if wrong := mismatch({part: content[part]}, Assessment, partial=True):
            del content[part]
            content["failed"][part] = f"it is damaged ({wrong}); run stages.assess again"
    return cast(Assessment, content)


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """``assess.npz`` of an assessment's folder; empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    file = folder / "assess.npz"
    try:
        return load_arrays(file)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}; run stages.assess again") from error


def save_assessment(folder: Path, assessment: Assessment, arrays: Mapping[str, np.ndarray]) -> None:
    """Write both files atomically; the arrays first, because the numbers say which parts are done.

    Raises:
        UserError: the disk is full or not writable.
    """
    save_arrays(folder / "assess.npz", arrays)
    write_atomically(folder / "assess.json", json.dumps(assessment, indent=1))
