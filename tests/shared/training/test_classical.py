"""Rows of pixels and features, and what scikit-learn chooses on them."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import SVC

from shared.training import classical
from tests.support.blobs import blobs


def test_large_images_are_shrunk_to_rows_of_pixels():
    images = torch.rand(2, 3, 64, 64)
    rows = classical.as_pixels(images)
    assert rows.shape == (2, 3 * 32 * 32)
    assert rows[0, 0] == pytest.approx(images[0, 0, :2, :2].mean().item(), abs=1e-6)
    assert classical.as_pixels(images[..., :8, :8]).shape == (2, 3 * 8 * 8)


def test_scaled_uses_the_training_rows_alone():
    train, _ = blobs()
    a, b = classical.scaled(train, train[:2] + 1)
    assert a.mean(0) == pytest.approx(0, abs=1e-9)
    assert a.var(0).mean() == pytest.approx(1)
    factor = np.sqrt(train.var(0).mean())
    np.testing.assert_allclose(b * factor + train.mean(0), train[:2] + 1)
    assert np.isfinite(classical.scaled(np.ones((3, 2)))[0]).all()


GRID = [{"C": [1e-4, 1.0]}]


def test_hyper_parameters_are_chosen_on_held_out_labeled_rows():
    rows, targets = blobs(spread=2.0)
    fitted = classical.fit(LogisticRegression(C=7), GRID, rows, targets, 0)
    assert fitted.hyper == {"C": 1.0}
    assert 0.6 < fitted.validation < 1
    # labels without any information: the accuracy on what was held out says so
    lot = np.random.default_rng(0).permutation(targets)
    assert classical.fit(LogisticRegression(), GRID, rows, lot, 0).validation < 0.6


def test_one_label_in_a_class_leaves_the_defaults():
    rows, targets = blobs()
    few = [0, 1, 12, 13, 24]
    fitted = classical.fit(LogisticRegression(C=7), GRID, rows[few], targets[few], 0)
    assert (fitted.hyper, fitted.validation) == ({"C": 7}, None)
    assert fitted.model.C == 7


@pytest.mark.parametrize(
    ("estimator", "grid"),
    [(LogisticRegression(), GRID), (SVC(), []), (RandomForestClassifier(n_estimators=3), [])],
)
def test_many_classes_and_few_labels_are_no_regression(estimator, grid):
    """scikit-learn would warn, a forest for each tree; a warning fails a test."""
    rows, targets = blobs(per_class=1, classes=24, width=24)
    fitted = classical.fit(estimator, grid, rows, targets, 0)
    assert len(fitted.model.classes_) == 24


def test_many_labels_are_held_out_once(monkeypatch):
    rows, targets = blobs()
    monkeypatch.setattr(classical, "HOLD_OUT", 36)
    once = classical.fit(LogisticRegression(), GRID, rows, targets, 0)
    assert once.validation * 9 == pytest.approx(round(once.validation * 9))  # 36 / 5, stratified
    seen = []

    class Counting(LogisticRegression):
        def fit(self, X, y):
            seen.append(len(y))
            return super().fit(X, y)

    classical.fit(Counting(), GRID, rows, targets, 0)
    assert len(seen) == 3  # two values, and the better one on all rows
    assert seen[0] == seen[1] in (28, 29)  # four fifths
    assert seen[2] == 36


def test_semi_supervised_estimators_see_the_unlabeled_rows():
    rows, targets = blobs()
    known = np.full(len(targets), -1)
    few = [0, 1, 12, 13, 24, 25]
    known[few] = targets[few]
    shapes = []

    class Spreading(LabelSpreading):
        def fit(self, X, y):
            shapes.append((len(y), int((y == -1).sum())))
            return super().fit(X, y)

    estimator = Spreading("rbf", gamma=0.2)
    fitted = classical.fit(estimator, [{"alpha": [0.2, 0.9]}], rows, known, 0)
    assert set(shapes) == {(33, 30), (36, 30)}  # half of the labels held out, then all
    assert (fitted.model.predict(rows) == targets).all()


def test_self_training_learns_from_rows_without_a_label():
    rows, truth = blobs(per_class=60, width=12, spread=1.5)
    known = np.full(len(truth), classical.UNLABELED)
    for label in range(3):
        known[np.flatnonzero(truth == label)[:2]] = label
    labeled = known != classical.UNLABELED
    plain = classical.fit_logistic_regression(rows[labeled], known[labeled], 0)
    taught = classical.fit_logistic_regression(rows, known, 0)
    assert taught.hyper.keys() == {"C", "threshold"}
    assert plain.self_labeled is None
    assert 0.5 * len(rows) < taught.self_labeled <= len(rows) - 6
    right = [(fitted.model.predict(rows) == truth).mean() for fitted in (plain, taught)]
    assert right[0] < 0.99 < right[1]
