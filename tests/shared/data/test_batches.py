"""Batches are a function of (seed, stage, step): resuming, processes, passes, views, loading."""

import errno
import gc
import multiprocessing
import os
import pickle
import shutil
import signal
import time
import traceback
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from shared.config.labelset import LabelSet
from shared.config.sections import Augmentation, Data
from shared.data.batches import (
    Batches,
    _DecodeAndCrop,
    denormalize,
    normalize,
    plain_batches,
    positions,
)
from shared.data.image_ops import center_crop
from shared.data.images import ImageSet
from shared.data.sources import OPENED, open_data
from shared.runtime.errors import UserError
from tests.support.photos import class_folders, make_folder, process

VIEWS = Augmentation(rotate=10, shear=5, blur_sigma_per="image")
N = 30
LOADINGS = ["memory", "workers"]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """The loader looks every 5 s whether its workers live."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("images"), N // 3, size=(12, 10))


def images_of(folder, loading="memory", **options) -> tuple[ImageSet, Data]:
    data = Data(
        train=str(folder), image_size=8, loading=loading, workers=0, test_fraction=0.01, **options
    )
    OPENED.clear()
    train, _ = open_data(data, LabelSet.parse("1pct"))
    assert (train.pixels is None) == (loading == "workers")
    return train, data


def batches_of(
    folder, loading="memory", accelerator=None, augmentation=VIEWS, antialias=False, **options
) -> Batches:
    train, data = images_of(folder, loading, antialias=antialias)
    arguments = {"seed": 3, "stage": "pretrain", "batch_size": 8, "views": 2} | options
    return Batches(
        train, np.arange(len(train)), data, augmentation, accelerator or process(), **arguments
    )


def same(a, b) -> bool:
    clean = a.clean is b.clean is None or torch.equal(a.clean, b.clean)
    return torch.equal(a.images, b.images) and torch.equal(a.ids, b.ids) and clean


# ---------------------------------------------------------------------------------------- order
@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 10))
def test_every_pass_has_every_image_once(n, batch_size, seed):
    steps = 3 * n // batch_size + 2
    places = [positions(seed, "s", step, batch_size, n) for step in range(steps)]
    assert all(len(place) == batch_size for place in places)
    stream = np.concatenate(places)
    for start in range(0, len(stream) - n + 1, n):
        assert sorted(stream[start : start + n]) == list(range(n))
    # nor does the least filled place get behind by more than one
    counts = np.bincount(stream, minlength=n)
    assert counts.max() - counts.min() <= 1


def test_order_depends_on_seed_stage_and_pass():
    def order(*key, step=0):
        return positions(*key, step, 50, 50).tolist()

    orders = [order(0, "a"), order(1, "a"), order(0, "b"), order(0, "a", step=1)]
    assert len({tuple(o) for o in orders}) == 4
    assert order(0, "a") == orders[0]


@pytest.mark.parametrize("loading", LOADINGS)
def test_starting_late_gives_the_same_batches(folder, loading):
    """Over the end of a pass: 30 images, 8 per batch."""
    from_the_start = list(batches_of(folder, loading).steps(0, 9))
    for start in (1, 4, 8):
        late = list(batches_of(folder, loading).steps(start, 9))
        assert len(late) == 9 - start
        assert all(same(a, b) for a, b in zip(late, from_the_start[start:], strict=True))
    assert not same(from_the_start[0], from_the_start[1])


@pytest.mark.parametrize("loading", LOADINGS)
@pytest.mark.parametrize("world", [2, 3, 8])
def test_processes_together_give_the_rows_of_one(folder, loading, world):
    options = {"clean": True}
    whole = list(batches_of(folder, loading, **options).steps(2, 5))
    parts = [
        list(batches_of(folder, loading, process(k, world), **options).steps(2, 5))
        for k in range(world)
    ]
    for step, one in enumerate(whole):
        shares = [part[step] for part in parts]
        assert torch.equal(torch.cat([share.ids for share in shares]), one.ids)
        views = zip(*(share.images.chunk(2) for share in shares), strict=True)
        # not bit for bit: matrix products of other sizes round otherwise (8e-7 was seen)
        close = {"atol": 2e-6, "rtol": 0}
        torch.testing.assert_close(torch.cat([torch.cat(v) for v in views]), one.images, **close)
        clean = torch.cat([share.clean for share in shares])
        torch.testing.assert_close(clean, one.clean, **close)


@pytest.mark.parametrize("loading", LOADINGS)
def test_parts_are_rows_of_the_batch_in_every_pass(folder, loading):
    """Also where processes share each part, evenly or not, and over a pass' end (30 images)."""
    whole = list(batches_of(folder, loading, batch_size=12).steps(1, 4))
    for world in (1, 2, 3, 4):
        shares = [
            batches_of(folder, loading, process(k, world), batch_size=12) for k in range(world)
        ]
        made = list(zip(*(share.steps_in_parts(1, 4, 3) for share in shares), strict=True))
        assert len(made) == 3
        for batch, processes in zip(whole, made, strict=True):
            for _ in range(2):  # the second time it is made again
                for i, shares in enumerate(zip(*processes, strict=True)):
                    assert torch.equal(torch.cat([s.ids for s in shares]), batch.ids[i::3])
                    views = zip(*(share.images.chunk(2) for share in shares), strict=True)
                    expected = torch.cat([view[i::3] for view in batch.images.chunk(2)])
                    actual = torch.cat([torch.cat(view) for view in views])
                    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)
                assert i == 2


def test_parts_are_made_when_their_turn_comes(folder):
    """So few of them are in memory at a time, however large the batch."""
    parts = next(batches_of(folder, batch_size=30).steps_in_parts(0, 1, 10))
    made = []
    counted = replace(parts, make=lambda i: made.append(i) or parts.make(i))
    passing = iter(counted)
    for i in range(3):
        next(passing)
        assert len(made) <= i + 2
    passing.close()


@pytest.mark.parametrize("world", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize(("size", "number"), [(7, 1), (7, 5), (8, 4), (9, 16)])
def test_every_process_has_rows_of_every_part(folder, size, number, world):
    """Once each, at most one more than another process; the rows say where they belong."""
    train, data = images_of(folder)
    arguments = {"seed": 3, "stage": "pretrain", "batch_size": size * number}
    of_parts: list[list[list[int]]] = [[] for _ in range(number)]
    for k in range(world):
        batches = Batches(train, np.arange(N), data, None, process(k, world), **arguments)
        parts = next(iter(batches.steps_in_parts(0, 1, number)))
        own = np.arange(size * number)[batches.rows]
        assert parts.images == len(own)
        for i, (batch, rows) in enumerate(zip(parts, parts.rows, strict=True)):
            assert batch.ids.tolist() == batches.chosen(0)[rows].tolist()
            of_parts[i].append(own[rows].tolist())
    for i, shares in enumerate(of_parts):
        assert [row for share in shares for row in share] == list(range(i, size * number, number))
        numbers = [len(share) for share in shares]
        assert 1 <= min(numbers) <= max(numbers) <= min(numbers) + 1


def test_every_process_needs_an_image(folder):
    with pytest.raises(UserError, match="batch_size 8 is too small for 9 processes"):
        batches_of(folder, accelerator=process(0, 9))
    with pytest.raises(UserError, match="micro_batch 3 is too small for 4 processes"):
        batches_of(folder, accelerator=process(0, 4), batch_size=6).steps_in_parts(0, 1, 2)


@pytest.mark.parametrize("loading", LOADINGS)
def test_batch_larger_than_the_data(folder, loading):
    """Drawn over several passes."""
    batch = next(batches_of(folder, loading, batch_size=70).steps(0, 1))
    train, _ = images_of(folder)
    counts = Counter(batch.ids.tolist())
    assert sum(counts.values()) == 70
    assert len(counts) == len(train)
    assert set(counts.values()) <= {2, 3}


def test_only_the_chosen_images_take_part(folder):
    train, data = images_of(folder)
    ids = np.array([3, 7, 20])
    batches = Batches(train, ids, data, None, process(), seed=0, stage="s", batch_size=6)
    assert sorted(next(batches.steps(0, 1)).ids.tolist()) == [3, 3, 7, 7, 20, 20]


# ---------------------------------------------------------------------------------------- views
def test_batches_of_the_same_images_share_their_copy_on_the_device(folder):
    """As of the images and of the labeled ones among them, in distillation."""
    train, data = images_of(folder)
    there = process()
    there.device = torch.device("meta")  # as a GPU: what lies there is a copy
    arguments = {"seed": 0, "stage": "s", "batch_size": 4}
    first = Batches(train, np.arange(N), data, None, there, **arguments)
    second = Batches(train, np.arange(4), data, None, there, **arguments)
    assert first._pixels is second._pixels is not train.pixels
    copy = weakref.ref(first._pixels)
    other = Batches(train.select(np.arange(4)), np.arange(4), data, None, there, **arguments)
    assert other._pixels is not copy()
    del first, second
    gc.collect()
    assert copy() is None


@pytest.mark.parametrize("loading", LOADINGS)
def test_views_differ(folder, loading):
    batch = next(batches_of(folder, loading).steps(0, 1))
    assert batch.images.shape == (16, 3, 8, 8)
    assert batch.images.dtype == torch.float32
    assert 0 <= batch.images.min() < batch.images.max() <= 1
    first, second = batch.images.chunk(2)
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("loading", LOADINGS)
def test_views_differ_in_colour_and_not_only_in_the_crop(tmp_path, loading):
    root = make_folder(tmp_path, ["0.png"], size=(40, 40))
    whole = Augmentation(crop_area=(1, 1), crop_aspect=(1, 1), flip=0, jitter=1, blur=0)
    batch = next(batches_of(root, loading, augmentation=whole, batch_size=3).steps(0, 1))
    assert len({image.numpy().tobytes() for image in batch.images}) == 6


@pytest.mark.parametrize("loading", LOADINGS)
@pytest.mark.parametrize(
    "augmentation", [VIEWS, Augmentation(color_strength=0, blur=0, flip=0)], ids=["full", "crop"]
)
def test_equal_images_in_a_batch_are_augmented_differently(tmp_path, loading, augmentation):
    root = make_folder(tmp_path, ["0.png"], size=(40, 40))
    for i in range(1, 8):
        (root / f"{i}.png").write_bytes((root / "0.png").read_bytes())
    images = next(batches_of(root, loading, augmentation=augmentation).steps(0, 1)).images
    for i in range(16):
        for j in range(i):
            assert not torch.equal(images[i], images[j])


@pytest.mark.parametrize("loading", LOADINGS)
def test_the_same_image_is_augmented_differently_in_every_pass(tmp_path, loading):
    root = make_folder(tmp_path, ["0.png"], size=(40, 40))
    batches = batches_of(root, loading, batch_size=1)
    images = torch.cat([batch.images for batch in batches.steps(0, 6)])  # (12, 3, 8, 8)
    assert len({image.numpy().tobytes() for image in images}) == 12


@pytest.mark.parametrize("loading", LOADINGS)
def test_seed_and_stage_change_the_views(tmp_path, loading):
    root = make_folder(tmp_path, ["0.png"], size=(40, 40))
    batches = [
        batches_of(root, loading, **options) for options in ({}, {"seed": 4}, {"stage": "other"})
    ]
    images = [next(b.steps(0, 1)).images for b in batches]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


@pytest.mark.parametrize("loading", LOADINGS)
def test_without_augmentation_and_clean_show_the_plain_image(folder, loading):
    train, data = images_of(folder, loading)
    plain = next(batches_of(folder, loading, augmentation=None, views=1).steps(0, 1))
    both = next(batches_of(folder, loading, views=1, clean=True).steps(0, 1))
    alone = next(
        batches_of(folder, loading, augmentation=None, views=1, clean=True).steps(0, 1)
    )  # the plain image is also the only view
    for batch, plain_images in (
        (plain, plain.images),
        (both, both.clean),
        (alone, alone.images),
        (alone, alone.clean),
    ):
        pixels = torch.stack([train.decode(int(id_)) for id_ in batch.ids])
        expected = center_crop(pixels, data.image_size)
        torch.testing.assert_close(plain_images, expected, atol=0.5 / 255 + 1e-6, rtol=0)
    assert plain.clean is None
    assert both.images.shape == both.clean.shape == (8, 3, 8, 8)
    assert not torch.equal(both.images, both.clean)


def test_normalisation(folder):
    train, data = images_of(folder)
    data = replace(data, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    arguments = {"seed": 0, "stage": "s", "batch_size": 4}
    ids = np.arange(len(train))
    batch = next(Batches(train, ids, data, None, process(), **arguments).steps(0, 1))
    back = denormalize(batch.images, data)
    data = replace(data, mean=(0, 0, 0), std=(1, 1, 1))
    plain = next(Batches(train, ids, data, None, process(), **arguments).steps(0, 1))
    expected = (plain.images - torch.tensor([0.5, 0.25, 0]).view(3, 1, 1)) / torch.tensor(
        [0.5, 1, 2]
    ).view(3, 1, 1)
    torch.testing.assert_close(batch.images, expected)
    torch.testing.assert_close(back, plain.images)
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert (normalize(white, data) == 1).all()


# ------------------------------------------------------------------------ one key, either loading
def boxes_seen(batches, steps, monkeypatch, parts=None) -> dict[tuple, list]:
    """(step, view, row of the global batch) -> box, of all crops made in these steps."""
    boxes, draw = {}, Batches.boxes

    def remember(self, step, view, rows, height, width):
        drawn = draw(self, step, view, rows, height, width)
        for row, box in zip(range(self.batch_size)[rows], drawn.tolist(), strict=True):
            boxes[step, view, row] = box
        return drawn

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "boxes", remember)
        if parts is None:
            list(batches.steps(*steps))
        else:
            for step in batches.steps_in_parts(*steps, parts):
                list(step)
    return boxes


@pytest.mark.parametrize("loading", LOADINGS)
@pytest.mark.parametrize(("world", "parts"), [(1, None), (2, None), (4, None), (1, 3), (2, 2)])
def test_the_same_boxes_however_images_are_loaded_and_divided(
    folder, monkeypatch, loading, world, parts
):
    """Over the end of a pass, for every step, view and row."""
    options = {"batch_size": 12, "views": 3}
    expected = boxes_seen(batches_of(folder, **options), (1, 5), monkeypatch)
    assert expected.keys() == {(s, v, r) for s in range(1, 5) for v in range(3) for r in range(12)}
    assert len({tuple(box) for box in expected.values()}) > 100
    boxes = {}
    for k in range(world):
        batches = batches_of(folder, loading, process(k, world), **options)
        boxes |= boxes_seen(batches, (1, 5), monkeypatch, parts)
    assert boxes == expected


CROP = Augmentation(blur=0, color_strength=0)


@pytest.mark.parametrize("augmentation", [VIEWS, CROP], ids=["full", "crop"])
def test_the_same_views_however_images_are_loaded(folder, augmentation):
    """Workers send uint8 views: half a level. The two crop kernels add in another order: 1e-5."""
    memory, workers = (batches_of(folder, kind, augmentation=augmentation) for kind in LOADINGS)
    for a, b in zip(memory.steps(0, 6), workers.steps(0, 6), strict=True):
        assert torch.equal(a.ids, b.ids)
        torch.testing.assert_close(a.images, b.images, rtol=0, atol=0.5 / 255 + 1e-5)


def test_the_same_antialiased_views_however_images_are_loaded(folder, tmp_path):
    """The crop of a photo is made in integers: its rows are rounded and clipped, then its columns.

    And ours rounds positions to 1/1024 of a pixel. Clipping matters only where the filter
    overshoots white or black, which it cannot where the contrast is low.
    """
    for file in folder.rglob("*.png"):
        low_contrast = np.asarray(Image.open(file)) // 4 + 96
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        Image.fromarray(low_contrast).save(tmp_path / file.parent.name / file.name)
    for source, atol in ((tmp_path, 1.5 / 255), (folder, 25 / 255)):
        memory, workers = (
            batches_of(source, kind, augmentation=CROP, antialias=True) for kind in LOADINGS
        )
        for a, b in zip(memory.steps(0, 6), workers.steps(0, 6), strict=True):
            assert torch.equal(a.ids, b.ids)
            torch.testing.assert_close(a.images, b.images, rtol=0, atol=atol)
            assert (a.images - b.images).abs().mean() < 0.5 / 255


# ------------------------------------------------------------------------------- decoding workers
def test_each_image_is_decoded_once_for_both_views(folder, monkeypatch):
    batches = batches_of(folder, "workers", clean=True)
    decoded = []
    decode = ImageSet.decode
    monkeypatch.setattr(
        ImageSet, "decode", lambda self, index: decoded.append(index) or decode(self, index)
    )
    batch = next(batches.steps(0, 1))
    assert sorted(decoded) == sorted(batch.ids.tolist())


@pytest.mark.parametrize("antialias", [False, True])
def test_views_are_the_same_wherever_they_are_finished(folder, antialias):
    """By the workers (on CPU) or on the batch (on a GPU); the latter rounds the crop to uint8."""
    options = {"antialias": antialias}
    plain = Augmentation(color_strength=0, blur_sigma_per="image")
    here, there = (batches_of(folder, "workers", augmentation=plain, **options) for _ in range(2))
    assert here.workers_finish
    there.workers_finish = False
    for a, b in zip(here.steps(0, 2), there.steps(0, 2), strict=True):
        assert torch.equal(a.ids, b.ids)
        torch.testing.assert_close(a.images, b.images, rtol=0, atol=1.1 / 255)
    everything = batches_of(folder, "workers", augmentation=VIEWS, **options)
    for a, b in zip(everything.steps(0, 2), here.steps(0, 2), strict=True):
        assert not torch.allclose(a.images, b.images, atol=0.1)  # with colours


def test_worker_processes_change_nothing(folder):
    here = list(batches_of(folder, "workers").steps(0, 3))
    batches = batches_of(folder, "workers")
    batches.data = replace(batches.data, workers=2)
    assert all(same(a, b) for a, b in zip(here, batches.steps(0, 3), strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_becomes_unreadable_stops_with_its_name(folder, tmp_path, workers):
    root = Path(shutil.copytree(folder, tmp_path / "copy"))
    batches = batches_of(root, "workers", batch_size=30)
    (root / "b/3.png").write_bytes((root / "b/3.png").read_bytes()[:100])
    batches.data = replace(batches.data, workers=workers)
    with pytest.raises(UserError) as caught:
        list(batches.steps(0, 1))
    assert str(caught.value).startswith(f"cannot read {root / 'b/3.png'}: ")
    assert "remove it or give --data.on_error skip" in str(caught.value)
    plain = plain_batches(batches.images, batches.ids, batches.data, 8, "cpu")
    with pytest.raises(UserError, match=r"^cannot read .*b/3\.png"):
        list(plain)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_becomes_unreadable_is_replaced_and_counted_once(
    folder, tmp_path, workers, capfd
):
    """While training, as of a network drive; those unreadable before are left out at the start."""
    root = Path(shutil.copytree(folder, tmp_path / "copy"))
    train, data = images_of(root, "workers", on_error="skip")
    (root / "b/3.png").unlink()
    data = replace(data, workers=workers)
    batches = Batches(
        train,
        np.arange(N),
        data,
        VIEWS,
        process(),
        seed=0,
        stage="pretrain",
        batch_size=15,
        views=2,
    )
    bad = train.names.tolist().index("b/3.png")
    ids = torch.cat([batch.ids for batch in batches.steps(0, 4)]).tolist()  # two passes
    assert len(ids) == 60
    assert set(ids) == set(range(N)) - {bad}
    assert batches.skipped == {bad}
    printed = capfd.readouterr().out
    assert printed.splitlines() == [
        "pretrain: skipped 1 unreadable of 30 images, the last is b/3.png"
    ]
    # evaluation leaves it out
    seen = torch.cat([ids for _, ids in plain_batches(train, np.arange(N), data, 8, "cpu")])
    assert seen.tolist() == [i for i in range(N) if i != bad]
    assert "left out 1 unreadable of 30 images" in capfd.readouterr().out


def test_nothing_readable(tmp_path):
    make_folder(tmp_path, [f"{i}.png" for i in range(3)])
    train, data = images_of(tmp_path, "workers", on_error="skip")
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"x")
    batches = Batches(train, np.arange(3), data, VIEWS, process(), seed=0, stage="s", batch_size=2)
    with pytest.raises(UserError, match="none of the 3 images can be read"):
        list(batches.steps(0, 1))


# ------------------------------------------------------------------------------------- evaluation
@pytest.mark.parametrize("loading", LOADINGS)
def test_evaluation_sees_each_image_once_in_order(folder, loading):
    train, data = images_of(folder, loading)
    ids = np.array([5, 2, 9, 11, 0])
    plain_images = list(plain_batches(train, ids, data, 2, "cpu"))
    assert [len(batch) for batch, _ in plain_images] == [2, 2, 1]
    assert torch.cat([positions for _, positions in plain_images]).tolist() == ids.tolist()
    in_memory, data = images_of(folder, "memory")
    expected = torch.cat([batch for batch, _ in plain_batches(in_memory, ids, data, 5, "cpu")])
    torch.testing.assert_close(
        torch.cat([batch for batch, _ in plain_images]), expected, atol=0.5 / 255 + 1e-6, rtol=0
    )


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("loading", LOADINGS)
def test_every_plain_view_is_shrunk_as_the_training_views_are(tmp_path, loading, antialias):
    """A large picture of fine stripes is grey where the filter is widened, as Pillow shows it."""
    stripes = np.zeros((80, 96, 3), np.uint8)
    stripes[:, ::3] = 200
    for i in range(4):
        Image.fromarray(np.roll(stripes, i, axis=1)).save(tmp_path / f"{i}.png")
    whole = Augmentation(crop_area=(1, 1), flip=0, color_strength=0, blur=0)
    options = {"antialias": antialias, "batch_size": 4, "clean": True}
    batches = batches_of(tmp_path, loading, augmentation=whole, **options)
    batch = next(batches.steps(0, 1))
    assert batch.clean is not None
    alone = batches_of(tmp_path, loading, augmentation=None, antialias=antialias, batch_size=4)
    as_trained = next(alone.steps(0, 1)).images
    plain, ids = next(plain_batches(batches.images, batch.ids.numpy(), batches.data, 4, "cpu"))
    assert torch.equal(plain, batch.clean)
    by_id = dict(zip(alone.chosen(0).tolist(), as_trained, strict=True))
    assert all(torch.equal(by_id[i], image) for i, image in zip(ids.tolist(), plain, strict=True))

    middle = Image.fromarray(stripes).crop((8, 0, 88, 80)).resize((8, 8), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(middle)).permute(2, 0, 1) / 255
    image = plain[ids.tolist().index(0)]
    assert ((image - expected).abs().max() < 2 / 255) == antialias
    assert (image.std() < 0.05) == antialias
    assert (batch.images.std() < 0.05) == antialias


def test_workers_may_be_spawned(folder):
    """As is the default on macOS and Windows: what they get can be pickled, and is complete."""
    batches = batches_of(folder, "workers")
    there = pickle.loads(pickle.dumps(_DecodeAndCrop(batches)))
    id_, crops = there[(4, 1, 7)]
    expected_id, expected = _DecodeAndCrop(batches)[(4, 1, 7)]
    assert id_ == expected_id
    assert all(torch.equal(a, b) for a, b in zip(crops, expected, strict=True))


def test_workers_end_without_an_error(folder):
    batches = batches_of(folder, "workers")
    batches.data = replace(batches.data, workers=2)
    steps = batches.steps(0, 3)
    next(steps)
    workers = multiprocessing.active_children()
    list(steps)
    for worker in workers:
        worker.join(10)
    assert [worker.exitcode for worker in workers] == [0, 0]


# ---------------------------------------------------------------------- what the system takes away
def no_room():
    raise RuntimeError("unable to open shared memory object </torch_1> in read-write mode")


def too_many_files():
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def left():
    os._exit(3)


def defect():
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


TAKEN = {killed: "ended from outside", left: "ended from outside"}
NOT_THERE = {no_room: "shared memory object", too_many_files: "Too many open files"}


def with_a_worker_that(act, folder, monkeypatch) -> tuple[ImageSet, Data]:
    """Images whose fifth cannot be decoded, for no fault of its own."""
    train, data = images_of(folder, "workers")
    decode = ImageSet.decode
    parent = os.getpid()

    def decoded(self, index):
        if index == 4 and os.getpid() != parent:
            act()
        return decode(self, index)

    monkeypatch.setattr(ImageSet, "decode", decoded)
    return train, replace(data, workers=1)


@pytest.mark.parametrize("act", [*TAKEN, *NOT_THERE])
def test_what_the_system_takes_away_is_one_line_and_no_bad_image(act, folder, monkeypatch):
    train, data = with_a_worker_that(act, folder, monkeypatch)
    with pytest.raises(UserError, match={**TAKEN, **NOT_THERE}[act]) as error:
        list(plain_batches(train, np.arange(len(train)), data, 4, "cpu"))
    message = str(error.value)
    assert "\n" not in message
    assert "--data.workers" in message
    assert ".png" not in message


@pytest.mark.parametrize("error", [ConnectionResetError, ConnectionRefusedError, EOFError])
def test_a_worker_that_ends_as_it_hands_a_batch_over(error, folder, monkeypatch):
    train, data = images_of(folder, "workers")

    def broken(self):
        raise error

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", broken)
    with pytest.raises(UserError, match="ended from outside"):
        list(plain_batches(train, np.arange(4), replace(data, workers=1), 4, "cpu"))


def missing():
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "no space/shared memory")


def broken():
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def without_code():
    raise OSError("too many open files, says a library of ours")


@pytest.mark.parametrize("act", [defect, missing, broken, without_code])
def test_a_defect_in_a_worker_keeps_its_traceback(act, folder, monkeypatch):
    train, data = with_a_worker_that(act, folder, monkeypatch)
    with pytest.raises((RuntimeError, OSError), match="Traceback") as error:
        list(plain_batches(train, np.arange(len(train)), data, 4, "cpu"))
    traceback.clear_frames(error.tb)  # they keep the worker alive


def test_a_worker_that_dies_does_not_interrupt_the_main_thread(folder):
    """An update would be cut in half. The loader's own handler raises at any line."""
    batches = batches_of(folder, "workers", batch_size=2)
    batches.data = replace(batches.data, workers=1)
    steps = batches.steps(0, 15)
    next(steps)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(20)
    assert worker.exitcode == -signal.SIGKILL
    for _ in range(1000):
        time.sleep(0)  # a line at which the handler would raise
    with pytest.raises(UserError, match="ended from outside"):
        list(steps)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.ENOSYS])
def test_workers_that_cannot_start_are_one_line(code, folder, monkeypatch):
    train, data = images_of(folder, "workers")

    def refuse(self):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(DataLoader, "__iter__", refuse)
    with pytest.raises(UserError, match=f"{os.strerror(code)}.*--data.workers 0"):
        list(plain_batches(train, np.arange(4), data, 4, "cpu"))
