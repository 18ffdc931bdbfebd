"""Networks from a configuration and from artifact folders, and the refusals of both."""

import json
import re

import pytest
import torch

from shared.config.schema import Data, Model
from shared.networks.build import (
    build_classifier,
    build_contrastive,
    build_encoder,
    keep_layers,
    load_classifier,
    load_contrastive,
    network_meta,
    require_same_input,
)
from shared.runtime.artifacts import save_tensors, sha256
from shared.runtime.errors import UserError

MODEL = Model(encoder="simclr_resnet8_1x_sk0", head_layers=2, head_width=16, head_out=8)
META = network_meta(MODEL, Data(image_size=8))
CLASSES = {"classes": ["cat", "dog", "owl"], "from_layer": 1}


def artifact(folder, network, meta):
    save_tensors(folder / "model.safetensors", network.state_dict(), {})
    complete = {**meta, "weights_sha256": sha256(folder / "model.safetensors")}
    (folder / "meta.json").write_text(json.dumps(complete))
    return folder


def test_a_description_survives_json_and_builds_the_network():
    model = build_contrastive(json.loads(json.dumps(META)))
    assert model.head.widths == [64, 16, 8]
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 8)
    classifier = build_classifier({**META, **CLASSES})
    assert len(classifier.layers) == 1
    assert classifier.linear.in_features == 16
    assert build_classifier({**META, **CLASSES, "from_layer": 0}).linear.in_features == 64


def test_artifacts_give_back_their_networks(tmp_path):
    for name, kind, build, load in (
        ("encoder", {"kind": "encoder"}, build_contrastive, load_contrastive),
        ("classifier", {"kind": "classifier", **CLASSES}, build_classifier, load_classifier),
    ):
        (tmp_path / name).mkdir()
        meta = {**META, **kind}
        network = build(meta)
        loaded, read = load(artifact(tmp_path / name, network, meta))
        assert meta.items() <= read.items()
        for key, value in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)


def test_refusals_are_messages_to_the_user(tmp_path):
    with pytest.raises(UserError, match=r"encoder vit_tiny_patch16_224 at 20 pixels: .* choose"):
        build_encoder("vit_tiny_patch16_224", 20)
    with pytest.raises(UserError, match=r"from_layer=3: cannot keep 3 layers .* choose 0 to 2"):
        keep_layers(build_contrastive(META), 3, 5)
    other = build_contrastive({**META, "head": {"layers": 1, "width": None, "out": 8}})
    artifact(tmp_path, other, {**META, "kind": "encoder"})
    with pytest.raises(UserError, match=r"does not fit the network that meta.json describes"):
        load_contrastive(tmp_path)


def test_the_configuration_must_give_the_images_of_training(tmp_path):
    require_same_input(META, Data(image_size=8), tmp_path)
    with pytest.raises(UserError, match=re.escape("data.image_size=8, now it is 16; give")):
        require_same_input(META, Data(image_size=16), tmp_path)
    with pytest.raises(UserError, match=re.escape("data.std=[1.0, 1.0, 1.0], now it is [0.5")):
        require_same_input(META, Data(image_size=8, std=(0.5, 0.5, 0.5)), tmp_path)
    with pytest.raises(UserError, match=re.escape("data.antialias=False, now it is True; give")):
        require_same_input(META, Data(image_size=8, antialias=True), tmp_path)
    of_an_earlier_version = {key: value for key, value in META.items() if key != "antialias"}
    require_same_input(of_an_earlier_version, Data(image_size=8, antialias=True), tmp_path)
