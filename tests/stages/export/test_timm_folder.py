"""timm loads the folder; what timm has no place for is refused."""

import json
from dataclasses import replace

import huggingface_hub
import pytest
import timm
import torch
from timm.data.config import resolve_data_config

from shared.config.sections import Data
from shared.networks.resnet import SimCLRResNet
from stages.export.network import load
from tests.support.exported import DIGITS, SMALL, artifact, refused, run

SIZES = {"simclr_resnet8_1x_sk0": 8, "test_resnet": 32, "test_vit": 32, "test_efficientnet": 32}


@pytest.mark.parametrize(("encoder", "size"), SIZES.items())
def test_timm_loads_the_folder(tmp_path, capsys, encoder, size):
    data = Data(image_size=size, workers=0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    path = artifact(tmp_path / "r/s", DIGITS, data=data, model=replace(SMALL, encoder=encoder))
    assert run(path, "--to", "timm") == 0
    printed = capsys.readouterr().out
    assert ("shared.networks.encoders" in printed) == encoder.startswith("simclr")
    model = timm.create_model(f"local-dir:{path / 'timm'}", pretrained=True).eval()
    config = resolve_data_config({}, model=model)
    assert (config["input_size"], config["crop_pct"]) == ((3, size, size), 1.0)
    assert config["interpolation"] == "bicubic"
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    images = torch.rand(4, 3, size, size)
    logits = model((images - mean) / std)
    torch.testing.assert_close(logits.softmax(1), load(path).network(images), rtol=0, atol=1e-5)
    saved = json.loads((path / "timm/config.json").read_text())
    assert saved["label_names"] == DIGITS
    assert not {"license", "origin_url", "tag"} & saved["pretrained_cfg"].keys()


def test_an_encoder_gives_features(tmp_path):
    path = artifact(tmp_path / "r/pretrain")
    assert run(path, "--to", "timm", "-o", tmp_path / "out/of house") == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'out/of house'}", pretrained=True).eval()
    assert model.num_classes == 0
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 64)
    assert run(path, "--to", "timm", "-o", tmp_path / "out/of house") == 0  # again, in its place
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["of house"]


def test_what_timm_has_no_place_for(tmp_path, capfd, monkeypatch):
    teacher = artifact(tmp_path / "r/teacher", DIGITS, from_layer=1)
    assert "after layer 1 of the projection head" in refused(capfd, teacher, "--to", "timm")
    encoder = artifact(tmp_path / "r/pretrain")
    assert "choose --to onnx" in refused(capfd, encoder, "--to", "timm", "--layer", 2)
    path = artifact(tmp_path / "r/two", DIGITS)
    two_heads = lambda model: (model.fc, model.fc)  # noqa: E731 (as timm's distilled DeiT)
    monkeypatch.setattr(SimCLRResNet, "get_classifier", two_heads)
    assert "does not end in one linear layer" in refused(capfd, path, "--to", "timm")
    assert not any((p / "timm").exists() for p in (teacher, encoder, path))


def test_a_folder_with_other_files_is_not_replaced(tmp_path, capfd):
    path = artifact(tmp_path / "r/s", DIGITS)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("all of it")
    assert "is no folder of an earlier export" in refused(capfd, path, "--to=timm", "-o", mine)
    assert "exists and is no folder" in refused(capfd, path, "--to=timm", "-o", mine / "thesis.tex")
    assert (mine / "thesis.tex").read_text() == "all of it"


@pytest.mark.parametrize("content", ['{"architecture": "resnet18"}', "[]", "{", None])
def test_a_folder_of_the_hub_is_not_replaced(tmp_path, capfd, content):
    path = artifact(tmp_path / "r/s", DIGITS)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "model.safetensors").write_text("weights")
    if content is not None:
        (mine / "config.json").write_text(content)
    assert "is no folder of an earlier export" in refused(capfd, path, "--to=timm", "-o", mine)
    assert (mine / "model.safetensors").read_text() == "weights"


class Hub:
    """Stands in for the hub: it keeps what it gets, or refuses it."""

    def __init__(self):
        self.files, self.refusal = {}, None

    def create_repo(self, name, exist_ok):
        if self.refusal:
            raise self.refusal
        return type("Url", (), {"repo_id": f"me/{name}"})

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.files[repo_id] = sorted(file.name for file in folder_path.iterdir())


def test_push_to_hub(tmp_path, monkeypatch, capfd):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    path = artifact(tmp_path / "r/s", DIGITS)
    assert run(path, "--to", "timm", "--push_to_hub", "digits") == 0
    assert hub.files == {"me/digits": ["config.json", "model.safetensors"]}
    assert "https://huggingface.co/me/digits" in capfd.readouterr().out
    for hub.refusal in (OSError("no\nnetwork"), ValueError("a bad name"), RuntimeError("403")):
        assert run(path, "--to", "timm", "--push_to_hub", "digits") == 2
        err = capfd.readouterr().err
        assert err.count("\n") == 1
        assert "is written, but the hub did not take it" in err
