"""Names of images against numpy arrays of the same texts."""

import pickle

import numpy as np
import pyarrow as pa
import pytest

from shared.data import names as module
from shared.data.names import Names

ROOT = "/photos/größe/"
CHUNKS = [["a/0.png", "a/ü.png"], [], ["b/1.png", "b/2.png", "c.png"]]
TEXTS = [name for chunk in CHUNKS for name in chunk]


def column() -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([ROOT + n for n in c], pa.string()) for c in CHUNKS])


WAYS = {
    "strings": lambda: (Names.of(TEXTS), TEXTS),
    "column": lambda: (Names.of_column(column(), len(ROOT)), TEXTS),
    "selected": lambda: (
        Names.of_column(column(), len(ROOT)).select(np.array([4, 0, 4, 2])),
        [TEXTS[i] for i in (4, 0, 4, 2)],
    ),
    "followed": lambda: (
        Names.of_column(column(), len(ROOT)).followed_by(Names.of(["a/0.png", "z"]), "x/"),
        [*TEXTS, "x/a/0.png", "x/z"],
    ),
    "selected and followed twice": lambda: (
        Names.of(TEXTS)
        .select(np.array([1, 3]))
        .followed_by(Names.of("pq").select(np.array([False, True])), "x/")
        .followed_by(Names.of("r"), "y/"),
        [TEXTS[1], TEXTS[3], "x/q", "y/r"],
    ),
    "none": lambda: (Names.of([]), []),
}


@pytest.mark.parametrize("block", [2, module.BLOCK])
@pytest.mark.parametrize("way", WAYS)
def test_names_are_those_of_an_array(monkeypatch, way, block):
    monkeypatch.setattr(module, "BLOCK", block)
    names, texts = WAYS[way]()
    array = np.array(texts, dtype=module.TEXT)
    assert names.tolist() == list(names) == texts == np.asarray(names).tolist()
    assert len(names) == len(texts)
    assert pickle.loads(pickle.dumps(names)).tolist() == texts
    assert [names[i] for i in range(-len(texts), len(texts))] == texts * 2
    rng = np.random.default_rng(0)
    mask = rng.random(len(texts)) < 0.5
    some = rng.integers(-len(texts), len(texts), 7 if texts else 0)
    for key in (mask, ~mask, some, slice(1, 3), slice(None, None, -1), some[:0]):
        assert names[key].tolist() == array[key].tolist()
        if not isinstance(key, slice):
            assert names.select(key).tolist() == array[key].tolist()
    for wrong in (len(texts), -len(texts) - 1):
        with pytest.raises(IndexError):
            names[wrong]


def test_a_selection_copies_no_text():
    names = Names.of("x" * 1000 for _ in range(1000))
    before = pa.total_allocated_bytes()
    half = names.select(np.arange(0, 1000, 2))
    assert pa.total_allocated_bytes() == before
    assert half._rows is not None
    assert half._rows.nbytes == 4 * 500
