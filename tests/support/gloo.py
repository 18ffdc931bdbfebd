"""Processes on CPU that a test has forked."""

import os
import warnings
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState


def fork(work: Callable, arguments: tuple, processes: int) -> None:
    """Run ``work(rank, *arguments)`` in processes that need not import torch, which takes 4 s."""
    with warnings.catch_warnings():  # Python 3.12 warns of other threads: pytest-xdist has one
        warnings.simplefilter("ignore", DeprecationWarning)
        mp.start_processes(work, arguments, nprocs=processes, start_method="fork")


def join(rank: int, processes: int, folder: str) -> None:
    """Meet the others in ``folder``, as accelerate expects to find a process that was launched."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)  # that of the test
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
    }
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=60),
    )
