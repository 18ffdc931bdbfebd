"""Tables and lists of labels as people and tools write them; which image a name means."""

import csv
import io
import tempfile
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.data.images import Splits
from shared.data.label_files import (
    LABEL_COLUMNS,
    MISSING,
    MOST_BYTES,
    SKIPPED,
    ImageIndex,
    can_be_listed,
    choose_column,
    class_text,
    columns_called,
    csv_text,
    find_images,
    find_names,
    is_label,
    is_western,
    na_note,
    read_csv,
    read_text,
    western_note,
)
from shared.runtime.errors import UserError
from shared.runtime.media import one_line, printable
from tests.support.sources import images

ROWS = [("0.png", "cat"), ("1.png", "dog"), ("2.png", "")]


def written(path: Path, content: str | bytes) -> Path:
    file = path / "l.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def refusal(file: Path, **columns) -> str:
    with pytest.raises(UserError) as caught:
        read_csv(file, **columns)
    message = str(caught.value)
    assert str(file) in message
    assert printable(message) == message  # one line, and nothing that moves the cursor
    return message


# -------------------------------------------------------------------------- CSV as tools write it
@pytest.mark.parametrize(
    "content",
    [
        "file,label\n0.png,cat\n1.png,dog\n2.png,\n",
        "File,LABEL\r\n0.png,cat\r\n1.png,dog\r\n2.png,\r\n",
        "image,label,annotator\n0.png,cat,ann\n1.png,dog,ben\n2.png,,ben\n",
        "label;comment;file name\ncat;a, b;0.png\ndog;;1.png\n;;2.png\n",
        "file_name\tclass\n0.png\tcat\n1.png\tdog\n2.png\t\n",
        'sep=;\r\n"Path";"Category"\r\n"0.png";"cat"\r\n"1.png";"dog"\r\n"2.png";""\r\n',
        '\n\nfile,label\n"0.png", "cat"\n 1.png , dog \n\n2.png\n , \n,,\n',
        "file,label\n0.png,cat,\n1.png,dog,,\n2.png,-1\n",
        "file,label\r0.png,cat\r1.png,dog\r2.png,\r",
        "img|target\n0.png|cat\n1.png|dog\n2.png|-1",
        (
            "annotation_id,annotator,choice,created_at,id,image,lead_time\n"
            "1,7,cat,2026-01-02T03:04:05Z,1,0.png,2.5\n2,7,dog,,2,1.png,1\n3,7,,,3,2.png,1\n"
        ),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_the_same_rows_however_written(tmp_path, content, encoding):
    table = read_csv(written(tmp_path, content.encode(encoding)))
    assert table.rows == ROWS
    assert table.labeled == ROWS[:2]


def test_big_endian_text_as_some_tools_write_it(tmp_path):
    content = b"\xfe\xff" + "file,label\n0.png,ж\n".encode("utf-16-be")
    assert read_csv(written(tmp_path, content)).rows == [("0.png", "ж")]


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(cells.filter(bool), cells.filter(is_label)), min_size=1))
def test_what_pandas_writes_is_read(tmp_path_factory, rows):
    pandas = pytest.importorskip("pandas")
    file = tmp_path_factory.mktemp("csv") / "l.csv"
    pandas.DataFrame([*rows, ("x", "y")], columns=["file", "label"]).to_csv(file)  # with an index
    expected = [(name, class_text(label)) for name, label in rows]
    assert read_csv(file).rows == [*expected, ("x", "y")]


def test_whole_numbers_stay_whole(tmp_path):
    """A column with an empty cell is one of floats to pandas."""
    head = "file,label\n"
    assert read_csv(written(tmp_path, head + "a,3.0\nb,\nc,10.0\n")).rows == [
        ("a", "3"),
        ("b", ""),
        ("c", "10"),
    ]
    rows = read_csv(written(tmp_path, head + "a,3.0\nb,v1.0\n")).rows
    assert rows == [("a", "3.0"), ("b", "v1.0")]
    assert read_csv(written(tmp_path, head + "a,٣.0\nb,3.0\n")).rows == [("a", "٣.0"), ("b", "3.0")]


def test_words_for_nothing_are_names_of_classes(tmp_path):
    table = read_csv(written(tmp_path, "file,label\na,NA\nb,None\nc,nan\nd,null\ne,n/a\nf,\n"))
    assert [label for _, label in table.rows] == ["NA", "None", "nan", "null", "n/a", ""]
    assert "NA, None, nan and 2 more is taken as the name" in na_note(
        [label for _, label in table.labeled]
    )
    assert na_note(["cat", "nano"]) == ""


@pytest.mark.parametrize("value", [None, float("nan"), -1, -1.0, "", "  ", "\t", "-1", " -1.0"])
def test_no_label(value):
    assert not is_label(value)


@pytest.mark.parametrize("value", [0, 0.0, False, "0", "NA", "None", "nan", "-", "-2", -2, "x"])
def test_a_label(value):
    assert is_label(value)


# ------------------------------------------------------------------------------------ the columns
@pytest.mark.parametrize(
    "column", ["label", "Label", "CLASS", "class name", "Class_Name", "target"]
)
def test_names_of_label_columns(column):
    assert columns_called(["id", column, "labeller"], LABEL_COLUMNS) == [column]


def test_an_option_comes_before_the_names():
    columns = ["label", "species", "class"]
    chosen = choose_column("label", ["label", "class"], columns, "species", "a.csv")
    assert chosen == "species"
    with pytest.raises(UserError, match=r"a.csv has several label columns: label, class; choose"):
        choose_column("label", ["label", "class"], columns, None, "a.csv")
    with pytest.raises(UserError, match=r"sort is not a column; there are label, species, class"):
        choose_column("label", ["label"], columns, "sort", "a.csv", required=True)
    assert choose_column("label", [], columns, None, "a.csv") is None


def test_columns_that_are_chosen_by_option(tmp_path):
    for head in ("id,breed", "image_id,breed", "id,file name,breed"):  # Kaggle's
        row = "0.png,cat" if head.count(",") == 1 else "7,0.png,cat"
        table = read_csv(written(tmp_path, f"{head}\n{row}\n"), label_column="breed")
        assert table.rows == ROWS[:1]
    file = written(tmp_path, "photo id,species,label\n0.png,cat,1\n1.png,dog,2\n")
    assert "must begin with the line file,label, or name the images' column" in refusal(file)
    table = read_csv(file, image_column="photo id", label_column="species")
    assert table.columns == ("photo id", "species")
    assert table.rows == ROWS[:2]
    file = written(tmp_path, "file,species\n0.png,cat\n")
    assert read_csv(file).rows == ROWS[:1]
    file = written(tmp_path, "file,species,sex\n0.png,cat,f\n")
    message = refusal(file)
    assert "its columns are file, species, sex; choose with --data.label_column" in message
    for head in ("file,label,class", "file,label,label", "file,path,label"):
        message = refusal(written(tmp_path, head + "\n0.png,cat,dog\n"))
        assert "has several" in message or "has 2 columns called label; rename" in message
    for head in ("file,label,label", "file,file,label", "file,species,species"):
        file = written(tmp_path, head + "\n0.png,cat,dog\n")
        column = head.rpartition(",")[2]
        assert "has 2 columns called " in refusal(file, image_column="file", label_column=column)


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("file;label;note (a,b,c)", {}),
        ("file\tlabel\tx, y, z, w", {}),
        ("photo id;species;x, y, z", {"image_column": "photo id", "label_column": "species"}),
        ('"file"|"label"|"a,b,c,d"', {}),
    ],
)
def test_the_separator_makes_the_first_line_name_the_columns(tmp_path, head, options):
    row = "0.png{0}cat{0}".format(next(s for s in ";\t|" if s in head))
    assert read_csv(written(tmp_path, f"{head}\n{row}\n"), **options).rows == ROWS[:1]


@pytest.mark.parametrize(
    "content",
    [
        "filename, cat, dog\n0.png, 1, 0\n1.png, 0, 1\n2.png, 0, 0\n",
        "cat;file;dog\n1.0;0.png;0.0\n0.0;1.png;1.0\n;2.png;\n",
        "file\tdog\tcat\tfox\n0.png\t\t1\t\n1.png\t1\t0\n2.png\n",
        "split;is_valid;file;cat;dog\n;0;0.png;1;0\n;1;1.png;0;1\n;0;2.png;0;0\n",
        ",image_id,cat,dog\n0,0.png,True,False\n1,1.png,False,True\n2,2.png,False,False\n",
    ],
)
def test_a_column_for_each_class(tmp_path, content):
    assert read_csv(written(tmp_path, content)).rows == ROWS


def test_several_classes_in_columns_are_refused(tmp_path):
    says = "line 3 several classes for one image: cat, dog; leave a 1 in one of them"
    assert says in refusal(written(tmp_path, "file,cat,dog\n0.png,1,0\n1.png,1,1\n"))
    assert "no column called label" in refusal(written(tmp_path, "file,cat,dog\n0.png,1,2\n"))
    assert "no column called label" in refusal(written(tmp_path, "file,split\n0.png,1\n"))


@pytest.mark.parametrize(
    ("cell", "means"),
    [
        ('{"choices": ["a"]}', "a"),
        ('["a"]', "a"),
        ('{"choices": []}', ""),
        ('["a', '["a'),
        ("big\u00a0cat", "big cat"),
        ("big\u202fcat", "big cat"),
    ],
)
def test_one_choice_is_a_class(tmp_path, cell, means):
    assert read_csv(written(tmp_path, csv_text([("0.png", cell)]))).rows == [("0.png", means)]


@pytest.mark.parametrize("cell", ['["a", "x"]', '{"choices": ["a", "b"]}', '["a", {"b": 1}]'])
def test_several_choices_are_refused(tmp_path, cell):
    says = "line 2: several classes for one image"
    assert says in refusal(written(tmp_path, csv_text([("0.png", cell)])))


@pytest.mark.parametrize(
    ("classes", "cells"),
    [
        (["1.0", "2.0"], ["1.0", "2.0"]),
        (["-1", "1"], ["-1", "1"]),
        (["1", "1.0"], ["1.0", "1"]),
        (["-1", "1.0"], ["-1", ""]),
    ],
)
def test_labels_that_are_the_classes_stay_as_they_are(tmp_path, classes, cells):
    file = written(tmp_path, csv_text([(f"{i}.png", cell) for i, cell in enumerate(cells)]))
    assert [label for _, label in read_csv(file, classes=classes).rows] == cells
    others = [label for _, label in read_csv(file, classes=["1", "2"]).rows]
    assert others == [cell.removesuffix(".0") if cell != "-1" else "" for cell in cells]


# ------------------------------------------------------------------------------------ what is bad
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("0.png,cat\n1.png,dog\n", "must begin with the line file,label"),
        ("\x1b[2J,cat\n", "must begin"),
        ("file\n0.png\n", "no column called label"),
        ("file,label\n0.png,cat,dog\n", "line 2: 3 cells under 2 columns"),
        ("file,label\n0.png,cat\n,dog\n", "line 3: a label, but no image"),
        ('file,label\n0.png,"cat\n1.png,dog\n', "line 2: a quote that is never closed"),
        ('file,label\n0.png,cat\n1.png,"dog"s\n', "line 3: "),
        ('sep=,\nfile,label\n0.png,"cat\n', "line 3: a quote"),
        (f"file,label\n0.png,{'x' * 200_000}\n", "line 2: field larger than field limit"),
        ("file,label\n0.png,c\0at\n", "line 2 has a NUL"),
        (b"file,label\n0.png,\xca\xee\xf8\xea\xe0\n", "line 2 is not utf-8; save it as UTF-8"),
        ("file,label\n0.png,cat\n".encode("utf-16-le"), "line 1 has a NUL"),
        (b"\xff\xfef\0i", None),
        (b"\xff\xfef\0i\0l", "is not utf-16"),
        ('file,label\n0.png,"{""choices"": [""a"", ""b""]}"\n', "line 2: several classes"),
    ],
)
def test_what_is_no_table_of_labels(tmp_path, content, says):
    message = refusal(written(tmp_path, content))
    assert says is None or says in message


odd = st.one_of(
    st.binary(max_size=60),
    st.text("a,;\t\"'\n\r\\ -1|=\0", max_size=60).map(lambda text: text.encode()),
    st.sampled_from(["utf-16", "utf-32-be", "latin-1"]).map("sep=;\nfile;label\né;ü".encode),
)


@settings(max_examples=200, deadline=None)
@given(odd, st.sampled_from([b"", b"file,label\n", b"\xef\xbb\xbf", b"\xff\xfe", b"sep=;\n"]))
def test_any_bytes_are_rows_or_one_line(tmp_path_factory, content, begin):
    file = tmp_path_factory.getbasetemp() / "odd.csv"
    file.write_bytes(begin + content)
    message = ""
    try:
        assert all(name for name, _ in read_csv(file).rows)
    except UserError as error:
        message = str(error)
    assert printable(message) == message


@settings(max_examples=200, deadline=None)
@given(st.text("ab/\\.:?=d%41é \n", max_size=20), st.lists(st.text("ab/\\.é", min_size=1)))
def test_any_name_means_images_or_none(name, known):
    assert set(ImageIndex(known).positions(name)) <= set(range(len(known)))


def test_a_file_that_is_not_there(tmp_path):
    for file in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="cannot read the label file"):
            read_text(file)


# ------------------------------------------------------------------------- which image is meant
NAMES = ["cat/0.png", "cat/1.png", "dog/0.png", "dog/café.png", "my cat.png"]


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("cat/1.png", 1),
        ("1.png", 1),
        ("1", 1),
        ("/home/ann/dog/0", 2),
        ("my cat", 4),
        ("./cat/1.png", 1),
        ("cat//x/../1.png", 1),
        ("../photos/cat/1.png", 1),
        ("cat\\1.png", 1),
        (".\\dog\\0.png", 2),
        ("/home/ann/photos/cat/0.png", 0),
        ("C:\\Users\\ben\\photos\\dog\\0.png", 2),
        ("\\\\server\\share\\dog\\0.png", 2),
        (unicodedata.normalize("NFD", "dog/café.png"), 3),
        (unicodedata.normalize("NFC", "café.png"), 3),
        ("/data/upload/1/ab12cd34-1.png", 1),
        ("/data/upload/3/00aa11bb-caf%C3%A9.png", 3),
        ("/data/local-files/?d=photos/dog/0.png", 2),
        ("/data/local-files/?d=my%20cat.png", 4),
        ("s3://bucket/photos/cat/0.png", 0),
        ("https://host:8080/photos/my%20cat.png?token=a/b#c", 4),
        ("file:///home/ann/photos/cat/1.png", 1),
    ],
)
def test_a_name_means_an_image(name, means):
    for form in ("NFC", "NFD"):  # as the file system of a Mac has them
        names = [unicodedata.normalize(form, known) for known in NAMES]
        assert find_names(names, [name], Path("l.csv")) == [means]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("0.png", "may be several images"),
        ("fox/0.png", "unknown images: fox/0.png"),
        ("/home/ann/fox/1.png", "unknown images"),
        ("2", "unknown images"),
        ("1.jpg", "the suffix differs from cat/1.png; write that, or leave the suffixes out"),
        ("cat/0.x", "the suffix differs from cat/0.png"),
        ("x1.png", "unknown images"),
        ("", "unknown images"),
        ("/", "unknown images"),
        ("s3://[", "unknown images"),
        ("CAT/1.PNG", "upper and lower case differ from cat/1.png"),
        ("/data/upload/1/ab12cd34-0.png", "may be several images"),
    ],
)
def test_a_name_that_means_none_or_several(name, says):
    with pytest.raises(UserError, match=r"l\.csv") as caught:
        find_names(NAMES, [name], Path("l.csv"))
    assert says in str(caught.value)


@pytest.mark.parametrize("files", [["0.jpg", "0.png"], ["a/0.jpg", "b/0.jpg"], ["a/0.x", "a/0.y"]])
def test_a_name_without_suffix_of_several_images(tmp_path, files):
    with pytest.raises(UserError, match="0 may be several images"):
        find_names(files, ["0"], tmp_path)


@pytest.mark.parametrize("line", ["0.png 1", "a/0.png\t3", "0.png, 2"])
def test_lines_of_names_and_labels_are_recognised(tmp_path, line):
    with pytest.raises(UserError, match="lines seem to hold a name and a label"):
        find_names(["a/0.png", "a/1.png"], [line], tmp_path)


@pytest.mark.parametrize("begin", [b"PK\3\4", b"\xd0\xcf\x11\xe0", b"PK\3\4file,label"])
def test_a_workbook_is_recognised(tmp_path, begin):
    (tmp_path / "l.csv").write_bytes(begin + bytes(20))
    assert "it is an Excel workbook or an archive; save the sheet as CSV" in refusal(
        tmp_path / "l.csv"
    )


def test_the_longest_end_counts():
    index = ImageIndex(["0.png", "cat/0.png", "a/b/0.png", "we\\ird.png", "we/ird.png"])
    assert index.positions("/x/cat/0.png") == [1]
    assert index.positions("/x/dog/0.png") == [0]
    assert index.positions("b/0.png") == [2]
    assert index.positions("we\\ird.png") == [3]  # exactly so
    assert index.positions(".\\we\\ird.png") == [3, 4]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True))
def test_every_image_is_found_by_its_own_name(names):
    assert find_names(names, names, Path("l.csv")) == list(range(len(names)))


def test_skipped_images_are_known_and_train_nothing(tmp_path):
    train = replace(images([0, 1], ["a.png", "b.png"]), skipped=("broken.png",))
    named = ["broken.png", "b.png"]
    assert find_images(Splits(train, None), named, tmp_path).tolist() == [SKIPPED, 1]
    with pytest.raises(UserError, match=r"remove their rows or give --data\.on_error skip"):
        find_images(Splits(train, None), [*named, "gone.png"], tmp_path)
    splits = Splits(replace(train, on_error="skip"), None)
    assert find_images(splits, [*named, "gone.png"], tmp_path).tolist() == [SKIPPED, 1, MISSING]
    with pytest.raises(UserError, match=r"names 1 unknown images: gone\.png"):
        find_images(splits, ["gone.png"], tmp_path)


@pytest.mark.parametrize(
    ("content", "column", "splits"),
    [
        ("file,label,split\n0.png,cat,Train\n1.png,dog,TEST\n2.png,,val\n", "split", "tev"),
        ("set;file;label\n;0.png;cat\ndev;1.png;dog\n;2.png;\n", "set", "tvt"),
        ("file,label,is_valid\n0.png,cat,no\n1.png,dog,Yes\n2.png,,False\n", "is_valid", "tvt"),
        (
            "file,label,is_training_image\n0.png,cat,1\n1.png,dog,0\n2.png,,1\n",
            "is_training_image",
            "tet",
        ),
        ("file,label,split\n0.png,cat,3\n1.png,dog,test\n2.png,,train\n", "split", "3et"),
        ("file,label,usage\n0.png,cat,Training\n1.png,dog,X\n2.png,,Training\n", "usage", "tXt"),
        ("file,label,set\n0.png,cat,3\n1.png,dog,test\n2.png,,1\n", None, ""),
        ("file,label,is_valid\n0.png,cat,1\n1.png,dog,0\n2.png,,1\n", None, ""),  # of quality
        ("file,label,split\n0.png,cat,test\n1.png,dog,test\n2.png,,test\n", None, ""),
        ("file,label,is_blurred\n0.png,cat,0\n1.png,dog,1\n2.png,,0\n", None, ""),
    ],
)
def test_a_column_that_says_what_a_row_is_for(tmp_path, content, column, splits):
    table = read_csv(written(tmp_path, content))
    assert table.rows == ROWS
    assert (table.splits and table.splits.name) == column
    names = {"t": "train", "e": "test", "v": "validation"}
    assert (table.splits.splits if table.splits else []) == [names.get(k, k) for k in splits]


# -------------------------------------------------------------------------- Windows-1252, of Excel
@pytest.mark.parametrize(
    "words", [["Löwe", "Käfer"], ["été", "Café"], ["Fuß", "Übung"], ["balón", "camión"]]
)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_western_text_is_read(words, encoding, tmp_path):
    text = "".join(f"{i}.png;{word}\r\n" for i, word in enumerate(words))
    table = read_csv(written(tmp_path, ("file;label\r\n" + text).encode(encoding)))
    assert [label for _, label in table.rows] == words
    assert table.western
    assert (
        western_note(words) == f"; it is no UTF-8 and is read as Windows-1252: {', '.join(words)}"
    )


@pytest.mark.parametrize(
    ("words", "encoding"),
    [
        ("Кошка,Кот", "cp1251"),
        ("я,ю", "cp1251"),
        ("Γάτα", "cp1253"),
        ("żółw", "cp1250"),
        ("dům", "cp1250"),  # would be "dùm"
        ("kočka", "cp1250"),
        ('"ağaç, kuş"', "cp1254"),  # would be "aðaç, kuþ"
        ("ağaç", "iso8859-9"),
        ("șarpe", "iso8859-16"),
        ("kaķis", "cp1257"),
        ("karvė", "cp1257"),
        ("Garçon", "cp1252"),  # é and ö are plain, this is not
        ("Ñandú", "cp1252"),
        ("Löwe", "mac_roman"),
        ("Löwe", "cp850"),
        ("狗", "gbk"),
        ("猫", "shift_jis"),
        ("Café€", "cp1252"),
    ],
)
def test_what_may_be_another_encoding_is_refused(words, encoding, tmp_path):
    file = written(tmp_path, ("file,label\n0.png," + words).encode(encoding))
    with pytest.raises(UserError, match="line 2 is not utf-8; save it as UTF-8"):
        read_csv(file)


def test_no_letter_of_another_code_page_is_read_as_one_of_windows_1252():
    for page in ("cp1250", "cp1254", "cp1257"):
        for byte in range(0x80, 0x100):
            content = b"a" + bytes([byte]) + b"a"
            if is_western(content):
                assert content.decode(page) == content.decode("cp1252")


def test_a_damaged_utf8_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not utf-8"):
        read_csv(written(tmp_path, "file,label\n0.png,Löwe\n1.png,Käfer\n".encode()[:-6] + b"\xe4"))


# ----------------------------------------------------------------------- files for a spreadsheet
FORMULAS = ["=1+1", "+SUM(1)", "-cmd|' /C calc'!A0", "@x", "'=1+1", "''=x", "=a,b", '="a"', "=a\nb"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula_and_each_comes_back(text, tmp_path):
    content = csv_text([(text, "cat"), ("0.png", text)])
    for line in csv.reader(io.StringIO(content)):
        assert not any(cell[:1] in "=+-@" for cell in line)
    assert read_csv(written(tmp_path, content)).rows == [(text, "cat"), ("0.png", text)]


@pytest.mark.parametrize("text", ["5", "-5", "+5", "-0.25", "cat", "a=b", "'cat'", "x-1"])
def test_what_is_no_formula_stays_as_it_is(text, tmp_path):
    content = csv_text([("0.png", text)])
    assert content == f"file,label\n0.png,{text}\n"
    assert read_csv(written(tmp_path, content)).rows == [("0.png", text)]


@settings(deadline=None)
@given(
    st.lists(st.tuples(*[st.text("=+-@'\"a1.,; \n", min_size=1).map(str.strip)] * 2), max_size=5)
)
def test_any_text_comes_back(rows):
    rows = [row for row in rows if row[0] and is_label(row[1])]
    with tempfile.TemporaryDirectory() as folder:
        table = read_csv(written(Path(folder), csv_text(rows)))
    assert table.rows == [*map(tuple, rows)]


@pytest.mark.parametrize(
    ("name", "can"),
    [
        ("a.png", True),
        ("ü = 1.png", True),
        ("a\nb.png", True),
        (" a.png", False),
        ("\udcff", False),
    ],
)
def test_names_that_a_csv_can_carry(name, can):
    assert can_be_listed(name) is can


def test_further_columns_are_passed_over_and_no_formula_either(tmp_path):
    columns = ("file", "label", "suggested", "score")
    row = ("=1+1.png", "+cat", "@dog", "0.25")
    content = csv_text([row], columns)
    assert content.splitlines() == ["file,label,suggested,score", "'=1+1.png,'+cat,'@dog,0.25"]
    assert read_csv(written(tmp_path, content)).rows == [row[:2]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("file,label\n" + "y" * 140_000 + ",a\n", "line 2: field larger than field limit"),
        ('file,label\na.png,"cat\nb.png,dog\n', "line 2: a quote that is never closed"),
        ('file,label\n"a"b.png,cat\n', "line 2"),
        ("file,label\na.png,\0cat\n", "line 2 has a NUL character"),
        ("file,label\na.png," + "c" * 1001 + "\n", "has a class of 1,001 characters"),
        ("\x1b[31mfile\x07,lab\x1bel\n", "must begin with the line file,label"),
    ],
)
def test_hostile_tables_are_one_line_that_echoes_no_control(content, says, tmp_path):
    with pytest.raises(UserError) as caught:
        read_csv(written(tmp_path, content))
    assert says in str(caught.value)
    assert one_line(caught.value).isprintable()


def test_a_label_file_may_have_as_many_rows_as_imagenet_21k():
    assert 14_197_122 * len("n01440764/n01440764_10026.JPEG,n01440764\n") < MOST_BYTES


def test_what_is_no_regular_file_is_refused(make_irregular, tmp_path):
    make_irregular(tmp_path / "l.csv")
    with pytest.raises(UserError, match="cannot read the label file"):
        read_csv(tmp_path / "l.csv")
