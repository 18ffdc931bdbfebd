"""Killed at any of its file operations, a run ends with the same bits (see ``crash.py``)."""

import shutil
import sys

import pytest

from tests.crash.crash import MODES, SCENARIOS, Crash

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None,
    reason="the operations are numbered by a library for LD_PRELOAD, which gcc builds",
)
# Every so many-th point in the slow test, about 600 in all; `tests.crash.crash` takes all.
EVERY = {
    **{"pretrain": 8, "stages": 16, "two": 48, "two in float32": 96, "table": 96, "choice": 32},
    **{"classical": 16, "force": 16, "cache": 32, "suggest": 2, "export": 8, "export again": 4},
    **{"import": 4, "predict": 8, "page": 1, "assess": 64},
}
RARER = 4  # in the modes that are not the first three


@pytest.fixture(scope="module")
def crash(tmp_path_factory):
    crash = Crash(tmp_path_factory.mktemp("crash"))
    yield crash
    crash.close()


def faults(crash: Crash, name: str, modes: list[str], every: int, first: int = 1) -> list[str]:
    points = list(crash.campaign(name, modes, every, first))
    assert points
    return [f"{mode} at {operation}: {fault}" for mode, operation, fault in points if fault]


SAMPLE = {"kill": 45, "torn": 10, "full": 36, "read-only": 60}


@pytest.mark.parametrize(("mode", "every"), SAMPLE.items())
def test_a_sample_of_stage_1(mode, every, crash):
    """A few of its points; which ones differs from mode to mode."""
    assert faults(crash, "pretrain", [mode], every, first=every // 2) == []


def test_few_open_files_suffice(crash):
    whole, _ = crash.points("pretrain")
    work = crash.folder / "work"
    shutil.rmtree(work)
    work.mkdir()
    crash.must_run(work, SCENARIOS["pretrain"].commands(work), files=64)
    assert crash.differences(whole) == ""


def test_the_operations_are_all_numbered(crash):
    """What lies there at the end was opened, written and moved under the eyes of the library."""
    whole, operations = crash.points("pretrain")
    seen = {tuple(operation.split()[1:]) for operation in operations}
    for name in whole:
        path = str(crash.folder / "work" / name)
        kinds = ("mkdir",) if whole[name] == "folder" else ("rename",)
        assert any((kind, path) in seen for kind in kinds), name
    kinds = {kind for kind, _ in seen}
    assert kinds >= {"open", "write", "fsync", "rename", "unlink", "mkdir", "rmdir"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "other"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_command(name, mode, crash):
    every = EVERY[name] * (1 if mode in ("kill", "torn", "full") else RARER)
    assert faults(crash, name, [mode], every, first=(every + 1) // 2) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 30_000, 200_000])  # bytes
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_file_can_be_longer(name, size, crash):
    """Also where a library writes around ``shim.c``."""
    whole, _ = crash.points(name)
    assert crash.interrupt(name, whole, (0, 2), size=size) == ""


@pytest.mark.slow
def test_of_two_processes_one_is_killed(crash):
    """The one that does not write; the writer is killed in the test above."""
    assert faults(crash, "two", ["other"], 24) == []
