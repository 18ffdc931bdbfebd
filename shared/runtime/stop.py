"""Stopping on request: a signal is remembered, and obeyed between two steps.

A scheduler, a closed terminal and Ctrl-C signal the whole process group: also a launcher, which
passes the signal on to this process, and the worker processes, which have to leave it to this one.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from shared.runtime.distributed import agree, world_size

SETTLED_EVERY = 5.0  # seconds
PASSED_ON = 2.0  # seconds in which a launcher passes on a signal that this process got too
# preemption, Ctrl-C, a closed terminal
SIGNALS = tuple(getattr(signal, s) for s in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, s))
MOST_STEPS = 1000  # between two settlements, so that a fast start does not put off the next


class Stopped(SystemExit):
    """A signal was obeyed: the state is saved. The code is 128 + the signal's number."""


class StopRequest:
    """Remembers that SIGTERM, SIGINT or SIGHUP has arrived.

    The loops ask between two steps, save, and leave. A second signal ends the process at once; what
    follows within ``PASSED_ON`` seconds is the first one again, from a launcher.
    """

    received: int | None = None
    _received_at = 0.0
    # of several processes: the last step; that of the last settlement, that of the next, and when
    _seen, _settled, _due, _settled_at = 0, 0, 0, 0.0

    @classmethod
    def listen(cls) -> None:
        """Install the handlers."""
        cls.received = None
        cls._seen, cls._settled, cls._due, cls._settled_at = 0, 0, 0, time.perf_counter()
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup asks
                signal.signal(number, cls._remember)

    @classmethod
    def _remember(cls, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if cls.received is None:
            cls.received, cls._received_at = number, now
        elif now - cls._received_at > PASSED_ON:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

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


@contextmanager
def signals_held() -> Iterator[None]:
    """Within the context this thread, and the processes that it starts, get none of the signals.

    Those processes must call `leave_signals_to_parent`.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deaths_unnoticed() -> Iterator[None]:
    """Keep what is started within the context from asking for a signal when a worker dies.

    A DataLoader's handler of SIGCHLD raises at any line of the main thread, also in the middle of
    an update. Without it the loader notices when it waits for that worker, within 5 seconds.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() != threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def leave_signals_to_parent(worker: int = 0) -> None:
    """Let a worker process live until its parent ends it; as ``worker_init_fn`` of a DataLoader."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
