"""Photos shrunk once: what the copies are, when they are made again, and what is seen of them."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.config.labelset import LabelSet
from shared.config.sections import Augmentation, Data
from shared.data import cache, images
from shared.data.batches import Batches, plain_batches
from shared.data.cache import shrink, smallest_side
from shared.data.sources import OPENED, open_data
from shared.runtime.errors import UserError
from shared.runtime.stop import Stopped, StopRequest
from tests.support.photos import class_folders, make_folder, process

SIZES = [(40, 30), (30, 40), (90, 20), (12, 10), (64, 64)]


@pytest.fixture
def photos(tmp_path):
    """Ten images of five sizes in two classes."""
    for index in range(10):
        make_folder(tmp_path / "photos", [f"{'ab'[index % 2]}/{index}.png"], SIZES[index // 2])
    return tmp_path / "photos"


def data_of(folder, side=16, **options) -> Data:
    kept = str(folder.parent / "cache")
    return Data(
        train=str(folder), image_size=8, workers=2, cache=side, cache_folder=kept, **options
    )


def opened(data: Data, progress: bool = False):
    OPENED.clear()
    return open_data(data, LabelSet.parse("10pct"), progress)


def decoded(monkeypatch) -> list:
    """Grows with every image that is decoded."""
    calls, decode = [], images.decode_image
    monkeypatch.setattr(images, "decode_image", lambda *args: calls.append(args) or decode(*args))
    return calls


@pytest.mark.parametrize(
    ("size", "expected"),
    [((40, 30), (21, 16)), ((30, 40), (16, 21)), ((16, 16), (16, 16)), ((90, 12), (90, 12))],
)
def test_the_shorter_side_shrinks_and_the_shape_stays(size, expected):
    width, height = size
    copy = shrink(torch.full((3, height, width), 7, dtype=torch.uint8), 16)
    assert (copy.shape[2], copy.shape[1]) == expected
    assert (copy == 7).all()


def test_copies_are_antialiased_as_pillow_makes_them():
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(noise).resize((24, 16), Image.Resampling.BICUBIC), int)
    copy = shrink(torch.from_numpy(noise).permute(2, 0, 1), 16).permute(1, 2, 0).numpy()
    assert np.abs(wanted - copy).max() <= 1


@pytest.mark.parametrize("area", [(0.08, 1.0), (0.25, 1.0), (1.0, 1.0)])
def test_no_crop_has_fewer_pixels_than_its_view(area):
    side = smallest_side(32, area)
    assert area[0] * side**2 >= 32**2
    assert area[0] * (side - 1) ** 2 < 32**2


def test_every_image_is_decoded_once_for_all_runs(photos, monkeypatch):
    calls = decoded(monkeypatch)
    train, test = opened(data_of(photos))
    assert len(calls) == 10
    again = opened(data_of(photos))
    assert len(calls) == 10
    for one, other in zip((train, test), again, strict=True):
        assert one.fingerprint == other.fingerprint
        assert all(map(torch.equal, one.shrunk, other.shrunk))
    for index, name in enumerate(train.names):
        with Image.open(photos / name) as image:
            whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert torch.equal(train.decode(index), shrink(whole, 16))


@pytest.mark.parametrize("change", ["side", "image", "another", "truncated", "empty"])
def test_copies_are_made_again_when_they_do_not_fit(photos, monkeypatch, change):
    opened(data_of(photos))
    (file,) = (photos.parent / "cache").glob("*.images")
    if change == "image":
        make_folder(photos, ["a/0.png"], (50, 50))
    elif change == "another":
        make_folder(photos, ["a/10.png"], (50, 50))
    elif change == "truncated":
        os.truncate(file, file.stat().st_size - 1)
    elif change == "empty":
        os.truncate(file, 0)
    calls = decoded(monkeypatch)
    opened(data_of(photos, side=15 if change == "side" else 16))
    assert len(calls) == 10 + (change == "another")


def _wrong_sizes(file: Path, sizes: list[int]) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:-80] + np.array(sizes, "<i4").tobytes())


PLANTED = {
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "others may write": lambda file: file.chmod(0o646),
    "a group may write": lambda file: file.chmod(0o660),
    "huge, of nothing": lambda file: os.truncate(file, 2**43),
    "negative sizes": lambda file: _wrong_sizes(file, [-40, -30] * 10),
    "a sum that overflows": lambda file: _wrong_sizes(file, [2**31 - 1] * 20),
    "two sizes swapped": lambda file: _wrong_sizes(file, [21, 17, 20, 17] + [21, 16] * 8),
    "a size too many": lambda file: file.write_bytes(file.read_bytes() + bytes(8)),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_planted_is_made_again_with_a_line(photos, capfd, planted):
    before = opened(data_of(photos), progress=True).train.shrunk
    assert "note" not in capfd.readouterr().err
    folder = photos.parent / "cache"
    (file,) = folder.glob("*.images")
    PLANTED[planted](file)
    after = opened(data_of(photos), progress=True).train.shrunk
    assert all(map(torch.equal, before, after))
    assert capfd.readouterr().err.count("; it is made again\n") == 1
    assert [path.name for path in folder.iterdir()] == [file.name]
    assert file.is_file()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("place", ["away", "nothing", "lock"])
def test_a_link_is_refused(photos, place):
    """A whole file behind it, nothing, or a link where the lock lies."""
    opened(data_of(photos))
    (file,) = (photos.parent / "cache").glob("*.images")
    away = photos.parent / "away"
    file.rename(away)
    link = file.with_name(f".{file.name}.lock") if place == "lock" else file
    link.symlink_to(photos.parent / "new" if place == "nothing" else away)
    content = away.read_bytes()
    with pytest.raises(UserError, match=r"cannot write .*\.images|\.images is a link"):
        opened(data_of(photos))
    assert away.read_bytes() == content
    assert not (photos.parent / "new").exists()
    assert [path.name for path in file.parent.iterdir()] == [link.name]


def test_another_users_file_is_made_again(photos, capfd, monkeypatch):
    opened(data_of(photos), progress=True)
    (file,) = (photos.parent / "cache").glob("*.images")
    inode, private = file.stat().st_ino, cache.is_private
    theirs = lambda status: status.st_ino != inode and private(status)  # noqa: E731
    monkeypatch.setattr(cache, "is_private", theirs)
    opened(data_of(photos), progress=True)
    assert "another user's" in capfd.readouterr().err
    assert file.stat().st_ino != inode


@pytest.mark.parametrize("what", [0o777, 0o1777, 0o775, "owner"])
def test_a_folder_where_others_may_write_is_refused(photos, monkeypatch, what):
    folder = photos.parent / "cache"
    folder.mkdir()
    if what == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    else:
        folder.chmod(what)
    with pytest.raises(UserError, match=r"could be anybody's.*chmod go-w.*--data\.cache_folder"):
        opened(data_of(photos))
    assert not list(folder.iterdir())


@pytest.mark.parametrize("mask", [0, 0o002, 0o022])
def test_a_new_folder_is_for_this_user_alone(photos, mask):
    before = os.umask(mask)
    try:
        assert opened(data_of(photos)).train.shrunk is not None
    finally:
        os.umask(before)
    assert (photos.parent / "cache").stat().st_mode & 0o777 == 0o700


def test_a_user_without_a_home(photos):
    data = replace(data_of(photos), cache_folder="~nobody-of-this-name/cache")
    with pytest.raises(UserError, match=r"data\.cache_folder=~nobody"):
        opened(data)


@pytest.mark.parametrize("count", [1, 3])
def test_unreadable_images_stop_or_are_left_out(photos, capsys, count):
    for path in sorted(photos.glob("a/*.png"))[:count]:
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read .*0\.png"):
        opened(data_of(photos))
    train, test = opened(data_of(photos, on_error="skip"))
    assert len(train) + len(test) == 10 - count
    assert all(copy.numel() for copy in train.shrunk + test.shrunk)


def test_a_folder_that_cannot_be_written_is_one_line(photos):
    (photos.parent / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write the shrunk images .* --data\.cache_folder"):
        opened(data_of(photos))


def test_a_signal_stops_between_images(photos, monkeypatch):
    monkeypatch.setattr(StopRequest, "received", 15)
    with pytest.raises(Stopped):
        opened(data_of(photos))


def test_unlabeled_images_are_shrunk_too(photos, tmp_path):
    more = class_folders(tmp_path / "more", 2, size=(33, 50))
    train, _ = opened(replace(data_of(photos), unlabeled=str(more)))
    assert len(train.shrunk) == len(train) == 8 + 6
    assert train.decode(len(train) - 1).shape == (3, 24, 16)


# ------------------------------------------------------------------------ what is seen of copies
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("augmented", [True, False])
def test_views_of_copies_are_those_that_workers_make_of_the_same_images(
    photos, antialias, augmented
):
    """Where nothing has to shrink; workers round their views to 8 bits."""
    augmentation = Augmentation(blur_sigma_per="image", color_strength=0.4)

    def views(data):
        train, _ = opened(data)
        options = {"seed": 1, "stage": "s", "batch_size": 6, "views": 2 if augmented else 1}
        return list(
            Batches(
                train,
                np.arange(len(train)),
                data,
                augmentation if augmented else None,
                process(),
                clean=augmented,
                **options,
            ).steps(2, 4)
        )

    large = replace(data_of(photos, side=200), antialias=antialias)
    for copied, worked in zip(views(large), views(replace(large, cache=None)), strict=True):
        assert torch.equal(copied.ids, worked.ids)
        assert (copied.images - worked.images).abs().max() < 0.02
        assert (copied.images - worked.images).abs().mean() < 0.003
        if augmented:
            assert (copied.clean - worked.clean).abs().max() < 0.003


def test_parts_and_late_starts_see_the_same_copies(photos):
    data = data_of(photos)
    train, _ = opened(data)
    batches = Batches(
        train, np.arange(8), data, Augmentation(), process(), seed=1, stage="s", batch_size=6
    )
    whole = list(batches.steps(0, 3))
    assert torch.equal(next(batches.steps(2, 3)).images, whole[2].images)
    for batch, parts in zip(whole, batches.steps_in_parts(0, 3, 2), strict=True):
        joined = torch.stack([part.images for part in parts], 1).flatten(0, 1)
        assert (joined - batch.images).abs().max() < 1e-5


@pytest.mark.parametrize("antialias", [True, False])
def test_evaluation_sees_the_middle_of_every_copy(photos, antialias):
    data = replace(data_of(photos), antialias=antialias)
    train, _ = opened(data)
    ((views, ids),) = plain_batches(train, np.arange(len(train)), data, 32, "cpu")
    assert ids.tolist() == list(range(len(train)))
    larger = next(plain_batches(replace(train, shrunk=None), ids.numpy(), data, 32, "cpu"))[0]
    assert views.shape == larger.shape
    small = [i for i, name in enumerate(train.names) if min(train.shrunk[i].shape[1:]) < 16]
    assert small
    assert (views[small] - larger[small]).abs().max() < 0.003


def test_a_ready_file_needs_no_lock(photos, monkeypatch):
    """A colleague's cache may be readable alone."""
    opened(data_of(photos))

    def refuse(*_):
        raise PermissionError("denied")

    monkeypatch.setattr(cache, "held", refuse)
    assert opened(data_of(photos)).train.shrunk is not None
    with pytest.raises(UserError, match=r"cannot write the shrunk .* --data\.cache_folder"):
        opened(data_of(photos, side=12))
