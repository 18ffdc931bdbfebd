"""The vote of nearest neighbours, against scikit-learn's and by hand."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from shared.config.sections import Data
from shared.runtime.errors import UserError
from shared.training import neighbours
from shared.training.neighbours import (
    NeighbourProbe,
    leave_one_out,
    shares_of_votes,
    votes,
)


class Images(NamedTuple):
    labels: np.ndarray


def test_votes_weigh_by_similarity():
    similar = torch.tensor([[0.9, 0.5, 0.5, -torch.inf]])
    labels = torch.tensor([1, 0, 0, 2])
    assert votes(similar, labels, 3, 0.07).tolist() == [1]  # one that is much more similar
    assert votes(similar, labels, 3, 10.0).tolist() == [0]  # two against one
    assert votes(similar, labels, 1, 10.0).tolist() == [1]
    assert votes(similar, torch.tensor([2, 0, -1, 1]), 1, 0.07).tolist() == [2]


@pytest.mark.parametrize("rows", [7, 1024])
def test_an_image_has_no_vote_on_itself(rows, monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", rows)  # the last tile is smaller
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    features = rng.normal(size=(60, 5)) + 2 * np.eye(5)[labels]
    index = NearestNeighbors(n_neighbors=21, metric="cosine").fit(features)
    distances, near = index.kneighbors(features)
    weights = np.exp((1 - distances[:, 1:]) / 0.07)
    ballots = [np.bincount(labels[n], w, 3) for n, w in zip(near[:, 1:], weights, strict=True)]
    expected = np.mean(np.argmax(ballots, 1) == labels)
    found = leave_one_out(torch.from_numpy(features), torch.from_numpy(labels))
    assert found == pytest.approx(expected)
    assert 0.3 < found < 1
    assert leave_one_out(torch.eye(2), torch.tensor([0, 1])) == 0  # each has the other alone


@pytest.mark.parametrize("known", [1, 14, 90])  # 20 vote at most
def test_shares_are_those_of_scikit_learn(known, monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", 7)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, known)
    rows, asked = rng.normal(size=(known, 5)) + 2 * np.eye(5)[labels], rng.normal(size=(30, 5))
    model = KNeighborsClassifier(
        min(known, 20), metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(rows, labels)
    shares = shares_of_votes(*map(torch.from_numpy, (asked, rows, labels)), classes=4)
    assert shares.shape == (30, 4)
    wanted = np.zeros((30, 4))
    wanted[:, model.classes_] = model.predict_proba(asked)
    np.testing.assert_allclose(shares, wanted, atol=1e-4)


@pytest.mark.parametrize("labels", [[-1, -1, -1], [-1, 0, -1], []])
def test_nothing_to_look_at_is_refused(labels):
    with pytest.raises(UserError, match="knn_every_steps needs images with a class, and"):
        NeighbourProbe(Images(np.array(labels, dtype=np.int64)), Data(), None)
