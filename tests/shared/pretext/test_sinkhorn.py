"""Sinkhorn's normalisation against its definition."""

import math

import pytest
import torch

from shared.pretext.sinkhorn import sinkhorn


def scores(*shape: int, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rows_and_columns_sum_to_1():
    made = sinkhorn(scores(5, 9, 9, spread=1.0), 20).exp()
    assert (made.sum(2) - 1).abs().max() < 1e-5
    assert (made.sum(1) - 1).abs().max() < 1e-3


def test_it_is_the_division_of_columns_and_rows_by_their_sums():
    plain = scores(4, 4).double().exp()
    for _ in range(3):
        plain = plain / plain.sum(0)
        plain = plain / plain.sum(1, keepdim=True)
    assert torch.allclose(sinkhorn(scores(4, 4).double(), 3).exp(), plain)
    assert torch.equal(sinkhorn(scores(4, 4), 0), scores(4, 4))


def test_columns_of_an_oblong_matrix_share_the_rows_evenly():
    made = sinkhorn(scores(12, 3), 30).exp()
    assert torch.allclose(made.sum(1), torch.ones(12), atol=1e-5)
    assert torch.allclose(made.sum(0), torch.full((3,), 4.0), atol=1e-3)


def test_large_scores_stay_finite_and_half_precision_is_widened():
    made = sinkhorn(1e4 * torch.eye(3).expand(2, 3, 3), 20)
    assert torch.allclose(made.exp(), torch.eye(3).expand(2, 3, 3))
    wide = sinkhorn(scores(3, 3).bfloat16(), 20)
    assert wide.dtype == torch.float32
    assert torch.allclose(wide.exp().sum(0), torch.ones(3), atol=1e-3)


def test_other_order_of_rows_and_columns_is_the_same_matrix_in_that_order():
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 3, 0, 2])
    x = scores(4, 4)
    assert torch.allclose(sinkhorn(x[rows][:, columns], 5), sinkhorn(x, 5)[rows][:, columns])


@pytest.mark.parametrize("steps", [1, 4])
def test_gradient(steps):
    x = scores(2, 3, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: sinkhorn(value, steps).exp(), x)


def test_equal_scores_are_an_even_matrix():
    assert torch.allclose(sinkhorn(torch.full((3, 3), 7.0), 1), torch.full((3, 3), -math.log(3)))
