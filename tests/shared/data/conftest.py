"""What the tests of this room share."""

import pytest

from tests.support import golden


@pytest.fixture(scope="package")
def recorded():
    """Arrays and ``meta`` that the authors' augmentation left."""
    return golden.load("augment.npz")
