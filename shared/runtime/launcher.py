"""What torchrun, accelerate or mpirun tell a process of its place among the others."""

import os
import re

WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LEAST_AND_MOST = {
    **dict.fromkeys(WORLD_SIZES, (1, 1_000_000)),
    "LOCAL_WORLD_SIZE": (1, 1_000_000),
    "RANK": (0, 999_999),
    "LOCAL_RANK": (0, 999_999),
    "MASTER_PORT": (1, 65_535),
}


def launcher_number(name: str, otherwise: int) -> int:
    """An environment variable of a launcher; ``otherwise`` where it is not set or no number."""
    text = os.environ.get(name, "")
    return int(text) if re.fullmatch("[0-9]{1,7}", text) else otherwise


def wrong_launcher() -> str:
    """What is wrong with the variables of a launcher; empty where nothing is."""
    for name, (least, most) in _LEAST_AND_MOST.items():
        if name in os.environ and not least <= launcher_number(name, -1) <= most:
            return (
                f"the environment variable {name} must be a whole number from {least:,} to"
                f" {most:,}, got {os.environ[name][:100]!r}; a launcher sets it, else unset it"
            )
    world = next((name for name in WORLD_SIZES if name in os.environ), WORLD_SIZES[0])
    local = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in os.environ else world
    for name, of in (("RANK", world), ("LOCAL_RANK", local)):
        number, processes = launcher_number(name, 0), launcher_number(of, 1)
        if number >= processes:
            return (
                f"the environment variable {name} is {number}, but {of} says that there are"
                f" {processes} processes, counted from 0; a launcher sets both, else unset them"
            )
    if launcher_number(local, 1) > launcher_number(world, 1):
        return f"the environment variable {local} is more than {world}; unset them"
    return ""
