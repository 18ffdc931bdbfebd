"""The command: what it refuses, and that a file is there whole or not at all."""

import pytest

from shared.runtime.errors import UserError
from shared.runtime.lock import BusyError
from stages.export import export as module
from tests.support.disk import files_of_at_most
from tests.support.exported import DIGITS, artifact, refused, run
from tests.support.photo_run import files


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return artifact(tmp_path_factory.mktemp("artifacts") / "r/s", DIGITS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --to"),
        (["--to", "tflite"], "invalid choice: 'tflite'"),
        (["--to", "timm", "--int8"], "--int8 needs --to onnx, not timm"),
        (["--to", "onnx", "--push_to_hub", "me/x"], "--push_to_hub needs --to timm, not onnx"),
        (["--to", "torchscript", "--layer", "x"], "argument --layer: invalid int value: 'x'"),
        (["--to", "torchscript", "--layer", "1"], "--layer 1: "),
        (["--to", "torchscript", "--images", "a/b/c"], "no such folder or file: a/b/c"),
        (["--to", "torchscript", "-o", "/"], "/ is a folder; -o names the file to write"),
        (["--to", "torchscript", "-o", "/dev/null/x.pt"], "cannot write /dev/null/x.pt"),
        (["--to", "onnx", "--int8", "--layer", "0"], "needs a classifier's, not --layer"),
    ],
)
def test_bad_calls(student, capfd, arguments, message):
    before = files(student)
    assert message in refused(capfd, student, *arguments)
    assert files(student) == before


def test_what_is_no_artifact(tmp_path, capfd):
    assert "no such artifact folder" in refused(capfd, tmp_path / "x", "--to", "timm")
    assert "holds no finished artifact" in refused(capfd, tmp_path, "--to", "timm")
    file = tmp_path / "model.onnx"
    file.write_text("")
    assert f"{file} is a file; give the folder of a stage" in refused(capfd, file, "--to", "timm")


@pytest.mark.parametrize("format_", ["torchscript", "timm", "onnx"])
def test_another_process_is_told_of_before_the_network_is_loaded(
    student, monkeypatch, capfd, format_
):
    def busy(path, advice):
        raise BusyError(f"busy; {advice}")

    monkeypatch.setattr(module, "held", busy)
    monkeypatch.setattr(module, "load", None)
    assert "busy; choose another -o" in refused(capfd, student, "--to", format_)


@pytest.mark.parametrize("format_", ["torchscript", "onnx", "timm"])
@pytest.mark.parametrize("content", [b"file,label\n", b"PK\x03\x04", b"", "link"])
def test_what_is_no_export_is_not_replaced(student, tmp_path, capfd, format_, content):
    file = tmp_path / "mine.csv"
    if content == "link":
        file.symlink_to("/dev/null")
    else:
        file.write_bytes(content)
    message = refused(capfd, student, "--to", format_, "-o", file)
    assert "earlier export" in message
    assert "choose another -o" in message
    assert file.is_symlink() or file.read_bytes() == content


@pytest.mark.parametrize("format_", ["torchscript", "timm"])
@pytest.mark.parametrize("failing", ["write", "load", "check"])
def test_a_failed_export_leaves_what_was_there(student, monkeypatch, format_, failing):
    assert run(student, "--to", format_) == 0
    before = files(student)

    def fail(*arguments):
        raise UserError("it does not work")

    if failing == "check":
        monkeypatch.setattr(module, "check", fail)
    else:
        broken = module.FORMATS[format_]._replace(**{failing: fail})
        monkeypatch.setitem(module.FORMATS, format_, broken)
    assert run(student, "--to", format_) == 2
    assert files(student) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--to", "torchscript"],
        ["--to", "timm"],
        pytest.param(["--to", "onnx", "--int8"], marks=pytest.mark.slow),
    ],
)
def test_without_room_nothing_is_left(student, capfd, arguments):
    """The libraries write in their own ways, and one ended the process."""
    before = files(student)
    with files_of_at_most(100_000):
        assert run(student, *arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: cannot write")
    assert "File too large" in line
    assert "make room or choose another -o" in line
    assert files(student) == before


@pytest.mark.slow
def test_without_room_for_what_onnxruntime_writes_in_between(student, tmp_path):
    source, whole = module.load(student, None), tmp_path / "model.onnx"
    module.onnx_file.write(source, whole)
    for room in (100, whole.stat().st_size // 2, whole.stat().st_size - 1000):
        with files_of_at_most(room), pytest.raises((UserError, OSError)):
            module.onnx_file.quantize(source, whole, tmp_path / "small.onnx")


def test_the_example_of_another_place(student, tmp_path, capsys):
    assert run(student, "--to", "torchscript", "-o", tmp_path / "new/student.pt") == 0
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["student.pt"]
    out = capsys.readouterr().out
    assert "images (N, 3, 8, 8) float32, RGB in [0, 1]" in out


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--help")
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python -m stages.export")
