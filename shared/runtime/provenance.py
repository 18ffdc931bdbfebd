"""What computed a result: versions of packages, the commit of this code, the hardware."""

import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


@cache
def provenance() -> dict[str, Any]:
    """Hardware and versions that computed a result; the git commit of this code where known.

    What cannot be told here is None: a result is never lost because of its label.
    """
    packages = ("torch", "torchvision", "timm", "accelerate", "datasets", "scikit-learn")
    return {
        "versions": {name: _version(name) for name in packages},
        "git": _git_commit(),
        "hardware": hardware(),
    }


def _version(package: str) -> str | None:
    """The version of an installed package; None where its metadata were stripped."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of this code; None without git, without a repository, or where git hangs."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    here = Path(__file__).parent
    try:
        git = subprocess.run(
            command, cwd=here, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None


def hardware() -> str:
    """The GPU's name or, without one, the processor's and its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux tells the model only here
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.partition(":")[2].strip() for x in lines if x[:10] == "model name"), name)
    return f"{name}, {os.cpu_count()} cores"
