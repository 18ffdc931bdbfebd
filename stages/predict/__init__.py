"""A classifier, or an encoder, on new images."""

from stages.predict.command import main, predict

__all__ = ["main", "predict"]
