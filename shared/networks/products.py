"""Matrix products in float32 on CPU, by the faster of the libraries that torch has.

torch multiplies by MKL, which leaves half of what AMD's processors with AVX-512 can do. There
oneDNN, which makes torch's convolutions, makes these products too. The choice depends on the kind
of processor alone, so an interrupted run that goes on keeps its bits.
"""

import torch
from torch import Tensor

# This processor is AMD's with AVX-512, and torch may use it.
BY_ONEDNN = (
    torch.backends.cpu.get_cpu_capability() == "AVX512"
    and torch.backends.mkldnn.is_available()
    and getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "").startswith("AMD")
)


def by_onednn(matrix: Tensor) -> bool:
    """Whether oneDNN makes the products of matrices of this type on this device."""
    return BY_ONEDNN and matrix.dtype == torch.float32 and matrix.device.type == "cpu"


def product(a: Tensor, b: Tensor) -> Tensor:
    """(M, K) times (K, N): (M, N)."""
    if not by_onednn(a):
        return a @ b
    return torch.ops.mkldnn._linear_pointwise(
        _contiguous(a), _contiguous(b).t(), None, "none", [], ""
    )


def products(a: Tensor, b: Tensor) -> Tensor:
    """The same for each of (n, M, K) and (n, K, N): (n, M, N)."""
    if not by_onednn(a):
        return torch.bmm(a, b)
    pairs = zip(_contiguous(a), _contiguous(b), strict=True)
    return torch.stack([product(left, right) for left, right in pairs])


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add `product`, or for three dimensions `products`, to ``total``, in place."""
    if by_onednn(a):
        total += product(a, b) if a.dim() == 2 else products(a, b)
    elif a.dim() == 2:
        total.addmm_(a, b)
    else:
        total.baddbmm_(a, b)


def _contiguous(matrices: Tensor) -> Tensor:
    """The same numbers, rows or columns in one piece: for others oneDNN takes 100 times as long."""
    if matrices.mT.is_contiguous():
        return matrices
    if matrices.stride(-2) == 1:
        return matrices.mT.contiguous().mT
    return matrices.contiguous()
