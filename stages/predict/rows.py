"""The file of predictions: written block by block, and continued where it was interrupted.

    predictions.csv            one row for each image, in UTF-8; or .jsonl, or .parquet
    predictions.csv.meta.json  what the rows were made with; written first
    predictions.parquet.part   the rows of a .parquet file that is not complete, as an Arrow stream

In a CSV file a name that a spreadsheet would compute has an apostrophe in front (`csv_cell`). The
other two formats keep names as they are.
"""

import csv
import io
import json
import math
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NotRequired, TypedDict, cast

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from shared.runtime import output
from shared.runtime.errors import CannotWriteError, UserError
from shared.runtime.files import delete, into_place, write_atomically
from shared.runtime.media import abbreviated, csv_cell, csv_lines, csv_value, printable
from shared.runtime.progress import counted
from shared.runtime.records import damaged, mismatch, parse_json, read_json

LONGEST = 2**26  # bytes of a row: a million probabilities and more


class _Row(TypedDict):
    """What is read again of a line of JSON; it has further keys."""

    file: str
    label: NotRequired[str | None]


class Made(NamedTuple):
    """What is read again of rows that were written.

    Attributes:
        end: the number of bytes of the file up to here.
        files: the names of the images.
        labels: None or empty where the image has none.
    """

    end: int
    files: Sequence[str]
    labels: Sequence[str | None]


# ------------------------------------------------------------------------------------------- CSV
def _cells(column: str, values: list) -> list[list[str]]:
    """The columns of a CSV file, each a list of texts, that a column becomes."""
    if column == "features":
        return [[f"{value:.9g}" for value in feature] for feature in zip(*values, strict=True)]
    if column.startswith("probability:"):
        return [[f"{value:.6g}" for value in values]]
    if column.startswith("probability"):
        return [[f"{value:.4f}" for value in values]]
    return [["" if value is None else value for value in values]]


def csv_head(schema: pa.Schema) -> str:
    """The first line of a CSV file."""
    names = []
    for field in schema:
        wide = pa.types.is_fixed_size_list(field.type)
        width = field.type.list_size if wide else 0
        names += [f"feature_{i}" for i in range(width)] if wide else [field.name]
    return csv_lines([names])


def csv_rows(batch: pa.RecordBatch) -> str:
    """A block of lines of a CSV file."""
    columns: list[list[str]] = []
    for name in batch.schema.names:
        columns += _cells(name, batch.column(name).to_pylist())
    return csv_lines(zip(*columns, strict=True))


def _read_csv(path: Path, schema: pa.Schema) -> Iterator[Made]:
    place, whole = 0, True

    def lines(file: BinaryIO) -> Iterator[str]:
        nonlocal place, whole
        for line in _lines(file):
            place, whole = place + len(line), line.endswith(b"\n")
            yield line.decode()

    head = next(csv.reader(io.StringIO(csv_head(schema), newline="")))
    labeled = "label" in head
    with path.open("rb") as file:
        reader = csv.reader(lines(file), strict=True)
        try:
            for number, row in enumerate(reader):
                if number == 0 and row != head and whole:
                    raise UserError(f"{path} has other columns: {printable(','.join(row)[:100])}")
                if len(row) != len(head) or not whole:
                    return
                names = [_name_in(row[0])] if number else []
                yield Made(place, names, row[1:2] if labeled else [None])
        except (csv.Error, UnicodeDecodeError):  # cut off within quotes, or within a character
            return


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; one that is longer than any of ours is cut off."""
    return iter(partial(file.readline, LONGEST), b"")


def _name_in(cell: str) -> str:
    """The image that a cell names; earlier versions wrote ``./`` where now an apostrophe is."""
    name = cell.removeprefix("./")
    return name if name != cell and csv_cell(name) != name else csv_value(cell)


# ------------------------------------------------------------------------------------- JSON lines
def _json_rows(batch: pa.RecordBatch) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())


def _read_json_lines(path: Path, schema: pa.Schema) -> Iterator[Made]:
    place = 0
    with path.open("rb") as file:
        for line in _lines(file):
            place += len(line)
            try:
                row = parse_json(line)
            except ValueError:  # cut off, or damaged
                return
            if not line.endswith(b"\n"):
                return
            if list(row) != schema.names:
                raise UserError(f"{path} has other columns: {', '.join(row)[:100]}")
            if wrong := mismatch(row, _Row):
                raise UserError(f"{path} is damaged ({wrong}); remove it or choose another -o")
            yield Made(place, [row["file"]], [row.get("label")])


# ---------------------------------------------------------------------------------------- parquet
def _read_stream(path: Path, schema: pa.Schema) -> Iterator[Made]:
    with pa.OSFile(str(path)) as file:
        try:
            stored = pa.ipc.read_schema(file)
            if not stored.equals(schema):
                raise UserError(f"{path} has other columns: {', '.join(stored.names[:9])}")
            yield Made(file.tell(), [], [])
            while True:
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(file), stored)
                batch.validate(full=True)  # else numbers that lead elsewhere are followed
                if batch.column("file").null_count:
                    return
                labels = batch.column("label").to_pylist() if "label" in stored.names else []
                yield Made(file.tell(), batch.column("file").to_pylist(), labels)
        except (pa.ArrowException, EOFError, OSError, UnicodeDecodeError):  # cut off, or damaged
            return


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The blocks of a stream that is whole but for its end mark."""
    with pa.OSFile(str(path)) as file:
        schema = pa.ipc.read_schema(file)
        while file.tell() < file.size():
            yield pa.ipc.read_record_batch(pa.ipc.read_message(file), schema)


class Form(NamedTuple):
    """A format.

    Attributes:
        head: what the file begins with.
        rows: a block of rows.
        read: the rows of a file that may end anywhere.
        growing: suffix of the file while it is not complete.
    """

    head: Callable[[pa.Schema], bytes]
    rows: Callable[[pa.RecordBatch], bytes]
    read: Callable[[Path, pa.Schema], Iterator[Made]]
    growing: str = ""


FORMS = {
    ".csv": Form(lambda s: csv_head(s).encode(), lambda b: csv_rows(b).encode(), _read_csv),
    ".jsonl": Form(lambda _: b"", lambda b: _json_rows(b).encode(), _read_json_lines),
    ".parquet": Form(
        lambda s: s.serialize().to_pybytes(),
        lambda b: b.serialize().to_pybytes(),
        _read_stream,
        growing=".part",
    ),
}


# ------------------------------------------------------------------------------------ the writers
class Printed:
    """Rows on standard output, as CSV; a terminal gets escapes in place of control characters.

    Args:
        schema: the columns.
        whole: print nothing before all rows are there, so that an error leaves no half table.
    """

    def __init__(self, schema: pa.Schema, whole: bool) -> None:
        self.whole = whole
        self.texts, self.number, self.unlabeled = [csv_head(schema)], 0, 0
        self.about: dict[str, Any] = {}

    def missing(self, names: Sequence[str]) -> np.ndarray:
        """Positions (k,) of the images that have no row: all."""
        return np.arange(len(names))

    def append(self, batch: pa.RecordBatch) -> None:
        """Print a block, or keep it."""
        self.texts.append(csv_rows(batch))
        self.number += len(batch)
        self.unlabeled += _unlabeled(batch)
        if not self.whole:
            self._print()

    def finish(self) -> None:
        """Print what was kept."""
        self._print()

    def _print(self) -> None:
        text = "".join(self.texts)
        if sys.stdout is not None and sys.stdout.isatty():
            text = "".join(f"{printable(line)}\n" for line in text.split("\n")[:-1])
        if not output.write(text):
            raise output.OutputLostError
        self.texts.clear()


class Call(TypedDict):
    """A call that has written rows.

    Attributes:
        rows: how many there were before it.
        newest: when the last of its images was changed, nanoseconds.
    """

    rows: int
    newest: int


class RowFile:
    """A file of rows; those that are there stay.

    Args:
        path: ends in a key of ``FORMS``.
        schema: the columns; the first is ``file``.
        made_with: what the rows depend on, JSON values.

    Attributes:
        unlabeled: number of rows without a label.
        about: what lies in the file's ``.meta.json``.

    Raises:
        UserError: there is a file that was made with something else, or cannot be read.
    """

    def __init__(self, path: Path, schema: pa.Schema, made_with: dict[str, Any]) -> None:
        self.path, self.schema, self.form = path, schema, FORMS[path.suffix]
        self.notes = path.with_name(f"{path.name}.meta.json")
        self.growing = path.with_name(path.name + self.form.growing)
        self._done, self.unlabeled, self._end = dict[str, int](), 0, 0  # name: number of its row
        self._file: BinaryIO | None = None
        self.about: dict[str, Any] = {"made_with": made_with}
        rows = [file for file in (path, self.growing) if file.exists()]
        if any(not file.is_file() for file in rows):
            raise UserError(f"{path} is no regular file; choose another -o")
        if self.notes.exists():
            remedy = f"choose another -o, or remove {path} and {self.notes.name}"
            self.about = read_json(self.notes, remedy)
            temperature = self.about.get("temperature", 1.0)
            if mismatch(temperature, float) or not 0 < temperature < math.inf:
                wrong = ValueError(f"the temperature is {temperature!r:.40}")
                raise damaged(self.notes, wrong, remedy)
            self._require_same(made_with)
        elif any(file.stat().st_size for file in rows):
            raise UserError(
                f"{path} exists, and there is no {self.notes.name} that says what it was made"
                " with; remove it or choose another -o"
            )
        self._read()
        self.number = len(self._done)

    def missing(self, names: Sequence[str]) -> np.ndarray:
        """Positions (k,) of the images that have no row, each image once."""
        first = {name: position for position, name in reversed([*enumerate(names)])}
        rest = [position for name, position in first.items() if name not in self._done]
        return np.sort(np.array(rest, dtype=np.int64))

    def require_same_images(
        self, names: Sequence[str], times: Sequence[int], base: Path | None
    ) -> None:
        """Refuse images that have the names of others whose rows are there, and note these.

        Args:
            names: of the images.
            times: when each image was changed last, nanoseconds.
            base: what the names are relative to; None where they are not.

        Raises:
            UserError: the names are relative to another folder than before, or an image has changed
                since its row was written.
        """
        other = f"choose another -o, or remove {self.path} and {self.notes.name}"
        if base is not None:
            self._require_same_base(base, other)
        calls: list[Call] = self.about.get("calls", [])  # none of earlier versions
        calls = [] if mismatch(calls, list[Call]) else calls
        firsts = [call["rows"] for call in calls]
        changed = [
            name
            for name, time in zip(names, times, strict=True)
            if (number := bisect_right(firsts, self._done.get(name, -1)))
            and time > calls[number - 1]["newest"]
        ]
        if changed:
            raise UserError(
                f"{self.path}: {counted(len(changed), 'image')} changed after the row was written:"
                f" {abbreviated(changed)}; {other}"
            )
        rows = len(self._done)
        calls = [call for call in calls if call["rows"] < rows]  # others have written no row
        self.about["calls"] = [*calls, Call(rows=rows, newest=max(times, default=0))]

    def _require_same_base(self, base: Path, remedy: str) -> None:
        """The rows may be moved without their images, or together with them."""
        folder = self.path.resolve().parent
        place, below = str(base), str(base)
        with suppress(ValueError):  # on another drive of Windows
            below = os.path.relpath(base, folder)
        first = self.about.setdefault("names_below", below)
        before = self.about.setdefault("names_in", os.path.normpath(folder / str(first)))
        if place != before and below != first and self._done:
            raise UserError(
                f"{self.path} has rows of images in {before}, now they are in {place}, and their"
                f" names do not tell them apart; {remedy}"
            )
        if not self._done:
            self.about |= {"names_below": below, "names_in": place}

    def _require_same(self, made_with: dict[str, Any]) -> None:
        before = self.about.get("made_with")
        before = before if isinstance(before, dict) else {}
        changed = [key for key in made_with if before.get(key) != made_with[key]]
        if changed:
            key = changed[0]
            raise UserError(
                f"{self.path} was made with {key}={before.get(key)}, now it is {made_with[key]};"
                f" choose another -o, or remove {self.path} and {self.notes.name}"
            )

    def _read(self) -> None:
        """Take note of the rows that are there."""
        try:
            if self.growing != self.path and self.path.exists() and not self.growing.exists():
                if not parquet.read_schema(self.path).equals(self.schema):
                    raise UserError(f"{self.path} has other columns; choose another -o")
                names = [name for name in ("file", "label") if name in self.schema.names]
                table = parquet.read_table(self.path, columns=names)
                table.validate(full=True)
                if table["file"].null_count:
                    raise UserError(f"{self.path} has rows without a file; choose another -o")
                self._done = {name: row for row, name in enumerate(table["file"].to_pylist())}
                self.unlabeled = _unlabeled(table)
                return
            if not self.growing.exists():
                return
            for end, files, labels in self.form.read(self.growing, self.schema):
                self._end = end
                self._done |= {name: row for row, name in enumerate(files, len(self._done))}
                self.unlabeled += sum(not label for label in labels) if files else 0
        except (OSError, pa.ArrowException, KeyError, UnicodeDecodeError) as error:
            raise self._cannot_read(error) from error

    def _open(self) -> BinaryIO:
        """The file behind its last whole row; before that, what it is made with is noted."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._note()
            complete = self.growing != self.path and not self._end and self.path.exists()
            file = self.growing.open("r+b" if self._end else "wb")
            file.truncate(self._end)
            file.seek(self._end)
            if not self._end:
                file.write(self.form.head(self.schema))
            if complete:  # further rows for a parquet file
                for batch in self._complete_rows():
                    file.write(self.form.rows(batch))
            return file
        except OSError as error:
            raise self._cannot_write(error) from error

    def _complete_rows(self) -> Iterator[pa.RecordBatch]:
        """The rows of a complete parquet file; columns may be damaged that nobody has read yet."""
        try:
            yield from parquet.ParquetFile(self.path).iter_batches()
        except (OSError, pa.ArrowException) as error:
            delete(self.growing)  # it would take the place of the rows that can be read
            raise self._cannot_read(error) from error

    def append(self, batch: pa.RecordBatch) -> None:
        """Write a block of rows.

        Raises:
            UserError: the disk is full or not writable.
        """
        self._file = self._file or self._open()
        try:
            self._file.write(self.form.rows(batch))
            self._file.flush()
        except OSError as error:
            raise self._cannot_write(error) from error
        self.number += len(batch)
        self.unlabeled += _unlabeled(batch)

    def kept(self) -> str:
        """What is there, and what to do, for messages."""
        rows = "1 row is" if self.number == 1 else f"{self.number:,} rows are"
        return f"{rows} in {printable(self.growing)}, and the same command goes on"

    def finish(self) -> None:
        """Complete the file."""
        try:
            complete = self.growing != self.path and not self.growing.exists() and self._done
            if self._file is None and complete:
                return
            (self._file or self._open()).close()
            if self.growing != self.path:
                into_place(self.path, self._write_parquet)
                self.growing.unlink()
            self._note()
        except OSError as error:
            raise self._cannot_write(error) from error

    def _write_parquet(self, file: BinaryIO) -> None:
        with parquet.ParquetWriter(file, self.schema) as writer:
            for batch in _batches(self.growing):
                writer.write_batch(batch)

    def _note(self) -> None:
        try:
            write_atomically(self.notes, json.dumps(self.about, indent=1))
        except CannotWriteError as error:
            raise self._cannot_write(cast(OSError, error.__cause__)) from error

    def _cannot_read(self, error: Exception) -> UserError:
        reason = printable(" ".join(str(error).split())[:200])
        return UserError(f"cannot read {self.path}: {reason}; choose another -o")

    def _cannot_write(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self.path}: {error.strerror or error}; make room or choose another -o:"
            " the same command goes on with the rows that are there"
        )


def _unlabeled(rows: pa.RecordBatch | pa.Table) -> int:
    return rows.column("label").null_count if "label" in rows.schema.names else 0
