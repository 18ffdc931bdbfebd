"""Image files become the same pixels; loading, unreadable images, fingerprints."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from shared.config.labelset import LabelSet
from shared.config.schema import Data
from shared.data.batches import plain_batches
from shared.data.images import decode_image
from shared.data.sources import open_data, open_splits
from shared.runtime.errors import UserError
from tests.support.photos import class_folders, make_folder
from tests.support.sources import HALVES, PNGS, encoded, error_of, opened, parquet

GREY = np.array([[0, 100, 200], [255, 50, 25]], dtype=np.uint8)  # H 2, W 3
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


# ------------------------------------------------------------------------------------- decoding
def test_colour_keeps_its_values_and_places():
    image = decode_image(encoded(Image.fromarray(COLOUR)))
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image, COLOUR.transpose(2, 0, 1))


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
    from shared.data.images import _UNREADABLE

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
            except _UNREADABLE:
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
    if loading == "memory":
        message = error_of(tmp_path, loading=loading)
    else:
        splits = opened(tmp_path, loading=loading)
        images = next(images for images in splits if "b/3.png" in images.names)
        with pytest.raises(UserError) as caught:
            images.decode(images.names.tolist().index("b/3.png"))
        message = str(caught.value)
    assert f"cannot read {tmp_path / 'b/3.png'}" in message
    assert "--data.on_error skip" in message


def test_unreadable_images_in_memory_are_dropped_and_counted(tmp_path, capsys):
    root = class_folders(tmp_path, 10)
    spoil(root / "b/3.png")
    (root / "c/4.png").write_bytes(b"no image at all")
    open_splits.cache_clear()
    data = Data(train=str(root), on_error="skip", loading="memory")
    train, test = open_data(data, LabelSet.parse("1pct"), progress=True)
    assert "skipped 2 unreadable of 30 images: b/3.png, c/4.png" in capsys.readouterr().out
    names = {*train.names, *test.names}
    assert len(names) == 28
    assert names.isdisjoint({"b/3.png", "c/4.png"})
    expected = np.asarray(Image.open(root / train.names[-1]))
    np.testing.assert_array_equal(train.pixels[-1].permute(1, 2, 0), expected)


def test_nothing_readable(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    message = error_of(tmp_path, on_error="skip", loading="memory")
    assert "none of the 1 images can be read" in message


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
        open_splits.cache_clear()
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
    open_splits.cache_clear()

    def images():
        train = open_data(data, LabelSet.parse("1pct")).train
        return list(plain_batches(train, np.arange(len(train)), data, 4, "cpu"))

    if pixels == 8:
        assert len(images()) == 1
    else:
        with pytest.raises(UserError, match=r"4x2 pixels are 8, and data.max_pixels allows 7") as e:
            images()
        assert "or a larger --data.max_pixels" in str(e.value)
