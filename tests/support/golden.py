"""The recorded numbers of the authors' TensorFlow code, and how their inputs were made.

Small files lie in ``tests/golden``; the larger ones are read from ``../shared/golden`` beside the
checkout where that exists, and a test that needs an absent one is skipped with that reason.
Weights and images are not stored: each is a function of its TensorFlow variable name.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parents[1] / "golden"
BESIDE = Path(__file__).parents[3] / "shared" / "golden"


def path(name: str) -> Path:
    """Where the golden file ``name`` lies; skips the calling test when it is in neither place."""
    for folder in (HERE, BESIDE):
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"golden file {name} is neither in tests/golden nor in ../shared/golden")


def load(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """All arrays of a golden file and its ``meta`` (flags and arguments per case)."""
    with np.load(path(name), allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(str(arrays.pop("meta")))


def rng(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf-8"))))


def normal(name: str, shape) -> np.ndarray:
    return rng(name).standard_normal(shape)


def uniform(name: str, shape) -> np.ndarray:
    return rng(name).random(shape)


def _affine(name: str, x: np.ndarray, shape) -> np.ndarray:
    leaf = name.split("/")[-1]
    if leaf == "kernel":
        return x / math.sqrt(np.prod(shape[:-1]))
    if leaf == "gamma":
        return 1.0 + 0.1 * x
    if leaf == "moving_variance":
        return 1.0 + 0.1 * np.abs(x)
    return 0.1 * x  # beta, bias, moving_mean


def weight(name: str, shape) -> np.ndarray:
    """The float32 value of the TensorFlow variable ``name`` (kernels HWIO or (in, out))."""
    return _affine(name, normal(name, shape), shape).astype(np.float32)


def weight_tiled(name: str, shape) -> np.ndarray:
    """The same for the files under ``checkpoints/``: period 4099, so that they compress."""
    base = normal(name, (4099,)).astype(np.float16).astype(np.float64)
    return _affine(name, np.resize(base, int(np.prod(shape))).reshape(shape), shape).astype(
        np.float32
    )


def image(name: str, B: int, H: int, W: int) -> np.ndarray:
    """Images (B, H, W, 3), float32 in [0, 1]."""
    low, high = uniform(name + "/lo", (B, 8, 8, 3)), uniform(name + "/hi", (B, H, W, 3))
    iy, ix = (np.arange(H) * 8) // H, (np.arange(W) * 8) // W
    return (0.7 * low[:, iy][:, :, ix] + 0.3 * high).astype(np.float32)
