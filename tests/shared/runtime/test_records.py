"""JSON files are read within bounds, and as what they should hold."""

import json
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from shared.runtime import records
from shared.runtime.errors import UserError
from shared.runtime.records import mismatch, read_json, read_lines, read_record
from tests.support.irregular import NO_FILE


class Point(TypedDict):
    x: float


class Record(TypedDict):
    name: str
    size: int
    on: NotRequired[bool]
    points: NotRequired[list[Point]]
    kind: NotRequired[Literal["a", "b"]]
    by_name: NotRequired[dict[str, float | None]]
    anything: NotRequired[Any]


GOOD = {"name": "n", "size": 3, "points": [{"x": 1}], "by_name": {"a": None, "b": 2.5}, "new": 1}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": 3.5}, "size is 3.5, needed is int"),
        ({"size": True}, "size is True, needed is int"),
        ({"size": 10**30}, "size is too large a number"),
        ({"name": None}, "name is None, needed is str"),
        ({"on": 1}, "on is 1, needed is bool"),
        ({"points": {}}, "points is {}, needed is a list"),
        ({"points": [[]]}, r"an item of points is \[\], needed is an object"),
        ({"points": [{}]}, "an item of points lacks x"),
        ({"points": [{"x": "1"}]}, "x is '1', needed is float"),
        ({"kind": ["a"]}, r"kind is \['a'\], needed is one of a, b"),
        ({"by_name": {"a": "x"}}, "a value of by_name is 'x', needed is float"),
        ({"by_name": []}, "by_name is"),
        ({"size": "x" * 999}, r"size is '.{39}, needed is int"),
    ],
)
def test_what_is_of_another_kind_is_named(tmp_path, change, says):
    file = tmp_path / "file.json"
    file.write_text(json.dumps(GOOD))
    assert read_record(file, Record, "do this") == GOOD
    file.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(UserError, match=rf"file.json is damaged \({says}.*\); do this$"):
        read_record(file, Record, "do this")


def test_keys_that_are_missing():
    assert mismatch({"size": 3}, Record) == "it lacks name"
    assert not mismatch({"size": 3, "points": [{}]}, Record, partial=True)
    assert mismatch({"size": "3"}, Record, partial=True) == "size is '3', needed is int"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\0\xff\xfe",
        b"[1]",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"a":' + b"[" * 99 + b"]" * 99 + b"}",
        b'{"a": 1' + b"0" * 9999 + b"}",
        b'{"a": "' + b"x" * 5000 + b'"}',
    ],
)
def test_damaged_deep_and_large_files_are_refused_in_a_line(tmp_path, content):
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"file.json is damaged \(.+\); do this$") as refused:
        read_json(file, "do this", 4000 if len(content) == 5009 else records.LARGEST)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_what_is_no_regular_file_is_refused(make_irregular, tmp_path):
    make_irregular(tmp_path / "odd")
    with pytest.raises(UserError, match=NO_FILE):
        read_json(tmp_path / "odd", "do this")
    with pytest.raises(UserError, match=NO_FILE):
        read_lines(tmp_path / "odd", Point)


def test_lines(tmp_path, monkeypatch):
    file = tmp_path / "lines.jsonl"
    assert read_lines(file, Point) == ([], 0)
    file.write_bytes(b'{"x": 1}\n\xff\xfe\n{"x": "1"}\n[]\n\n{"x": 2, "y": []}\n{"x": 3')
    assert read_lines(file, Point) == ([{"x": 1}, {"x": 2, "y": []}], 5)
    monkeypatch.setattr(records, "LONGEST", 100)
    file.write_bytes(b'{"x": 1}\n' + b"[" * 250 + b'\n{"x": 2}\n')
    assert read_lines(file, Point) == ([{"x": 1}, {"x": 2}], 3)
    with pytest.raises(UserError, match="larger than 50 bytes; remove it"):
        read_lines(file, Point, 50)
