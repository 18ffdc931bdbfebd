"""Text that a file, a folder or a person gave, made harmless for the medium that shows it.

One function per medium. Whoever prints or writes a name takes the one of its medium:

    printable, one_line, say     terminal and messages
    csv_lines, csv_value         CSV, written and read back
    markdown_text                Markdown
    latex_text, latex_comment    LaTeX
    html_text                    HTML; the templates' ``finalize``
    figure_text                  matplotlib, and the SVG that it writes

Text that is harmless stays as it is.
"""

import csv
import io
import re
from collections.abc import Iterable
from typing import Any
from unicodedata import category

from markupsafe import Markup, escape

from shared.runtime import output

LONGEST_MESSAGE = 2000  # characters; a longer one is cut in its middle
# Invisible ones that words and emoji are joined with, and signs that stand under Arabic numbers.
_NEEDED = {"\u200c", "\u200d", "\u06dd", "\u08e2", *map(chr, range(0x600, 0x606))}

# ---------------------------------------------------------------------------------- the terminal


def printable(text: object) -> str:
    """Text on one line, with escapes for what would move the cursor or is no text.

    These are all control characters, line breaks too, marks that turn the direction of writing,
    other invisible marks, characters that Unicode does not define, and bytes that are no UTF-8, as
    Python keeps them in the names of files. All kinds of spaces stay, and what joins letters.
    """
    line = str(text)
    return line if line.isprintable() else "".join(map(_shown, line))


def _shown(character: str) -> str:
    """One character, or its escape."""
    kind = category(character)
    if character.isprintable() or kind == "Zs" or character in _NEEDED:
        return character
    if "\udc80" <= character <= "\udcff":  # a byte
        return f"\\x{ord(character) - 0xDC00:x}"
    return character.encode("unicode_escape").decode()


def printable_lines(text: str) -> str:
    """`printable` for each line of a text whose line breaks are our own."""
    return "\n".join(map(printable, text.split("\n")))


def say(*lines: object, error: bool = False) -> None:
    """Print lines, each as `printable`, on standard output or on standard error."""
    if lines:
        output.write("".join(f"{printable(line)}\n" for line in lines), error=error)


def say_block(text: str) -> None:
    """Print a text whose line breaks are our own, such as a table."""
    say(*text.split("\n"))


def one_line(text: object) -> str:
    """`printable`, at most ``LONGEST_MESSAGE`` characters of it: what an error says."""
    line = printable(text)
    if len(line) <= LONGEST_MESSAGE:
        return line
    half = LONGEST_MESSAGE // 2
    return f"{line[:half]} [{len(line) - 2 * half:,} characters left out] {line[-half:]}"


def abbreviated(names: Iterable[Any], most: int = 3) -> str:
    """The first names, and how many follow, for messages."""
    names = [printable(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ------------------------------------------------------------------------------------------- CSV
# A spreadsheet takes a cell that begins so for a formula and runs it; the last four are the wide
# forms. Where it splits at ``;``, tabs or line breaks within a cell, what follows begins a cell.
_FORMULA = "=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20"
_TO_MARK = re.compile(rf"(?<![^;\t\r\n])('*)(?=[{_FORMULA}])")
_MARKED = re.compile(rf"(?<![^;\t\r\n])'('*)(?=[{_FORMULA}])")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|inf|nan)")


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet computes: an apostrophe stands in front of a formula.

    Numbers stay. `csv_value` takes the apostrophe off again, for any text.
    """
    return text if _NUMBER.fullmatch(text) else _TO_MARK.sub(r"'\1", text)


def csv_value(cell: str) -> str:
    """The text that `csv_cell` made a cell of."""
    return _MARKED.sub(r"\1", cell)


def csv_lines(rows: Iterable[Iterable[object]]) -> str:
    """Rows as lines of CSV; each text as `csv_cell`, None as an empty cell, numbers as they are."""
    lines = io.StringIO()
    for row in rows:
        cells = [csv_cell(cell) if isinstance(cell, str) else cell for cell in row]
        # Python before 3.13 leaves a carriage return without quotes, and cannot read that again
        odd = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        quoting = csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL
        csv.writer(lines, lineterminator="\n", quoting=quoting).writerow(cells)
    return lines.getvalue()


# -------------------------------------------------------------------------------------- Markdown
_HTML = re.compile(r"<(?![ 0-9])|(?<! )>|&(?=[#\w]+;)")  # not as in "5 < 6 & 7"
_MARKS = re.compile(r"[\\`*|$]|~(?=~)|(?<=~)~|(?<!\w)_|_(?!\w)|(?<=\])[(\[:]")


def markdown_text(text: object) -> str:
    """Text on one line of Markdown: no HTML, no link, no code, no formula, no new cell."""
    plain = _HTML.sub(lambda match: str(escape(match[0])), printable(text))
    return _MARKS.sub(r"\\\g<0>", plain)


# ----------------------------------------------------------------------------------------- LaTeX
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "%&_#${}"}
    | {c: f"${c}$" for c in "<>|"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    | {"±": r"$\pm$"}
)


def latex_text(text: object) -> str:
    r"""Text on one line of LaTeX: no command, no comment, no column.

    A cell that begins with ``[`` or ``*`` would be an argument of the ``\\`` before it.
    """
    plain = printable(text).translate(_LATEX)
    return f"{{{plain[0]}}}{plain[1:]}" if plain[:1] in ("[", "*") else plain


def latex_comment(text: object) -> str:
    """Text as a comment of LaTeX, on one line, in which nothing looks like a command."""
    return "% " + printable(text).replace("\\", r"\textbackslash ")


# ------------------------------------------------------------------------------------------ HTML
def html_text(value: Any) -> Any:
    """Text as HTML shows it, with line breaks; ``finalize`` of a template's environment.

    What is marked as HTML, or is no text, is left to the template.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return escape(printable_lines(value))


# ------------------------------------------------------------------------------------ matplotlib
def figure_text(text: object) -> str:
    """Text on one line of a picture: a dollar begins no formula, and the SVG stays valid."""
    return printable(text).replace("$", r"\$")
