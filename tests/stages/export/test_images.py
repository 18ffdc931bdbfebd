"""The check refuses a file that does not compute what torch does."""

import numpy as np
import pytest
import torch
from PIL import Image

from shared.config.sections import Data
from shared.runtime.errors import UserError
from stages.export.images import accuracies, check, open_images
from stages.export.network import load
from tests.support.exported import DIGITS, artifact
from tests.support.photos import class_folders


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return load(artifact(tmp_path_factory.mktemp("artifacts") / "r/s", DIGITS))


@pytest.fixture(scope="module")
def images(source):
    return open_images(source)


def test_the_images_of_the_run_are_its_test_images_in_0_to_1(images):
    assert images.title == "test images"
    batch, labels = next(images.batches(10))
    assert batch.shape == (10, 3, 8, 8)
    assert (batch.min(), batch.max()) == (0, 1)  # though the artifact has another mean
    assert labels.min() >= 0
    assert sum(len(batch) for batch, _ in images.batches(5000)) == 360


def test_the_same_function_passes(source, images):
    line = check(source, source.network, images)
    assert "largest difference of a probability 0.0e+00 on 360 test images" in line or "e-0" in line
    assert line.endswith("the same class on all")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p: p + 2e-4,
        lambda p: p.roll(1, 1),
        lambda p: torch.full_like(p, torch.nan),
        lambda p: torch.cat([p[:-1], p[-1:] * torch.nan]),
        lambda p: p.round(decimals=2),
    ],
)
def test_another_function_is_refused(source, images, wrong):
    with pytest.raises(UserError, match="does not compute what torch does") as caught:
        check(source, lambda batch: wrong(source.network(batch)), images)
    assert "nothing was written" in str(caught.value)


def test_another_class_is_refused_though_the_difference_is_small(source, images, monkeypatch):
    flat = torch.full((10,), 0.1)
    monkeypatch.setattr(
        source.network, "forward", lambda x: (flat + 1e-6 * torch.eye(10)[0]).expand(len(x), 10)
    )
    with pytest.raises(UserError, match=r"1.0e-06.* another class on 360"):
        check(source, lambda x: (flat + 1e-6 * torch.eye(10)[1]).expand(len(x), 10), images)


def test_features_are_compared_by_their_size(tmp_path):
    encoder = load(artifact(tmp_path / "r/pretrain"))
    images = open_images(encoder)
    size = max(encoder.network(batch).abs().max().item() for batch, _ in images.batches(500))
    check(encoder, lambda x: encoder.network(x) + 5e-5 * size, images)
    with pytest.raises(UserError, match=r"difference of a feature, of 1, 2\.0e-04"):
        check(encoder, lambda x: encoder.network(x) + 2e-4 * size, images)


def test_accuracy_is_that_of_the_labeled_images(source, images):
    truth = torch.from_numpy(images.images.labels[images.images.labels >= 0])
    place = 0

    def right(batch):
        nonlocal place
        place += len(batch)
        return torch.eye(10)[truth[place - len(batch) : place]]

    always_0 = lambda batch: torch.eye(10)[torch.zeros(len(batch), dtype=int)]  # noqa: E731
    shares, agreement, number = accuracies([right, always_0], source, images)
    assert shares == [1, agreement]
    assert agreement == pytest.approx(float((truth == 0).float().mean()))
    assert number == 360


def test_no_accuracy_where_the_classes_are_others(source, tmp_path):
    others = open_images(source, str(class_folders(tmp_path / "photos", 5)))
    shares, _, number = accuracies([source.network], source, others)
    assert np.isnan(shares).all()
    assert number == 3


def test_without_test_images_the_others_are_taken(source, tmp_path):
    root = class_folders(tmp_path / "photos", 2, classes=["one"])
    assert open_images(source, str(root)).title == "images"


@pytest.mark.parametrize("bad", [b"", b"no image", b"\xff\xd8\xff\xe0 cut off"])
def test_unreadable_images_of_another_folder_are_left_out(source, tmp_path, bad):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "bad.jpg").write_bytes(bad)
    with pytest.raises(UserError, match="no readable image to check"):
        check(source, source.network, open_images(source, str(folder)))
    Image.new("RGB", (9, 9)).save(folder / "good.png")
    result = check(source, source.network, open_images(source, str(folder)))
    assert "on 1 images, the same class" in result


def test_images_that_cannot_be_opened(tmp_path):
    gone = Data(train=str(tmp_path / "gone"), image_size=8)
    source = load(artifact(tmp_path / "r/s", DIGITS, data=gone))
    with pytest.raises(UserError, match=r"no such folder.*; the exported file .* --images FOLDER"):
        open_images(source)
    of_run = (source.path / "config.yaml").rename(source.path.parent / "config.yaml")
    with pytest.raises(UserError, match=r"no such folder.*; the exported file .* --images FOLDER"):
        open_images(source)
    of_run.unlink()
    with pytest.raises(UserError, match=r"no config.yaml that names its images.* --images FOLDER"):
        open_images(source)
    with pytest.raises(UserError, match="no such folder or file"):
        open_images(source, str(tmp_path / "gone"))
