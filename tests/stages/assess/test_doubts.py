"""Confident learning on planted errors, tiny classes, twins, outliers."""

import itertools

import numpy as np
import pytest
import torch

from stages.assess import doubts
from stages.assess.doubts import COMPONENTS, NEIGHBOURS, SIDE

pytest.importorskip("cleanlab")


def blobs(counts, seed=0, width=5):
    """Features of well separated classes, and the classes."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(len(counts)), counts)
    centres = 6 * np.eye(len(counts), width)
    return (centres[targets] + rng.normal(size=(len(targets), width))).astype("f4"), targets


# --------------------------------------------------------------------------------------- labels
@pytest.mark.parametrize("width", [5, COMPONENTS + 72])
def test_planted_wrong_labels_are_found(width):
    features, right = blobs([60, 60, 60], width=width)
    labels, wrong = right.copy(), np.array([3, 70, 71, 150])
    labels[wrong] = (labels[wrong] + 1) % 3
    judgement = doubts.doubts(features, labels, 0)
    assert len(set(wrong) & set(judgement.suspects)) >= len(wrong) - (width > 5)
    assert len(judgement.suspects) <= len(wrong) + 2
    assert judgement.suggested[wrong].tolist() == right[wrong].tolist()
    assert (judgement.suggested[judgement.suspects] != labels[judgement.suspects]).all()
    assert (np.diff(judgement.quality[judgement.suspects]) >= 0).all()
    assert judgement.quality[wrong].max() < np.median(judgement.quality)
    assert judgement.folds == 5
    again = doubts.doubts(features, labels, 0)
    assert np.array_equal(again.quality, judgement.quality)


@pytest.mark.parametrize(
    ("counts", "judged", "folds"),
    [
        ((2, 2), 4, 2),
        ((40, 2, 2), 44, 5),
        ((30, 30, 1), 60, 5),
        ((4, 2, 1), 6, 4),
        ((1, 2, 1, 3), 5, 3),
    ],
)
def test_tiny_classes(counts, judged, folds):
    features, labels = blobs(counts)
    judgement = doubts.doubts(features, labels, 0)
    assert len(judgement.judged) == judged
    assert judgement.folds == folds
    single = ~doubts.can_be_judged(labels)
    assert single.sum() == counts.count(1)
    assert np.isnan(judgement.quality).tolist() == single.tolist()
    assert not single[judgement.suspects].any()
    assert np.array_equal(judgement.suggested[single], labels[single])


def test_a_class_with_one_label_can_be_suggested():
    features, labels = blobs([40, 40, 1])
    features[5] = features[-1]
    assert doubts.doubts(features, labels, 0).suggested[5] == 2


@pytest.mark.parametrize("classes", [[7, 3], [0, 2, 9], [1, 4, 5, 6]])
def test_numbers_of_classes_may_have_gaps(classes):
    features, labels = blobs([20] * len(classes))
    judgement = doubts.doubts(features, np.array(classes)[labels], 0)
    assert set(judgement.suggested) == set(classes)


@pytest.mark.parametrize("shape", [(300, COMPONENTS), (COMPONENTS, 300), (9, 500)])
def test_few_features_or_few_images_stay_as_they_are(shape):
    rows = np.random.default_rng(0).normal(size=shape).astype("f4")
    assert doubts.compact(rows, 0) is rows


@pytest.mark.parametrize("width", [COMPONENTS + 1, 4097])
def test_many_features_keep_most_of_their_variance(width):
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(150, 20)) @ rng.normal(size=(20, width))).astype("f4")
    short = doubts.compact(rows, 0)
    assert short.shape == (150, COMPONENTS)
    assert short.var(0).sum() == pytest.approx(rows.var(0).sum(), rel=1e-3)


# --------------------------------------------------------------------------------------- images
def pictures(n=12, seed=0, side=SIDE):
    return np.random.default_rng(seed).random((n, 3 * side * side)).astype("f4")


def groups(rows, neighbours=None):
    if neighbours is None:
        neighbours = np.array([[j for j in range(len(rows)) if j != i] for i in range(len(rows))])
    return [group.tolist() for group in doubts.twins(rows, neighbours)]


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows,
        lambda rows: rows + np.float32(0.01) * np.sin(np.arange(rows.size), dtype="f4"),
        lambda rows: 0.8 * rows + 0.05,
    ],
    ids=["copy", "noise of encoding", "less contrast"],
)
def test_changed_copies_are_twins(change):
    rows = pictures()
    rows[7] = change(rows[2])
    assert groups(rows) == [[2, 7]]


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_flat_pictures_are_twins_of_equal_grey_alone(grey):
    rows = pictures()
    rows[3] = rows[4] = grey
    rows[5] = (grey + 0.4) % 1.3
    assert groups(rows) == [[3, 4]]


def test_no_twins():
    assert groups(pictures()) == []


def test_more_equal_pictures_than_neighbours_are_one_group():
    rows = pictures(40)
    rows[5:35] = rows[5]
    features = np.random.default_rng(1).normal(size=(40, 8)).astype("f4")
    features[5:35] = features[5]
    neighbours, distances = doubts.nearest_others(features, 0)
    assert neighbours.shape == distances.shape == (40, NEIGHBOURS)
    assert not (neighbours == np.arange(40)[:, None]).any()
    assert groups(rows, neighbours) == [list(range(5, 35))]


@pytest.mark.parametrize("length", [3, 4, 9, 60])
def test_a_chain_of_images_is_no_group(length):
    first, second = pictures(2) - 0.5
    angle = 0.08 * np.arange(length, dtype="f4")[:, None]  # from one to the next: 0.08 deviations
    rows = 0.5 + np.cos(angle) * first + np.sin(angle) * second
    line = np.arange(length)
    neighbours = np.stack([np.maximum(line - 1, 0), np.minimum(line + 1, length - 1)], axis=1)
    found = groups(rows, neighbours)
    assert sorted(itertools.chain(*found)) == line.tolist()
    assert max(len(group) for group in found) <= 5


@pytest.mark.parametrize("n", [2, 3, NEIGHBOURS + 1])
def test_few_images_have_few_neighbours(n):
    neighbours, _ = doubts.nearest_others(np.eye(n, 4, dtype="f4") + 1, 0)
    assert neighbours.shape == (n, n - 1)
    for i, row in enumerate(neighbours):
        assert sorted([i, *row]) == list(range(n))


@pytest.mark.parametrize("far", [[0], [4, 50], [7, 8, 9]])
def test_planted_outliers(far):
    rng = np.random.default_rng(0)
    features = rng.normal([8] * 4 + [0] * 4, 0.5, (200, 8)).astype("f4")
    features[far] = -8 * np.eye(8)[: len(far)]
    outliers, distance = doubts.outliers(doubts.nearest_others(features, 0)[1])
    assert sorted(outliers[: len(far)]) == far
    assert len(outliers) <= len(far) + 10
    assert (np.diff(distance[outliers]) <= 0).all()


@pytest.mark.parametrize("alike", [2, NEIGHBOURS + 2, 40])
def test_outliers_of_one_kind_are_found(alike):
    rng = np.random.default_rng(0)
    features = rng.normal([8] * 4 + [0] * 4, 0.5, (2000, 8)).astype("f4")
    features[:alike] = rng.normal([0] * 7 + [8], 0.02, (alike, 8))
    distances = doubts.nearest_others(features, 0)[1]
    assert distances.shape[1] == doubts.FAR
    assert sorted(doubts.outliers(distances)[0][:alike]) == list(range(alike))


@pytest.mark.parametrize("side", [8, SIDE, 64])
def test_small_pictures(side):
    rows = doubts.small_pictures(torch.ones(2, 3, side, side))
    assert rows.shape == (2, 3 * min(side, SIDE) ** 2)
    assert (rows == 1).all()
