"""The parts of an assessment that measure features, of this run's encoder and of pixels.

Every process calls every part, because all of them apply the networks. Only the main process goes
on from there; the others return None.
"""

import numpy as np

from shared.data.images import UNLABELED
from shared.runs.assessment import (
    BaselineRow,
    Baselines,
    ClusterQuality,
    Clusters,
    Input,
    Linear,
    LinearRow,
    Map,
    Neighbours,
    Transfer,
    TransferRow,
)
from shared.runtime.errors import UserError
from shared.runtime.randomness import generator
from shared.training import classical
from stages.assess import features
from stages.assess.inputs import Arrays, Inputs, open_other

NEIGHBOURS = 20  # that vote, as is usual; Wu et al. 2018 take 200 on ImageNet
RETRIEVED, QUERIES = 8, 30  # training images stored for each of so many test images


def linear(inputs: Inputs) -> tuple[Linear, Arrays] | None:
    """Linear evaluation and nearest neighbours on each layer, with the given and all labels."""
    (train, _), (test, positions) = inputs.train_features, inputs.test_features
    if not inputs.is_main:
        return None
    targets = inputs.test_images.labels[positions]
    rows: list[LinearRow] = []
    best_layer = {}
    for tag, known in inputs.label_sets().items():
        of_tag = [
            _linear_row(inputs, layer, tag, known, keys, queries, targets)
            for layer, (keys, queries) in enumerate(zip(train, test, strict=True))
        ]
        rows += of_tag
        if of_tag[0]["validation"] is not None:
            best_layer[tag] = max(of_tag, key=lambda row: row["validation"] or 0)["layer"]
    return {"rows": rows, "best_layer": best_layer}, {}


def _linear_row(
    inputs: Inputs,
    layer: int,
    tag: str,
    known: np.ndarray,
    keys: np.ndarray,
    queries: np.ndarray,
    targets: np.ndarray,
) -> LinearRow:
    """One layer and label set: training rows ``keys`` (n, F) with the classes ``known`` (n,)."""
    labeled = known != UNLABELED
    train, test = classical.scaled(keys, queries)
    fit = classical.fit_logistic_regression(train[labeled], known[labeled], inputs.config.seed)
    nearest, similarity = features.nearest(keys[labeled], queries, NEIGHBOURS)
    votes = features.vote(similarity, known[labeled][nearest])
    return {
        "layer": layer,
        "width": keys.shape[1],
        "labels": tag,
        "n_labels": int(labeled.sum()),
        **features.scores(fit.model, test, targets, inputs.classes),
        "knn": float((votes == targets).mean()),
        **features.choice(fit),
    }


def neighbours(inputs: Inputs) -> tuple[Neighbours, Arrays] | None:
    """The training images nearest to test images, and how many of them have the same class."""
    (train, train_ids), (test, positions) = inputs.train_features, inputs.test_features
    if not inputs.is_main:
        return None
    known = [*inputs.label_sets().values()][-1]
    targets = inputs.test_images.labels[positions]
    nearest, similarity = features.nearest(train[0], test[0], RETRIEVED)
    classes = known[nearest]  # (T, 8)
    queries = _balanced(targets, QUERIES, inputs.config.seed)
    return {
        "k": RETRIEVED,
        "same_class_at_1": _same_class(classes[:, :1], targets),
        "same_class_at_8": _same_class(classes, targets),
    }, {
        "query_positions": positions[queries],
        "query_targets": targets[queries],
        "positions": train_ids[nearest[queries]],
        "targets": classes[queries],
        "similarity": similarity[queries].astype(np.float32),
        "query_images": inputs.pictures(inputs.test_images, positions[queries]),
        "images": inputs.pictures(inputs.splits.train, train_ids[nearest[queries]]),
    }


def _same_class(classes: np.ndarray, targets: np.ndarray) -> float | None:
    """Share of the neighbours (T, k) that have the class (T,); None if no class is known."""
    known = classes != UNLABELED
    return float((classes == targets[:, None])[known].mean()) if known.any() else None


def _balanced(targets: np.ndarray, at_most: int, seed: int) -> np.ndarray:
    """Indices of so many test images by lot, in turn one of each class, sorted by class."""
    order = generator(seed, "assess", "queries").permutation(len(targets))
    of_class = {c: iter(order[targets[order] == c]) for c in dict.fromkeys(targets[order])}
    chosen: list[int] = []
    while len(chosen) < min(at_most, len(targets)):
        chosen += [i for members in of_class.values() if (i := next(members, None)) is not None]
    return np.array(sorted(chosen[:at_most], key=lambda i: (targets[i], i)))


def clusters(inputs: Inputs) -> tuple[Clusters, Arrays] | None:
    """k-means with as many clusters as classes, on the features and on the pixels."""
    (train, _), (test, positions) = inputs.train_features, inputs.test_features
    pixels = inputs.pixels
    if not inputs.is_main:
        return None
    targets = inputs.test_images.labels[positions]
    sample = inputs.sample(np.arange(len(train[0])), features.CLUSTER_IMAGES, "clusters")
    k = len(np.unique(targets))

    def quality(keys: np.ndarray, queries: np.ndarray) -> ClusterQuality:
        return features.cluster_quality(keys[sample], queries, targets, k, inputs.config.seed)

    return {
        "k": k,
        "n_images": len(sample),
        **quality(train[0], test[0]),
        "pixels": quality(*pixels),
    }, {}


def map_(inputs: Inputs) -> tuple[Map, Arrays] | None:
    """Two-dimensional maps of test images, by their features and by their pixels."""
    (test, positions), (_, pixels) = inputs.test_features, inputs.pixels
    if not inputs.is_main:
        return None
    options, seed = inputs.config.assess, inputs.config.seed
    sample = inputs.sample(np.arange(len(positions)), options.map_points, "map")
    maps = {
        "tsne": features.tsne(test[0][sample], seed),
        "tsne_pixels": features.tsne(pixels[sample], seed, metric="euclidean"),
    }
    if (points := features.umap(test[0][sample], seed)) is not None:
        maps["umap"] = points
    return {"n": len(sample), "methods": list(maps)}, {
        "positions": positions[sample],
        "targets": inputs.test_images.labels[positions[sample]],
        **{name: points.astype(np.float32) for name, points in maps.items()},
    }


def transfer(inputs: Inputs) -> tuple[Transfer, Arrays] | None:
    """Linear evaluation on another data set, with all its labels, of the features and pixels."""
    source = inputs.config.assess.transfer
    assert source is not None
    train, test = open_other(inputs.config, source, inputs.accelerator)
    if test is None:
        raise UserError(f"assess.transfer={source} has no labels, or too few to test with")
    known = np.flatnonzero(train.labels != UNLABELED)
    ids = inputs.sample(known, inputs.config.assess.max_images, "transfer")
    test_ids = np.flatnonzero(test.labels != UNLABELED)
    train_features, positions = inputs.all_layers(train, ids)
    test_features, test_positions = inputs.all_layers(test, test_ids)
    pixels = inputs.pixel_rows(train, ids, test, test_ids)
    if not inputs.is_main:
        return None
    rows: list[TransferRow] = []
    compared: dict[Input, tuple[np.ndarray, np.ndarray]] = {
        "features": (train_features[0], test_features[0]),
        "pixels": pixels,
    }
    for name, pair in compared.items():
        keys, queries = classical.scaled(*pair)
        fit = classical.fit_logistic_regression(keys, train.labels[positions], inputs.config.seed)
        metrics = features.scores(
            fit.model, queries, test.labels[test_positions], len(train.classes)
        )
        rows.append({"input": name, **metrics, **features.choice(fit)})
    return {
        "data": source,
        "classes": len(train.classes),
        "n_train": len(positions),
        "n_test": len(test_positions),
        "rows": rows,
    }, {}


def baselines(inputs: Inputs) -> tuple[Baselines, Arrays] | None:
    """The classical methods of scikit-learn, on pixels and on our features."""
    (train, _), (test, positions) = inputs.train_features, inputs.test_features
    pixels = inputs.pixels
    if not inputs.is_main:
        return None
    targets = inputs.test_images.labels[positions]
    of_training = next(iter(inputs.label_sets().values()))
    rows: list[BaselineRow] = []
    compared: dict[Input, tuple[np.ndarray, np.ndarray]] = {
        "pixels": pixels,
        "features": (train[0], test[0]),
    }
    for name, pair in compared.items():
        keys, queries = classical.scaled(*pair)
        methods = features.classical_baselines(
            keys, of_training, queries, targets, inputs.config.seed
        )
        rows += [BaselineRow(input=name, **row) for row in methods]
    return {"rows": rows}, {}
