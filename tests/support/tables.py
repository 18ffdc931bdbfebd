"""A small table: its file, its definition, its cells."""

import yaml

from shared.runs.statistics import CellLine
from shared.runs.table import Table


def write(folder, **table):
    file = folder / "mine.yaml"
    whole = {
        "title": "T",
        "rows": {"a": {"method": "finetune"}},
        "columns": {"1%": {"labels": "1pct"}},
        **table,
    }
    file.write_text(
        yaml.safe_dump({k: v for k, v in whole.items() if v != "left out"}, sort_keys=False)
    )
    return str(file)


TOY = Table(
    name="t",
    title="A title",
    rows={"a": {}, "b_1": {}, "c": {}},
    columns={"1%": {}, "100%": {}},
    seeds=(0, 1, 2),
    against=("a",),
    worth="a",
    paper={"source": "a paper", "cells": {"a": {"1%": 12.5, "10%": 50.0}}},
)


def toy_line(row, column, seed, top1=None, status="done", message="") -> CellLine:
    result = {"n_labels": 14, "parameters": 1000, "top1": top1} if top1 is not None else {}
    return {
        "row": row,
        "column": column,
        "method": "finetune",
        "seed": seed,
        "vary": {},
        "labels": column.replace("%", "pct"),
        "status": status,
        "message": message,
        "folder": f"finetune-{seed}",
        "result": result,
    }


def toy_lines() -> list[CellLine]:
    """Three rows: all done; one missing, one failed; nothing done."""
    cells = []
    for seed in range(3):
        cells += [
            toy_line("a", "1%", seed, 0.5 + seed / 10),
            toy_line("a", "100%", seed, 0.9 + seed / 100),
            toy_line("b_1", "1%", seed, 0.6 + seed / 10),
        ]
    cells += [
        toy_line("b_1", "100%", 0, 0.95),
        toy_line("b_1", "100%", 1, status="missing"),
        toy_line("b_1", "100%", 2, status="failed", message="too bad | so sad"),
    ]
    for seed in range(3):
        cells.append(toy_line("c", "1%", seed, status="failed", message="impossible"))
        cells.append(toy_line("c", "100%", seed, status="missing"))
    return cells
