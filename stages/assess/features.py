"""How good features are: linear evaluation, neighbours, clusters, maps, classical baselines.

Pure functions of arrays, most of them a few lines around scikit-learn. Features are (n, F) float32,
classes (n,) int64 with -1 where unknown. Test labels are used for scores only: every choice is made
on labeled training images.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_auc_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.neighbors import NearestNeighbors
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import SVC

from shared.data.images import UNLABELED
from shared.runs.assessment import Baseline, Choice, ClusterQuality, Metrics
from shared.training.classical import (
    Fit,
    fit,
    log_probabilities,
    regression,
    self_training,
)
from shared.training.evaluate import classification_metrics

# Images that the slower methods see, at most; the rows of the methods say how many they saw.
SPREADING_IMAGES, SVM_IMAGES, CLUSTER_IMAGES = 5_000, 10_000, 10_000


# ---------------------------------------------------------------------------------- classifiers
def choice(fitted: Fit) -> Choice:
    """How the hyper-parameters were chosen, as ``assess.json`` holds it."""
    chosen_by = "default" if fitted.validation is None else "validation"
    return {"hyper": fitted.hyper, "chosen_by": chosen_by, "validation": fitted.validation}


def scores(model: Any, rows: np.ndarray, targets: np.ndarray, classes: int) -> Metrics:
    """Metrics of a classifier with probabilities, as ``shared.training.evaluate`` defines them.

    Args:
        model: fitted; classes that it has not seen get a probability of 1e-12.
        rows: (n, F).
        targets: (n,).
        classes: number of classes.
    """
    logits = torch.from_numpy(log_probabilities(model, rows, classes))
    return metrics_of(logits, torch.from_numpy(targets))


def metrics_of(logits: torch.Tensor, targets: torch.Tensor) -> Metrics:
    """``classification_metrics``, as ``assess.json`` holds them."""
    return cast(Metrics, classification_metrics(logits, targets))


def classical_baselines(
    train: np.ndarray, known: np.ndarray, test: np.ndarray, targets: np.ndarray, seed: int
) -> list[Baseline]:
    """What scikit-learn makes of the same labels, supervised and semi-supervised.

    Logistic regression; a support vector machine with an RBF kernel; self-training, which adds to
    the labels of a logistic regression what it is sure of (Yarowsky 1995); label spreading over the
    graph of all images (Zhou et al. 2004; alpha 0.99 is theirs). The other defaults, for labels too
    few to choose by, did best on training images of the digits whose labels were hidden.

    Args:
        train: (n, F), ``scaled``.
        known: (n,) their classes where training may see them, else -1.
        test: (m, F), scaled with the same mean and factor.
        targets: (m,) their classes, for the scores.
        seed: of the lot that leaves images out where there are too many.

    Returns:
        One row for each method. Where every image is labeled, the two semi-supervised methods have
        no row.
    """
    rows: list[Baseline] = []
    for name, estimator, param_grid, at_most, semi_supervised in _methods(train):
        labeled, rest = np.flatnonzero(known != UNLABELED), np.flatnonzero(known == UNLABELED)
        if semi_supervised and not len(rest):
            continue
        rng = np.random.default_rng(seed)
        seen = np.concatenate([rng.permutation(labeled), rng.permutation(rest)])[:at_most]
        seen = seen if semi_supervised else seen[known[seen] != UNLABELED]
        fitted = fit(estimator, param_grid, train[seen], known[seen], seed)
        right = fitted.model.predict(test) == targets
        n_labels = int((known[seen] != UNLABELED).sum())
        rows.append(
            {
                "method": name,
                "top1": float(right.mean()),
                "n_labels": n_labels,
                "n_unlabeled": len(seen) - n_labels,
                **choice(fitted),
            }
        )
    return rows


def _methods(
    train: np.ndarray,
) -> list[tuple[str, BaseEstimator, list[dict[str, list]], int, bool]]:
    """Of each method: name, estimator, hyper-parameters to try, and what it learns from.

    The last two are the most images that it may see, and whether it is semi-supervised.
    """
    unit = 1 / train.shape[1]  # squared distances grow with the number of features
    return [
        ("logistic regression", *regression(), len(train), False),
        (
            "support vector machine",
            SVC(C=10, gamma=0.3 * unit),
            [{"C": [1.0, 10.0, 100.0], "gamma": [0.3 * unit, unit]}],
            SVM_IMAGES,
            False,
        ),
        ("self-training", *self_training(), SPREADING_IMAGES, True),
        (
            "label spreading",
            LabelSpreading("rbf", gamma=30 * unit, alpha=0.99, max_iter=100),
            [
                {"kernel": ["rbf"], "gamma": [10 * unit, 30 * unit], "alpha": [0.2, 0.99]},
                {"kernel": ["knn"], "n_neighbors": [7, 20], "alpha": [0.2, 0.99]},
            ],
            SPREADING_IMAGES,
            True,
        ),
    ]


# ---------------------------------------------------------------------------------- geometry
def nearest(keys: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k keys most similar to each query, by cosine: indices and similarities, (q, k) each."""
    index = NearestNeighbors(n_neighbors=min(k, len(keys)), metric="cosine", algorithm="brute")
    distances, indices = index.fit(keys).kneighbors(queries)
    return indices, 1 - distances


def vote(similarity: np.ndarray, classes: np.ndarray, temperature: float = 0.07) -> np.ndarray:
    """Classes (q,) that the neighbours vote for, each with weight exp(similarity / temperature).

    Wu et al. 2018 (arXiv 1805.01978), section 3.4, with their temperature.

    Args:
        similarity: (q, k).
        classes: (q, k) of the neighbours.
        temperature: of the weights.
    """
    weights = np.exp((similarity - similarity.max(1, keepdims=True)) / temperature)
    ballot = np.zeros((len(classes), classes.max() + 1))
    np.add.at(ballot, (np.arange(len(classes))[:, None], classes), weights)
    return ballot.argmax(1)


def cluster_quality(
    train: np.ndarray, test: np.ndarray, targets: np.ndarray, k: int, seed: int
) -> ClusterQuality:
    """How well k-means clusters of the training rows agree with the classes of the test rows.

    All rows are scaled to unit length first.

    Args:
        train: (n, F), to find the clusters.
        test: (m, F), assigned to them.
        targets: (m,).
        k: clusters.
        seed: of the ten starts, the best of which counts.
    """
    train, test = (F.normalize(torch.from_numpy(rows)).numpy() for rows in (train, test))
    means = KMeans(min(k, len(train)), n_init=10, random_state=seed)  # type: ignore[arg-type]
    clusters = means.fit(train).predict(test)
    counts = contingency_matrix(targets, clusters)  # (classes, clusters)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return {
        "nmi": float(normalized_mutual_info_score(targets, clusters)),
        "ari": float(adjusted_rand_score(targets, clusters)),
        "accuracy": float(matched / len(targets)),
    }


def tsne(rows: np.ndarray, seed: int, metric: str = "cosine") -> np.ndarray:
    """Points (n, 2) on a map that keeps neighbours together (van der Maaten & Hinton 2008)."""
    perplexity = min(30, (len(rows) - 1) / 3)
    return TSNE(perplexity=perplexity, metric=metric, random_state=seed).fit_transform(rows)


def umap(rows: np.ndarray, seed: int) -> np.ndarray | None:
    """The same by UMAP (McInnes et al. 2018); None without the package umap-learn."""
    if find_spec("umap") is None:
        return None
    model = import_module("umap").UMAP(metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(model.fit_transform(rows))


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Chance that an image of the test set gets the higher score of the two; 0.5 is guessing."""
    known = np.repeat([1, 0], [len(inside), len(outside)])
    return float(roc_auc_score(known, np.concatenate([inside, outside])))
