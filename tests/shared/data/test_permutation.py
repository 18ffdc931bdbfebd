"""A permutation that is computed place by place is one, and is as good as one drawn by lot."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shared.data import batches
from shared.data.permutation import permuted
from shared.runtime.randomness import generator


@given(st.integers(1, 3000), st.integers(0, 2**31))
def test_it_is_a_permutation(n: int, seed: int):
    values = permuted(np.arange(n), n, generator(seed))
    assert sorted(values.tolist()) == list(range(n))


@given(st.integers(1, 2**62), st.integers(0, 100), st.data())
def test_each_place_is_computed_alone(n: int, seed: int, data: st.DataObject):
    places = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)), dtype=np.int64)
    together = permuted(places, n, generator(seed))
    alone = [permuted(places[i : i + 1], n, generator(seed))[0] for i in range(len(places))]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < n)).all()
    assert len(set(together.tolist())) == len(set(places.tolist()))


@pytest.mark.parametrize("n", [5, 16])
def test_every_place_goes_everywhere_equally_often(n: int):
    draws = 2000
    values = np.stack([permuted(np.arange(n), n, generator(seed)) for seed in range(draws)])
    for place in range(n):
        counts = np.bincount(values[:, place], minlength=n)
        assert stats.chisquare(counts).pvalue > 1e-5


def test_all_orders_of_four_are_equally_likely():
    orders = [tuple(permuted(np.arange(4), 4, generator(seed)).tolist()) for seed in range(3000)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-5


def test_neighbours_and_keys_do_not_resemble_each_other():
    n = 100_003
    first = permuted(np.arange(n), n, generator(0))
    second = permuted(np.arange(n), n, generator(1))
    assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < 0.02
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert (first == np.arange(n)).sum() < 10  # one on average
    # gaps between the values of neighbouring places are as those of lots
    gaps = np.abs(np.diff(first))
    lots = np.abs(np.diff(generator(2).permutation(n)))
    assert stats.ks_2samp(gaps, lots).pvalue > 1e-5


def test_an_epoch_of_many_images_takes_no_table():
    n = 10**8
    tracemalloc.start()
    parts = [batches.positions(0, "pretrain", step, 4096, n) for step in (0, 12_000, 24_414)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20  # a table takes 800 MB
    assert len(np.unique(parts[:2])) == 2 * 4096
    assert min(map(np.min, parts)) >= 0
    assert max(map(np.max, parts)) < n


def test_a_stored_and_a_computed_order_both_visit_each_image_once(monkeypatch):
    for longest in (batches.LONGEST_ORDER, 10):
        monkeypatch.setattr(batches, "LONGEST_ORDER", longest)
        steps = [batches.positions(3, "pretrain", step, 16, 100) for step in range(25)]
        passes = np.concatenate(steps).reshape(4, 100)
        assert (np.sort(passes) == np.arange(100)).all()
        assert len(np.unique(passes, axis=0)) == 4
