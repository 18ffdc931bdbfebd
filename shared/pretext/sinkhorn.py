"""Sinkhorn's normalisation: a matrix of scores becomes nearly doubly stochastic.

Rows and columns are divided by their sums in turn (Sinkhorn 1964). Where entries are exponentials,
that is a subtraction of logarithms, which neither overflows nor divides by 0 (Mena et al. 2018,
arXiv 1802.08665; google/gumbel_sinkhorn, "sinkhorn_ops.py").
"""

import math

from torch import Tensor


def sinkhorn(log_scores: Tensor, steps: int) -> Tensor:
    """The logarithm of a matrix with balanced columns, whose rows are distributions.

    Each step divides columns, then rows. So the rows' sums are exact after any number of steps, and
    the columns' sums come nearer with each. With gradient; call it outside of autocast.

    Args:
        log_scores: (..., n, m) logarithms of positive scores, of any size; half precision becomes
            float32.
        steps: how often; 0 normalises nothing.

    Returns:
        (..., n, m): of its exponentials a row sums to 1, a column to n / m, which is 1 where the
        matrix is square.
    """
    x = log_scores if log_scores.dtype.itemsize >= 4 else log_scores.float()
    share = math.log(x.shape[-2] / x.shape[-1])
    for _ in range(steps):
        x = x - x.logsumexp(-2, keepdim=True) + share
        x = x - x.logsumexp(-1, keepdim=True)
    return x
