"""The one exception that is a message to the user rather than a defect of ours."""


class UserError(ValueError):
    """Bad input or a full disk: one line that says what, which value, what is allowed, what to do.

    The commands print it after ``error:`` and leave with exit code 2; every other exception keeps
    its traceback, because it is a defect.
    """


class CannotWriteError(UserError):
    """The disk is full or not writable: whatever else a grid of runs would do meets it too."""
