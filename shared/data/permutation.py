"""A permutation of very many positions that is never stored.

A table of 10^8 positions takes 0.8 GB in every process, for every pass. Here each value is computed
from its position by a Feistel network (Luby and Rackoff 1988): a permutation of all numbers of 2 h
bits. A value that is not below n goes through it again until it is (cycle walking, Black and
Rogaway 2002), and this is a permutation of 0 .. n - 1.
"""

import numpy as np

ROUNDS = 8  # Luby and Rackoff prove 4 for random functions; these are only well mixed


def permuted(places: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Where a permutation of n positions takes these places.

    Args:
        places: (k,) int64, each from 0 to n - 1.
        n: number of positions, from 1 to 2^62.
        rng: of the key; generators in one state give one permutation.

    Returns:
        (k,) int64, different for different places. Time and memory depend on k only.
    """
    half_bits = max(1, -(-(n - 1).bit_length() // 2))
    keys = rng.integers(2**64, size=ROUNDS, dtype=np.uint64)
    values = places.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():  # at most three of four values of 2 h bits are n or more
        values[outside] = _feistel(values[outside], np.uint64(half_bits), keys)
        outside = values >= n
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half_bits: np.uint64, keys: np.ndarray) -> np.ndarray:
    """One pass over numbers (k,) uint64 of twice ``half_bits`` bits."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return left << half_bits | right


def _mixed(words: np.ndarray) -> np.ndarray:
    """Each bit of the result depends on all bits (k,) uint64: the finaliser of SplitMix64."""
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)
