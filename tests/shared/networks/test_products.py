"""Products by oneDNN are products, wherever the numbers lie in memory."""

from functools import partial

import pytest
import torch

from shared.networks import products as matrices
from shared.networks.products import add_product, by_onednn, product, products


@pytest.fixture(autouse=True, params=[True, False], ids=["onednn", "mkl"])
def onednn(request, monkeypatch) -> bool:
    monkeypatch.setattr(matrices, "BY_ONEDNN", request.param)
    return request.param


def pairs():
    torch.manual_seed(0)
    a, b = torch.randn(3, 7, 5), torch.randn(3, 5, 6)
    return {
        "dense": (a, b),
        "transposed": (a.mT.contiguous().mT, b.mT.contiguous().mT),
        "one of another": (torch.randn(7, 3, 5).transpose(0, 1), b),
        "columns left out": (torch.randn(3, 7, 9)[:, :, 2:7], torch.randn(3, 9, 6)[:, 4:]),
        "rows of a transpose left out": (torch.randn(3, 5, 9).mT[:, 2:], b),
        "every second": (torch.randn(3, 7, 10)[:, :, ::2], b),
        "expanded": (a, torch.ones(()).expand(3, 5, 6)),
        "one row": (a[:, :1], b),
        "one column": (a, b[:, :, :1]),
        "a sum of one": (a[:, :, :1], b[:, :1]),
    }


@pytest.mark.parametrize("name", pairs())
def test_products(name):
    a, b = pairs()[name]
    exact = (a.double() @ b.double()).float()
    assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    assert_close(products(a, b), exact)
    total = torch.ones_like(exact)
    add_product(total, a, b)
    assert_close(total, exact + 1)
    for left, right, result in zip(a, b, exact, strict=True):
        assert_close(product(left, right), result)
        total = torch.ones_like(result)
        add_product(total, left, right)
        assert_close(total, result + 1)


def test_only_float32_on_the_cpu(onednn):
    assert by_onednn(torch.ones(2, 2)) == onednn
    for other in (torch.ones(2, 2).double(), torch.ones(2, 2).bfloat16()):
        assert not by_onednn(other)
        assert torch.equal(product(other, other), torch.full((2, 2), 2).to(other.dtype))
    assert not by_onednn(torch.ones(2, 2, device="meta"))
