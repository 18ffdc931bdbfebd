"""A TorchScript file is loaded without our code and computes the same."""

import json
import warnings
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch

from shared.runtime.errors import UserError
from stages.export.network import Deployed, load
from stages.export.torchscript import LONGEST, notes, write
from tests.support.exported import artifact, refused, run


def test_the_file(tmp_path, capsys):
    path = artifact(tmp_path / "r/s", ['a "b"', "c\nd"], from_layer=1)
    assert run(path, "--to", "torchscript") == 0
    assert "checked against torch" in capsys.readouterr().out
    notes = {"classes": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        loaded = torch.jit.load(path / "model.pt", _extra_files=notes)
    assert json.loads(notes["classes"]) == ['a "b"', "c\nd"]
    images = torch.rand(7, 3, 8, 8)
    torch.testing.assert_close(loaded(images), load(path).network(images))


def test_a_network_that_cannot_be_traced(tmp_path):
    source = load(artifact(tmp_path / "r/s", ["a", "b"]))

    class Breaks(Deployed):
        def forward(self, images):
            return {"a list": [self]}

    source.network.__class__ = Breaks
    with pytest.raises(UserError, match=r"cannot be written as TorchScript: .*; choose --to onnx"):
        write(source, tmp_path / "x.pt")


def test_a_trace_that_is_right_for_one_batch_only_is_refused(tmp_path, capfd, monkeypatch):
    path = artifact(tmp_path / "r/s", ["a", "b"])

    def of_two(self, images):
        shift = 1.0 if len(images) == 2 else 0.0  # a branch on a size: the trace keeps one side
        return (self.layers(images) + shift * torch.tensor([1.0, 0.0])).softmax(1)

    monkeypatch.setattr(Deployed, "forward", of_two)
    err = refused(capfd, path, "--to", "torchscript")
    assert "does not compute what torch does" in err
    assert not (path / "model.pt").exists()


@pytest.mark.parametrize(
    "damage", ["encrypted", "unknown compression", "large", "no text", "other"]
)
def test_another_archive_is_no_export(tmp_path, damage):
    file = tmp_path / "x.pt"
    content = {"large": b" " * (LONGEST + 1), "no text": b"\xff"}.get(damage, b"x")
    name = "x/data" if damage == "other" else "x/extra/source"
    with ZipFile(file, "w", ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    raw = bytearray(file.read_bytes())
    for begin, flags in ((0, 6), (raw.index(b"PK\x01\x02"), 8)):
        if damage == "encrypted":
            raw[begin + flags] |= 1
        elif damage == "unknown compression":
            raw[begin + flags + 2] = 77
    file.write_bytes(raw)
    assert notes(file) is None
