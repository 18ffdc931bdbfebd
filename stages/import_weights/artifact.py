"""What every import ends with: a look at the network's output, and the artifact folder."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from shared.runtime.artifacts import provenance, save_tensors, sha256, write_atomically
from shared.runtime.errors import UserError
from shared.runtime.files import clean
from shared.runtime.lock import held


def require_empty(out: Path) -> None:
    """UserError where a folder holds an artifact, or one that is being made."""
    if (out / "meta.json").exists() or (out / "settings.json").exists():
        raise UserError(f"{out} holds an artifact; delete it or choose another folder")


@torch.inference_mode()
def check_output(model: nn.Module, image_size: int) -> None:
    """UserError where the network's output for a random image is not finite."""
    image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    if not model.eval()(image).isfinite().all():
        raise UserError(
            "self-check failed: the network's output is not finite; are these weights"
            " of a run that diverged?"
        )


def write_artifact(out: Path, model: nn.Module, meta: Mapping[str, object]) -> None:
    """Write the weights, then ``meta.json``, which finishes it (as ``StageFolder.finish`` does)."""
    with held(out):
        require_empty(out)  # another process may have made one meanwhile
        clean(out, alone=True)
        weights = out / "model.safetensors"
        save_tensors(weights, model.state_dict(), {})
        complete = {**meta, "weights_sha256": sha256(weights), **provenance()}
        write_atomically(out / "meta.json", json.dumps(complete, indent=1))
