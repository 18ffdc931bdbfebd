"""The recorded checkpoints of the authors' code, unpacked once."""

import shutil
import tarfile

import pytest

from tests.support import golden
from tests.support.tensorflow_files import SAVED, TF1, TF2


@pytest.fixture(scope="session")
def golden_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for tag in (TF1, TF2, SAVED):
        with tarfile.open(golden.path(f"checkpoints/{tag}.tar.xz")) as archive:
            archive.extractall(folder, filter="data")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def no_gigabytes_left(tmp_path):
    """Every imported network is 45 MB or more, and pytest would keep them of three runs."""
    yield
    shutil.rmtree(tmp_path)
