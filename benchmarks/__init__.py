"""Measurements of speed and memory; `python -m benchmarks.compare` and `benchmarks.gpu`."""
