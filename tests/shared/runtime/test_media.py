"""No text from a file is a command where it is shown, and CSV gives it back."""

import csv
import io
import json
import re
import subprocess
import unicodedata
import xml.etree.ElementTree as ET
from shutil import which

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import Environment
from matplotlib.figure import Figure

from shared.runtime import media
from shared.runtime.media import (
    LONGEST_MESSAGE,
    csv_cell,
    csv_lines,
    csv_value,
    figure_text,
    html_text,
    latex_comment,
    latex_text,
    markdown_text,
    one_line,
    printable,
    printable_lines,
)

HOSTILE = [
    "a\nb",
    "a\r\x1b[2K\x1b[31mb",
    "\x1b]0;title\x07",
    "\u202egnp.exe",
    "\u2028line",
    "\udcff\udcfe",
    "\0",
]
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


# ------------------------------------------------------------------------------------- terminal
@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_gets_one_line_without_controls(text):
    line = printable(text)
    assert line.isprintable()
    line.encode()


HARMLESS = [
    "a\u3000b",  # the space of Japanese
    "12\xa0000 k\u202fm",  # no-break spaces
    "\u06a9\u062a\u0627\u0628\u200c\u0647\u0627",  # Persian: a word of two parts
    "\u0915\u094d\u200d\u0937",  # Hindi
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",  # a family
    "\u0601\u0662",
    "\\udc1 of C:\\udc",  # no escape of ours
]


@pytest.mark.parametrize("text", HARMLESS)
def test_spaces_and_joiners_stay_in_every_medium(text):
    plain = text.replace("\\", "/")  # which LaTeX and Markdown spell in another way
    assert printable(text) == one_line(text) == html_text(text) == figure_text(text) == text
    assert markdown_text(plain) == latex_text(plain.replace("_", "")) == plain


@given(st.characters())
def test_whatever_hides_or_moves_text_is_escaped(character):
    kind = unicodedata.category(character)
    hides = kind in ("Cc", "Cs", "Co", "Cn", "Zl", "Zp")
    turns = unicodedata.bidirectional(character) in (
        *("LRE", "RLE", "LRO", "RLO", "PDF"),
        *("LRI", "RLI", "FSI", "PDI"),
    )
    assert (printable(character) != character) >= (hides or turns)
    assert printable(character) == character or kind.startswith(("C", "Zl", "Zp"))


@pytest.mark.parametrize("mark", "\u200e\u200f\u061c\u202e\u2066\u2069\ufeff\u200b\U000e0041")
def test_marks_that_turn_or_hide_text_are_escaped(mark):
    assert printable(f"a{mark}b").isascii()


def test_what_is_readable_stays():
    assert printable("naïve 猫 ±0.5 {x}") == "naïve 猫 ±0.5 {x}"
    assert printable_lines("a\nb\x1b\n") == "a\nb\\x1b\n"


def test_an_endless_message_is_cut_in_its_middle():
    line = one_line("begin " + "x" * 10**6 + " end")
    assert len(line) < LONGEST_MESSAGE + 50
    assert line.startswith("begin x")
    assert line.endswith("x end")
    assert one_line("short\nline") == "short\\nline"


# ------------------------------------------------------------------------------------------ CSV
@given(st.text("=+-@'\"a1.,;e|\n\t\r\uff1d"))
@example("=cmd|' /C calc'!A0")
@example("a;=1+1")
@example("a\n=1+1")
@example("\t\t=")
@example("-1e5")
@example("-٣")
def test_no_cell_is_a_formula_and_each_comes_back(text):
    cell = csv_cell(text)
    number = re.fullmatch(r"[+-]?([0-9].*|inf|nan)", text) and cell == text
    assert number or not cell.startswith(FORMULA)
    if not number:
        # nor where another program splits the cell
        assert not any(part.startswith(FORMULA) for part in re.split("[;\t\r\n]", cell)[1:] if part)
    assert csv_value(cell) == text
    (row,) = csv.reader(io.StringIO(csv_lines([[text, "b", 5, None]]), newline=""))
    assert [csv_value(row[0]), *row[1:]] == [text, "b", "5", ""]


@pytest.mark.parametrize("text", ["cat", "5", "-0.25", "+1e-05", "-inf", "a=b", "'cat'", "x - 1"])
def test_harmless_cells_stay(text):
    assert csv_cell(text) == text
    assert csv_value(text) == text


@pytest.mark.skipif(which("node") is None, reason="needs node")
def test_the_contact_sheet_has_the_same_rule():
    sheet = media.__file__.replace("shared/runtime/media.py", "stages/suggest/sheet.js")
    with open(sheet) as file:
        script = file.read()
    rule = script[script.index("const number") : script.index("const csv")]
    texts = ["=1", "-5", "-1e5", "''=x", "a;=1", "a\n=b", "\t\t=", "\uff1dx", "'cat", "a,=b", "@"]
    program = f"{rule}\nfor (const t of {texts!r}) console.log(JSON.stringify(cell(t)))"
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
    quoted = "".join(f"{json.loads(line)}," for line in done.stdout.splitlines())
    (row,) = csv.reader(io.StringIO(quoted[:-1], newline=""))
    assert row == [csv_cell(text) for text in texts]


# ------------------------------------------------------------------------------------- Markdown
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("[a](javascript:alert(1))", r"[a]\(javascript:alert(1))"),
        ("![a](http://x/y.png)", r"![a]\(http://x/y.png)"),
        ("a|b", r"a\|b"),
        ("`x` *y* _z_ ~~w~~", r"\`x\` \*y\* \_z\_ \~\~w\~\~"),
        ("a\n# b", r"a\\n# b"),
        ("&lt; &#60;", "&amp;lt; &amp;#60;"),
        ("a < 5 & b > 6", "a < 5 & b > 6"),
        ("$x$", r"\$x\$"),
        ("nt_xent, 1pct [2] ~5", "nt_xent, 1pct [2] ~5"),
    ],
)
def test_markdown(text, expected):
    assert markdown_text(text) == expected


# ---------------------------------------------------------------------------------------- LaTeX
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("^^5cinput", r"\textasciicircum{}\textasciicircum{}5cinput"),
        ("50% of a_b & #1 $x$ ~", r"50\% of a\_b \& \#1 \$x\$ \textasciitilde{}"),
        ("[2ex] a", "{[}2ex] a"),
        ("*", "{*}"),
        ("a\nb", r"a\textbackslash{}nb"),
        ("1 ± 2 < 3", r"1 $\pm$ 2 $<$ 3"),
    ],
)
def test_latex(text, expected):
    assert latex_text(text) == expected


def test_a_comment_of_latex_ends_where_it_should():
    comment = latex_comment("a\n\\input{x}\u2028\r")
    assert comment.isprintable()
    assert comment.startswith("% a\\textbackslash n\\textbackslash input{x}")


# ----------------------------------------------------------------------------------------- HTML
@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "\x1b[31m", "\u202eabc", "\"&'"])
def test_html(text):
    environment = Environment(autoescape=True, finalize=html_text)
    page = environment.from_string('<p title="{{ x }}">{{ x }}</p>').render(x=text)
    assert page.count("<") == 2
    assert page.isprintable()
    assert f">{html_text(text)}<" in page


def test_html_keeps_line_breaks_and_numbers():
    environment = Environment(autoescape=True, finalize=html_text)
    assert environment.from_string("{{ x }} {{ y }}").render(x="a\nb", y=5) == "a\nb 5"


# ----------------------------------------------------------------------------------- matplotlib
@pytest.mark.parametrize("text", [r"$\frac$", r"\$x$", "a$", "$$", "a\x1bb\0", "<&>", "a\nb"])
def test_a_picture_shows_the_text_as_it_is(text):
    figure = Figure()
    figure.subplots().set_title(figure_text(text))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    assert ET.fromstring(buffer.getvalue()) is not None
