"""What every import ends with: a look at the network's output, and the artifact folder."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from shared.runtime.errors import UserError
from shared.runtime.files import clean, write_atomically
from shared.runtime.lock import held
from shared.runtime.provenance import provenance
from shared.runtime.records import REDO, read_json
from shared.runtime.tensors import save_tensors, sha256


def require_empty(out: Path) -> None:
    """UserError where a folder holds an artifact that was trained, or is being trained.

    An imported one is compared when all is known that the new one would say (`write_artifact`).
    """
    trained = (out / "settings.json").exists()
    if not trained and (out / "meta.json").exists():
        trained = read_json(out / "meta.json", REDO).get("stage") != "import"
    if trained:
        raise UserError(_occupied(out))


def _occupied(out: Path) -> str:
    return f"{out} holds an artifact; delete it or choose another folder"


def require_expected(files: Iterable[Path], expect: Collection[str]) -> dict[str, str]:
    """The sha256 of each file of published weights, by its name.

    Args:
        files: that will be read.
        expect: the hashes that they must have; empty where any will do.

    Raises:
        UserError: a file has another one, or a text is no sha256.
    """
    expect = [text.lower().removeprefix("sha256:") for text in expect]
    if odd := [text for text in expect if not re.fullmatch(r"[0-9a-f]{64}", text)]:
        raise UserError(f"--expect {odd[0]} is no sha256, which has 64 hexadecimal digits")
    digests = {file.name: sha256(file) for file in files}
    for name, digest in digests.items():
        if expect and digest not in expect:
            raise UserError(
                f"{name} has the sha256 {digest}, which is not the expected {', '.join(expect)};"
                " nothing of it was read: get the file again, from where the hash is from"
            )
    return digests


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
    """Write the weights, then ``meta.json``, which finishes it (as ``StageFolder.finish`` does).

    The same import again leaves what is there: it may have been killed just before its end.

    Raises:
        UserError: the folder holds another artifact.
    """
    with held(out, advice="choose another folder"):
        require_empty(out)  # another process may have made one meanwhile
        clean(out, alone=True)
        if (out / "meta.json").exists():
            there = read_json(out / "meta.json", REDO)
            if any(there.get(key) != value for key, value in json.loads(json.dumps(meta)).items()):
                raise UserError(_occupied(out))
            return
        weights = out / "model.safetensors"
        save_tensors(weights, model.state_dict(), {})
        complete = {**meta, "weights_sha256": sha256(weights), **provenance()}
        write_atomically(out / "meta.json", json.dumps(complete, indent=1))
