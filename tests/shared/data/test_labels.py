"""Which images may be labeled: draws, published lists, CSV files, and what is refused."""

import csv
import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config.labelset import LabelSet
from shared.config.sections import Data
from shared.data.images import UNLABELED, ImageSet, Splits
from shared.data.label_files import find_images
from shared.data.labels import Labels, draw_labels, read_names, write_labels, write_names
from shared.data.sources import open_data
from shared.runtime.errors import UserError
from tests.support.photos import class_folders, make_folder
from tests.support.sources import images, opened

PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "imagenet_subsets"


def draw(splits: Splits, labels: str, seed: int) -> Labels:
    return draw_labels(splits, LabelSet.parse(labels), seed)


def refusal(splits, labels) -> str:
    with pytest.raises(UserError) as caught:
        draw(splits, str(labels), 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_names_of_images_come_back(tmp_path):
    names = ["a.png", "é,ü.png", '"q".png', "a\nb.png", "cr\rx.png", "=1.png", " x"]
    write_names(tmp_path / "images.csv", images([0] * len(names), names))
    assert read_names(tmp_path / "images.csv") == names


@pytest.mark.parametrize(
    "content",
    [
        b"file\na.png,cat\n",
        b"file\na.png\n\nb.png\n",
        b"file\n\xff.png\n",
        b"file\na\0.png\n",
        b'file\n"a.png\n',
        b"file\n" + b"x" * 140_000,
        b"a.png\nb.png\n",
        b"",
        "pipe",
        "folder",
    ],
)
def test_a_damaged_list_of_images_is_one_line(tmp_path, content):
    file = tmp_path / "images.csv"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        {"pipe": os.mkfifo, "folder": os.mkdir}[content](file)
    with pytest.raises(
        UserError, match=r"cannot read .*images.csv: .*; remove it to go on"
    ) as error:
        read_names(file)
    assert str(error.value).isprintable()


class_sizes = st.lists(st.integers(1, 60), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(class_sizes, st.floats(0.5, 100), st.integers(0, 2**32 - 1), st.integers(0, 20))
def test_percent_is_stratified_and_leaves_no_class_out(sizes, percent, seed, unlabeled):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    labels = np.insert(labels, 0, [UNLABELED] * unlabeled)
    percent = round(percent, 2)
    wanted = round(percent / 100 * sum(sizes))
    if wanted < len(sizes):
        assert "fewer than the" in refusal(Splits(images(labels), None), f"{percent}pct")
        return
    ids, targets = draw(Splits(images(labels), None), f"{percent}pct", seed)
    assert len(np.unique(ids)) == len(ids) == wanted
    assert (labels[ids] == targets).all()
    counts = np.bincount(targets, minlength=len(sizes))
    quota = percent / 100 * np.array(sizes)
    assert counts.min() >= 1
    if quota.min() >= 1:
        assert (np.abs(counts - quota) < 1).all()


def test_draws_are_a_function_of_the_seed():
    splits = Splits(images(np.repeat(np.arange(5), 100)), None)
    first, again, other = (draw(splits, "10pct", seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.ids, again.ids)
    assert first.hash == again.hash != other.hash
    assert len(np.intersect1d(first.ids, other.ids)) < 30
    # every image has the same chance
    often = np.zeros(500)
    for seed in range(200):
        often[draw(splits, "10pct", seed).ids] += 1
    assert abs(often - 20).max() < 5 * np.sqrt(200 * 0.1 * 0.9)


def test_per_class_and_everything():
    labels = np.repeat(np.arange(4), [3, 10, 5, 7])
    splits = Splits(images(labels), None)
    assert np.bincount(draw(splits, "3perclass", 0).targets).tolist() == [
        3,
        3,
        3,
        3,
    ]
    np.testing.assert_array_equal(draw(splits, "100pct", 7).ids, np.arange(25))
    for bad in ("4perclass", "0perclass"):
        assert "must be 1perclass to 3perclass" in refusal(splits, bad)


def test_a_random_draw_does_not_look_at_the_classes():
    labels = np.repeat([0, 1, 2, UNLABELED], [60, 30, 10, 50])
    splits = Splits(images(labels), None)
    draws = [draw(splits, "20random", seed) for seed in range(200)]
    for ids, targets in draws:
        assert len(np.unique(ids)) == 20
        assert (labels[ids] == targets).all()
        assert targets.min() >= 0
    counts = np.array([np.bincount(targets, minlength=3) for _, targets in draws])
    np.testing.assert_allclose(counts.mean(0), [12, 6, 2], atol=0.6)
    assert counts[:, 0].std() > 1  # a stratified draw would have 12 each time
    assert (counts[:, 2] == 0).any()  # and would leave no class out
    assert draw(splits, "20random", 3).hash == draws[3].hash != draws[4].hash


def test_the_suggested_images_are_those_of_the_file(tmp_path):
    splits = Splits(images([0, 0, 1, 1, 2]), None)
    choice = tmp_path / "2suggested-seed0.json"
    labels = replace(LabelSet.parse("2suggested"), choice=choice)
    with pytest.raises(UserError, match="no images are chosen yet"):
        draw_labels(splits, labels, 0)
    choice.write_text('{"files": ["1/2.png", "0/0.png"]}')
    assert draw_labels(splits, labels, 0).ids.tolist() == [0, 2]
    for content, message in (
        ('{"files": ["0/0.png", "0/1.png"]}', "are of one class, class0"),
        ('{"files": ["0/0.png", "none.png"]}', "unknown images: none.png"),
        ('{"files": ["none.png"]}', "is damaged: it names 1 image for labels=2suggested; delete"),
        ("{", r"is damaged \(.*\); delete it; pipeline.py .* chooses again"),
    ):
        choice.write_text(content)
        with pytest.raises(UserError, match=message):
            draw_labels(splits, labels, 0)


@pytest.mark.parametrize("labels", ["6random", "6suggested"])
def test_more_labels_than_there_are(labels):
    splits = Splits(images([0, 0, 1, 1, 2, -1, -1]), None)
    assert "only 5 training images have a label" in refusal(splits, labels)


def test_two_random_labels_of_one_class():
    assert "are of one class, class0" in refusal(Splits(images([0] * 999 + [1]), None), "2random")


def test_the_share_that_a_message_recommends_works():
    splits = Splits(images(np.repeat(np.arange(7), [30, 50, 20, 10, 99, 1, 3])), None)
    message = refusal(splits, "1pct")
    assert "labels=1pct is 2 of 213 images, fewer than the 7 classes" in message
    least = message.split("at least ")[1].split()[0]
    assert len(draw(splits, least, 0).ids) == 7


def test_classes_without_images_need_no_label():
    """As in the first 10% of a data set that is sorted by class."""
    splits = Splits(images([1, 1, 3, 3], classes=tuple("abcde")), None)
    assert draw(splits, "1perclass", 0).targets.tolist() == [1, 3]
    assert draw(splits, "50pct", 0).targets.tolist() == [1, 3]


def test_images_without_labels_need_a_file():
    for classes in ((), ("a", "b")):
        message = refusal(Splits(images([-1, -1], classes=classes), None), "10pct")
        assert "the images have no labels; give a CSV file" in message
        assert "label_column" not in message


def test_images_of_a_table_may_have_their_labels_in_a_column_of_another_name():
    table = replace(images([-1, -1]), columns=("species", "place"))
    message = refusal(Splits(table, None), "10pct")
    assert "or the column of the labels: --data.label_column, of species, place" in message


# ------------------------------------------------------------------------------- lists of names
def imagenet_like(listed: list[str], hub_style: bool) -> ImageSet:
    """The listed images among others of the same classes."""
    synsets = sorted({name[:9] for name in listed})
    names = [f"{synset}_{number}.JPEG" for synset in synsets for number in (999991, 999992)]
    names = sorted({*names, *listed})
    labels = [synsets.index(name[:9]) for name in names]
    if hub_style:  # n01440764_10026_n01440764.JPEG, as the hub's ImageNet
        names = [f"{name[:-5]}_{name[:9]}.JPEG" for name in names]
    else:
        names = [f"{name[:9]}/{name}" for name in names]
    return images(labels, names, tuple(synsets))


def check_list(file: Path, hub_style: bool, n: int, classes: int) -> np.ndarray:
    listed = file.read_text().split()
    train = imagenet_like(listed, hub_style)
    labels = draw(Splits(train, None), str(file), 0)
    assert len(labels.ids) == n
    drawn = {name.rpartition("/")[2] for name in train.names[labels.ids]}
    if hub_style:
        drawn = {f"{name[:-15]}.JPEG" for name in drawn}
    assert drawn == set(listed)
    counts = np.bincount(labels.targets)
    assert len(counts) == classes
    return counts


@pytest.mark.parametrize(
    ("name", "n", "least", "hub_style"),
    [("1percent", 12811, 12, False), ("10percent", 128116, 128, True)],
)
def test_published_imagenet_lists(name, n, least, hub_style):
    file = PUBLISHED / f"{name}.txt"
    if not file.exists():
        pytest.skip("the published lists are not ours to ship; ../shared/data/imagenet_subsets")
    counts = check_list(file, hub_style, n, 1000)
    assert set(counts) == {least, least + 1}


@pytest.mark.parametrize("hub_style", [True, False])
def test_list_in_the_published_form(tmp_path, hub_style):
    file = tmp_path / "2percent.txt"
    file.write_text("n01440764_10026.JPEG\nn04235860_14959.JPEG\n\nn01440764_7.JPEG\n")
    assert check_list(file, hub_style, 3, 2).tolist() == [2, 1]


def test_list_with_repeats_spaces_and_windows_line_ends(tmp_path):
    train = images([0, 0, 1], ["a/one two.png", "a/3.png", "b/4.png"])
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfone two.png\r\nb/4.png\r\n4.png\r\n")
    drawn = draw(Splits(train, None), str(tmp_path / "list.txt"), 0)
    assert drawn.ids.tolist() == [0, 2]
    assert drawn.targets.tolist() == [0, 1]


def test_list_with_unlabeled_or_unknown_images(tmp_path):
    file = tmp_path / "list.txt"
    splits = Splits(images([0, 1, -1], ["x.png", "y.png", "z.png"]), None)
    file.write_text("x.png\ny.png\nz.png\n")
    assert "without a known label; use a CSV" in refusal(splits, file)
    file.write_text("x.png\nq.png\n")
    assert "names 1 unknown images: q.png" in refusal(splits, file)
    file.write_text("y.png\n")
    assert "none of the classes class0" in refusal(splits, file)
    file.write_text("")
    assert "class0, class1" in refusal(splits, file)
    assert "cannot read the label file" in refusal(splits, tmp_path / "missing.txt")
    file.write_bytes(b"\xff\xfe\x00")
    assert "cannot read the label file" in refusal(splits, file)


def test_images_are_found_by_the_end_of_their_path(tmp_path):
    splits = opened(class_folders(tmp_path / "x" / "y", 1, classes="ab").parent)
    assert splits.train.names.tolist() == ["y/a/0.png", "y/b/0.png"]
    file = tmp_path / "list.txt"
    assert find_images(splits, ["y/b/0.png", "b/0.png", "a/0.png"], file).tolist() == [1, 1, 0]
    with pytest.raises(UserError, match=r"list.txt: 0.png may be several images; write more"):
        find_images(splits, ["0.png"], file)
    with pytest.raises(UserError, match=r"names 1 unknown images: c/0.png; .* like y/a/0.png"):
        find_images(splits, ["c/0.png"], file)


def test_held_out_images_are_known_but_not_for_training(tmp_path):
    splits = opened(class_folders(tmp_path, 10))
    assert find_images(splits, [splits.test.names[0]], tmp_path).tolist() == [-1]
    flat = opened(
        make_folder(
            tmp_path / "t", ["train/a/0.png", "train/b/1.png", "test/a/0.png", "test/b/2.png"]
        )
    )
    with pytest.raises(UserError, match="several"):
        find_images(flat, ["0.png"], tmp_path)


# ---------------------------------------------------------------------------------------- CSV
def csv_file(path: Path, *rows: str, head: str = "file,label") -> Path:
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_csv_gives_labels_to_images_that_have_none(tmp_path):
    splits = Splits(images([0, 1, -1, -1], ["w.png", "x.png", "y.png", "z.png"]), None)
    file = csv_file(tmp_path / "l.csv", "z.png,class0", '"y.png", class1', "w.png,class0")
    labels = draw(splits, str(file), 0)
    assert labels.ids.tolist() == [0, 2, 3]
    assert labels.targets.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("head", "rows"),
    [
        ("file,label", ["w.png,class0", "x.png,class1", "y.png,"]),
        ("image,label,annotator", ["w.png,class0,ann", "x.png,class1,ben", "y.png,,ben"]),
        ("Label;File", ["class0;.\\\\w.png", "class1;/x/y/x.png", "-1;z.png"]),
    ],
)
def test_rows_without_a_label_are_images_without_one(tmp_path, head, rows):
    splits = Splits(images([0, 1, -1, -1], ["w.png", "x.png", "y.png", "z.png"]), None)
    labels = draw(splits, str(csv_file(tmp_path / "l.csv", *rows, head=head)), 0)
    assert labels.ids.tolist() == [0, 1]
    assert labels.targets.tolist() == [0, 1]


def test_csv_of_other_columns(tmp_path):
    splits = Splits(images([0, 1], ["x.png", "y.png"]), None)
    file = csv_file(tmp_path / "l.csv", "x.png,class1,1", "y.png,class0,2", head="pic,kind,n")
    labels = LabelSet(str(file), "l", file=file, image_column="pic", label_column="kind")
    assert draw_labels(splits, labels, 0).targets.tolist() == [1, 0]


def test_composed_and_decomposed_classes_are_one(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Möwe")
    splits = Splits(images([0, 1], ["x.png", "y.png"], (decomposed, "Fuchs")), None)
    for form in ("NFC", "NFD"):
        rows = ["x.png," + unicodedata.normalize(form, "Möwe"), "y.png,Fuchs"]
        labels = draw(splits, str(csv_file(tmp_path / "l.csv", *rows)), 0)
        assert labels.targets.tolist() == [0, 1]


def test_csv_of_one_class_is_refused(tmp_path):
    splits = Splits(images([-1, -1], ["x.png", "y.png"], ("class0",)), None)
    for name in ("l.csv", "l.tsv", "l.CSV"):
        message = refusal(splits, csv_file(tmp_path / name, "x.png,class0", "y.png,class0"))
        assert "of 1 class; give labels of two or more classes" in message


def test_csv_that_is_refused(tmp_path):
    splits = Splits(images([0, 1, -1], ["x.png", "y.png", "z.png"]), None)
    for text, says in [
        (["x.png,class0", "y.png,class7"], "names unknown classes: class7; the images have class0"),
        (["x.png,class0", "q.png,class1"], "names 1 unknown images: q.png"),
        (["x.png,class0"], "none of the classes class1"),
        (["x.png,class0", "y.png,class1", "x.png,class1"], "several labels to x.png"),
        (["x.png;class0"], "names 1 unknown images: x.png;class0"),
        (["x.png,class0", "q.png,"], "names 1 unknown images: q.png"),
        (["x.png,", "y.png,"], "has no label yet; write classes into it"),
    ]:
        assert says in refusal(splits, csv_file(tmp_path / "l.csv", *text))
    assert "must begin with the line file,label" in refusal(
        splits, csv_file(tmp_path / "l.csv", "x.png,class0", head="nr,class")
    )


def test_what_was_held_out_for_testing_is_left_out(tmp_path):
    root = class_folders(tmp_path / "p", 10)
    train, test = open_data(Data(train=str(root)), LabelSet.parse("1pct"))
    rows = [f"{c}/{i}.png,{c}" for c in "abc" for i in range(10)]
    labels = draw(Splits(train, test), str(csv_file(tmp_path / "l.csv", *rows)), 0)
    assert labels.ids.tolist() == list(range(24))
    rows = [f"{name},{name[0]}" for name in test.names]
    message = refusal(Splits(train, test), csv_file(tmp_path / "l.csv", *rows))
    assert "0 labels of images that training may see" in message


@pytest.mark.parametrize("source", ["digits", "folder"])
def test_saved_labels_are_a_label_file(tmp_path, source):
    if source == "folder":
        source = str(class_folders(tmp_path / "p", 10))
    splits = open_data(Data(train=source), LabelSet.parse("1pct"))
    labels = draw(splits, "2perclass", 5)
    write_labels(tmp_path / "labels.csv", splits.train, labels)
    rows = list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))
    assert len(rows) == len(labels.ids)
    assert rows[0]["file"] == splits.train.names[labels.ids[0]]
    assert rows[0]["label"] == splits.train.classes[labels.targets[0]]
    again = draw(splits, str(tmp_path / "labels.csv"), 99)
    assert again.hash == labels.hash


def test_one_class_is_no_classification():
    with pytest.raises(UserError, match=r"all labeled images are of one class, .*; give images of"):
        draw(Splits(images(np.zeros(20)), None), "10pct", 0)
