"""Stopping on request: SIGTERM or SIGINT is remembered, and obeyed between two steps."""

import signal
from types import FrameType

from shared.runtime.distributed import any_process, world_size


class Stopped(SystemExit):
    """SIGTERM or SIGINT was obeyed: the state is saved. The code is 128 + the signal's number."""


class StopRequest:
    """Remembers that SIGTERM (a scheduler's preemption) or SIGINT (Ctrl-C) has arrived.

    The loops ask between two steps, save, and leave. A second signal ends the process at once.
    """

    received: int | None = None

    @classmethod
    def listen(cls) -> None:
        """Install the handlers."""
        cls.received = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, cls._remember)

    @classmethod
    def _remember(cls, number: int, frame: FrameType | None) -> None:
        cls.received = number
        signal.signal(number, signal.SIG_DFL)

    @classmethod
    def agreed(cls, step: int) -> bool:
        """Whether any process was asked to stop; several processes settle it every 10 steps."""
        if world_size() > 1 and step % 10:
            return False
        return any_process(cls.received is not None)
