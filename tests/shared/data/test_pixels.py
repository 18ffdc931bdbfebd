"""Pixels are indexed as the array that they stand for, and copy none of it."""

import numpy as np
import pytest
import torch

from shared.data import pixels as module
from shared.data.pixels import Pixels

A = torch.arange(5 * 3 * 2 * 4, dtype=torch.uint8).view(5, 3, 2, 4)
B = A.flip(0)[:4] + 100


def forms() -> dict[str, tuple[Pixels, torch.Tensor]]:
    """Pixels, and the array (n, 3, 2, 4) that they stand for."""
    some, others = np.array([3, 0, 0, 4]), np.array([2, 1])
    both = Pixels.of(A).followed_by(Pixels.of(B))
    return {
        "one": (Pixels.of(A), A),
        "selected": (Pixels.of(A).select(some), A[some]),
        "twice": (Pixels.of(A).select(some).select(others), A[some][others]),
        "two": (both, torch.cat([A, B])),
        "selected of two": (both.select(np.array([8, 0, 4, 5])), torch.cat([A, B])[[8, 0, 4, 5]]),
        "selections": (
            Pixels.of(A).select(some).followed_by(Pixels.of(B).select(others)),
            torch.cat([A[some], B[others]]),
        ),
        "three": (both.followed_by(Pixels.of(A)), torch.cat([A, B, A])),
    }


@pytest.mark.parametrize("form", forms())
def test_they_are_indexed_as_the_array(form, monkeypatch):
    pixels, array = forms()[form]
    assert len(pixels) == len(array)
    assert pixels.size == (3, 2, 4)
    for key in (0, -1, np.int64(1), slice(None), slice(1, 3), torch.tensor([1, 0, 1])):
        assert torch.equal(pixels[key], array[key])
        assert pixels[key].dtype == torch.uint8
    for key in (np.array([1, 1, 0]), np.zeros(0, np.int64), np.arange(len(array)) > 0):
        assert torch.equal(pixels[key], array[torch.from_numpy(key)])
    with pytest.raises(IndexError):
        pixels[len(array)]
    for size in (1, 50, 2**20):
        monkeypatch.setattr(module, "BLOCK", size)
        assert torch.equal(torch.cat(list(pixels.blocks())), array)


def test_selections_and_unions_use_the_same_memory():
    array = A.clone()
    whole = Pixels.of(array)
    part = whole.select(np.array([2, 3])).followed_by(Pixels.of(B))
    array[3] = 7
    assert (part[1] == 7).all()
    assert torch.equal(part[2], B[0])
