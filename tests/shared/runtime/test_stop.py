"""Requests to stop: remembered, agreed on, and the second one obeyed at once."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch.multiprocessing import ProcessExitedException

from shared.runtime import stop
from shared.runtime.stop import StopRequest
from tests.support.gloo import fork

SIGNALS = list(stop.SIGNALS)


@pytest.fixture(autouse=True)
def restored():
    """Handlers and memory are the process's."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    StopRequest.received = None
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_until_one_listens_anew(number):
    StopRequest.listen()
    assert StopRequest.received is None
    assert not StopRequest.agreed(1)
    signal.raise_signal(number)  # does not end this process
    assert StopRequest.received == number
    assert StopRequest.agreed(1)
    StopRequest.listen()
    assert StopRequest.received is None
    assert not StopRequest.agreed(1)


def ask_to_stop(rank: int, number: int, folder: Path) -> None:
    StopRequest.listen()
    signal.raise_signal(number)
    signal.raise_signal(number)  # the same, passed on by a launcher
    (folder / "lives").touch()
    StopRequest._received_at -= 3
    signal.raise_signal(number)
    (folder / "still lives").touch()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_ends_the_process_at_once(number, tmp_path):
    with pytest.raises(ProcessExitedException) as end:
        fork(ask_to_stop, (number, tmp_path), 1)
    assert end.value.exit_code == -number
    assert [path.name for path in tmp_path.iterdir()] == ["lives"]


class Clock:
    """Steps that take so many seconds."""

    def __init__(self, monkeypatch, others_asked=lambda: False):
        self.now, self.settled = 100.0, []

        def agree(flag: bool, number: int) -> tuple[bool, int]:
            self.settled.append(self.now)
            return flag or others_asked(), number

        monkeypatch.setattr(stop, "world_size", lambda: 2)
        monkeypatch.setattr(stop, "agree", agree)
        monkeypatch.setattr(stop.time, "perf_counter", lambda: self.now)

    def run(self, steps: int, seconds: float) -> list[int]:
        """The steps after which the processes would stop."""
        stops = []
        for step in range(1, steps + 1):
            self.now += seconds
            if StopRequest.agreed(step):
                stops.append(step)
        return stops


@pytest.mark.parametrize("seconds", [0.001, 0.1, 4.0, 60.0])
def test_several_processes_settle_it_by_time(monkeypatch, seconds):
    """A launcher kills 30 seconds after it asked: slow steps are settled one by one."""
    clock = Clock(monkeypatch)
    StopRequest.listen()
    assert clock.run(3000, seconds) == []
    pauses = [b - a for a, b in zip(clock.settled, clock.settled[1:], strict=False)]
    assert max(pauses) <= max(stop.SETTLED_EVERY, seconds) * 1.01
    assert min(pauses) >= min(0.9 * stop.SETTLED_EVERY, 0.9 * stop.MOST_STEPS * seconds) or (
        seconds > stop.SETTLED_EVERY / 2
    )


def test_steps_that_become_slow_are_settled_more_often(monkeypatch):
    clock = Clock(monkeypatch)
    StopRequest.listen()
    for steps in (1, 2, 300, 3000):
        clock.run(steps, 0.001)
        clock.settled.clear()
        clock.run(40, 8.0)  # another stage, whose steps begin anew
        assert len(clock.settled) >= 38


def test_one_that_was_asked_is_enough_for_all(monkeypatch):
    clock = Clock(monkeypatch, others_asked=lambda: clock.now > 150)
    StopRequest.listen()
    stops = clock.run(100, 1.0)
    assert 51 <= stops[0] <= 56
    StopRequest.listen()
    signal.raise_signal(signal.SIGTERM)
    assert StopRequest.agreed(1)


def test_a_signal_that_is_ignored_stays_ignored():
    """As ``nohup`` asks for SIGHUP."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    StopRequest.listen()
    signal.raise_signal(signal.SIGHUP)
    assert StopRequest.received is None


@pytest.mark.parametrize("number", SIGNALS)
def test_processes_started_meanwhile_get_no_signal(number):
    """Not even before they can say that they ignore it."""
    program = "import time; print('here', flush=True); time.sleep(0.5); print('still', flush=True)"
    with stop.signals_held():
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "here\n"
    child.send_signal(number)
    assert child.communicate()[0] == "still\n"
    assert child.returncode == 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
