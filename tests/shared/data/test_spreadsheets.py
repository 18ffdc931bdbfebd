"""What a spreadsheet would compute is written as text, and comes back as it was."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.data.spreadsheets import csv_lines, marked, unmarked


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "'=", "''@"])
def test_a_formula_is_marked(begin):
    assert marked(f"{begin}1+1") == f"'{begin}1+1"


@pytest.mark.parametrize("text", ["-5", "+0.25", "-1e-07", "-inf", "a=b", "'a", "", " =1", "cat"])
def test_other_text_stays(text):
    assert marked(text) == unmarked(text) == text


@given(st.lists(st.text("=+-@'\"1a., \n\r\t", min_size=1), min_size=2, max_size=2))
def test_cells_come_back(row):
    (cells,) = csv.reader(io.StringIO(csv_lines([row]), newline=""))
    assert [unmarked(cell) for cell in cells] == row


def test_numbers_are_numbers():
    assert csv_lines([("=a", -1, -0.5, None)]) == "'=a,-1,-0.5,\n"
