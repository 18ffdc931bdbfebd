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


def test_the_folder_of_a_stage_is_answered_with_that_of_its_run(tmp_path, capsys):
    (tmp_path / "photos/pretrain").mkdir(parents=True)
    (tmp_path / "photos/pretrain/meta.json").write_text("{}")
    assert main([str(tmp_path / "photos/pretrain")]) == 2
    assert f"give that of its run: {tmp_path / 'photos'}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: the following arguments are required: runs/NAME"),
        (["a", "b", "c"], "error: unrecognized arguments: c"),
        (["a", "--open"], "error: unknown option --open"),
    ],
)
def test_bad_call(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"{message} (see --help)\n"


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(
        "usage: python -m stages.page [-h] runs/NAME [FOLDER]"
    )


def test_pictures(bare, tmp_path, capsys):
    assert main([str(bare), str(tmp_path / "pictures")]) == 0
    assert capsys.readouterr().out == f"{bare / 'page.html'}\n"
    assert (tmp_path / "pictures/views.svg").read_text().startswith("<svg")
