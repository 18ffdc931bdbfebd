"""The convolution's own weight gradient is torch's, and is taken where it is meant to be."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from shared.networks import cpu as convolution
from shared.networks.cpu import Conv2d, _ProductForWeights


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
