"""Files that say which image has which label: CSV as tools write it, and lists of image names.

One rule for the columns of a CSV, of a parquet file and of a ``metadata.csv``:

- The labels are in the column that ``data.label_column`` names, or else in the only one that is
  called as one of ``LABEL_COLUMNS``, in any case and with any spaces, ``_`` and ``-`` between.
  Where none is, columns of 0 and 1 are one for each class. The names of the images are found in the
  same way: ``data.image_column``, ``IMAGE_COLUMNS``, or else ``ID_COLUMNS``.
- An image has no label where the value is missing, NaN, -1, or text that is blank or -1. Every
  other text is the name of a class, ``NA``, ``None``, ``null`` and ``nan`` too.
"""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import compress
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any, NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

import numpy as np

from shared.data.images import UNLABELED, ImageSet, Splits
from shared.runtime.errors import UserError
from shared.runtime.files import did_you_mean, read_bytes
from shared.runtime.media import abbreviated, csv_lines, csv_value, printable
from shared.runtime.progress import counted

IMAGE_COLUMNS = (
    *("file", "files", "filename", "filenames", "filepath", "filepaths", "fname", "fpath"),
    *("image", "images", "imagename", "imagefile", "imagepath", "imagepaths"),
    *("img", "imgname", "imgfile", "imgpath", "path", "paths", "name", "photo", "picture"),
)
ID_COLUMNS = ("imageid", "imgid", "id")  # often beside one of the names above, which comes first
LABEL_COLUMNS = ("label", "labels", "class", "classname", "category", "target", "choice")
CLASS_ID_COLUMNS = ("classid", "labelid", "categoryid", "targetid")  # likewise beside the names
_SPLIT_COLUMNS = ("split", "splits", "set", "subset", "dataset", "partition", "phase", "usage")
# words in the names of split folders in lower case, the usual one first
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
_ONE_HOT = {  # cells of a table with a column for each class
    **dict.fromkeys(("0", "0.0", "false", "no", "", "none", "nan"), False),
    **dict.fromkeys(("1", "1.0", "true", "yes"), True),
}
_INDEX = re.compile(r"|Unnamed: [0-9]+|__index_level_[0-9]+__|index")  # pandas' number of the row
NA_WORDS = {"na", "n/a", "none", "null", "nan"}
LONGEST_CLASS = 1000  # characters
MOST_BYTES = 2**32  # of a label file; that of ImageNet-21k has a tenth of it
# a web page or Word writes them for a plain space, from which nobody can tell them
_PLAIN_SPACES = dict.fromkeys([0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " ")
WORD = r"[^\W\d_]+"  # letters alone, no digits of any script
# Bytes that are the same letter in Windows-1252 and in the code pages of Central Europe, Turkey and
# the Baltic. All others may be another letter: 0xE8 is è or č, 0xF0 is ð or ğ.
_ONE_LETTER = frozenset("ÄÉÓÖÜßäéóöü".encode("cp1252"))
_MARKS = {  # at the beginning of a file; that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class LabelTable(NamedTuple):
    """A CSV file's rows, and the columns that they are from.

    Attributes:
        file: where it lies.
        columns: of the images' names and of the labels, as the file calls them.
        rows: an image's name and the name of its class, which is empty where it has none.
        western: whether it was read as Windows-1252, because it is no UTF-8.
        lines: the line in which each row begins, from 1.
        splits: which rows are for training and which for testing, where a column says so.
    """

    file: Path
    columns: tuple[str, str]
    rows: list[tuple[str, str]]
    western: bool = False
    lines: Sequence[int] = ()
    splits: "SplitColumn | None" = None

    @property
    def labeled(self) -> list[tuple[str, str]]:
        """The rows with a label."""
        return [row for row in self.rows if row[1]]

    def only(self, keep: Iterable[bool]) -> "LabelTable":
        """The table of these rows alone; whatever a column says of splits no longer counts."""
        kept = [*keep]
        rows, lines = (list(compress(cells, kept)) for cells in (self.rows, self.lines))
        return self._replace(rows=rows, lines=lines, splits=None)

    def filled(self) -> "LabelTable":
        """The table without the rows that have no label."""
        return self.only(bool(label) for _, label in self.rows)


class SplitColumn(NamedTuple):
    """A column that says which rows are for training and which for testing.

    Attributes:
        name: of the column.
        splits: train, test or validation for each row, or what else its cell has.
    """

    name: str
    splits: list[str]


# --------------------------------------------------------------------------------- the one rule
def columns_called(columns: Iterable[str], names: tuple[str, ...]) -> list[str]:
    """The columns with one of these names: ``File Name`` and ``file_name`` are ``filename``."""
    return [column for column in columns if re.sub(r"[\W_]+", "", column.casefold()) in names]


def image_columns(columns: Sequence[str]) -> list[str]:
    """The columns that are called as those of the images' names are."""
    return columns_called(columns, IMAGE_COLUMNS) or columns_called(columns, ID_COLUMNS)


def label_columns(columns: Sequence[str]) -> list[str]:
    """The columns that are called as those of the labels are."""
    return columns_called(columns, LABEL_COLUMNS) or columns_called(columns, CLASS_ID_COLUMNS)


def _marked_split(column: str) -> str | None:
    """The split of the rows where a column called is_test, is_valid or is_train has a 1."""
    name = re.sub(r"[\W_]+", "", column.casefold())
    return _SPLIT_OF.get(re.sub("^is|image$", "", name)) if name[:2] == "is" else None


def split_column(columns: Mapping[str, Iterable[Any]]) -> SplitColumn | None:
    """The first of the columns that says of each row whether it is for training or for testing.

    It is called split, set or similar and has words such as train, test and val in any case; or it
    is called is_test, is_valid or is_train and has 0 and 1, false and true, or no and yes. An empty
    cell stands for training. A column says nothing where no row or every row is for training.
    """
    for name in columns:
        split = _marked_split(name)
        if columns_called([name], _SPLIT_COLUMNS):
            words = _SPLIT_OF
        elif split:
            other = "test" if split == "train" else "train"
            words = {cell: split if bit else other for cell, bit in _ONE_HOT.items()}
        else:
            continue
        words = words | dict.fromkeys(("", "none", "nan"), "train")
        cells = (str(cell).strip() for cell in columns[name])
        splits = [words.get(cell.casefold(), cell) for cell in cells]
        number = Counter(splits)
        # is_valid with 1 in most rows says which images are in order
        is_quality = split == "validation" and number["validation"] > number["train"]
        if 0 < number["train"] < len(splits) and not is_quality:
            return SplitColumn(name, splits)
    return None


def content_columns(columns: Iterable[str]) -> list[str]:
    """The columns but for pandas' number of the row, and for those that are called as a split."""
    return [
        name
        for name in columns
        if not (_INDEX.fullmatch(name) or columns_called([name], _SPLIT_COLUMNS))
        and not _marked_split(name)
    ]


def one_hot(columns: Mapping[str, Iterable[Any]]) -> list[list[str]] | None:
    """The classes in each row of columns that are one for each class.

    Args:
        columns: by their names; 1 or true stands below a row's class, 0, false or nothing below
            the others.

    Returns:
        The names of all columns with a 1, of every row; None where there are other cells, or less
        than two columns.
    """
    cells = [[_ONE_HOT.get(str(cell).strip().casefold()) for cell in columns[c]] for c in columns]
    if len(cells) < 2 or any(None in column for column in cells):
        return None
    names = [class_text(name) for name in columns]
    return [list(compress(names, row)) for row in zip(*cells, strict=True)]


def choose_column(
    kind: str,
    candidates: list[str],
    columns: list[str],
    option: str | None,
    source: object,
    required: bool = False,
) -> str | None:
    """The column that ``data.<kind>_column`` names, else the only candidate; None without any.

    Args:
        kind: image or label.
        candidates: columns that may be meant.
        columns: all columns.
        option: value of ``data.<kind>_column``.
        source: what has these columns, for messages.
        required: whether the column that ``option`` names must be there.

    Raises:
        UserError: it is not there, or there are several candidates.
    """
    if option in columns:
        return option
    if option is not None and required:
        raise UserError(
            f"data.{kind}_column={option} is not a column; there are {abbreviated(columns, 12)}"
        )
    if len(candidates) > 1:
        raise UserError(
            f"{source} has several {kind} columns: {abbreviated(candidates, 12)}; choose with"
            f" --data.{kind}_column"
        )
    return candidates[0] if candidates else None


def is_label(value: Any) -> bool:
    """Whether a cell names a class: it is not missing, NaN, -1, or text that is blank or -1."""
    if isinstance(value, str):
        return value.strip() not in ("", "-1", "-1.0")
    return value is not None and value == value and value != UNLABELED


def class_text(value: str) -> str:
    """A class's name as text: no spaces around it, accents composed (NFC), plain spaces in it."""
    return normalize("NFC", value.translate(_PLAIN_SPACES).strip())


def chosen_class(value: str, source: object) -> str:
    """The class in a cell; Label Studio writes it as the only one of a list.

    Raises:
        UserError: the list has several.
    """
    if value.startswith(('["', '{"choices"')):
        try:
            choices = json.loads(value)
        except (ValueError, RecursionError):
            return class_text(value)
        choices = choices.get("choices") if isinstance(choices, dict) else choices
        if isinstance(choices, list):
            if len(choices) > 1:
                raise UserError(
                    f"{source}: several classes for one image: {printable(value[:80])}; leave one"
                )
            value = str(choices[0]) if choices else ""
    return class_text(value)


def require_class_names(names: Iterable[str], source: object) -> None:
    """UserError where a text is too long for the name of a class."""
    if longest := max((name for name in names if len(name) > LONGEST_CLASS), key=len, default=""):
        raise UserError(
            f"{source} has a class of {len(longest):,} characters, {longest[:40]}...; the name of a"
            f" class has at most {LONGEST_CLASS:,}"
        )


def na_note(classes: Iterable[str]) -> str:
    """What a line on labels says of classes that are called as other programs write "none"."""
    words = [name for name in classes if name.casefold() in NA_WORDS]
    if not words:
        return ""
    return f"; {abbreviated(words)} is taken as the name of a class (an empty cell is no label)"


# ---------------------------------------------------------------------------------- reading files
def read_text(file: Path) -> str:
    """Content of a label file: UTF-8, what its byte order mark says, or plainly Windows-1252.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    return read_encoded(file)[0]


def read_list(file: Path) -> list[str]:
    """Names of images in a text file, one a line; blank lines are none.

    Raises:
        UserError: as of `read_text`.
    """
    return [name for line in read_text(file).splitlines() if (name := line.strip())]


def read_encoded(file: Path) -> tuple[str, bool]:
    """The same, and whether it was Windows-1252."""
    try:
        content = read_bytes(file, MOST_BYTES)
    except OSError as error:
        reason = f"{error.strerror or error}{did_you_mean(file)}"
        raise UserError(f"cannot read the label file {file}: {reason}") from error
    if content.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0")):
        raise UserError(
            f"cannot read the label file {file}: it is an Excel workbook or an archive; save the"
            " sheet as CSV"
        )
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8" and is_western(content):
            return content.decode("cp1252"), True
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"cannot read the label file {file}: line {line} is not {encoding}; save it as UTF-8"
            " (Excel: CSV UTF-8)"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(
            f"cannot read the label file {file}: line {line} has a NUL character; save it as UTF-8"
        )
    return text, False


def is_western(content: bytes) -> bool:
    """Whether bytes that are no UTF-8 are plainly Windows-1252, as Excel writes it in the West.

    All that is not ASCII is a letter of ``ÄÉÓÖÜßäéóöü``, which is the same in the other Windows
    code pages of the Latin alphabet, and every word has a plain letter too. Cyrillic or Greek words
    have none; those of Mac OS Roman, DOS and of encodings with two bytes a letter have other bytes.
    """
    if set(content) - _ONE_LETTER - {*range(1, 0x80)}:
        return False
    words = re.findall(WORD, content.decode("latin-1"))
    accented = [word for word in words if len(word) > 1 and not word.isascii()]
    return bool(accented) and all(re.search("[A-Za-z]", word) for word in accented)


def western_note(texts: Iterable[str]) -> str:
    """What a line says of a file that was read as Windows-1252, with some of its words."""
    words = dict.fromkeys(text for text in texts if not text.isascii())
    return f"; it is no UTF-8 and is read as Windows-1252: {abbreviated(words)}"


class Rows(NamedTuple):
    """A CSV file as it is: its columns and the cells below them, without spaces at their ends.

    Attributes:
        columns: as the first line calls them.
        cells: of each row, one for each column; an absent cell is empty.
        lines: the line in which each row begins, from 1.
        western: whether it was read as Windows-1252, because it is no UTF-8.
    """

    columns: list[str]
    cells: list[list[str]]
    lines: list[int]
    western: bool

    def place(self, column: str, file: Path) -> int:
        """Position of a column; UserError where several have this name."""
        if (number := self.columns.count(column)) > 1:
            raise UserError(
                f"{file} has {number} columns called {printable(column)}; rename all but one"
            )
        return self.columns.index(column)

    def column(self, name: str) -> list[str]:
        """The cells of the first column of this name."""
        place = self.columns.index(name)
        return [cells[place] for cells in self.cells]


def read_rows(file: Path, options: Iterable[str | None] = ()) -> Rows:
    """Read a CSV file, separated by comma, semicolon, tab or ``|``.

    Args:
        file: its first line names the columns; a row may lack the last ones.
        options: columns that the user named, which may show what the separator is.

    Raises:
        UserError: it cannot be read, is empty, or a row has more cells than there are columns.
    """
    text, western = read_encoded(file)
    numbered = _cells(text, file, options)
    if not numbered:
        raise UserError(f"{file} is empty; it must begin with a line such as file,label")
    rows = Rows([cell.strip() for cell in numbered[0][1]], [], [], western)
    for number, cells in numbered[1:]:
        cells = [csv_value(cell.strip()) for cell in cells]
        cells += [""] * (len(rows.columns) - len(cells))
        if any(cells[len(rows.columns) :]):
            raise UserError(
                f"{file}, line {number}: {len(cells)} cells under {len(rows.columns)} columns,"
                f" {abbreviated(rows.columns)}; the first line must name all columns, and text that"
                ' holds the separator be in quotes, as "a, b"'
            )
        rows.cells.append(cells[: len(rows.columns)])
        rows.lines.append(number)
    return rows


def read_csv(
    file: Path,
    image_column: str | None = None,
    label_column: str | None = None,
    classes: Iterable[str] = (),
) -> LabelTable:
    """Read a CSV file of labels, as `read_rows` reads it.

    Args:
        file: further columns are passed over.
        image_column: the column of the images' names, if the file has it.
        label_column: the column of the labels, if the file has it.
        classes: of the images, if known. Where all labels are among them, 1.0 and -1 are names too.

    Raises:
        UserError: it cannot be read, lacks a column, or has a row that is not one.
    """
    table = read_rows(file, (image_column, label_column))
    head = table.columns
    images, labels = image_columns(head), label_columns(head)
    if len(named := content_columns(head)) == 2 and images and not labels:
        labels = [name for name in named if name not in images]  # the only one it can be
    image = choose_column("image", images, head, image_column, file)
    if image is None:
        raise UserError(
            f"{file} must begin with the line file,label, or name the images' column with"
            f" --data.image_column; its first line is {','.join(head)[:100]!r}"
        )
    others = [column for column in labels if column != image]
    if len(others) > 1 and len({*others}) == 1:
        table.place(others[0], file)
    label = choose_column("label", others, head, label_column, file)
    place = table.place(image, file)
    names = [cells[place] for cells in table.cells]
    if label is None:
        label, values = _one_hot(table, place, file)
    else:
        place = table.place(label, file)
        sources = (f"{file}, line {line}" for line in table.lines)
        values = [
            chosen_class(cells[place], source)
            for cells, source in zip(table.cells, sources, strict=True)
        ]
    if not {*values} <= {"", *map(class_text, classes)}:
        values = _without_decimals([value if is_label(value) else "" for value in values])
    for name, value, line in zip(names, values, table.lines, strict=True):
        if value and not name:
            raise UserError(f"{file}, line {line}: a label, but no image")
    require_class_names(values, file)
    further = {name: table.column(name) for name in head if name not in (image, label)}
    read = LabelTable(
        file, (image, label), [*zip(names, values, strict=True)], table.western, table.lines
    )
    splits = split_column(further)
    splits = splits and splits._replace(splits=list(compress(splits.splits, names)))
    return read.only(map(bool, names))._replace(splits=splits)


def _one_hot(table: Rows, image: int, file: Path) -> tuple[str, list[str]]:
    """The names of the columns of a table with one for each class, and the class of each row.

    Args:
        table: with 1 below the class of a row and 0 below the others.
        image: position of the column of the images' names.
        file: for messages.

    Raises:
        UserError: it has other cells, or a row with several classes.
    """
    columns = content_columns(table.columns[:image] + table.columns[image + 1 :])
    places = {column: table.place(column, file) for column in columns}
    classes = one_hot({column: [row[p] for row in table.cells] for column, p in places.items()})
    if classes is None:
        raise UserError(
            f"{file} has no column called label; its columns are {abbreviated(table.columns, 12)};"
            " choose with --data.label_column"
        )
    for line, several in zip(table.lines, classes, strict=True):
        if len(several) > 1:
            raise UserError(
                f"{file} has a column for each class, and line {line} several classes for one"
                f" image: {abbreviated(several)}; leave a 1 in one of them"
            )
    return abbreviated(columns), ["".join(names) for names in classes]


def separator_of(head: str, options: Iterable[str | None] = ()) -> str:
    """What is between the columns of a CSV file: it makes the first line name the columns.

    Of several, or where none does, the one that is there most often.
    """

    def fit(separator: str) -> tuple[int, int]:
        columns = [cell.strip(' "') for cell in head.split(separator)]
        known = [image_columns(columns), label_columns(columns)]
        known += [[option] for option in options if option in columns]
        return sum(map(bool, known)), len(columns)

    return max(",;\t|", key=fit)


def _cells(text: str, file: Path, options: Iterable[str | None]) -> list[tuple[int, list[str]]]:
    """Line number and cells of every row that is not blank; the first names the columns."""
    first, _, rest = text.partition("\n")
    if match := re.fullmatch(r"sep=(.)\s*", first):  # as Excel writes it
        separator, text = match[1], rest
    else:
        head = next((line for line in text.splitlines() if line.strip()), "")
        separator = separator_of(head, options)
    lines = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    rows, begin = [], 1 + bool(match)
    try:
        for cells in lines:
            if any(cell.strip() for cell in cells):
                rows.append((begin, cells))
            begin = lines.line_num + 1 + bool(match)
    except csv.Error as error:
        reason = {"unexpected end of data": "a quote that is never closed"}.get(str(error), error)
        reason = printable(reason)
        raise UserError(f"{file}, line {begin}: {reason}; is a quote missing?") from error
    return rows


def csv_text(rows: Iterable[tuple[str, ...]], columns: tuple[str, ...] = ("file", "label")) -> str:
    """A CSV file, safe for a spreadsheet; `read_csv` takes back one of image names and labels."""
    return csv_lines([columns, *rows])


def marked(text: str) -> str:
    """A CSV file's text with a mark in front where Excel needs it to read UTF-8."""
    return text if text.isascii() else f"\ufeff{text}"


def can_be_listed(name: str) -> bool:
    """Whether a CSV file can carry a name: it is UTF-8, without spaces at its ends."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name == name.strip()


def _without_decimals(labels: list[str]) -> list[str]:
    """Whole numbers as such: programs write 3.0 where another row of the column is empty."""
    if all(re.fullmatch(r"[0-9]+(\.0)?|", label) for label in labels):
        return [label.removesuffix(".0") for label in labels]
    return labels


def each_once(
    images: ImageSet, ids: np.ndarray, targets: np.ndarray, table: LabelTable
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (k,) and classes (k,) of the labeled images, each image once, in order.

    Args:
        images: which the table names.
        ids: (r,) int64 position of each row's image; -1: the row is left out.
        targets: (r,) int64 class of each row; -1: the row is left out.
        table: of r rows.

    Raises:
        UserError: an image has several labels.
    """
    usable = (ids >= 0) & (targets != UNLABELED)
    ids = np.where(usable, ids, -1)
    first, classes = np.unique(np.stack([ids[usable], targets[usable]]), axis=1)
    repeated = first[1:][first[1:] == first[:-1]]
    if len(repeated):
        of_one = np.flatnonzero(ids == repeated[0]).tolist()
        places = (f" in line {table.lines[row]}" if len(table.lines) else "" for row in of_one)
        labels = [f"{table.rows[r][1]}{p}" for r, p in zip(of_one, places, strict=True)]
        name = printable(images.names[repeated[0]])
        others = len({*repeated.tolist()}) - 1
        raise UserError(
            f"{table.file} gives several labels to {name}: {abbreviated(labels, 6)}"
            + (f"; and to {counted(others, 'other image')}" if others else "")
        )
    return first, classes


# ------------------------------------------------------------------------- which image is meant
HELD_OUT, SKIPPED, MISSING = -1, -2, -3  # in place of a position


class ImageIndex:
    """Finds images by their names, as other programs and other machines write them.

    A name means the image that is called so. Else a backslash is a slash, ``./`` is nothing, and
    accents are composed (NFC); a name may lack the first folders of the image's, or have more of
    them in front (an absolute path, perhaps of another machine); the longest end counts. A web
    address, and what Label Studio exports, stand for the path in them. Upper and lower case differ.
    A name that fits no image may lack the suffix of one.

    Args:
        names: of the images.
    """

    def __init__(self, names: Iterable[str]):
        self.exact: dict[str, int] = {}
        self.whole: dict[str, list[int]] = {}
        self.ends: dict[str, list[int]] = {}
        for position, name in enumerate(names):
            self.exact.setdefault(name, position)
            plain = _plain(name)
            self.whole.setdefault(plain, []).append(position)
            for end in _ends(plain):
                self.ends.setdefault(end, []).append(position)

    def positions(self, name: str) -> list[int]:
        """The images that a name may mean: none, one, or several."""
        if name in self.exact:
            return [self.exact[name]]
        if places := self._positions(name):
            return places
        groups = list(self.whole.values())
        return [place for group in self._stems._positions(name) for place in groups[group]]

    @cached_property
    def _stems(self) -> "ImageIndex":
        """The same names without their suffixes."""
        return ImageIndex(map(_stem, self.whole))

    def _positions(self, name: str) -> list[int]:
        for form in _forms(name):
            if form in self.whole:
                return self.whole[form]
            if form in self.ends:
                return self.ends[form]
            for end in _ends(form):  # the longest first
                if end in self.whole:
                    return self.whole[end]
        return []


def find_images(splits: Splits, names: list[str], file: Path) -> np.ndarray:
    """Positions (k,) int64 of the named training images; below 0 where no classifier may see them.

    These are held out for testing (``HELD_OUT``), or unreadable and skipped (``SKIPPED``), or, with
    ``data.on_error`` skip, not there at all (``MISSING``).

    Raises:
        UserError: a name fits no image, or several; the message names ``file``. Where missing ones
            are skipped, none fits any.
    """
    train, test = splits
    every: list[tuple[str, int]] = [(name, place) for place, name in enumerate(train.names)]
    for place in train.held_out:
        every[place] = (every[place][0], HELD_OUT)
    if test is not None:
        known = set(train.names)
        every += [(name, HELD_OUT) for name in test.names if name not in known]
    every += [(name, HELD_OUT) for name in train.locked]
    every += [(name, SKIPPED) for name in train.skipped]
    skip = train.on_error == "skip"
    positions = find_names([name for name, _ in every], names, file, skip)
    places = np.array([every[position][1] for position in positions], dtype=np.int64)
    places[np.array(positions, dtype=np.int64) < 0] = MISSING
    return places


def find_names(images: list[str], names: list[str], file: Path, skip: bool = False) -> list[int]:
    """Positions of the named images; UserError as `find_images`; ``skip``: -1 for missing ones."""
    index = ImageIndex(images)
    positions = [index.positions(name) for name in names]
    unknown = [name for name, places in zip(names, positions, strict=True) if not places]
    if unknown and (not skip or len(unknown) == len(names)):
        way = "" if skip else "remove their rows or give --data.on_error skip; "
        raise UserError(
            f"{file} names {len(unknown)} unknown images: {abbreviated(unknown)};"
            f" {way_out(images, unknown)}{way}the images are called like {abbreviated(images)}"
        )
    require_one_image(names, positions, images, file)
    return [places[0] if places else -1 for places in positions]


def require_one_image(
    names: list[str], positions: list[list[int]], images: list[str], file: Path
) -> None:
    """UserError where a name may be several images."""
    ambiguous = [name for name, places in zip(names, positions, strict=True) if len(places) > 1]
    if ambiguous:
        raise UserError(
            f"{file}: {abbreviated(ambiguous)} may be several images; write more of the path,"
            f" as in {abbreviated(images)}"
        )


def way_out(images: list[str], unknown: list[str]) -> str:
    """A hint for names that differ from an image's in upper and lower case or the suffix alone."""
    index = ImageIndex([name.casefold() for name in images])
    for name in unknown:
        if places := index.positions(name.casefold()):
            return f"upper and lower case differ from {printable(images[places[0]])}; "
        if index.positions(re.split(r"[\s,;]", name.casefold())[0]):
            return "its lines seem to hold a name and a label: save them as CSV below file,label; "
        stem = _stem(_plain(name.casefold()))
        if places := index.positions(stem):
            image = printable(images[places[0]])
            return f"the suffix differs from {image}; write that, or leave the suffixes out; "
    return ""


def _plain(name: str) -> str:
    """A path with ``/`` between folders, without ``.``, ``..`` and an empty part at its begin."""
    parts = normpath(normalize("NFC", name).replace("\\", "/")).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def _stem(path: str) -> str:
    """A path without the suffix of the file."""
    return re.sub(r"(?<=[^/])\.[^./]*$", "", path)


def _forms(name: str) -> Iterator[str]:
    """The paths that a name may stand for, the likeliest first."""
    yield _plain(name)
    if "?d=" in name:  # Label Studio, local files: /data/local-files/?d=photos/a%20b.jpg
        yield _plain(unquote(name.partition("?d=")[2]))
    elif "://" in name:
        yield _plain(unquote(re.split("[?#]", name.partition("://")[2])[0]))
    if "upload/" in name:  # Label Studio, uploaded: /data/upload/1/ab12cd34-name.jpg
        yield re.sub(r"^[0-9a-f]{8}-", "", PurePosixPath(_plain(unquote(name))).name)


def _ends(name: str) -> Iterator[str]:
    """A path without its first folder, its first two, ...: of ``a/b/c`` b/c and c."""
    while "/" in name:
        name = name.partition("/")[2]
        yield name
    # the hub's ImageNet repeats the class: n01440764_1_n01440764.JPEG
    short = re.sub(r"^(n[0-9]{8}_[0-9]+)_n[0-9]{8}(?=\.)", r"\1", name)
    if short != name:
        yield short
