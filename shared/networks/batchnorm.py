"""Batch normalisation of the reference: biased running variance, statistics over all processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shared.runtime.distributed import world_size

_statistics_frozen = False


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """Forward passes run inside do not update the running statistics of any `BatchNorm`.

    Normalisation is unchanged: train mode still uses the batch. This is for a batch that passes
    through the model a second time, as in activation checkpointing, and must be counted once.
    """
    global _statistics_frozen
    before, _statistics_frozen = _statistics_frozen, True
    try:
        yield
    finally:
        _statistics_frozen = before


def stretch_memory(model: nn.Module, updates: int) -> None:
    """Let ``updates`` updates of the running statistics forget as much as one did; in place.

    This is for a batch that passes in parts. Each part is counted, and a whole step still leaves
    1 - momentum of the old statistics.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            module.momentum = 1 - (1 - module.momentum) ** (1 / updates)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of (B, C) or (B, C, H, W) with the reference's running statistics.

    The running variance follows the *biased* variance of the batch (tf2/resnet.py, BatchNormRelu);
    torch follows the unbiased one, which is off by n / (n - 1) for n values per channel. One value
    per channel is no error: the output is beta and the running variance moves towards 0.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of the batch in the running statistics (1 - Keras' decay).
        center: whether there is a beta; without it ``bias`` is None.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
    """

    # never None, unlike in torch's class
    running_mean: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    running_var: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    num_batches_tracked: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    momentum: float  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        center: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype)
        if not center:
            self.register_parameter("bias", None)
        self.global_statistics = False  # set by `synchronize`

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C) or (B, C, H, W) per channel; in train mode, count the batch."""
        if not self.training:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        if self.global_statistics and world_size() > 1:
            return _normalize_globally(self, input, correction=0)

        # The fused kernel moves running_var towards var * n / (n - 1). Scaled by that factor before
        # and by its inverse after, it has moved towards var. On a copy, because autograd saves it.
        n = input.numel() // self.num_features
        unbiased = n / (n - 1) if n > 1 else 1.0
        running_mean = self.running_mean.clone() if _statistics_frozen else self.running_mean
        running_var = self.running_var * unbiased
        output = torch.batch_norm(  # F.batch_norm, but for its refusal of one value per channel
            input,
            self.weight,
            self.bias,
            running_mean,
            running_var,
            True,
            self.momentum,
            self.eps,
            torch.backends.cudnn.enabled,
        )
        if not _statistics_frozen:
            if n > 1:
                torch.mul(running_var, 1 / unbiased, out=self.running_var)
            else:  # the kernel has divided 0 by 0; the biased variance of one value is 0
                self.running_var.mul_(1 - self.momentum)
            self.num_batches_tracked.add_(1)
        return output


class _GlobalBatchNorm(nn.BatchNorm2d):
    """A torch batch norm of any dimension, converted by `synchronize`."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and world_size() > 1:
            return _normalize_globally(self, input, correction=1)
        return super().forward(input)

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class _GlobalBatchNormAct(BatchNormAct2d):
    """timm's batch norm with activation, converted by `synchronize`."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        if self.training and world_size() > 1:
            return self.act(self.drop(_normalize_globally(self, x, correction=1)))
        return super().forward(x)


def synchronize(model: nn.Module) -> nn.Module:
    """Switch every batch norm of ``model``, in place, to statistics over all processes' rows.

    The processes may hold different numbers of rows. Gradients with respect to the input are exact.
    Those of gamma and beta are this process' share of the sum, which DistributedDataParallel
    combines. With one process, or without a process group, nothing changes. The modules keep their
    class' estimator of the running variance: biased for `BatchNorm`, unbiased for torch's and
    timm's. `torch.nn.SyncBatchNorm` is global already and stays as it is.

    Returns:
        The same ``model``.

    Raises:
        ValueError: a batch norm of a class that this function does not know.
    """
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm):
            module.global_statistics = True
        elif isinstance(module, _GlobalBatchNorm | _GlobalBatchNormAct | nn.SyncBatchNorm):
            pass
        elif type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = _GlobalBatchNorm  # parameters, hooks and names stay what they are
        elif type(module) is BatchNormAct2d:
            module.__class__ = _GlobalBatchNormAct
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__}, whose statistics cannot be "
                "taken over all processes; use a model with ordinary batch norm or one process"
            )
    return model


def _normalize_globally(module: Any, x: Tensor, correction: int) -> Tensor:
    """Normalise ``x`` with the statistics of all processes, and count the batch in ``module``."""
    output, mean, var, count = _Normalize.apply(x, module.weight, module.bias, module.eps)
    if module.running_var is not None and not _statistics_frozen:
        unbiased = count / (count - correction).clamp(min=1)
        module.running_mean.lerp_(mean, module.momentum)
        module.running_var.lerp_(var * unbiased, module.momentum)
        module.num_batches_tracked.add_(1)
    return output


class _Normalize(torch.autograd.Function):
    """Training batch norm over the rows of all processes: (output, mean, biased variance, count).

    On CUDA with the fused kernels of torch.nn.SyncBatchNorm, which has neither the biased running
    variance nor a CPU form.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        C = x.shape[1]
        if x.is_cuda:
            if not x.is_contiguous(memory_format=torch.channels_last):
                x = x.contiguous()
            mean, invstd = torch.batch_norm_stats(x, eps)
            var = invstd**-2 - eps
        else:
            high = x.to(torch.promote_types(x.dtype, torch.float32))
            var, mean = torch.var_mean(high, _all_but_channels(x), correction=0)
        count = mean.new_full((1,), x.numel() // C)
        local = torch.cat([mean, var, count])
        gathered = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(gathered, local)
        means, variances, counts = torch.stack(gathered).split([C, C, 1], dim=1)  # (P, C or 1)

        # variance of the union = mean of the variances + variance of the means
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        var = (counts * (variances + (means - mean) ** 2)).sum(0) / count
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps), counts)
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd, counts = ctx.saved_tensors
        if x.is_cuda:
            if not dy.is_contiguous(memory_format=torch.channels_last):
                dy = dy.contiguous()
            sum_dy, sum_dy_xmu, dw, db = torch.batch_norm_backward_reduce(
                dy, x, mean, invstd, weight, True, weight is not None, ctx.has_bias
            )
            sums = torch.stack([sum_dy, sum_dy_xmu])
            dist.all_reduce(sums)
            dx = torch.batch_norm_backward_elemt(
                dy, x, mean, invstd, weight, sums[0], sums[1], counts.flatten().to(torch.int32)
            )
        else:
            # dx = gamma / std * (dy - mean(dy) - xhat * mean(dy * xhat)), means over all processes
            shape = (1, -1) + (1,) * (x.ndim - 2)
            scale = invstd if weight is None else invstd * weight
            xhat = (x - mean.view(shape)) * invstd.view(shape)
            db = dy.sum(_all_but_channels(x), dtype=xhat.dtype)
            dw = (dy * xhat).sum(_all_but_channels(x))
            sums = torch.stack([db, dw])
            dist.all_reduce(sums)
            mean_dy, mean_dy_xhat = (sums / counts.sum()).view(2, *shape)
            dx = (scale.view(shape) * (dy - mean_dy - xhat * mean_dy_xhat)).to(x.dtype)
        return dx, dw if weight is not None else None, db if ctx.has_bias else None, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]
