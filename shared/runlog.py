"""What a run shows and writes while people wait: a progress bar, JSON lines, a tracker."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from shared.errors import UserError


class RunLog:
    """One JSON object per line in ``metrics.jsonl``, the same to the tracker, and a progress bar.

    Lines from beyond the step from which an interrupted run continues are dropped, so the file
    reads as if the run had never stopped.

    Args:
        path: the file.
        stage: the stage's name, shown on the bar and used as prefix in the tracker.
        start: updates already done.
        total: updates in all.
        accelerator: decides which process writes.
    """

    def __init__(self, path: Path, stage: str, start: int, total: int, accelerator: Accelerator):
        self.stage, self.start, self.total, self.accelerator = stage, start, total, accelerator
        self.waited, self.began = 0.0, time.perf_counter()
        self._file = self._bar = None
        if accelerator.is_main_process:
            kept = [line for line in _lines(path) if line["step"] <= start]
            try:
                self._file = path.open("w", buffering=1)
                for line in kept:
                    self._file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise UserError(f"cannot write {path}: {error}; choose another --output") from error
            # disable=None: no bar where standard error is not a terminal
            self._bar = tqdm(
                total=total, initial=start, desc=stage, unit="step", disable=None, smoothing=0.1
            )

    def waiting(self, batches: Iterator) -> Iterator:
        """Pass the batches on and count the time spent waiting for them."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def step(self) -> None:
        """One update is done: move the bar."""
        if self._bar is not None:
            self._bar.update()

    def write(self, step: int, images_per_second: bool = True, **values: float) -> None:
        """Log numbers after ``step`` updates."""
        self.accelerator.log({f"{self.stage}/{k}": v for k, v in values.items()}, step=step)
        if self._file is not None and self._bar is not None:
            line = {k: float(f"{v:.6g}") for k, v in values.items()}
            self._file.write(json.dumps({"step": step, **line}) + "\n")
            self._bar.set_postfix({k: f"{v:.3g}" for k, v in list(values.items())[:3]})

    def close(self) -> None:
        """Close file and bar."""
        if self._file is not None and self._bar is not None:
            self._file.close()
            self._bar.close()


def _lines(path: Path) -> list[dict]:
    """The readable lines of a metrics file; the last may be half written."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            print(f"{path}: dropped a half-written line", file=sys.stderr)
    return lines
