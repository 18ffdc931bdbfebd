"""Which images are worth a label, on points whose answer is known."""

import numpy as np
import pytest

from stages.suggest.arguments import WAYS
from stages.suggest.choose import clusters_of, in_order_of_worth, worth_in_clusters
from tests.support.blobs import blobs

NONE = np.zeros(0, np.int64)


def four_clusters() -> tuple[np.ndarray, np.ndarray]:
    """Rows of four far clusters of 40, 30, 20 and 10 points, and the cluster of each."""
    of_cluster = np.repeat(np.arange(4), [40, 30, 20, 10])
    centres = np.array([[0, 0], [50, 0], [0, 50], [50, 50]])
    return (centres[of_cluster] + np.random.default_rng(0).normal(size=(100, 2))), of_cluster


@pytest.mark.parametrize("by", ["typiclust", "kmeans"])
def test_one_of_each_cluster_the_largest_first(by):
    rows, of_cluster = four_clusters()
    chosen = in_order_of_worth(rows, NONE, 4, by, seed=0)
    assert of_cluster[chosen].tolist() == [0, 1, 2, 3]
    for image in chosen:
        members = rows[of_cluster == of_cluster[image]]
        from_centre = np.linalg.norm(members - members.mean(0), axis=1)
        assert np.linalg.norm(rows[image] - members.mean(0)) <= np.median(from_centre)


@pytest.mark.parametrize("by", ["typiclust", "kmeans"])
def test_clusters_without_a_label_come_first(by):
    rows, of_cluster = four_clusters()
    labeled = np.array([0, 1, 45, 46])  # of the two largest
    chosen = in_order_of_worth(rows, labeled, 4, by, seed=0)
    assert not set(chosen) & set(labeled)
    assert {2, 3} <= set(of_cluster[chosen[:2]])


def test_of_clusters_without_a_label_the_least_sure_comes_first():
    rows, of_cluster = four_clusters()
    labeled = np.array([0, 45])
    by_size = in_order_of_worth(rows, labeled, 2, "typiclust", 0)
    assert of_cluster[by_size].tolist() == [2, 3]
    margins = np.ones(100)
    margins[[5, by_size[1]]] = [0.0, 0.1]  # the first is in a cluster with a label
    chosen = in_order_of_worth(rows, labeled, 2, "typiclust", 0, margins)
    assert chosen.tolist() == by_size[::-1].tolist()


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("seed", [0, 1])
def test_as_many_as_asked_each_once(by, seed):
    rows, _ = four_clusters()
    labeled = np.array([3, 50, 99])
    for budget in (1, 10, 97):
        for margins in (None, np.random.default_rng(0).random(100)):
            chosen = in_order_of_worth(rows, labeled, budget, by, seed, margins)
            assert len(set(chosen.tolist()) - set(labeled.tolist())) == len(chosen) == budget


@pytest.mark.parametrize("by", WAYS)
def test_equal_images_and_one_image(by):
    same = np.ones((6, 3))
    assert sorted(in_order_of_worth(same, NONE, 6, by, 0)) == [0, 1, 2, 3, 4, 5]
    assert in_order_of_worth(same[:1], NONE, 1, by, 0).tolist() == [0]


def test_random_is_a_function_of_the_seed_alone():
    rows, _ = four_clusters()
    draws = [in_order_of_worth(rows, NONE, 20, "random", seed).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_typicality_is_the_density_within_the_cluster():
    """As TypiClust defines it, spelt out."""
    rows, _ = blobs(30, 2)
    clusters, centres = clusters_of(rows, 3, seed=0)
    worth = worth_in_clusters(rows, clusters, centres, "typiclust")
    for image in range(len(rows)):
        others = np.flatnonzero((clusters == clusters[image]) & (np.arange(len(rows)) != image))
        distances = np.sort(np.linalg.norm(rows[others] - rows[image], axis=1))[:20]
        assert worth[image] == pytest.approx(-distances.mean(), rel=1e-4)
