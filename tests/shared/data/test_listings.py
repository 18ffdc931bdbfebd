"""Listings that are kept: right whatever happened to the folder or to the file, and silent."""

import errno
import os
import shutil
import time
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pytest

from shared.config.labelset import LabelSet
from shared.config.sections import Data
from shared.data import listings
from shared.data.folders import Listed, Walk, walk
from shared.data.listings import listing
from shared.data.sources import OPENED, open_data
from shared.runtime.errors import UserError
from tests.support.photos import class_folders, make_folder
from tests.support.sources import PNGS

COMPARED = [f.name for f in fields(Walk) if f.name not in ("watched", "unread", "opened")]


@pytest.fixture
def keep(monkeypatch):
    """Every listing is kept, however small and young."""
    monkeypatch.setattr(listings, "FEWEST", 1)
    monkeypatch.setattr(listings, "SETTLED", -(10**18))


@pytest.fixture
def root(tmp_path):
    """Classes a and b, a link c behind a second link, and what is known by its content alone."""
    root, away = class_folders(tmp_path / "root", 3, classes="ab"), tmp_path / "away"
    for name in ("first", "second"):
        make_folder(away / name, [f"{name}.png"])
    (away / "current").symlink_to("first")
    (root / "c").symlink_to(away / "current")
    (away / "known").symlink_to(root / "a")
    (root / "d").symlink_to(away / "known")  # is walked already
    (root / "e").symlink_to(away / "nothing")
    make_folder(root, ["a/deep/0.png", ".hidden/0.png"])
    (root / "b" / "picture").write_bytes(PNGS[3])
    (root / "b" / "notes.txt").write_text("none")
    return root


def same(one: Walk, other: Walk) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in COMPARED)


def is_kept(root, cache, monkeypatch) -> bool:
    """Whether the listing comes from the file, and is that of a walk."""
    walked = []
    with monkeypatch.context() as patch:
        patch.setattr(listings, "walk", lambda root: walked.append(walk(root)) or walked[-1])
        assert same(listing(root, str(cache)), walk(root))
    return not walked


def test_a_folder_that_stays_is_walked_once(tmp_path, root, keep, monkeypatch):
    cache = tmp_path / "cache" / "deep"
    assert not is_kept(root, cache, monkeypatch)
    assert is_kept(root, cache, monkeypatch)
    assert is_kept(root, cache, monkeypatch)
    assert len(list(cache.iterdir())) == 1
    assert len(listing(root, str(cache))) == 9


def _set_back(path, write):
    status = path.stat()
    write()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _turn(link, target):
    link.unlink()
    link.symlink_to(target)


CHANGES = {
    "a new image": lambda root: shutil.copy(root / "a/0.png", root / "a/deep/9.png"),
    "an image less": lambda root: (root / "b/1.png").unlink(),
    "another name": lambda root: (root / "b/1.png").rename(root / "b/z.png"),
    "a new folder": lambda root: make_folder(root, ["a/new/0.png"]),
    "a renamed class": lambda root: (root / "a").rename(root / "x"),
    "a hidden image": lambda root: (root / "a/0.png").rename(root / "a/.0.png"),
    "a metadata file": lambda root: (root / "metadata.csv").write_text("file_name\n"),
    "an image whose folder's time was set back": lambda root: _set_back(
        root / "a", lambda: shutil.copy(root / "a/0.png", root / "a/9.png")
    ),
    "a folder in place of another": lambda root: (
        shutil.copytree(root / "b", root.parent / "b2"),
        shutil.rmtree(root / "b"),
        (root.parent / "b2").rename(root / "b"),
    ),
    "a link that leads elsewhere": lambda root: _turn(root / "c", root.parent / "away/second"),
    "a link behind a link": lambda root: _turn(root.parent / "away/current", "second"),
    "a link that was not entered": lambda root: _turn(root.parent / "away/known", "second"),
    "a link to nothing": lambda root: make_folder(root.parent / "away/nothing", ["0.png"]),
    "a link to a file": lambda root: shutil.copy(root / "a/0.png", root.parent / "away/nothing"),
    "what a link leads to": lambda root: make_folder(root.parent / "away/first", ["9.png"]),
    "a picture no more": lambda root: (root / "b/picture").write_bytes(b"x" * len(PNGS[3])),
    "a picture no more, of the same time": lambda root: _set_back(
        root / "b/picture", lambda: (root / "b/picture").write_bytes(b"x" * len(PNGS[3]))
    ),
    "notes that became a picture": lambda root: (root / "b/notes.txt").write_bytes(PNGS[4]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(tmp_path, root, keep, monkeypatch, change):
    listing(root, str(tmp_path / "cache"))
    before = walk(root)
    time.sleep(0.02)  # two ticks of a file system's clock
    CHANGES[change](root)
    assert not is_kept(root, tmp_path / "cache", monkeypatch)
    assert is_kept(root, tmp_path / "cache", monkeypatch)
    assert same(before, walk(root)) == change.startswith("a folder in place")


def test_the_root_behind_a_link(tmp_path, root, keep, monkeypatch):
    link = tmp_path / "link"
    for target in (root, tmp_path / "away", root):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert not is_kept(link, tmp_path / "cache", monkeypatch)
        assert is_kept(link, tmp_path / "cache", monkeypatch)


@pytest.mark.parametrize("name", [b"\xff.png", b"q\xff/0.png", "ü\n.png".encode(), b"a..b.png"])
def test_odd_names(tmp_path, root, keep, monkeypatch, name):
    path = os.path.join(os.fsencode(root), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(PNGS[0])
    assert not is_kept(root, tmp_path / "cache", monkeypatch)
    assert is_kept(root, tmp_path / "cache", monkeypatch)


def test_a_folder_that_is_young_or_small_or_not_read_is_not_kept(tmp_path, root, monkeypatch):
    cache, now = tmp_path / "cache", time.time_ns()
    later = now + listings.SETTLED + 10**9

    def keeps(fewest: int, began: int) -> bool:
        monkeypatch.setattr(listings, "FEWEST", fewest)
        monkeypatch.setattr(listings.time, "time_ns", lambda: began)
        listing(root, str(cache))
        return cache.exists()

    assert not keeps(9, now)
    assert not keeps(10, later)
    os.utime(root / "a/deep", ns=(0, later))
    assert not keeps(9, later)
    os.utime(root / "a/deep", ns=(0, 0))  # when it was changed at all stays
    assert not keeps(9, now)
    real = os.scandir
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: real(f"{path}x" if "deep" in path else path))
        assert not keeps(8, later)
    assert keeps(9, later)


DAMAGE = {
    "empty": lambda b: b"",
    "cut off": lambda b: b[:-100],
    "longer": lambda b: b + b"x",
    "the first byte": lambda b: bytes([b[0] ^ 1]) + b[1:],
    "a byte within": lambda b: (
        b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 4]) + b[len(b) // 2 + 1 :]
    ),
    "the last byte": lambda b: b[:-1] + bytes([b[-1] ^ 128]),
    "something else": lambda b: b"\x89PNG" * 99,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_written_again(tmp_path, root, keep, monkeypatch, damage):
    listing(root, str(tmp_path))
    (file,) = tmp_path.glob("*.listing")
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    assert not is_kept(root, tmp_path, monkeypatch)
    assert is_kept(root, tmp_path, monkeypatch)


def _files(paths: list[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array(
        [pa.array([{"bytes": None, "path": p} for p in paths], listings._IMAGES[0].type)]
    )


FOREIGN = {
    "of another folder": lambda walked: replace(walked, begin=walked.begin + "a/"),
    "files elsewhere": lambda walked: replace(walked, files=_files(["/etc/passwd"] * 9)),
    "files above": lambda walked: replace(walked, files=_files([f"{walked.begin}../0.png"] * 9)),
    "no paths": lambda walked: replace(walked, files=_files([None] * 9)),
    "fewer files": lambda walked: replace(walked, files=walked.files[:-1]),
    "other numbers": lambda walked: replace(walked, listed=walked.listed[1:]),
    "no numbers": lambda walked: replace(walked, listed=[Listed("a/", "nine")]),  # type: ignore[arg-type]
    "notes of another kind": lambda walked: replace(walked, odd=[7]),
    "other columns": lambda walked: replace(walked, files=pa.chunked_array([["x"] * 9])),
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_foreign_file_is_not_taken(tmp_path, root, keep, monkeypatch, foreign):
    """Its hash is right: who wrote it knew the format."""
    listing(root, str(tmp_path))
    (file,) = tmp_path.glob("*.listing")
    walked = FOREIGN[foreign](walk(root))
    with monkeypatch.context() as patch, file.open("w+b") as opened:
        patch.setattr(listings, "_IMAGES", pa.schema([("image", walked.files.type)]))
        listings.write(opened, walked)
    assert not is_kept(root, tmp_path, monkeypatch)
    assert is_kept(root, tmp_path, monkeypatch)
    monkeypatch.setattr(listings, "VERSION", "2")
    assert not is_kept(root, tmp_path, monkeypatch)


def _fails(error):
    def fail(*arguments, **options):
        raise error

    return fail


WAYS = {
    "below a file": lambda tmp, patch: (tmp / "cache").write_text("no folder"),
    "a folder in its place": lambda tmp, patch: [
        listings.path_of(tmp / "root", str(tmp / "cache")).mkdir(parents=True)
    ],
    "a pipe in its place": lambda tmp, patch: [
        (tmp / "cache").mkdir(),
        os.mkfifo(listings.path_of(tmp / "root", str(tmp / "cache"))),
        patch.setattr(listings, "into_place", _fails(OSError(errno.EROFS, "read-only"))),
    ],
    "a full disk": lambda tmp, patch: patch.setattr(
        listings, "into_place", _fails(OSError(errno.ENOSPC, "no space"))
    ),
    "somebody else writes": lambda tmp, patch: patch.setattr(
        listings, "held", _fails(UserError("in use"))
    ),
    "no home": lambda tmp, patch: patch.setattr(
        listings.Path, "expanduser", _fails(RuntimeError("no home"))
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_where_nothing_can_be_kept_nothing_is_said(tmp_path, root, keep, monkeypatch, capfd, way):
    WAYS[way](tmp_path, monkeypatch)
    for _ in range(2):
        assert not is_kept(root, tmp_path / "cache", monkeypatch)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.glob("cache/*.tmp"))


@pytest.mark.parametrize("cache", ["", "cache"])
def test_images_are_those_of_a_walk(tmp_path, root, keep, monkeypatch, cache):
    """With splits, classes and unlabeled images; without a cache, and from it."""
    monkeypatch.chdir(tmp_path)
    for name in ("train", "val"):
        shutil.copytree(root, root / name, symlinks=True, ignore=lambda *_: ["train", "val", "c"])
    data = Data(train="root", unlabeled="away", cache_folder=cache, loading="workers")
    opened = []
    for _ in range(2):
        OPENED.clear()
        opened.append(open_data(data, LabelSet.parse("1pct")))
    (train, test), (again, test_again) = opened
    assert test is not None
    assert test_again is not None
    assert train.names.tolist() == again.names.tolist()
    assert train.fingerprint == again.fingerprint
    assert test.fingerprint == test_again.fingerprint
    assert again.names[-1] == "unlabeled/second/second.png"
    expected = [name.split("/")[1] for name in again.names if name.startswith("train/")]
    assert [again.classes[k] for k in again.labels[again.labels >= 0]] == expected
    assert [again.source(i) for i in (0, -1)] == [
        str(tmp_path / "root" / again.names[0]),
        str(tmp_path / "away/second/second.png"),
    ]
    assert np.array_equal(test.labels, test_again.labels)
    assert (tmp_path / "cache").exists() == bool(cache)
