"""What a run shows and writes while people wait: its progress, JSON lines, a tracker."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from torch import Tensor

from shared.config.sections import Training
from shared.runtime.errors import UserError
from shared.runtime.files import write_atomically
from shared.runtime.media import say
from shared.runtime.progress import Progress
from shared.runtime.records import read_lines
from shared.runtime.stage_folder import StageFolder

T = TypeVar("T")


class RunLog:
    """One JSON object per line in ``metrics.jsonl``, the same to the tracker, and the progress.

    Lines from beyond the step from which an interrupted run continues are dropped, so the file
    reads as if the run had never stopped.

    Args:
        folder: the stage's folder.
        training: its batch size and log interval.
        start: updates already done.
        total: updates in all.
        accelerator: decides which process writes.
    """

    def __init__(
        self,
        folder: StageFolder,
        training: Training,
        start: int,
        total: int,
        accelerator: Accelerator,
    ):
        self.stage, self.total, self.every = folder.stage, total, training.log_every_steps
        self.batch_size, self.accelerator = training.batch_size, accelerator
        self._path = folder.path / "metrics.jsonl"
        self._waited, self._last_step, self._last_time = 0.0, start, time.perf_counter()
        self._main = accelerator.is_main_process
        # wandb counts one step for all stages and drops what goes back; the others count each key
        self._wandb = [tracker for tracker in accelerator.trackers if tracker.name == "wandb"]
        if accelerator.is_main_process:
            for tracker in self._wandb:
                tracker.tracker.define_metric(f"{self.stage}/*", step_metric=f"{self.stage}/step")
            lines, damaged = read_log(folder.path)
            if damaged:
                say(f"{self._path}: dropped {damaged} unreadable lines", error=True)
            kept = [line for line in lines if line["step"] <= start]
            write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
            if start:
                say(f"{folder.stage}: goes on from step {start:,} of {total:,}")
        self._progress = Progress(
            folder.stage,
            total,
            "steps",
            start=start,
            shown=self._main,
            speed=("images", self.batch_size),
        )

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """Pass the batches on and count the time spent waiting for them."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch
            self._progress.update()

    def due(self, step: int) -> bool:
        """Whether a line is to be written after ``step`` updates."""
        return step % self.every == 0 or step == self.total

    def write(self, step: int, chance: float | None = None, **values: float | Tensor) -> None:
        """Log numbers after ``step`` updates, with the rate and the share of time spent waiting.

        Args:
            step: number of updates.
            chance: the loss of a network that has learned nothing; it is shown and not logged.
            values: the numbers, the loss first.
        """
        now = time.perf_counter()
        elapsed = max(now - self._last_time, 1e-9)
        line = {key: float(f"{float(value):.6g}") for key, value in values.items()}
        rate = (step - self._last_step) * self.batch_size / elapsed
        line["images_per_second"] = float(f"{rate:.4g}")
        line["waiting_for_data"] = round(self._waited / elapsed, 4)
        self._waited, self._last_step, self._last_time = 0.0, step, now
        tracked = {f"{self.stage}/{k}": v for k, v in line.items()}
        if self._wandb:
            self.accelerator.log({**tracked, f"{self.stage}/step": step})
        else:
            self.accelerator.log(tracked, step=step)
        self._progress.note(_notes(line, chance))
        if self._main:
            try:
                with self._path.open("a") as file:
                    file.write(json.dumps({"step": step, **line}) + "\n")
            except OSError as error:
                raise UserError(
                    f"cannot write {self._path}: {error}; make room, then run the"
                    " same command again"
                ) from error

    def close(self) -> None:
        """Take the bar away."""
        self._progress.close()


def _notes(line: Mapping[str, float], chance: float | None) -> str:
    """The first two numbers; beside the loss that of chance, where it is known."""
    notes = [f"{key} {value:.3g}" for key, value in list(line.items())[:2]]
    if chance is not None:
        notes[0] += f" (chance {chance:.3g})"
    return ", ".join(notes)


def read_log(folder: Path) -> tuple[list[dict[str, float]], int]:
    """The lines of a stage's ``metrics.jsonl``, and the number of those that cannot be read.

    A process that was killed leaves half a line. Without a file there are no lines.

    Raises:
        UserError: it is no regular file.
    """
    path = folder / "metrics.jsonl"
    lines, damaged = read_lines(path, dict[str, float])
    steps = [line for line in lines if isinstance(line.get("step"), int) and line["step"] >= 0]
    return steps, damaged + len(lines) - len(steps)
