"""Folders as people have them: walk, formats, splits, classes, metadata files."""

import os
import signal
import socket

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from shared.config.labelset import LabelSet
from shared.config.sections import Data
from shared.data import folders as folders_module
from shared.data.folders import open_folder, walk
from shared.data.images import UNLABELED
from shared.data.labels import draw_labels
from shared.data.sources import OPENED, open_data
from shared.runtime.errors import UserError
from tests.support.photos import class_folders, make_folder
from tests.support.sources import HALVES, STRUCTS, error_of, opened, parquet


def notes(capsys, source, **options) -> tuple[object, str]:
    """The splits, and what was printed when they were opened."""
    OPENED.clear()
    capsys.readouterr()
    data = Data(train=str(source), **options)
    splits = open_data(data, LabelSet.parse("1pct"), progress=True)
    return splits, capsys.readouterr().out


def names_of(splits) -> list[str]:
    return sorted(name for part in splits if part for name in part.names[part.training_ids])


# ------------------------------------------------------------------------------------------ walk
def test_the_order_is_that_of_os_walk(tmp_path):
    files = ["z.png", "a.png", "b/z.png", "b/a/0.png", "b-c/1.png", "b.d/2.png", "B/3.png"]
    make_folder(tmp_path, files)
    (tmp_path / "linked").symlink_to(make_folder(tmp_path.parent / "away", ["q.png"]))
    expected = []
    for folder, folders, names in os.walk(tmp_path, followlinks=True):
        folders.sort()
        expected += [
            os.path.relpath(os.path.join(folder, name), tmp_path) for name in sorted(names)
        ]
    assert walk(tmp_path).images == expected


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a/again", "."),  # the folder itself
        ("a/up", ".."),  # the root
        ("a/around", "../.."),  # a folder around the root
        ("aa", "b"),  # another class, which keeps its real name
        ("b/deep/loop", ".."),
    ],
)
def test_a_link_to_a_walked_folder_is_passed_over_and_named(tmp_path, capsys, link, target):
    root = class_folders(tmp_path / "root", 5, classes="ab")
    make_folder(tmp_path, ["beside.png"])
    (root / "b/deep").mkdir()
    (root / link).symlink_to(target)
    splits, printed = notes(capsys, root)
    assert names_of(splits) == [f"{c}/{i}.png" for c in "ab" for i in range(5)]
    assert f"{link}/ (a link to a folder that is walked already)" in printed


def test_two_links_to_one_folder_and_links_in_a_ring(tmp_path, capsys):
    away = make_folder(tmp_path / "away", [f"{i}.png" for i in range(5)])
    root = class_folders(tmp_path / "root", 5, classes="ab")
    (root / "c").symlink_to(away)
    (root / "d").symlink_to(away)
    (away / "back").symlink_to(root)
    splits, printed = notes(capsys, root)
    assert splits.train.classes == ("a", "b", "c")
    assert len(names_of(splits)) == 15
    assert "c/back/ (a link" in printed
    assert "d/ (a link" in printed


def test_test_images_that_link_to_training_images_are_none(tmp_path, capsys):
    root = class_folders(tmp_path, 5, classes="ab")
    for part in ("train", "test"):
        (root / part).mkdir()
    for label in "ab":
        (root / label).rename(root / "train" / label)
    (root / "test/a").symlink_to("../train/a")
    splits, printed = notes(capsys, root)
    assert len(names_of(splits)) == 10
    assert "test/a/ (a link" in printed


@pytest.mark.parametrize(
    ("files", "links", "names"),
    [
        (
            "all/0 all/1",
            "cat/x:all/0 dog/y:all/1",
            "cat/x dog/y",
        ),  # the folders of links are classes
        ("cat/0 cat/1 dog/0", "best/x:cat/0", "cat/0 cat/1 dog/0"),
        ("cat/0 dog/0", "cat/x:away/0 dog/y:away/0", "cat/0 cat/x dog/0"),
        ("all/0 all/1", "by/x:all/0 by/y:all/1 cat/x:by/x dog/y:by/y", "cat/x dog/y"),
        (
            "train/a/0 train/b/0",
            "test/a/0:train/a/0 test/b/0:train/b/0",
            "train/a/0 train/b/0",
        ),
        ("train/a/0 train/b/0", "docs/a/0:train/a/0", "train/a/0 train/b/0"),
        ("a/0 b/0", "b/x:b/x", "a/0 b/0 b/x"),
    ],
)
def test_each_file_counts_once(tmp_path, files, links, names):
    root = make_folder(tmp_path / "r", [f"{name}.png" for name in files.split()])
    make_folder(root / "../away", ["0.png"])
    for link in links.split():
        name, target = (root / f"{part}.png" for part in link.split(":"))
        name.parent.mkdir(parents=True, exist_ok=True)
        target = root / "../away/0.png" if "away" in link else target
        name.symlink_to(os.path.relpath(target, name.parent))
    parts = open_folder(root, walk(root), "r", "stop", False)
    paths = [row["path"] for part in parts.values() for row in part.data["image"].to_pylist()]
    assert sorted(os.path.relpath(path, root)[:-4] for path in paths) == names.split()


def test_what_is_no_regular_file_is_never_opened(tmp_path, capsys):
    root = class_folders(tmp_path, 5, classes="ab")
    os.mkfifo(root / "a/pipe.png")
    os.mkfifo(root / "a/pipe")
    (root / "b/link.png").symlink_to(root / "a/pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "b/s.jpg"))
        splits, printed = notes(capsys, root)
    assert len(names_of(splits)) == 10
    assert "passed over, since no images: 4 (4 of no regular file)" in printed


@pytest.mark.parametrize("target", ["nowhere.png", "0.png/x", "broken.png"])
def test_a_link_to_nothing_is_an_unreadable_image(tmp_path, capsys, target):
    root = class_folders(tmp_path, 5, classes="ab")
    (root / "a/broken.png").symlink_to(target)
    assert f"cannot read {root}/a/broken.png: no such file" in error_of(root)
    splits, printed = notes(capsys, root, on_error="skip")
    assert len(names_of(splits)) == 10
    assert "skipped 1 unreadable of 11 images: a/broken.png" in printed


def test_a_file_that_would_let_wait_is_passed_over(tmp_path):
    """As some of ``/proc`` and ``/dev`` do: regular, and nothing comes."""
    fcntl = pytest.importorskip("fcntl")
    if not hasattr(fcntl, "F_SETLEASE"):
        pytest.skip("no leases")
    root = class_folders(tmp_path / "p", 2)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # to the holder
    try:
        with (root / "a/picture").open("wb") as file:
            file.write((root / "a/0.png").read_bytes())
            file.flush()
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            assert walk(root).passed_over == {"without suffix": 1}
    finally:
        signal.signal(signal.SIGIO, before)
    assert not walk(root).passed_over


def test_folders_that_cannot_be_read_are_named(tmp_path, capsys, monkeypatch):
    root = class_folders(tmp_path, 5, classes="abc")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    splits, printed = notes(capsys, root)
    assert splits.train.classes == ("a", "c")
    assert "folders that were not entered: b/ (Permission denied)" in printed


def test_a_path_that_is_not_utf8(tmp_path):
    root = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(root)
    message = error_of(root, on_error="skip")
    assert message.endswith("/caf\\xe9 is not UTF-8; rename its folders")


# --------------------------------------------------------------------------------------- formats
def test_formats_are_recognised_by_content(tmp_path, capsys):
    """As browsers, phones and scripts name them."""
    root = class_folders(tmp_path, 2, classes="ab")
    picture = Image.fromarray(np.uint8(np.arange(192).reshape(8, 8, 3)))
    kinds = {
        "chrome.jfif": "JPEG",
        "CAMERA.JPG": "JPEG",
        "tweet.jpg_large": "JPEG",
        "hash": "PNG",
        "x.dat": "WEBP",
        "y.tmp": "GIF",
        "z.img": "TIFF",
        "w.ppm2": "PPM",
        "v.1": "BMP",
    }
    for name, kind in kinds.items():
        picture.save(root / "a" / name, kind)
    splits, printed = notes(capsys, root)
    assert len(names_of(splits)) == 4 + len(kinds)
    assert "passed over" not in printed


def test_other_files_are_counted_by_suffix(tmp_path, capsys):
    root = class_folders(tmp_path, 5, classes="ab")
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
    for name, content in {
        "a/1.HEIC": heic,
        "a/2.heic": heic,
        "b/film.mp4": b"\0\0\0\x18ftypmp42" + bytes(99),
        "b/README": b"P1 is a word here",
        "notes.txt": b"P5 too",
        "numbers.csv": b"a,b\n1,2\n",
        "empty": b"",
        ".DS_Store": b"\0\0\0\1Bud1",
    }.items():
        (root / name).write_bytes(content)
    splits, printed = notes(capsys, root)
    assert len(names_of(splits)) == 10
    line = next(line for line in printed.splitlines() if "passed over" in line)
    assert line.startswith(f"note: {root}: passed over, since no images: 8 (")
    for kind in ("2 .heic", "1 .mp4", "2 without suffix", "1 .txt", "1 .csv", "1 hidden"):
        assert kind in line


def test_only_files_of_unknown_suffix_are_opened(tmp_path, monkeypatch):
    root = class_folders(tmp_path, 5, classes="ab")
    (root / "a/x.unknown").write_bytes(b"x")
    opened_ = []
    monkeypatch.setattr(
        Image,
        "open",
        lambda file, **options: opened_.append(file.name) or (_ for _ in ()).throw(OSError),
    )
    assert len(walk(root).images) == 10
    assert opened_ == [str(root / "a/x.unknown")]


def test_a_folder_of_heic_alone_says_what_is_there(tmp_path):
    (tmp_path / "1.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    message = error_of(tmp_path)
    assert "no images in" in message
    assert "passed over, since no images: 1 (1 .heic)" in message


def test_hidden_folders_are_named(tmp_path, capsys):
    root = class_folders(tmp_path, 5, classes="ab")
    make_folder(root, ["__MACOSX/a/._0.png", ".cache/0.png", "a/@eaDir/0.png"])
    splits, printed = notes(capsys, root)
    assert len(names_of(splits)) == 10
    assert "not entered: .cache/, __MACOSX/, a/@eaDir/" in printed


@pytest.mark.parametrize("name", [b"a/\xff.png", b"caf\xe9/0.png", b"a/\xed\xa0\x80.png"])
@pytest.mark.parametrize("loading", ["auto", "workers"])
def test_names_that_are_not_utf8(tmp_path, capsys, name, loading):
    root = class_folders(tmp_path, 5, classes="ab")
    odd = os.path.join(os.fsencode(root), name)
    os.makedirs(os.path.dirname(odd), exist_ok=True)
    with open(odd, "wb") as file:
        file.write((root / "a/0.png").read_bytes())
    message = error_of(root, loading=loading)
    assert "1 names of files or folders" in message
    assert "not UTF-8" in message
    message.encode()  # can be printed
    splits, printed = notes(capsys, root, on_error="skip", loading=loading)
    assert len(names_of(splits)) == 10
    assert "skipped 1 unreadable of 11 images: " in printed
    assert "\\x" in splits.train.skipped[0]


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    root = class_folders(tmp_path, 5, classes="ab")
    (root / "a/\x1b[31mred\n.png").write_bytes(b"x")
    (root / "a/\x1b[31m.\x1bq").write_bytes(b"x")
    make_folder(root, [".\x1b[2J/0.png"])
    _, printed = notes(capsys, root, on_error="skip")
    assert "\x1b" not in printed
    assert "\\x1b[31mred\\n.png" in printed
    assert "\x1b" not in error_of(root)


# ---------------------------------------------------------------------------------------- splits
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("train", "valid"),
        ("TRAIN", "VAL"),
        ("training", "testing"),
        ("Training", "Validation"),
        ("train", "dev"),
    ],
)
def test_names_of_splits(tmp_path, train, test):
    class_folders(tmp_path / train, 4)
    class_folders(tmp_path / test, 2)
    splits = opened(tmp_path)
    assert (len(splits.train), len(splits.test)) == (12, 6)
    assert splits.train.classes == ("a", "b", "c")
    assert splits.train.names[0] == f"{train}/a/0.png"
    assert splits.test.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("between", ["dataset", "photos/dataset", "a/b/c"])
def test_a_sole_folder_in_between_is_entered_and_named(tmp_path, capsys, between):
    class_folders(tmp_path / between / "train", 4)
    class_folders(tmp_path / between / "test", 2)
    (tmp_path / "docs").mkdir()
    splits, printed = notes(capsys, tmp_path)
    assert (len(splits.train), len(splits.test)) == (12, 6)
    assert splits.train.names[0] == f"{between}/train/a/0.png"
    assert f"note: {tmp_path}: the images are taken from the folder {between}/ in it" in printed


def test_a_sole_folder_of_class_folders_is_entered(tmp_path, capsys):
    class_folders(tmp_path / "photos", 5)
    (splits, printed) = notes(capsys, tmp_path)
    assert splits.train.classes == ("a", "b", "c")
    assert "the images are taken from the folder photos/ in it" in printed
    class_folders(tmp_path / "split/train/images", 5)
    class_folders(tmp_path / "split/val/images", 2)
    splits = opened(tmp_path / "split")
    assert splits.train.classes == splits.test.classes == ("a", "b", "c")
    assert (len(splits.train), len(splits.test)) == (15, 6)


def test_a_sole_folder_of_images_only_gives_no_class(tmp_path, capsys):
    make_folder(tmp_path, [f"all/{i}.png" for i in range(5)])
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == ()
    assert "taken from" not in printed


def test_what_is_left_out_is_named(tmp_path, capsys):
    class_folders(tmp_path / "train", 4)
    class_folders(tmp_path / "test", 2)
    class_folders(tmp_path / "valid", 1)
    make_folder(tmp_path, ["extra/0.png", "Training/0.png", "beside.png"])
    splits, printed = notes(capsys, tmp_path)
    assert (len(splits.train), len(splits.test)) == (12, 6)
    assert "images left out: Training/ (1), extra/ (1), files beside these folders (1)" in printed
    assert "splits that are not used: validation (3 images)" in printed


def test_test_images_without_labels_are_named_as_not_used(tmp_path, capsys):
    """As contests have it: a flat test folder."""
    class_folders(tmp_path / "train", 5)
    make_folder(tmp_path, ["test/0.png", "test/1.png"])
    splits, printed = notes(capsys, tmp_path)
    assert len(splits.train) + len(splits.test) == 15
    assert "splits that are not used: test (2 images)" in printed


@pytest.mark.parametrize(
    "folders",
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set/training_set", "test_set/test_set"),
        ("train_set", "test_set"),
        ("train2017", "val2017"),
        ("Trainset", "testset"),
        ("TrainingData", "TestData"),
        ("dataset/train", "dataset/test"),  # beside docs/
        ("train/train", "test/test"),
    ],
)
def test_words_for_splits_in_the_names_of_folders(tmp_path, capsys, folders):
    for folder, n in zip(folders, (4, 2), strict=True):
        class_folders(tmp_path / folder, n, classes="ab")
    make_folder(tmp_path, ["seg_pred/0.png", "docs/0.png"])
    splits, printed = notes(capsys, tmp_path)
    assert (len(splits.train), len(splits.test)) == (8, 4)
    assert splits.train.classes == splits.test.classes == ("a", "b")
    assert "images left out: docs/ (1), seg_pred/ (1)" in printed
    assert "labels: class folders, 2 classes, 0 images without one; a 4, b 4" in printed


@pytest.mark.parametrize(
    "classes",
    [
        ("train", "bus"),
        ("test_tubes", "cat"),
        ("seg_train", "x"),
        ("a_train", "a_test", "b_train", "b_test"),
    ],
)
def test_a_class_that_is_called_like_a_split_drops_no_other(tmp_path, capsys, classes):
    make_folder(tmp_path, [f"{c}/{i}.png" for c in classes for i in range(5)])
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == tuple(sorted(classes))
    assert "taken as classes, not as splits: " in printed


@pytest.mark.parametrize(
    ("folder", "loose"), [("dataset", "cover.png"), ("x/data", "x/cover.png"), ("train/data", "")]
)
def test_a_loose_image_turns_off_no_class(tmp_path, capsys, folder, loose):
    class_folders(tmp_path / folder, 5, classes="ab")
    make_folder(tmp_path, [loose or "train/cover.png"])
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == ("a", "b")
    assert len(names_of(splits)) == 11
    assert "labels: class folders, 2 classes, 1 image without one; a 5, b 5" in printed
    assert ("files beside these folders (1)" in printed) == bool(loose)


def test_folders_may_be_albums(tmp_path, capsys):
    make_folder(tmp_path, ["loose.png", "2020/1.png", "2020/2.png", "test/1.png", "test/2.png"])
    splits, printed = notes(capsys, tmp_path, class_folders=False)
    assert (len(splits.train), splits.train.classes, splits.test) == (5, (), None)
    assert "class" not in printed
    # a file of labels says what is in them, as ever
    (tmp_path / "metadata.csv").write_text("file_name,label\n2020/1.png,cat\ntest/2.png,dog\n")
    splits, printed = notes(capsys, tmp_path, class_folders=False)
    assert splits.train.classes == ("cat", "dog")
    assert "2020" not in printed


def test_albums_beside_a_test_folder(tmp_path, capsys):
    class_folders(tmp_path / "photos/train", 4, classes="ab")
    class_folders(tmp_path / "photos/test", 2, classes="ab")
    class_folders(tmp_path / "sorted", 2, classes="xy")
    splits, _ = notes(capsys, tmp_path / "photos", class_folders=False)
    assert (len(splits.train), splits.train.classes) == (8, ())
    # those of another folder for testing are classes, also where it is the same one
    train = tmp_path / "photos/train"
    splits, _ = notes(capsys, train, class_folders=False, test=str(tmp_path / "sorted"))
    assert (splits.train.classes, splits.test.classes) == ((), ("x", "y"))


@pytest.mark.parametrize(
    "folders",
    [("train/a", "train/b", "2020"), ("gym/train", "gym/test", "rail/train", "rail/test")],
)
def test_an_album_may_be_called_train(tmp_path, capsys, folders):
    make_folder(tmp_path, [f"{folder}/{i}.png" for folder in folders for i in range(2)])
    splits, printed = notes(capsys, tmp_path, class_folders=False)
    assert (len(splits.train), splits.test) == (2 * len(folders), None)
    assert "left out" not in printed


def test_further_images_may_lie_in_albums(tmp_path, capsys):
    make_folder(
        tmp_path, ["photos/2020/1.png", "photos/1.png", "more/test/1.png", "more/2021/1.png"]
    )
    more = str(tmp_path / "more")
    splits, _ = notes(capsys, tmp_path / "photos", class_folders=False, unlabeled=more)
    assert len(splits.train) == 4


def test_albums_are_folders(capsys):
    with pytest.raises(UserError, match="is for a folder of image files, which digits is not"):
        notes(capsys, "digits", class_folders=False)
    with pytest.raises(UserError, match="which someone/pets is not; leave it out"):
        notes(capsys, "someone/pets", class_folders=False)  # nothing is downloaded


def test_a_flat_train_folder_beside_one_for_testing_is_no_class(tmp_path, capsys):
    make_folder(tmp_path, [f"{f}/{i}.png" for f in ("train", "test_images") for i in range(3)])
    splits, printed = notes(capsys, tmp_path)
    assert (splits.train.classes, len(splits.train)) == ((), 3)
    assert "images left out: test_images/ (3)" in printed


@pytest.mark.parametrize(
    ("pictures", "masks"),
    [
        ("JPEGImages", "SegmentationClass"),
        ("images", "masks"),
        ("images", "labels"),
        ("train", "train_masks"),
        ("VOC2012/img", "VOC2012/img_mask"),
        ("train/images", "train/annotations"),
    ],
)
def test_masks_of_segmentation_are_no_class(tmp_path, pictures, masks):
    names = [f"{pictures}/a_{i}.png" for i in range(5)]
    names += [f"{masks}/{name}" for name in ("a_0.png", "a_1_mask.png", "mask-a_2.jpg", "x.png")]
    make_folder(tmp_path, names)
    message = error_of(tmp_path)
    assert f"{pictures}/ and {masks}/, which look like pictures and their masks" in message
    assert f"give the pictures alone, {tmp_path}/{pictures}, or" in message
    assert len(opened(tmp_path / pictures).train) == 5


@pytest.mark.parametrize(
    "classes",
    [
        ("with_mask", "without_mask"),
        ("mask", "no mask"),
        ("label", "bottle"),
        ("photos", "paintings"),
    ],
)
def test_classes_that_are_called_like_masks(tmp_path, classes):
    make_folder(tmp_path, [f"{folder}/{i}.png" for folder in classes for i in range(5)])
    assert opened(tmp_path).train.classes == tuple(sorted(classes))


def test_masks_that_are_called_after_no_picture_are_a_class(tmp_path):
    """Of a theatre, or against dust."""
    make_folder(tmp_path, [f"{name}/{name}_{i}.png" for name in ("photos", "masks") for i in "123"])
    assert opened(tmp_path).train.classes == ("masks", "photos")


def test_a_train_folder_alone_beside_other_folders(tmp_path, capsys):
    class_folders(tmp_path / "dataset/train", 5, classes="ab")
    make_folder(tmp_path, ["docs/0.png"])
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == ("a", "b")
    assert "images left out: docs/ (1)" in printed


def test_a_loose_image_turns_off_no_split(tmp_path, capsys):
    class_folders(tmp_path / "dataset/train", 4, classes="ab")
    class_folders(tmp_path / "dataset/test", 2, classes="ab")
    make_folder(tmp_path, ["cover.png"])
    splits, printed = notes(capsys, tmp_path)
    assert (len(splits.train), len(splits.test)) == (8, 4)
    assert "images left out: files beside these folders (1)" in printed


def test_splits_within_each_class_are_refused(tmp_path):
    for folder in ("cat/train", "cat/test", "dog/train", "dog/test"):
        make_folder(tmp_path / folder, ["0.png"])
    assert "has folders for training and testing in cat/, dog/" in error_of(tmp_path)


@pytest.mark.parametrize("inner", [("cat", "dog"), ("train",), ("a", "b", "c")])
def test_classes_with_the_same_folders_are_doubted(tmp_path, capsys, inner):
    make_folder(tmp_path, [f"{c}/{x}/{i}.png" for c in ("x", "y") for x in inner for i in "012345"])
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == ("x", "y")
    assert f"each of the classes x, y has the folders {', '.join(inner)}" in printed


@pytest.mark.parametrize("outer", [("x", "y"), ("train/x", "train/y", "test/x"), ("in/x", "in/y")])
def test_folders_within_classes_are_named(tmp_path, capsys, outer):
    names = [f"{c}/{c[-1]}{k}/{i}.png" for c in outer for k in "12" for i in range(5)]
    splits, printed = notes(capsys, make_folder(tmp_path, names))
    assert splits.train.classes == ("x", "y")
    assert "the folders x1, x2, y1 and 1 more within the classes x, y are no classes" in printed


@pytest.mark.parametrize("name", ["unlabeled", "Unlabelled", "no_label", "train/unlabeled"])
def test_a_folder_of_images_without_a_class(tmp_path, capsys, name):
    above = name.rpartition("/")[0]
    folders = [name, *(os.path.join(above, label) for label in "ab")]
    make_folder(tmp_path, [f"{folder}/{i}.png" for folder in folders for i in range(5)])
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == ("a", "b")
    assert (splits.train.labels == UNLABELED).sum() == 5
    assert f"images without a class: {name.rpartition('/')[2]}/; rename a folder" in printed


def test_a_folder_of_labeled_images_beside_one_of_unlabeled_ones(tmp_path, capsys):
    folders = ["labeled/a", "labeled/b", "unlabeled"]
    make_folder(tmp_path, [f"{folder}/{i}.png" for folder in folders for i in range(5)])
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == ("a", "b")
    assert len(splits.train) + len(splits.test) == 15
    assert "images without a class: unlabeled/ (5)" in printed


@pytest.mark.parametrize("sole", ["cats", "label"])
def test_a_sole_class_beside_a_folder_without_a_class(tmp_path, capsys, sole):
    make_folder(tmp_path, [f"{folder}/{i}.png" for folder in (sole, "no_label") for i in range(5)])
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == ()
    assert "images without a class: no_label/; rename a folder that is a class" in printed
    assert "metadata" not in printed


def test_metadata_may_label_a_folder_called_unlabeled(tmp_path, capsys):
    make_folder(tmp_path, ["0.png", "1.png", "unlabeled/2.png", "unlabeled/3.png"])
    metadata(tmp_path, "file_name,label\n0.png,a\n1.png,b\nunlabeled/2.png,a\n")
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == ("a", "b")
    assert "without a class" not in printed


@pytest.mark.parametrize("name", ["-1", "unknown", "None"])
def test_a_class_that_may_be_none_is_named(tmp_path, capsys, name):
    make_folder(tmp_path, [f"{folder}/{i}.png" for folder in (name, "a") for i in range(5)])
    splits, printed = notes(capsys, tmp_path)
    assert name in splits.train.classes
    assert f"{name} is taken as a class; call a folder of images without a class" in printed


# ------------------------------------------------------------------- parquet files beside images
@pytest.mark.parametrize(
    "columns",
    [
        {"x": [1, 2]},
        {"file": ["a/0.png", "b/0.png"], "label": ["b", "a"], "probability": [0.6, 0.7]},
        {"file": ["a/0.png"], "features": [[0.1, 0.2]]},
        {"name": [b"no picture"]},
    ],
)
def test_a_parquet_file_without_images_changes_nothing(tmp_path, capsys, columns):
    class_folders(tmp_path / "train", 3, classes="ab")
    make_folder(tmp_path, ["test/a/deep/0.png", "test/b/0.png"])
    parquet(tmp_path / "made.parquet", **columns)
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == ("a", "b")
    assert (len(splits.train), len(splits.test)) == (6, 2)
    assert "parquet files without images, not read: made.parquet" in printed


@pytest.mark.parametrize("suffix", [".parquet", ".PARQUET"])
def test_a_parquet_file_of_images_is_read_beside_previews(tmp_path, capsys, suffix):
    parquet(tmp_path / f"pictures{suffix}", image=STRUCTS, label=HALVES)
    make_folder(tmp_path, [f"preview/{i}.png" for i in range(3)])
    splits, printed = notes(capsys, tmp_path)
    assert len(names_of(splits)) == 20
    assert f"which are read: pictures{suffix}; of the image files beside them (3)" in printed


def test_a_parquet_file_that_labels_the_images_beside_it_is_read(tmp_path):
    names = [f"pics/{i}.png" for i in range(20)]
    make_folder(tmp_path, names)
    parquet(tmp_path / "labels.parquet", file=names, label=HALVES)
    splits = opened(tmp_path)
    assert splits.train.classes == ("0", "1")
    assert len(names_of(splits)) == 20


def test_labels_of_metadata_grow_beside_a_parquet_file_of_features(tmp_path):
    make_folder(tmp_path, [f"{i}.png" for i in range(20)])
    metadata(tmp_path, "file_name,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(20)))
    before = set(opened(tmp_path).test.names)
    parquet(tmp_path / "features.parquet", file=["0.png"], features=[[0.1]])
    assert set(opened(tmp_path).test.names) == before


@pytest.mark.parametrize("folders", [["Test"], ["valid"], ["cat", "Testing"], ["dev", "val"]])
def test_no_training_folder(tmp_path, folders):
    make_folder(
        tmp_path, [f"{folder}/{c}/{i}.png" for folder in folders for c in "ab" for i in "01"]
    )
    message = error_of(tmp_path)
    assert "but none called train/" in message
    assert "rename it if it is a class" in message


def test_classes_that_are_called_like_a_split(tmp_path, capsys):
    make_folder(tmp_path, [f"{c}/{i}.png" for c in ("valid", "invalid") for i in range(5)])
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == ("invalid", "valid")
    assert "taken as classes, not as splits: valid" in printed


def test_empty_class_folders_are_named(tmp_path, capsys):
    class_folders(tmp_path / "train", 4, classes="ab")
    class_folders(tmp_path / "test", 2, classes="b")
    for name in ("train/c", "test/a", "test/c"):
        (tmp_path / name).mkdir()
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == splits.test.classes == ("a", "b")
    assert splits.test.labels.tolist() == [1, 1]  # one class is enough for a test folder
    assert "folders without images: train/c/" in printed
    assert "folders without images: test/a/, test/c/" in printed
    make_folder(tmp_path / "test/c", ["0.png"])
    assert "the training images lack: c" in error_of(tmp_path)


# ---------------------------------------------------------------------------------- metadata files
def metadata(root, text: str, name: str = "metadata.csv"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_images_beside_a_metadata_file_stay(tmp_path, capsys, kind):
    make_folder(tmp_path, [f"{i:02}.png" for i in range(20)])
    rows = {
        "file_name": [f"{i:02}.png" for i in range(8)],
        "label": ["ab"[i % 2] for i in range(8)],
    }
    table = datasets.Dataset.from_dict(rows)
    save = {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[kind]
    save(str(tmp_path / f"metadata.{kind}"))
    splits, printed = notes(capsys, tmp_path)
    assert len(names_of(splits)) == 20
    assert splits.train.classes == ("a", "b")
    labeled = [images.names[images.labels != UNLABELED] for images in splits]
    assert sorted(np.concatenate(labeled)) == rows["file_name"]
    assert "images that no metadata file lists stay: 12" in printed


def test_metadata_files_of_splits_and_of_folders_below(tmp_path):
    make_folder(tmp_path, [f"{part}/x/{i}.png" for part in ("train", "test") for i in range(6)])
    rows = "file_name,label\n" + "".join(
        f"x/{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(4)
    )
    for part in ("train", "test"):
        metadata(tmp_path, rows, f"{part}/metadata.csv")
    splits = opened(tmp_path)
    assert splits.train.labels.tolist() == splits.test.labels.tolist() == [1, 0, 1, 0, -1, -1]
    (tmp_path / "train/metadata.csv").unlink()
    below = rows.replace("x/", "../x/").replace("dog", "ant")
    metadata(tmp_path, below, "train/x/metadata.csv")
    (tmp_path / "test/metadata.csv").unlink()
    assert opened(tmp_path).train.classes == ("ant", "cat")


def test_metadata_beside_class_folders(tmp_path, capsys):
    """Captions leave the folders their classes; a label column replaces them."""
    class_folders(tmp_path, 5, classes="ab")
    metadata(tmp_path, 'file_name,text\na/0.png,"a, b\nand c"\nb/1.png,other\n')
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == ("a", "b")
    assert "folders are the classes; --data.label_column takes text" in printed
    metadata(tmp_path, "file_name,label\n" + "".join(f"a/{i}.png,{i % 2}\n" for i in range(5)))
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == ("0", "1")
    assert len(names_of(splits)) == 10
    assert "the metadata files have the labels; a, b are no classes" in printed


@pytest.mark.parametrize(
    ("encoding", "separator"), [("cp1252", ","), ("utf-16", "\t"), ("utf-8", ";")]
)
def test_metadata_as_excel_writes_it(tmp_path, capsys, encoding, separator):
    make_folder(tmp_path, [f"{i}.png" for i in range(20)])
    rows = [["file_name", "label"], *([f"{i}.png", ["Löwe", "Bär"][i % 2]] for i in range(20))]
    text = "".join(f"{separator.join(row)}\r\n" for row in rows)
    (tmp_path / "metadata.csv").write_bytes(text.encode(encoding))
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == ("Bär", "Löwe")
    said = "metadata.csv; it is no UTF-8 and is read as Windows-1252: Löwe, Bär"
    assert (said in printed) == (encoding == "cp1252")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", "file_name,label\n0.png,ağaç\n".encode("cp1254"), b"a,b\n\0"]
)
def test_metadata_that_is_no_text_is_said_once(tmp_path, content):
    make_folder(tmp_path, [f"{i}.png" for i in range(20)])
    (tmp_path / "metadata.csv").write_bytes(content)
    assert error_of(tmp_path).count("cannot read") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("NA", "None", "null", "007"),
        ("true", "false", "TRUE"),
        ("1", "2", "nan"),
        ("1000", "1e3", "inf"),
        ("2020-01-01 10:00:00", "2020-01-01T10:00:00"),
        ("99999999999999999999", "99999999999999999998"),
        ("1.5", "2"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "labels"])
def test_texts_of_labels_stay_what_they_are(tmp_path, words, kind):
    """The one rule, in all formats; a blank around a text and an empty cell are no part of it."""
    names = [f"{i}.png" for i in range(4 * len(words))]
    make_folder(tmp_path / "data", [*names, "none.png"])
    table = pd.DataFrame({"file_name": [*names, "none.png"], "label": [*(words * 4), " "]})
    label_set = LabelSet.parse("100pct")
    if kind == "csv":
        metadata(tmp_path / "data", "\ufeff" + table.to_csv(index=False).replace(",", ", "))
    elif kind == "labels":
        table.to_csv(tmp_path / "labels.csv", index=False)
        label_set = LabelSet.parse(str(tmp_path / "labels.csv"))
    elif kind == "jsonl":
        table.to_json(tmp_path / "data/metadata.jsonl", orient="records", lines=True)
    else:
        table.to_parquet(tmp_path / "data/metadata.parquet")
    splits = open_data(Data(train=str(tmp_path / "data"), test_fraction=0.25), label_set)
    assert splits.train.classes == tuple(sorted(words))


def test_numbers_of_a_metadata_file_are_in_their_order(tmp_path):
    """As they always were: classes keep their places. Programs write 3.0 for 3 beside a gap."""
    make_folder(tmp_path, [f"{i}.png" for i in range(24)])
    for cells in ([*range(12)], [float(i) for i in range(12)]):
        rows = "".join(f"{i}.png, {cell}\n" for i, cell in enumerate(cells * 2))
        metadata(tmp_path, "file_name,label\n" + rows)
        assert opened(tmp_path).train.classes == tuple(map(str, range(12)))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_of_too_many_columns(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(folders_module, "MOST_COLUMNS", 20)
    root = make_folder(tmp_path / "p", ["0.png"])
    row = pd.DataFrame([{"file_name": "0.png", **{f"x{i}": i for i in range(20)}}])
    file = root / f"metadata.{kind}"
    if kind == "csv":
        row.to_csv(file, index=False)
    elif kind == "jsonl":
        row.to_json(file, orient="records", lines=True)
    else:
        row.to_parquet(file)
    assert "has 21 columns, and at most 20 are read" in error_of(root)


def test_bad_metadata_is_one_line(tmp_path, capsys):
    make_folder(tmp_path, [f"{i}.png" for i in range(10)])
    rows = "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(10))
    metadata(tmp_path, "file_name,label\n" + rows + "../10.png,a\n")
    assert "names 1 missing images: ../10.png; remove" in error_of(tmp_path)
    splits, printed = notes(capsys, tmp_path, on_error="skip")
    assert len(names_of(splits)) == 10
    assert "names 1 missing images: ../10.png" in printed
    metadata(tmp_path, "file_name,label\n" + rows + "0.png,b\n")
    assert "several rows for 0.png" in error_of(tmp_path)
    metadata(tmp_path, "file_name,label\n0.png,a,b\n")
    assert "line 2: 3 cells under 2 columns" in error_of(tmp_path)
    metadata(tmp_path, "file_name,label,label\n" + rows)
    assert "has 2 columns called label" in error_of(tmp_path)
    metadata(tmp_path, "path,file,label\n")
    assert "has several image columns: path, file; call one file_name" in error_of(tmp_path)
    for head, reason in (("nr", "it has no column file_name"), ("name", "its column name names")):
        metadata(tmp_path, f"{head},label\nx,1\n")
        splits, printed = notes(capsys, tmp_path)
        assert splits.train.classes == ()
        assert f"metadata.csv is not read: {reason}" in printed


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("File_Name,Label", "{}.png,{}"),
        (" file , label ,note", "{}.png , {}"),
        ("note (a,b,c);image;class", ";{}.png;{}"),
        ("file_name,label", "/home/bob/photos/{}.png,{}"),
        ("Image Path,target", "C:\\photos\\x\\{}.png,{}"),
    ],
)
@pytest.mark.parametrize("folder", ["", "train/"])
def test_metadata_follows_the_rule_of_label_files(tmp_path, head, row, folder):
    make_folder(tmp_path, [f"{folder}{i}.png" for i in range(10)])
    if folder:
        make_folder(tmp_path, [f"test/{i}.png" for i in range(4)])
    rows = "".join(f"{row.format(i, 'ab'[i % 2])}\n" for i in range(8)) + f"{folder}9.png\n"
    metadata(
        tmp_path,
        f"{head}\n{rows if ';' not in head else rows.replace(f'{folder}9.png', '')}",
        f"{folder}metadata.csv",
    )
    splits = opened(tmp_path)
    assert splits.train.classes == ("a", "b")


@pytest.mark.parametrize("name", ["{}.png", "../{}.png", ".\\{}.png"])
def test_a_name_of_a_metadata_file_that_may_be_several_images(tmp_path, name):
    make_folder(tmp_path, [f"{folder}/{i}.png" for folder in "abc" for i in range(3)])
    metadata(tmp_path, "file_name,label\n" + name.format(1) + ",cat\n")
    assert "may be several images; write more of the path" in error_of(tmp_path)


def test_labels_that_are_lists_are_named(tmp_path, capsys):
    make_folder(tmp_path, [f"{i}.png" for i in range(10)])
    rows = "".join(f'{{"file_name": "{i}.png", "label": ["a"]}}\n' for i in range(10))
    metadata(tmp_path, rows, "metadata.jsonl")
    splits, printed = notes(capsys, tmp_path)
    assert splits.train.classes == ()
    assert "metadata.jsonl: the column label is not read: it holds lists" in printed


def test_images_beside_a_label_file_stay(tmp_path):
    make_folder(tmp_path, [f"{i}.png" for i in range(20)])
    rows = "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(8))
    metadata(tmp_path, "file,label\n" + rows, "labels.csv")
    splits = opened(tmp_path, labels=str(tmp_path / "labels.csv"))
    assert len({*names_of(splits)}) == 20
    assert splits.train.classes == ("a", "b")


@pytest.mark.parametrize("folder", ["val", "test", "validation/images"])
@pytest.mark.parametrize("option", ["labels", "test"])
def test_a_file_may_label_a_split_beside_class_folders(tmp_path, folder, option):
    names = [f"train/{c}/{i}.png" for c in "ab" for i in range(5)]
    tests = [f"{folder}/{i}.png" for i in range(4)]
    make_folder(tmp_path, [*names, *tests])
    of_test = [f"{name if option == 'labels' else name[-5:]},a" for name in tests]
    rows = [*(f"{name},{name[6]}" for name in names), *of_test] if option == "labels" else of_test
    file = tmp_path.parent / "l.csv"
    file.write_text("file,label\n" + "\n".join(rows))
    if option == "labels":
        splits = opened(tmp_path, str(file))
        assert len(draw_labels(splits, LabelSet.parse(str(file)), 0).ids) == 10
    else:
        splits = opened(tmp_path, test=str(file))
    assert sorted(splits.test.names) == tests
    assert splits.train.classes == splits.test.classes == ("a", "b")


@pytest.mark.parametrize("folder", ["val", "test", "validation/images"])
def test_a_label_file_may_label_a_split_without_classes(tmp_path, folder):
    names = [f"train/{i}.png" for i in range(8)] + [f"{folder}/{i}.png" for i in range(4)]
    make_folder(tmp_path, names)
    rows = "".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(names))
    metadata(tmp_path, "file,label\n" + rows, "labels.csv")
    splits = opened(tmp_path, labels=str(tmp_path / "labels.csv"))
    assert splits.train.names.tolist() == names[:8]
    assert splits.test.names.tolist() == names[8:]
    assert splits.test.labels.tolist() == [0, 1, 0, 1]
