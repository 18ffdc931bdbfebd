"""Bad input is one line and exit code 2; a defect keeps its traceback."""

import pytest

from shared.runtime.errors import CommandParser, UserError, exit_code_2


@exit_code_2
def command(*arguments: str) -> int:
    parser = CommandParser("python -m test")
    parser.add_argument("count", type=int)
    count = parser.parse_args(arguments).count
    if count < 0:
        raise UserError(f"count must be 0 or more, got {count}")
    return 1 // count


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "error: the following arguments are required: count (see --help)\n"),
        (("1", "2"), "error: unrecognized arguments: 2 (see --help)\n"),
        (("one",), "error: argument count: invalid int value: 'one' (see --help)\n"),
        (("-1",), "error: count must be 0 or more, got -1\n"),
    ],
)
def test_bad_input_is_one_line(arguments, line, capsys):
    assert command(*arguments) == 2
    assert capsys.readouterr() == ("", line)


def test_a_defect_keeps_its_traceback():
    assert command("1") == 1
    with pytest.raises(ZeroDivisionError):
        command("0")


def test_help_is_no_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        command("--help")
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python -m test")
