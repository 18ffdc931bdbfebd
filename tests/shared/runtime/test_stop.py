"""Requests to stop: remembered, agreed on, and the second one obeyed at once."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.runtime import stop
from shared.runtime.stop import StopRequest

ROOT = Path(__file__).parents[3]
SIGNALS = [signal.SIGTERM, signal.SIGINT]


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


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_ends_the_process_at_once(number):
    program = (
        "import signal, sys\n"
        "from shared.runtime.stop import StopRequest\n"
        "StopRequest.listen()\n"
        "number = int(sys.argv[1])\n"
        "signal.raise_signal(number)\n"
        "print('lives', flush=True)\n"
        "signal.raise_signal(number)\n"
        "print('still lives', flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(int(number))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "lives\n"
    assert done.returncode == -number


def test_several_processes_settle_it_every_10_steps(monkeypatch):
    """Between, they do not wait for each other; then one that was asked is enough for all."""
    asked = []

    def any_process(here: bool) -> bool:
        asked.append(here)
        return True  # another one was asked

    monkeypatch.setattr(stop, "world_size", lambda: 2)
    monkeypatch.setattr(stop, "any_process", any_process)
    StopRequest.listen()
    assert [step for step in range(1, 31) if StopRequest.agreed(step)] == [10, 20, 30]
    assert asked == [False] * 3
    signal.raise_signal(signal.SIGTERM)
    assert not StopRequest.agreed(31)
    assert StopRequest.agreed(40)
    assert asked == [False] * 3 + [True]
