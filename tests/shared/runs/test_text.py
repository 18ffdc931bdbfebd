"""The text of a table holds every cell."""

import csv
import io
from dataclasses import replace

import pytest

from shared.runs.statistics import summarize
from shared.runs.text import aligned, latex, markdown, percent, render
from shared.runtime.media import csv_value, printable_lines
from tests.support.tables import TOY, toy_line, toy_lines


@pytest.fixture
def lines():
    return toy_lines()


def test_no_cell_is_left_out(lines):
    texts = render(summarize(TOY, lines), lines)
    for kind in ("txt", "md"):
        text = texts[kind]
        assert "A title" in text
        assert "60.0 ± 24.8 (3)" in text
        assert "95.0 (1 of 3) [2]" in text
        assert "failed [1]" in text
        assert "missing" in text
        assert "[1] impossible" in text
        assert "a paper" in text
        assert "12.5" in text
    table = [row for row in texts["md"].splitlines() if row.startswith("|")][:5]
    assert {row.count("|") for row in table} == {5}
    tex = texts["tex"]
    assert r"b\_1 & 1,000 & 70.0 $\pm$ 24.8 (3) & 95.0 (1 of 3) [2] \\" in tex
    assert tex.count(r"\begin{tabular}") == tex.count(r"\bottomrule") == 4
    rows = list(csv.DictReader(io.StringIO(texts["csv"])))
    assert len(rows) == len(lines)
    assert [r["status"] for r in rows] == [x["status"] for x in lines]
    assert rows[0]["top1"] == "0.5"
    assert rows[11]["message"] == "too bad | so sad"


def test_the_budget_stands_below(lines):
    for line in lines:
        line["updates"], line["cpu_seconds"] = [1980, 100], 61.0 + line["seed"]
    texts = render(summarize(TOY, lines), lines)
    assert "1,980 + 100; 62 s" in texts["md"]
    assert next(csv.DictReader(io.StringIO(texts["csv"])))["updates"] == "1980+100"


def test_nothing_finished():
    nothing = [toy_line("a", column, 0, status="missing") for column in ("1%", "100%")]
    summary = summarize(replace(TOY, rows={"a": {}}), nothing)
    assert {cell["mean"] for cell in summary["cells"]} == {None}
    assert "missing" in render(summary, nothing)["txt"]


def test_percent():
    assert percent(0.979) == "97.9"
    assert percent(0.979, 0) == "98"
    assert percent(None) == "-"


def test_lines_of_cells_in_each_form():
    lines = [["", "a | b"], ["x_1", "50% < 60 ± 1"]]
    assert aligned(lines).splitlines() == [
        "            a | b",
        "-" * 17,
        "x_1  50% < 60 ± 1",
    ]
    assert markdown(lines).splitlines() == [
        "|  | a \\| b |",
        "|---|---:|",
        "| x_1 | 50% < 60 ± 1 |",
    ]
    tex = latex("A caption", lines).splitlines()
    assert tex[:2] == ["% A caption", r"\begin{tabular}{lr}"]
    assert r"x\_1 & 50\% $<$ 60 $\pm$ 1 \\" in tex


@pytest.mark.parametrize(
    "name",
    [
        "<img src=x onerror=alert(1)>",
        "=cmd|' /C calc'!A0",
        "\\input{/etc/passwd}",
        "$\\frac$",
        "a\nb | c & d",
        "\x1b[2J\x1b[31mred",
        "[x](javascript:alert(1))",
        "a;=1+1",
    ],
)
def test_no_name_is_a_command_in_any_form(name, lines):
    lines = [{**line, "row": name if line["row"] == "a" else line["row"]} for line in lines]
    lines[-1] |= {"status": "failed", "message": name, "result": {}}
    rows = {name if row == "a" else row: options for row, options in TOY.rows.items()}
    table = replace(TOY, title=name, rows=rows, against=name, worth=name)
    texts = render(summarize(table, lines), lines)
    for kind in ("txt", "md", "tex"):
        assert printable_lines(texts[kind]) == texts[kind]
    assert "<img" not in texts["md"]
    assert "](" not in texts["md"]
    assert "\\input" not in texts["tex"]
    assert "\\frac" not in texts["tex"]
    assert (
        len({row.count("|") - row.count("\\|") for row in texts["md"].splitlines() if "|" in row})
        < 4
    )
    cells = [cell for row in csv.reader(io.StringIO(texts["csv"])) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "@", "+", "\t", "\r"))]
    assert name in map(csv_value, cells)
