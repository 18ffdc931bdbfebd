"""Moved to ``stages.import_weights``; this name goes with the next version."""

from shared.runtime.moved import moved

moved(__name__, "shared.import_reference", "stages.import_weights", "stages.import_weights.command")
