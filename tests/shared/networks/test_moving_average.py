"""The average of a network's weights: parameters move, statistics are copied."""

import pytest
import torch
from torch import nn

from shared.networks.moving_average import averaged, move_average


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_parameters_move_and_statistics_are_copied(decay):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = averaged(model)
    assert not any(p.requires_grad for p in average.parameters())
    before = average[0].weight.clone()
    with torch.no_grad():
        model[0].weight += 1
    model(torch.randn(8, 3))  # moves the statistics
    move_average(average, model, decay)
    torch.testing.assert_close(average[0].weight, before + (1 - decay))
    assert torch.equal(average[1].running_mean, model[1].running_mean)
    assert average[1].num_batches_tracked == 1
    assert model[0].weight.requires_grad
