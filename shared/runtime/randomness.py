"""Randomness as a function of (seed, stage, step, position), never of history."""

from zlib import crc32

import numpy as np
import torch


def generator(*key: str | int) -> np.random.Generator:
    """A counter-based generator that is a function of its key, such as (seed, "pretrain", step)."""
    words = [crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def seed_torch(*key: str | int) -> None:
    """Make what torch draws next, such as initial weights or dropout, a function of the key."""
    torch.manual_seed(int(generator(*key).integers(2**63)))
