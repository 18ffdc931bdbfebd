"""A stage that gets a signal while it trains: a real one, and in this process, for speed."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shared.runtime.stop import StopRequest
from shared.training.stage import Stage

STOPPED = 128 + signal.SIGTERM  # the exit code


@contextmanager
def stopped_at(step: int, monkeypatch: pytest.MonkeyPatch, method: str = "") -> Iterator[None]:
    """Within, SIGTERM comes before the checkpoint of a step, of one method or of any.

    Behind, runs go on again.
    """
    checkpoint = Stage.checkpoint

    def stop(self: Stage, now: int) -> None:
        if now == step and method in ("", self.method):
            signal.raise_signal(signal.SIGTERM)
        checkpoint(self, now)

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "received", None)
        patch.setattr(Stage, "checkpoint", stop)
        yield
    monkeypatch.setattr(StopRequest, "received", None)
