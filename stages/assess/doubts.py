"""Which labels may be wrong, which images are twins, and which are like no other one.

Pure functions of arrays. Features are (n, F) float32, classes (n,) int64.
"""

import hashlib
import warnings
from importlib import import_module
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from scipy.sparse import coo_array, csr_array
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from shared.runtime.randomness import generator
from shared.training.classical import fit_logistic_regression, log_probabilities, scaled

FOLDS = 5
COMPONENTS = 128  # of features with more, the first principal components are used: time and memory
CHOSEN_ON = 5000  # labels that choose the strength of the regularisation, at most
NEIGHBOURS = 10  # among which the twins of an image are searched
FAR = 50  # the neighbour whose distance tells outliers; fewer of its kind are still found
SIDE = 16  # pixels of the small pictures that twins are compared by
SAME = 0.1  # difference of two small pictures in standard deviations, at most, of twins
CONTRAST = 0.02  # standard deviation below which a picture counts as flat, of pixels in [0, 1]
BRIGHTER = 0.15  # difference of the means of two twins, at most
FENCE = 1.5  # interquartile ranges above the upper quartile (Tukey 1977)


class Doubts(NamedTuple):
    """What confident learning says of labels.

    Attributes:
        judged: (j,) int64, which of the labels were judged; of a class with one label it is not.
        suspects: (s,) int64, which may be wrong, the likeliest first.
        suggested: (k,) int64, the likeliest class of each; its label where it was not judged.
        quality: (k,) out-of-sample probability of each label; NaN where it was not judged.
        folds: parts that were held out in turn.
    """

    judged: np.ndarray
    suspects: np.ndarray
    suggested: np.ndarray
    quality: np.ndarray
    folds: int


# --------------------------------------------------------------------------------------- labels
def can_be_judged(targets: np.ndarray) -> np.ndarray:
    """Which labels (k,) have another one of their class, from which it could be learned."""
    _, which, counts = np.unique(targets, return_inverse=True, return_counts=True)
    return counts[which] > 1


def doubts(features: np.ndarray, targets: np.ndarray, seed: int) -> Doubts:
    """Labels that may be wrong, by confident learning (Northcutt et al. 2021, arXiv 1911.00068).

    A logistic regression judges the images that it has not seen: up to ``FOLDS`` stratified parts
    are held out in turn. A class with two labels is in two of them. The only image of a class is
    always seen and never judged.

    Args:
        features: (k, F) of the labeled images.
        targets: (k,) their classes, of which two at least have two labels.
        seed: of the parts.
    """
    classes, numbers = np.unique(targets, return_inverse=True)
    judged = np.flatnonzero(can_be_judged(targets))
    probabilities, folds = _out_of_sample(features, numbers, judged, len(classes), seed)
    labels = numbers[judged]
    cleanlab_filter, cleanlab_rank = (
        import_module(f"cleanlab.{name}") for name in ("filter", "rank")
    )
    with warnings.catch_warnings():  # that a class without a judged label has too few
        warnings.simplefilter("ignore", UserWarning)
        ranked = cleanlab_filter.find_label_issues(
            labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
    quality = np.full(len(targets), np.nan)
    quality[judged] = cleanlab_rank.get_label_quality_scores(labels, probabilities)
    suggested = targets.copy()
    suggested[judged] = classes[probabilities.argmax(1)]
    suspects = judged[np.asarray(ranked, np.int64)]
    return Doubts(
        judged, suspects[suggested[suspects] != targets[suspects]], suggested, quality, folds
    )


def _out_of_sample(
    features: np.ndarray, numbers: np.ndarray, judged: np.ndarray, classes: int, seed: int
) -> tuple[np.ndarray, int]:
    """Probabilities (j, classes) of the judged images, each by a model that has not seen it."""
    rows = scaled(compact(features, seed))[0]
    seen = generator(seed, "assess", "strength").permutation(len(rows))[:CHOSEN_ON]
    strength = fit_logistic_regression(rows[seen], numbers[seen], seed).hyper["C"]
    alone = np.setdiff1d(np.arange(len(rows)), judged)
    folds = int(min(FOLDS, np.bincount(numbers[judged]).max()))
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    probabilities = np.zeros((len(judged), classes))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        for kept, held in parts.split(judged, numbers[judged]):
            train = np.concatenate([judged[kept], alone])
            model = LogisticRegression(C=strength, max_iter=500).fit(rows[train], numbers[train])
            logits = log_probabilities(model, rows[judged[held]], classes)
            probabilities[held] = np.exp(logits)
    return probabilities / probabilities.sum(1, keepdims=True), folds


def compact(rows: np.ndarray, seed: int) -> np.ndarray:
    """Rows (n, F) as they are, or their first ``COMPONENTS`` principal components."""
    if min(rows.shape) <= COMPONENTS:
        return rows
    # the randomised solver needs a centred copy of all rows, the covariance none
    solver = "covariance_eigh" if rows.shape[1] <= 4096 else "randomized"
    return PCA(COMPONENTS, svd_solver=solver, random_state=seed).fit_transform(rows)


# --------------------------------------------------------------------------------------- images
def nearest_others(features: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other images of each image, by features scaled to unit length.

    scikit-learn computes it block by block: the memory grows with n, the time with its square.

    Returns:
        Positions (n, k) int64 and distances (n, k), nearest first; k is ``FAR``, or a twentieth of
        the images where these are few, but at least ``NEIGHBOURS``, and less than n.
    """
    rows = compact(features, seed)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    k = min(max(NEIGHBOURS, min(FAR, len(rows) // 20)), len(rows) - 1)
    index = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(rows)
    distances, positions = index.kneighbors(rows)
    # the image itself is not always the first of those at distance 0, nor among them
    itself = positions == np.arange(len(rows))[:, None]
    itself[~itself.any(1), -1] = True
    return positions[~itself].reshape(-1, k), distances[~itself].reshape(-1, k)


def small_pictures(images: Tensor) -> Tensor:
    """Images (B, 3, S, S) in [0, 1] as rows (B, P), at most ``SIDE`` pixels wide."""
    if images.shape[-1] > SIDE:
        images = F.interpolate(images, size=SIDE, mode="area")
    return images.flatten(1)


def twins(pictures: np.ndarray, neighbours: np.ndarray) -> list[np.ndarray]:
    """Groups of images that look the same: copies, also re-encoded, resized, brighter or darker.

    Two images are twins where one is among the ``NEIGHBOURS`` nearest of the other by features, and
    their small pictures, each with mean 0 and standard deviation 1, differ by at most ``SAME``; or
    where these are equal. All images of a group are twins of one of them, so that a long chain of
    images, each a little unlike the last, is no group. One whose twins are all in groups joins one.

    Args:
        pictures: (n, P), from `small_pictures`.
        neighbours: (n, k), from `nearest_others`.

    Returns:
        Positions of each group, ascending.
    """
    n = len(neighbours)
    pairs = [np.stack([np.arange(n), column]) for column in neighbours.T[:NEIGHBOURS]]
    alike = [pair[:, _look_alike(pictures, pair)] for pair in pairs]
    first: dict[bytes, int] = {}  # equal pictures may be more than the nearest others
    digests = (hashlib.sha256(row.tobytes()).digest() for row in pictures)
    leaders = [first.setdefault(digest, row) for row, digest in enumerate(digests)]
    equal = np.stack([np.arange(n), leaders])
    rows, columns = np.concatenate([*alike, equal], axis=1)
    others = rows != columns
    graph = coo_array(
        (np.ones(others.sum()), (rows[others], columns[others])), shape=(n, n)
    ).tocsr()
    group = _stars(csr_array(graph + graph.T))
    order = np.argsort(group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    groups = [members for members in groups if group[members[0]] >= 0]
    return sorted(groups, key=lambda members: members[0])


def _stars(graph: csr_array) -> np.ndarray:
    """Groups (n,) of the nodes of a symmetric graph: one with many neighbours, and these.

    -1 where a node has no neighbour.
    """
    degree = np.diff(graph.indptr)
    group = np.full(len(degree), -1)
    for node in np.argsort(-degree, kind="stable")[: np.count_nonzero(degree)]:
        if group[node] < 0:
            near = graph.indices[graph.indptr[node] : graph.indptr[node + 1]]
            free = near[group[near] < 0]
            group[free] = node
            group[node] = node if len(free) else group[near[0]]
    return group


def _look_alike(pictures: np.ndarray, pairs: np.ndarray, block: int = 4096) -> np.ndarray:
    """Whether each pair (2, m) of small pictures differs by so little, (m,) bool."""
    alike = []
    for start in range(0, pairs.shape[1], block):
        first, second = (pictures[ids] for ids in pairs[:, start : start + block])
        means = first.mean(1, keepdims=True), second.mean(1, keepdims=True)
        shapes = [
            (rows - mean) / rows.std(1, keepdims=True).clip(CONTRAST)
            for rows, mean in zip((first, second), means, strict=True)
        ]
        difference = np.sqrt(((shapes[0] - shapes[1]) ** 2).mean(1))
        alike.append((difference <= SAME) & (np.abs(means[0] - means[1])[:, 0] <= BRIGHTER))
    return np.concatenate(alike)


def outliers(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images far from all others, the farthest first, and of all the distance that says so.

    It is the distance to the last of the neighbours (Ramaswamy et al. 2000, SIGMOD). The mean, or a
    nearer neighbour, misses outliers of one kind, such as pictures of noise, which are near to one
    another.

    Args:
        distances: (n, k) to the nearest others, from `nearest_others`.

    Returns:
        Positions (o,) of images whose distance is more than ``FENCE`` interquartile ranges above
        the upper quartile, and the distances (n,).
    """
    last = distances[:, -1]
    lower, upper = np.quantile(last, [0.25, 0.75])
    far = np.flatnonzero(last > upper + FENCE * (upper - lower))
    return far[np.argsort(-last[far], kind="stable")], last
