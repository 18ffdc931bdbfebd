"""Draws are a function of their key alone."""

import torch

from shared.runtime.randomness import generator, seed_torch

STREAM = [4226879261820037896, 1886131058086198793, 8287708460080969541, 5013253166236794053]


def draws(*key):
    return generator(*key).integers(2**63, size=4).tolist()


def test_a_key_is_a_stream():
    keys = [(0,), (1,), (0, "pretrain"), (0, "finetune"), (0, "pretrain", 1), (0, "pretrain", 2)]
    streams = [draws(*key) for key in keys]
    assert len({tuple(stream) for stream in streams}) == len(keys)
    assert streams == [draws(*key) for key in keys]
    assert draws(0, "pretrain", 0) == draws(0, "pretrain")  # see `generator`


def test_streams_stay_what_they_are():
    """Trained models depend on these numbers: they are the same on every machine."""
    assert draws(0, "pretrain", 7) == STREAM
    seed_torch(0, "pretrain", 7)
    first = torch.rand(3)
    torch.rand(5)
    seed_torch(0, "pretrain", 7)
    assert torch.equal(torch.rand(3), first)
    assert torch.initial_seed() == STREAM[0]
