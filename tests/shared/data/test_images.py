"""Image files become the same pixels; loading, unreadable images, fingerprints."""

import io
import json
import os
import re
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from shared.config.labelset import LabelSet
from shared.config.schema import Config
from shared.config.sections import Data
from shared.data.batches import plain_batches
from shared.data.images import ImageSet, _quiet_pillow, decode_image, rgb_pixels
from shared.data.labels import draw_labels
from shared.data.sources import OPENED, open_data, open_run
from shared.runtime.distributed import gather_all
from shared.runtime.errors import UserError
from tests.support.gloo import fork, join
from tests.support.photos import class_folders, make_folder
from tests.support.sources import HALVES, PNGS, STRUCTS, encoded, error_of, opened, parquet

GREY = np.array([[0, 100, 200], [255, 50, 25]], dtype=np.uint8)  # H 2, W 3
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


# ------------------------------------------------------------------------------------- decoding
def test_colour_keeps_its_values_and_places():
    image = decode_image(encoded(Image.fromarray(COLOUR)))
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image, COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("name", ["x.eps", "x.png", ""])
def test_no_program_is_started_for_an_image(name, tmp_path, monkeypatch):
    """Pillow would have Ghostscript execute EPS, whatever the file is called."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    _quiet_pillow.cache_clear()
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / (name or "bytes")).write_bytes(content)
    with pytest.raises(OSError, match="Ghostscript"):
        decode_image(str(tmp_path / name) if name else content)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(("size", "block"), [((1, 1), None), ((50, 30), None), ((50, 30), 4096)])
def test_pixels_are_pillows(size, block):
    usual = Image.core.get_block_size()
    Image.core.set_block_size(block or usual)  # a large image fills several
    try:
        image = Image.linear_gradient("L").resize(size)
        image = Image.merge("RGB", [image, image.rotate(180), image])
        np.testing.assert_array_equal(rgb_pixels(image).permute(1, 2, 0).numpy(), np.asarray(image))
    finally:
        Image.core.set_block_size(usual)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_becomes_three_equal_channels(mode):
    grey = Image.fromarray(GREY).convert(mode)
    expected = np.asarray(grey.convert("L"))
    image = decode_image(encoded(grey))
    for channel in image:
        np.testing.assert_array_equal(channel, expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_and_not_cut_off(kind):
    values = (GREY.astype(np.uint16) * 257) // 16  # a dark image, as 12-bit cameras make
    image = decode_image(encoded(Image.fromarray(values), kind))
    np.testing.assert_array_equal(image[0], np.rint(values / 257))
    assert image[0].max() == 16
    # however dark: what is white does not depend on the image
    image = decode_image(encoded(Image.fromarray(GREY.astype(np.uint16)), kind))
    np.testing.assert_array_equal(image[0], np.rint(GREY / 257))


def test_float_images_are_scaled_by_what_they_can_mean():
    for full in (1.0, 255.0):
        values = (GREY / 255 * full).astype(np.float32)
        image = decode_image(encoded(Image.fromarray(values), "TIFF"))
        np.testing.assert_array_equal(image[0], GREY)


def test_transparency_is_laid_over_white():
    alpha = np.array([[255, 255, 0], [0, 128, 255]], dtype=np.uint8)
    image = decode_image(encoded(Image.fromarray(np.dstack([COLOUR, alpha]))))
    share = alpha[..., None] / 255
    expected = COLOUR * share + 255 * (1 - share)
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_palette_with_and_without_a_transparent_colour():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.putpixel((1, 0), 1)
    pixels = decode_image(encoded(palette))[:, 0].T
    np.testing.assert_array_equal(pixels, [[10, 20, 30], [200, 100, 0]])
    pixels = decode_image(encoded(palette, transparency=1))[:, 0].T
    np.testing.assert_array_equal(pixels, [[10, 20, 30], [255, 255, 255]])


def test_cmyk_becomes_rgb():
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # full cyan: no red
    image = decode_image(encoded(inks, "JPEG", quality=100))
    np.testing.assert_allclose(image[:, 8, 8], [0, 255, 255], atol=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    """The same upright image whatever way the camera was held."""
    upright = np.kron(COLOUR, np.ones((16, 16, 1), np.uint8))
    turned = upright.swapaxes(0, 1)
    # what is stored, so that showing it as EXIF 2.3 (table 6) says gives the upright image
    ways = [
        upright,
        upright[:, ::-1],
        upright[::-1, ::-1],
        upright[::-1],
        turned,
        turned[::-1],
        turned[::-1, ::-1],
        turned[:, ::-1],
    ]
    stored = ways[orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif))
    np.testing.assert_array_equal(image, upright.transpose(2, 0, 1))


def test_broken_files_raise_what_the_caller_catches():
    """Bytes flipped and cut off: never an exception that ``on_error`` would not see."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(np.kron(COLOUR, np.ones((8, 8, 1), np.uint8)))
    failures = 0
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        whole = encoded(picture, kind)
        for _ in range(40):
            damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
            for place in rng.integers(0, len(damaged), 2):
                damaged[place] = rng.integers(256)
            try:
                assert decode_image(bytes(damaged)).shape[0] == 3
            except Exception:
                failures += 1
    assert failures > 50


# ---------------------------------------------------------------------------------------- loading
def test_loading(tmp_path, monkeypatch):
    even = class_folders(tmp_path / "even", 5)
    assert opened(even, loading="memory").train.pixels is not None
    assert opened(even, loading="workers").train.pixels is None
    mixed = class_folders(tmp_path / "mixed", 5)
    make_folder(mixed, ["a/wide.png"], size=(9, 8))
    assert opened(mixed).train.pixels is None
    message = error_of(mixed, loading="memory")
    assert "a/wide.png is 9x8" in message
    assert "--data.loading workers" in message
    monkeypatch.setattr("shared.data.images.MEMORY_LIMIT", 1000)
    assert opened(even).train.pixels is None


def spoil(path):
    """A file cut off in the middle, as an interrupted copy leaves it."""
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("loading", ["memory", "workers"])
def test_one_unreadable_image_is_named(tmp_path, loading):
    spoil(class_folders(tmp_path, 10) / "b/3.png")
    message = error_of(tmp_path, loading=loading)
    assert f"cannot read {tmp_path / 'b/3.png'}" in message
    assert "--data.on_error skip" in message


def test_unreadable_images_in_memory_are_dropped_and_counted(tmp_path, capsys):
    root = class_folders(tmp_path, 10)
    spoil(root / "b/3.png")
    (root / "c/4.png").write_bytes(b"no image at all")
    OPENED.clear()
    data = Data(train=str(root), on_error="skip", loading="memory")
    train, test = open_data(data, LabelSet.parse("1pct"), progress=True)
    assert "skipped 2 unreadable of 30 images: b/3.png, c/4.png" in capsys.readouterr().out
    names = {*train.names, *test.names}
    assert len(names) == 28
    assert names.isdisjoint({"b/3.png", "c/4.png"})
    expected = np.asarray(Image.open(root / train.names[-1]))
    np.testing.assert_array_equal(train.pixels[-1].permute(1, 2, 0), expected)


@pytest.mark.parametrize("options", [{"loading": "memory"}, {"loading": "workers"}, {"cache": 4}])
def test_each_reason_is_said_once_with_its_images(tmp_path, capsys, options):
    root = class_folders(tmp_path / "p", 10, size=(40, 40))
    for name in ("a/0.png", "a/3.png", "b/1.png"):
        path = root / name
        path.write_bytes(path.read_bytes()[: 200 + path.stat().st_size // 3])
    for name in ("a/1.png", "c/5.png"):
        (root / name).write_bytes(b"no image at all")
    make_folder(root, ["b/9.png"], size=(51, 51))
    (root / "c/7.png").unlink()
    (root / "c/7.png").symlink_to("nowhere")
    OPENED.clear()
    options |= {"on_error": "skip", "max_pixels": 2500, "cache_folder": str(tmp_path / "cache")}
    open_data(Data(train=str(root), **options), LabelSet.parse("1pct"), progress=True)
    (line,) = (line for line in capsys.readouterr().out.split("\n") if "skipped" in line)
    assert line.startswith(
        "skipped 7 unreadable of 30 images: a/0.png, a/1.png, a/3.png and 4 more"
    )
    first, *reasons = line.partition("has all); ")[2].split("; ")
    assert first.startswith("a/0.png and 2 more: image file is truncated")
    assert "(to read it: --data.load_truncated true)" in first
    assert reasons[0] == "a/1.png and 1 more: not an image"
    assert reasons[1].startswith("b/9.png: 51x51 pixels are 2,601")
    assert reasons[2:] == ["c/7.png: no such file"]


def test_nothing_readable(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    message = error_of(tmp_path, on_error="skip", loading="memory")
    assert "none of the 1 images can be read; x.png: not an image" in message


@pytest.mark.parametrize("source", ["parquet", "folder"])
def test_images_on_disk_have_the_fingerprint_of_their_content(tmp_path, monkeypatch, source):
    def fingerprint(name: str, images: list[bytes]) -> list[str]:
        if source == "parquet":
            opened_ = parquet(tmp_path / f"{name}.parquet", image=images, label=HALVES)
        else:
            opened_ = tmp_path / name
            for i, image in enumerate(images):
                (opened_ / "ab"[i % 2]).mkdir(exist_ok=True, parents=True)
                (opened_ / "ab"[i % 2] / f"{i}.png").write_bytes(image)
        return [part.fingerprint for part in opened(opened_, loading="workers")]

    train, test = fingerprint("here", PNGS)
    assert train != test
    assert fingerprint("copy", PNGS) == [train, test]
    for i in (0, 10, 19):  # of equal length, as uncompressed images are
        changed = [*PNGS[:i], PNGS[i][:-1] + b"x", *PNGS[i + 1 :]]
        assert fingerprint(f"changed {i}", changed) != [train, test]
    if source == "parquet":
        monkeypatch.setattr("shared.data.images.FINGERPRINTED", 0)
        few = fingerprint("few", PNGS)
        assert fingerprint("longer", [*PNGS[:10], PNGS[10] + b"x", *PNGS[11:]]) != few


def test_fingerprints_of_unreadable_files(tmp_path):
    """Nothing is refused before decoding says so."""
    root = class_folders(tmp_path, 10)
    whole = opened(root, loading="workers").train
    before = whole.fingerprint
    for name in whole.names[:2]:
        (root / name).unlink()
    assert opened(root, loading="workers").train.fingerprint != before
    (root / whole.names[2]).write_bytes(b"")
    broken = replace(whole)  # opened before
    assert broken.fingerprint != before


# ----------------------------------------------------------------------------------- unusual files
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("loading", ["auto", "workers"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_cut_off_has_an_option(suffix, loading, workers, tmp_path):
    make_folder(tmp_path, [f"{i}.png" for i in range(3)], size=(64, 48))
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    data = Data(train=str(tmp_path), image_size=16, loading=loading, workers=workers)

    def images(data: Data):
        OPENED.clear()
        train = open_data(data, LabelSet.parse("1pct")).train
        return list(plain_batches(train, np.arange(len(train)), data, 4, "cpu"))

    with pytest.raises(UserError, match="cut") as refused:
        images(data)
    assert "\n" not in str(refused.value)
    if suffix != "tif":
        assert "--data.load_truncated true" in str(refused.value)
        ((batch, _),) = images(replace(data, load_truncated=True))
        assert batch.shape == (4, 3, 16, 16)
    with pytest.raises(UserError):  # the switch of one set does not stay on for another
        images(data)


@pytest.mark.parametrize("pixels", [7, 8])
@pytest.mark.parametrize("loading", ["auto", "workers"])
def test_the_largest_image_is_an_option(pixels, loading, tmp_path):
    make_folder(tmp_path, ["a.png", "b.png"], size=(4, 2))
    data = Data(train=str(tmp_path), image_size=4, loading=loading, workers=1, max_pixels=pixels)
    OPENED.clear()

    def images():
        train = open_data(data, LabelSet.parse("1pct")).train
        return list(plain_batches(train, np.arange(len(train)), data, 4, "cpu"))

    if pixels == 8:
        assert len(images()) == 1
    else:
        with pytest.raises(UserError, match=r"4x2 pixels are 8, and data.max_pixels allows 7") as e:
            images()
        assert "or a larger --data.max_pixels" in str(e.value)


# ------------------------------------------------------------------------------ unreadable images
NULLS = {
    "null struct": None,
    "null bytes and path": {"bytes": None, "path": None},
    "empty bytes": {"bytes": b"", "path": None},
    "empty bytes and path": {"bytes": b"", "path": ""},
    "path without bytes": {"bytes": None, "path": "nowhere.png"},
    "path with empty bytes": {"bytes": b"", "path": "nowhere.png"},
    "bytes of something else": {"bytes": b"GIF89a and no more", "path": None},
}


@pytest.mark.parametrize("loading", ["memory", "workers"])
@pytest.mark.parametrize("kind", NULLS)
def test_null_images_in_parquet_are_unreadable(tmp_path, capsys, kind, loading):
    rows = [{"bytes": png, "path": f"{i}.png"} for i, png in enumerate(PNGS)]
    rows[7] = NULLS[kind]
    path = parquet(tmp_path / "a.parquet", image=rows, label=HALVES)
    message = error_of(path, loading=loading)
    assert message.startswith("cannot read ")
    assert "remove it or give --data.on_error skip" in message
    splits = opened(path, on_error="skip", loading=loading)
    assert len(splits.train) + len(splits.test) == 19
    assert len(splits.train.skipped) == 1
    for images in splits:
        for i in range(len(images)):
            assert int(images.decode(i)[0, 0, 0]) == int(str(images.names[i]).removesuffix(".png"))
    assert splits.train.fingerprint != splits.test.fingerprint


@pytest.mark.parametrize("loading", ["memory", "workers"])
@pytest.mark.parametrize("null", [None, b""])
def test_null_bytes_in_a_column_of_bytes(tmp_path, null, loading):
    path = parquet(
        tmp_path / "a.parquet", image=[null, *PNGS[1:10], null, *PNGS[11:]], label=HALVES
    )
    message = error_of(path, loading=loading)
    assert "cannot read image 0: it is empty; and 1 more of the 20 images cannot be read" in message
    splits = opened(path, on_error="skip", loading=loading)
    assert len(splits.train) + len(splits.test) == 18
    assert splits.train.skipped == ("0", "10")
    assert "none of the 20 images" in error_of(
        parquet(tmp_path / "b.parquet", image=[b""] * 20, label=HALVES),
        on_error="skip",
        loading=loading,
    )


@pytest.mark.parametrize("loading", ["memory", "workers"])
def test_stop_names_the_first_unreadable_image_and_counts_the_others(tmp_path, loading):
    root = class_folders(tmp_path, 10)
    for name in ("a/2.png", "b/3.png", "c/0.png"):
        spoil(root / name)
    message = error_of(root, loading=loading)
    assert message.startswith(f"cannot read {root}/a/2.png: ")
    assert "and 2 more of the 30 images cannot be read; remove them or give" in message


def test_large_sets_stop_later_but_null_images_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("shared.data.images.CHECKED", 19)
    kinds = (("a", b"damaged"), ("b", None), ("c", b""))
    for name, image in kinds:
        path = parquet(tmp_path / f"{name}.parquet", image=[*PNGS[:-1], image], label=HALVES)
        if image:
            assert len(opened(path, loading="workers").train) == 16
        else:
            assert "cannot read image 19: it is empty" in error_of(path, loading="workers")


@pytest.mark.parametrize("loading", ["memory", "workers", "auto"])
def test_labels_and_test_images_are_drawn_among_readable_images(tmp_path, loading):
    """However images are loaded, the same ones are left out before anything is drawn."""
    root = class_folders(tmp_path, 12)
    bad = [f"{c}/{i}.png" for c in "ab" for i in range(2, 9)] + ["c/11.png"]
    for name in bad:
        spoil(root / name)
    if loading == "auto":
        make_folder(root, ["c/wide.png"], size=(9, 8))
    splits = opened(root, on_error="skip", loading=loading)
    assert splits.train.skipped == tuple(sorted(bad))
    assert len(splits.train) + len(splits.test) == 36 - 15 + (loading == "auto")
    labels = draw_labels(splits, LabelSet.parse("2perclass"), seed=0)
    for images, ids in ((splits.train, labels.ids), (splits.test, range(len(splits.test)))):
        assert all(images.decode(int(i)) is not None for i in ids)
    assert set(bad).isdisjoint([*splits.train.names, *splits.test.names])


def test_skipped_images_of_all_sources_are_listed_in_the_run(tmp_path):
    roots = [class_folders(tmp_path / name, 6) for name in ("train", "test", "more")]
    for root in roots:
        spoil(root / "b/3.png")
    (roots[0] / "a/new\nline.png").write_bytes(b"x")
    data = Data(*map(str, roots), on_error="skip", loading="workers", image_size=8)
    OPENED.clear()
    config = Config(data=data, output=str(tmp_path / "out"), run="r")
    splits = open_run(config, SimpleNamespace(is_local_main_process=True, is_main_process=True))
    assert len(splits.train) == 17 + 17
    listed = (tmp_path / "out/r/skipped.txt").read_text().splitlines()
    assert listed == ["a/new\\nline.png", "b/3.png", "unlabeled/b/3.png"]


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_share_the_search_for_unreadable_images(tmp_path, monkeypatch, rank):
    """Each looks at half of the images, and both leave out the same."""
    root = class_folders(tmp_path, 10)
    for name in ("b/3.png", "c/4.png"):
        spoil(root / name)
    mine, decoded, decode = [], [], ImageSet.decode
    monkeypatch.setattr("shared.data.images.rank", lambda: rank)
    monkeypatch.setattr("shared.data.images.world_size", lambda: 2)
    monkeypatch.setattr(
        "shared.data.images.gather_all", lambda items: mine.extend(items) or [13, 24]
    )
    monkeypatch.setattr(
        ImageSet, "decode", lambda self, index: decoded.append(index) or decode(self, index)
    )
    splits = opened(root, on_error="skip", loading="workers")
    assert sorted(decoded) == list(range(rank, 30, 2))
    assert mine == [[24], [13]][rank]
    assert splits.train.skipped == ("b/3.png", "c/4.png")
    assert len(splits.train) + len(splits.test) == 28


# ------------------------------------------------------------------------------- several processes
def spoilt(root, *names, wide=(), per_class=10):
    """``a/0.png``, ... in three classes, of which some cannot be read and some are wide."""
    class_folders(root, per_class)
    make_folder(root, wide, size=(9, 8))
    for name in names:
        (root / name).write_bytes(b"no image at all")
    return str(root)


def sources_of(tmp_path) -> dict[str, dict]:
    """Options of ``Data``: images that are kept in memory, that are not, and that are refused."""
    skip, memory = {"on_error": "skip"}, {"loading": "memory"}
    both = spoilt(tmp_path / "both", "a/0.png", "b/3.png", "c/9.png")
    wide = spoilt(tmp_path / "wide", wide=["a/5.png", "c/4.png"])
    first = spoilt(tmp_path / "first", "a/1.png", "c/2.png", wide=["b/8.png", "c/4.png"])
    later = spoilt(tmp_path / "later", "c/7.png", wide=["a/5.png"])
    none = spoilt(tmp_path / "none", *(f"{c}/{i}.png" for c in "abc" for i in (0, 1)), per_class=2)
    more = spoilt(tmp_path / "more", "c/1.png", per_class=3)
    table = str(parquet(tmp_path / "table.parquet", image=PNGS, label=HALVES))
    opened(table)  # the first one says where a copy of it lies
    return {
        "digits": {"train": "digits", **memory},
        "lockbox": {"train": "digits", "hold_out": "lockbox"},
        "parquet": {"train": table},
        "skipped": {"train": both, **skip},
        "unlabeled": {"train": both, "unlabeled": more, "test": more, **skip},
        "unlabeled, wide": {"train": both, "unlabeled": wide, **skip, **memory},
        "wide": {"train": wide},
        "wide, memory": {"train": wide, **memory},
        "wide, skipped": {"train": later, **skip, **memory},
        "unreadable, then wide": {"train": first},
        "wide, then unreadable": {"train": later},
        "wide, then unreadable, memory": {"train": later, **memory},
        "the first and others": {"train": both, **memory},
        "one": {"train": spoilt(tmp_path / "one", "c/9.png")},
        "none": {"train": none, **memory},
        "none, skipped": {"train": none, **skip},
    }


def seen_of(options: dict, progress: bool) -> dict:
    """What a process knows of the images that it has opened, or the refusal."""
    OPENED.clear()
    data = Data(image_size=8, workers=2, **options)
    try:
        train, test = open_data(data, LabelSet.parse("1pct"), progress)
    except UserError as error:
        return {"refused": str(error)}
    assert test is not None
    return {
        part: {
            "fingerprint": images.fingerprint,
            "labels": images.labels_fingerprint,
            "names": images.names.tolist(),
            "skipped": images.skipped,
            "in_memory": images.pixels is not None,
        }
        for part, images in (("train", train), ("test", test))
    }


def see(rank, folder, sources, processes):
    join(rank, processes, folder)
    decode, decoded, seen = ImageSet.decode, [], {}
    ImageSet.decode = lambda self, index: decoded.append(index) or decode(self, index)
    for name, options in sources.items():
        decoded.clear()
        with redirect_stdout(io.StringIO()) as printed:
            seen[name] = [seen_of(options, rank == 0)]
        seen[name] += [printed.getvalue(), len(decoded)]
        gather_all([0])
    (Path(folder) / f"seen-{rank}.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def seen_by(tmp_path_factory):
    """What one process sees, and each of two and three, of the same sources."""
    sources = sources_of(tmp_path_factory.mktemp("sources"))
    seen = {}
    for processes in (1, 2, 3):
        folder = tmp_path_factory.mktemp("seen")
        fork(see, (str(folder), sources, processes), processes)
        files = sorted(folder.glob("seen-*.json"))
        seen[processes] = [json.loads(file.read_text()) for file in files]
    return seen


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_share_see_what_one_sees(seen_by, processes):
    """The same images in the same order, the same refusals; the lines of one process."""
    (one,) = seen_by[1]
    shared = seen_by[processes]
    assert len(shared) == processes
    for name, (seen, printed, _) in one.items():
        assert all(process[name][0] == seen for process in shared), name
        assert [process[name][1] for process in shared] == [printed, *[""] * (processes - 1)], name
    refused = {name for name, (seen, *_) in one.items() if "refused" in seen}
    assert refused == {
        "unlabeled, wide",
        "wide, memory",
        "wide, skipped",
        "unreadable, then wide",
        "wide, then unreadable",
        "wide, then unreadable, memory",
        "the first and others",
        "one",
        "none",
        "none, skipped",
    }
    assert "and 1 more" in one["unreadable, then wide"][0]["refused"]
    assert "a/0.png is 8x8 and a/5.png is 9x8" in one["wide, memory"][0]["refused"]
    assert "a/0.png: not an image; and 2 more" in one["the first and others"][0]["refused"]
    assert "a/5.png is 9x8" in one["wide, then unreadable, memory"][0]["refused"]
    in_memory = {name for name in one.keys() - refused if one[name][0]["train"]["in_memory"]}
    assert in_memory == one.keys() - refused - {"wide"}


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_decoding(seen_by, processes):
    """Beside its part each decodes the first image of a set, whose size all know then."""
    for name, sets in (("digits", 1), ("parquet", 1), ("skipped", 1)):
        most = seen_by[1][0][name][2] / processes
        for process in seen_by[processes]:
            assert process[name][2] <= most + 3 * sets, name


def write_and_see(rank, folder):
    join(rank, 2, folder)
    splits = opened("digits", unlabeled=f"{folder}/more", test_fraction=0.5)
    train, test = (images.pixels for images in splits if images)
    assert train is not None
    assert test is not None
    of_digits, of_more = train.arrays
    assert test.arrays[0] is of_digits
    gather_all([0])
    if rank:
        of_digits.fill_(77)
        of_more.fill_(78)
    gather_all([0])
    assert train[:-9].unique().tolist() == test[:].unique().tolist() == [77]
    assert train[-9:].unique().tolist() == [78]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux")
def test_two_processes_hold_one_copy_of_training_unlabeled_and_test_images(tmp_path):
    """What one writes, the other sees."""
    class_folders(tmp_path / "more", 3)
    fork(write_and_see, (str(tmp_path),), 2)


def lose_the_other(rank, folder, how):
    join(rank, 2, folder)
    decode = ImageSet.decode

    def end(self, index):
        if rank == 1 and index == 1500:
            how()
        return decode(self, index)

    ImageSet.decode = end
    try:
        opened("digits")
    except RuntimeError as error:
        (Path(folder) / f"lost-{rank}").write_text(str(error))


def leave():
    os._exit(0)


def run_out_of_memory():
    raise RuntimeError("not enough memory")


@pytest.mark.parametrize("how", [leave, run_out_of_memory])
def test_a_process_that_ends_while_it_decodes_is_noticed(tmp_path, how):
    began = time.monotonic()
    fork(lose_the_other, (str(tmp_path), how), 2)
    assert time.monotonic() - began < 30  # it would be waited for a minute
    assert re.search("(?i)connection|gloo", (tmp_path / "lost-0").read_text())


# ------------------------------------------------------------------------------ paths in a parquet
def pictures(folder, name="pictures"):
    for i, png in enumerate(PNGS):
        (folder / name).mkdir(exist_ok=True, parents=True)
        (folder / name / f"{i}.png").write_bytes(png)
    return folder


@pytest.mark.parametrize("form", ["text", "struct", "path only", "some", "absolute", "backslashes"])
@pytest.mark.parametrize("loading", ["memory", "workers"])
def test_paths_in_a_parquet_are_looked_up_beside_it(tmp_path, monkeypatch, form, loading):
    pictures(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    paths = [f"pictures/{i}.png" for i in range(20)]
    rows = {
        "text": paths,
        "struct": [{"bytes": None, "path": path} for path in paths],
        "path only": [{"path": path} for path in paths],
        "some": [{"bytes": PNGS[i] if i % 2 else None, "path": paths[i]} for i in range(20)],
        "absolute": [str(tmp_path / path) for path in paths],
        "backslashes": [path.replace("/", "\\") for path in paths],
    }[form]
    parquet(tmp_path / "a.parquet", file=rows, label=HALVES)
    train, test = opened(os.path.relpath(tmp_path / "a.parquet"), loading=loading)
    assert sorted([*train.names, *test.names]) == sorted(paths)
    for images in (train, test):
        for i, name in enumerate(images.names):
            assert f"pictures/{images.decode(i)[0, 0, 0]}.png" == name


@pytest.mark.parametrize("outside", ["../away/0.png", "/etc/passwd", "pictures/../../away/0.png"])
@pytest.mark.parametrize("column", ["text", "struct"])
def test_paths_out_of_the_folder_are_refused(tmp_path, outside, column):
    pictures(tmp_path / "here")
    pictures(tmp_path, "away")
    rows = [outside, *(f"pictures/{i}.png" for i in range(1, 20))]
    if column == "struct":
        rows = [{"bytes": None, "path": path} for path in rows]
    path = parquet(tmp_path / "here/a.parquet", image=rows, label=HALVES)
    for on_error in ("stop", "skip"):
        message = error_of(path, on_error=on_error)
        assert f"names 1 images outside of its folder: {outside}; put the images beside" in message


def test_paths_beside_bytes_are_only_names(tmp_path):
    rows = [{"bytes": png, "path": f"/home/author/{i}.png"} for i, png in enumerate(PNGS)]
    train, _ = opened(parquet(tmp_path / "a.parquet", image=rows, label=HALVES))
    assert train.names[0].startswith("/home/author/")


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_the_source_of_a_selected_image_is_its_own(tmp_path, source):
    """Selected once, twice and not at all; from paths and from bytes, also of two tables."""
    if source == "folder":
        images = opened(class_folders(tmp_path / "a", 6)).train
    else:
        images = opened(parquet(tmp_path / "a.parquet", image=STRUCTS, label=HALVES)).train
    files = datasets.concatenate_datasets([images.files, images.files])
    twice = replace(images, files=files, names=np.tile(images.names, 2))
    n = len(images)
    for order in (np.arange(2 * n), np.arange(2 * n)[::-1], np.array([n, 1, 1, 2 * n - 1])):
        chosen = replace(twice, files=files.select(order))
        nested = replace(chosen, files=chosen.files.select([1, 0, 3]))
        for case in (chosen, nested):
            expected = [row["image"] for row in case.files]
            actual = [case.source(i) for i in range(len(case.files))]
            assert actual == [row["bytes"] or row["path"] for row in expected]


def test_missing_paths_and_fifos_in_a_parquet_are_unreadable(tmp_path):
    pictures(tmp_path)
    os.mkfifo(tmp_path / "pictures/pipe.png")
    paths = [f"pictures/{i}.png" for i in range(20)]
    paths[3:5] = "pictures/pipe.png", "pictures/gone.png"
    path = parquet(tmp_path / "a.parquet", image=paths, label=HALVES)
    assert f"cannot read {tmp_path}/pictures/pipe.png: no such file" in error_of(path)
    train, test = opened(path, on_error="skip", loading="workers")
    assert len(train) + len(test) == 18
    assert train.skipped == ("pictures/pipe.png", "pictures/gone.png")


@pytest.mark.parametrize(
    "error", [RuntimeError("avif"), IndexError(), EOFError(), KeyError("x"), MemoryError("1 TB\n")]
)
def test_whatever_a_decoder_raises_is_an_unreadable_image(error, tmp_path, monkeypatch):
    """As that of AVIF does for a damaged file: RuntimeError."""
    class_folders(tmp_path, 5)
    genuine = Image.open

    def decoder(source, *args, **options):
        if str(source).endswith("a/0.png"):
            raise error
        return genuine(source, *args, **options)

    monkeypatch.setattr(Image, "open", decoder)
    message = error_of(tmp_path, loading="workers")
    assert "cannot read" in message
    assert "a/0.png" in message
    train, test = opened(tmp_path, loading="workers", on_error="skip")
    assert len(train) + len(test) == 14


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("large", "data.max_pixels allows 10 (to read it: a larger --data.max_pixels)"),
        ("cut", "(to read it: --data.load_truncated true)"),
        ("text", "a/x.png: not an image"),
    ],
)
def test_the_line_on_skipped_images_has_a_reason(tmp_path, capsys, content, says):
    class_folders(tmp_path, 2, classes="ab", size=(3, 3))
    file = tmp_path / "a/x.png"
    make_folder(tmp_path, ["a/x.png"], size=(40, 40))
    whole = file.read_bytes()
    file.write_bytes({"large": whole, "cut": whole[:2000], "text": b"text"}[content])
    pixels = 10 if content == "large" else 10_000
    OPENED.clear()
    data = Data(train=str(tmp_path), on_error="skip", max_pixels=pixels)
    open_data(data, LabelSet.parse("1pct"), progress=True)
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("skipped"))
    assert says in line


def test_pillow_does_not_warn_of_damaged_exif(recwarn):
    _quiet_pillow.cache_clear()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0"  # one entry of two, cut
    decode_image(encoded(Image.new("RGB", (8, 8)), "JPEG", exif=exif))
    assert not recwarn.list
