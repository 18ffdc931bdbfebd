.PHONY: setup check test slow demo

setup:
	pip install -e ".[dev]"

check:
	ruff check
	ruff format --check
	basedpyright

test:
	pytest

slow:
	pytest -m slow

demo:
	accelerate launch pipeline.py --labels 1pct
