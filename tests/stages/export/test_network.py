"""The exported network is the artifact's, with normalisation and softmax inside."""

import json

import pytest
import torch

from shared.config.sections import Data
from shared.data.batches import normalize
from shared.networks.build import load_classifier, load_contrastive
from shared.runtime.errors import UserError
from stages.export.network import load
from tests.support.exported import artifact

ODD = ['a "b"', "c\nd", "\udcff", "</script>", "=1+1", "", "名前"]
DATA = Data(image_size=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("artifacts")
    return artifact(root / "r/classifier", ODD, from_layer=1), artifact(root / "r/encoder")


def test_probabilities_and_features_are_those_of_the_artifact(paths):
    classifier, encoder = paths
    images = torch.rand(5, 3, 8, 8)
    normalised = normalize(images, DATA)
    model, _ = load_classifier(classifier)
    torch.testing.assert_close(
        load(classifier).network(images), model.eval()(normalised).softmax(1)
    )
    pretrained, _ = load_contrastive(encoder)
    outputs = pretrained.eval().head(pretrained.encoder(normalised))
    assert load(encoder).layer == 0
    for layer, expected in enumerate(outputs):
        torch.testing.assert_close(load(encoder, layer).network(images), expected)
    kept = model.features(normalised)
    torch.testing.assert_close(load(classifier, 1).network(images), kept)
    assert load(classifier, 1).output == "features"


def test_notes_are_ascii_whatever_a_class_is_called(paths):
    notes = load(paths[0]).notes()
    assert all(text.isascii() and "\n" not in text for text in notes.values())
    read = {key: json.loads(text) for key, text in notes.items()}
    assert read["classes"] == ODD
    assert read["source"]["weights_sha256"] == load(paths[0]).meta["weights_sha256"]
    assert read["preprocessing"]["crop_share"] == 1
    assert read["preprocessing"]["antialias"] is False
    assert json.loads(load(paths[1]).notes()["classes"]) == []


def test_the_preprocessing_follows_the_artifact(tmp_path):
    photos = Data(image_size=36)
    shown = load(artifact(tmp_path / "r/s", ["a"], data=photos, antialias=True)).preprocessing()
    assert (shown["image_size"], shown["crop_share"], shown["antialias"]) == (36, 0.875, True)


@pytest.mark.parametrize(("which", "layer"), [(0, 2), (0, -1), (1, 3), (1, -1)])
def test_a_layer_that_is_not_there(paths, which, layer):
    with pytest.raises(UserError, match=f"--layer {layer}: .* has the layers 0 .* to"):
        load(paths[which], layer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "assessment"}, "kind assessment; a classifier or an encoder"),
        ({"encoder": "resnet1"}, "unknown encoder 'resnet1'"),
        ({"classes": ["a"]}, "does not fit the network"),
    ],
)
def test_what_is_no_network(tmp_path, change, message):
    path = artifact(tmp_path / "r/s", ["a", "b"])
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(UserError, match=message):
        load(path)
    with pytest.raises(UserError, match="no such artifact folder"):
        load(tmp_path / "elsewhere")
