"""Real processes, killed: the end result is bit for bit that of an uninterrupted run."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
from accelerate.state import AcceleratorState

import pipeline
from shared.runtime.stop import StopRequest
from shared.training.stage import Stage
from stages import pretrain
from tests.support.photos import class_folders
from tests.support.stop import STOPPED, stopped_at
from tests.support.toy_run import TINY

SMALL = [
    *TINY,
    "--pretrain.steps=60",
    "--distill.steps=40",
    "--finetune.steps=30",
    *(f"--{s}.checkpoint_every_steps=3" for s in ("pretrain", "finetune", "distill")),
    *(f"--{s}.log_every_steps=1" for s in ("pretrain", "finetune", "distill")),
]


def start(output: Path) -> subprocess.Popen:
    command = [sys.executable, "pipeline.py", *SMALL, f"--output={output}"]
    return subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def weights(output: Path) -> dict[str, str]:
    files = sorted(output.rglob("model.safetensors"))
    return {f.parent.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def wait_for_step(process: subprocess.Popen, output: Path, stage: str, step: int) -> None:
    """Return when the stage has logged that step; fail if the process ends before."""
    log = output / "digits" / stage / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if log.exists() and len(log.read_text().splitlines()) >= step:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    pytest.fail(f"{stage} did not reach step {step}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    process = start(output)
    assert process.wait() == 0, process.communicate()[1]
    return output


@pytest.mark.slow  # tests/crash has a sample for each run
def test_sigkill_at_random_steps_changes_no_bit(uninterrupted, tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)  # shown when the test fails
    rng = random.Random(seed)
    kills = [
        ("pretrain", rng.randint(2, 30)),
        ("pretrain", rng.randint(32, 58)),
        ("finetune-1pct-seed0", rng.randint(2, 28)),
        ("distill-1pct-seed0", rng.randint(2, 38)),
    ]
    for stage, step in kills:
        process = start(tmp_path)
        wait_for_step(process, tmp_path, stage, step)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "digits" / stage / "meta.json").exists()
    process = start(tmp_path)
    assert process.wait() == 0, process.communicate()[1]
    assert weights(tmp_path) == weights(uninterrupted)
    for stage in ("pretrain", "finetune-1pct-seed0", "distill-1pct-seed0"):
        logs = [(run / "digits" / stage / "metrics.jsonl") for run in (tmp_path, uninterrupted)]
        losses = [[json.loads(line)["loss"] for line in log.open()] for log in logs]
        assert losses[0] == losses[1]  # the log too reads as if nothing had happened


def test_a_stopped_force_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    """Forcing the stage again would throw its checkpoint away; what is made from it is still old.

    In this process, for speed; the signal is a real one.
    """
    monkeypatch.setattr(StopRequest, "received", None)  # and again at the end
    arguments = [*TINY, f"--output={tmp_path}", "--finetune.log_every_steps=1"]
    assert pipeline.main(arguments) == 0
    run = tmp_path / "digits"
    first = weights(tmp_path)
    with stopped_at(3, monkeypatch, "finetune"):
        changed = [*arguments, "--finetune.learning_rate=0.003"]
        assert pipeline.main([*changed, "--force=finetune"]) == STOPPED
    says = "run the same command, now with --force self-distill,distill, to go on"
    assert says in capsys.readouterr().err
    assert not (run / "finetune-1pct-seed0/meta.json").exists()
    assert pipeline.main([*changed, "--force=self-distill,distill"]) == 0
    lines = (run / "finetune-1pct-seed0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    redone = {name for name, digest in weights(tmp_path).items() if digest != first[name]}
    assert redone == {"finetune-1pct-seed0", "distill-1pct-seed0"}


LAYOUTS = [
    [f"--precision={precision}", f"--channels_last={channels_last}"]
    for precision in ("no", "bf16")
    for channels_last in ("no", "yes")
]
UPDATES = {
    "adamw": ["--pretrain.optimizer=adamw"],
    "lars": ["--pretrain.optimizer=lars"],
    "sgd": ["--pretrain.optimizer=sgd"],
    "memory": ["--pretrain.memory=64"],
    "micro_batch": ["--pretrain.micro_batch=16"],
    "memory-micro_batch": ["--pretrain.memory=64", "--pretrain.micro_batch=16"],
}


@pytest.fixture
def any_precision():
    """accelerate allows one precision per process; forget the one before, and this one after."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize(
    ("update", "layout"),
    [
        *((update, ["--precision=auto"]) for update in UPDATES),
        *((update, layout) for update in ("adamw", "lars") for layout in LAYOUTS),
    ],
)
def test_resuming_keeps_every_bit_in_every_layout(
    update, layout, tmp_path, monkeypatch, any_precision
):
    """A file holds contiguous tensors; weights and moments may be channels_last in memory."""
    tiny = [option for option in TINY if not option.startswith("--precision")]
    arguments = [*tiny, "--pretrain.optimizer=adamw", *UPDATES[update], *layout]
    assert pretrain.main([*arguments, f"--output={tmp_path / 'whole'}"]) == 0

    with stopped_at(3, monkeypatch):
        assert pretrain.main([*arguments, f"--output={tmp_path / 'stopped'}"]) == STOPPED
    assert pretrain.main([*arguments, f"--output={tmp_path / 'stopped'}"]) == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_sigterm_saves_says_so_and_the_next_call_goes_on(uninterrupted, tmp_path):
    process = start(tmp_path)
    wait_for_step(process, tmp_path, "pretrain", 7)
    process.terminate()
    _, stderr = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "the state is saved" in stderr
    assert "Traceback" not in stderr
    (state,) = (tmp_path / "digits/pretrain/state").iterdir()
    assert int(state.stem) >= 7
    process = start(tmp_path)
    assert process.wait() == 0, process.communicate()[1]
    assert weights(tmp_path) == weights(uninterrupted)


# ---------------------------------------------------------------------- the whole process group
@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("photos"), 8, size=(40, 36))


def of_workers(photos: Path, output: Path, steps: int = 40) -> list[str]:
    """The options of a pretraining of photos that two worker processes decode."""
    return [
        *SMALL,
        f"--data.train={photos}",
        "--run=digits",
        "--data.loading=workers",
        "--data.cache=null",  # else small copies are made, and no workers
        "--data.workers=2",
        f"--pretrain.steps={steps}",
        f"--output={output}",
    ]


def with_workers(photos: Path, output: Path, steps: int = 40) -> subprocess.Popen:
    """It, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages.pretrain", *of_workers(photos, output, steps)],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def members(group: int) -> list[int]:
    """Processes of the group that are still there."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process.pid)
    return left


def stop_with_workers(number: int, photos: Path, output: Path) -> None:
    """Signal the whole process group: the state is saved, in one line, and nobody is left."""
    process = with_workers(photos, output)
    wait_for_step(process, output, "pretrain", 5)
    os.killpg(process.pid, number)
    _, stderr = process.communicate()
    assert process.returncode == 128 + number, stderr
    require_saved(stderr, process.pid)


def require_saved(stderr: str, group: int) -> None:
    assert "the state is saved" in stderr
    assert "Traceback" not in stderr
    assert "DataLoader" not in stderr
    assert members(group) == []


def signal_own_group(options: list[str], errors: Path) -> NoReturn:
    """Be a pretraining in a process group of its own, all of which gets SIGTERM at step 5."""
    os.setsid()
    sys.stderr = errors.open("w")
    os.dup2(sys.stderr.fileno(), 2)
    checkpoint = Stage.checkpoint

    def stop(self: Stage, now: int) -> None:
        if now == 5:
            os.killpg(0, signal.SIGTERM)
        checkpoint(self, now)

    Stage.checkpoint = stop
    sys.exit(pretrain.main(options))


def test_a_signal_to_workers_too_saves(photos, tmp_path):
    """In a fork of this process, for speed; the signals are real ones."""
    errors = tmp_path / "errors"
    arguments = of_workers(photos, tmp_path), errors
    with warnings.catch_warnings():  # Python 3.12 warns of other threads: pytest-xdist has one
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(
            target=signal_own_group, args=arguments
        )
        process.start()
    process.join()
    assert process.exitcode == STOPPED
    require_saved(errors.read_text(), process.pid)
    (state,) = (tmp_path / "digits/pretrain/state").iterdir()
    assert int(state.stem) == 5


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_was_stopped_with_its_workers_goes_on(number, photos, tmp_path):
    outputs = tmp_path / "stopped", tmp_path / "whole"
    stop_with_workers(number, photos, outputs[0])
    for again in [with_workers(photos, output) for output in outputs]:
        assert again.wait() == 0, again.communicate()[1]
    assert weights(outputs[0]) == weights(outputs[1])


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_in_a_line_and_nothing_is_lost(photos, tmp_path):
    process = with_workers(photos, tmp_path / "ended", steps=200)
    wait_for_step(process, tmp_path / "ended", "pretrain", 5)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    workers[0].kill()
    _, stderr = process.communicate()
    assert process.returncode == 2
    (line,) = [x for x in stderr.splitlines() if x.startswith("error: ")]
    assert "a process that reads images was ended from outside" in line
    assert "Traceback" not in stderr
    folder = tmp_path / "ended/digits/pretrain"
    logged = len((folder / "metrics.jsonl").read_text().splitlines())
    assert [int(file.stem) for file in (folder / "state").iterdir()] == [logged]
    outputs = tmp_path / "ended", tmp_path / "whole"
    for again in [with_workers(photos, output, steps=200) for output in outputs]:
        assert again.wait() == 0, again.communicate()[1]
    assert weights(outputs[0]) == weights(outputs[1])


@pytest.mark.slow
def test_workers_end_with_a_killed_process(photos, tmp_path):
    process = with_workers(photos, tmp_path, steps=10_000)
    wait_for_step(process, tmp_path, "pretrain", 3)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members(process.pid) == []
