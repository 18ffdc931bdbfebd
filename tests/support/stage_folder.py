"""A stage's folder for the tests, and what it refuses."""

from pathlib import Path

import pytest

from shared.runtime.artifacts import StageFolder
from shared.runtime.errors import UserError
from tests.support.photos import process

SETTINGS = {"stage": "finetune", "finetune.learning_rate": 0.1, "data.mean": (0.0, 0.0, 0.0)}


def folder(path: Path, force=False, of=None, **changes) -> StageFolder:
    """``changes`` use __ for the dot in a setting's name."""
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    return StageFolder(path / "run/finetune", settings, force=force, accelerator=of or process())


def message(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
