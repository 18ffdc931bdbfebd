"""Heads and whole models against the authors' TensorFlow code."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shared.networks import resnet
from shared.networks.encoders import create_encoder
from shared.networks.heads import Classifier, ContrastiveModel, ProjectionHead, freeze
from tests.support import golden

LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
HEADS = ["nl1_d16", "nl2_d32", "nl3_d48", "nl3_d48_localbn"]
FINETUNED = ["ft_sel0_nl3", "ft_sel1_nl3", "ft_sel2_nl3", "ft_sel1_momentum_wd"]
FROZEN = ["ft_block2", "ft_block4_linear"]


def our_name(name, trunk):
    """Of a TensorFlow variable, its name in {encoder, head, linear}."""
    parts = name.split("/")
    if parts[0] == "resnet":
        return "encoder." + trunk["/".join(parts[-2:]).removeprefix("sync_")]
    if parts[0] == "head_supervised":
        return "linear." + LEAVES[parts[-1]]
    kind = "dense" if parts[2].startswith("dense") else "norm"
    return f"head.layers.{parts[1].removeprefix('nl_')}.{kind}.{LEAVES[parts[-1]]}"


def to_torch(array):
    """HWIO -> OIHW, (in, out) -> (out, in)."""
    tensor = torch.from_numpy(array)
    return (
        tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor
    )


def load_reference(model, case, arrays):
    """Fill ``model`` with the reference's weights; TensorFlow name -> ours, all of both."""
    trunk = resnet.reference_names(model.encoder) if hasattr(model, "encoder") else {}
    names = {name: our_name(name, trunk) for name in arrays[f"{case}/var_names"].tolist()}
    state = {
        names[name]: to_torch(golden.weight(name, json.loads(shape)))
        for name, shape in zip(names, arrays[f"{case}/var_shapes"].tolist(), strict=True)
    }
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert all(k.endswith("num_batches_tracked") for k in left.missing_keys)
    return names


def close(ours, expected, tolerance=1e-4):
    """Largest difference relative to the largest expected value."""
    expected = torch.as_tensor(expected).double()
    assert ours.shape == expected.shape
    assert (ours.double() - expected).abs().max() <= tolerance * expected.abs().max()


# The projection head


@pytest.fixture(scope="module")
def heads_model():
    return golden.load("heads_model.npz")


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_head(heads_model, case, dtype):
    arrays, meta = heads_model[0], heads_model[1][case]
    model = nn.ModuleDict(
        {"head": ProjectionHead(meta["in_dim"], meta["num_proj_layers"], meta["proj_out_dim"])}
    )
    names = load_reference(model, case, arrays)
    head = model["head"].to(dtype)
    assert sum(p.numel() for p in head.parameters()) == arrays[f"{case}/param_count_trainable"]
    x = torch.from_numpy(arrays[f"{case}/input"]).to(dtype).requires_grad_()
    for mode in ("eval", "train"):
        outputs = head.train(mode == "train")(x)
        assert len(outputs) == meta["num_proj_layers"] + 1
        for k, output in enumerate(outputs):
            close(output, arrays[f"{case}/{mode}/hiddens_list_{k}"])
        close(outputs[-1], arrays[f"{case}/{mode}/hiddens_list_-1"])
        close(outputs[-1], arrays[f"{case}/{mode}/proj_head_output"])
        assert [output.shape[1] for output in outputs] == head.widths
    loss = (outputs[-1] * torch.from_numpy(arrays[f"{case}/probe"])).mean()
    loss.backward()
    close(loss, arrays[f"{case}/train/probe_loss"])
    close(x.grad, arrays[f"{case}/train/grad_input"], 1e-3)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    compared = 0
    for key in arrays:
        if key.startswith(f"{case}/train/grad/"):
            gradient = parameters[names[key.removeprefix(f"{case}/train/grad/")]].grad
            close(gradient, to_torch(arrays[key]), 1e-3)
            compared += 1
        if key.startswith(f"{case}/train_updated/"):
            close(buffers[names[key.removeprefix(f"{case}/train_updated/")]], arrays[key], 1e-5)
            compared += 1
    assert compared == len(names)


@settings(max_examples=20, deadline=None)
@given(
    features=st.integers(1, 9),
    layers=st.integers(1, 4),
    out=st.integers(1, 9),
    hidden=st.none() | st.integers(1, 9),
)
def test_head_widths(features, layers, out, hidden):
    head = ProjectionHead(features, layers, out, hidden)
    outputs = head(torch.randn(3, features))
    middle = [features if hidden is None else hidden] * (layers - 1)
    assert [x.shape for x in outputs] == [(3, w) for w in [features, *middle, out]]
    for layer in head.layers:
        assert layer.dense.bias is None
        assert (layer.norm.bias is None) == (layer is head.layers[-1])
    assert all((x >= 0).all() for x in outputs[1:-1])
    torch.testing.assert_close(  # normalised over the batch, and not rectified
        outputs[-1].mean(0), torch.zeros(out), atol=2e-2, rtol=0
    )


def test_head_without_a_layer_gives_the_features():
    """Published encoders come without a head."""
    head, features = ProjectionHead(8, 0), torch.randn(3, 8)
    assert head.widths == [8]
    assert not head.state_dict()
    (output,) = head(features)
    assert output is features
    with pytest.raises(ValueError, match="0 layers or more, not -1"):
        ProjectionHead(8, -1)


# Whole models


class Reference(nn.Module):
    """The variables of the reference's model: trunk, whole head, linear layer on layer k."""

    def __init__(self, meta):
        super().__init__()
        sk = int(meta["sk_ratio"] > 0)
        self.encoder = create_encoder(f"simclr_resnet{meta['depth']}_1x_sk{sk}", meta["image_size"])
        width = self.encoder.head_hidden_size
        self.head = ProjectionHead(width, meta["num_proj_layers"], meta["proj_out_dim"])
        k = meta["ft_proj_selector"]
        self.linear = nn.Linear(self.head.widths[k], meta["num_classes"])


def reference(case, heads_model, views=1):
    arrays, meta = heads_model[0], heads_model[1][case]
    model = Reference(meta)
    names = load_reference(model, case, arrays)
    size = (meta["batch"], meta["image_size"], meta["image_size"])
    images = [golden.image(f"model/{case}/input{v or ''}", *size) for v in (0, 2)[:views]]
    exact = np.concatenate(images, axis=-1).astype(np.float64)
    np.testing.assert_allclose(
        arrays[f"{case}/input_sum_sumsq"], [exact.sum(), (exact**2).sum()], rtol=1e-6
    )
    x = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2)  # (views B, 3, H, W)
    labels = torch.from_numpy(arrays[f"{case}/labels"]).long()
    return model, names, x, labels, arrays, meta


def compare_gradients(case, arrays, names, parameters):
    norms = arrays[f"{case}/train/grad_norm"]
    absent = arrays[f"{case}/train/grad_is_none"]
    for name, norm, none in zip(
        arrays[f"{case}/trainable_names"].tolist(), norms, absent, strict=True
    ):
        parameter = parameters.get(names[name])
        if none:  # a head layer above the selected one
            assert parameter is None or parameter.grad is None
        else:
            close(parameter.grad.norm(), norm, 2e-2)  # float32 in TensorFlow
    stored = [key for key in arrays if key.startswith(f"{case}/train/grad/")]
    assert stored
    for key in stored:
        gradient = parameters[names[key.removeprefix(f"{case}/train/grad/")]].grad
        close(gradient, to_torch(arrays[key]), 1e-2)


def test_pretraining_model(heads_model):
    case = "pretrain_lineareval"
    reference_model, names, x, labels, arrays, meta = reference(case, heads_model, views=2)
    model, linear = (
        ContrastiveModel(reference_model.encoder, reference_model.head),
        reference_model.linear,
    )
    with torch.no_grad():
        close(model.eval()(x), arrays[f"{case}/eval/projection"])
        close(linear(model.encoder(x)), arrays[f"{case}/eval/logits"])
    reference_model.double().train()
    x = x.double()
    features = model.head(model.encoder(x))
    projection, logits = features[-1], linear(features[meta["ft_proj_selector"]].detach())
    close(projection, arrays[f"{case}/train/projection"], 1e-3)
    close(logits, arrays[f"{case}/train/logits"], 1e-3)

    # NT-Xent by its definition: each row picks its other view out of all rows but itself
    z = F.normalize(projection)
    similarity = (z @ z.T / meta["temperature"]).fill_diagonal_(-math.inf)
    contrastive = 2 * F.cross_entropy(similarity, torch.arange(8).roll(4))
    supervised = F.cross_entropy(logits, torch.cat([labels, labels]))
    decay = meta["weight_decay"] * 0.5 * linear.weight.square().sum()
    close(contrastive, arrays[f"{case}/train/contrastive_loss"])
    close(supervised, arrays[f"{case}/train/sup_loss"])
    close(decay, arrays[f"{case}/train/weight_decay_loss"])
    loss = contrastive + supervised + decay
    close(loss, arrays[f"{case}/train/total_loss"])
    loss.backward()
    compare_gradients(case, arrays, names, dict(reference_model.named_parameters()))


@pytest.mark.parametrize("case", FINETUNED + FROZEN)
def test_finetuned_model(heads_model, case):
    reference_model, names, x, labels, arrays, meta = reference(case, heads_model)
    selector = meta["ft_proj_selector"]
    model = Classifier(reference_model.encoder, meta["num_classes"], reference_model.head, selector)
    model.linear.load_state_dict(reference_model.linear.state_dict())
    reference_model.linear = model.linear
    with torch.no_grad():
        close(model.eval()(x), arrays[f"{case}/eval/logits"])

    reference_model.double()
    x = x.double()
    if case in FROZEN:
        freeze(model, meta["fine_tune_after_block"])
        trainable = {names[n] for n in arrays[f"{case}/trainable_names"].tolist()}
        assert {n for n, p in reference_model.named_parameters() if p.requires_grad} == trainable
        assert not any(m.training for part in model.frozen for m in part.modules())
        model.frozen = ()  # the reference's frozen blocks go on using the batch
    model.train()
    logits = model(x)
    close(logits, arrays[f"{case}/train/logits"], 1e-3)
    loss = F.cross_entropy(logits, labels)
    close(loss, arrays[f"{case}/train/sup_loss"], 1e-3)
    parameters = dict(reference_model.named_parameters())
    if meta["optimizer"] == "lars":
        decayed = [model.linear.weight]
    else:  # everything that is trained and not batch norm
        decayed = [p for n, p in parameters.items() if p.ndim > 1 or n == "linear.bias"]
    decay = meta["weight_decay"] * 0.5 * sum(p.square().sum() for p in decayed)
    close(decay, arrays[f"{case}/train/weight_decay_loss"])
    total = loss + decay
    close(total, arrays[f"{case}/train/total_loss"], 1e-3)
    total.backward()
    compare_gradients(case, arrays, names, parameters)


def test_classifier_loads_what_pretraining_saved():
    encoder = create_encoder("simclr_resnet8_1x_sk0", 8)
    pretrained = ContrastiveModel(encoder, ProjectionHead(64, 3, 16))
    state = {k.removeprefix("head."): v for k, v in pretrained.state_dict().items()}
    for k in range(4):
        head = ProjectionHead(64, 3, 16)
        classifier = Classifier(create_encoder("simclr_resnet8_1x_sk0", 8), 5, head, k)
        left = classifier.load_state_dict(state, strict=False)
        assert set(left.missing_keys) == {"linear.weight", "linear.bias"}
        assert all(key.startswith("layers.") for key in left.unexpected_keys)
        images = torch.rand(4, 3, 8, 8)
        pretrained.eval(), classifier.eval()
        torch.testing.assert_close(classifier.features(images), pretrained.head(encoder(images))[k])
        assert classifier(images).shape == (4, 5)
        assert not classifier(images).any()  # the linear layer starts at zero


@pytest.mark.parametrize("k", [-1, 4])
def test_classifier_refuses_layers_that_are_not_there(k):
    encoder = create_encoder("simclr_resnet8_1x_sk0", 8)
    with pytest.raises(ValueError, match=f"cannot keep {k} layers .* of 3: choose 0 to 3"):
        Classifier(encoder, 5, ProjectionHead(64, 3, 16), k)
    with pytest.raises(ValueError, match=f"cannot keep {k} layers .* of 0: choose 0 to 0"):
        Classifier(encoder, 5, head_layers=k)


@pytest.mark.parametrize("name", ["simclr_resnet8_1x_sk0", "test_vit2", "mobilenetv3_small_050"])
def test_frozen_encoder_never_changes(name):
    torch.manual_seed(0)
    encoder = create_encoder(name, 32)
    head = ProjectionHead(encoder.head_hidden_size, 2, 8)
    model = Classifier(encoder, 3, head, 1)
    freeze(model)
    model.eval().train()
    assert not any(m.training for m in encoder.modules())
    assert not model.layers.training  # the kept layers count as part of the encoder
    before = copy.deepcopy(encoder.state_dict())
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    for _ in range(2):
        F.cross_entropy(model(torch.rand(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    assert model.linear.weight.any()
    assert copy.deepcopy(model).train().frozen[0].training is False


def test_freeze_by_block():
    model = Classifier(create_encoder("simclr_resnet18_1x_sk0", 32), 3)
    freeze(model, -1)
    assert all(p.requires_grad for p in model.parameters())
    freeze(model, 0)
    assert model.frozen == (model.encoder.stem,)
    for wrong in (-2, 5):
        with pytest.raises(ValueError, match=f"after_block is {wrong}; .* 4 groups .* -1 .* to 4"):
            freeze(model, wrong)
    with pytest.raises(ValueError, match="VisionTransformer has no numbered groups"):
        freeze(Classifier(create_encoder("test_vit2", 32), 3), 1)


def test_bfloat16_autocast_and_channels_last():
    torch.manual_seed(0)
    encoder = create_encoder("simclr_resnet50_1x_sk1", 16)
    head = ProjectionHead(encoder.head_hidden_size, 3, 16)
    models = [ContrastiveModel(encoder, head), Classifier(encoder, 5, head, 1)]
    images = torch.rand(4, 3, 16, 16).to(memory_format=torch.channels_last)
    for model in models:
        model.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(images)
        assert output.dtype == (torch.float32 if model is models[1] else torch.bfloat16)
        output.float().square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert models[1].double()(images.double()).dtype == torch.float64


# Initialisation


def test_initialisation():
    arrays, meta = golden.load("init_stats.npz")
    torch.manual_seed(0)
    for case, flags in meta.items():
        names = arrays[f"{case}/var_names"].tolist()
        sk = int(flags.get("sk_ratio", 0) > 0)
        encoder = create_encoder(
            f"simclr_resnet{flags['resnet_depth']}_1x_sk{sk}", flags["image_size"]
        )
        model = ContrastiveModel(encoder, ProjectionHead(encoder.head_hidden_size))
        trunk, tensors = resnet.reference_names(encoder), model.state_dict()
        for name, shape, stats in zip(
            names, arrays[f"{case}/var_shapes"], arrays[f"{case}/mean_std_min_max"], strict=True
        ):
            if name.startswith("head_supervised"):
                continue  # zero in ours: see Classifier
            mean, std, low, high = (float(s) for s in stats)
            w = tensors[our_name(name, trunk)].double()
            assert w.numel() == np.prod(json.loads(str(shape)))
            if std == 0:
                assert w.min() == w.max() == mean
                continue
            error = 6 / math.sqrt(w.numel())  # six standard errors, of both samples
            assert abs(float(w.mean()) - mean) < error * std * math.sqrt(2)
            assert abs(float(w.std()) / std - 1) < error
            if name.startswith("resnet"):  # cut at two deviations of the uncut distribution
                bound = 2 / 0.87962566 / math.sqrt(w[0].numel())
                assert 0.98 * bound < w.abs().max() < bound * (1 + 1e-6)
                assert -bound * (1 + 1e-6) < low < high < bound * (1 + 1e-6)
                assert abs(float(w.std()) * math.sqrt(w[0].numel()) - 1) < error
            else:
                assert abs(float(w.std()) / 0.01 - 1) < error
                assert w.abs().max() > 0.03  # not cut
