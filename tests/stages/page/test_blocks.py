"""A part that fails costs itself alone; its place says why."""

import base64

import pytest

from shared.runtime.errors import UserError
from stages.page.blocks import Gallery, Missing, Paragraph, Picture, or_missing, pictures_in


def test_a_part_that_works():
    assert or_missing("Part", lambda text: [Paragraph(text)], "text") == [Paragraph("text")]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (UserError("not measured"), "not measured"),
        (KeyError("nmi"), "its data lack what the page needs (KeyError('nmi'))"),
        (ValueError("no number"), "its data lack what the page needs (ValueError('no number'))"),
        (AttributeError("items"), "its data lack what the page needs (AttributeError('items'))"),
    ],
)
def test_a_part_that_fails_half_way(error, why):
    def part():
        yield Paragraph("the first half")
        raise error

    assert or_missing("Part", part) == [Missing("Part", why)]


@pytest.mark.parametrize(
    "error", [ZeroDivisionError, AssertionError, RuntimeError, MemoryError, RecursionError]
)
def test_a_defect_is_not_hidden(error):
    def part():
        raise error

    with pytest.raises(error):
        or_missing("Part", part)


def test_pictures():
    first, second = (Picture(name, "<svg>", "what it shows", "caption") for name in "ab")
    blocks = [first, Paragraph("text"), Gallery([Missing("c", "why"), second])]
    assert list(pictures_in(blocks)) == [first, second]
    start, data = first.source.split(",")
    assert start == "data:image/svg+xml;base64"
    assert base64.b64decode(data) == b"<svg>"
