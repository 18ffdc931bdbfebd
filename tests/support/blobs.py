"""Rows of numbers that a classifier can tell apart."""

import numpy as np


def blobs(
    per_class: int = 12, classes: int = 3, width: int = 5, spread: float = 0.5, seed: int = 0
):
    """Rows around well-separated middles, and their classes."""
    rng = np.random.default_rng(seed)
    middles = np.eye(classes, width) * 6
    targets = np.repeat(np.arange(classes), per_class)
    return (middles[targets] + spread * rng.standard_normal((len(targets), width))), targets
