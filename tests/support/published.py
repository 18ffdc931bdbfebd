"""Weights as somebody might have published them: of timm's networks, drawn on the spot."""

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

NETWORKS = ("vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050")


def publish(name: str, path: Path) -> dict[str, Tensor]:
    """Save a network with its classifier, in the format of the file's ending."""
    torch.manual_seed(0)
    tensors = timm.create_model(name).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return tensors


def describe(name: str, folder: Path, **seen: object) -> None:
    """The ``config.json`` that timm writes beside published weights."""
    notes = {"architecture": name, "num_classes": 1000, "pretrained_cfg": seen}
    (folder / "config.json").write_text(json.dumps(notes))
