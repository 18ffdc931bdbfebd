"""Several processes as launchers start them: patient, on two machines, refused, lost, stopped."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch.distributed import distributed_c10d

import pipeline
from shared.config import command
from shared.config.schema import Config
from shared.runtime.distributed import fails_first, lost_contact, word_of_main
from shared.runtime.errors import UserError
from tests.support.gloo import free_port
from tests.support.toy_run import TINY, call

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TWO = [*TORCHRUN, "--standalone", "--nproc-per-node=2"]


# ------------------------------------------------------------------------------ waiting and failing
def wait_and_fail(number: int, ports: tuple[int, int], folder: Path) -> None:
    """What one of two processes goes through; torch's default timeout is shrunk to a second."""
    torch.set_num_threads(1)
    places = {name: str(number) for name in ("RANK", "LOCAL_RANK")}
    sizes = {name: "2" for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    os.environ |= {**places, **sizes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
    distributed_c10d._get_default_timeout = lambda backend: timedelta(seconds=1)

    # the control: with the default timeout the run would end while the main process works alone
    dist.init_process_group("gloo")
    time.sleep(2 if number == 0 else 0)
    if number == 1:
        with pytest.raises(RuntimeError) as error:
            dist.barrier()
        assert lost_contact(error.value)
    dist.destroy_process_group()

    os.environ["MASTER_PORT"] = str(ports[1])
    accelerator = command.start(Config(output=str(folder / "out")))
    assert not (folder / "out").exists()
    time.sleep(2 if number == 0 else 0)
    accelerator.wait_for_everyone()
    for _ in range(2):
        assert word_of_main(f"of {number}") == "of 0"
    with pytest.raises(UserError, match="not every process sees"):
        command.require_shared_folder(folder / str(number), accelerator, patience=0.2)
    assert not list(folder.iterdir())
    # number 1 comes first, and leaves the word to number 0, which meets the error as well
    time.sleep(0.3 if number == 0 else 0)
    assert fails_first() == (number == 0)
    accelerator.wait_for_everyone()
    os._exit(0)  # at the same moment; a group that is being destroyed may wait for the other's end


@pytest.mark.slow
def test_processes_wait_for_a_slow_main_process_and_tell_an_error_once(tmp_path):
    mp.spawn(wait_and_fail, ((free_port(), free_port()), tmp_path), nprocs=2)


# --------------------------------------------------------------------------------- by torchrun
def launch(arguments: list[str], folder: Path = ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def on_two_machines(folders: list[Path], *options: str) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each machine's launcher; each runs in its own folder."""
    meeting = ["--nnodes=2", "--nproc-per-node=1", f"--master-port={free_port()}"]
    launched = [
        launch([*TORCHRUN, *meeting, f"--node-rank={i}", "--", *command_of(*options)], folder)
        for i, folder in enumerate(folders)
    ]
    outputs = [machine.communicate(timeout=300) for machine in launched]
    return [(m.returncode, *out) for m, out in zip(launched, outputs, strict=True)]


def command_of(*options: str) -> list[str]:
    return [str(ROOT / "pipeline.py"), *TINY, *options]


def own_lines(stderr: str) -> list[str]:
    """Without those of the launcher."""
    return [line for line in stderr.splitlines() if line.startswith(("error: ", "stopped "))]


def tracebacks(stderr: str) -> int:
    """Of the processes; the launcher's own is one."""
    return stderr.count("Traceback (most recent call last)") - 1


@pytest.mark.slow  # tests/shared/config/test_command.py has it without launchers
def test_two_machines_without_a_common_folder(tmp_path):
    """Each sees its own folder of that name: one line, by the main process, and nobody waits."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    ends = on_two_machines(folders, "--output=out")
    assert "exitcode  : 2 " in ends[0][2]
    assert "exitcode  : 2 " in ends[1][2]
    lines = [own_lines(stderr) for _, _, stderr in ends]
    assert lines[1] == []
    (line,) = lines[0]
    assert line.startswith("error: not every process sees out: ")
    assert [tracebacks(stderr) for _, _, stderr in ends] == [0, 0]
    assert [list(folder.iterdir()) for folder in folders] == [[], []]


@pytest.mark.slow
def test_two_machines_train_as_one_process_does(tmp_path):
    log = ["--pretrain.log_every_steps=1", "--distill.log_every_steps=1"]
    log += [f"--{stage}.batch_size=14" for stage in ("finetune", "supervised", "linear")]
    ends = on_two_machines([tmp_path, tmp_path], *log, "--output=two")
    assert [code for code, _, _ in ends] == [0, 0], ends
    first = "2 processes on 2 machines, cpu; all of them see the folder two"
    assert [stdout.count(first) for _, stdout, _ in ends] == [1, 0]
    assert call(pipeline.main, tmp_path / "one", *log) == 0
    for stage in ("pretrain", "finetune-1pct-seed0", "distill-1pct-seed0"):
        folders = [tmp_path / name / "digits" / stage for name in ("one", "two")]
        losses = [
            [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]
            for folder in folders
        ]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        one, two = (load_file(folder / "model.safetensors") for folder in folders)
        for name, tensor in one.items():
            assert two[name].sub(tensor).abs().max() < 2e-3, (stage, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--lables=1pct"], "unknown option --lables; did you mean --labels?"),
        (["--labels=200pct"], "the share must be above 0"),
        (["--labels=absent.csv"], "cannot read the label file absent.csv"),
        (["--labels=9999perclass"], "it must be 1perclass to"),
        (["--finetune.batch_size=1"], "leaves some of the 2 processes without an image"),
        (["--data.train=absent", "--tracker=tensorboard"], "no folder or file is called 'absent'"),
    ],
)
def test_a_refused_run_tells_it_once_and_leaves_no_folder(options, says, tmp_path):
    process = launch([*TWO, "--", *command_of(f"--output={tmp_path / 'out'}", *options)])
    stderr = process.communicate(timeout=300)[1]
    (line,) = own_lines(stderr)
    assert says in line
    assert "exitcode  : 2 " in stderr
    assert tracebacks(stderr) == 0
    assert not (tmp_path / "out").exists()


def wait_for_steps(process: subprocess.Popen[str], log: Path, steps: int) -> None:
    deadline = time.monotonic() + 240
    while not (log.exists() and len(log.read_text().splitlines()) >= steps):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_is_noticed_at_once(killed, tmp_path):
    """The other tells it in one line; its own timeout is hours away."""
    options = ["--pretrain.steps=100000", "--pretrain.log_every_steps=1", f"--output={tmp_path}"]
    process = launch([*TWO, "--", *command_of(*options)])
    wait_for_steps(process, tmp_path / "digits/pretrain/metrics.jsonl", 3)
    os.kill(sorted(children(process.pid))[killed], signal.SIGKILL)
    began = time.monotonic()
    stderr = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 15
    lines = own_lines(stderr)
    assert len(lines) <= 1  # none where the launcher was faster
    assert all(f"error: process {1 - killed} lost another process (" in line for line in lines)
    assert tracebacks(stderr) == 0


SLOW_STEPS = [
    "--model.encoder=simclr_resnet18_1x_sk0",
    "--data.image_size=32",
    "--pretrain.batch_size=48",
    "--pretrain.steps=10",
    "--pretrain.warmup_epochs=0",
    "--pretrain.log_every_steps=1",
    "--threads=1",
]


@pytest.mark.slow
def test_preemption_of_a_launcher_with_slow_steps(tmp_path):
    """SIGTERM to torchrun: it kills after 30 s; the state is saved by then, and no bit is lost."""

    def pretrain(name: str) -> subprocess.Popen[str]:
        module = ["-m", "stages.pretrain", *SLOW_STEPS, f"--output={tmp_path / name}"]
        return launch([*TWO, *module])

    def digest(name: str) -> str:
        file = tmp_path / name / "digits/pretrain/model.safetensors"
        return hashlib.sha256(file.read_bytes()).hexdigest()

    process = pretrain("stopped")
    wait_for_steps(process, tmp_path / "stopped/digits/pretrain/metrics.jsonl", 3)
    process.terminate()
    began = time.monotonic()
    stderr = process.communicate(timeout=60)[1]
    print(f"{time.monotonic() - began:.1f} s from SIGTERM to the end")
    assert time.monotonic() - began < 30
    (line,) = own_lines(stderr)
    assert "the state is saved: run the same command to go on" in line
    for name in ("stopped", "whole"):
        process = pretrain(name)
        assert "goes on from step" in process.communicate()[0] or name == "whole"
        assert process.returncode == 0
    assert digest("stopped") == digest("whole")
