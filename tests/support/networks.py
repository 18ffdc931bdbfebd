"""Small networks for the tests."""

from torch import nn


def small_classifier():
    """A trunk with a bias-free convolution, one with bias (as in SE), batch norm, and the head."""
    encoder = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Flatten()
    )
    head = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    return nn.ModuleDict({"encoder": encoder, "head": head, "linear": nn.Linear(4, 2)})
