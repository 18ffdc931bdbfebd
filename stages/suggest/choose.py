"""Which images to label, from features alone: functions of arrays.

Features are (n, F) float32 of unit length. No function here sees a class.
"""

import warnings
from collections.abc import Sequence
from itertools import chain

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors

from shared.runtime.randomness import generator

WAYS = ("typiclust", "kmeans", "random")
CLUSTERS = 500  # at most, as in TypiClust's code
NEIGHBOURS = 20  # of the same cluster, whose mean distance says how dense it is there
RESTARTS = 10  # of k-means, where images x clusters are at most so many:
FEW = 2_000_000


def in_order_of_worth(
    rows: np.ndarray,
    labeled: np.ndarray,
    budget: int,
    by: str,
    seed: int,
    margins: np.ndarray | None = None,
) -> np.ndarray:
    """The images that are most worth a label, the best first.

    There are as many clusters as images, labeled and wanted. Clusters without a label come first,
    the largest of them before the others, then those with one label, and so on. Within a cluster
    the order is that of ``worth_in_clusters``. With margins this takes turns with the uncertain: of
    each cluster with a label the image with the smallest margin, the smallest of all first.

    Args:
        rows: (n, F) features.
        labeled: (k,) positions of rows that have a label.
        budget: how many images are wanted, at most n - k.
        by: of ``WAYS``.
        seed: of k-means, or of the lot.
        margins: (n,) difference of the two highest probabilities of a classifier.

    Returns:
        Positions (budget,) of rows without a label.
    """
    unlabeled = np.setdiff1d(np.arange(len(rows)), labeled)
    if by == "random":
        return generator(seed, "suggest").permutation(unlabeled)[:budget]
    clusters, centres = clusters_of(rows, min(len(labeled) + budget, CLUSTERS), seed)
    worth = worth_in_clusters(rows, clusters, centres, by)
    sizes, labels = (np.bincount(c, minlength=len(centres)) for c in (clusters, clusters[labeled]))
    # by cluster, and in each the best first: the turn of an image is its place there
    grouped = unlabeled[np.lexsort((-worth[unlabeled], clusters[unlabeled]))]
    of_cluster = clusters[grouped]
    turn = np.arange(len(grouped)) - np.searchsorted(of_cluster, of_cluster) + labels[of_cluster]
    covering = grouped[np.lexsort((of_cluster, -sizes[of_cluster], turn))]
    if margins is None:
        return covering[:budget]
    sure = unlabeled[np.argsort(margins[unlabeled], kind="stable")]
    sure = sure[labels[clusters[sure]] > 0]
    uncertain = sure[np.sort(np.unique(clusters[sure], return_index=True)[1])]
    return np.array(_in_turns(covering.tolist(), uncertain.tolist())[:budget])


def clusters_of(rows: np.ndarray, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster (n,) of each row by k-means, and the centres (k, F) of the clusters."""
    number = min(number, len(rows))
    restarts = RESTARTS if len(rows) * number <= FEW else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal images: some clusters are empty
        means = KMeans(number, n_init=restarts, random_state=seed)  # type: ignore[arg-type]
        clusters = means.fit_predict(rows)
    return clusters.astype(np.int64), means.cluster_centers_


def worth_in_clusters(
    rows: np.ndarray, clusters: np.ndarray, centres: np.ndarray, by: str
) -> np.ndarray:
    """(n,) the higher, the earlier an image's turn in its cluster.

    Args:
        rows: (n, F) features.
        clusters: (n,) of the rows.
        centres: (k, F).
        by: kmeans takes the nearest to the centre; typiclust the most typical, which has the
            smallest mean distance to its nearest neighbours in the cluster (Hacohen, Dekel &
            Weinshall 2022, arXiv 2202.02794, section 3.2).
    """
    if by == "kmeans":
        return -np.linalg.norm(rows - centres[clusters], axis=1)
    worth = np.zeros(len(rows))
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        others = min(NEIGHBOURS, len(members) - 1)
        if others:
            nearest = NearestNeighbors(n_neighbors=others).fit(rows[members])
            worth[members] = -nearest.kneighbors()[0].mean(1)  # not counting the image itself
    return worth


def _in_turns(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """One of the first, one of the second, and so on, each once; then the rest of the longer."""
    shorter = min(len(first), len(second))
    pairs = chain.from_iterable(zip(first, second, strict=False))
    return list(dict.fromkeys([*pairs, *first[shorter:], *second[shorter:]]))
