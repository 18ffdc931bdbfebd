"""What --labels names, and the folders that carry it."""

from pathlib import Path

import pytest

from shared.config.labelset import LabelSet, parse_folder
from shared.config.methods import METHODS
from shared.runtime.errors import UserError


def test_shares():
    labels = LabelSet.parse("12.5pct")
    assert (labels.tag, labels.share, labels.title) == ("12.5pct", 0.125, "12.5%")
    assert (labels.per_class, labels.file, labels.csv_file) == (None, None, None)


@pytest.mark.parametrize("number", [100 / 3, 0.1 + 0.2, 1 / 7, 5e-5 / 3])
def test_shares_as_python_prints_them(number):
    text = f"{number:.20f}".rstrip("0") + "pct" if number < 1e-4 else f"{number!r}pct"
    assert LabelSet.parse(text).share == pytest.approx(number / 100, rel=1e-12)


@pytest.mark.parametrize(
    "bad", [f"1.{'3' * 21}pct", "1000pct", f"{'9' * 13}random", "1" * 5000 + "perclass"]
)
def test_a_number_that_is_too_long_is_said_to_be(bad):
    with pytest.raises(UserError, match="the number is too long; a share has at most 3 digits"):
        LabelSet.parse(bad)


def test_numbers_per_class():
    labels = LabelSet.parse("3perclass")
    assert (labels.tag, labels.per_class, labels.title) == ("3perclass", 3, "3 per class")
    assert (labels.share, labels.file) == (None, None)


@pytest.mark.parametrize(
    ("text", "title"), [("14random", "14 at random"), ("14suggested", "14 suggested")]
)
def test_numbers_in_all(text, title):
    labels = LabelSet.parse(text)
    assert (labels.tag, labels.number, labels.title) == (text, 14, title)
    assert (labels.share, labels.per_class, labels.file, labels.choice) == (None, None, None, None)
    assert (labels.random or labels.suggested) == 14
    assert labels.before_choice.random == 14
    assert labels.before_choice.text == text  # as the person wrote it, for messages


@pytest.mark.parametrize("bad", ["0random", "1random", "1suggested", "0suggested"])
def test_a_number_that_trains_nothing(bad):
    with pytest.raises(ValueError, match=f"labels={bad}: a classifier needs 2 labels or more"):
        LabelSet.parse(bad)


@pytest.mark.parametrize("suffix", ["csv", "txt"])
def test_files(suffix):
    text = f"some/where/mine.v2.{suffix}"
    labels = LabelSet.parse(text)
    assert (labels.text, labels.tag, labels.title) == (text, "mine.v2", "mine.v2")
    assert labels.file == Path(text)
    assert labels.csv_file == (Path(text) if suffix == "csv" else None)


@pytest.mark.parametrize("name", ["1pct", "12.5pct", "3perclass", "30random", "30suggested"])
@pytest.mark.parametrize("suffix", ["csv", "TSV", "txt"])
def test_a_file_called_as_drawn_labels_has_folders_of_its_own(name, suffix):
    """Else its artifacts were taken for outdated ones of the drawn labels, and made anew."""
    labels, drawn = LabelSet.parse(f"mine/{name}.{suffix}"), LabelSet.parse(name)
    assert labels.file == Path(f"mine/{name}.{suffix}")
    assert labels.folder("finetune", 0) != drawn.folder("finetune", 0)
    assert LabelSet.of_tag(labels.tag).file is not None
    assert LabelSet.of_tag(labels.tag).title == labels.title != drawn.title


@pytest.mark.parametrize("text", ["student-x.csv", "a/student-1pct.txt", "student--seed0.tsv"])
def test_a_file_whose_folder_would_be_that_of_another_method(text):
    """``supervised`` with ``student-x`` was called as ``supervised-student`` with ``x``."""
    labels = LabelSet.parse(text)
    other = LabelSet.of_tag(Path(text).stem.removeprefix("student-"))
    for seed in (0, 7):
        names = [of.folder(method, seed) for of in (labels, other) for method in METHODS]
        assert len(set(names)) == len(names)
    assert LabelSet.parse("student.csv").tag == "student"


def test_a_tag_that_reads_like_a_file_is_a_whole_tag():
    labels = LabelSet.parse("labels.csv.csv")
    assert LabelSet.of_tag(labels.tag).tag == labels.tag == "labels.csv"


@pytest.mark.parametrize(
    "bad",
    [
        *("", "1%", "ten", "1.2.3pct", "..pct", "-1pct", "labels.json", "-1random", "1.5random"),
        *("١٠pct", "３perclass", "1٣random", "²suggested", "1_0pct"),  # digits of other scripts
    ],
)
def test_what_is_no_label_set(bad):
    with pytest.raises(ValueError, match="labels must be 1pct, 10pct, 100pct, <x>pct") as error:
        LabelSet.parse(bad)
    assert repr(bad) in str(error.value)


@pytest.mark.parametrize("bad", ["0pct", "0.0pct", "100.1pct", "200pct"])
def test_a_share_out_of_range(bad):
    with pytest.raises(ValueError, match=f"labels={bad}: the share must be above 0 and at most"):
        LabelSet.parse(bad)


@pytest.mark.parametrize(
    "given", ["1pct", "4perclass", "9random", "9suggested", "photos/my-labels-seed3.csv"]
)
@pytest.mark.parametrize("stage", ["finetune", "supervised-student", "assess"])
def test_folders_there_and_back(given, stage):
    labels = LabelSet.parse(given)
    name = labels.folder(stage, 7)
    assert name == f"{stage}-{labels.tag}-seed7"
    assert parse_folder(name, stage) == (labels.tag, 7)
    assert LabelSet.of_tag(labels.tag).title == labels.title
    assert parse_folder("pretrain", stage) is None
    for seed in ("٣", "07", "-7", ""):  # no folder of ours
        assert parse_folder(labels.folder(stage, 7).removesuffix("7") + seed, stage) is None
    assert parse_folder(name, "distill") is None
