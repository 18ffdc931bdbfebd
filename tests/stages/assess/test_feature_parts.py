"""Nearest neighbours: which test images are shown, and whose class counts."""

import numpy as np

from stages.assess.feature_parts import _balanced, _same_class


def test_queries_are_of_all_classes_in_turn():
    targets = np.array([0] * 50 + [1] * 3 + [2] * 20)
    queries = _balanced(targets, 12, seed=0)
    assert sorted(np.bincount(targets[queries])) == [3, 4, 5]
    assert len(np.unique(queries)) == 12
    assert (np.diff(targets[queries]) >= 0).all()
    assert sorted(_balanced(targets, 100, seed=0)) == list(range(73))
    assert _balanced(targets, 12, seed=0).tolist() == queries.tolist()


def test_neighbours_of_unknown_class_do_not_count():
    classes = np.array([[0, -1], [1, 1], [-1, -1]])
    assert _same_class(classes, np.array([0, 0, 0])) == 1 / 3
    assert _same_class(classes[2:], np.array([0])) is None
