"""What a command imports at its start: nothing of it is garbage."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MANY = 500  # modules


@contextmanager
def no_garbage() -> Iterator[None]:
    """Within the context, which imports, no garbage is looked for; later not in what it made.

    torch and its company leave a million objects, which Python's collector would go through again
    and again: half a second of the processor, and a part of a second at each full collection of a
    long run. Where few modules are new, nothing is kept from the collector.
    """
    before, enabled = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before + MANY:
            gc.freeze()
        if enabled:
            gc.enable()
