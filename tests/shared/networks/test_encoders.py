"""Encoders: creation and its checks, recomputed activations, folded batch norms."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from shared.networks import encoders
from shared.networks.batchnorm import BatchNorm
from shared.networks.encoders import (
    checkpoint_activations,
    create_encoder,
    feature_map,
    fetch_weights,
    fold_batch_norm,
    map_size,
    outside_of_map,
    takes_size,
)
from shared.networks.heads import Classifier, ProjectionHead

# Creation


def test_family_gets_the_stem_of_its_image_size():
    for size, modules in ((32, 3), (33, 4)):
        assert len(create_encoder("simclr_resnet18_1x_sk0", size).stem) == modules
    assert len(create_encoder("simclr_resnet18_1x_sk0", 32, small_stem=False).stem) == 4
    assert len(create_encoder("simclr_resnet18_1x_sk0", 33, small_stem=True).stem) == 3
    assert create_encoder("simclr_resnet8_1x_sk0", 48).training


@pytest.mark.parametrize(
    "name", ["test_vit2", "test_convnext2", "test_byobnet", "test_efficientnet"]
)
def test_any_timm_model(name):
    encoder = create_encoder(name, 48)
    assert encoder.eval()(torch.rand(2, 3, 48, 48)).shape == (2, encoder.head_hidden_size)


def test_the_dry_run_leaves_no_trace():
    torch.manual_seed(0)
    encoder = create_encoder("test_efficientnet", 32)
    torch.manual_seed(0)
    same = timm.create_model("test_efficientnet", num_classes=0)
    assert encoder.training
    for k, v in same.state_dict().items():
        assert torch.equal(encoder.state_dict()[k], v)


def test_unknown_encoder():
    with pytest.raises(ValueError, match="unknown encoder 'simclr_resnet50_5x_sk1': did you mean"):
        create_encoder("simclr_resnet50_5x_sk1", 32)
    with pytest.raises(ValueError, match=r"unknown encoder 'resnet50\.no_such_tag': did you mean"):
        create_encoder("resnet50.no_such_tag", 32)
    with pytest.raises(ValueError, match=r"unknown encoder '@': timm\.list_models"):
        create_encoder("@", 32)


def test_no_pretrained_weights():
    with pytest.raises(ValueError, match="no pretrained weights of 'simclr_resnet18_1x_sk0'"):
        create_encoder("simclr_resnet18_1x_sk0", 32, pretrained=True)


# Feature maps

SWIN = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}


@pytest.mark.parametrize(
    ("name", "options"),
    [("simclr_resnet8_1x_sk0", {}), ("test_resnet", {}), ("swin_tiny_patch4_window7_224", SWIN)],
)
def test_the_mean_of_the_map_is_what_is_pooled(name, options):
    """Of convolutional networks, and of those with channels last."""
    encoder = create_encoder(name, 32, **options).eval()
    images = torch.rand(2, 3, 32, 32)
    features = feature_map(encoder, images)
    assert features.shape[1:] == (encoder.head_hidden_size, *features.shape[2:])
    assert map_size(encoder, 32) == features.shape[1:3]
    assert torch.allclose(features.mean((2, 3)), encoder(images), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "others"),
    [("test_vit", {}, 1), ("test_vit2", {}, None), ("test_vit", {"reg_tokens": 5}, 6)],
)
def test_patches_of_a_transformer_lie_as_in_the_image(name, options, others):
    encoder = create_encoder(name, 64, **options).eval()
    others = encoder.num_prefix_tokens if others is None else others
    images = torch.rand(2, 3, 64, 64)
    tokens, features = encoder.forward_features(images), feature_map(encoder, images)
    side = features.shape[3]
    assert side**2 + others == tokens.shape[1]
    assert torch.equal(features[:, :, 1, 2], tokens[:, others + side + 2])


def test_an_encoder_without_a_map_is_refused():
    encoder = timm.create_model("crossvit_tiny_240", num_classes=0, depth=((1, 1, 0),))
    with pytest.raises(ValueError, match="CrossVit has no feature map, which this task needs"):
        map_size(encoder, 240)


def test_what_lies_above_the_map_is_named_and_nothing_is_counted():
    encoder = create_encoder("test_convnext", 32)
    weights = {id(weight) for weight in outside_of_map(encoder, 32)}
    names = [name for name, weight in encoder.named_parameters() if id(weight) in weights]
    assert names == ["head.norm.weight", "head.norm.bias"]
    family = create_encoder("simclr_resnet8_1x_sk0", 8)
    before = copy.deepcopy(family.state_dict())
    assert outside_of_map(family, 8) == []
    assert family.training
    assert all(torch.equal(value, before[key]) for key, value in family.state_dict().items())


# Published weights


def file_of(name: str, path: Path) -> dict[str, torch.Tensor]:
    """Made-up published weights, with timm's classifier."""
    torch.manual_seed(7)
    tensors = timm.create_model(name).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return tensors


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache, and a hub that cannot be reached; the calls of it are noted."""
    calls = []

    def head(url, **options):
        calls.append(url)
        raise OSError("no network")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(encoders, "get_session", lambda: SimpleNamespace(head=head))
    return calls


def in_cache(name: str, cache: Path) -> dict[str, torch.Tensor]:
    repository = cache / f"models--{timm.get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    return file_of(name, repository / "snapshots" / ("0" * 40) / "model.safetensors")


@pytest.mark.parametrize("name", ["test_vit2", "test_byobnet", "resnet18"])
@pytest.mark.parametrize("source", ["cache", "file"])
def test_published_weights_are_the_encoders(name, source, hub, tmp_path):
    if source == "cache":
        published, pretrained = in_cache(name, tmp_path / "cache"), True
    else:
        published = file_of(name, tmp_path / "weights.safetensors")
        pretrained = str(tmp_path / "weights.safetensors")
    size = timm.get_pretrained_cfg(name).input_size[-1]
    torch.manual_seed(0)
    for key, value in create_encoder(name, size, pretrained=pretrained).state_dict().items():
        assert torch.equal(value, published[key])
    other = create_encoder(name, 64, pretrained=pretrained)  # a ViT's positions are resized
    assert other.eval()(torch.rand(1, 3, 64, 64)).isfinite().all()
    assert hub == []


@pytest.mark.parametrize("offline", [False, True])
def test_weights_that_cannot_be_reached_are_one_line_and_one_call(offline, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(ValueError) as refused:
        fetch_weights("resnet18", True)
    message = str(refused.value)
    assert "timm/resnet18.a1_in1k/model.safetensors cannot be reached" in message
    assert ("HF_HUB_OFFLINE is set" if offline else "no network") in message
    assert "give their .safetensors file in place of true, or start without: false" in message
    assert "\n" not in message
    assert len(hub) == (0 if offline else 1)


def test_a_file_that_holds_no_weights_of_the_encoder(tmp_path):
    path = tmp_path / "weights.safetensors"
    file_of("test_byobnet", path)
    with pytest.raises(
        ValueError, match=r"holds no weights of 'resnet18': no conv1\.weight of 64x3"
    ):
        create_encoder("resnet18", 64, pretrained=str(path))
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights\.safetensors is no safetensors file"):
        create_encoder("resnet18", 64, pretrained=str(path))
    for wrong in (str(tmp_path), str(tmp_path / "missing.safetensors"), __file__):
        with pytest.raises(ValueError, match=r"give true, false or a \.safetensors file"):
            fetch_weights("resnet18", wrong)


@pytest.mark.parametrize(
    ("name", "made_for", "others", "not_taken"),
    [
        ("resnet18", 224, (32, 96), ()),
        ("test_vit", 160, (), (32, 96)),
        ("simclr_resnet18_1x_sk0", 32, (8, 16), (33, 224)),
        ("simclr_resnet18_1x_sk0", 224, (33, 96), (32, 8)),
    ],
)
def test_which_other_sizes_weights_take(name, made_for, others, not_taken):
    assert takes_size(name, made_for, made_for)
    assert all(takes_size(name, made_for, size) for size in others)
    assert not any(takes_size(name, made_for, size) for size in not_taken)


# Image sizes


@pytest.mark.parametrize(
    ("name", "size"), [("vit_tiny_patch16_224", 20), ("vit_tiny_patch16_224", 8), ("dla34", 4)]
)
def test_image_size_that_does_not_fit(name, size):
    with pytest.raises(ValueError, match=f"'{name}' cannot take images of {size}x{size} .* choose"):
        create_encoder(name, size)


def test_a_huge_encoder_costs_nothing_on_the_meta_device():
    with torch.device("meta"):
        encoder = create_encoder("simclr_resnet152_3x_sk1", 224)
        model = Classifier(encoder, 1000, ProjectionHead(encoder.head_hidden_size), 1)
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in encoder.parameters()) == 794_704_160
    assert sum(isinstance(m, BatchNorm) for m in model.layers.modules()) == 1


# Recomputed activations


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_checkpointed_activations_of_timm_encoders(name):
    """Those without batch norm; drop path is the same in both passes. Ours: test_resnet.py."""
    encoder = create_encoder(name, 32, drop_path_rate=0.3)
    saved = []

    def gradients(encoder):
        torch.manual_seed(0)
        x = torch.rand(3, 3, 32, 32)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.append(t.numel()) or t, lambda t: t
        ):
            loss = encoder(x).square().sum()
        loss.backward()
        return [p.grad for p in encoder.parameters()]

    plain = gradients(copy.deepcopy(encoder))
    kept = sum(saved)
    saved.clear()
    checkpoint_activations(encoder)
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(encoder), strict=True))
    assert sum(saved) < kept / 2


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda: create_encoder("test_resnet", 32), "ResNet has batch norm"),
        (lambda: nn.Linear(2, 2), "Linear knows no checkpoint_activations"),
    ],
)
def test_activations_that_cannot_be_checkpointed(encoder, message):
    with pytest.raises(ValueError, match=message):
        checkpoint_activations(encoder())


# Folded batch norms


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("simclr_resnet8_1x_sk0", 0),
        ("simclr_resnet50_1x_sk1", 0),
        ("simclr_resnet18_1x_sk0_se", 0),
        ("resnet18", 0),
        ("mobilenetv3_small_050", None),
        ("vit_tiny_patch16_224", 0),
    ],
)
def test_folded_batch_norm_changes_nothing(name, left):
    """In ours and timm's; where a norm is no plain one, as in MobileNet, it stays."""
    torch.manual_seed(0)
    encoder = create_encoder(name, 32).eval().requires_grad_(False)
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.1)
    before = copy.deepcopy(encoder.state_dict())
    images = torch.rand(2, 3, 32, 32)
    folded = fold_batch_norm(encoder)
    expected = encoder(images)
    torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-5)
    kept = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(kept) == (len(norms) if left is None else left)
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in before.items())


def test_a_shared_convolution_or_an_unknown_network_is_not_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), BatchNorm(4)

        def forward(self, x):
            y = self.conv(x)
            return y + self.norm(y)

    class Branching(Shared):
        def forward(self, x):
            return self.norm(self.conv(x)) if x.sum() > 0 else x

    images = torch.rand(2, 3, 8, 8)
    for network in (Shared().eval(), Branching().eval()):
        torch.nn.init.normal_(network.norm.running_mean)
        torch.testing.assert_close(fold_batch_norm(network)(images), network(images))
    assert fold_batch_norm(network) is network
