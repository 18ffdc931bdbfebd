"""Text of tables: for the screen, Markdown, LaTeX and CSV; pure functions.

A text table is a list of lines, and a line a list of cells. The first line is the head.
"""

from collections.abc import Callable, Sequence

from shared.data.spreadsheets import csv_lines
from shared.runs.metrics import METRICS
from shared.runs.statistics import CellLine, Summary

Lines = list[list[str]]


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] in per cent, without the sign; a dash for None."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as text: a head, a rule, the rest; the first column to the left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = []
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        cells[0] = line[0].ljust(widths[0])
        text.append("  ".join(cells).rstrip())
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a Markdown table."""
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    rule = "|---|" + "---:|" * (len(lines[0]) - 1)
    return "\n".join([text[0], rule, *text[1:]])


def latex(caption: str, lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a LaTeX table (booktabs) under a comment."""
    special = str.maketrans({c: f"\\{c}" for c in "%&_#$"} | {c: f"${c}$" for c in "<>"})
    escaped = [[cell.translate(special).replace("±", r"$\pm$") for cell in line] for line in lines]
    text = [" & ".join(line) + r" \\" for line in escaped]
    columns = "l" + "r" * (len(lines[0]) - 1)
    begin = [f"% {caption}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", text[0], r"\midrule"]
    return "\n".join([*begin, *text[1:], r"\bottomrule", r"\end{tabular}"])


def cells_csv(lines: Sequence[CellLine]) -> str:
    """All cells as CSV, one line per cell and repetition."""
    measured = ["n_labels", "parameters", *METRICS]
    vary = list(lines[0]["vary"]) if lines else []
    head = ["row", "column", "method", "labels", "seed", *vary, "status", *measured]
    rows: list[list[object]] = [[*head, "message", "folder"]]
    for line in lines:
        place = [line["row"], line["column"], line["method"], line["labels"], line["seed"]]
        result = [line["result"].get(key, "") for key in measured]
        end = [line["message"], line["folder"]]
        rows.append([*place, *line["vary"].values(), line["status"], *result, *end])
    return csv_lines(rows)


def render(summary: Summary, lines: Sequence[CellLine]) -> dict[str, str]:
    """The table as text for the screen, Markdown, LaTeX (booktabs), and all cells as CSV.

    Args:
        summary: what ``summarize`` returned.
        lines: the cells it was made from.

    Returns:
        ``txt``, ``md``, ``tex``, ``csv``.
    """
    notes = [f"[{i}] {message}" for i, message in enumerate(summary["messages"], 1)]
    txt = [summary["title"]]
    md = [f"# {summary['title']}"]
    tex = [f"% {summary['title']}"]
    for caption, block in blocks(summary):
        txt.append(f"{caption}\n\n{aligned(block)}")
        md.append(f"{caption}\n\n{markdown(block)}")
        tex.append(latex(caption, block))
    if notes:
        txt.append("\n".join(notes))
        md.append("\n".join(f"- {note}" for note in notes))
        tex.append("\n".join(f"% {note}" for note in notes))
    return {
        "txt": "\n\n".join(txt),
        "md": "\n\n".join(md) + "\n",
        "tex": "\n\n".join(tex) + "\n",
        "csv": cells_csv(lines),
    }


# ------------------------------------------------------------------------ the parts of a summary
def blocks(summary: Summary) -> list[tuple[str, Lines]]:
    """Caption and lines of each part: the cells, the differences, the labels' worth, the paper."""
    parts = [_cells(summary)]
    if summary["differences"]:
        parts.append(_differences(summary))
    if summary["worth"]:
        parts.append(_worth(summary))
    if summary["paper"]:
        parts.append(_paper(summary["paper"]["source"], summary["paper"]["cells"]))
    return parts


def _cells(summary: Summary) -> tuple[str, Lines]:
    metric = METRICS[summary["metric"]]
    cells = {(cell["row"], cell["column"]): cell for cell in summary["cells"]}

    def text(row: str, column: str) -> str:
        cell = cells[row, column]
        notes = "".join(f" [{note}]" for note in cell["notes"])
        if cell["mean"] is None:
            return ("failed" if cell["failed"] else "missing") + notes
        count = f"{cell['n']}" if cell["n"] == cell["of"] else f"{cell['n']} of {cell['of']}"
        return f"{_mean(cell['mean'], cell['half'], metric.digits)} ({count}){notes}"

    lines = _lines(summary["rows"], summary["columns"], text)
    lines[0].insert(1, "parameters")
    for row, line in zip(summary["rows"], lines[1:], strict=True):
        line.insert(1, _parameters(summary, row))
    repeats = f", each with its own {' and '.join(summary['vary'])}" if summary["vary"] else ""
    draws = f"{len(summary['seeds'])} label draws{repeats}"
    caption = f"{metric.title}, mean ± half its 95% interval (number of runs) over {draws}"
    return caption, lines


def _differences(summary: Summary) -> tuple[str, Lines]:
    digits = METRICS[summary["metric"]].digits
    differences = {(cell["row"], cell["column"]): cell for cell in summary["differences"]}

    def text(row: str, column: str) -> str:
        cell = differences.get((row, column))
        if cell is None:
            return "-"
        return f"{_mean(cell['mean'], cell['half'], digits, '+')} ({cell['n']})"

    rows = [row for row in summary["rows"] if row != summary["against"]]
    caption = (
        f'Difference to "{summary["against"]}" on the same label draws, mean ± half its 95%'
        " interval (pairs)"
    )
    return caption, _lines(rows, summary["columns"], text)


def _worth(summary: Summary) -> tuple[str, Lines]:
    texts = {(cell["row"], cell["column"]): cell["text"] for cell in summary["worth"]}
    rows = [row for row in summary["rows"] if row != summary["worth_of"]]
    caption = (
        f'What the labels are worth: "{summary["worth_of"]}" needs this share of the labels for'
        " the same result (95% interval from a bootstrap over the label draws)"
    )
    return caption, _lines(rows, summary["columns"], lambda row, c: texts.get((row, c), "-"))


def _paper(source: str, cells: dict[str, dict[str, object]]) -> tuple[str, Lines]:
    columns = list(dict.fromkeys(column for of_row in cells.values() for column in of_row))
    lines = _lines(list(cells), columns, lambda row, column: str(cells[row].get(column, "-")))
    return f"Published figures: {source}", lines


def _lines(rows: Sequence[str], columns: Sequence[str], text: Callable[[str, str], str]) -> Lines:
    return [["", *columns], *([row, *(text(row, column) for column in columns)] for row in rows)]


def _parameters(summary: Summary, row: str) -> str:
    counts = {n for cell in summary["cells"] if cell["row"] == row for n in cell["parameters"]}
    return " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)})) if counts else "-"


def _mean(mean: float, half: float | None, digits: int, sign: str = "") -> str:
    text = f"{mean:{sign}.{digits}f}"
    return text if half is None else f"{text} ± {half:.{digits}f}"
