"""The collector while a command imports."""

import gc
import sys
import types

from shared.runtime import imports


def test_the_collector_rests_within_and_works_after(monkeypatch):
    gc.unfreeze()  # what a command of another test has left: it would go, one by one
    with imports.no_garbage():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0  # nothing was imported, so all can still be collected
    monkeypatch.setattr(imports, "MANY", 0)
    try:
        with imports.no_garbage():
            monkeypatch.setitem(sys.modules, "a_new_module", types.ModuleType("a_new_module"))
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_a_collector_that_is_switched_off_stays_so():
    gc.disable()
    try:
        with imports.no_garbage():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
