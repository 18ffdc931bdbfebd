"""Randomness as a function of (seed, stage, step, position), never of history."""

from zlib import crc32

import numpy as np


def generator(*key: str | int) -> np.random.Generator:
    """A counter-based generator that is a function of its key, such as (seed, "pretrain", step)."""
    words = [crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
