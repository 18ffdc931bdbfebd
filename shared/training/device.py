"""Models on their device, in the memory layout and precision that suit it."""

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.schema import Config
from shared.networks.batchnorm import synchronize
from shared.networks.encoders import checkpoint_activations, fold_batch_norm
from shared.networks.heads import Classifier
from shared.runtime.errors import UserError

M = TypeVar("M", bound=nn.Module)


def to_device(model: M, config: Config, accelerator: Accelerator) -> M:
    """Move a model, in the memory layout that suits the precision, batch norm over processes.

    Raises:
        UserError: its batch norm cannot be computed over several processes.
    """
    if accelerator.num_processes > 1:
        try:
            synchronize(model)
        except ValueError as error:
            raise UserError(str(error)) from error
    # on CPU it pays in float32 too (docs/performance.md); on GPUs nobody has measured that
    pays = accelerator.mixed_precision != "no" or accelerator.device.type == "cpu"
    if config.channels_last == "yes" or (config.channels_last == "auto" and pays):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if accelerator.num_processes > 1:
        let_gradients_lie_as_weights(model)
    return model.to(accelerator.device)


def prepare_to_train(model: M, config: Config, accelerator: Accelerator) -> M:
    """`to_device` for a model with an ``encoder`` that is to be trained.

    The encoder's activations are checkpointed and it is compiled, where that is asked for and some
    of it is trained.

    Raises:
        UserError: where the model or the machine cannot do what is asked for.
    """
    make_lean(model, config)
    return to_device(model, config, accelerator)


def make_lean(model: nn.Module, config: Config) -> None:
    """Have activations checkpointed and the encoder compiled; UserError where it cannot be done."""
    encoder = model.get_submodule("encoder")
    if not any(p.requires_grad for p in encoder.parameters()):
        return
    if config.checkpoint_activations:
        try:
            checkpoint_activations(encoder)
        except ValueError as error:
            raise UserError(str(error)) from error
    if config.compile:
        require_compiler()
        encoder.compile()  # in place: names, and so checkpoints, stay what they are


def let_gradients_lie_as_weights(model: nn.Module) -> None:
    """Give the gradients of 1 x 1 kernels the strides of their weights; no number changes.

    The stride of a dimension of one element is arbitrary. A convolution's backward pass chooses it
    in its own way, and then DistributedDataParallel warns that gradients are not as its buckets.
    """

    def as_weight(gradient: Tensor, shape: torch.Size, strides: tuple[int, ...]) -> Tensor:
        for size, ours, theirs in zip(shape, strides, gradient.stride(), strict=True):
            if size > 1 and ours != theirs:
                return gradient  # lies otherwise in memory
        return gradient.as_strided(shape, strides)

    for weight in model.parameters():
        if weight.requires_grad and 1 in weight.shape:
            weight.register_hook(partial(as_weight, shape=weight.shape, strides=weight.stride()))


def free_bytes(accelerator: Accelerator) -> int:
    """Memory that is free where the networks are trained."""
    if accelerator.device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def require_compiler() -> None:
    """UserError where there is no C++ compiler, without which torch.compile makes nothing."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        raise UserError(
            f"--compile needs a C++ compiler, and there is no {name} here (the environment variable"
            " CXX may name another); install one or leave --compile out"
        )


def to_inference(model: Classifier, config: Config, accelerator: Accelerator) -> Classifier:
    """Move a model that only predicts: frozen, batch norm folded, in the precision it computes in.

    Autocast would convert the convolutions' weights again in every pass.
    """
    model = model.eval().requires_grad_(False)
    model.encoder = fold_batch_norm(model.encoder)
    if accelerator.mixed_precision == "bf16":
        for module in model.encoder.modules():
            if isinstance(module, nn.Conv2d):
                module.to(torch.bfloat16)
    return to_device(model, config, accelerator)


def read_later(number: Tensor) -> Callable[[], float]:
    """Start to copy a number to the host; the function returned gives it.

    That waits until the number is computed, but not for what a GPU was given to do after that: so
    between the two calls the backward pass can be queued, and the GPU never runs dry.
    """
    if number.device.type != "cuda":
        return number.item
    host = torch.empty_like(number, device="cpu", requires_grad=False, pin_memory=True)
    host.copy_(number.detach(), non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> float:
        arrived.synchronize()
        return host.item()

    return read
