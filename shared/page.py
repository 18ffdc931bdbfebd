"""Moved to ``stages.page``; this name goes with the next version."""

from shared.runtime.moved import moved

moved(__name__, "shared.page", "stages.page", "stages.page.write")
