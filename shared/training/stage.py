"""What the three loops call: the plan of steps and rates, the checks, the rare things."""

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.command import Stopped, StopRequest
from shared.config.methods import FORCEABLE, ancestors
from shared.config.schema import Augmentation, Config, Training, defaults, hashed_settings
from shared.data.images import ImageSet, Splits
from shared.networks.batchnorm import synchronize
from shared.networks.encoders import checkpoint_activations, fold_batch_norm
from shared.networks.heads import Classifier
from shared.runtime.artifacts import StageFolder
from shared.runtime.errors import UserError
from shared.training.optim import (
    learning_rate_at,
    scaled_learning_rate,
    training_steps,
    warmup_steps,
)
from shared.training.runlog import RunLog

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Plan:
    """Steps and learning rates of a stage.

    Attributes:
        steps: updates in all.
        warmup: updates of linear warmup.
        peak: learning rate at the end of the warmup, after scaling by the global batch size.
    """

    steps: int
    warmup: int
    peak: float

    def learning_rate(self, step: int) -> float:
        """The rate of update ``step`` (counted from 0)."""
        return learning_rate_at(step, self.steps, self.warmup, self.peak)


def plan(training: Training, images: int) -> Plan:
    """Turn epochs into steps and scale the rate, as the reference does.

    Raises:
        UserError: where the warmup is as long as the whole stage.
    """
    size = training.batch_size
    steps = training.steps or training_steps(images, training.epochs, size)
    warmup = warmup_steps(images, training.warmup_epochs, size)
    if warmup >= steps:
        raise UserError(
            f"{training.section}.warmup_epochs={training.warmup_epochs} is {warmup} steps, but the"
            f" stage has only {steps}; make it shorter or train longer"
        )
    peak = scaled_learning_rate(training.learning_rate, size, training.learning_rate_scaling)
    return Plan(steps, warmup, peak)


def warnings_for(config: Config, images: ImageSet) -> list[str]:
    """What pretraining can do but is hardly meant, a line each."""
    cfg, size, found = config.pretrain, config.data.image_size, []
    if cfg.batch_size > len(images):
        found.append(
            f"note: a batch of {cfg.batch_size} has some of the {len(images)} images more than"
            " once, as negatives of themselves; a smaller --pretrain.batch_size?"
        )
    with suppress(UserError):  # an unreadable image is for the batches to report
        shape = images.decode(0).shape[1:]
        if size <= 96 and min(shape) >= 3 * size:
            found.append(
                f"note: the first image has {shape[1]} x {shape[0]} pixels, and the network sees"
                f" {size} x {size}; another recipe (--config, see configs/) or --data.image_size?"
            )
    return found


def open_stage(
    config: Config, accelerator: Accelerator, stage: str, name: str, settings: dict[str, Any]
) -> StageFolder:
    """The stage's folder ``<output>/<run>/<name>``, new, unfinished or done.

    Args:
        config: its data, augmentation and precision count for every stage.
        accelerator: of this process.
        stage: as ``--force`` names it.
        name: of the folder.
        settings: what else the stage's content depends on.

    Raises:
        UserError: where the folder was made with other settings.
    """
    everything = {
        "stage": stage,
        **hashed_settings(config.data, "data"),
        **hashed_settings(config.augment, "augment"),
        "precision": accelerator.mixed_precision,
        **settings,
    }
    path, force = config.folder / name, forced(config, stage)
    go_on = same_command(config, stage)
    folder = StageFolder(
        path, everything, force=force, accelerator=accelerator, go_on=go_on, defaults=defaults()
    )
    if folder.done:
        accelerator.print(f"{stage}: already done, {path}")
    return folder


def settings_of_test_images(splits: Splits) -> dict[str, str | None]:
    """What settings say of the test images, so that a mended test set is measured anew."""
    if splits.test is None:
        return {"test_images": None}
    return {"test_images": f"{splits.test.fingerprint}-{splits.test.labels_fingerprint}"}


def forced(config: Config, stage: str) -> bool:
    """Whether ``--force`` asks for the stage, or for one that it is made from."""
    return not {"all", stage, *ancestors(stage)}.isdisjoint(config.force.split(","))


def same_command(config: Config, stage: str) -> str:
    """What goes on after a stop: the same command, but ``--force`` only for what comes later."""
    later = ",".join(s for s in FORCEABLE[FORCEABLE.index(stage) + 1 :] if forced(config, s))
    change = f", now with --force {later}," if later else ", now without --force,"
    return "run the same command" + (change if config.force else "")


def augmentation_for(augment: Augmentation, kind: str) -> Augmentation | None:
    """The part of the augmentation that a stage uses: full, crop (no colour, no blur) or none."""
    if kind == "none":
        return None
    return augment if kind == "full" else replace(augment, color_strength=0.0, blur=0.0)


def to_device(model: M, config: Config, accelerator: Accelerator) -> M:
    """Move a model, in the memory layout that suits the precision, batch norm over processes.

    One that is to be trained also gets its activations checkpointed and its encoder compiled, where
    that is asked for.

    Raises:
        UserError: where the model or the machine cannot do what is asked for.
    """
    try:
        if accelerator.num_processes > 1:
            synchronize(model)
        if config.checkpoint_activations or config.compile:
            encoder = model.get_submodule("encoder")
            trained = any(p.requires_grad for p in encoder.parameters())
            if trained and config.checkpoint_activations:
                checkpoint_activations(encoder)
            if trained and config.compile:
                require_compiler()
                encoder.compile()  # in place: names, and so checkpoints, stay what they are
    except ValueError as error:
        raise UserError(str(error)) from error
    mixed = accelerator.mixed_precision != "no"
    if config.channels_last == "yes" or (config.channels_last == "auto" and mixed):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(accelerator.device)


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


def require_finite(
    loss: Callable[[], float], step: int, learning_rate: float, folder: StageFolder
) -> None:
    """Stop before the update where the loss, as given by `read_later`, is not a number.

    Raises:
        UserError: naming step, learning rate and the last good checkpoint.
    """
    if not math.isfinite(value := loss()):
        raise UserError(
            f"the loss is {value} at step {step} of {folder.stage} (learning rate"
            f" {learning_rate:.3g}); start another --run with a lower rate or a longer warmup;"
            f" last good checkpoint: {folder.last_checkpoint()}"
        )


@dataclass
class Keeper:
    """Saves a stage's state when it is due, and when the run is asked to stop.

    Args:
        folder: where to.
        every: updates between two checkpoints.
        total: updates of the stage.
        log: closed when the run stops.
        accelerator: of this process.
        spent: seconds that earlier parts of an interrupted run took.
    """

    folder: StageFolder
    every: int
    total: int
    log: RunLog
    accelerator: Accelerator
    spent: float
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Wall time of the stage so far, interruptions left out."""
        return self.spent + time.perf_counter() - self.began

    def say_done(self, result: Mapping[str, Any] | None = None) -> None:
        """Print how long the stage took and, where it was evaluated, its top-1."""
        top1 = f", top-1 {100 * result['top1']:.1f} %" if result and "top1" in result else ""
        stage, path = self.folder.stage, self.folder.path
        self.accelerator.print(f"{stage}: done in {self.seconds:.0f} s{top1}, {path}")

    def after(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Checkpoint after ``step`` updates if it is time; after the last the artifact is saved.

        Raises:
            UserError: where what would be saved, weights or statistics, is not finite.
            Stopped: after saving, where SIGTERM or SIGINT has arrived.
        """
        stop = StopRequest.agreed(step)
        if stop or step % self.every == 0 or step == self.total:
            model = self.accelerator.unwrap_model(model)
            if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
                raise UserError(
                    f"weights are not finite after step {step} of {self.folder.stage}; start"
                    " another --run with a lower learning rate or a longer warmup; last good"
                    f" checkpoint: {self.folder.last_checkpoint()}"
                )
            if stop or step < self.total:
                self.folder.save_state(step, self.seconds, model, optimizer)
        if stop:
            self.log.close()
            raise Stopped(
                f"stopped as asked after step {step} of {self.total} of {self.folder.stage};"
                f" the state is saved: {self.folder.go_on} to go on"
            )
