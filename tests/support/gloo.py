"""Processes on CPU that a test has spawned."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist


def join(rank: int, processes: int, folder: str) -> None:
    """Meet the others in ``folder``, as accelerate expects to find a process that was launched."""
    torch.set_num_threads(1)
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
