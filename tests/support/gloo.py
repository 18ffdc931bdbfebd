"""Processes on CPU that a test has forked."""

import os
import socket
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


def free_port() -> int:
    with socket.socket() as any_socket:
        any_socket.bind(("127.0.0.1", 0))
        return any_socket.getsockname()[1]


def be_launched(rank: int, processes: int, port: int = 0) -> None:
    """Be as a launcher starts a process: a command meets the others at the port."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)  # that of the test
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else accelerate warns
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def join(rank: int, processes: int, folder: str) -> None:
    """Meet the others in ``folder``, as accelerate expects to find a process that was launched."""
    be_launched(rank, processes)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=60),
    )
