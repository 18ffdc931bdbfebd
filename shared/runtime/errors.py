"""The one exception that is a message to the user rather than a defect of ours."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

P = ParamSpec("P")


class UserError(ValueError):
    """Bad input or a full disk: one line that says what, which value, what is allowed, what to do.

    The commands print it after ``error:`` and leave with exit code 2; every other exception keeps
    its traceback, because it is a defect.
    """


class CannotWriteError(UserError):
    """The disk is full or not writable: whatever else a grid of runs would do meets it too."""


def exit_code_2(main: Callable[P, int]) -> Callable[P, int]:
    """Decorate a ``main`` that uses no Accelerator: a UserError is one line and exit code 2."""

    @wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return guarded
