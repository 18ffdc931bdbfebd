"""A long run: memory, open files, threads and workers stay what they were.

    python -m benchmarks.long --steps 20000            # images in memory
    python -m benchmarks.long --steps 20000 --workers 2   # images that workers decode

A tiny network is pretrained. Each thousandth step prints a line: the step, resident memory (its
own, and of the workers), open files, threads, workers, bytes of the log, number and bytes of the
checkpoints.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.support.photos import class_folders

STEPS_BETWEEN = 1000
# What a moment adds: a checkpoint is being written beside the one before.
SLACK = {"files": 4, "states": 1, "state_bytes": 1e6}
TINY = [
    "--config=configs/digits.yaml",
    "--run=long",
    "--model.encoder=simclr_resnet8_1x_sk0",
    "--model.head_width=16",
    "--model.head_out=8",
    "--pretrain.batch_size=8",
    "--pretrain.warmup_epochs=0",
    "--pretrain.checkpoint_every_steps=100",
    "--pretrain.log_every_steps=50",
    "--threads=1",
]


class Reading(NamedTuple):
    """What a process has at a step; memory in MB."""

    step: int
    memory: float
    memory_of_workers: float
    files: int
    threads: int
    workers: int
    log_bytes: int
    states: int
    state_bytes: int


def read(process: psutil.Process, folder: Path) -> Reading | None:
    """A reading; None where the process is ending."""
    try:
        log, workers = folder / "metrics.jsonl", process.children()
        lines = log.read_text().splitlines() if log.exists() else []
        states = [file.stat().st_size for file in folder.glob("state/*")]
        return Reading(
            json.loads(lines[-1])["step"] if lines else 0,
            process.memory_info().rss / 1e6,
            sum(worker.memory_info().rss for worker in workers) / 1e6,
            process.num_fds(),
            process.num_threads(),
            len(workers),
            log.stat().st_size if log.exists() else 0,
            len(states),
            sum(states),
        )
    except (psutil.Error, OSError, ValueError):
        return None


def readings(steps: int, workers: int, folder: Path, between: int) -> Iterator[Reading]:
    """Train so long; a reading after every so many steps."""
    options = [*TINY, f"--pretrain.steps={steps}", f"--output={folder}"]
    if workers:
        photos = class_folders(folder / "photos", 16, size=(12, 10))
        options += [
            f"--data.train={photos}",
            "--data.loading=workers",
            "--data.cache=null",
            f"--data.workers={workers}",
        ]
    program = subprocess.Popen(
        [sys.executable, "-m", "stages.pretrain", *options], stdout=subprocess.DEVNULL
    )
    process, due = psutil.Process(program.pid), between
    try:
        while program.poll() is None:
            reading = read(process, folder / "long/pretrain")
            if reading and reading.step >= due:
                yield reading
                due = reading.step // between * between + between
            time.sleep(0.05)
    finally:
        program.terminate()  # where this program is interrupted
    if program.returncode:
        raise SystemExit(program.returncode)


def main() -> int:
    """Print the readings; 1 where the last third has more of anything than the second."""
    parser = argparse.ArgumentParser("python -m benchmarks.long", description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--every", type=int, default=STEPS_BETWEEN, help="steps between readings")
    arguments = parser.parse_args()
    print(*Reading._fields)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        for row in readings(arguments.steps, arguments.workers, where, arguments.every):
            rows.append(row)
            print(*(f"{x:.1f}" if isinstance(x, float) else x for x in row), flush=True)
        left = sorted(path.name for path in (where / "long/pretrain").iterdir())
    print("at the end:", *left)
    print(f"log: {rows[-1].log_bytes / rows[-1].step:.2f} bytes a step, with a line each 50 steps")
    return int(has_grown(rows))


def has_grown(rows: list[Reading]) -> bool:
    """Whether the last third has more than the second of anything but the log."""
    third = len(rows) // 3
    before, after = rows[third : 2 * third], rows[2 * third :]
    grown = []
    for name in Reading._fields:
        if name in ("step", "log_bytes"):
            continue
        most = [max(getattr(row, name) for row in part) for part in (before, after)]
        if most[1] > 1.02 * most[0] + SLACK.get(name, 0):
            grown.append(f"{name}: {most[0]:.1f}, then {most[1]:.1f}")
    print("grown: " + ("; ".join(grown) or "nothing"))
    return bool(grown)


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    sys.exit(main())
