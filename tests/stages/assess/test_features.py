"""Rows of images, and what is computed of them, against slow definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from shared.runs.table import BASELINES
from shared.training.classical import scaled
from stages.assess import features
from tests.support.blobs import blobs


# ---------------------------------------------------------------------------------- classifiers
def test_scores_of_a_class_that_training_lacked():
    rows, targets = blobs()
    two = targets != 1
    model = LogisticRegression().fit(rows[two], targets[two])
    metrics = features.scores(model, rows, targets, 3)
    assert metrics["top1"] == pytest.approx(2 / 3)
    assert metrics["nll"] == pytest.approx(-np.log(1e-12) / 3, rel=0.01)


def test_baselines_are_four_and_say_what_they_saw(monkeypatch):
    rows, targets = blobs(per_class=30)
    test, wanted = blobs(seed=1)
    train, test = scaled(rows, test)
    known = np.full(len(targets), -1)
    few = [0, 1, 30, 31, 60, 61]
    known[few] = targets[few]
    monkeypatch.setattr(features, "SPREADING_IMAGES", 40)
    monkeypatch.setattr(features, "SVM_IMAGES", 5)
    table = features.classical_baselines(train, known, test, wanted, 0)
    assert [(row["method"], row["n_labels"], row["n_unlabeled"]) for row in table] == [
        ("logistic regression", 6, 0),
        ("support vector machine", 5, 0),
        ("self-training", 6, 34),
        ("label spreading", 6, 34),
    ]
    in_tables = {method for method, _ in BASELINES.values()}
    assert in_tables == {row["method"] for row in table}  # as tables of results name them
    assert all(row["top1"] > 0.9 for row in table)
    assert [row["chosen_by"] for row in table] == [
        "validation",
        "default",
        "validation",
        "validation",
    ]
    full = features.classical_baselines(train, targets, test, wanted, 0)
    assert [row["method"] for row in full] == ["logistic regression", "support vector machine"]
    # test labels score and nothing else
    wrong = features.classical_baselines(train, known, test, (wanted + 1) % 3, 0)
    for row, other in zip(table, wrong, strict=True):
        assert other["top1"] < 0.1
        assert {**other, "top1": 0} == {**row, "top1": 0}


# ---------------------------------------------------------------------------------- geometry
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 1000))
def test_nearest_and_vote_are_the_definition(k, n, seed):
    rng = np.random.default_rng(seed)
    keys, queries = rng.standard_normal((n, 3)), rng.standard_normal((4, 3))
    classes = rng.integers(0, 3, n)
    indices, similarity = features.nearest(keys, queries, k)
    assert indices.shape == similarity.shape == (4, min(k, n))
    votes = features.vote(similarity, classes[indices], 0.3)
    for i, query in enumerate(queries):
        cosine = keys @ query / np.linalg.norm(keys, axis=1) / np.linalg.norm(query)
        best = np.argsort(-cosine)[:k]
        np.testing.assert_allclose(similarity[i], cosine[best], atol=1e-9)
        ballot = [sum(np.exp(cosine[j] / 0.3) for j in best if classes[j] == c) for c in range(3)]
        assert ballot[votes[i]] == pytest.approx(max(ballot))


def test_a_near_neighbour_outvotes_two_far_ones():
    similarity, classes = np.array([[0.9, 0.6, 0.6]]), np.array([[1, 0, 0]])
    assert features.vote(similarity, classes).tolist() == [1]
    assert features.vote(similarity, classes, temperature=10).tolist() == [0]


def test_clusters_that_are_the_classes_under_other_names():
    rows, _ = blobs()
    test, wanted = blobs(seed=1)
    perfect = features.cluster_quality(rows, test, (wanted + 1) % 3, 3, 0)
    assert perfect == pytest.approx({"nmi": 1, "ari": 1, "accuracy": 1})
    # two clusters for three classes: one class is matched with nothing
    two = features.cluster_quality(rows, test, wanted, 2, 0)
    assert two["accuracy"] == pytest.approx(2 / 3)
    lot = np.random.default_rng(0).integers(0, 3, len(wanted))
    assert features.cluster_quality(rows, test, lot, 3, 0)["nmi"] < 0.3


def test_map_keeps_groups_together_and_is_repeatable():
    rows, targets = blobs()
    places = features.tsne(rows, 0)
    assert places.shape == (36, 2)
    np.testing.assert_array_equal(places, features.tsne(rows, 0))
    apart = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(36)
    assert (targets[apart.argmin(1)] == targets).mean() > 0.9
    assert features.tsne(rows[:5], 0).shape == (5, 2)


def test_umap_is_optional(monkeypatch):
    monkeypatch.setattr(features, "find_spec", lambda name: None)
    assert features.umap(np.zeros((5, 2)), 0) is None


def test_auroc_is_the_share_of_pairs():
    inside, outside = np.array([0.9, 0.8, 0.5]), np.array([0.6, 0.5])
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in inside for b in outside]
    assert features.auroc(inside, outside) == pytest.approx(np.mean(pairs))
