"""Rows of images, and what is computed of them, against slow definitions."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading

from shared.config.labelset import LabelSet
from shared.config.schema import Data
from shared.data.sources import open_data
from shared.runs.table import BASELINES
from stages.assess import features
from tests.support.photos import class_folders, process


def blobs(
    per_class: int = 12, classes: int = 3, width: int = 5, spread: float = 0.5, seed: int = 0
):
    """Rows around well-separated middles, and their classes."""
    rng = np.random.default_rng(seed)
    middles = np.eye(classes, width) * 6
    targets = np.repeat(np.arange(classes), per_class)
    return (middles[targets] + spread * rng.standard_normal((len(targets), width))), targets


# ---------------------------------------------------------------------------------- rows
class Group:
    """Processes as threads: ``gather`` puts together what each has brought."""

    def __init__(self, of: int):
        self.barrier, self.brought, self.of = threading.Barrier(of, timeout=20), {}, of

    def process(self, index: int) -> SimpleNamespace:
        def pad(tensors, dim, pad_index):
            self.brought[index] = tensors
            self.barrier.wait()
            most = max(len(tensors[0]) for tensors in self.brought.values())
            self.barrier.wait()
            return tuple(
                torch.cat([t, t.new_full((most - len(t), *t.shape[1:]), pad_index)])
                for t in tensors
            )

        def gather(tensors):
            self.brought[index] = tensors
            self.barrier.wait()
            parts = [self.brought[i] for i in range(self.of)]
            return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))

        return SimpleNamespace(
            num_processes=self.of,
            process_index=index,
            is_main_process=index == 0,
            device=torch.device("cpu"),
            pad_across_processes=pad,
            gather=gather,
        )


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = class_folders(tmp_path_factory.mktemp("photos"), 9, size=(6, 6))
    return open_data(
        Data(train=str(folder), image_size=6, workers=0), LabelSet.parse("100pct")
    ).train


def tagged(batch: torch.Tensor, number: int) -> torch.Tensor:
    """The mean colours and the batch's number."""
    return torch.cat([batch.mean((2, 3)), batch.new_full((len(batch), 1), number)], dim=1)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_rows_do_not_depend_on_the_processes(images, processes):
    ids = np.arange(1, len(images), 2)  # 10 images, 3 batches
    data = Data(image_size=6, workers=0)
    one, at = features.over_images(tagged, images, ids, data, process(), batch_size=4)
    assert at.tolist() == ids.tolist()
    assert one[:, 3].tolist() == [0] * 4 + [1] * 4 + [2] * 2
    wanted = images.pixels[ids].float().mean((2, 3)).numpy() / 255
    np.testing.assert_allclose(one[:, :3], wanted, atol=1e-6)

    group, results = Group(processes), {}

    def work(index: int) -> None:
        results[index] = features.over_images(
            tagged, images, ids, data, group.process(index), batch_size=4
        )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows, positions in results.values():
        np.testing.assert_array_equal(rows, one)
        np.testing.assert_array_equal(positions, at)


def test_large_images_are_shrunk_to_rows_of_pixels():
    images = torch.rand(2, 3, 64, 64)
    rows = features.as_pixels(images)
    assert rows.shape == (2, 3 * 32 * 32)
    assert rows[0, 0] == pytest.approx(images[0, 0, :2, :2].mean().item(), abs=1e-6)
    assert features.as_pixels(images[..., :8, :8]).shape == (2, 3 * 8 * 8)


def test_scaled_uses_the_training_rows_alone():
    train, _ = blobs()
    a, b = features.scaled(train, train[:2] + 1)
    assert a.mean(0) == pytest.approx(0, abs=1e-9)
    assert a.var(0).mean() == pytest.approx(1)
    factor = np.sqrt(train.var(0).mean())
    np.testing.assert_allclose(b * factor + train.mean(0), train[:2] + 1)
    assert np.isfinite(features.scaled(np.ones((3, 2)))[0]).all()


# ---------------------------------------------------------------------------------- classifiers
GRID = [{"C": [1e-4, 1.0]}]


def test_hyper_parameters_are_chosen_on_held_out_labeled_rows():
    rows, targets = blobs(spread=2.0)
    fitted = features.fit(LogisticRegression(C=7), GRID, rows, targets, 0)
    assert fitted.hyper == {"C": 1.0}
    assert fitted.choice()["chosen_by"] == "validation"
    assert 0.6 < fitted.validation < 1
    # labels without any information: the accuracy on what was held out says so
    lot = np.random.default_rng(0).permutation(targets)
    assert features.fit(LogisticRegression(), GRID, rows, lot, 0).validation < 0.6


def test_one_label_in_a_class_leaves_the_defaults():
    rows, targets = blobs()
    few = [0, 1, 12, 13, 24]
    fitted = features.fit(LogisticRegression(C=7), GRID, rows[few], targets[few], 0)
    assert (fitted.hyper, fitted.validation) == ({"C": 7}, None)
    assert fitted.choice()["chosen_by"] == "default"
    assert fitted.model.C == 7


def test_many_labels_are_held_out_once(monkeypatch):
    rows, targets = blobs()
    monkeypatch.setattr(features, "HOLD_OUT", 36)
    once = features.fit(LogisticRegression(), GRID, rows, targets, 0)
    assert once.validation * 9 == pytest.approx(round(once.validation * 9))  # 36 / 5, stratified
    seen = []

    class Counting(LogisticRegression):
        def fit(self, X, y):
            seen.append(len(y))
            return super().fit(X, y)

    features.fit(Counting(), GRID, rows, targets, 0)
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
    fitted = features.fit(estimator, [{"alpha": [0.2, 0.9]}], rows, known, 0)
    assert set(shapes) == {(33, 30), (36, 30)}  # half of the labels held out, then all
    assert (fitted.model.predict(rows) == targets).all()


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
    train, test = features.scaled(rows, test)
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
