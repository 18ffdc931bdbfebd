"""Our batch norm against its definition, and two processes against one."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn

from shared.networks import batchnorm, resnet
from shared.networks.batchnorm import BatchNorm, frozen_statistics, stretch_memory, synchronize
from tests.support import golden
from tests.support.gloo import fork, join


def by_definition(module, x):
    """Output, running mean and running variance, written out."""
    dims, shape = [0, *range(2, x.ndim)], (1, -1) + (1,) * (x.ndim - 2)
    mean, var = x.mean(dims), x.var(dims, correction=0)
    y = (x - mean.view(shape)) / (var.view(shape) + module.eps).sqrt() * module.weight.view(shape)
    if module.bias is not None:
        y = y + module.bias.view(shape)
    m = module.momentum
    return y, (1 - m) * module.running_mean + m * mean, (1 - m) * module.running_var + m * var


def random_(module):
    """Give every batch norm in ``module`` random parameters and statistics."""
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            for tensor in (m.weight, m.bias, m.running_mean):
                if tensor is not None:
                    nn.init.normal_(tensor)
            nn.init.uniform_(m.running_var, 0.5, 2)
    return module


@settings(max_examples=40, deadline=None)
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 5), st.integers(1, 4)),
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    ),
    center=st.booleans(),
    momentum=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_equals_its_definition(shape, center, momentum, seed):
    torch.manual_seed(seed)
    module = random_(BatchNorm(shape[1], momentum=momentum, center=center, dtype=torch.float64))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    inputs = [x, module.weight] + ([module.bias] if center else [])
    dy = torch.randn(shape, dtype=torch.float64)
    expected, mean, var = by_definition(module, x)
    expected_gradients = torch.autograd.grad(expected, inputs, dy)
    y = module(x)
    gradients = torch.autograd.grad(y, inputs, dy)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients, expected_gradients)
    torch.testing.assert_close(module.running_mean, mean.detach())
    torch.testing.assert_close(module.running_var, var.detach())
    assert module.num_batches_tracked == 1

    module.eval()
    before = copy.deepcopy(module.state_dict())
    stats = [t.view(1, -1, *[1] * (x.ndim - 2)) for t in (module.running_mean, module.running_var)]
    expected = (x - stats[0]) / (stats[1] + 1e-5).sqrt()
    expected = expected * module.weight.view_as(stats[0])
    if center:
        expected = expected + module.bias.view_as(stats[0])
    torch.testing.assert_close(module(x), expected)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_value_per_channel(dtype):
    module = random_(BatchNorm(4))
    mean, var = module.running_mean.clone(), module.running_var.clone()
    x = torch.randn(1, 4, 1, 1, requires_grad=True, dtype=dtype)
    y = module(x)
    # (x - mean) / sqrt(eps) magnifies the rounding of x by 316
    torch.testing.assert_close(y, module.bias.view(1, 4, 1, 1).to(dtype), rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(module.running_var, 0.9 * var)
    torch.testing.assert_close(module.running_mean, 0.9 * mean + 0.1 * x.detach().flatten().float())
    y.sum().backward()
    assert x.grad.abs().max() == 0


def test_bfloat16_input_keeps_float32_statistics():
    torch.manual_seed(0)
    module, x = random_(BatchNorm(5)), torch.randn(16, 5, 4, 4)
    _, mean, var = by_definition(module, x.bfloat16().float())
    assert module(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(module.running_mean, mean.detach())
    torch.testing.assert_close(module.running_var, var.detach())


def test_two_forward_passes_before_one_backward_pass():
    module = BatchNorm(3, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64)
    (module(x) + module(2 * x)).square().sum().backward()
    assert module.weight.grad.isfinite().all()


def test_frozen_statistics_normalise_but_do_not_count():
    module, x = random_(BatchNorm(3)), torch.randn(8, 3)
    expected = copy.deepcopy(module)(x)
    before = copy.deepcopy(module.state_dict())
    with frozen_statistics():
        with frozen_statistics():
            pass
        torch.testing.assert_close(module(x), expected)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    module(x)
    assert module.num_batches_tracked == 1
    assert not torch.equal(before["running_var"], module.running_var)


def test_a_plain_state_dict_loads():
    state = dict(BatchNorm(3, center=False).state_dict())  # as from safetensors: no versions
    assert "bias" not in state
    BatchNorm(3, center=False).load_state_dict(state)


# Two processes against one. A case: module, and the rows of rank 0 and rank 1.


def cases():
    torch.manual_seed(0)
    f64 = torch.float64
    yield "4d", BatchNorm(3, dtype=f64), torch.randn(7, 3, 2, 3, dtype=f64), 5
    yield "2d no beta", BatchNorm(6, center=False, dtype=f64), torch.randn(4, 6, dtype=f64), 1
    yield "one row in rank 0", BatchNorm(6), torch.randn(3, 6), 1
    last = torch.randn(8, 3, 4, 4).to(memory_format=torch.channels_last)
    yield "channels last", BatchNorm(3), last, 4
    yield "bfloat16", BatchNorm(3), torch.randn(8, 3, 4, 4).bfloat16(), 3
    # E[x^2] - E[x]^2 would lose every digit here
    yield "large mean", BatchNorm(3, dtype=f64), 1e6 + torch.randn(8, 3, 2, 2, dtype=f64), 4
    torch_norms = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.BatchNorm2d(4, affine=False),
        BatchNormAct2d(4, act_layer=nn.SiLU),
        nn.Flatten(),
        nn.BatchNorm1d(36),
    ).to(f64)
    yield "torch's and timm's", torch_norms, torch.randn(6, 2, 5, 5, dtype=f64), 2
    trunk = resnet.SimCLRResNet(8, se_ratio=0.25, small_stem=True).to(f64)
    trunk.set_grad_checkpointing()
    yield "trunk, recomputed", trunk, torch.rand(6, 3, 8, 8, dtype=f64), 2
    arrays, _ = golden.load("multi_replica.npz")
    x = torch.from_numpy(arrays["syncbn_r2/x"]).flatten(0, 1).permute(0, 3, 1, 2)
    yield "golden", BatchNorm(5), x, 3


def prepared():
    """Name -> (module, rows, gradient of the output, rows of rank 0)."""
    out = {}
    for name, module, x, split in cases():
        if name != "golden":
            random_(module)
        with torch.no_grad():
            shape = copy.deepcopy(module)(x).shape
        out[name] = (module, x, torch.randn(shape, dtype=x.dtype), split)
    return out


def outcome(module, x, dy):
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(dy)
    gradients = {k: p.grad for k, p in module.named_parameters()}
    return y.detach(), x.grad, gradients, dict(module.named_buffers())


def work(rank, folder):
    join(rank, 2, folder)
    results = {}
    for name, (module, x, dy, split) in torch.load(f"{folder}/in.pt", weights_only=False).items():
        rows = slice(None, split) if rank == 0 else slice(split, None)
        results[name] = outcome(synchronize(module), x[rows], dy[rows])
    torch.save(results, f"{folder}/out{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batchnorm")
    batches = prepared()
    torch.save(batches, folder / "in.pt")
    fork(work, (folder,), 2)
    return batches, [torch.load(folder / f"out{r}.pt", weights_only=False) for r in (0, 1)]


@pytest.mark.parametrize("name", [case[0] for case in cases()])
def test_two_processes_equal_one(two_processes, name):
    batches, results = two_processes
    module, x, dy, _ = batches[name]
    y, dx, gradients, buffers = outcome(copy.deepcopy(module), x, dy)
    (y0, dx0, gradients0, buffers0), (y1, dx1, gradients1, buffers1) = (r[name] for r in results)
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    if x.dtype == torch.bfloat16:
        tolerance = {"rtol": 2e-2, "atol": 2e-2}
    elif x.dtype == torch.float64:
        tolerance = {"rtol": 1e-10, "atol": 1e-9 if name == "large mean" else 1e-10}
    torch.testing.assert_close(torch.cat([y0, y1]), y, **tolerance)
    torch.testing.assert_close(torch.cat([dx0, dx1]), dx, **tolerance)
    assert gradients0.keys() == gradients.keys()
    for k, g in gradients.items():
        torch.testing.assert_close(gradients0[k] + gradients1[k], g, **tolerance)
    assert buffers0.keys() == buffers.keys()
    for k, b in buffers.items():
        torch.testing.assert_close(buffers0[k], b, **tolerance)
        assert torch.equal(buffers0[k], buffers1[k])


def test_two_processes_equal_the_reference(two_processes):
    arrays, _ = golden.load("multi_replica.npz")
    for rank, result in enumerate(two_processes[1]):
        y, _, _, buffers = result["golden"]
        np.testing.assert_allclose(
            y.permute(0, 2, 3, 1).numpy(), arrays["syncbn_r2/y"][rank], rtol=0, atol=3e-6
        )
        for ours, theirs in (("running_mean", "mean"), ("running_var", "variance")):
            np.testing.assert_allclose(
                buffers[ours].numpy(), arrays[f"syncbn_r2/moving_{theirs}"], rtol=1e-5, atol=1e-7
            )


def test_synchronize_changes_nothing_in_one_process():
    torch.manual_seed(0)
    model = random_(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), BatchNormAct2d(4)))
    model.append(random_(BatchNorm(4)))
    parameters = list(model.parameters())
    x, dy = torch.randn(5, 2, 4, 4), torch.randn(5, 4, 2, 2)
    expected = outcome(copy.deepcopy(model), x, dy)
    assert synchronize(synchronize(model)) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    y, dx, gradients, buffers = outcome(copy.deepcopy(model), x, dy)
    assert torch.equal(y, expected[0])
    assert torch.equal(dx, expected[1])
    assert gradients.keys() == expected[2].keys()
    assert all(torch.equal(b, expected[3][k]) for k, b in buffers.items())
    model.eval()
    assert torch.equal(model(x), model(x))


def test_synchronize_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="0 is a SplitBatchNorm2d"):
        synchronize(nn.Sequential(SplitBatchNorm2d(4)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "2d"])
def test_cuda_kernels_equal_the_plain_formulas(tmp_path, dtype, layout):
    dist.init_process_group("nccl", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        x = torch.randn(16, 8, device="cuda", dtype=dtype)
        if layout != "2d":
            x = torch.randn(16, 8, 6, 5, device="cuda", dtype=dtype)
        if layout == "channels_last":
            x = x.to(memory_format=torch.channels_last)
        for bias in (torch.randn(8, device="cuda"), None):
            arguments = (x, torch.rand(8, device="cuda"), bias)
            dy = torch.randn_like(x)
            results = []
            for high in (False, True):
                inputs = [
                    None if a is None else (a.double() if high else a).detach().requires_grad_()
                    for a in arguments
                ]
                if high:
                    module = BatchNorm(8, momentum=1.0, center=bias is not None).double().cuda()
                    del module.weight, module.bias
                    module.weight, module.bias = inputs[1:]
                    y, mean, var = by_definition(module, inputs[0])
                else:
                    y, mean, var, count = batchnorm._Normalize.apply(*inputs, 1e-5)
                    assert count == x.numel() // 8
                gradients = torch.autograd.grad(
                    y, [a for a in inputs if a is not None], dy.to(y.dtype)
                )
                results.append([y.detach(), mean.detach(), var.detach(), *gradients])
            tolerance = 1e-4 if dtype == torch.float32 else 3e-2
            for ours, expected in zip(*results, strict=True):
                torch.testing.assert_close(
                    ours.double(), expected.double(), rtol=tolerance, atol=tolerance
                )
    finally:
        dist.destroy_process_group()


def test_running_statistics_forget_as_much_per_step():
    norms = nn.Sequential(BatchNorm(3), nn.BatchNorm1d(3, momentum=None))
    stretch_memory(norms, 4)
    x = torch.randn(5, 3)
    for _ in range(4):
        norms[0](x)
    torch.testing.assert_close(norms[0].running_mean, 0.1 * x.mean(0))
    assert norms[1].momentum is None
