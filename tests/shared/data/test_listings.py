"""Listings that are kept: right whatever happened to the folder or to the file, and silent."""

import errno
import os
import shutil
import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from shared.config.labelset import LabelSet
from shared.config.sections import Data
from shared.data import listings
from shared.data.folders import Listed, Walk, walk
from shared.data.listings import listing
from shared.data.sources import OPENED, look_at, open_data
from shared.runtime.errors import UserError
from tests.support.photos import class_folders, make_folder
from tests.support.sources import PNGS

COMPARED = [f.name for f in fields(Walk) if f.name not in ("watched", "unread", "opened")]


@pytest.fixture
def keep(monkeypatch):
    """Every listing is kept, however small and young."""
    monkeypatch.setattr(listings, "FEWEST", 1)
    monkeypatch.setattr(listings, "SETTLED", -(10**18))
    monkeypatch.setattr(listings, "_is_local", lambda root: True)


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
    (file,) = cache.rglob("*.*")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
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

    monkeypatch.setattr(listings, "_is_local", lambda root: True)
    assert not keeps(9, now)
    assert not keeps(10, later)
    os.utime(root / "a/deep", ns=(0, later))
    assert not keeps(9, later)
    os.utime(root / "a/deep", ns=(0, 0))
    assert not keeps(9, later)
    os.utime(root / "a/deep", ns=(0, 1))  # when it was changed at all stays
    assert not keeps(9, now)
    with monkeypatch.context() as patch:  # another file system lies below
        patch.setattr(listings, "walk", _with_another_device)
        assert not keeps(9, later)
    with monkeypatch.context() as patch:
        patch.setattr(listings, "_is_local", lambda root: False)
        assert not keeps(9, later)
    real = os.scandir
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: real(f"{path}x" if "deep" in path else path))
        assert not keeps(8, later)
    assert keeps(9, later)


def _with_another_device(root):
    walked = walk(root)
    walked.watched[-1] = walked.watched[-1]._replace(device=7, inode=7)
    return walked


@pytest.mark.parametrize(
    ("kinds", "is_local"),
    [
        ({"/": "ext4", "/tmp": "nfs"}, True),
        ({"/": "ext4", "/mnt/data": "xfs"}, True),
        ({"/": "nfs4", "/mnt": "ext4"}, True),
        ({"/": "ext4", "/mnt": "nfs4"}, False),
        ({"/": "ext4", "/mnt/data": "fuse.s3fs"}, False),
        ({"/": "ext4", "/mnt/data/b": "ext4", "/mnt": "9p"}, False),
        ({"/": "ext4", "/mnt/data/a": "cifs"}, False),
        ({"/mnt/data/a/b": "ext4"}, False),
        ({"C:\\": "NTFS"}, False),
    ],
)
def test_file_systems(monkeypatch, kinds, is_local):
    disks = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in kinds.items()]
    monkeypatch.setattr(listings.psutil, "disk_partitions", lambda all: disks)
    assert listings._is_local(Path("/mnt/data/a")) == is_local


def test_on_windows_nothing_is_kept(tmp_path, root, keep, monkeypatch):
    paths = (root, str(tmp_path / "cache"))
    monkeypatch.setattr(listings, "os", SimpleNamespace(name="nt"))
    assert same(listing(*paths), walk(root))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("what", [0o620, 0o602, "owner"])
def test_what_others_may_write_is_not_taken(tmp_path, root, keep, monkeypatch, place, what):
    cache = tmp_path / "cache"
    listing(root, str(cache))
    (file,) = cache.rglob("*.listing")
    assert is_kept(root, cache, monkeypatch)
    if what == "owner":
        monkeypatch.setattr(listings.os, "geteuid", lambda: os.getuid() + 1)
    else:
        (file if place == "file" else file.parent).chmod(what | 0o100)
    assert not is_kept(root, cache, monkeypatch)
    assert is_kept(root, cache, monkeypatch) == (place == "file" and what != "owner")


def test_machines_share_a_home(tmp_path, root, keep, monkeypatch):
    """The folder has another device there; neither takes the other's file away."""
    cache, host = tmp_path / "cache", listings.machine()
    for name in ("one", "two"):
        monkeypatch.setattr(listings, "machine", lambda name=name: host._replace(host=name))
        assert not is_kept(root, cache, monkeypatch)
        assert is_kept(root, cache, monkeypatch)
    assert len(list(cache.rglob("*.listing"))) == 2


def test_another_number_of_the_device(tmp_path, root, keep, monkeypatch):
    listing(root, str(tmp_path))
    real = os.stat

    def stat(path, **options):
        status = real(path, **options)
        return os.stat_result((*status[:2], status.st_dev + 1, *status[3:]), _times(status))

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        patch.setattr(listings, "walk", _fails(AssertionError))
        assert len(listing(root, str(tmp_path))) == 9


def _times(status: os.stat_result) -> dict[str, int]:
    return {name: getattr(status, name) for name in ("st_mtime_ns", "st_ctime_ns")}


def test_a_mapped_file_is_never_written_and_old_ones_go(tmp_path, root, keep):
    other = class_folders(tmp_path / "other", 2)
    listing(other, str(tmp_path))
    mapped = listing(root, str(tmp_path))
    before, (file,) = mapped.images, tmp_path.rglob(f"{listings._key(root)}*")
    inode, link = file.stat().st_ino, tmp_path / "mapped"
    os.link(file, link)
    content = link.read_bytes()
    (root / "a/0.png").unlink()
    assert len(listing(root, str(tmp_path))) == 8
    assert mapped.images == before
    assert link.read_bytes() == content
    assert inode not in [path.stat().st_ino for path in file.parent.iterdir()]
    assert len(list(file.parent.iterdir())) == 2
    shutil.rmtree(other)
    (root / "a/1.png").unlink()
    listing(root, str(tmp_path))
    assert [path.name[:33] for path in file.parent.iterdir()] == [listings._key(root)]


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
    (file,) = tmp_path.rglob("*.listing")
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    assert not is_kept(root, tmp_path, monkeypatch)
    assert is_kept(root, tmp_path, monkeypatch)


def _files(paths: list[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array(
        [pa.array([{"bytes": None, "path": p} for p in paths], listings._IMAGES[0].type)]
    )


def _moved(walked: Walk, folder: str, name: str = "0.png") -> Walk:
    """All nine files lie in one folder."""
    path = f"{walked.begin}{folder}{name}"
    return replace(walked, files=_files([path] * 9), listed=[Listed(folder, 9)])


FOREIGN = {
    "of another folder": lambda walked: replace(walked, begin=walked.begin + "a/"),
    "files elsewhere": lambda walked: replace(walked, files=_files(["/etc/passwd"] * 9)),
    "files above": lambda walked: replace(walked, files=_files([f"{walked.begin}../0.png"] * 9)),
    "no paths": lambda walked: replace(walked, files=_files([None] * 9)),
    "fewer files": lambda walked: replace(walked, files=walked.files[:-1]),
    "other numbers": lambda walked: replace(walked, listed=walked.listed[1:]),
    "two swapped": lambda walked: replace(
        walked, listed=[*walked.listed[1::-1], *walked.listed[2:]]
    ),
    "a negative number": lambda walked: replace(
        walked, listed=[Listed("b/", -3), Listed("a/", 12)]
    ),
    "no image in one": lambda walked: replace(walked, listed=[Listed("x/", 0), *walked.listed]),
    "folders above": lambda walked: _moved(walked, "../"),
    "folders without an end": lambda walked: replace(
        walked, listed=[Listed(folder[:-1] + "x", number) for folder, number in walked.listed]
    ),
    "files deeper": lambda walked: replace(walked, files=_files([f"{walked.begin}a/b/0.png"] * 9)),
    "a file above": lambda walked: _moved(walked, "a/", ".."),
    "above on Windows": lambda walked: _moved(walked, "a/", "..\\..\\secret.jpg"),
    "above within, on Windows": lambda walked: _moved(walked, "a/", "x\\..\\y\\0.png"),
    "above behind such": lambda walked: _moved(walked, "a/../../"),
    "metadata above": lambda walked: replace(walked, metadata=["../../metadata.csv"]),
    "metadata from the root": lambda walked: replace(walked, metadata=["/etc/metadata.csv"]),
    "metadata above on Windows": lambda walked: replace(walked, metadata=["..\\x/metadata.csv"]),
    "metadata of another name": lambda walked: replace(walked, metadata=["a/hostname"]),
    "no numbers": lambda walked: replace(walked, listed=[Listed("a/", "nine")]),  # type: ignore[arg-type]
    "notes of another kind": lambda walked: replace(walked, odd=[7]),
    "other columns": lambda walked: replace(walked, files=pa.chunked_array([["x"] * 9])),
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_foreign_file_is_not_taken(tmp_path, root, keep, monkeypatch, foreign):
    """Its hash is right: who wrote it knew the format."""
    listing(root, str(tmp_path))
    (file,) = tmp_path.rglob("*.listing")
    walked = FOREIGN[foreign](walk(root))
    with monkeypatch.context() as patch, file.open("w+b") as opened:
        patch.setattr(listings, "_IMAGES", pa.schema([("image", walked.files.type)]))
        listings.write(opened, walked)
    assert not is_kept(root, tmp_path, monkeypatch)
    assert is_kept(root, tmp_path, monkeypatch)
    monkeypatch.setattr(listings, "VERSION", "0")
    assert not is_kept(root, tmp_path, monkeypatch)


def test_a_root_whose_path_goes_up(tmp_path, root, keep, monkeypatch):
    up = root / "a" / ".."
    assert not is_kept(up, tmp_path, monkeypatch)
    assert is_kept(up, tmp_path, monkeypatch)
    (file,) = tmp_path.rglob("*.listing")
    for walked in (_moved(walk(up), "../"), _moved(walk(up), "", "..\\0.png")):
        with file.open("w+b") as opened:
            listings.write(opened, walked)
        assert listings._read(file, up) is None


def _fails(error):
    def fail(*arguments, **options):
        raise error

    return fail


WAYS = {
    "below a file": lambda tmp, patch: (tmp / "cache").write_text("no folder"),
    "a folder in its place": lambda tmp, patch: [
        (tmp / "cache/listings").mkdir(0o700, parents=True),
        (tmp / "cache/listings" / f"{listings._key(tmp / 'root')}-0.listing").mkdir(),
        patch.setattr(listings, "into_place", _fails(OSError(errno.EROFS, "read-only"))),
    ],
    "a pipe in its place": lambda tmp, patch: [
        (tmp / "cache/listings").mkdir(0o700, parents=True),
        os.mkfifo(tmp / "cache/listings" / f"{listings._key(tmp / 'root')}-0.listing"),
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
    assert not list(tmp_path.glob("cache/**/*.tmp"))


@pytest.mark.parametrize(("kept", "times"), [(False, 1), (True, 0)])
@pytest.mark.parametrize("label", ["folders", "metadata"])
def test_folders_are_read_once_or_not_at_all(tmp_path, keep, monkeypatch, label, kept, times):
    """To read them again takes most of the time of a large folder: 8 of 15 CPU s of 10^7 files."""
    root = class_folders(tmp_path / "root", 3)
    if label == "metadata":
        rows = [f"{c}/{i}.png,{c}\n" for c in "abc" for i in range(3)]
        (root / "metadata.csv").write_text("".join(["file_name,label\n", *rows]))
    data = Data(train=str(root), cache_folder=str(tmp_path / "cache") if kept else "")
    look_at(data, LabelSet.parse("1pct"))
    read = Counter()
    for name in ("scandir", "listdir"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda path=".", real=real: read.update([str(path)]) or real(path)
        )
    splits = look_at(data, LabelSet.parse("1pct"))
    assert splits.train.classes == ("a", "b", "c")
    assert [read[str(root / c)] for c in "abc"] == [times] * 3


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
