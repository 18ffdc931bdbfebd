"""Some of the run's images, from which a task takes what it has to know before it trains."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from shared.config.sections import Data
from shared.data.batches import shown_photo
from shared.data.image_ops import to_float
from shared.data.images import ImageSet

SAMPLED = 1000  # images at most; of 224 x 224 pixels they take 144 MiB
AT_ONCE = 50


def sample(images: ImageSet, data: Data) -> Tensor:
    """At most ``SAMPLED`` images, evenly from all, as evaluation shows them.

    Returns:
        (n, 3, S, S) uint8, a function of the images alone.

    Raises:
        UserError: an image cannot be read.
    """
    ids = np.linspace(0, len(images) - 1, min(len(images), SAMPLED), dtype=int).tolist()
    threads = max(1, min(data.workers, os.cpu_count() or 1))
    with ThreadPoolExecutor(threads) as pool:  # decoding frees the interpreter
        return torch.stack([*pool.map(lambda id_: shown_photo(images.decode(id_), data), ids)])


def in_chunks(sampled: Tensor) -> Iterator[Tensor]:
    """A sample in parts of few images: (b, 3, S, S) float32 in [0, 1]."""
    return map(to_float, sampled.split(AT_ONCE))
