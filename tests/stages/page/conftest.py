"""Runs whose page the tests of this folder look at."""

import pytest

from shared.config.command_line import load_config
from tests.support.run_folder import make_run


@pytest.fixture(scope="session")
def config():
    return load_config([], "test", "")[0]


@pytest.fixture
def bare(config, tmp_path):
    """One label set, one draw, no assessment, no table."""
    return make_run(tmp_path / "bare", config, draws=1, labels=("1pct",))
