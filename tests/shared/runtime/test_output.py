"""Standard output that cannot be written: what is said, and that nothing ends by it."""

import errno
import io
import os
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from shared.config.command import _Accelerator
from shared.config.command_line import read_command_line
from shared.runtime import output
from shared.runtime.errors import CommandParser, exit_code_2
from shared.runtime.media import say, say_block
from shared.runtime.output import OutputLostError
from stages.predict.rows import Printed

LINE = "error: cannot write standard output: "
ROW = pa.record_batch({"file": ["a.png"], "label": ["x"]})


def full() -> io.TextIOWrapper:
    return open("/dev/full", "w")


def unread() -> io.TextIOWrapper:
    """A pipe whose reader has gone."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    return os.fdopen(write_end, "w")


def gone() -> None:
    """What Python has in the place of a stream that was closed before it began."""


KINDS = {  # the exit code, and what is said
    full: (2, f"{LINE}[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}; make room"),
    unread: (141, ""),
    gone: (2, f"{LINE}[Errno {errno.EBADF}] {os.strerror(errno.EBADF)}; make room"),
}


def show_help() -> None:
    CommandParser("python -m test").parse_args(["--help"])


def print_rows() -> None:
    printed = Printed(ROW.schema, whole=False)
    printed.append(ROW)
    pytest.fail("what nobody reads is computed")


PRINTERS = {
    "say": lambda: say("text"),
    "long": lambda: say_block("text\n" * 50_000),
    "training": lambda: _Accelerator(cpu=True).print("step", "1"),
    "help": show_help,
    "rows": print_rows,
}


@pytest.fixture(params=KINDS)
def lose(request, monkeypatch):
    """Loses standard output; gives a command's exit code and words then.

    A test calls it itself, as pytest sets the streams anew before.
    """
    streams = []

    def lose_now():
        streams.append(request.param())
        monkeypatch.setattr(sys, "stdout", streams[0])
        return KINDS[request.param]

    yield lose_now
    output.begin()
    if streams and streams[0]:
        streams[0].close()  # fails where the rest does not go to nothing


@pytest.mark.parametrize("name", PRINTERS)
def test_the_exit_code_and_one_line_say_it(name, lose, capsys):
    code, says = lose()
    assert exit_code_2(lambda: PRINTERS[name]() or 0)() == code
    error = capsys.readouterr().err
    assert error.startswith(says)
    assert error.count("\n") == bool(says)


@pytest.mark.parametrize("option", ["--help", "--print_config"])
def test_what_the_parser_prints_counts_as_well(option, monkeypatch, capsys):
    with full() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert exit_code_2(lambda: bool(read_command_line([option], "pipeline.py", "")))() == 2
    assert capsys.readouterr().err.startswith(LINE)


def test_work_goes_on_without_output(lose, tmp_path: Path):
    """A training of days does not end with the pager that shows it."""

    @exit_code_2
    def train() -> int:
        for step in range(3):
            _Accelerator(cpu=True).print(f"step {step}")
            say("progress")
        (tmp_path / "model").write_text("weights")
        return 0

    code, _ = lose()
    assert train() == code
    assert (tmp_path / "model").read_text() == "weights"


@pytest.mark.parametrize("code", [1, 2, 130])
def test_the_code_of_a_command_that_fails_stays(code, lose, capsys):
    lose()
    assert exit_code_2(lambda: say("text") or code)() == code
    assert capsys.readouterr().err == ""


def test_the_next_command_begins_anew(lose, monkeypatch, capsys):
    code, _ = lose()
    assert exit_code_2(lambda: say("text") or 0)() == code
    monkeypatch.undo()
    assert exit_code_2(lambda: say("text") or 0)() == 0


@pytest.mark.parametrize("stream", KINDS)
def test_standard_error_that_is_lost_ends_nothing(stream, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", stream())
    for _ in range(3):
        say("a warning", error=True)
    assert exit_code_2(lambda: say("result") or 0)() == 0
    assert capsys.readouterr().out == "result\n"


def test_a_broken_pipe_of_something_else_is_a_defect():
    """As between a process and its workers: it must not pass for a closed pager."""

    @exit_code_2
    def main() -> int:
        raise BrokenPipeError(errno.EPIPE, "a worker has gone")

    with pytest.raises(BrokenPipeError):
        main()


def test_rows_say_that_they_are_lost(monkeypatch):
    with full() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(OutputLostError):
            print_rows()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_characters_that_the_encoding_lacks_are_escapes(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert exit_code_2(lambda: say("98.1 ± 0.2", "猫") or 0)() == 0
    written = stream.buffer.getvalue().decode(encoding)
    assert written in ("98.1 ± 0.2\n\\u732b\n", "98.1 \\xb1 0.2\n\\u732b\n")


def test_no_file_gets_the_number_of_a_stream_that_was_closed():
    """What a library writes to standard error would stand in it."""
    child = os.fork()
    if not child:  # nothing but system calls
        os.closerange(0, 3)
        output.begin()
        os._exit(os.open(os.devnull, os.O_RDONLY) - 2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) > 0
