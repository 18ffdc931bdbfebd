"""What a main that uses no Accelerator makes of errors."""

import os

import pytest

from shared.runtime import errors
from shared.runtime.errors import CannotWriteError, CommandParser, UserError, exit_code_2


@exit_code_2
def main(error: Exception | None, code: int = 0) -> int:
    """What it does."""
    if error:
        raise error
    return code


@pytest.mark.parametrize(("local_rank", "speaks"), [(None, True), ("0", True), ("1", False)])
def test_the_first_process_of_a_machine_speaks(local_rank, speaks, monkeypatch, capsys):
    waits = []
    monkeypatch.setattr(errors.time, "sleep", waits.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    if local_rank:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert main(UserError("no such folder: x")) == 2
    assert capsys.readouterr().err == ("error: no such folder: x\n" if speaks else "")
    assert waits == ([] if speaks else [errors.SPOKEN_WITHIN])


@pytest.mark.parametrize("kind", [UserError, CannotWriteError])
def test_bad_input_is_one_line_and_exit_code_2(capsys, kind):
    assert main(kind("no such folder: x")) == 2
    assert capsys.readouterr() == ("", "error: no such folder: x\n")


def test_without_an_error_the_code_is_mains(capsys):
    assert [main(None), main(None, code=3)] == [0, 3]
    assert capsys.readouterr() == ("", "")
    assert (main.__name__, main.__doc__) == ("main", "What it does.")


@pytest.mark.parametrize("error", [ValueError("ours"), OSError(2, "not ours"), SystemExit(5)])
def test_a_defect_keeps_its_traceback(error):
    with pytest.raises(type(error)) as caught:
        main(error)
    assert caught.value is error


@exit_code_2
def command(*arguments: str) -> int:
    parser = CommandParser("python -m test")
    parser.add_argument("count", type=int)
    return parser.parse_args(arguments).count


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "error: the following arguments are required: count (see --help)\n"),
        (("1", "2"), "error: unrecognized arguments: 2 (see --help)\n"),
        (("1", "--cuont"), "error: unknown option --cuont (see --help)\n"),
        (("--hepl",), "error: unknown option --hepl; did you mean --help? (see --help)\n"),
        (("1", "--", "--2"), "error: unrecognized arguments: --2 (see --help)\n"),
        (("one",), "error: argument count: invalid int value: 'one' (see --help)\n"),
    ],
)
def test_a_bad_call_is_one_line_and_exit_code_2(arguments, line, capsys):
    assert command("1") == 1
    assert command(*arguments) == 2
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("argument", ["x" * 256, "é" * 128, "a/" * 1501, "é/" * 1001, "a\0b"])
def test_what_no_file_system_takes_is_a_bad_call(argument, capsys):
    assert command(argument) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "is too long for a path, or has a NUL character (see --help)" in err
    assert err[:-1].isprintable()


@pytest.mark.parametrize("byte", [b"\xff", b"\xe9", b"\x80"])
def test_a_name_that_is_no_utf8_counts_its_bytes(byte, capsys):
    assert command(os.fsdecode(byte * 255)) == 2
    assert "invalid int value" in capsys.readouterr().err
    assert command(os.fsdecode(byte * 256)) == 2
    assert "is too long for a path" in capsys.readouterr().err


def test_a_surrogate_that_stands_for_no_byte_is_a_bad_call(capsys):
    assert command("a\ud800") == 2
    assert capsys.readouterr().err == "error: 'a\\ud800' is no text (see --help)\n"


def test_too_little_memory_says_what_takes_less(capsys):
    assert main(MemoryError()) == 2
    line = "error: there is not enough memory; give a smaller --batch_size or smaller images\n"
    assert capsys.readouterr().err == line


def test_help_is_no_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        command("--help")
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python -m test")


def test_the_pipe_of_a_worker_is_another_matter():
    def breaks() -> int:
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        exit_code_2(breaks)()


@pytest.mark.parametrize(("variable", "value"), [("WORLD_SIZE", "z"), ("LOCAL_RANK", "-1")])
def test_variables_of_a_launcher_are_checked_first(variable, value, monkeypatch, capsys):
    monkeypatch.setenv(variable, value)
    assert main(ZeroDivisionError()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: the environment variable {variable} must be a whole number")
    assert error.count("\n") == 1
