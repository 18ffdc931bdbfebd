"""Processes of one machine have one array; others, and those that cannot, have their own."""

import os
import sys
from pathlib import Path

import pytest
import torch

from shared.runtime import shared_memory
from shared.runtime.distributed import gather_all
from shared.runtime.files import machine
from shared.runtime.shared_memory import shared_array
from tests.support.gloo import fork, join

SHAPE = (7, 3, 2, 2)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux")


def filled(number: int) -> tuple[torch.Tensor, slice]:
    """Each process fills its rows with its number; all have met."""
    array, own = shared_array(SHAPE)
    array[own] = number
    gather_all([0])
    return array, own


def is_shared(array: torch.Tensor, writer: bool) -> bool:
    """Whether what one of two processes writes is seen by the other."""
    if writer:
        array[0, 0, 0, 0] = 99
    gather_all([0])
    return array[0, 0, 0, 0].item() == 99


def test_one_process_has_memory_of_its_own(monkeypatch):
    monkeypatch.setattr(os, "memfd_create", None)
    array, own = shared_array(SHAPE)
    assert array.shape == SHAPE
    assert array.dtype == torch.uint8
    assert own == slice(0, 7)


def share(rank, folder):
    join(rank, 2, folder)
    array, own = filled(rank + 1)
    assert own == [slice(0, 3), slice(3, 7)][rank]
    assert array[:, 1, 1, 1].tolist() == [1] * 3 + [2] * 4
    # all that there is of it, and that has no name: what is killed here leaves nothing
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert [x.split(maxsplit=5)[5] for x in maps if "images" in x] == ["/memfd:images (deleted)"]
    assert is_shared(array, rank == 1)
    opened = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.exists()]
    assert sum("memfd" in name for name in opened) == 1  # that of the map
    other, _ = filled(rank + 5)  # a second one is another
    assert array[1:, 1, 1, 1].tolist() == [1] * 2 + [2] * 4
    assert other[:, 1, 1, 1].tolist() == [5] * 3 + [6] * 4


def test_two_processes_share_an_array_that_has_no_name(tmp_path):
    fork(share, (str(tmp_path),), 2)


def on_two_machines(rank, folder):
    join(rank, 3, folder)
    shared_memory.machine = lambda: machine()._replace(space=str(rank // 2))
    array, own = filled(rank + 1)
    assert own == [slice(0, 3), slice(3, 7), slice(0, 7)][rank]
    assert array[:, 1, 1, 1].tolist() == ([1] * 3 + [2] * 4 if rank < 2 else [3] * 7)


def test_each_machine_has_one(tmp_path):
    fork(on_two_machines, (str(tmp_path),), 3)


def no_system(rank, folder):
    if rank == 0:
        del os.memfd_create


def no_leave(rank, folder):
    """As of a container, where a process cannot open what another one has open."""
    if rank == 1:
        mapped = shared_memory._mapped
        shared_memory._mapped = lambda path, size: mapped(path.replace("/proc/", "/proc/x"), size)


def no_promise(rank, folder):
    shared_memory.OVERCOMMIT = Path(folder) / "overcommit"
    shared_memory.OVERCOMMIT.write_text("2\n")


def too_short(rank, folder):
    make = shared_memory._make
    shared_memory._make = lambda size: make(size - 1)


def have_their_own(rank, folder, hinder):
    join(rank, 2, folder)
    hinder(rank, folder)
    array, own = filled(rank + 1)
    assert own == slice(0, 7)
    assert array.unique().tolist() == [rank + 1]
    assert is_shared(array, rank == 0) == (rank == 0)


@pytest.mark.parametrize("hinder", [no_system, no_leave, no_promise, too_short])
def test_where_one_cannot_share_each_has_its_own(tmp_path, hinder):
    fork(have_their_own, (str(tmp_path), hinder), 2)
