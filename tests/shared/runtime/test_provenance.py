"""What computed a result, told also where git or the packages tell nothing."""

import subprocess
from importlib.metadata import PackageNotFoundError

import pytest

from shared.runtime import provenance
from shared.runtime.artifacts import read_meta
from tests.support.stage_folder import META, folder, network


# ------------------------------------------------------------------------------------- provenance
@pytest.mark.parametrize("git", ["missing", "hangs", "forbidden", "no repository"])
def test_a_stage_finishes_whatever_git_does(tmp_path, monkeypatch, git):
    """A slim container has no git: all of pretraining must not be lost for a line of meta.json."""

    def run(command, **options):
        if git == "missing":
            raise FileNotFoundError(2, "No such file or directory", "git")
        if git == "forbidden":
            raise PermissionError(13, "Permission denied", "git")
        if git == "hangs":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, 128, "", "fatal: not a git repository")

    monkeypatch.setattr(provenance.subprocess, "run", run)
    provenance.provenance.cache_clear()
    stage = folder(tmp_path)
    stage.start("")
    stage.finish(network(), META)
    provenance.provenance.cache_clear()
    assert read_meta(stage.path)["git"] is None


def test_versions_that_are_not_known_are_none(monkeypatch):
    """Metadata of packages are left out of some images too."""

    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(provenance, "version", version)
    provenance.provenance.cache_clear()
    assert set(provenance.provenance()["versions"].values()) == {None}
    provenance.provenance.cache_clear()
