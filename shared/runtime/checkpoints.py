"""Checkpoints: all that a stage needs to go on from an update with the same bits.

``state/<step>.safetensors`` in the stage's folder holds the model, the optimizer and, as notes, the
updates done, the seconds spent, the settings, and a hash of all of these. It is written whole, and
the one before goes after that. A damaged one, or one of other settings, is never used.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from shared.runtime.errors import UserError
from shared.runtime.files import open_regular
from shared.runtime.records import parse_json
from shared.runtime.tensors import (
    UnreadableError,
    digest,
    load_tensors,
    require_finite,
    require_fitting,
    save_tensors,
)

LONGEST = 1e10  # seconds of a stage: 300 years


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        tensors: those of the model, and of the optimizer by the number of the weight.
        step: updates done.
        seconds: spent on them.
        settings: what it was made with; None of earlier versions, which noted neither these nor
            a hash.
    """

    tensors: dict[str, Tensor]
    step: int
    seconds: float
    settings: dict[str, Any] | None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a stage's folder, the last one last."""
    return sorted((folder / "state").glob("*.safetensors"))


def save_checkpoint(
    folder: Path,
    step: int,
    seconds: float,
    settings: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write a checkpoint into a stage's folder; the previous ones go once it is there.

    Raises:
        CannotWriteError: the disk is full or not writable; the previous one stays.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    notes = {"step": str(step), "seconds": str(seconds), "settings": json.dumps(settings)}
    older = checkpoints(folder)
    path = folder / "state" / f"{step:09d}.safetensors"
    save_tensors(path, tensors, {**notes, "sha256": digest(tensors, notes)})
    for old in older:
        if old != path:
            with suppress(OSError):  # the next checkpoint tries again
                old.unlink()


def noted_settings(file: Path) -> dict[str, Any] | None:
    """The settings that a checkpoint notes, without reading its tensors.

    None of one of an earlier version, or a damaged one, as reading it will say.
    """
    try:
        with open_regular(file), safe_open(file, framework="pt") as opened:
            return parse_json(opened.metadata()["settings"])
    except Exception:  # the library raises of many kinds
        return None


def read_checkpoint(file: Path) -> Checkpoint:
    """Read a checkpoint and compare its hash.

    Raises:
        UserError: it is damaged.
    """
    try:
        tensors, notes = load_tensors(file)
    except UnreadableError as error:
        raise UserError(f"it {error}") from error
    plain = {key: value for key, value in notes.items() if key != "sha256"}
    hashed = "sha256" in notes or "settings" in notes  # both came with one version
    if hashed and notes.get("sha256") != digest(tensors, plain):
        raise UserError("it is damaged: its content does not have the hash that it notes")
    try:
        settings = parse_json(notes["settings"]) if "settings" in notes else None
        step, seconds = int(notes["step"]), float(notes["seconds"])
    except (KeyError, ValueError) as error:
        raise UserError(f"it does not note its step and seconds ({error})") from error
    if step < 1 or file.stem != f"{step:09d}" or not 0 <= seconds <= LONGEST:
        raise UserError(f"it notes step {step} and {seconds} seconds")
    return Checkpoint(tensors, step, seconds, settings)


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give a model and its optimizer the state that they had.

    Raises:
        UserError: it is not theirs, or a part is missing; nothing is changed then.
    """
    tensors, expected = checkpoint.tensors, expected_tensors(model, optimizer)
    if not _under(tensors, "optimizer."):  # before the first update there is none
        if checkpoint.settings is None:
            raise UserError("the optimizer's state is missing")
        expected = {name: value for name, value in expected.items() if name.startswith("model.")}
    require_fitting(tensors, expected)
    require_finite(tensors)
    slots: dict[int, dict[str, Tensor]] = {}
    weights = _weights(optimizer)
    for name, value in _under(tensors, "optimizer.").items():
        index, _, slot = name.partition(".")
        slots.setdefault(int(index), {})[slot] = _with_strides_of(weights[int(index)], value)
    model.load_state_dict(_under(tensors, "model."))
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def expected_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of a checkpoint after an update, by their names.

    Those of the optimizer have no storage. What it keeps of a weight says one update of a single
    weight: its fused update goes through memory without a look at shapes.
    """
    expected = {f"model.{name}": value for name, value in model.state_dict().items()}
    index = 0
    for group in optimizer.param_groups:
        slots = _slots(optimizer, group)
        for weight in group["params"]:
            for slot, value in slots.items() if weight.requires_grad else ():
                shape = weight.shape if value.ndim else value.shape
                meta = torch.empty(shape, dtype=value.dtype, device="meta")
                expected[f"optimizer.{index}.{slot}"] = meta
            index += 1
    return expected


def _slots(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """What an optimizer keeps of a weight of a group: one number, or a tensor of its shape."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    weight = nn.Parameter(torch.zeros(1, 1, dtype=group["params"][0].dtype))
    weight.grad = torch.zeros_like(weight)
    probe = cast(Any, type(inner))([{**group, "params": [weight]}])
    probe.step()
    return dict(probe.state[weight])


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _with_strides_of(weight: Tensor, value: Tensor) -> Tensor:
    """The value in the memory layout of its weight, as the optimizer made it at first.

    A file holds contiguous tensors. The fused and foreach updates go through weight and moment side
    by side in memory: with different strides they refuse, or pair the wrong elements.
    """
    if value.shape != weight.shape:
        return value  # AdamW's step is one number
    return torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
