"""Randomness as a function of (seed, stage, step, position), never of history."""

from zlib import crc32

import numpy as np
import torch


def generator(*key: str | int) -> np.random.Generator:
    """A counter-based generator whose draws depend only on the key.

    numpy pads a key of less than four parts with zeros, so ``(0, "pretrain")`` and
    ``(0, "pretrain", 0)`` are the same key. Keys of one length never meet in this way.

    Args:
        *key: such as ``(seed, "pretrain", step)``; the numbers are >= 0.
    """
    words = [crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def seed_torch(*key: str | int) -> None:
    """Seed torch by the key, so that initial weights or dropout depend only on it."""
    seed = int(generator(*key).integers(2**63))
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # the same, but it does not note a stack trace for a device that may be used later
        torch.default_generator.manual_seed(seed)
