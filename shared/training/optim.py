"""The optimizers, their parameter groups, and the learning-rate curve.

LARS is that of the authors' tf2/lars_optimizer.py. The curve is a pure function of the step: a
stage calls ``set_learning_rate`` before each update, so there is no scheduler object and nothing to
restore. Which optimizers there are stands in ``shared/config/optimizers.py``.
"""
# torch.optim itself is written with the torch._foreach_* functions: one call, or one kernel, for
# all tensors of a list.
# pyright: reportPrivateImportUsage=false

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from shared.config.optimizers import OPTIMIZERS, OptimizerKind

ScalingRule = Literal["linear", "sqrt", "none"]
SUPERVISED_HEADS = ("linear", "rotation")


class _MomentumSGD(torch.optim.Optimizer):
    """SGD whose learning rate is inside the momentum buffer, as in TensorFlow and Keras.

    The buffer becomes v = momentum * v + rate * g, and the weight moves by -v, or with ``nesterov``
    by -(momentum * v + rate * g). torch's SGD multiplies by the rate outside the buffer, which
    differs as soon as the rate changes. Parameters without gradient are left alone: neither decayed
    nor moved by their momentum.

    Args:
        params: parameters, or groups with hyper-parameters of their own.
        hyperparameters: ``lr``, ``momentum``, ``weight_decay``, ``nesterov``, ``classic_momentum``
            and what a subclass adds.

    Raises:
        ValueError: A hyper-parameter is out of range.
    """

    def __init__(self, params: Iterable[Any], hyperparameters: dict[str, Any]) -> None:
        momentum = hyperparameters["momentum"]
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        for name in ("lr", "weight_decay", "eeta"):
            value = hyperparameters.get(name, 0)
            if not value >= 0:
                raise ValueError(f"{name} must be >= 0, got {value}")
        super().__init__(params, hyperparameters)

    def _rates(self, params, updates, group: dict[str, Any]):
        """Learning rate of each parameter, or one for all."""
        return group["lr"]

    @torch.no_grad()
    def step(self, closure=None) -> Any:
        """Update every parameter that has a gradient; returns the closure's loss, if given one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in params]

            # With weight decay 0 too: a list of our own, so that all below may work in place.
            updates = torch._foreach_add(
                [p.grad for p in params], params, alpha=group["weight_decay"]
            )
            if group["classic_momentum"]:
                torch._foreach_mul_(updates, self._rates(params, updates, group))
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            if group["nesterov"]:
                torch._foreach_add_(updates, buffers, alpha=group["momentum"])
            else:
                updates = buffers
            if not group["classic_momentum"]:
                updates = torch._foreach_mul(updates, self._rates(params, updates, group))
            torch._foreach_sub_(params, updates)
        return loss


class NesterovSGD(_MomentumSGD):
    """Keras' SGD(nesterov=True), the reference's ``--optimizer=momentum``.

    Args:
        params: parameters, or groups with their own ``weight_decay`` and so on.
        lr: learning rate.
        momentum: in [0, 1).
        weight_decay: added to the gradient, times the weight (L2, not decoupled).

    Raises:
        ValueError: A hyper-parameter is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        hyperparameters = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": True,
            "classic_momentum": True,
        }
        super().__init__(params, hyperparameters)


class LARS(_MomentumSGD):
    """SGD with momentum whose layers each get a rate in proportion to |weight| / |gradient|.

    "Large batch training of convolutional networks" (arXiv 1708.03888), in the variant of the
    authors' tf2/lars_optimizer.py: the learning rate is inside the momentum buffer, the gradient's
    norm is taken after weight decay, and a layer whose weight or gradient is all zero has trust
    ratio 1.

    Args:
        params: parameters, or groups with their own ``weight_decay``, ``adapt`` and so on.
        lr: learning rate.
        momentum: in [0, 1).
        weight_decay: added to the gradient, times the weight (L2, not decoupled).
        adapt: scale the rate of each parameter by its trust ratio.
        nesterov: look ahead by one momentum step.
        classic_momentum: True applies the trust ratio before momentum, as in the paper; False
            after it, with the ratio of the accumulated update and the rate outside the buffer.
        eeta: the trust coefficient.

    Raises:
        ValueError: A hyper-parameter is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        adapt: bool = True,
        nesterov: bool = False,
        classic_momentum: bool = True,
        eeta: float = 0.001,
    ) -> None:
        hyperparameters = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "adapt": adapt,
            "nesterov": nesterov,
            "classic_momentum": classic_momentum,
            "eeta": eeta,
        }
        super().__init__(params, hyperparameters)

    def _rates(self, params, updates, group: dict[str, Any]):
        """Learning rate times trust ratio; no norm is ever copied to the host."""
        if not group["adapt"]:
            return group["lr"]
        weight_norm = torch.stack(torch._foreach_norm(params))  # (number of parameters,)
        update_norm = torch.stack(torch._foreach_norm(updates))
        ratio = group["eeta"] * weight_norm / update_norm
        ratio = torch.where((weight_norm > 0) & (update_norm > 0), ratio, 1.0)
        return (group["lr"] * ratio).unbind()


def fused_adamw(groups: list[dict[str, Any]], momentum: float) -> torch.optim.AdamW:
    """Torch's AdamW (arXiv 1711.05101) in one kernel; ``momentum`` is its beta1."""
    return torch.optim.AdamW(groups, lr=0.0, betas=(momentum, 0.999), fused=True)


# the names are those of `OPTIMIZERS`
MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "lars": LARS,
    "sgd": NesterovSGD,
    "adamw": fused_adamw,
}


def _kind(name: str) -> OptimizerKind:
    if name not in OPTIMIZERS:
        *others, last = OPTIMIZERS
        raise ValueError(f"unknown optimizer {name!r}, choose {', '.join(others)} or {last}")
    return OPTIMIZERS[name]


def parameter_groups(
    model: nn.Module,
    optimizer: str,
    weight_decay: float,
    lr_scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Split the trainable parameters by what the optimizer does to them.

    | optimizer | weight decay on | layer adaptation on |
    |---|---|---|
    | lars  | kernels | kernels, but not those of the supervised heads |
    | sgd   | kernels and the biases of dense and convolutional layers | nothing |
    | adamw | kernels (decoupled) | nothing |

    A kernel is a parameter with two dimensions or more. The first two rows are the reference's
    (tf2/model.py, ``build_optimizer`` and ``add_weight_decay``): with LARS it adds the decay of
    the supervised head to the loss instead, which gives the same gradient. Supervised heads are
    ``linear`` and, while fine-tuning has its help, ``rotation``.

    Args:
        model: its parameters that require a gradient are grouped; the others are left out.
        optimizer: a name in `OPTIMIZERS`; its record decides the rule.
        weight_decay: for the decayed groups; the others get 0.
        lr_scales: factors on the learning rate by module path, e.g. ``{"encoder": 0.1}`` for
            ``encoder`` and all below it. The longest path that fits a parameter counts.

    Returns:
        Groups with ``params``, ``weight_decay``, ``adapt`` and ``lr_scale``.

    Raises:
        ValueError: unknown optimizer, or a path in ``lr_scales`` fits no parameter of the model.
    """
    kind = _kind(optimizer)
    lr_scales = lr_scales or {}
    names = [name for name, _ in model.named_parameters()]
    for path in lr_scales:
        if not any(_lies_under(name, path) for name in names):
            known = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise ValueError(f"lr_scales names {path!r}, the model's top modules are: {known}")

    layer_biases = {
        id(module.bias)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kernel = parameter.ndim > 1
        decay = kernel or (kind.decays_biases and id(parameter) in layer_biases)
        head = any(_lies_under(name, path) for path in SUPERVISED_HEADS)
        adapt = kernel and kind.adapts_layers and not head
        paths = [path for path in lr_scales if _lies_under(name, path)]
        lr_scale = lr_scales[max(paths, key=len)] if paths else 1.0
        groups.setdefault((decay, adapt, lr_scale), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decay else 0.0,
            "adapt": adapt,
            "lr_scale": lr_scale,
        }
        for (decay, adapt, lr_scale), parameters in groups.items()
    ]


def _lies_under(name: str, path: str) -> bool:
    return name == path or name.startswith(path + ".")


def build_optimizer(
    name: str,
    model: nn.Module,
    weight_decay: float,
    momentum: float = 0.9,
    lr_scales: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over ``parameter_groups(model, ...)``, with learning rate 0 until it is set.

    "sgd" is the reference's ``momentum``: `NesterovSGD`. For "adamw" ``momentum`` is beta1.

    Raises:
        ValueError: unknown name, or a hyper-parameter is out of range.
    """
    groups = parameter_groups(model, name, weight_decay, lr_scales)  # refuses unknown names
    return MAKERS[name](groups, momentum=momentum)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group this rate, times the group's own ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)


def learning_rate_at(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warmup, then half a cosine to 0 (tf2/model.py, ``WarmUpAndCosineDecay``).

    Args:
        step: number of updates done before this one; the first update has step 0.
        total_steps: length of the run; 0 from there on.
        warmup_steps: length of the warmup. With one the first update has rate 0, and the peak
            comes exactly at ``step == warmup_steps``; without, the curve starts at the peak.
        peak: highest rate, e.g. from `scaled_learning_rate`.

    Raises:
        ValueError: the warmup is not shorter than the run.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"the warmup of {warmup_steps} steps must be shorter than the run of {total_steps} "
            "steps: train longer or warm up less"
        )
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def scaled_learning_rate(base: float, batch_size: int, rule: ScalingRule) -> float:
    """The peak rate for a global batch of ``batch_size`` images (not views).

    "linear": base * batch_size / 256; "sqrt": base * sqrt(batch_size); "none": base.

    Raises:
        ValueError: unknown rule.
    """
    if rule == "linear":
        return base * batch_size / 256
    if rule == "sqrt":
        return base * math.sqrt(batch_size)
    if rule == "none":
        return base
    raise ValueError(f"unknown learning rate scaling {rule!r}, choose linear, sqrt or none")


def training_steps(num_examples: int, epochs: float, batch_size: int) -> int:
    """Updates in a run: rounded down, plus one always (tf2/model.py, ``get_train_steps``)."""
    return int(num_examples * epochs // batch_size) + 1


def warmup_steps(num_examples: int, warmup_epochs: float, batch_size: int) -> int:
    """Updates in the warmup, rounded down; the reference's round() comes after its floor."""
    return int(num_examples * warmup_epochs // batch_size)
