"""Temperature scaling: probabilities that are as high as predictions are right."""

import math

import torch.nn.functional as F
from torch import Tensor

SMALLEST, LARGEST = 0.05, 20.0


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The number that divides the logits for the highest likelihood (Guo et al. 2017, section 4.2).

    It changes no prediction. Where every prediction is right, the likelihood grows without end as
    the temperature falls, and so the images say nothing on it: it stays 1.

    Args:
        logits: (N, C) of images that the network has not learned from.
        targets: (N,) int64, their classes.

    Returns:
        The temperature, from ``SMALLEST`` to ``LARGEST``.
    """
    from scipy.optimize import minimize_scalar  # half a second to import

    if not len(targets) or bool((logits.argmax(1) == targets).all()):
        return 1.0
    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits / math.exp(log_temperature), targets).item()

    bounds = math.log(SMALLEST), math.log(LARGEST)
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)
