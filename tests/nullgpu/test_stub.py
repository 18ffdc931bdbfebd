"""Where the null GPU cannot be built, its tests are skipped with the reason."""

import pytest

from tests.nullgpu import stub

pytestmark = pytest.mark.nullgpu


@pytest.fixture
def buildable(monkeypatch, tmp_path):
    """As on a machine that has everything; nothing is built."""
    (tmp_path / "libtorch_cuda.so").touch()
    monkeypatch.setattr(stub.sys, "platform", "linux")
    monkeypatch.setattr(stub.torch.version, "cuda", "13.0")
    monkeypatch.setattr(stub, "TORCH", tmp_path)
    monkeypatch.setattr(stub.shutil, "which", lambda program: program)
    monkeypatch.setattr(stub, "_headers", lambda: [tmp_path])
    assert stub.why_not() == ""


@pytest.mark.parametrize(
    ("owner", "name", "value", "reason"),
    [
        (stub.sys, "platform", "darwin", "the null GPU needs LD_PRELOAD of Linux"),
        (stub.torch.version, "cuda", None, "this torch is a CPU build"),
        (stub.shutil, "which", lambda _: None, "built with gcc and nm, not installed here"),
        (stub.shutil, "which", lambda p: p if p == "nm" else None, "built with gcc, not"),
        (stub, "_headers", list, "cuda_runtime_api.h is not among the packages"),
    ],
)
def test_what_is_missing_is_the_reason(owner, name, value, reason, buildable, monkeypatch):
    monkeypatch.setattr(owner, name, value)
    assert reason in stub.why_not()
