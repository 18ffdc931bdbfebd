"""Tests of pretext tasks run stage 1 in this process, in their own precision."""

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Let each test choose its precision, and the tests after it theirs."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
