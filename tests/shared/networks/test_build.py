"""Networks from a configuration and from artifact folders, and the refusals of both."""

import json
import re

import pytest
import torch

from shared.config.sections import Data, Model
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
from shared.runtime.errors import UserError
from shared.runtime.tensors import save_tensors, sha256

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


def damaged(network, folder, change) -> str:
    """What is said of weights that were changed, behind meta.json's back and with its hash."""
    tensors = {name: value.clone() for name, value in network.state_dict().items()}
    change(tensors)
    meta = json.loads((folder / "meta.json").read_text())
    save_tensors(folder / "model.safetensors", tensors, {})
    with pytest.raises(UserError) as without:
        load_contrastive(folder)
    meta["weights_sha256"] = sha256(folder / "model.safetensors")
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError) as also:
        load_contrastive(folder)
    return f"{without.value} | {also.value}"


def test_weights_are_those_that_were_described(tmp_path):
    network = build_contrastive(META)
    folder = artifact(tmp_path, network, {**META, "kind": "encoder"})
    first = next(key for key in network.state_dict() if key.endswith("weight"))

    def infinite(tensors):
        tensors[first].view(-1)[3] = float("inf")

    def half(tensors):
        tensors[first] = tensors[first].half()

    def scalar(tensors):  # torch takes it all the same
        key = next(key for key in tensors if key.endswith("num_batches_tracked"))
        tensors[key] = tensors[key].reshape(1)

    says = damaged(network, folder, infinite)
    assert "its hash differs" in says
    assert "not finite" in says
    assert "torch.float16, needed is" in damaged(network, folder, half)
    assert "(1,) torch.int64, needed is () torch.int64" in damaged(network, folder, scalar)


@pytest.mark.parametrize("position", [-1, -1000, 2000])
def test_a_flipped_bit_is_found(tmp_path, position):
    folder = artifact(tmp_path, build_contrastive(META), {**META, "kind": "encoder"})
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[position] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model.safetensors"):
        load_contrastive(folder)


def test_a_file_that_is_far_too_large_is_not_read(tmp_path):
    folder = artifact(tmp_path, build_contrastive(META), {**META, "kind": "encoder"})
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="it has 1,099,511,627,776 bytes, at most"):
        load_contrastive(folder)
