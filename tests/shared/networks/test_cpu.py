"""The convolution's own ways are torch's convolution, and are taken where they are meant to be."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from shared.networks import cpu as convolution
from shared.networks import products
from shared.networks.cpu import (
    Conv2d,
    _Dense,
    _ProductForWeights,
    _Winograd,
    _winograd_pays,
)


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 2, 4, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_torch(kernel, stride, side, layout):
    torch.manual_seed(0)
    images = torch.randn(3, 5, side, side + 1).double().to(memory_format=layout)
    weight = torch.randn(4, 5, kernel, kernel).double()
    results = []
    for ours in (True, False):
        x, w = images.clone().requires_grad_(), weight.clone().requires_grad_()
        y = (
            _ProductForWeights.apply(x, w, stride)
            if ours
            else F.conv2d(x, w, stride=stride, padding=kernel // 2)
        )
        (y * y.detach().cos()).sum().backward()
        results.append((y, x.grad, w.grad))
    for mine, torchs in zip(*results, strict=True):
        assert mine.shape == torchs.shape
        torch.testing.assert_close(mine, torchs, rtol=1e-12, atol=1e-12)


def used(side: int, *, precision: bool = True, frozen: bool = False, bias: bool = False) -> bool:
    conv = Conv2d(64, 128, 3, stride=2, bias=bias).requires_grad_(not frozen)
    x = torch.randn(2, 64, side, side, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision):
        y = conv(x)
    assert y.shape == (2, 128, -(-side // 2), -(-side // 2))
    return type(y.grad_fn).__name__ == "_ProductForWeightsBackward"


def test_only_in_mixed_precision_with_many_weights_on_a_small_map():
    assert used(4)  # 73,728 weights for 4 positions
    assert not used(5)  # for 9
    assert not used(4, precision=False)
    assert not used(4, frozen=True)
    assert not used(4, bias=True)


@pytest.mark.parametrize("way", ["checkpointed", "compiled"])
def test_recomputed_and_compiled(way, monkeypatch):
    """The same bits with activation checkpointing; torch.compile traces it whole."""
    monkeypatch.setattr(convolution, "WEIGHTS_PER_POSITION", 0)
    torch.manual_seed(0)
    net = nn.Sequential(Conv2d(8, 16, 3, 2), nn.ReLU(), Conv2d(16, 16, 3), nn.ReLU())
    images = torch.randn(4, 8, 6, 6).to(memory_format=torch.channels_last)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    grads = []
    for other in (False, True):
        net.zero_grad()
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            if not other:
                y = net(x)
            elif way == "compiled":
                y = compiled(x)
            else:
                y = checkpoint(net, x, use_reentrant=False)
            loss = y.float().square().sum()
        loss.backward()
        grads.append([x.grad, *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
    assert len(grads[0]) == 3
    for plain, other in zip(*grads, strict=True):
        if way == "checkpointed":
            assert torch.equal(plain, other)
        torch.testing.assert_close(plain, other, rtol=0.02, atol=0.02 * plain.abs().max().item())


def test_what_autocast_leaves_alone_it_leaves_alone():
    conv = Conv2d(64, 128, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.randn(64, 2, 2)).shape == (128, 2, 2)  # no batch
        assert conv.double()(torch.randn(2, 64, 2, 2).double()).dtype == torch.float64


def test_training_in_bfloat16_sees_the_same_gradient(monkeypatch):
    torch.manual_seed(0)
    conv, x = Conv2d(64, 128, 3), torch.randn(16, 64, 2, 2)
    grads = []
    for threshold in (0, 10**9):
        monkeypatch.setattr(convolution, "WEIGHTS_PER_POSITION", threshold)
        with torch.autocast("cpu", torch.bfloat16):
            loss = conv(x).float().square().mean()
        conv.zero_grad()
        loss.backward()
        assert conv.weight.grad is not None
        grads.append(conv.weight.grad.clone())
    assert grads[0].dtype == torch.float32
    error = (grads[0] - grads[1]).abs().max() / grads[1].abs().max()
    assert error < 0.01  # both are rounded to bfloat16, whose last digit is 0.8%


def outcome(convolve, images: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Output and gradients, in the layout that the convolution asks for."""
    x = images.clone().to(memory_format=torch.channels_last).requires_grad_()
    w = weight.clone().requires_grad_()
    y = convolve(x, w)
    (y * y.detach().cos()).sum().backward()
    assert x.grad is not None
    assert w.grad is not None
    return y, x.grad, w.grad


def assert_as_torch(way, images, weight, tolerance):
    expected = outcome(lambda x, w: F.conv2d(x, w, padding=1), images.double(), weight.double())
    for mine, exact in zip(outcome(way, images, weight), expected, strict=True):
        assert mine.shape == exact.shape
        error = (mine.double() - exact).abs().max() / exact.std()
        assert error < tolerance


@pytest.fixture(params=[True, False], ids=["onednn", "mkl"])
def onednn(request, monkeypatch) -> bool:
    """Whether oneDNN makes the products in float32, as on AMD's processors with AVX-512."""
    monkeypatch.setattr(products, "BY_ONEDNN", request.param)
    return request.param


@pytest.mark.parametrize(("batch", "inputs", "outputs"), [(1, 1, 1), (5, 3, 4), (2, 16, 8)])
@pytest.mark.usefixtures("onednn")
def test_a_convolution_of_maps_of_2_x_2_is_a_dense_layer(batch, inputs, outputs):
    torch.manual_seed(0)
    images, weight = torch.randn(batch, inputs, 2, 2), torch.randn(outputs, inputs, 3, 3)
    assert_as_torch(_Dense.apply, images, weight, 3e-5)


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 1, 1), (140, 4, 4), (9, 16, 16), (3, 7, 9)])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 3), (32, 48)])
@pytest.mark.usefixtures("onednn")
def test_winograd(shape, inputs, outputs):
    """Also more tiles than are computed at once, and maps that tiles hang over."""
    torch.manual_seed(0)
    batch, height, width = shape
    images = torch.randn(batch, inputs, height, width)
    weight = torch.randn(outputs, inputs, 3, 3)
    assert_as_torch(_Winograd.apply, images, weight, 2e-4)


def test_where_winograd_pays(onednn):
    for batch, channels, side, by_onednn, by_mkl in [
        (32, 64, 4, False, True),  # one tile
        (31, 64, 4, False, False),  # too few of them
        (32, 63, 4, False, False),
        (32, 128, 8, False, True),
        (32, 127, 8, False, False),
        (32, 128, 5, False, False),  # 25 of 64 places
        (32, 128, 7, False, True),  # 49 of 64
        (8, 512, 7, True, True),
        (32, 256, 4, True, True),
        (31, 256, 4, False, False),
        (32, 255, 4, False, True),
        (32, 256, 5, False, False),
    ]:
        pays = by_onednn if onednn else by_mkl
        assert _winograd_pays(torch.Size((batch, channels, side, side)), channels) == pays
    assert not _winograd_pays(torch.Size((32, 256, 8, 8)), 64)


WAYS = {"dense": (2, 1), "winograd": (4, 1), "product": (2, 2), "torch": (4, 2)}


def way_of(
    name: str, *, training=True, frozen=False, last=True, grad=True, dtype=torch.float32
) -> str:
    """By what the output of a float32 convolution on CPU is made."""
    side, stride = WAYS[name]
    inputs = 256 if name == "winograd" else 64
    outputs = 256 if name in ("winograd", "product") else 64
    conv = Conv2d(inputs, outputs, 3, stride).to(dtype)
    conv.train(training).requires_grad_(not frozen)
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(32, inputs, side, side, dtype=dtype).to(memory_format=layout).requires_grad_()
    with torch.set_grad_enabled(grad):
        y = conv(x)
    expected = F.conv2d(x, conv.weight, stride=stride, padding=1)
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)
    if not grad:
        return "torch" if torch.equal(y, expected) else "other"
    names = {
        "_DenseBackward": "dense",
        "_WinogradBackward": "winograd",
        "_ProductForWeightsBackward": "product",
        "ConvolutionBackward0": "torch",
    }
    return names[type(y.grad_fn).__name__]


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.usefixtures("onednn")
def test_which_way_is_taken_in_float32(name):
    torch.manual_seed(0)
    assert way_of(name) == name
    assert way_of(name, training=False) == "torch"  # evaluation stays as exact as it is
    assert way_of(name, frozen=True) == "torch"
    assert way_of(name, last=False) == "torch"
    assert way_of(name, dtype=torch.float64) == "torch"
    if name == "winograd":  # a batch that passes first without gradient
        assert way_of(name, grad=False) == "other"


@pytest.mark.parametrize("way", ["checkpointed", "compiled"])
@pytest.mark.usefixtures("onednn")
def test_float32_recomputed_and_compiled(way):
    torch.manual_seed(0)
    net = nn.Sequential(Conv2d(256, 256, 3), nn.ReLU(), Conv2d(256, 64, 3, 2), Conv2d(64, 64, 3))
    images = torch.randn(32, 256, 4, 4).to(memory_format=torch.channels_last)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    gradients = []
    for other in (False, True):
        net.zero_grad()
        if not other:
            y = net(images)
        elif way == "compiled":
            y = compiled(images)
        else:
            y = checkpoint(net, images, use_reentrant=False)
        y.square().mean().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert len(gradients[0]) == 3
    for plain, other in zip(*gradients, strict=True):
        if way == "checkpointed":
            assert torch.equal(plain, other)
        torch.testing.assert_close(plain, other, rtol=1e-3, atol=1e-5)
