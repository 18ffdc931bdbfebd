"""The command: python -m stages.page."""

import pytest

from stages.page.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: no such run: nowhere\n"),
        (["."], "error: no finished classifier in .; run pipeline.py first\n"),
    ],
)
def test_bad_input(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "error: the following arguments are required: runs/NAME"),
        (["a", "b", "c"], 2, "error: unrecognized arguments: c"),
        (["a", "--open"], 2, "error: unrecognized arguments: --open"),
        (["--help"], 0, "usage: python -m stages.page [-h] runs/NAME [FOLDER]"),
    ],
)
def test_usage(arguments, code, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == code
    out, err = capsys.readouterr()
    assert message in (err if code else out)


def test_pictures(bare, tmp_path, capsys):
    assert main([str(bare), str(tmp_path / "pictures")]) == 0
    assert capsys.readouterr().out == f"{bare / 'page.html'}\n"
    assert (tmp_path / "pictures/views.svg").read_text().startswith("<svg")
