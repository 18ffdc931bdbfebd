"""Rows come back as they were written, wherever the file was cut off."""

import csv
import io
import json
import os
import sys
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from shared.data.label_files import read_csv
from shared.runtime.errors import UserError
from shared.runtime.media import csv_value
from stages.predict import rows
from stages.predict.rows import FORMS, Printed, RowFile, csv_rows

ODD = [
    "a,b.png",
    'q"u.png',
    "line\nbreak.png",
    "cr\rx.png",
    "é=ü.png",
    "\x1b[31mred.png",
    "=cmd.png",
]
SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float32()),
        ("features", pa.list_(pa.float32(), 2)),
    ]
)


def block(names, label="cat") -> pa.RecordBatch:
    count = len(names)
    columns = [names, [label] * count, [0.5] * count, [[0.1, 2.0]] * count]
    arrays = [pa.array(values, kind) for values, kind in zip(columns, SCHEMA.types, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)


def opened(path, **made_with) -> RowFile:
    return RowFile(path, SCHEMA, {"artifact": "x", **made_with})


def write(path, names, **made_with) -> RowFile:
    rows = opened(path, **made_with)
    rows.append(block(names))
    rows.finish()
    return rows


def files_in(path) -> list[str]:
    if path.suffix == ".parquet":
        return parquet.read_table(path)["file"].to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line)["file"] for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return [csv_value(row["file"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("suffix", FORMS)
def test_names_come_back(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    write(path, ODD)
    assert files_in(path) == ODD
    again = opened(path)
    assert again.number == len(ODD)
    assert again.missing([*ODD, "new.png", "new.png"]).tolist() == [len(ODD)]


@pytest.mark.parametrize("suffix", FORMS)
def test_goes_on_wherever_it_was_cut_off(tmp_path, suffix):
    path, names = tmp_path / f"p{suffix}", [*ODD, "last.png"]
    rows = opened(path)
    for name in names:  # blocks of one
        rows.append(block([name]))
    del rows
    growing = next(file for file in (path, tmp_path / f"p{suffix}.part") if file.exists())
    whole = growing.read_bytes()
    for end in {*range(0, len(whole), max(7, len(whole) // 40)), len(whole) - 1, len(whole)}:
        growing.write_bytes(whole[:end])
        rows = opened(path)
        rest = [names[i] for i in rows.missing(names)]
        assert rows.number == len(names) - len(rest)
        if rest:
            rows.append(block(rest))
        rows.finish()
        assert files_in(path) == names, end
        if path != growing:
            path.unlink()


@pytest.mark.parametrize("suffix", FORMS)
def test_more_images_come_behind(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    write(path, ["b.png"])
    before = path.read_bytes()
    rows = opened(path)
    rows.finish()  # nothing is new
    assert path.read_bytes() == before
    write(path, ["a.png"])
    assert files_in(path) == ["b.png", "a.png"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, f"{path.name}.meta.json"]


@pytest.mark.parametrize("suffix", FORMS)
def test_rows_without_a_label_are_counted_again(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    rows = opened(path)
    rows.append(block(["a", "b"], label=None))
    rows.append(block(["c"]))
    assert rows.unlabeled == 2
    if suffix != ".parquet":
        assert opened(path).unlabeled == 2
    rows.finish()
    assert opened(path).unlabeled == 2


@pytest.mark.parametrize("suffix", FORMS)
def test_other_settings_are_refused_and_nothing_is_lost(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    write(path, ["a"], top_k=1)
    before = path.read_bytes()
    with pytest.raises(UserError, match="was made with top_k=1, now it is 2; choose another -o"):
        opened(path, top_k=2)
    with pytest.raises(UserError, match="was made with artifact=x"):
        RowFile(path, SCHEMA, {"artifact": "y"})
    (tmp_path / f"{path.name}.meta.json").unlink()
    with pytest.raises(UserError, match=r"there is no p.* that says what it was made with"):
        opened(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"file": ' + "[" * 100 + "]" * 100 + "}",
        '{"file": ' + "9" * 5000 + "}",
        "[1]",
        "null",
        "\0\0",
    ],
)
def test_what_is_no_line_ends_the_rows(tmp_path, line):
    path = tmp_path / "p.jsonl"
    write(path, ["a", "b"])
    path.write_text(path.read_text() + line + "\n")
    assert opened(path).missing(["a", "b", "c"]).tolist() == [2]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_line_without_an_end_is_not_read_to_its_end(tmp_path, monkeypatch, suffix):
    """A terabyte of zeros, which takes no room on the disk."""
    path = tmp_path / f"p{suffix}"
    write(path, ["a", "b"])
    size = path.stat().st_size
    os.truncate(path, 2**40)
    monkeypatch.setattr(rows, "LONGEST", 2**16)
    names = opened(path)
    assert names.missing(["a", "b", "c"]).tolist() == [2]
    names.append(block([]))
    assert path.stat().st_size == size


def _names(offsets: list[int], content: bytes) -> pa.RecordBatch:
    buffers = [None, pa.py_buffer(np.array(offsets, "<i4")), pa.py_buffer(content)]
    names = pa.Array.from_buffers(pa.string(), 2, buffers)
    return pa.RecordBatch.from_arrays([names, *block(["a", "b"]).columns[1:]], schema=SCHEMA)


@pytest.mark.parametrize(
    "damaged",
    [
        _names([0, 1, 2], b"\xff\xfe"),
        _names([0, 9, 2], b"ab"),
        pa.record_batch([[None, None], *block(["a", "b"]).columns[1:]], schema=SCHEMA),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_names_that_are_no_texts(tmp_path, damaged, complete):
    path = tmp_path / "p.parquet"
    file = opened(path)
    file.append(block(["c"]))
    file.append(damaged)
    del file
    if not complete:
        assert opened(path).missing(["c", "d"]).tolist() == [1]
        return
    path.with_name("p.parquet.part").unlink()
    with suppress(pa.ArrowInvalid), parquet.ParquetWriter(path, SCHEMA) as writer:
        writer.write_batch(damaged)
    with pytest.raises(UserError, match=r"choose another -o$"):
        opened(path)


def test_a_head_that_is_no_text(tmp_path):
    path, growing = tmp_path / "p.parquet", tmp_path / "p.parquet.part"
    opened(path).append(block(["a"]))
    growing.write_bytes(growing.read_bytes().replace(b"probability", b"\xffrobability"))
    assert opened(path).missing(["a"]).tolist() == [0]


@pytest.mark.parametrize("change", [{"file": [1]}, {"file": {}}, {"file": None}, {"label": 3}])
def test_a_line_with_another_type_is_refused_and_stays(tmp_path, change):
    path = tmp_path / "p.jsonl"
    write(path, ["a"])
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}) + "\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"is damaged \((file|label) is .*; remove it or choose"):
        opened(path)
    assert path.read_bytes() == before


def test_a_parquet_file_that_is_damaged_in_another_column_stays(tmp_path):
    path = tmp_path / "p.parquet"
    write(path, ["a", "b"])
    column = parquet.ParquetFile(path).metadata.row_group(0).column(2)
    begin = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[begin : begin + 12] = b"\xff" * 12
    path.write_bytes(content)
    file = opened(path)
    for _ in range(2):
        with pytest.raises(UserError, match=r"cannot read .*p.parquet: .*; choose another -o"):
            file.append(block(["c"]))
    assert path.read_bytes() == content
    assert opened(path).number == 2


@pytest.mark.parametrize("suffix", FORMS)
def test_a_file_of_another_table_is_refused(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    write(path, ["a"])
    other = SCHEMA.remove(2)
    with pytest.raises(UserError, match="has other columns"):
        RowFile(path, other, {"artifact": "x"})


@pytest.mark.parametrize("suffix", FORMS)
def test_what_cannot_be_written(tmp_path, suffix):
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(UserError, match="is no regular file"):
        opened(tmp_path / f"folder{suffix}")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .* the same command goes on"):
        write(tmp_path / "file" / f"p{suffix}", ["a"])


# ------------------------------------------------------------------------------------ spreadsheets
@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\uff1d"])
def test_no_cell_is_a_formula(begin):
    text = csv_rows(block([f"{begin}cmd.png"], label=f"{begin}cmd|' /C calc'!A0"))
    (row,) = csv.reader(io.StringIO(text, newline=""))
    assert [cell for cell in row[:2] if cell.startswith(begin)] == []
    assert row[0] == f"'{begin}cmd.png"


def test_labels_come_back_and_numbers_stay(tmp_path):
    path = tmp_path / "p.csv"
    rows = opened(path)
    for name, label in (("a.png", "=1+1"), ("b.png", "-5"), ("c.png", "+x")):
        rows.append(block([name], label=label))
    rows.finish()
    assert read_csv(path).rows == [("a.png", "=1+1"), ("b.png", "-5"), ("c.png", "+x")]
    assert b",-5," in path.read_bytes()


def test_rows_of_an_earlier_version_are_not_made_again(tmp_path):
    """It wrote ``./`` before a name that begins as a formula."""
    path = tmp_path / "p.csv"
    write(path, ["a.png", "=1.png", "-x.png"])
    path.write_text(path.read_text().replace("'=1", "./=1").replace("'-x", "./-x"))
    assert opened(path).missing(["a.png", "=1.png", "-x.png", "./b.png"]).tolist() == [3]


def test_features_are_numbers():
    batch = block(["a.png"])
    features = pa.array([[-1e-7, -np.inf]], SCHEMA.types[3])
    text = csv_rows(batch.set_column(3, SCHEMA.field(3), features))
    assert text == "a.png,cat,0.5000,-1.00000001e-07,-inf\n"


# ---------------------------------------------------------------------------------------- printed
class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_control_characters(monkeypatch):
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    printed = Printed(SCHEMA, whole=True)
    printed.append(block(ODD, label="b\x1b]0;x\x07"))
    assert out.getvalue() == ""
    printed.finish()
    assert all(char.isprintable() or char == "\n" for char in out.getvalue())


def test_a_pipe_gets_the_names(capsys):
    printed = Printed(SCHEMA, whole=False)
    printed.append(block(ODD[:3]))
    assert list(csv.reader(io.StringIO(capsys.readouterr().out, newline="")))[-1][0] == ODD[2]
    printed.append(block(ODD[3:]))
    printed.finish()
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out, newline="")))
    assert [csv_value(row[0]) for row in rows] == ODD[3:]


def test_rows_are_moved_without_their_images(tmp_path, monkeypatch):
    """Or on another drive of Windows, where no relative path leads to them."""

    def at(place: str, names: list[str], base: str) -> RowFile:
        (tmp_path / place).mkdir(exist_ok=True)
        out = opened(tmp_path / place / "p.csv")
        out.require_same_images(names, [1] * len(names), tmp_path / base)
        return out

    (tmp_path / "new").mkdir()
    first = at("one", ["x.png"], "new")
    first.append(block(["x.png"]))
    first.finish()
    (tmp_path / "one").replace(tmp_path / "results")
    at("results", ["x.png"], "new")
    with pytest.raises(UserError, match=r"now they are in .*other"):
        at("results", ["x.png"], "other")
    monkeypatch.setattr(os.path, "relpath", lambda *_: (_ for _ in ()).throw(ValueError("drive")))
    at("results", ["x.png"], "new")


@pytest.mark.parametrize("notes", ["{", "[]", '{"temperature": "hot"}', '{"temperature": 0}'])
def test_damaged_notes_cost_no_folder_of_the_user(tmp_path, notes):
    path = tmp_path / "p.csv"
    path.with_name("p.csv.meta.json").write_text(notes)
    with pytest.raises(UserError, match=r"choose another -o, or remove .*p\.csv and p\.csv\.meta"):
        opened(path)
