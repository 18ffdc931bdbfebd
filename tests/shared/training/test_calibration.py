"""The temperature that makes probabilities as high as predictions are right."""

import pytest
import torch
import torch.nn.functional as F

from shared.training.calibration import LARGEST, SMALLEST, fit_temperature


def honest(n: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and classes drawn from their softmax."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, 5, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
def test_undoes_a_factor(factor):
    logits, targets = honest()
    assert fit_temperature(factor * logits, targets) == pytest.approx(factor, rel=0.1)


def test_has_the_highest_likelihood():
    logits, targets = honest(300)
    best = fit_temperature(3 * logits, targets)
    losses = [F.cross_entropy(3 * logits / t, targets) for t in (best, 0.9 * best, 1.1 * best)]
    assert min(losses) == losses[0]


@pytest.mark.parametrize("n", [0, 1, 50])
def test_where_all_is_right_it_stays_1(n):
    logits, _ = honest(n or 1)
    assert fit_temperature(logits[:n], logits[:n].argmax(1)) == 1.0


def test_is_bounded():
    logits, _ = honest(50)
    assert fit_temperature(logits, logits.argmin(1)) == pytest.approx(LARGEST, rel=0.01)
    almost = logits.argmax(1)
    almost[0] = logits[0].argsort()[-2]
    assert SMALLEST <= fit_temperature(0.001 * logits, almost) <= LARGEST
