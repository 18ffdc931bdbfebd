"""The run that the tests of the assessment share."""

import shutil

import pytest

from stages import finetune, pretrain
from tests.support.assessed import TINY
from tests.support.photos import class_folders


@pytest.fixture(scope="package")
def photos(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("photos"), 15)


@pytest.fixture(scope="package")
def trained(tmp_path_factory, photos):
    """A run with a pretrained network, a supervised classifier and a fine-tuned one."""
    output = tmp_path_factory.mktemp("runs")
    options = [*TINY, f"--data.train={photos}", f"--output={output}"]
    assert pretrain.main(options) == 0
    assert finetune.main(options) == 0
    assert finetune.main([*options, "--method=supervised"]) == 0
    return output


@pytest.fixture
def copy(trained, tmp_path):
    """The trained run, not assessed, for this test alone."""
    for name in ("pretrain", "supervised-3perclass-seed0", "finetune-3perclass-seed0"):
        shutil.copytree(trained / "r" / name, tmp_path / "runs/r" / name)
    return tmp_path / "runs"
