"""Probabilities and features of paths, Pillow's images and arrays are those of the evaluation."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from shared.config.sections import Data
from shared.data.batches import plain_batches
from shared.data.images import decode_image
from shared.data.sources import open_images
from shared.networks.build import load_classifier, load_contrastive
from shared.runtime.errors import UserError
from shared.runtime.media import printable
from shared.runtime.tensors import load_tensors, save_tensors, sha256
from shared.training.predictor import Predictor
from tests.support.exported import artifact
from tests.support.photos import make_folder

CLASSES = ["a", "b", "c"]
NAMES = [f"{i}.png" for i in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier that keeps one layer of the head, an encoder, and photos."""
    root = tmp_path_factory.mktemp("predictor")
    artifact(root / "classifier", CLASSES, from_layer=1)
    artifact(root / "encoder")
    make_folder(root / "photos", NAMES, size=(20, 18))
    return root


@pytest.fixture
def files(folder):
    return [folder / "photos" / name for name in NAMES]


def shown(files, predictor: Predictor) -> torch.Tensor:
    images = open_images(files, Data())
    return next(plain_batches(images, np.arange(len(files)), predictor.data, 9, "cpu"))[0]


@torch.inference_mode()
def test_as_the_network_says(folder, files):
    predictor = Predictor(folder / "classifier", workers=0, batch_size=2)
    probabilities, classes = predictor(files)
    model = load_classifier(folder / "classifier")[0].eval()
    expected = model(shown(files, predictor)).softmax(1)
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-5)
    assert classes == ("a", "b", "c")
    assert probabilities.dtype == np.float32


def kinds(files) -> dict[str, list]:
    pixels = [decode_image(str(file)).permute(1, 2, 0).numpy() for file in files]
    return {
        "text": [str(file) for file in files],
        "Pillow": [Image.open(file) for file in files],
        "arrays": pixels,
        "mixed": [str(files[0]), Image.open(files[1]), pixels[2], files[3], pixels[4]],
        "one array": np.stack(pixels),
        "a generator": (file for file in files),
    }


@pytest.mark.parametrize("kind", ["text", "Pillow", "arrays", "mixed", "one array", "a generator"])
def test_takes(folder, files, kind):
    predictor = Predictor(folder / "classifier")
    expected = predictor(files).probabilities
    np.testing.assert_array_equal(predictor(kinds(files)[kind]).probabilities, expected)


def test_takes_one_image_and_none(folder, files):
    predictor = Predictor(folder / "classifier", layer=1)
    expected = predictor(files[:1]).probabilities
    for one in (files[0], str(files[0]), Image.open(files[0]), np.array(Image.open(files[0]))):
        np.testing.assert_array_equal(predictor(one).probabilities, expected)
    assert predictor([]).probabilities.shape == (0, 3)
    assert predictor.features([]).shape == (0, 8)


def test_grey_and_transparent_arrays_are_as_files_of_them(folder, tmp_path):
    rng = np.random.default_rng(0)
    predictor = Predictor(folder / "classifier")
    for channels in ((), (4,)):
        array = rng.integers(0, 256, (18, 20, *channels), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / "x.png")
        of_file = predictor([tmp_path / "x.png"]).probabilities
        np.testing.assert_array_equal(predictor([array]).probabilities, of_file)


def test_a_photo_of_pillow_is_turned_as_its_exif_says(folder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (18, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png", exif=exif)
    predictor = Predictor(folder / "classifier")
    expected = predictor([tmp_path / "x.png"]).probabilities
    image = Image.open(tmp_path / "x.png")
    np.testing.assert_array_equal(predictor([image]).probabilities, expected)
    assert image.size == (20, 18)  # the caller's image stays


@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.inference_mode()
def test_features_of_an_encoder(folder, files, layer):
    predictor = Predictor(folder / "encoder", layer)
    model = load_contrastive(folder / "encoder")[0].eval()
    expected = model.head(model.encoder(shown(files, predictor)))[layer]
    features = predictor.features(files)
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-3, atol=1e-4)
    assert features.shape[1] == predictor.widths[layer]


@torch.inference_mode()
def test_features_of_a_classifier(folder, files):
    for layer in (0, 1):
        predictor = Predictor(folder / "classifier", layer)
        model = load_classifier(folder / "classifier")[0].eval()
        batch = shown(files, predictor)
        expected = model.features(batch) if layer else model.encoder(batch)
        np.testing.assert_allclose(predictor.features(files), expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            predictor(files).probabilities, model(batch).softmax(1), atol=1e-5
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_many_images_by_workers(folder, files, workers):
    predictor = Predictor(folder / "classifier", layer=0, batch_size=2, workers=workers)
    outputs = list(predictor.over(open_images(files, Data()), np.arange(5)))
    assert [len(output.positions) for output in outputs] == [2, 2, 1]
    probabilities = torch.cat([output.logits for output in outputs]).softmax(1)
    np.testing.assert_allclose(probabilities, predictor(files).probabilities, atol=1e-6)


@pytest.mark.parametrize("whole", [True, False])
def test_torch_has_its_threads_again_afterwards(folder, files, monkeypatch, whole):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        predictor = Predictor(folder / "classifier", batch_size=2, workers=1)
        outputs = predictor.over(open_images(files, Data()), np.arange(5))
        next(outputs)
        assert torch.get_num_threads() == 1  # the worker needs the other processor
        list(outputs) if whole else outputs.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_over_leaves_unreadable_images_out(folder, files, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    bad = str(tmp_path / "bad.jpg")
    images = open_images([bad, files[0], bad, bad], Data(on_error="skip"))
    predictor = Predictor(folder / "classifier", batch_size=2, workers=0)
    outputs = list(predictor.over(images, np.arange(4)))
    assert [output.positions.tolist() for output in outputs] == [[1]]
    assert capsys.readouterr().out == ""  # standard output is for rows


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3)),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros(8, np.uint8),
        torch.zeros(3, 8, 8),
        None,
        7,
        b"encoded",
    ],
)
def test_what_is_no_image(folder, image):
    what = "an array of shape" if np.ndim(image) else type(image).__name__
    with pytest.raises(UserError, match=rf"^{what}.* is no image; give a path"):
        Predictor(folder / "classifier")([image])


def test_files_that_are_no_images(folder, tmp_path):
    predictor = Predictor(folder / "classifier")
    (tmp_path / "text.jpg").write_text("x")
    os.mkfifo(tmp_path / "fifo.jpg")  # to open it would wait for ever
    reasons = {"text.jpg": "not an image", "fifo.jpg": "no such", "missing.jpg": "no such"}
    for name, reason in {**reasons, ".": "a folder; give the files in it"}.items():
        with pytest.raises(UserError, match=rf"cannot read .*: {reason}"):
            predictor([tmp_path / name])


def test_the_wrong_artifact(folder, files, tmp_path):
    with pytest.raises(UserError, match="an encoder knows no classes"):
        Predictor(folder / "encoder")(files)
    with pytest.raises(UserError, match="name their layer"):
        Predictor(folder / "encoder").features(files)
    for layer in (-1, 2):
        with pytest.raises(UserError, match=rf"to 1, and no layer {layer}"):
            Predictor(folder / "classifier", layer)
    with pytest.raises(UserError, match="no such artifact folder"):
        Predictor(tmp_path / "x")


@pytest.mark.parametrize("value", [3e38, -3e38, 1e20])
def test_finite_weights_of_useless_outputs_are_refused(tmp_path, files, value):
    """Somebody may have written them, with a ``meta.json`` that notes their hash."""
    path = artifact(tmp_path / "evil\x1b[2J", ["a", "b", "c"])
    tensors, _ = load_tensors(path / "model.safetensors")
    tensors["linear.weight"].fill_(value)
    save_tensors(path / "model.safetensors", tensors, {})
    meta = json.loads((path / "meta.json").read_text())
    meta["weights_sha256"] = sha256(path / "model.safetensors")
    (path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(
        UserError, match=r"the outputs of .*evil\\x1b\[2J for 5 of 5 images are not"
    ) as told:
        Predictor(path)(files)
    assert printable(str(told.value)) == str(told.value)
    assert np.isfinite(Predictor(path, layer=0).features(files[:0])).all()
