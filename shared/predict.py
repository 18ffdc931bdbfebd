"""Moved to ``stages.predict``; this name goes with the next version."""

from shared.runtime.moved import moved

moved(__name__, "shared.predict", "stages.predict", "stages.predict")
