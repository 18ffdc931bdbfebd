"""Any source becomes the same ImageSet: formats, columns, splits."""

import json
import os
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shared.config.labelset import LabelSet
from shared.config.sections import Data
from shared.data import sources
from shared.data.images import UNLABELED
from shared.data.sources import OPENED, open_beside, open_data, open_images
from shared.runtime.errors import UserError
from tests.support.photos import class_folders, make_folder
from tests.support.sources import HALVES, PNGS, STRUCTS, encoded, error_of, opened, parquet


# -------------------------------------------------------------------------------------- folders
def test_folder_of_classes(tmp_path):
    train, test = opened(class_folders(tmp_path, 10))
    assert train.classes == test.classes == ("a", "b", "c")
    assert sorted([*train.names, *test.names]) == [f"{c}/{i}.png" for c in "abc" for i in range(10)]
    assert all(name[0] == "abc"[k] for name, k in zip(train.names, train.labels, strict=True))
    assert np.bincount(test.labels).tolist() == [2, 2, 2]  # a stratified fifth, held out
    assert train.pixels[:].shape == (24, 3, 8, 8)
    expected = np.asarray(Image.open(tmp_path / train.names[5]))
    np.testing.assert_array_equal(train.pixels[5].permute(1, 2, 0), expected)


def test_folder_of_images_only(tmp_path):
    make_folder(tmp_path, ["x.png", "deep/er/y.png", "deep/z.png"])
    train, test = opened(tmp_path)
    assert test is None
    assert train.classes == ()
    assert (train.labels == UNLABELED).all()
    assert set(train.names) == {"x.png", "deep/er/y.png", "deep/z.png"}


def test_images_beside_the_class_folders_are_unlabeled(tmp_path):
    class_folders(tmp_path, 5)
    make_folder(tmp_path, ["new0.png", "new1.png"])
    train, test = opened(tmp_path)
    assert len(train) + len(test) == 17
    assert set(train.names[train.labels == UNLABELED]) == {"new0.png", "new1.png"}


def test_classes_are_the_folders_below_the_root_however_deep_the_images(tmp_path):
    """As in tiny-imagenet: train/<class>/images/*.JPEG."""
    make_folder(tmp_path, [f"{c}/images/{i}.JPEG" for c in "ab" for i in range(5)])
    assert opened(tmp_path)[0].classes == ("a", "b")


def test_train_and_test_folders(tmp_path):
    class_folders(tmp_path / "train", 4)
    class_folders(tmp_path / "test", 2, classes="ca")
    train, test = opened(tmp_path)
    assert (len(train), len(test)) == (12, 4)
    assert train.names[0] == "train/a/0.png"
    assert test.classes == train.classes
    assert test.labels.tolist() == [0, 0, 2, 2]  # by name, although test lacks class b


def test_odd_names_hide_no_image(tmp_path):
    """A file called test_1.png is no split, brackets are no pattern, links are followed."""
    root = class_folders(tmp_path / "photos [2024] ü", 4)
    away = make_folder(tmp_path / "away", [f"{i}.png" for i in range(5)])
    make_folder(root, ["a/test_1.png", "b/train-2.PNG", "c/we*ird ?name#%20.png"])
    (root / "d").symlink_to(away)
    make_folder(root, ["a/._5.png", "__MACOSX/a/0.png", ".hidden/0.png"])
    (root / "a/notes.txt").write_text("not an image")
    (root / "Thumbs.db").write_text("nor this")
    train, test = opened(root)
    assert train.classes == ("a", "b", "c", "d")
    assert len(train) + len(test) == 12 + 3 + 5


def test_metadata_csv_of_the_hub_gives_the_labels(tmp_path):
    make_folder(tmp_path, [f"{i}.png" for i in range(20)])
    rows = "".join(f"{i}.png,{'xy'[i % 2]}\n" for i in range(20))
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + rows)
    train, test = opened(tmp_path)
    assert train.classes == ("x", "y")
    assert len(train) == 20  # stage 1 sees the images for testing too
    labels = train.labels.copy()
    assert labels[train.held_out].tolist() == [-1] * len(test)
    labels[train.held_out] = test.labels
    assert [int(name[:-4]) % 2 for name in train.names] == labels.tolist()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere/at/all", "no such folder or file"),
        ("./nowhere", "no such folder or file"),
        ("missing.parquet", "no such folder or file"),
        ("", "an empty name is not a"),
        (
            "no-such/data-set",
            "no folder or file is called 'no-such/data-set', and the hub cannot be reached",
        ),
    ],
)
def test_no_such_source(source, says):
    assert says in error_of(source)


def test_empty_folder_and_folder_of_other_files(tmp_path):
    assert "no images in" in error_of(tmp_path)
    (tmp_path / "readme.txt").write_text("hello")
    assert "expected" in error_of(tmp_path)
    assert "is not a .parquet file" in error_of(tmp_path / "readme.txt")


# ------------------------------------------------------------------------- parquet and the columns
def test_parquet_as_the_hub_writes_it(tmp_path):
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"])
    )
    rows = {"image": STRUCTS, "label": HALVES}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "b [1].parquet")
    train, test = opened(tmp_path / "b [1].parquet")
    assert train.classes == ("cat", "dog")
    assert (len(train), len(test)) == (16, 4)
    assert train.names[0] == str(train.pixels[0][0, 0, 0].item())  # called by row number


def test_parquet_of_other_programs_with_labels_missing(tmp_path):
    """Bytes or structs; null, NaN and -1 are no class."""
    words = ["x", "y", None, *"xy" * 8, "x"]
    train, _ = opened(parquet(tmp_path / "a.parquet", pic=STRUCTS, label=words))
    assert train.classes == ("x", "y")
    assert train.names[train.labels == UNLABELED].tolist() == ["2"]
    numbers = [0.0, 1.0, float("nan"), *HALVES[3:]]
    train, _ = opened(parquet(tmp_path / "b.parquet", pic=PNGS, label=numbers))
    assert train.classes == ("0", "1")
    assert (train.labels == UNLABELED).sum() == 1
    train, _ = opened(parquet(tmp_path / "c.parquet", pic=PNGS, label=[-1, *HALVES[1:]]))
    assert train.classes == ("0", "1")
    assert train.names[train.labels == UNLABELED].tolist() == ["0"]


def test_folder_of_parquet_splits(tmp_path):
    for split in ("train", "test"):
        parquet(tmp_path / f"data/{split}-00000-of-00001.parquet", image=STRUCTS, label=HALVES)
    train, test = opened(tmp_path)
    assert (len(train), len(test)) == (20, 20)


def test_columns_can_be_named(tmp_path):
    path = parquet(tmp_path / "a.parquet", left=STRUCTS, right=STRUCTS[::-1], kind=HALVES)
    assert "several image columns: left, right; choose with --data.image_column" in error_of(path)
    train, test = opened(path, image_column="right", label_column="kind")
    assert train.pixels[0][0, 0, 0] == 19 - int(train.names[0])
    assert test.classes == ("0", "1")
    message = error_of(path, image_column="middle")
    assert "data.image_column=middle is not a column; there are left, right, kind" in message
    assert "no images" in error_of(path, image_column="kind")
    assert "data.label_column=sort" in error_of(path, image_column="left", label_column="sort")


def test_columns_that_are_not_there(tmp_path):
    path = parquet(tmp_path / "a.parquet", text=["a", "b"])
    assert "has no image column; its columns are text" in error_of(path)
    path = parquet(tmp_path / "b.parquet", image=STRUCTS, label=[[k] for k in HALVES])
    assert "not one class per image" in error_of(path)
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and nonsense")
    assert "cannot load" in error_of(tmp_path / "c.parquet")


# ------------------------------------------------------------------------------------------- hub
def hub(monkeypatch, labels: dict[str, dict[str, datasets.ClassLabel]], rows: dict, image="image"):
    """Let the hub have this data set; what it was asked for is returned."""
    asked = []
    features = datasets.Features({image: datasets.Image(), **labels})
    splits = datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({image: STRUCTS, **columns}, features=features)
            for split, columns in rows.items()
        }
    )

    def load_dataset(*args, split=None, **options):
        asked.append((*args, split))
        return splits[split] if split else splits

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_hub_with_other_column_names(monkeypatch):
    """As uoft-cs/cifar10: img, label."""
    kinds = {"label": datasets.ClassLabel(names=["cat", "dog"])}
    rows = {"train": {"label": HALVES}, "test": {"label": HALVES[::-1]}}
    asked = hub(monkeypatch, kinds, rows, image="img")
    train, test = opened("uoft-cs/cifar10")
    assert asked == [("uoft-cs/cifar10", None, None)]
    assert train.classes == ("cat", "dog")
    assert test.labels.tolist() == HALVES[::-1]
    assert train.pixels[7][0, 0, 0] == 7


def test_hub_test_split_without_labels_is_passed_over(monkeypatch):
    """As ILSVRC/imagenet-1k: the test labels are all -1, validation has them."""
    kinds = {"label": datasets.ClassLabel(names=["cat", "dog"])}
    rows = {
        "train": {"label": HALVES},
        "test": {"label": [-1] * 20},
        "validation": {"label": HALVES[::-1]},
    }
    hub(monkeypatch, kinds, rows)
    train, test = opened("ILSVRC/imagenet-1k")
    assert len(train) == 20
    assert test.labels.tolist() == HALVES[::-1]


def test_hub_without_any_labeled_test_split_holds_some_out(monkeypatch):
    kinds = {"label": datasets.ClassLabel(names=["cat", "dog"])}
    hub(monkeypatch, kinds, {"train": {"label": HALVES}, "test": {"label": [-1] * 20}})
    train, test = opened("some/contest")
    assert (len(train), len(test)) == (16, 4)
    assert "the test images in some/contest@test have no labels" in error_of(
        "some/contest", test="some/contest@test"
    )


def test_hub_with_two_label_columns(monkeypatch):
    """As cifar100: fine_label, coarse_label."""
    kinds = {
        "fine_label": datasets.ClassLabel(names=["cat", "dog"]),
        "coarse_label": datasets.ClassLabel(names=["animal"]),
    }
    hub(monkeypatch, kinds, {"train": {"fine_label": HALVES, "coarse_label": [0] * 20}})
    message = error_of("cifar100")
    assert "several label columns: fine_label, coarse_label" in message
    assert "--data.label_column" in message
    assert opened("cifar100", label_column="fine_label")[0].classes == ("cat", "dog")
    # unlabeled images may come from there without a choice
    assert len(opened("digits", unlabeled="cifar100")[0]) == 1437 + 20


def test_hub_configuration_and_split(monkeypatch):
    kinds = {"label": datasets.ClassLabel(names=["cat", "dog"])}
    asked = hub(monkeypatch, kinds, {"extra[:50%]": {"label": HALVES}})
    train, _ = opened("me/mine:small@extra[:50%]")
    assert asked == [("me/mine", "small", "extra[:50%]")]
    assert train.classes == ("cat", "dog")


def test_hub_reasons_are_passed_on(monkeypatch):
    def gated(*args, **options):
        raise datasets.exceptions.DatasetNotFoundError("'a/b' is a gated dataset. Ask for access.")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    assert "cannot load a/b: 'a/b' is a gated dataset. Ask for access." in error_of("a/b")


# ------------------------------------------------------------------------------ splits, unlabeled
def test_digits_are_embedded_and_split_the_same_every_time():
    train, test = opened("digits")
    assert (len(train), len(test)) == (1437, 360)
    assert set(train.names).isdisjoint(test.names)
    assert train.pixels[:].shape == (1437, 3, 8, 8)
    assert train.pixels[:].max() == 255
    assert np.bincount(test.labels).min() >= 34
    again = opened("digits")
    assert again.train.fingerprint == train.fingerprint
    assert opened("digits", split_seed=1).train.fingerprint != train.fingerprint


def test_too_few_labeled_images_to_hold_out(tmp_path):
    """One per class, or nothing left on one side: all of them are for training."""
    assert opened(class_folders(tmp_path / "one", 1)).test is None
    assert opened(class_folders(tmp_path / "two", 2), test_fraction=0.9).test is None
    assert len(opened(class_folders(tmp_path / "five", 5), test_fraction=0.01).train) == 15


def test_classes_of_one_image_are_named_where_none_is_held_out(tmp_path, capsys):
    folder = class_folders(tmp_path, 5)
    (folder / "z").mkdir()
    shutil.copy(next((folder / "a").iterdir()), folder / "z")
    assert open_data(Data(train=str(folder)), LabelSet.parse("1pct"), progress=True).test is None
    assert "too few labeled ones to hold some out, z with one image;" in capsys.readouterr().out


def test_what_is_announced_of_a_class_that_only_test_images_have(tmp_path, capsys):
    folder = make_folder(tmp_path / "p", [f"{i}.png" for i in range(20)])
    labels, tests = tmp_path / "labels.csv", tmp_path / "test.csv"
    labels.write_text("file,label\n" + "".join(f"{i}.png,{'xy'[i % 2]}\n" for i in range(10)))
    tests.write_text("file,label\n" + "".join(f"{i}.png,{'zy'[i % 2]}\n" for i in range(10, 16)))
    data = Data(train=str(folder), test=str(tests))
    open_data(data, LabelSet.parse(str(labels)), progress=True)
    said = capsys.readouterr().out
    assert "note: no training image has the label of z, which test images have" in said


def test_a_name_that_is_looked_for_on_the_hub_is_said_before_the_wait(capsys):
    with pytest.raises(UserError, match="the hub cannot be reached"):
        open_data(Data(train="no-such/data-set"), LabelSet.parse("1pct"), progress=True)
    assert "no-such/data-set: no folder or file here, so a data set of the hub is looked for" in (
        capsys.readouterr().out
    )


def test_images_that_are_shown_otherwise_are_announced_once(tmp_path, capsys):
    """A row with published weights opens them at another size: the run's stay open, as they are."""
    data, labels = Data(train=str(class_folders(tmp_path, 1))), LabelSet.parse("1pct")
    first = open_data(data, labels, progress=True)
    assert "no test images" in capsys.readouterr().out
    other = open_beside(replace(data, image_size=16, std=(2.0, 2.0, 2.0)), labels)
    assert other.train.names.tolist() == first.train.names.tolist()
    assert open_data(data, labels, progress=True) is first
    assert not capsys.readouterr().out


def test_test_classes_that_training_lacks(tmp_path):
    class_folders(tmp_path / "train", 3, classes="ab")
    class_folders(tmp_path / "test", 3, classes="bz")
    assert "the training images lack: z" in error_of(tmp_path)


def test_unlabeled_test_images_stay_unlabeled(tmp_path):
    class_folders(tmp_path / "train", 3, classes="abc")
    class_folders(tmp_path / "test", 2, classes="bc")
    make_folder(tmp_path / "test", ["unknown.png"])
    _, test = opened(tmp_path)
    assert test.labels[np.asarray(test.names) == "test/unknown.png"].tolist() == [UNLABELED]


def test_extra_unlabeled_images(tmp_path):
    class_folders(tmp_path / "train", 10)
    class_folders(tmp_path / "more", 3, classes="xy")  # their folders do not count
    train, test = opened(tmp_path / "train", unlabeled=str(tmp_path / "more"))
    assert (len(train), len(test)) == (24 + 6, 6)
    assert train.classes == ("a", "b", "c")
    assert (train.labels[24:] == UNLABELED).all()
    assert (train.labels[:24] != UNLABELED).all()
    assert train.names[24] == "unlabeled/x/0.png"
    expected = np.asarray(Image.open(tmp_path / "more/x/0.png"))
    np.testing.assert_array_equal(train.pixels[24].permute(1, 2, 0), expected)
    on_disk = opened(tmp_path / "train", unlabeled=str(tmp_path / "more"), loading="workers")
    np.testing.assert_array_equal(on_disk.train.decode(24), train.pixels[24])


def test_extra_unlabeled_images_of_another_size(tmp_path):
    class_folders(tmp_path / "train", 10)
    make_folder(tmp_path / "more", ["0.png"], size=(20, 10))
    train, _ = opened(tmp_path / "train", unlabeled=str(tmp_path / "more"))
    assert train.pixels is None
    assert train.decode(24).shape == (3, 10, 20)
    message = error_of(tmp_path / "train", unlabeled=str(tmp_path / "more"), loading="memory")
    assert "8x8" in message
    assert "20x10" in message


# ---------------------------------------------------------------------------------- CSV labels
def test_csv_labels_of_a_folder_without_classes(tmp_path):
    make_folder(tmp_path / "p", [f"{i}.png" for i in range(30)])
    rows = "".join(f"{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(20))
    (tmp_path / "labels.csv").write_text("file,label\n" + rows)
    train, test = opened(tmp_path / "p", labels=str(tmp_path / "labels.csv"))
    assert train.classes == ("cat", "dog")
    assert len(train) == 30  # stage 1 sees those of test too
    assert (train.labels == UNLABELED).sum() == 10 + len(test)
    assert [1 - int(name[:-4]) % 2 for name in test.names] == test.labels.tolist()


def test_csv_labels_replace_folders_that_are_not_its_classes(tmp_path):
    """Photos sorted by year."""
    class_folders(tmp_path / "p", 10, classes="34")
    rows = "".join(f"{y}/{i}.png,{'cat' if i % 2 else 'dog'}\n" for y in "34" for i in range(5))
    (tmp_path / "labels.csv").write_text("file,label\n" + rows)
    train, test = opened(tmp_path / "p", labels=str(tmp_path / "labels.csv"))
    assert train.classes == ("cat", "dog")
    assert (train.labels != UNLABELED).sum() + len(test) == 10


def test_relative_sources(tmp_path, monkeypatch):
    class_folders(tmp_path / "here", 5)
    monkeypatch.chdir(tmp_path)
    for source in ("here", "./here", "../" + os.path.basename(tmp_path) + "/here"):
        train, _ = opened(source)
        assert train.names[0].startswith("a/")


# ------------------------------------------------------------------------ images without labels
def test_images_of_folders_and_files_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(make_folder(tmp_path, ["b/x/2.png", "b/1.png", "a.png", "train/c/3.png"]))
    (tmp_path / "b/notes.txt").write_text("x")
    images = open_images(["b", "a.png", tmp_path / "train", "a.png"], Data(), progress=True)
    expected = ["b/1.png", "b/x/2.png", "a.png", f"{tmp_path}/train/c/3.png", "a.png"]
    assert images.names.tolist() == expected  # no split, no class
    assert (images.labels == UNLABELED).all()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "note: b: passed over, since no images: 1 (1 .txt)\n"
    for position, name in enumerate(images.names):
        whole = np.asarray(Image.open(name)).transpose(2, 0, 1)
        np.testing.assert_array_equal(images.decode(position).numpy(), whole)


@pytest.mark.parametrize("name", ["gone", "gone.png", "gone.parquet"])
def test_images_that_are_not_there(tmp_path, name):
    make_folder(tmp_path, ["a.png"])
    for paths in ([tmp_path / name], [tmp_path / "a.png", tmp_path / name]):
        with pytest.raises(UserError, match=r"no such file or folder: .*gone"):
            open_images(paths, Data())
    with pytest.raises(UserError, match=r"no such f.*gone"):
        open_images([tmp_path / name], Data(on_error="skip"))


@pytest.mark.parametrize("below", [False, True])
def test_names_that_are_no_text(tmp_path, below):
    make_folder(tmp_path / "new", ["a.png"])
    odd = os.fsdecode(b"\xff.png")
    shutil.copy(tmp_path / "new/a.png", tmp_path / "new" / odd)
    sources = [tmp_path / "new"] if below else [tmp_path / "new" / odd, tmp_path / "new/a.png"]
    with pytest.raises(UserError, match=r"1 names of files are not UTF-8: .*\\xff.png"):
        open_images(sources, Data())
    images = open_images(sources, Data(on_error="skip"))
    assert sorted(images.names)[0].endswith("\\xff.png")
    with pytest.raises(UserError, match="cannot read"):
        images.decode(int(np.argmin(images.names)))


def test_folders_whose_name_is_no_text(tmp_path):
    make_folder(tmp_path / "new", ["a.png", "b.png"])
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    (tmp_path / "new").rename(odd)
    with pytest.raises(UserError, match=r"1 names of files are not UTF-8: .*caf\\xe9"):
        open_images([odd], Data())
    assert len(open_images([odd], Data(on_error="skip"))) == 2


def test_no_fifo_is_opened(tmp_path):
    make_folder(tmp_path / "new", ["a.png"])
    for name in ("new/x.png", "y.png", "z.parquet"):
        os.mkfifo(tmp_path / name)
    assert len(open_images([tmp_path / "new"], Data())) == 1
    with pytest.raises(UserError, match="no such file"):
        open_images([tmp_path / "y.png"], Data()).decode(0)
    with pytest.raises(UserError, match=r"is not a .parquet file"):
        open_images([tmp_path / "z.parquet"], Data())


# -------------------------------------------------------------------------- hostile parquet files
def noted(path, names, **columns):
    """A parquet file with what Hugging Face notes of its columns: a list of classes."""
    kinds = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    notes = json.dumps({"info": {"features": kinds}})
    pq.write_table(pa.table(columns).replace_schema_metadata({"huggingface": notes}), path)
    return path


@pytest.mark.parametrize(
    ("names", "classes"),
    [([3, 5], ("3", "5")), ([0.5, "x"], ("0.5", "x")), ([True, 2], ("True", "2"))],
)
def test_numbers_that_name_classes_are_text(tmp_path, names, classes):
    train = opened(noted(tmp_path / "t.parquet", names, image=STRUCTS, label=HALVES)).train
    assert train.classes == classes
    assert len(train.labels_fingerprint) == 16


@pytest.mark.parametrize("names", [["a", None], [["a"], ["b"]], [{"x": 1}, "a"], [1, "1"]])
def test_classes_that_are_no_different_texts_are_refused(tmp_path, names):
    message = error_of(noted(tmp_path / "t.parquet", names, image=STRUCTS, label=HALVES))
    assert "different texts" in message or "cannot load" in message


@pytest.mark.parametrize("label", [2, 7, -5])
def test_label_numbers_beyond_their_list_are_refused(tmp_path, label):
    labels = [*HALVES[1:], label]
    message = error_of(noted(tmp_path / "t.parquet", ["a", "b"], image=STRUCTS, label=labels))
    assert f"holds the class {label}, but its list of classes has 2 names" in message


@pytest.mark.parametrize("kind", ["struct", "bytes", "empty", "all"])
def test_null_images_are_unreadable_ones(tmp_path, kind):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = {
        "struct": pa.array([None, *STRUCTS[1:]], struct),
        "bytes": pa.array([None, *PNGS[1:]], pa.binary()),
        "empty": pa.array([b"", *PNGS[1:]], pa.binary()),
        "all": pa.array([None] * 20, pa.binary()),
    }[kind]
    file = parquet(tmp_path / "t.parquet", image=column, label=HALVES)
    assert "cannot read image 0: it is empty" in error_of(file)
    if kind == "all":
        assert "none of the 20 images can be read" in error_of(file, on_error="skip")
    else:
        train, test = opened(file, on_error="skip")
        assert len(train) + len(test) == 19
        assert train.skipped == ("0",)


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([1, 2**45] * 10, pa.timestamp("s")),
        pa.array([[1]] * 20),
        pa.array([{"x": 1}] * 20),
        pa.array(["a" * 5000, "b"] * 10),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels):
    assert "label" in error_of(parquet(tmp_path / "t.parquet", image=STRUCTS, label=labels))


def test_numbers_beyond_whole_ones_stay_what_they_are(tmp_path):
    file = parquet(tmp_path / "t.parquet", image=STRUCTS, label=[float("inf"), 1.0] * 10)
    assert opened(file).train.classes == ("1.0", "inf")


def test_what_is_called_parquet_and_is_no_file_is_passed_over_or_refused(tmp_path, make_irregular):
    class_folders(tmp_path / "p", 5)
    odd = tmp_path / "p/x.parquet"
    make_irregular(odd)
    assert len(opened(tmp_path / "p").train) == 12
    if not os.path.isdir(odd):
        assert str(odd) in error_of(odd)


# ------------------------------------------------------------------------------- parquet in shards
def shards(folder, **columns):
    """Two files of ten images each."""
    for i, rows in enumerate((slice(0, 10), slice(10, 20))):
        part = {"image": STRUCTS[rows], "label": HALVES[rows]} | columns
        parquet(folder / f"part-{i}.parquet", **part)
    return folder


@pytest.mark.parametrize("pattern", ["*.parquet", "part-?.parquet", "part-[01].parquet"])
def test_a_pattern_takes_all_its_files_in_order(tmp_path, pattern):
    splits = opened(shards(tmp_path / "shards") / pattern, test_fraction=0.01)
    assert splits.train.names.tolist() == [str(i) for i in range(20)]
    assert [int(splits.train.decode(i)[0, 0, 0]) for i in (0, 9, 10, 19)] == [0, 9, 10, 19]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("*.parqet", "matches nothing; it has to name .parquet files"),
        ("*", "matches"),
        ("sub/*/x.parquet", "matches nothing"),
    ],
)
def test_patterns_that_are_refused(tmp_path, pattern, says):
    shards(tmp_path / "shards")
    (tmp_path / "shards" / "notes.txt").write_text("")
    assert says in error_of(tmp_path / "shards" / pattern)


def test_paths_in_shards_stay_below_the_folder_of_the_pattern(tmp_path):
    outside = [{"bytes": None, "path": "../away.png"}] * 10
    shards(tmp_path / "shards", image=outside)
    assert "outside of its folder" in error_of(tmp_path / "shards" / "*.parquet")


def test_a_folder_with_signs_of_a_pattern_in_its_name_is_a_folder(tmp_path):
    root = class_folders(tmp_path / "a[1]*", 4)
    assert len(opened(root, test_fraction=0.01).train) == 12


def test_parquet_files_of_the_hub_are_asked_for_as_they_are_named(monkeypatch):
    def load(*args, **options):
        assert (args, options) == (("parquet",), {"data_files": {"train": source}})
        raise ConnectionError

    source = "hf://datasets/a/b/data/*.parquet"
    monkeypatch.setattr(sources.datasets, "load_dataset", load)
    assert "the hub cannot be reached" in error_of(source)


# ------------------------------------------------------------------------- named in a wrong way
@pytest.mark.parametrize("option", ["test", "unlabeled"])
@pytest.mark.parametrize("way", ["p", "p/../p", "link"])
def test_the_training_images_once_more_are_refused(tmp_path, option, way):
    root = class_folders(tmp_path / "p", 5, classes="ab")
    (tmp_path / "link").symlink_to(root)
    message = error_of(root, **{option: str(tmp_path / way)})
    assert "the training images themselves" in message


def test_a_folder_may_be_named_for_its_other_split(tmp_path):
    class_folders(tmp_path / "train", 4)
    class_folders(tmp_path / "test", 2)
    assert len(opened(tmp_path, test=str(tmp_path)).test) == 6


def test_arrow_files_are_refused_with_what_to_do(tmp_path):
    table = datasets.Dataset.from_dict({"label": [0, 1]})
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table).save_to_disk(tmp_path / "all")
    for source in ("one", "all", "one/data-00000-of-00001.arrow"):
        assert ".to_parquet(FILE.parquet)" in error_of(tmp_path / source)


@pytest.mark.parametrize("name", ["t.parquet", "T.PARQUET", "*.parquet"])
def test_a_parquet_file_without_rows(tmp_path, name):
    file = parquet(tmp_path / name.replace("*", "t"), image=STRUCTS, label=HALVES)
    pq.write_table(pq.read_table(file)[:0], file)
    assert "a parquet file there has no rows" in error_of(tmp_path / name)


@pytest.mark.parametrize(
    ("column", "form"),
    [
        ("file", "/home/bob/pics/{}.png"),
        ("number", "{}.png"),
        ("file", "https://x.org/pics/{}.png"),
        ("Image ID", "C:\\pics\\{}.png"),
        ("file", "{}"),
        ("Id", ""),
        ("number", "{}"),
    ],
)
def test_paths_of_another_machine_in_a_parquet_file(tmp_path, column, form):
    """The longest end counts, as in a CSV of labels; an id needs the column's name."""
    names = [f"pics/{i}.png" for i in range(10)]
    make_folder(tmp_path, names)
    paths = [form.format(i) if form else i for i in range(10)]
    pq.write_table(pa.table({column: paths, "label": ["a", "b"] * 5}), tmp_path / "t.parquet")
    named = column == "number" and form == "{}"
    options = {"image_column": column} if named else {}
    splits = opened(tmp_path / ("t.parquet" if named else ""), **options)
    assert sorted([*splits.train.names, *splits.test.names]) == names
    assert splits.train.classes == ("a", "b")


BITS = {
    "numbers": ([1, 0], [0, 1]),
    "truth": ([True, False], [False, None]),
    "text": ["10", "01"],
}


@pytest.mark.parametrize("kind", ["numbers", "truth", "text", "csv", "jsonl", "folder"])
def test_a_column_for_each_class_of_a_table(tmp_path, kind, capsys):
    """As in a CSV of labels; in a metadata file too, and in a parquet file beside its images."""
    names = [f"{i}.png" for i in range(10)]
    cat, dog = BITS.get(kind, BITS["numbers"])
    table = {"file_name": names, "cat": [*cat] * 5, "dog": [*dog] * 5}
    if kind == "truth":
        table["dog"][1::2] = [True] * 4 + [None]
    if kind in ("numbers", "truth", "text"):
        parquet(tmp_path / "t.parquet", **(table | {"file_name": STRUCTS[:10]}))
    else:
        make_folder(tmp_path, names)
        rows = pd.DataFrame(table)
        if kind == "csv":
            rows.to_csv(tmp_path / "metadata.csv")
        elif kind == "jsonl":
            rows.to_json(tmp_path / "metadata.jsonl", orient="records", lines=True)
        else:
            rows.to_parquet(tmp_path / "labels.parquet")
    OPENED.clear()
    splits = open_data(Data(train=str(tmp_path)), LabelSet.parse("1pct"), progress=True)
    assert "a column for each class: cat, dog" in capsys.readouterr().out
    train, test = splits
    assert train.classes == ("cat", "dog")
    labels = [*train.labels[train.training_ids], *test.labels]
    assert sorted(labels) == [-1] * (kind == "truth") + [0] * 5 + [1] * (5 - (kind == "truth"))


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"cat": [1, 1], "dog": [0, 1]}, "no classes: an image has cat, dog"),
        ({"is_train": [1, 0], "is_test": [0, 1]}, ""),
        ({"cat": [1, 0], "dog": [0, 2]}, ""),
        ({"flag": [1, 0]}, ""),
        ({"cat": [1, 0], "dog": [0, 1], "width": [8, 9]}, ""),
    ],
)
def test_columns_that_are_not_one_for_each_class(tmp_path, columns, says, capsys):
    file = parquet(tmp_path / "t.parquet", image=STRUCTS[:2], **columns)
    splits = open_data(Data(train=str(file)), LabelSet.parse("1pct"), progress=True)
    assert splits.train.classes == ()
    assert says in capsys.readouterr().out
    assert splits.train.columns == tuple(columns)


def test_a_path_of_another_machine_never_leads_out_of_the_folder(tmp_path):
    make_folder(tmp_path, ["away/0.png", "in/a/1.png", "in/b/1.png"])
    for path, says in (
        (f"{tmp_path}/away/0.png", "outside of its folder"),
        ("../away/0.png", "outside of its folder"),
        ("1.png", "may be several images"),
    ):
        table = pa.table({"file": [path, "a/1.png"], "label": ["a", "b"]})
        pq.write_table(table, tmp_path / "in/t.parquet")
        assert says in error_of(tmp_path / "in/t.parquet", image_column="file")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("column", ["label", "Class", "species"])
def test_labels_that_are_bytes(tmp_path, kind, column):
    images = [encoded(Image.new("RGB", (4, 4), (i, 0, 0))) for i in range(10)]
    options = {"label_column": column} if column == "species" else {}
    for texts in ([b"blue", "grün".encode()], [b"blue", b"\xff"]):
        labels = pa.array([*(texts * 4), None, b" "], kind)
        pq.write_table(pa.table({"image": images, column: labels}), tmp_path / "t.parquet")
        if texts[1] == b"\xff":
            assert "holds bytes that are no text" in error_of(tmp_path / "t.parquet", **options)
        else:
            assert opened(tmp_path / "t.parquet", **options).train.classes == ("blue", "grün")


@pytest.mark.parametrize("folders", [["a"], ["c"], ["b", "c"]])
def test_test_images_of_one_class_alone(tmp_path, folders):
    train = class_folders(tmp_path / "train", 4)
    make_folder(tmp_path / "t", [f"{folder}/{i}.png" for folder in folders for i in range(3)])
    test = opened(train, test=str(tmp_path / "t")).test
    assert {test.classes[label] for label in test.labels} == {*folders}


@pytest.mark.parametrize("loading", ["memory", "workers"])
def test_a_class_without_a_readable_image_is_none(tmp_path, capsys, loading):
    root = class_folders(tmp_path, 5)
    for file in (root / "a").iterdir():
        file.write_bytes(b"")
    OPENED.clear()
    data = Data(train=str(root), on_error="skip", loading=loading)
    train, test = open_data(data, LabelSet.parse("1pct"), progress=True)
    assert train.classes == test.classes == ("b", "c")
    assert {*train.labels, *test.labels} == {0, 1}
    assert "no readable image of a: not among the classes" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["labels.csv", "Annotations.csv", "to_label.csv"])
def test_a_file_of_labels_in_the_folder_is_named(tmp_path, capsys, name):
    make_folder(tmp_path, ["0.png", "1.png"])
    (tmp_path / name).write_text("image;class\n0.png;a\n1.png;b\n")
    (tmp_path / "other.csv").write_text("file,label\nx.png,a\n")
    OPENED.clear()
    open_data(Data(train=str(tmp_path)), LabelSet.parse("1pct"), progress=True)
    printed = capsys.readouterr().out
    assert f"{tmp_path / name} has labels, which --labels" in printed
    assert "other.csv has" not in printed


def hub_file(path, labels: list[int], names: list[str]):
    """A parquet file as the hub writes it, with a list of classes."""
    path.parent.mkdir(exist_ok=True)
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    rows = {"image": STRUCTS[: len(labels)], "label": labels}
    datasets.Dataset.from_dict(rows, features=kinds).to_parquet(path)


@pytest.mark.parametrize("column", ["class_id", "CategoryID"])
def test_the_number_of_a_class_is_a_label_where_no_column_names_it(tmp_path, column):
    numbers = {column: [3, 4] * 5}
    table = parquet(tmp_path / "a.parquet", image=STRUCTS[:10], **numbers)
    assert opened(table).train.classes == ("3", "4")
    table = parquet(tmp_path / "b.parquet", image=STRUCTS[:10], **numbers, label=["x", "y"] * 5)
    assert opened(table).train.classes == ("x", "y")


@pytest.mark.parametrize("source", ["*/*.parquet", "train/../t*/0.parquet", ""])
def test_folders_of_a_pattern_are_splits_too(tmp_path, source):
    hub_file(tmp_path / "train/0.parquet", [0, 1, 0], ["cat", "dog"])
    hub_file(tmp_path / "test/0.parquet", [0, 1], ["cat", "dog"])
    train, test = opened(tmp_path / source)
    assert (len(train), len(test)) == (3, 2)


@pytest.mark.parametrize("source", ["", "data/*.parquet", "data/t*.parquet"])
def test_each_split_of_parquet_files_has_its_own_list_of_classes(tmp_path, source):
    hub_file(tmp_path / "data/train-00000-of-00001.parquet", [0, 1, 0], ["cat", "dog"])
    hub_file(tmp_path / "data/test-00000-of-00001.parquet", [0, 1, 1], ["dog", "cat"])
    train, test = opened(tmp_path / source)
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 0], [1, 0, 0])
    assert train.classes == test.classes == ("cat", "dog")


@pytest.mark.parametrize("kind", ["classes", "type", "column"])
def test_parquet_files_that_differ_are_named(tmp_path, kind):
    hub_file(tmp_path / "p/a.parquet", [0, 1], ["cat", "dog"])
    if kind == "classes":
        hub_file(tmp_path / "p/b.parquet", [0, 1], ["dog", "cat"])
        says = "column label is of the classes cat, dog and of the classes dog, cat"
    else:
        labels = {"label": ["x", "y"]} if kind == "type" else {}
        parquet(tmp_path / "p/b.parquet", image=STRUCTS[:2], **labels)
        says = "b.parquet differ: column "
    assert says in error_of(tmp_path / "p")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"", "it is empty"),
        (b"image,label\n", "it is no parquet file"),
    ],
)
def test_what_is_no_parquet_file_says_what_it_is(tmp_path, content, says):
    (tmp_path / "t.parquet").write_bytes(content)
    assert says in error_of(tmp_path / "t.parquet")
    assert says in error_of(tmp_path)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (["nope/0.png", None], "image (text, such as 'nope/0.png'), label (int64)"),
        ([[1, 2], [3]], "image (lists or records)"),
        ([0.5, 1.5], "image (float64), label"),
        ([None, None], "image (nothing)"),
    ],
)
def test_what_columns_without_images_hold(tmp_path, cells, says):
    message = error_of(parquet(tmp_path / "t.parquet", image=cells, label=[0, 1]))
    assert says in message
    assert "an image column holds encoded images" in message


def test_two_columns_of_one_name(tmp_path):
    table = pa.table([STRUCTS[:2], [0, 1], [0, 1]], names=["image", "label", "label"])
    pq.write_table(table, tmp_path / "t.parquet")
    assert "has several columns called label; rename" in error_of(tmp_path / "t.parquet")


@pytest.mark.parametrize("names", [("dog", "dog "), ("big cat", "big\u00a0cat"), ("é", "e\u0301")])
def test_class_folders_that_look_the_same_are_refused(tmp_path, names):
    make_folder(tmp_path, [f"{name}/{i}.png" for name in names for i in range(3)])
    assert "differ in spaces or in how accents" in error_of(tmp_path)
