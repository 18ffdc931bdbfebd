"""What every command does around its stage."""

import platform
import resource

import pytest
import torch

from shared.config.command import keep_freed_memory


def faults() -> int:
    """Pages that the system hands out while 64 MB are used and freed 5 times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
def test_freed_memory_is_used_again():
    keep_freed_memory()
    faults()
    assert faults() < 1000  # else 16,384 each time
