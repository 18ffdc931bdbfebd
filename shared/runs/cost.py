"""What a recipe costs, counted and not measured: images, labels, FLOPs, bytes, parameters.

What a stage does with an image is a fact of its section (``shared/config/sections.py``) and of its
method's row; this file multiplies.
"""

import math
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import NamedTuple

from shared.config.labelset import LabelSet
from shared.config.methods import CLASSIFIERS, METHODS
from shared.config.schema import Config
from shared.data.label_files import read_csv, read_list
from shared.data.labels import draw_labels
from shared.data.sources import open_data
from shared.networks.build import build_classifier, build_contrastive, network_meta
from shared.networks.size import Size, measure_size
from shared.runtime.artifacts import ClassifierNetwork

# images for training, for testing, classes: for a plan before the download
HUB_SIZES = {
    "ILSVRC/imagenet-1k": (1_281_167, 50_000, 1000),
    "uoft-cs/cifar10": (50_000, 10_000, 10),
    "zalando-datasets/fashion_mnist": (60_000, 10_000, 10),
    "tanganke/stl10": (5_000, 8_000, 10),
}


@dataclass(frozen=True)
class Counts:
    """Images for training, with labels among them, and for testing; classes."""

    train: int
    labeled: int
    test: int
    classes: int


def count_images(config: Config, progress: bool = False, labeled: bool = True) -> Counts:
    """Open the data and count.

    Args:
        config: the run's.
        progress: show how far decoding is.
        labeled: draw the labels too; else they count as none.
    """
    splits, number = open_data(config.data, config.label_set, progress), 0
    if labeled:
        number = len(draw_labels(splits, config.label_set.before_choice, config.seed).ids)
    test = len(splits.test) if splits.test else 0
    return Counts(len(splits.train), number, test, len(splits.train.classes))


def known_counts(train: int, test: int, classes: int, labels: LabelSet) -> Counts:
    """The counts of a data set that is not here, all of whose images have labels."""
    if labels.share is not None:
        labeled = max(classes, round(train * labels.share))
    elif labels.per_class is not None:
        labeled = classes * labels.per_class
    elif labels.number is not None:
        labeled = labels.number
    elif labels.csv_file is not None:
        labeled = len(read_csv(labels.csv_file, labels.image_column, labels.label_column).labeled)
    else:
        assert labels.file is not None
        labeled = len(set(read_list(labels.file)))
    return Counts(train, labeled, test, classes)


class Cost(NamedTuple):
    """What one image costs in a method: FLOPs of an update and a prediction, bytes, parameters."""

    update: float
    prediction: float
    activations: int  # that an update keeps for its backward pass
    parameters: int


def cost_of(method: str, config: Config, counts: Counts, precision: str) -> Cost:
    """Count what one image costs."""
    size = network_size(method, config, counts, precision)
    training = config.training_of(method)
    passes = (
        1 if METHODS[method].frozen else config.passes_of(method)
    )  # nothing goes back to a frozen one
    update = passes * size.flops
    if training.has_teacher:
        teachers = config.parents_of(method)
        # those of given folders are taken for as large as the run's own
        number = len(config.given_teachers(method)) or len(teachers)
        for teacher in islice(cycle(teachers), number):
            update += network_size(teacher, config, counts, precision).flops
    activations = math.ceil(config.inputs_of(method) * size.activations)
    return Cost(update, size.flops, activations, size.parameters)


def network_size(method: str, config: Config, counts: Counts, precision: str) -> Size:
    """Of the network that a method trains."""
    model = replace(config.model, encoder=config.encoder_of(method))
    meta = network_meta(model, config.data, config.head_layers)
    if method not in CLASSIFIERS:
        return measure_size(lambda: build_contrastive(meta), config.data.image_size, precision)
    classifier: ClassifierNetwork = {
        **meta,
        "classes": [str(number) for number in range(counts.classes)],
        "from_layer": _kept_layers(method, config, counts),
    }
    return measure_size(lambda: build_classifier(classifier), config.data.image_size, precision)


def _kept_layers(method: str, config: Config, counts: Counts) -> int:
    """Layers of the projection head in a classifier."""
    if METHODS[method].copies_teacher:
        return _kept_layers(config.parents_of(method)[0], config, counts)
    return config.training_of(method).kept_layers(counts.labeled, counts.train, config.head_layers)
