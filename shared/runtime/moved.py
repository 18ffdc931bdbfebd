"""Old names of commands, which work for one more version."""

import runpy
import sys
from importlib import import_module

from shared.runtime.media import say


def moved(name: str, old: str, command: str, module: str) -> None:
    """Say the new name of a module, and do its work.

    Args:
        name: ``__name__`` of the old module: ``__main__`` where it is run as a command.
        old: its name.
        command: what runs in its place.
        module: what is imported in its place.
    """
    new = command if name == "__main__" else module
    say(f"{old} is now {new}; the old name goes with the next version", error=True)
    if name == "__main__":
        runpy.run_module(command, run_name="__main__", alter_sys=True)
    else:
        sys.modules[old] = import_module(module)
