"""One thread, no network, nothing written to the user's home, and less for the collector to do."""

import gc
import os
import tempfile

# Before anything imports the hub's packages, which read these once. The folder goes at exit.
_CACHE = tempfile.TemporaryDirectory(prefix="few-labels-tests-", ignore_cleanup_errors=True)
os.environ |= {
    "HF_HOME": _CACHE.name,
    "HF_DATASETS_CACHE": _CACHE.name + "/datasets",
    "HF_HUB_OFFLINE": "1",
}

import pytest  # noqa: E402
import torch  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402

from tests.support.irregular import IRREGULAR  # noqa: E402

torch.set_num_threads(1)  # the test machines have two cores, and xdist or gloo tests share them


@pytest.fixture(autouse=True, scope="module")
def clean_start():
    """A file's commands choose their precision, whatever those of another file had chosen.

    What is there by now is taken from the garbage collector. accelerate has it collect at the end
    of each stage, which would take up to 0.2 s with all objects that imports have made.
    """
    AcceleratorState._reset_state(True)
    gc.collect()
    gc.freeze()


@pytest.fixture(params=IRREGULAR)
def make_irregular(request):
    """Function of a path that makes what is no regular file there; once for each kind."""
    return IRREGULAR[request.param]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole commands first: if long files came last, one of two workers would wait."""
    items.sort(key=lambda item: not {"shared", "stages"}.isdisjoint(item.path.parts[-4:-1]))
