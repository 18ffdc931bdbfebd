"""Text of tables: for the screen, Markdown, LaTeX and CSV; pure functions.

A text table is a list of lines, and a line a list of cells. The first line is the head.
"""

from collections.abc import Callable, Sequence

from shared.runs.metrics import METRICS
from shared.runs.statistics import FEWEST, CellLine, Summary
from shared.runtime.media import (
    csv_lines,
    latex_comment,
    latex_text,
    markdown_text,
    printable,
)

Lines = list[list[str]]


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] in per cent, without the sign; a dash for None."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as text: a head, a rule, the rest; the first column to the left."""
    lines = [[printable(cell) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = []
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        cells[0] = line[0].ljust(widths[0])
        text.append("  ".join(cells).rstrip())
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a Markdown table."""
    text = ["| " + " | ".join(map(markdown_text, line)) + " |" for line in lines]
    rule = "|---|" + "---:|" * (len(lines[0]) - 1)
    return "\n".join([text[0], rule, *text[1:]])


def latex(caption: str, lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a LaTeX table (booktabs) under a comment."""
    text = [" & ".join(map(latex_text, line)) + r" \\" for line in lines]
    columns = "l" + "r" * (len(lines[0]) - 1)
    begin = [
        latex_comment(caption),
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        text[0],
        r"\midrule",
    ]
    return "\n".join([*begin, *text[1:], r"\bottomrule", r"\end{tabular}"])


def cells_csv(lines: Sequence[CellLine]) -> str:
    """All cells as CSV, one line per cell and repetition."""
    measured = ["n_labels", "n_test", "parameters", *METRICS]
    vary = [option for option in lines[0]["vary"] if option != "labels"] if lines else []
    head = ["row", "column", "method", "labels", "seed", *vary, "status", *measured]
    rows: list[list[object]] = [[*head, "updates", "cpu_seconds", "message", "folder"]]
    for line in lines:
        place = [line["row"], line["column"], line["method"], line["labels"], line["seed"]]
        result = [line["result"].get(key, "") for key in measured]
        updates = "+".join(map(str, line.get("updates", [])))
        end = [updates, line.get("cpu_seconds", ""), line["message"], line["folder"]]
        varied = [line["vary"][option] for option in vary]
        rows.append([*place, *varied, line["status"], *result, *end])
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
    txt = [printable(summary["title"])]
    md = [f"# {markdown_text(summary['title'])}"]
    tex = [latex_comment(summary["title"])]
    for caption, block in blocks(summary):
        txt.append(f"{printable(caption)}\n\n{aligned(block)}")
        md.append(f"{markdown_text(caption)}\n\n{markdown(block)}")
        tex.append(latex(caption, block))
    if notes:
        txt.append("\n".join(map(printable, notes)))
        md.append("\n".join(f"- {markdown_text(note)}" for note in notes))
        tex.append("\n".join(map(latex_comment, notes)))
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
    if any(cell["updates"] for cell in summary["cells"]):
        parts.append(_budget(summary))
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
            lacking = "failed" if cell["failed"] else "missing" if cell["missing"] else "-"
            return lacking + notes
        count = f"{cell['n']}" if cell["n"] == cell["of"] else f"{cell['n']} of {cell['of']}"
        text = mean_text(cell["mean"], cell["half"], metric.digits, of_images=cell["of_images"])
        return f"{text} ({count}){notes}"

    lines = _lines(summary["rows"], summary["columns"], text)
    lines[0].insert(1, "parameters")
    for row, line in zip(summary["rows"], lines[1:], strict=True):
        line.insert(1, _parameters(summary, row))
    caption = (
        f"{metric.title}, mean ± half its 95% interval by Student's t (number of runs) over"
        f" {summary['repeated']}"
    )
    if any(cell["of_images"] for cell in summary["cells"]):
        caption += "; in brackets, where all runs are equal, the 95% interval of the test images"
    return caption, lines


def _differences(summary: Summary) -> tuple[str, Lines]:
    digits = METRICS[summary["metric"]].digits
    differences = {(cell["row"], cell["column"]): cell for cell in summary["differences"]}

    def text(row: str, column: str) -> str:
        cell = differences.get((row, column))
        if cell is None:
            return "-"
        return f"{mean_text(cell['mean'], cell['half'], digits, '+')} ({cell['n']})"

    against = summary["against"]
    rows = [row for row in summary["rows"] if [row] != against]
    rival = f'"{against[0]}"'
    if len(against) > 1:
        best = (f'{column} "{row}"' for column, row in summary["rivals"].items())
        rival = f"the best of {len(against)} rivals in each column ({', '.join(best)})"
    caption = (
        f"Difference to {rival} in the same repetition, mean ± half its 95%"
        " interval by Student's t (pairs); the mean alone of one pair, or where all are equal"
    )
    return caption, _lines(rows, summary["columns"], text)


def _worth(summary: Summary) -> tuple[str, Lines]:
    texts = {(cell["row"], cell["column"]): cell["text"] for cell in summary["worth"]}
    rows = [row for row in summary["rows"] if row != summary["worth_of"]]
    caption = (
        f'What the labels are worth: "{summary["worth_of"]}" needs this share of the labels for'
        f" the same result (from {FEWEST} label draws on with the 95% interval of their jackknife)"
    )
    return caption, _lines(rows, summary["columns"], lambda row, c: texts.get((row, c), "-"))


def _budget(summary: Summary) -> tuple[str, Lines]:
    cells = {(cell["row"], cell["column"]): cell for cell in summary["cells"]}

    def text(row: str, column: str) -> str:
        cell = cells[row, column]
        updates = " + ".join(f"{number:,}" for number in cell["updates"]) or "-"
        seconds = cell["cpu_seconds"]
        return updates if seconds is None else f"{updates}; {seconds:,.0f} s"

    caption = (
        "Budget of one run: updates of each stage that it is made from, and mean CPU seconds of all"
        " of them"
    )
    return caption, _lines(summary["rows"], summary["columns"], text)


def _paper(source: str, cells: dict[str, dict[str, object]]) -> tuple[str, Lines]:
    columns = list(dict.fromkeys(column for of_row in cells.values() for column in of_row))
    lines = _lines(list(cells), columns, lambda row, column: str(cells[row].get(column, "-")))
    return f"Published figures: {source}", lines


def _lines(rows: Sequence[str], columns: Sequence[str], text: Callable[[str, str], str]) -> Lines:
    return [["", *columns], *([row, *(text(row, column) for column in columns)] for row in rows)]


def _parameters(summary: Summary, row: str) -> str:
    counts = {n for cell in summary["cells"] if cell["row"] == row for n in cell["parameters"]}
    return " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)})) if counts else "-"


def mean_text(
    mean: float,
    half: float | None,
    digits: int,
    sign: str = "",
    of_images: Sequence[float] | None = None,
) -> str:
    """A mean ± half its 95% interval, as everywhere; without an interval the mean alone.

    Where all are equal, ± 0.0 would say that no image can be wrong: the bounds by the number of
    test images stand there, ``of_images``.
    """
    text = f"{mean:{sign}.{digits}f}"
    if of_images:
        return f"{text} [{of_images[0]:.1f}, {of_images[1]:.1f}]"
    return text if half is None else f"{text} ± {half:.{digits}f}"
