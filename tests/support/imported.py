"""``stages.import_weights`` as a command, what it leaves or refuses, and checkpoints to give it."""

import json
from pathlib import Path

from shared.networks.resnet import reference_names
from stages.import_weights import command
from stages.import_weights.tf_checkpoint import open_checkpoint
from tests.support.tensorflow_files import rewrite


def run(source, out, *flags: str) -> int:
    return command.main([str(source), str(out), *flags])


def meta_of(out: Path) -> dict:
    return json.loads((out / "meta.json").read_text())


def fails(capsys, source, out, *flags: str) -> str:
    """The one line of a refusal, after which there is no artifact."""
    assert run(source, out, *flags) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not (out / "meta.json").exists()
    return captured.err


def tensorflow_shapes(encoder) -> dict[str, tuple[int, ...]]:
    state = encoder.state_dict()
    shapes = {name: tuple(state[ours].shape) for name, ours in reference_names(encoder).items()}
    return {n: (s[2], s[3], s[1], s[0]) if len(s) == 4 else s for n, s in shapes.items()}


def edited(folder: Path, source: Path, change) -> Path:
    """The checkpoint after ``change(entries)``."""
    entries = dict(open_checkpoint(source).entries)
    change(entries)
    return rewrite(folder, source, entries)
