"""Moved to ``stages.report``; this name goes with the next version."""

from shared.runtime.moved import moved

moved(__name__, "shared.report", "stages.report", "shared.runs.results")
