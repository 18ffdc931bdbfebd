"""Two processes on CPU (gloo) train as one process with the whole batch does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.toy_run import TINY

ONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def run(launcher: list[str], output: Path) -> subprocess.CompletedProcess:
    options = [
        "--pretrain.log_every_steps=1",
        "--distill.log_every_steps=1",
        *(f"--{s}.batch_size=14" for s in ("finetune", "supervised", "linear")),
    ]
    command = [*launcher, "pipeline.py", *TINY, *options, f"--output={output}"]
    return subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    outputs = {}
    for name, launcher in (("one", ONE), ("two", TWO)):
        outputs[name] = tmp_path_factory.mktemp(name)
        finished = run(launcher, outputs[name])
        assert finished.returncode == 0, finished.stderr
        outputs[name + " printed"] = finished.stdout
    return outputs


def test_same_losses_and_weights(runs):
    """Global batch, gathered negatives, global batch norm, averaged gradient: float32 rounding."""
    for stage in ("pretrain", "finetune-1pct-seed0", "distill-1pct-seed0"):
        folders = [runs[name] / "digits" / stage for name in ("one", "two")]
        lines = [[json.loads(x) for x in (f / "metrics.jsonl").open()] for f in folders]
        assert len(lines[0]) == len(lines[1]) > 0
        for one, two in zip(*lines, strict=True):
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-4), (stage, one, two)
        one, two = (load_file(f / "model.safetensors") for f in folders)
        for name, tensor in one.items():
            assert two[name].sub(tensor).abs().max() < 2e-3, (stage, name)


def test_every_line_is_printed_once(runs):
    assert runs["two printed"].count("fine-tuned teacher") == 1
    assert runs["two printed"].count("pretrain: 1,437 images") == 1


def test_same_table(runs):
    """Two processes divide the 360 test images and count each once."""
    tables = [
        [json.loads(x) for x in (runs[name] / "digits/results.jsonl").open()]
        for name in ("one", "two")
    ]
    for one, two in zip(*tables, strict=True):
        assert abs(one["top1"] - two["top1"]) <= 2 / 360 + 1e-9
        assert two["nll"] == pytest.approx(one["nll"], rel=1e-2)
