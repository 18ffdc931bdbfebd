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
from accelerate.state import AcceleratorState

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


@pytest.fixture
def no_accelerator():
    """accelerate keeps one state per process; forget the one before, and this one after."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


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
    accelerator = MagicMock(num_processes=1)
    monkeypatch.setattr(command, "device_type", lambda: device)
    monkeypatch.setattr(command, "_Accelerator", lambda **_: accelerator)
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
    assert command.precision_of(Config(precision=ours), "cpu") == taken


@pytest.mark.parametrize("launcher", [None, "no"])
@pytest.mark.parametrize("hardware", ["bf16", "no"])
def test_auto_is_what_the_hardware_does_fast(launcher, hardware, monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    monkeypatch.setattr(command, "hardware_precision", lambda device: hardware)
    assert command.precision_of(Config(), "cpu") == hardware


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
        ("USE_PARALLELISM_CONFIG", "true", {}, "configured for PARALLELISM_CONFIG, but artifacts"),
        (
            "TORCH_DEVICE",
            "mps",
            {},
            "device mps, but training here is on .*ACCELERATE_TORCH_DEVICE",
        ),
        ("TORCH_DEVICE", "xpu:1", {}, "device xpu, but training here is on .*launch --cpu"),
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


@pytest.mark.parametrize("machine_has", ["mps", "xpu", "npu"])
def test_other_accelerators_leave_training_on_the_cpu_and_one_line_says_so(
    machine_has, monkeypatch, tmp_path, capsys, no_accelerator
):
    """accelerate itself would take the device: its own search is made to find one."""
    detector = f"accelerate.state.is_{machine_has}_available"
    monkeypatch.setattr(detector, lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    device = SimpleNamespace(type=machine_has)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: device)
    devices = []
    config = Config(output=str(tmp_path))
    assert command.run_command(lambda _, a: devices.append(a.device.type), config) == 0
    assert devices == ["cpu"]
    says = f"training is on the CPU: the stages have not been tried on {machine_has} devices\n"
    assert capsys.readouterr() == (says, "")


@pytest.mark.parametrize(
    ("environment", "device"),
    [
        ({}, "cuda"),
        ({"ACCELERATE_USE_CPU": "True"}, "cpu"),
        ({"ACCELERATE_USE_CPU": "False"}, "cuda"),
        ({"ACCELERATE_TORCH_DEVICE": "cpu"}, "cpu"),
        ({"ACCELERATE_TORCH_DEVICE": "cuda:1"}, "cuda"),
    ],
)
def test_where_there_is_a_gpu(environment, device, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    mkldnn = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", mkldnn)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert command.device_type() == device
    # as the device that is trained on does it, not one beside it
    assert command.precision_of(Config(), device) == {"cuda": "no", "cpu": "bf16"}[device]


def test_a_processor_is_what_torch_and_onednn_may_use_of_it(monkeypatch):
    """ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA are read once, by the libraries."""
    for amx, avx512_bf16, capability, onednn, precision in [
        (True, True, "AVX512", True, "bf16"),
        (True, False, "AVX512", True, "bf16"),
        (False, True, "AVX512", True, "bf16"),
        (False, False, "AVX512", True, "no"),
        (True, True, "AVX2", True, "no"),
        (True, True, "AVX512", False, "no"),
    ]:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda there=amx: there)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=avx512_bf16: there)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        mkldnn = SimpleNamespace(_is_mkldnn_bf16_supported=lambda supported=onednn: supported)
        monkeypatch.setattr(torch.ops, "mkldnn", mkldnn)
        assert command.hardware_precision("cpu") == precision


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"device cuda, but .* torch finds no GPU"):
        command.device_type()


def test_a_tpu_is_refused(monkeypatch):
    monkeypatch.setattr(command, "is_torch_xla_available", lambda: True)
    with pytest.raises(UserError, match=r"torch_xla is installed.*without torch_xla"):
        command.device_type()


@pytest.mark.parametrize("error", [ImportError, NotImplementedError, ValueError])
def test_what_accelerate_itself_refuses_is_one_line(error, monkeypatch, capsys):
    """Such as old drivers of two RTX 4090, or a missing package for CPU affinity."""

    def refuse(**_):
        raise error("set NCCL_P2P_DISABLE\nand NCCL_IB_DISABLE")

    monkeypatch.setattr(command, "_Accelerator", refuse)
    assert command.run_command(lambda *_: pytest.fail("ran"), Config()) == 2
    says = "error: accelerate cannot start: set NCCL_P2P_DISABLE and NCCL_IB_DISABLE\n"
    assert capsys.readouterr().err == says


LAUNCHERS = {
    # what each sets for a process
    "accelerate --num_processes 2": {"ACCELERATE_USE_CPU": "False", "MASTER_ADDR": "127.0.0.1"},
    "accelerate --cpu --num_processes 2": {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "h"},
    "accelerate": {"ACCELERATE_USE_CPU": "False"},
    "accelerate by mpirun": {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "h", "PMI_SIZE": "2"},
    "torchrun": {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"},
    "python": {"MASTER_ADDR": "left over"},
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_that_starts_one_process_for_several(launcher, monkeypatch):
    for name in {name for names in LAUNCHERS.values() for name in names}:
        monkeypatch.delenv(name, raising=False)
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    if "num_processes" in launcher:
        with pytest.raises(UserError, match=r"asked for several .* torchrun --nproc_per_node 2"):
            command.refuse_launcher_settings()
    else:
        command.refuse_launcher_settings()


# ------------------------------------------------------------------------- lost processes
def fail_with(error):
    def stages(*_):
        raise error

    return stages


GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:543] Connection closed by peer [::1]:4"


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("lost", [GLOO, "NCCL error: remote process exited", "Broken pipe"])
def test_a_process_that_loses_another_leaves_quietly(lost, first, monkeypatch, capsys, tmp_path):
    """One line where nobody has said why, as after a kill; nothing after another's error line."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(command, "start", lambda config: None)
    monkeypatch.setattr(command, "fails_first", lambda: first)
    assert command.run_command(fail_with(RuntimeError(lost)), Config()) == 1
    says = capsys.readouterr().err
    assert says.count("\n") == first
    assert (lost in says) == first


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), RuntimeError("shapes"), OSError("x")])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_defect_keeps_its_traceback(error, processes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr(command, "start", lambda config: None)
    monkeypatch.setattr(command, "fails_first", lambda: True)
    with pytest.raises(type(error)):
        command.run_command(fail_with(error), Config())


@pytest.mark.parametrize("first", [True, False])
def test_bad_input_is_told_by_the_first_process(first, monkeypatch, capsys):
    monkeypatch.setattr(command, "start", lambda config: None)
    monkeypatch.setattr(command, "fails_first", lambda: first)
    assert command.run_command(fail_with(UserError("no such data")), Config()) == 2
    assert capsys.readouterr().err == ("error: no such data\n" if first else "")


# ---------------------------------------------------------------------------- one file system
def processes(monkeypatch, main: bool, others_miss: bool = False) -> SimpleNamespace:
    """What this process sees of itself and, through ``agree``, of the others."""
    monkeypatch.setattr(command, "agree", lambda flag, number: (flag or others_miss, number))
    monkeypatch.setattr(command, "word_of_main", lambda word: ".token")
    return SimpleNamespace(is_main_process=main, wait_for_everyone=lambda: None)


def test_a_folder_that_all_processes_see(monkeypatch, tmp_path):
    """What the check made is gone; what was there stays."""
    folder = tmp_path / "new" / "runs"
    command.require_shared_folder(folder, processes(monkeypatch, main=True))
    assert list(tmp_path.iterdir()) == []
    (folder / "digits").mkdir(parents=True)
    command.require_shared_folder(folder, processes(monkeypatch, main=True))
    assert list(folder.iterdir()) == [folder / "digits"]


@pytest.mark.parametrize("main", [True, False])
def test_a_folder_that_one_process_does_not_see(main, monkeypatch, tmp_path):
    """All processes learn of it, also those that see the folder."""
    accelerator = processes(monkeypatch, main, others_miss=main)
    with pytest.raises(UserError, match=r"not every process sees .*runs.*all machines"):
        command.require_shared_folder(tmp_path / "runs", accelerator, patience=0.2)
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("text", ["\x1b[2J", "a\rb", "\u202eb", "\udcff"])
def test_what_the_accelerator_prints_moves_no_cursor(text, capsys):
    command._Accelerator(cpu=True).print(f"x {text}\ny")
    first, second = capsys.readouterr().out.splitlines()
    assert first.isprintable()
    assert second == "y"
