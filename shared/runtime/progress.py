"""Seeing it go on: a bar on a terminal, else a line about every half minute."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Self, TypeVar

from tqdm import tqdm

from shared.runtime.media import say

T = TypeVar("T")
LINE_EVERY = 30.0  # seconds
TIMES = (("days", 86400), ("hours", 3600), ("min", 60))


class Progress:
    """How far a piece of work is, on standard error.

    On a terminal it is a bar. Elsewhere, as in the log of a scheduler, it is a line about every
    ``LINE_EVERY`` seconds: how much of how much, the notes, the speed, the time left. Work that
    takes less leaves no line.

    Args:
        what: names the work.
        total: how much there is to do.
        unit: what is counted, in the plural.
        start: how much was done before.
        shown: False shows nothing; of several processes the main one shows.
        speed: what the speed counts, and how many of them are in one unit of progress; unset: the
            unit itself.
        clock: gives the seconds.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        *,
        start: int = 0,
        shown: bool = True,
        speed: tuple[str, int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.what, self.total, self.unit, self.done = what, total, unit, start
        self.shown, self.clock, self.notes = shown, clock, ""
        self.speed = speed or (unit, 1)
        self._began = self._last_time = clock()
        self._start = self._last_done = start
        self._bar: tqdm | None = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=start, desc=what, unit=f" {unit}", leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, number: int = 1) -> None:
        """So much more is done."""
        self.done += number
        if self._bar is not None:
            self._bar.update(number)
        elif self.shown and (now := self.clock()) - self._last_time >= LINE_EVERY:
            say(self._line(now), error=True)
            self._last_time, self._last_done = now, self.done

    def note(self, notes: str) -> None:
        """What the next line, or the bar, says besides."""
        self.notes = notes
        if self._bar is not None:
            self._bar.set_postfix_str(notes, refresh=False)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Pass the items on; each counts as one when the next is asked for. Then close."""
        try:
            for item in items:
                yield item
                self.update()
        finally:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, now: float) -> str:
        rate = (self.done - self._last_done) / (now - self._last_time)  # at present
        usual = (self.done - self._start) / (now - self._began)
        left = duration(max(0, self.total - self.done) / usual) if usual else "unknown time"
        unit, each = self.speed
        parts = [f"{self.done:,} of {self.total:,} {self.unit}", self.notes]
        parts += [f"{rate * each:,.3g} {unit}/s", f"{left} left"]
        return f"{self.what}: {', '.join(filter(None, parts))}"


def duration(seconds: float) -> str:
    """``3.4 hours``, ``5.0 min``, ``17 s``: in the largest unit of which there are two or more."""
    for unit, length in TIMES:
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def counted(number: int, singular: str, plural: str = "") -> str:
    """``1 image``, ``2 images``, ``3 classes`` (the plural is named where it is not with an s)."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
