"""Old names of commands, which work for one more version."""

import runpy
import sys
from importlib import import_module


def moved(name: str, old: str, new: str) -> None:
    """Say the new name of a module, and be it.

    Args:
        name: ``__name__`` of the old module: ``__main__`` where it is run as a command.
        old: its name.
        new: the module that does its work now.
    """
    print(f"{old} is now {new}; the old name goes with the next version", file=sys.stderr)
    if name == "__main__":
        runpy.run_module(new, run_name="__main__", alter_sys=True)
    else:
        sys.modules[old] = import_module(new)
