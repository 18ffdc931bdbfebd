"""The columns of results."""

import torch

from shared.runs.metrics import METRICS, legend
from shared.training.evaluate import classification_metrics


def test_every_measurement_has_a_column():
    measured = classification_metrics(torch.rand(4, 7), torch.arange(4))
    assert measured.keys() <= METRICS.keys()
    assert set(METRICS) - measured.keys() == {"seconds"}


def test_legend_explains_the_abbreviations():
    assert legend() == (
        "NLL: mean negative log likelihood, nats; ECE: expected calibration error, 15 bins"
    )
