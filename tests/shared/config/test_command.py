"""What every command does around its stage."""

import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from shared.config import command
from shared.config.schema import Config
from shared.runtime.errors import UserError

ROOT = Path(__file__).parents[3]
# Prints how many pages the system hands out while 64 MB are used and freed 5 times.
PAGE_FAULTS = """
import resource
import torch
from shared.config.command import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
def test_freed_memory_is_used_again():
    """In a process of its own: in the heap that other tests leave, reuse may begin later."""
    command = [sys.executable, "-c", PAGE_FAULTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000  # else 16,384 each time


@pytest.fixture
def switches():
    """What torch was told about float32 and cuDNN's choice of kernels, as before afterwards."""
    places = [
        (torch.backends.cudnn, "benchmark"),
        (torch.backends.cudnn, "allow_tf32"),
        (torch.backends.cuda.matmul, "allow_tf32"),
    ]
    before = [getattr(*place) for place in places]
    yield lambda: [getattr(*place) for place in places]
    for place, value in zip(places, before, strict=True):
        setattr(*place, value)


def test_without_mixed_precision_a_gpu_computes_in_float32(switches):
    """No GPU is needed to set the switches; torch warns of none, and its own contexts work."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    command.set_up_gpu("bf16")
    assert switches() == [True, True, True]
    command.set_up_gpu("no")
    assert switches() == [True, False, False]
    with torch.backends.cudnn.flags(enabled=False):
        pass
    assert switches() == [True, False, False]


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_command_sets_up_its_gpu(device, precision, monkeypatch):
    precisions = []
    accelerator = MagicMock(mixed_precision=precision, device=torch.device(device), num_processes=1)
    monkeypatch.setattr(command, "Accelerator", lambda **_: accelerator)
    monkeypatch.setattr(command, "set_up_gpu", precisions.append)
    monkeypatch.setattr(command.StopRequest, "listen", lambda: None)
    assert command.run_command(lambda *_: None, Config(precision=precision)) == 0
    assert precisions == ([precision] if device == "cuda" else [])


# ------------------------------------------------------------- what accelerate's launcher is told
@pytest.mark.parametrize(
    ("launcher", "ours", "taken"),
    [
        (None, "no", "no"),
        (None, "bf16", "bf16"),
        ("no", "bf16", "bf16"),  # the launcher says no where nobody asked
        ("no", "no", "no"),
        ("bf16", "auto", "bf16"),
        ("bf16", "bf16", "bf16"),
    ],
)
def test_precision_of_the_launcher(launcher, ours, taken, monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    assert command.precision_of(Config(precision=ours)) == taken


@pytest.mark.parametrize("launcher", [None, "no"])
@pytest.mark.parametrize("hardware", ["bf16", "no"])
def test_auto_is_what_the_hardware_does_fast(launcher, hardware, monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    monkeypatch.setattr(command, "hardware_precision", lambda: hardware)
    assert command.precision_of(Config()) == hardware


@pytest.mark.parametrize(
    ("name", "value", "options", "says"),
    [
        ("MIXED_PRECISION", "fp16", {}, "mixed_precision fp16, but training is in bf16 or float32"),
        ("MIXED_PRECISION", "fp8", {}, "mixed_precision fp8"),
        ("MIXED_PRECISION", "bf16", {"precision": "no"}, "bf16, but --precision is no; give one"),
        ("GRADIENT_ACCUMULATION_STEPS", "4", {}, "4 gradient accumulation steps.*micro_batch"),
        ("DYNAMO_BACKEND", "INDUCTOR", {}, "dynamo backend inductor.*--compile true"),
        ("USE_FSDP", "true", {}, "configured for FSDP, but artifacts"),
        ("USE_DEEPSPEED", "true", {}, "configured for DEEPSPEED, but artifacts"),
        ("USE_MEGATRON_LM", "true", {}, "configured for MEGATRON_LM, but artifacts"),
    ],
)
def test_what_the_launcher_may_not_ask_for(
    name, value, options, says, monkeypatch, tmp_path, capsys
):
    """One line and exit code 2, before anything is made."""
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    config = Config(output=str(tmp_path / "out"), **options)
    assert command.run_command(lambda *_: pytest.fail("ran"), config) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(says, error), error
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------- one file system
def processes(monkeypatch, main: bool, others_miss: bool = False) -> SimpleNamespace:
    """What this process sees of itself and, through ``agree``, of the others."""
    monkeypatch.setattr(command, "agree", lambda flag, number: (flag or others_miss, number))
    return SimpleNamespace(is_main_process=main, wait_for_everyone=lambda: None)


def test_a_folder_that_all_processes_see(monkeypatch, tmp_path):
    folder = tmp_path / "new" / "runs"
    command.require_shared_folder(folder, processes(monkeypatch, main=True))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("main", [True, False])
def test_a_folder_that_one_process_does_not_see(main, monkeypatch, tmp_path):
    """All processes learn of it, also those that see the folder."""
    accelerator = processes(monkeypatch, main, others_miss=main)
    with pytest.raises(UserError, match=r"not every process sees .*runs.*all machines"):
        command.require_shared_folder(tmp_path / "runs", accelerator, patience=0.2)


# ---------------------------------------------------------------------------------------- trackers
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_runs(
    name, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(command, "get_available_trackers", list)
    config = Config(tracker=name, output=str(tmp_path / "o"))
    assert command.run_command(lambda *_: pytest.fail("it ran"), config) == 2
    assert capsys.readouterr().err.startswith(f"error: --tracker {name} is not installed here; ")
    assert not (tmp_path / "o").exists()


def test_an_installed_tracker_and_none_are_all_right():
    command.require_tracker("none")
    command.require_tracker("tensorboard")
