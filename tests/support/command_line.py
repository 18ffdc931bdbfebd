"""The command line for the tests: loaded, or refused in one line."""

import pytest

from shared.config.command_line import load_config
from shared.config.schema import Config


def load(*arguments: object) -> Config:
    return load_config([str(a) for a in arguments], "command", "What it does.")[0]


def refusal(capsys, *arguments: object) -> str:
    """The one line on standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        load(*arguments)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err
