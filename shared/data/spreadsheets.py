"""CSV files of which a spreadsheet computes no cell. Every CSV file of names is written so.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-``, ``@`` or a control character for a
formula, and runs it. Such a cell gets an apostrophe in front, which is taken off when the file is
read. A number is no formula. ``stages/suggest/sheet.js`` has the same rule.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence

# the last four are the wide forms, which some spreadsheets take too
_NUMBER = r"[+-]?(\d+(\.\d+)?(e[+-]?\d+)?|inf|nan)$"
_FORMULA = re.compile(rf"'*(?!{_NUMBER})[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def marked(cell: str) -> str:
    """A cell that no spreadsheet computes."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unmarked(cell: str) -> str:
    """What `marked` was called with."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_lines(rows: Iterable[Sequence[object]]) -> str:
    """Rows as lines of CSV; text is marked, and numbers are as they are."""
    text = io.StringIO()
    usual = csv.writer(text, lineterminator="\n")
    # Python before 3.13 leaves a carriage return without quotes, and cannot read that again
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        cells = [marked(cell) if isinstance(cell, str) else cell for cell in row]
        has_return = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (quoted if has_return else usual).writerow(cells)
    return text.getvalue()
