"""Stopping on request: SIGTERM or SIGINT is remembered, and obeyed between two steps."""

import signal
import time
from types import FrameType

from shared.runtime.distributed import agree, world_size

SETTLED_EVERY = 5.0  # seconds
MOST_STEPS = 1000  # between two settlements, so that a fast start does not put off the next


class Stopped(SystemExit):
    """SIGTERM or SIGINT was obeyed: the state is saved. The code is 128 + the signal's number."""


class StopRequest:
    """Remembers that SIGTERM (a scheduler's preemption) or SIGINT (Ctrl-C) has arrived.

    The loops ask between two steps, save, and leave. A second signal ends the process at once.
    """

    received: int | None = None
    # of several processes: the last step; that of the last settlement, that of the next, and when
    _seen, _settled, _due, _settled_at = 0, 0, 0, 0.0

    @classmethod
    def listen(cls) -> None:
        """Install the handlers."""
        cls.received = None
        cls._seen, cls._settled, cls._due, cls._settled_at = 0, 0, 0, time.perf_counter()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, cls._remember)

    @classmethod
    def _remember(cls, number: int, frame: FrameType | None) -> None:
        cls.received = number
        signal.signal(number, signal.SIG_DFL)

    @classmethod
    def agreed(cls, step: int) -> bool:
        """Whether any process was asked to stop.

        Several processes settle it together about every ``SETTLED_EVERY`` seconds: a launcher kills
        half a minute after it asked, and slow steps must not use that up. As each settlement also
        says after how many steps the next one is due, all processes come to it at the same step.

        Args:
            step: number of updates done; it begins anew with each stage.
        """
        if world_size() == 1:
            return cls.received is not None
        begun_anew, cls._seen = step <= cls._seen, step
        if not begun_anew and step < cls._due:
            return False
        now = time.perf_counter()
        steps = 1 if begun_anew else max(step - cls._settled, 1)
        pace = SETTLED_EVERY * steps / max(now - cls._settled_at, 1e-9)
        stop, until_next = agree(cls.received is not None, max(1, min(int(pace), MOST_STEPS)))
        cls._settled, cls._due, cls._settled_at = step, step + until_next, now
        return stop
