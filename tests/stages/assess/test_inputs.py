"""What an assessment reads: label sets, samples, pictures."""

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from shared.config.command_line import load_config
from shared.data.images import UNLABELED
from shared.runtime.files import write_atomically
from stages.assess.inputs import THUMBNAIL, open_inputs, thumbnails
from tests.support.assessed import TINY


@pytest.fixture(scope="module")
def inputs(trained, photos):
    config = load_config([*TINY, f"--data.train={photos}", f"--output={trained}"], "", "")[0]
    return open_inputs(config, Accelerator(cpu=True))


def test_the_classifiers_of_the_labels_and_the_seed_are_opened(inputs):
    assert list(inputs.classifiers) == ["supervised", "finetune"]
    assert inputs.about()["classifiers"]["finetune"] == "finetune-3perclass-seed0"
    networks = [inputs.pretrained, *inputs.classifiers.values()]
    assert not any(p.requires_grad for network in networks for p in network.parameters())


def test_rows_whose_model_is_not_saved_are_passed_over(trained, photos, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    config = load_config([*TINY, f"--data.train={photos}", f"--output={tmp_path / 'runs'}"], "", "")
    meta = {"kind": "predictions", "encoder": "x", "image_size": 8, "weights_sha256": "0"}
    write_atomically(config[0].folder_of("pixels-svm") / "meta.json", json.dumps(meta))
    inputs = open_inputs(config[0], Accelerator(cpu=True))
    assert list(inputs.classifiers) == ["supervised", "finetune"]


def test_samples_are_ascending_and_their_own(inputs):
    ids = np.arange(100, 200)
    first, again, other = (inputs.sample(ids, 10, name) for name in ("a", "a", "b"))
    assert first.tolist() == again.tolist() == sorted(set(first.tolist()))
    assert first.tolist() != other.tolist()
    assert inputs.sample(ids, 1000, "a").tolist() == ids.tolist()


def test_pictures_of_any_positions(inputs):
    positions = np.array([[3, 0], [0, 5]])
    pictures = inputs.pictures(inputs.splits.train, positions)
    pixels = inputs.splits.train.pixels
    assert pictures.shape == (2, 2, 8, 8, 3)
    assert torch.equal(torch.from_numpy(pictures[0, 0]), pixels[3].permute(1, 2, 0))
    assert inputs.pictures(inputs.splits.train, positions[:0]).shape == (0, 2, 8, 8, 3)


def test_large_pictures_are_shrunk():
    small = thumbnails(torch.full((2, 3, 2 * THUMBNAIL, 2 * THUMBNAIL), 0.5))
    assert small.shape == (2, THUMBNAIL, THUMBNAIL, 3)
    assert small.dtype == np.uint8
    assert (small == 128).all()


def test_unlabeled_test_images_are_left_out(inputs):
    test = inputs.test_images
    assert (test.labels[inputs.test_ids] != UNLABELED).all()
    assert len(inputs.test_ids) == 9
