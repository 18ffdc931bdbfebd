"""The one exception that is a message to the user rather than a defect of ours."""

import argparse
import difflib
import errno
import os
import re
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, ParamSpec

from shared.runtime import output
from shared.runtime.launcher import launcher_number, wrong_launcher
from shared.runtime.media import one_line, printable, say

P = ParamSpec("P")
_NO_MEMORY = re.compile(
    "out of memory|not enough memory|can't allocate|cannot allocate|unable to allocate|bad_alloc",
    re.I,
)
_NO_MEMORY_DETAIL = re.compile(r"(?:tried|unable) to allocate [0-9.]+ \w+", re.I)
SPOKEN_WITHIN = 5.0  # seconds between the start of a machine's last process and its first


class UserError(ValueError):
    """Bad input or a full disk: one line that says what, which value, what is allowed, what to do.

    The commands print it after ``error:`` and leave with exit code 2; every other exception keeps
    its traceback, because it is a defect.
    """


class CannotWriteError(UserError):
    """The disk is full or not writable: whatever else a grid of runs would do meets it too."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of any library says that there is no memory left, the GPU's or the other."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    known = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    return known or isinstance(error, MemoryError)


def memory_text(error: BaseException, advice: str) -> str:
    """One line for `out_of_memory`: what was asked for, and what takes less."""
    reason = _NO_MEMORY_DETAIL.search(str(error))
    detail = f" ({' '.join(reason[0].split())})" if reason else ""
    return f"there is not enough memory{detail}; {advice}"


def refuse(message: str) -> int:
    """Print an error that all processes of a machine meet, once; exit code 2.

    A command line is refused before the processes know one another, so the first of each machine
    speaks. The others wait: a launcher ends all of them as soon as one has left, and that must not
    be before the line is printed.
    """
    if launcher_number("LOCAL_RANK", 0) == 0:
        say(f"error: {one_line(message)}", error=True)
    else:
        time.sleep(SPOKEN_WITHIN)
    return 2


class CommandParser(argparse.ArgumentParser):
    """The command line of a ``main`` under `exit_code_2`: a bad call is a UserError, one line."""

    def error(self, message: str) -> NoReturn:
        """UserError instead of the usage and an exit."""
        raise UserError(f"{message} (see --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        """The help; argparse itself says nothing of a full disk."""
        output.write(message, error=file is not sys.stdout)

    def _require_known(self, option: str) -> None:
        """Name a misspelt option itself, before argparse names what is missing in its place."""
        known = list(self._option_string_actions)
        if re.match("--.", option) and not any(name.startswith(option) for name in known):
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"unknown option {printable(option)}{hint}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # overloaded there
        """As argparse does, where every argument may be a path, which has its bounds."""
        options = True
        for argument in sys.argv[1:] if args is None else args:
            try:
                path = os.fsencode(argument)
            except UnicodeEncodeError:  # no command line can hold it
                self.error(f"{argument[:40]!a} is no text")
            if b"\0" in path or len(path) > 3000 or max(map(len, path.split(b"/"))) > 255:
                self.error(f"{argument[:40]}... is too long for a path, or has a NUL character")
            options = options and argument != "--"
            if options:
                self._require_known(argument.partition("=")[0])
        return super().parse_known_args(args, namespace)


def exit_code_2(main: Callable[P, int]) -> Callable[P, int]:
    """Decorate a ``main``: a UserError is one line and exit code 2.

    So are wrong variables of a launcher, and standard output that cannot be written; where nobody
    reads it on, nothing is said and the exit code is 141. The work is done all the same.
    """

    @wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> int:
        output.begin()
        if wrong := wrong_launcher():
            return refuse(wrong)
        try:
            return main(*args, **kwargs) or _code_of_output()
        except UserError as error:
            return refuse(str(error))
        except output.OutputLostError:
            return _code_of_output()
        except SystemExit as leaving:  # after --help
            if leaving.code or not output.first_failure():
                raise
            return _code_of_output()
        except (MemoryError, OSError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return refuse(memory_text(error, "give a smaller --batch_size or smaller images"))
        except KeyboardInterrupt:
            return 130  # 128 + SIGINT, as a shell says it

    return guarded


def _code_of_output() -> int:
    """0 where standard output was written; else 141 or, after a line, 2."""
    failure = output.first_failure()
    if failure is None:
        return 0
    if isinstance(failure, BrokenPipeError):  # head, or a pager that was closed
        return output.CLOSED_PIPE
    return refuse(
        f"cannot write standard output: {failure}; make room or send it elsewhere; what this"
        " command writes into files is written"
    )
