"""A stage's folder for the tests, a network to train in it, and what it refuses."""

from pathlib import Path

import pytest
import torch
from torch import nn

from shared.runtime.errors import UserError
from shared.runtime.stage_folder import StageFolder
from shared.runtime.tensors import sha256
from shared.training.optim import build_optimizer, set_learning_rate
from tests.support.photos import process

SETTINGS = {"stage": "finetune", "finetune.learning_rate": 0.1, "data.mean": (0.0, 0.0, 0.0)}
META = {"kind": "encoder", "encoder": "x", "image_size": 8}


def folder(path: Path, force=False, of=None, **changes) -> StageFolder:
    """``changes`` use __ for the dot in a setting's name."""
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    return StageFolder(path / "run/finetune", settings, force=force, accelerator=of or process())


def message(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(step))
        set_learning_rate(optimizer, 0.1 / (step + 1))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def files(path: Path) -> dict[str, str]:
    """Every file below, with its hash."""
    return {str(f.relative_to(path)): sha256(f) for f in path.rglob("*") if f.is_file()}


def checkpointed(tmp_path) -> tuple[StageFolder, Path]:
    """A stage that was stopped after two updates, and its checkpoint."""
    stage, model = folder(tmp_path), network()
    optimizer = build_optimizer("adamw", model, 0.1)
    train(model, optimizer, range(2))
    stage.start("")
    stage.save_state(2, 0.5, model, optimizer)
    return stage, stage.path / "state/000000002.safetensors"
