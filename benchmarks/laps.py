"""The stop watch of one contender: it works until the next lap, then waits for the command.

Laps are measured in CPU seconds of the process and of its workers, because the cores of a machine
are shared: what another job takes from us costs wall time, not CPU time.
"""

import ctypes
import json
import os
import resource
import sys
import time
from pathlib import Path

import psutil


def cpu_seconds() -> float:
    """CPU time of this process, of its workers, and of workers that have ended."""
    seconds = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        seconds += used.ru_utime + used.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            seconds += child.cpu_times().user + child.cpu_times().system
        except psutil.NoSuchProcess:
            continue  # it has ended since, and counts above from now on
    return seconds


class Laps:
    """Called by a contender after each piece of work.

    The first call ends the preparations. Each later one reports the CPU and wall seconds since the
    one before, and waits until another lap is wanted. Work that goes on in the background
    meanwhile (batches made ahead) counts for the next lap, so nothing is left out.
    """

    def __init__(self) -> None:
        self._reports = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a contender prints goes elsewhere
        self._cpu: float | None = None

    def __call__(self, items: int, **numbers: float) -> None:
        """``items`` pieces were worked on since the last call; ``numbers`` are passed on."""
        cpu, wall = cpu_seconds(), time.perf_counter()
        if self._cpu is not None:
            lap = {"items": items, "cpu": cpu - self._cpu, "wall": wall - self._wall, **numbers}
            self._reports.write(json.dumps(lap) + "\n")
            self._reports.flush()
            workers = psutil.Process().children(recursive=True)
            for worker in workers:  # else they would work ahead in the others' time
                worker.suspend()
            more_wanted = sys.stdin.readline()
            for worker in workers:
                worker.resume()
            if not more_wanted:
                raise SystemExit
        self._cpu, self._wall = cpu, time.perf_counter()


class PeakMemory:
    """How far the memory of this process rose above its level at the start, in MB (10^6 bytes).

    ``float("nan")`` where the system does not tell (other than Linux).
    """

    def __init__(self) -> None:
        self._start = float("nan")
        # Else what glibc keeps of freed blocks would be used again without being counted.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak becomes the present level
            self._start = _status("VmRSS")
        except OSError:
            pass

    def rise(self) -> float:
        """MB since the start."""
        return self._start if self._start != self._start else _status("VmHWM") - self._start


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e6
