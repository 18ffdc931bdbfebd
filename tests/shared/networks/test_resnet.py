"""The SimCLRv2 family against the recorded numbers of the authors' TensorFlow code."""

import copy
import json
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shared.networks import resnet
from shared.networks.batchnorm import BatchNorm
from tests.support import golden

VARIANTS = [
    "r18_w1_cifar32",
    "r18_w1_cifar32_localbn",
    "r18_w1_64",
    "r50_w1_sk0_75odd",
    "r50_w1_sk1_64",
    "r50_w1_se0.25_64",
    pytest.param("r50_w1_sk0_64", marks=pytest.mark.slow),
    pytest.param("r50_w1_sk1_cifar32", marks=pytest.mark.slow),
    pytest.param("r50_w1_sk0_224", marks=pytest.mark.slow),
    pytest.param("r50_w2_sk0_64", marks=pytest.mark.slow),
]
CIFAR = ("resnet8", "resnet14", "resnet20")
STAGES = ["initial_conv", "initial_max_pool", *(f"block_group{g}" for g in (1, 2, 3, 4))]


def leaf(name):
    """Of a TensorFlow name, what `reference_names` counts: ``conv2d_3/kernel``."""
    return "/".join(name.split("/")[-2:]).removeprefix("sync_")


def load_reference(model, names, shapes):
    """Put the reference's weights into ``model``; every variable must find its place."""
    ours, state = resnet.reference_names(model), {}
    assert {leaf(n) for n in names} == ours.keys()
    for name, shape in zip(names, shapes, strict=True):
        weight = torch.from_numpy(golden.weight(name, json.loads(shape)))
        state[ours[leaf(name)]] = weight.permute(3, 2, 0, 1) if weight.ndim == 4 else weight
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert all(k.endswith("num_batches_tracked") for k in left.missing_keys)


def assert_near(ours, expected, tolerance):
    """Largest difference relative to the largest expected value."""
    ours = np.asarray(ours.detach() if isinstance(ours, torch.Tensor) else ours, dtype=np.float64)
    assert ours.shape == np.shape(expected)
    assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()


def run_with_stages(model, x):
    """Features, and the feature map of every stage as NHWC."""
    convs = [m for m in model.stem if isinstance(m, nn.Conv2d)]
    stages = {}

    def keep(name):
        return lambda module, args, output: stages.update(
            {name: output.detach().permute(0, 2, 3, 1).clone()}
        )

    modules = [convs[-1], model.stem, *model.groups]
    hooks = [m.register_forward_hook(keep(s)) for s, m in zip(STAGES, modules, strict=False)]
    features = model(x)
    for hook in hooks:
        hook.remove()
    assert list(stages) == STAGES[: len(modules)]
    return features, stages


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    arrays, meta = golden.load(f"resnet/{request.param}.npz")
    name = f"simclr_resnet{meta['depth']}_{meta['width']}x_sk{int(meta['sk'] > 0)}"
    name += "_se" if meta["se"] else ""
    model = timm.create_model(name, small_stem=meta["cifar_stem"])
    load_reference(model, arrays["var_names"].tolist(), arrays["var_shapes"].tolist())
    scope = f"resnet/{request.param}"
    x = golden.image(f"{scope}/input", meta["batch"], meta["size"], meta["size"])
    exact = x.astype(np.float64)
    np.testing.assert_allclose(
        arrays["input_sum_abssum"], [exact.sum(), (exact**2).sum()], rtol=1e-6
    )
    np.testing.assert_array_equal(arrays["input_head"], x.flatten()[:12])
    x = torch.from_numpy(x).permute(0, 3, 1, 2)  # (B, 3, H, W)
    return SimpleNamespace(model=model, arrays=arrays, meta=meta, x=x, scope=scope)


def test_parameter_counts(variant):
    model = variant.model
    trainable = sum(p.numel() for p in model.parameters())
    statistics = sum(b.numel() for b in model.buffers() if b.ndim)
    assert trainable == variant.arrays["param_count_trainable"]
    assert trainable + statistics == variant.arrays["param_count_all"]


def test_evaluation(variant):
    model, arrays = variant.model.eval(), variant.arrays
    with torch.no_grad():
        assert_near(model(variant.x), arrays["eval/final_avg_pool"], 1e-5)
        features, stages = run_with_stages(copy.deepcopy(model).double(), variant.x.double())
    assert_near(features, arrays["eval/final_avg_pool_f64"], 1e-10)
    for name, x in stages.items():
        key = f"eval/{name}"
        assert list(x.shape) == arrays[f"{key}/shape"].tolist()
        assert_near(x.abs().mean(), arrays[f"{key}/absmean"], 1e-5)
        assert_near(x.std(correction=0), arrays[f"{key}/std"], 1e-5)
        assert_near(x.mean((0, 1, 2)), arrays[f"{key}/channel_mean"], 1e-5)
        assert_near(x.mean(3), arrays[f"{key}/pixel_mean"], 1e-5)


def test_training(variant):
    model, arrays = copy.deepcopy(variant.model).double().train(), variant.arrays
    features, stages = run_with_stages(model, variant.x.double())
    assert_near(features, arrays["train/final_avg_pool_f64"], 1e-8)
    for name, x in stages.items():
        assert_near(x.abs().mean(), arrays[f"train/{name}/absmean_f64"], 1e-8)

    probe = torch.from_numpy(golden.normal(f"{variant.scope}/probe", tuple(features.shape)))
    loss = (features * probe).mean()
    loss.backward()
    assert_near(loss, arrays["train/probe_loss_f64"], 1e-8)
    ours, tensors = resnet.reference_names(model), dict(model.named_parameters())
    gradients = {name: tensors[ours[leaf(name)]].grad for name in arrays["train/grad_var_names"]}
    for g, norm in zip(gradients.values(), arrays["train/grad_norm_f64"], strict=True):
        assert_near(g.norm(), norm, 1e-7)
    stored = [key for key in arrays if key.startswith("train_grad/")]
    assert len(stored) == 4
    for (
        key
    ) in stored:  # float32 only, and TensorFlow's own noise is 3 %, with selective kernels 50 %
        g = gradients[key.removeprefix("train_grad/")]
        g = (g.permute(2, 3, 1, 0) if g.ndim == 4 else g).numpy()
        if not variant.meta["sk"]:
            assert np.linalg.norm(g - arrays[key]) < 0.1 * np.linalg.norm(g)

    buffers = dict(model.named_buffers())
    updated = [key for key in arrays if key.startswith("train_updated_f64/")]
    assert len(updated) == 12
    for key in updated:
        assert_near(buffers[ours[leaf(key)]], arrays[key], 1e-7)  # Keras' decay is a float32 0.9


def test_the_generator_of_weights():
    arrays, shapes = golden.load("generator_check.npz")
    for name, shape in shapes.items():
        for kind, draw in (("w", golden.weight), ("w_tiled", golden.weight_tiled)):
            w = draw(name, shape)
            np.testing.assert_array_equal(w.flatten()[:8], arrays[f"{kind}/{name}/head"])
            w = w.astype(np.float64)
            np.testing.assert_allclose(
                [w.sum(), np.abs(w).sum()], arrays[f"{kind}/{name}/sum_abssum"], rtol=1e-6
            )
    np.testing.assert_array_equal(
        golden.uniform("input_check", (5,)), arrays["uniform/input_check"]
    )


@pytest.mark.parametrize(
    ("name", "small_stem", "count"),
    [
        ("simclr_resnet18_1x_sk0", False, 11_180_736),
        ("simclr_resnet18_1x_sk0", True, 11_173_056),
        ("simclr_resnet34_1x_sk0", False, 21_288_896),
        ("simclr_resnet50_1x_sk0", False, 23_508_032),
        ("simclr_resnet50_1x_sk1", False, 35_215_584),
        ("simclr_resnet50_2x_sk0", False, 93_907_072),
        ("simclr_resnet50_2x_sk1", False, 140_306_048),
        ("simclr_resnet101_1x_sk1", False, 64_662_304),
        ("simclr_resnet152_3x_sk1", False, 794_704_160),
        ("simclr_resnet50_1x_sk0_se", False, 26_039_024),
    ],
)
def test_trunk_sizes(name, small_stem, count):
    with torch.device("meta"):
        model = timm.create_model(name, small_stem=small_stem)
    assert sum(p.numel() for p in model.parameters()) == count
    assert all(p.is_meta for p in model.parameters())


def test_every_name_of_the_rule_is_registered():
    names = timm.list_models("simclr_resnet*")
    assert len(names) == len(resnet.BLOCKS) * 4 * 2 * 2
    for depth in resnet.BLOCKS:
        for name in (f"simclr_resnet{depth}_4x_sk1", f"simclr_resnet{depth}_2x_sk0_se"):
            assert name in names
    for depth, blocks in resnet.BLOCKS.items():  # the number that names a ResNet
        layers = 2 + (3 if depth >= 50 else 2) * sum(blocks)
        assert layers == depth


@pytest.mark.parametrize("depth", resnet.SMALL_DEPTHS)
def test_cifar_networks(depth):
    """He et al. 2016, section 4.2: widths 16, 32, 64 on maps of 32, 16, 8."""
    model = timm.create_model(f"simclr_resnet{depth}_2x_sk0").eval()
    features, stages = run_with_stages(model, torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 128)
    shapes = [(2, 32, 32, 32)] * 3 + [(2, 16, 16, 64), (2, 8, 8, 128)]
    assert [x.shape for x in stages.values()] == shapes
    with pytest.raises(ValueError, match=f"depth {depth} has the small-image stem only"):
        timm.create_model(f"simclr_resnet{depth}_2x_sk0", small_stem=False)


def test_unknown_depth():
    with pytest.raises(ValueError, match="depth is 19; choose one of 8, 14, 20, 18"):
        resnet.SimCLRResNet(19)


def windows(x, size, before, after, stride, fill):
    """Every window of the padded ``x`` (H, W), by hand."""
    x = np.pad(x, [(b, a) for b, a in zip(before, after, strict=True)], constant_values=fill)
    rows, columns = ((n - size) // stride + 1 for n in x.shape)
    return np.array(
        [
            [
                x[i * stride : i * stride + size, j * stride : j * stride + size]
                for j in range(columns)
            ]
            for i in range(rows)
        ]
    )  # (H', W', size, size)


@settings(max_examples=60, deadline=None)
@given(h=st.integers(1, 9), w=st.integers(1, 9), seed=st.integers(0, 99))
def test_pools(h, w, seed):
    x = np.random.default_rng(seed).normal(size=(h, w))
    tensor = torch.from_numpy(x)[None, None]

    total = [max((math.ceil(n / 2) - 1) * 2 + 3 - n, 0) for n in (h, w)]  # TensorFlow's SAME
    before, after = [t // 2 for t in total], [t - t // 2 for t in total]
    expected = windows(x, 3, before, after, 2, -np.inf).max((2, 3))
    np.testing.assert_array_equal(resnet.MaxPool()(tensor)[0, 0], expected)

    expected = windows(x, 2, (0, 0), (1, 1), 2, 0).mean((2, 3))  # zeros count
    np.testing.assert_allclose(resnet.ShortcutPool(2)(tensor)[0, 0], expected, atol=1e-12)

    expected = np.nanmean(windows(x, 2, (0, 0), (1, 1), 1, np.nan), (2, 3))  # padding does not
    np.testing.assert_allclose(resnet.ShortcutPool(1)(tensor)[0, 0], expected, atol=1e-12)


@pytest.mark.parametrize("name", ["simclr_resnet18_1x_sk1", "simclr_resnet50_1x_sk1_se"])
@pytest.mark.parametrize("size", [33, 40, 65])
def test_odd_and_even_sizes(name, size):
    model = timm.create_model(name).eval()
    sizes = [math.ceil(size / r) for r in (2, 4, 8, 16, 32)]
    stages = run_with_stages(model, torch.rand(1, 3, size, size))[1]
    assert [x.shape[1] for x in stages.values()] == [sizes[0], sizes[1], *sizes[1:]]


def test_the_contract_of_timm():
    model = timm.create_model("simclr_resnet18_1x_sk0").eval()
    x = torch.rand(2, 3, 64, 64)
    features = model(x)
    assert features.shape == (2, model.num_features)
    assert model.head_hidden_size == model.num_features == 512
    assert model.forward_features(x).shape == (2, 512, 2, 2)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert not model.default_cfg["url"]
    assert model.default_cfg["mean"] == (0, 0, 0)
    model.double().reset_classifier(7)
    assert model(x.double()).shape == (2, 7)
    assert model.num_classes == model.get_classifier().out_features == 7
    pooled = model.forward_head(model.forward_features(x.double()), pre_logits=True)
    torch.testing.assert_close(pooled.float(), features)
    model.reset_classifier(0, "")
    assert model(x.double()).shape == (2, 512, 2, 2)
    with pytest.raises(RuntimeError, match="pretrained"):
        timm.create_model("simclr_resnet18_1x_sk0", pretrained=True)
    assert timm.create_model("simclr_resnet8_1x_sk0", in_chans=1)(torch.rand(2, 1, 8, 8)).ndim == 2


def test_registration_with_timm():
    names = timm.list_models("simclr*")
    assert len(names) == 9 * 4 * 2 * 2  # depths, widths, selective kernels, squeeze-and-excitation
    for name in names:
        config = timm.get_pretrained_cfg(name)
        assert config is not None
        assert config.architecture == name
        assert config.input_size[1] == (32 if name.split("_")[1] in CIFAR else 224)
    model = timm.create_model("simclr_resnet8_1x_sk0")
    assert model.pretrained_cfg["architecture"] == "simclr_resnet8_1x_sk0"
    for form in (model, timm.create_model("simclr_resnet8_1x_sk0", features_only=True)):
        again = pickle.loads(pickle.dumps(form))
        assert again.state_dict().keys() == form.state_dict().keys()
    assert all(hasattr(resnet, name) for name in resnet.__all__)  # import * works


@pytest.mark.parametrize(
    ("name", "small_stem"),
    [
        ("simclr_resnet50_1x_sk1", False),
        ("simclr_resnet18_1x_sk0", False),
        ("simclr_resnet18_1x_sk0", True),
        ("simclr_resnet8_1x_sk0", True),
    ],
)
def test_feature_info(name, small_stem):
    model = timm.create_model(name, small_stem=small_stem, features_only=True).eval()
    for x, info in zip(model(torch.rand(1, 3, 64, 64)), model.feature_info, strict=True):
        assert x.shape == (1, info["num_chs"], 64 // info["reduction"], 64 // info["reduction"])
        assert x.min() >= 0  # after the ReLU


def random_model(name="simclr_resnet8_1x_sk1_se", **kwargs):
    """A float64 model in train mode whose residual branches are not switched off."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs)
    for m in model.modules():
        if isinstance(m, BatchNorm):
            nn.init.uniform_(m.weight, 0.5, 1)
    return model.double()


def outcome(model, x, run=None):
    model.zero_grad()
    features = (model if run is None else run)(x)
    features.square().sum().backward()
    return [features.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


def assert_all_close(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["simclr_resnet8_1x_sk1_se", "simclr_resnet50_1x_sk1"])
def test_recomputation_gives_the_same_and_counts_each_batch_once(name):
    model = random_model(name, small_stem=True)
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    calls = []
    recomputing = copy.deepcopy(model)
    recomputing.set_grad_checkpointing()
    recomputing.groups[0][0].branch.register_forward_hook(lambda *_: calls.append(1))
    expected = outcome(model, x)
    for a, b in zip(outcome(recomputing, x), expected, strict=True):
        assert torch.equal(a, b)
    assert len(calls) == 2
    recomputing.eval()  # as fine-tuning with frozen batch norm
    outcome(recomputing, x)
    assert len(calls) == 4
    with torch.no_grad():
        recomputing(x)
    assert len(calls) == 5


def test_channels_last():
    model, x = random_model(), torch.rand(5, 3, 16, 16, dtype=torch.float64)
    expected = outcome(copy.deepcopy(model), x)
    layouts = []
    model.to(memory_format=torch.channels_last)
    model.groups[-1].register_forward_hook(
        lambda m, args, y: layouts.append(y.is_contiguous(memory_format=torch.channels_last))
    )
    assert_all_close(outcome(model, x.to(memory_format=torch.channels_last)), expected)
    assert layouts == [True]


@pytest.mark.parametrize("recompute", [False, True])
def test_compiles_to_one_graph(recompute):
    model, x = random_model(), torch.rand(5, 3, 16, 16, dtype=torch.float64)
    expected = outcome(copy.deepcopy(model), x)
    model.set_grad_checkpointing(recompute)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_all_close(outcome(model, x, compiled), expected)


def test_autocast():
    model = random_model("simclr_resnet50_1x_sk1", small_stem=True).float()
    with torch.autocast("cpu", torch.bfloat16):
        features = model(torch.rand(4, 3, 16, 16))
    features.float().square().sum().backward()
    assert all(p.grad.isfinite().all() and p.dtype == torch.float32 for p in model.parameters())


def test_a_new_block_is_its_shortcut():
    torch.manual_seed(0)
    block = resnet.ResidualBlock(6, 6, 1, False, False, 0.0, 0.25)
    x = torch.rand(2, 6, 5, 5)
    torch.testing.assert_close(block(x), x)
    model = timm.create_model("simclr_resnet50_1x_sk1", small_stem=True)
    zero = {n for n, m in model.named_modules() if isinstance(m, BatchNorm) and not m.weight.any()}
    assert zero == {
        f"groups.{g}.{b}.norm" for g, n in enumerate(resnet.BLOCKS[50]) for b in range(n)
    }
