"""Nearest neighbours: which test images are shown, and that positions are those of the images."""

import numpy as np
import torch

from shared.config.command_line import load_config
from shared.data.sources import open_data
from stages.assess.feature_parts import _balanced, _same_class
from tests.support.assessed import TINY, folder


def test_pictures_are_the_images(assessed, photos):
    """Positions, targets and pictures belong together."""
    config = load_config([*TINY, f"--data.train={photos}"], "", "")[0]
    train, test = open_data(config.data, config.label_set)
    arrays = np.load(folder(assessed) / "assess.npz")
    queries, near = arrays["neighbours/query_positions"], arrays["neighbours/positions"]
    assert (test.labels[queries] == arrays["neighbours/query_targets"]).all()
    assert (train.labels[near] == arrays["neighbours/targets"]).all()
    pictures = torch.from_numpy(arrays["neighbours/images"]).permute(0, 1, 4, 2, 3)
    assert torch.equal(pictures, train.pixels[torch.from_numpy(near)])
    pictures = torch.from_numpy(arrays["neighbours/query_images"]).permute(0, 3, 1, 2)
    assert torch.equal(pictures, test.pixels[torch.from_numpy(queries)])


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
