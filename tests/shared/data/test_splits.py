"""Which images are for testing: drawn once, by name where labels come from a file, or listed."""

import json
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from shared.config.labelset import LabelSet
from shared.config.sections import Data
from shared.data.images import UNLABELED, Splits
from shared.data.label_files import HELD_OUT, LabelTable, SplitColumn, find_images, read_csv
from shared.data.labels import draw_labels
from shared.data.sources import OPENED, open_data
from shared.data.splits import (
    LOCKBOX,
    column_line,
    doubts_on_classes,
    draw_of_pixels,
    for_testing,
    gives_the_classes,
    hold_out,
    labeled_by,
    no_test_line,
    one_side_line,
    same_classes,
    split_by_column,
    split_line,
    stratified,
    table_line,
    untested_line,
    untrained_line,
)
from shared.runtime.errors import UserError
from tests.support.photos import class_folders, make_folder
from tests.support.sources import HALVES, STRUCTS, error_of, images, opened, parquet


def table(*rows: tuple[str, str]) -> LabelTable:
    return LabelTable(Path("l.csv"), ("file", "label"), list(rows))


def named(n: int, classes: int = 2) -> tuple[list[str], LabelTable]:
    """Names of n images, and a table that labels them."""
    names = [f"{i:04d}.png" for i in range(n)]
    return names, table(*((name, "abcdef"[i % classes]) for i, name in enumerate(names)))


def drawn(n: int, labeled: int, **options) -> Splits:
    """The splits of n images of two classes, of which the first ones are labeled."""
    names, rows = named(n)
    few = labeled_by(images([-1] * n, names), rows._replace(rows=rows.rows[:labeled]))
    return hold_out(Splits(few, None), Data(**options), by_name=True)


# ------------------------------------------------------------------------------------- the lockbox
def held(hold_out: str, **options) -> Splits:
    return open_data(Data(hold_out=hold_out, image_size=8, **options), LabelSet.parse("1pct"))


def test_no_choice_sees_the_lockbox():
    """Neither an image nor a copy of one; and it is the same at every seed, loaded in any way."""
    box, other = held("lockbox"), held("lockbox", split_seed=7, test_fraction=0.5)
    assert list(box.test.names) == list(other.test.names)
    every = {*box.train.names, *box.test.names}
    assert len(every) == len(box.train) + len(box.test) == 1797
    tuned = held("tuning", split_seed=101)
    assert {*tuned.train.names, *tuned.test.names} == set(box.train.names)
    assert len(tuned.test) == pytest.approx(0.2 * len(box.train), abs=1)

    some = tuned.test.select(np.arange(40)), box.test.select(np.arange(10))
    for part, in_box in zip(some, (False, True), strict=True):
        of_files = replace(part, pixels=None)
        for index in range(len(part)):
            assert (draw_of_pixels(part, index) < LOCKBOX) == in_box
        assert draw_of_pixels(of_files, 3) == draw_of_pixels(part, 3)


def test_test_images_are_the_lockbox():
    train, test = images([0, 1] * 20), images([0, 1] * 5)
    assert hold_out(Splits(train, test), Data(hold_out="lockbox"), False).test is test
    tuned = hold_out(Splits(train, test), Data(hold_out="tuning"), False)
    assert (len(tuned.train), len(tuned.test)) == (32, 8)
    seen_by_stage_1 = for_testing(train, np.arange(4))  # which are test images
    tuned = hold_out(Splits(seen_by_stage_1, test), Data(hold_out="tuning"), False)
    assert len(tuned.train) + len(tuned.test) == 36
    assert not len(tuned.train.held_out)


def test_choices_know_the_names_of_the_lockbox():
    """A file of labels may name its images: they are held out, and not unknown."""
    box, tuned = held("lockbox"), held("tuning", split_seed=101)
    places = find_images(tuned, [*box.test.names, *tuned.train.names[:3]], Path("labels.csv"))
    assert places.tolist() == [HELD_OUT] * len(box.test) + [0, 1, 2]
    given = images([0, 1], ["t0.png", "t1.png"])
    names = [f"{i}.png" for i in range(40)]
    tuned = hold_out(Splits(images([0, 1] * 20, names), given), Data(hold_out="tuning"), False)
    assert find_images(tuned, ["t0.png"], Path("labels.csv")).tolist() == [HELD_OUT]


def test_too_small_for_a_lockbox():
    box = held("lockbox")
    alone = np.zeros(100, np.int64)
    alone[0] = 1  # the only one of its class, and in the lockbox
    few = replace(box.test.select(np.arange(100)), labels=alone)
    for bad in (
        few,
        box.train.select(np.arange(3)),
        replace(box.train, labels=-1 + 0 * box.train.labels),
    ):
        with pytest.raises(UserError, match=r"data.hold_out=lockbox: of \d+ labeled images the"):
            hold_out(Splits(bad, None), Data(hold_out="lockbox"), False)


# ------------------------------------------------------------------------- the same share of each
@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=12), st.integers(0, 2**32 - 1), st.data())
def test_the_stratified_part_is_that_of_scikit_learn(counts, seed, draw):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 3, counts))
    size = draw.draw(st.integers(len(counts), len(labels) - len(counts)))
    _, expected = train_test_split(
        np.arange(len(labels)), test_size=size, stratify=labels, random_state=seed
    )
    np.testing.assert_array_equal(stratified(labels, size, seed), np.sort(expected))


# ---------------------------------------------------------------------------- drawn by their names
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(8, 200), min_size=2, max_size=5))
def test_more_labels_move_no_image(seed, numbers):
    tested: set[str] = set()
    trained: dict[str, list[str]] = {}
    for labeled in sorted(numbers):
        train, test = drawn(200, labeled, split_seed=seed, test_fraction=0.3)
        now = set() if test is None else set(test.names)
        assert tested <= now
        for label, names in trained.items():  # but for the last one of a class
            assert len(names) == 1 or now.isdisjoint(names), label
        trained = {k: train.names[train.labels == i].tolist() for i, k in enumerate("ab")}
        assert sum(map(len, trained.values())) + len(now) == labeled
        tested = now


def test_the_share_is_that_of_the_option_and_each_name_has_its_chance():
    for fraction in (0.1, 0.2, 0.5):
        _, test = drawn(2000, 2000, test_fraction=fraction)
        assert test is not None
        assert abs(len(test) / 2000 - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / 2000)
    first, second = (set(drawn(500, 500, split_seed=seed)[1].names) for seed in (0, 1))
    assert 5 < len(first & second) < 50


def test_stage_1_sees_all_images_and_test_images_have_no_label_there():
    train, test = drawn(100, 50)
    assert test is not None
    assert len(train) == 100
    assert train.names[train.held_out].tolist() == test.names.tolist()
    assert (train.labels[train.held_out] == UNLABELED).all()
    assert (test.labels != UNLABELED).all()
    assert sorted([*train.training_ids, *train.held_out]) == list(range(100))
    assert drawn(100, 10).train.names.tolist() == train.names.tolist()


def test_accents_in_a_name_do_not_matter_to_the_draw():
    names = [f"é{i}.png" for i in range(100)]
    sides = []
    for form in ("NFC", "NFD"):
        known = images([i % 2 for i in range(100)], [unicodedata.normalize(form, n) for n in names])
        sides.append(hold_out(Splits(known, None), Data(), by_name=True).train.held_out.tolist())
    assert sides[0] == sides[1]


def test_a_class_that_is_drawn_as_a_whole_keeps_one_image_for_training():
    names = drawn(100, 100).test.names  # those that are drawn
    few = images([0, 0, 0, 1, 1], [*names[:3], "0000.png", "0001.png"])
    splits = hold_out(Splits(few, None), Data(), by_name=True)
    assert (splits.train.labels == 0).sum() == 1
    assert (splits.test.labels == 0).sum() == 2
    line = one_side_line(splits, Data())
    assert "no test image of class1; all images of class0 were drawn for testing" in line
    assert one_side_line(drawn(100, 100), Data()) == ""
    alone = hold_out(Splits(images([0], [names[0]]), None), Data(), by_name=True)
    assert alone.test is None


def test_ten_labels_without_a_test_image_say_so():
    none = images([0, 1], ["0001.png", "0000.png"])
    assert hold_out(Splits(none, None), Data(), by_name=True).test is None
    line = no_test_line(none, Data(), by_name=True)
    assert "of the 2 labeled images none is drawn" in line
    assert "give --data.test" in line
    assert "class1 with one image" in no_test_line(images([0, 0, 1]), Data(), by_name=False)


def test_the_draw_is_what_it_was():
    """Recorded: artifacts depend on it."""
    numbers = [int(name[:4]) for name in drawn(40, 40).test.names]
    assert numbers == [4, 8, 17, 24, 26, 28, 29, 34]


# ------------------------------------------------------------------------------ labels of a file
def test_labels_of_a_file_take_the_place_of_others():
    few = labeled_by(images([0, 0, 1]), table(("0/0.png", "x"), ("1/2.png", "w"), ("0/1.png", "")))
    assert few.classes == ("w", "x")
    assert few.labels.tolist() == [1, UNLABELED, 0]


def test_one_image_has_one_label_also_where_it_is_tested():
    for rows in ([("0/0.png", "x"), ("./0/0.png", "y")], [("0/0.png", "x"), ("0.png", "y")]):
        with pytest.raises(UserError, match=r"l.csv gives several labels to 0/0.png"):
            labeled_by(images([0, 1]), table(*rows))


@pytest.mark.parametrize(
    ("classes", "theirs", "own"),
    [
        (("a", "b"), "c", True),
        (("a", "b"), "b", False),
        ((), "a", True),
        (("e\u0301",), "é", False),
    ],
)
def test_whose_classes_they_are(classes, theirs, own):
    assert gives_the_classes(table(("x", theirs), ("y", "")), images([-1], classes=classes)) == own


def test_the_line_on_a_file():
    splits = drawn(100, 50)
    rows = named(50)[1]
    further = [("0099.png", ""), rows.rows[0]]
    line = table_line(rows._replace(rows=[*rows.rows, *further]), splits)
    held_out = len(splits.test)
    assert line == (
        "labels: l.csv, columns file and label, 50 labels of 2 classes, 1 row repeated,"
        f" 1 row without a label (empty, or -1), {held_out} rows of images for testing; a 25, b 25"
    )
    missing = rows._replace(rows=[*rows.rows, ("gone.png", "a")])
    train = replace(splits.train, on_error="skip", skipped=("0000.png", *splits.train.skipped))
    assert "1 row of images that are not there: gone.png; a 26" in table_line(
        missing, Splits(train, splits.test)
    )


@pytest.mark.parametrize(
    ("images_of", "says"),
    [
        ({"cat": 3, "Cat": 1}, "; cat and Cat are different classes by upper and lower case"),
        ({"a": 1, "A": 1, "b": 2, "B": 1}, "; a and A, b and B are different"),
        ({"0.5": 1, "1.25": 1, "2": 1}, "each number is taken as a class: 0.5, 1.25"),
        ({f"img{k}": 1 for k in range(40)}, "40 classes have one image each: are they meant"),
        ({"None": 4, "x": 4}, "None is taken as the name of a class"),
        ({"cat": 1, "dog": 1, "1": 4, "2.0": 3}, ""),
    ],
)
def test_doubts_on_classes(images_of, says):
    line = doubts_on_classes(images_of)
    assert says in line
    assert bool(line) == bool(says)


@pytest.mark.parametrize("kind", ["labels", "metadata", "parquet"])
def test_a_column_of_splits_is_used(tmp_path, kind, capsys):
    """Rows of test are tested on, and no row but those of train has a label that training sees."""
    names = [f"{i}.png" for i in range(20)]
    words = ["train"] * 11 + ["extra"] + ["test"] * 5 + ["val"] * 3
    rows = [f"{n},{'ab'[i % 2]},{words[i]}" for i, n in enumerate(names)]
    labels, source = "100pct", tmp_path
    if kind == "parquet":
        source = parquet(tmp_path / "a.parquet", image=STRUCTS, label=HALVES, Split=words)
    else:
        make_folder(tmp_path, names)
        file = "metadata" if kind == "metadata" else "l"
        file = listed(tmp_path / f"{file}.csv", *rows, head="file,label,Split")
        labels = labels if kind == "metadata" else str(file)
    OPENED.clear()
    splits = open_data(Data(train=str(source)), LabelSet.parse(labels), progress=True)
    said = (
        "splits: column Split, train 11, test 5, validation 3; 1 row of extra train nothing;"
        " tested on test"
    )
    assert said in (printed := capsys.readouterr().out)
    assert "2 classes, 0 images without one" in printed or kind == "labels"
    drawn_ones = draw_labels(splits, LabelSet.parse(labels), 0)
    assert drawn_ones.ids.tolist() == [
        i for i, name in enumerate(splits.train.names) if int(name.removesuffix(".png")) < 11
    ]
    assert {*splits.test.names} == {
        name.removesuffix(".png" * (kind == "parquet")) for name in names[12:17]
    }
    assert len(splits.train) == 20


@pytest.mark.parametrize(
    ("words", "labels", "tested"),
    [
        (["test", "validation", "train", "train"], [0, 1, 0, 1], "test"),
        (["test", "validation", "train", "train"], [-1, 1, 0, 1], "validation"),
        (["test", "extra", "train", "train"], [-1, 1, 0, 1], ""),
    ],
)
def test_what_is_tested_on_where_a_column_has_splits(words, labels, tested, tmp_path):
    column = SplitColumn("split", words)
    train = images(labels)
    splits, kind = split_by_column(Splits(train, None), train.names, column, tmp_path)
    assert kind == tested
    assert [*splits.test.labels] == [labels[words.index(tested)]] if tested else not splits.test
    assert splits.train.held_out.tolist() == [0, 1]
    assert splits.train.labels.tolist() == [-1, -1, 0, 1]
    line = split_line(column, kind)
    assert line.endswith(f"tested on {tested}" if tested else "1 row of extra train nothing")
    other, kind = split_by_column(Splits(train, images([1])), train.names, column, tmp_path)
    assert len(other.test) == 1
    assert kind == ""


def test_the_line_on_a_column():
    known = images([0, 1, -1], classes=("None", "x"))
    assert column_line("species", known) == (
        "labels: column species, 2 classes, 1 image without one (empty, or -1); None 1, x 1;"
        " None is taken as the name of a class (an empty cell is no label)"
    )
    assert column_line("label", images([-1])) == (
        "labels: column label, 0 classes, 1 image without one (empty, or -1)"
    )


def test_classes_are_matched_by_their_composed_names():
    train = images([0, 1], classes=("a", "e\u0301"))
    test = replace(images([0, -1]), classes=("é",))
    assert same_classes(test, train)[0].labels.tolist() == [1, UNLABELED]
    with pytest.raises(UserError, match="the training images lack: z"):
        same_classes(replace(test, classes=("z",)), train)


@pytest.mark.parametrize("extra", [("a", "b"), ("b", "c"), ("0", "a")])
def test_a_class_that_only_test_images_have_so_far_counts_as_wrong(extra):
    """Nobody has labeled one for training yet; the file of labels grows."""
    train = replace(images([0, 1, -1], classes=("a", "c")), edited=True)
    test = images([0, -1, len(extra) - 1], classes=extra)
    tested, trained = same_classes(test, train)
    assert tested.classes == trained.classes == tuple(sorted({"a", "c", *extra}))
    assert [trained.classes[k] for k in trained.labels[:2]] == ["a", "c"]
    assert trained.labels[2] == tested.labels[1] == UNLABELED
    assert [tested.classes[tested.labels[i]] for i in (0, 2)] == [extra[0], extra[-1]]


def test_a_class_of_test_images_alone_is_named_with_a_similar_one():
    train = replace(images([0, 1, -1], classes=("seven", "zero")), edited=True)

    def line(*classes: str) -> str:
        test, both = same_classes(images([0, 1], classes=classes), train)
        return untrained_line(Splits(both, test))

    assert line("sevn", "zero") == (
        "note: no training image has the label of sevn, which test images have: they count as"
        " wrong; did you mean seven by sevn?"
    )
    assert line("eight", "zero").endswith("they count as wrong")
    assert line("seven", "zero") == ""
    assert untrained_line(Splits(train, None)) == ""


def test_a_class_of_training_labels_alone_is_named_with_a_similar_one():
    train = images([0, 0, 1, 1, 2, -1], classes=("two", "zero", "zeroo"))

    def line(*labels: int, classes: tuple[str, ...] = train.classes) -> str:
        test = images(labels, classes=classes)
        return untested_line(Splits(replace(train, classes=classes), test))

    assert line(0, 1, -1) == (
        "note: no test image has the label of zeroo (1), which training images have: that is not"
        " measured; did you mean zero by zeroo?"
    )
    assert "did you mean" not in line(0, 1, classes=("two", "grade1", "grade2"))
    assert "did you mean" not in line(1, classes=("cat", "car", "dog"))  # cat has as many labels
    assert line(0, 1, 2) == line(-1) == untested_line(Splits(train, None)) == ""


def test_of_one_misspelling_one_note_tells():
    train, test = (
        images([0, 0, 1], classes=("two", "zero")),
        images([0, 1], classes=("two", "zeroo")),
    )
    tested, trained = same_classes(test, replace(train, edited=True))
    splits = Splits(trained, tested)
    assert "did you mean zero by zeroo?" in untrained_line(splits)
    assert "did you mean" not in untested_line(splits)


def test_labels_may_be_missing_where_no_test_class_is_known():
    folders, test = images([0, 1], classes=("2020", "2021")), images([0, 1], classes=("a", "b"))
    with pytest.raises(
        UserError, match="if a file labels the training images, give it with --labels"
    ):
        same_classes(test, folders)


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (("A", "B"), "upper and lower case of A and a differ"),
        (("a", "B"), "upper and lower case of B and b differ"),
        (("x", "y"), "the training images have a, b; write the classes alike"),
    ],
)
def test_test_classes_that_no_training_image_has_are_refused(classes, says, edited):
    train = replace(images([0, 1], classes=("a", "b")), edited=edited)
    with pytest.raises(UserError, match=says):
        same_classes(images([0, 1], classes=classes), train)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["0.png,a", "1.png,b", "0.png,b"], "to 0.png: a in line 2, b in line 4"),
        (["./0.png,a", "", "0,b"], "to 0.png: a in line 2, b in line 4"),
        (["0.png,a", "0.png,b", "1.png,a", "1.png,b"], "b in line 3; and to 1 other image"),
    ],
)
def test_several_labels_are_named_with_their_lines(rows, says, tmp_path):
    file = tmp_path / "l.csv"
    file.write_text("\n".join(["file,label", *rows]))
    known = images([-1, -1], ["0.png", "1.png"], classes=("a", "b"))
    for refuse in (
        lambda: labeled_by(known, read_csv(file)),
        lambda: draw_labels(
            Splits(replace(known, labels=np.array([0, 1])), None), LabelSet.parse(str(file)), 0
        ),
    ):
        with pytest.raises(UserError, match=re.escape(says)):
            refuse()


# --------------------------------------------------------------------- test images from a CSV file
def listed(path: Path, *rows: str, head: str = "file,label") -> str:
    path.write_text("\n".join([head, *rows]) + "\n")
    return str(path)


def test_listed_test_images_of_the_training_folder(tmp_path):
    root = class_folders(tmp_path / "p", 10)
    file = listed(
        tmp_path / "test.csv", "a/3.png,a", ".\\b\\4.png,b", f"{root}/c/0.png,c", "a/5.png,"
    )
    train, test = opened(root, test=file)
    assert test.names.tolist() == ["a/3.png", "b/4.png", "c/0.png"]
    assert test.labels.tolist() == [0, 1, 2]
    assert len(train) == 30
    assert train.names[train.held_out].tolist() == test.names.tolist()
    assert (train.labels == UNLABELED).sum() == 3


def test_listed_test_images_beside_the_file(tmp_path):
    """Some have the name of a training image."""
    root = class_folders(tmp_path / "p", 10)
    make_folder(tmp_path / "t", ["x.png", "a/0.png", "new.png"])
    file = listed(tmp_path / "t/test.csv", "b;a/0.png", "c;new.png", head="Label;Image")
    train, test = opened(root, test=file)
    assert test.labels.tolist() == [1, 2]
    assert len(train) == 30
    assert not len(train.held_out)
    assert not (test.pixels[0] == train.pixels[0]).all()


def test_listed_test_images_with_a_file_of_labels(tmp_path):
    root = make_folder(tmp_path / "p", [f"{i}.png" for i in range(20)])
    few = listed(tmp_path / "l.csv", *(f"{i}.png,{'xy'[i % 2]}" for i in range(10)))
    file = listed(tmp_path / "test.csv", *(f"{i}.png,{'xy'[i % 2]}" for i in range(8, 14)))
    train, test = opened(root, few, test=file)
    assert test.names.tolist() == sorted(f"{i}.png" for i in range(8, 14))
    assert set(train.names[train.labels != UNLABELED]) == {f"{i}.png" for i in range(8)}


def test_lists_of_test_images_that_are_refused(tmp_path):
    root = class_folders(tmp_path / "p", 4)
    make_folder(tmp_path, ["new.png"])
    for rows, says in [
        (["a/0.png,a", "q.png,b"], "names 1 unknown images: q.png"),
        (["a/0.png,a", "b/0.png,z"], "the training images lack: z"),
        (["a/0.png,a", "new.png,b"], "give a file for one of both"),
        (["a/0.png,a", "a/0.png,b"], "several labels to a/0.png"),
        (["a/0.png,"], "have no labels"),
    ]:
        assert says in error_of(root, test=listed(tmp_path / "test.csv", *rows))
    assert "cannot read the label file" in error_of(root, test=str(tmp_path / "none.csv"))


# -------------------------------------------------------------------------- columns of a parquet
@pytest.mark.parametrize("column", ["label", "Label", "CLASS", "class_name", "Target", "category"])
def test_columns_of_labels_by_their_names(tmp_path, column, capsys):
    path = parquet(tmp_path / "a.parquet", image=STRUCTS, place=["x"] * 20, **{column: HALVES})
    assert opened(path)[0].classes == ("0", "1")


def test_columns_of_other_names_are_named(tmp_path):
    path = parquet(tmp_path / "a.parquet", image=STRUCTS, species=HALVES)
    train, test = opened(path)
    assert train.columns == ("species",)
    assert (train.classes, test) == ((), None)
    assert opened(path, label_column="species")[0].classes == ("0", "1")
    path = parquet(tmp_path / "b.parquet", image=STRUCTS, target=HALVES, Class=HALVES)
    message = error_of(path)
    assert "b.parquet has several label columns: target, Class; choose with" in message


def test_a_file_of_labels_for_a_parquet_with_options(tmp_path):
    """An option names a column of the images or of the file; one that neither has is refused."""
    path = parquet(tmp_path / "a.parquet", photo=STRUCTS, other=STRUCTS, species=HALVES)
    file = listed(tmp_path / "l.csv", *(f"{i},{'xy'[i % 2]}" for i in range(20)), head="file,kind")
    train, _ = opened(path, file, image_column="photo", label_column="kind")
    assert train.classes == ("x", "y")
    message = error_of(path, file, image_column="photo", label_column="sort")
    assert "data.label_column=sort is not a column of" in message
    file = listed(tmp_path / "l.csv", "0,x", "1,y")
    message = error_of(path, file, image_column="photo", label_column="sort")
    assert "data.label_column=sort is not a column of" in message


@pytest.mark.parametrize("nothing", [None, "", "  ", "-1"])
def test_cells_without_a_label(tmp_path, nothing):
    words = [nothing, "NA", "None", *(["NA", "None"] * 9)][:20]
    train, _ = opened(parquet(tmp_path / "a.parquet", image=STRUCTS, label=words))
    assert train.classes == ("NA", "None")
    assert (train.labels == UNLABELED).sum() == 1


@pytest.mark.parametrize("beyond", [2, 7, -2])
def test_numbers_beyond_the_list_of_classes(tmp_path, beyond):
    path = tmp_path / "a.parquet"
    hub_table(path, [beyond, *HALVES[1:]])
    message = error_of(path)
    assert f"column label holds the class {beyond}, but its list of classes has 2 names" in message
    hub_table(path, [-1, *HALVES[1:]])
    assert (opened(path)[0].labels == UNLABELED).sum() == 1


def hub_table(path: Path, labels: list[int]) -> None:
    """As the hub's library writes it, but unchecked."""
    kind = {"names": ["a", "b"], "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": kind}
    notes = json.dumps({"info": {"features": features}}).encode()
    rows = pa.table({"image": STRUCTS, "label": labels})
    pq.write_table(rows.replace_schema_metadata({b"huggingface": notes}), path)
