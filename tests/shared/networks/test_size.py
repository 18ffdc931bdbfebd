"""Costs counted by hand; ``tests/shared/runs/test_forecast.py`` compares with real networks."""

from torch import nn

from shared.networks.size import measure_size


def test_size_of_a_convolution_is_counted_by_hand():
    size = measure_size(
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.ReLU(), nn.Flatten()), 6, "no"
    )
    assert size.parameters == 5 * 3 * 9
    assert size.flops == 2 * (5 * 3 * 9) * 16  # a multiplication and an addition at 4 x 4 places
    # kept: the input (for the kernel's gradient), and the output of the ReLU
    assert size.activations == 4 * (3 * 36 + 5 * 16)
