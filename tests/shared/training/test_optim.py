"""The optimizers step by step, LARS against the authors' numbers; groups; learning-rate curve."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shared.config.optimizers import OPTIMIZERS
from shared.training.optim import (
    LARS,
    NesterovSGD,
    build_optimizer,
    learning_rate_at,
    parameter_groups,
    scaled_learning_rate,
    set_learning_rate,
    training_steps,
    warmup_steps,
)
from tests.support import golden
from tests.support.networks import small_classifier

LARS_ARRAYS, LARS_META = golden.load("lars.npz")
VARIABLES = LARS_META.pop("variables")
SCHEDULE, SCHEDULE_META = golden.load("schedule.npz")


def assert_close(actual, expected, name, relative=1e-5):
    error = np.abs(np.asarray(actual) - expected).max()
    assert error <= relative * np.abs(expected).max(), f"{name} is off by {error}"


@pytest.mark.parametrize("case", LARS_META)
def test_lars_is_the_reference_step_by_step(case):
    flags = LARS_META[case]
    decay_excluded = flags["exclude_from_weight_decay"] or []
    # An empty list falls back to the other, as in the reference.
    adapt_excluded = flags["exclude_from_layer_adaptation"] or decay_excluded
    params = {
        name: nn.Parameter(torch.tensor(LARS_ARRAYS[f"{case}/{name}/param0"])) for name in VARIABLES
    }
    groups = [
        {
            "params": [param],
            "weight_decay": 0.0
            if any(re.search(pattern, name) for pattern in decay_excluded)
            else flags["weight_decay"],
            "adapt": not any(re.search(pattern, name) for pattern in adapt_excluded),
        }
        for name, param in params.items()
    ]
    optimizer = LARS(
        groups,
        momentum=flags["momentum"],
        nesterov=flags["use_nesterov"],
        classic_momentum=flags["classic_momentum"],
        eeta=flags["eeta"],
    )
    for step, lr in enumerate(LARS_ARRAYS[f"{case}/lr"]):
        set_learning_rate(optimizer, float(lr))
        for name, param in params.items():
            param.grad = torch.tensor(LARS_ARRAYS[f"{case}/{name}/grad"][step])
        optimizer.step()
        for name, param in params.items():
            buffer = optimizer.state[param]["momentum_buffer"]
            prefix = f"{case}/{name}"
            assert_close(param.detach(), LARS_ARRAYS[f"{prefix}/param"][step], f"{name} {step}")
            assert_close(buffer, LARS_ARRAYS[f"{prefix}/momentum"][step], f"slot {name} {step}")


def test_lars_treats_the_layers_of_a_group_one_by_one():
    """All golden variables have a group of their own; together they must move the same."""
    shapes = [(4, 3), (5, 4, 3, 3), (2, 2)]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    grads = [torch.randn(shape, generator=generator) * 10**i for i, shape in enumerate(shapes)]
    together, apart = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    one = LARS([{"params": together, "weight_decay": 0.1}], lr=0.3)
    many = LARS([{"params": [p], "weight_decay": 0.1} for p in apart], lr=0.3)
    for _ in range(3):
        for param, grad in zip(together + apart, grads + grads, strict=True):
            param.grad = grad.clone()
        one.step()
        many.step()
    for a, b, x in zip(together, apart, start, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, x)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("classic_momentum", [False, True])
def test_lars_by_hand_in_float64(nesterov, classic_momentum):
    """The formulas of tf2/lars_optimizer.py, spelt out for one weight over a changing rate."""
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(3, 4)), np.zeros((3, 4))
    param = nn.Parameter(torch.tensor(w))
    optimizer = LARS(
        [param], weight_decay=0.01, nesterov=nesterov, classic_momentum=classic_momentum
    )
    for lr in (0.0, 0.5, 2.0, 0.1):
        gradient = rng.normal(size=w.shape)
        g = gradient + 0.01 * w
        if classic_momentum:
            step = lr * 0.001 * np.linalg.norm(w) / np.linalg.norm(g) * g
            v = 0.9 * v + step
            w = w - (0.9 * v + step if nesterov else v)
        else:
            v = 0.9 * v + g
            u = 0.9 * v + g if nesterov else v
            w = w - lr * 0.001 * np.linalg.norm(w) / np.linalg.norm(u) * u
        param.grad = torch.tensor(gradient)
        set_learning_rate(optimizer, lr)
        optimizer.step()
        assert torch.equal(param.grad, torch.tensor(gradient)), "the gradient was changed"
        np.testing.assert_allclose(param.detach().numpy(), w, rtol=1e-12)


def test_sgd_is_keras_sgd_with_nesterov():
    """v = m v - lr g; w += m v - lr g, with the rate inside v: torch's SGD differs from it."""
    model = nn.Linear(3, 2).double()
    w = model.weight.detach().numpy().copy()
    v = np.zeros_like(w)
    optimizer = build_optimizer("sgd", model, weight_decay=0.0, momentum=0.8)
    theirs = nn.Parameter(torch.tensor(w))
    torch_sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.8, nesterov=True)
    rng = np.random.default_rng(1)
    for lr in (0.1, 1.0, 0.2):
        g = rng.normal(size=w.shape)
        v = 0.8 * v - lr * g
        w = w + 0.8 * v - lr * g
        model.weight.grad, theirs.grad = torch.tensor(g), torch.tensor(g)
        set_learning_rate(optimizer, lr)
        set_learning_rate(torch_sgd, lr)
        optimizer.step()
        torch_sgd.step()
        np.testing.assert_allclose(model.weight.detach().numpy(), w, rtol=1e-12)
    assert np.abs(theirs.detach().numpy() - w).max() > 0.01


def test_parameters_without_gradient_are_left_alone():
    """They are neither decayed nor moved by their momentum."""
    param = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([param], lr=1.0, weight_decay=0.1)
    param.grad = torch.ones(2, 2)
    optimizer.step()
    moved, buffer = param.detach().clone(), optimizer.state[param]["momentum_buffer"].clone()
    param.grad = None
    optimizer.step()
    assert torch.equal(param, moved)
    assert torch.equal(optimizer.state[param]["momentum_buffer"], buffer)


def test_lars_resumes_exactly():
    def run(steps, interrupted):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = build_optimizer("lars", model, 1e-4)
        for step in range(steps):
            if interrupted and step == 2:
                state = optimizer.state_dict()
                optimizer = build_optimizer("lars", model, 1e-4)
                optimizer.load_state_dict(state)
            set_learning_rate(optimizer, 1.0 + step)
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        return model.weight.detach()

    assert torch.equal(run(5, False), run(5, True))


def test_lars_returns_the_loss_of_a_closure():
    param = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([param], lr=1.0)

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert param.detach().sum() < 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be >= 0, got -1.0"),
        ({"momentum": 1.0}, "momentum must lie in"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0"),
        ({"eeta": float("nan")}, "eeta must be >= 0"),
    ],
)
def test_wrong_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LARS([nn.Parameter(torch.ones(1))], **options)


def rules(model, groups):
    """name -> (weight decay, adapt, lr_scale), and each trainable parameter exactly once."""
    names = {id(p): name for name, p in model.named_parameters()}
    pairs = [
        (names[id(p)], (g["weight_decay"], g["adapt"], g["lr_scale"]))
        for g in groups
        for p in g["params"]
    ]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


@pytest.mark.parametrize(
    ("optimizer", "kernel", "layer_bias", "norm", "head_kernel", "head_bias"),
    [
        ("lars", (0.1, True), (0.0, False), (0.0, False), (0.1, False), (0.0, False)),
        ("sgd", (0.1, False), (0.1, False), (0.0, False), (0.1, False), (0.1, False)),
        ("adamw", (0.1, False), (0.0, False), (0.0, False), (0.1, False), (0.0, False)),
    ],
)
def test_groups(optimizer, kernel, layer_bias, norm, head_kernel, head_bias):
    model = small_classifier()
    rule_of = rules(model, parameter_groups(model, optimizer, 0.1))
    assert {name: rule[:2] for name, rule in rule_of.items()} == {
        "encoder.0.weight": kernel,
        "encoder.1.weight": norm,
        "encoder.1.bias": norm,
        "encoder.2.weight": kernel,
        "encoder.2.bias": layer_bias,
        "head.0.weight": kernel,
        "head.1.weight": norm,
        "head.1.bias": norm,
        "linear.weight": head_kernel,
        "linear.bias": head_bias,
    }
    assert {rule[2] for rule in rule_of.values()} == {1.0}


def test_the_layer_of_rotation_is_a_supervised_head():
    model = small_classifier()
    model["rotation"] = nn.Linear(2, 4)
    rule_of = rules(model, parameter_groups(model, "lars", 0.1))
    for name in ("weight", "bias"):
        assert rule_of[f"rotation.{name}"] == rule_of[f"linear.{name}"]


def test_frozen_parameters_are_in_no_group():
    model = small_classifier()
    model["encoder"].requires_grad_(False)
    rule_of = rules(model, parameter_groups(model, "lars", 0.1))
    assert not any(name.startswith("encoder") for name in rule_of)
    assert len(rule_of) == 5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learning_rate_scales_by_path(name):
    """The longest path counts, a path ends at a dot, and the scale outlives a change of rate."""
    model = small_classifier()
    model["encoder_2"] = nn.Linear(2, 2)
    scales = {"encoder": 0.1, "encoder.0": 0.01}
    optimizer = build_optimizer(name, model, 0.1, lr_scales=scales)
    assert {g["lr"] for g in optimizer.param_groups} == {0.0}
    names = {id(p): n for n, p in model.named_parameters()}
    for rate in (2.0, 3.0):
        set_learning_rate(optimizer, rate)
        for group in optimizer.param_groups:
            for param in group["params"]:
                path = names[id(param)]
                scale = 0.01 if path.startswith("encoder.0") else 0.1
                expected = rate * scale if path.startswith("encoder.") else rate
                assert group["lr"] == pytest.approx(expected)


def test_a_misspelt_path_stops_the_run():
    with pytest.raises(ValueError, match=r"'encoderr'.*encoder, head, linear"):
        parameter_groups(small_classifier(), "lars", 0.1, {"encoderr": 0.1})


def test_optimizer_names():
    model = small_classifier()
    lars, sgd = build_optimizer("lars", model, 0.1, 0.8), build_optimizer("sgd", model, 0.1)
    adamw = build_optimizer("adamw", model, 0.1, 0.8)
    assert isinstance(lars, LARS)
    assert not lars.defaults["nesterov"]
    assert lars.defaults["momentum"] == 0.8
    assert isinstance(sgd, NesterovSGD)
    assert not isinstance(sgd, LARS)
    assert sgd.defaults["nesterov"]
    assert sgd.defaults["momentum"] == 0.9
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.999)
    with pytest.raises(ValueError, match="'adam', choose lars, sgd or adamw"):
        build_optimizer("adam", model, 0.1)
    with pytest.raises(ValueError, match="'adam', choose lars, sgd or adamw"):
        parameter_groups(model, "adam", 0.1)


@pytest.mark.parametrize(("name", "peak"), [("lars", 5.0), ("sgd", 0.02), ("adamw", 0.02)])
def test_every_optimizer_learns(name, peak):
    torch.manual_seed(0)
    layers = nn.Linear(5, 16, bias=False), nn.ReLU(), nn.Linear(16, 1, bias=False)
    x, model = torch.randn(64, 5), nn.Sequential(*layers)
    y = x.sum(1, keepdim=True)
    optimizer = build_optimizer(name, model, 1e-4)
    losses = []
    for step in range(100):
        set_learning_rate(optimizer, learning_rate_at(step, 100, 10, peak))
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("case", SCHEDULE_META)
def test_schedule_is_the_reference(case):
    flags = SCHEDULE_META[case]
    N, B = flags["num_examples"], flags["train_batch_size"]
    total = flags["train_steps_flag"] or training_steps(N, flags["train_epochs"], B)
    warmup = warmup_steps(N, flags["warmup_epochs"], B)
    assert total == SCHEDULE[f"{case}/train_steps"]
    assert warmup == SCHEDULE[f"{case}/warmup_steps"]
    peak = scaled_learning_rate(flags["base_learning_rate"], B, flags["learning_rate_scaling"])
    expected = SCHEDULE[f"{case}/lr"]
    curve = [learning_rate_at(step, total, warmup, peak) for step in range(len(expected))]
    assert_close(curve, expected, "learning rate", 1e-6)
    # float32 cosines lose digits near the end of the curve; before, each value agrees.
    np.testing.assert_allclose(curve[: total // 2], expected[: total // 2], rtol=1e-5)


def test_corners_of_the_curve():
    assert learning_rate_at(0, 100, 10, 2.0) == 0.0
    assert learning_rate_at(10, 100, 10, 2.0) == 2.0
    assert learning_rate_at(0, 100, 0, 2.0) == 2.0
    assert learning_rate_at(55, 100, 10, 2.0) == pytest.approx(1.0)
    assert [learning_rate_at(step, 100, 10, 2.0) for step in (100, 101, 1000)] == [0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(total=st.integers(1, 300), share=st.floats(0, 0.99), peak=st.floats(1e-6, 10))
def test_the_curve_rises_then_falls(total, share, peak):
    warmup = int(share * total)
    curve = [learning_rate_at(step, total, warmup, peak) for step in range(total + 1)]
    assert max(curve) == curve[warmup] == peak
    assert sorted(curve[: warmup + 1]) == curve[: warmup + 1]
    assert sorted(curve[warmup:], reverse=True) == curve[warmup:]


def test_a_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match=r"warmup of 10 steps .* run of 10"):
        learning_rate_at(0, 10, 10, 1.0)


def test_scaling_rules():
    assert scaled_learning_rate(0.3, 512, "linear") == pytest.approx(0.6)
    assert scaled_learning_rate(0.1, 4096, "sqrt") == pytest.approx(6.4)
    assert scaled_learning_rate(0.3, 512, "none") == 0.3
    with pytest.raises(ValueError, match="'square'"):
        scaled_learning_rate(0.3, 512, "square")


def test_steps_round_down_and_the_run_gets_one_more():
    assert training_steps(1000, 3, 300) == 11
    assert training_steps(1000, 3, 1000) == 4
    assert warmup_steps(1001, 2.5, 32) == 78
    assert isinstance(warmup_steps(1001, 2.5, 32), int)
