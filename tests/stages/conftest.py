"""The run that the tests of single stages share, and a browser."""

import shutil

import pytest

from stages import finetune, pretrain
from tests.support.photo_run import files, run
from tests.support.photos import class_folders


@pytest.fixture(scope="package")
def photos(tmp_path_factory):
    """10 images each of the classes a, b and c."""
    return class_folders(tmp_path_factory.mktemp("photos"), 10)


@pytest.fixture(scope="package")
def finished(photos, tmp_path_factory):
    """A pretrained network and a fine-tuned one; nobody may change them."""
    output = tmp_path_factory.mktemp("finished")
    options = [f"--data.train={photos}", f"--output={output}", "--finetune.from_layer=1"]
    assert run(pretrain.main, *options) == 0
    assert run(finetune.main, *options) == 0
    before = files(output)
    yield output / "r"
    assert files(output) == before


def browser_path(playwright) -> str | None:
    """An installed Chromium; playwright's own, if somebody has fetched it."""
    installed = map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))
    own = playwright.chromium.executable_path
    return next(filter(None, installed), own if shutil.which(own) else None)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        path = browser_path(playwright)
        if path is None:
            pytest.skip("no Chromium or Chrome is installed")
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
