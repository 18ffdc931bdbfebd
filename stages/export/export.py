"""Write an artifact as a file for other programs, and check the file on real images."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from shared.runtime.artifacts import read_meta
from shared.runtime.errors import CannotWriteError, UserError, exit_code_2
from shared.runtime.files import clean, delete, temporary_folder
from shared.runtime.lock import held
from shared.runtime.media import say, say_block
from stages.export import onnx_file, timm_folder, torchscript
from stages.export.arguments import NAMES, parser
from stages.export.images import Function, RealImages, accuracies, check, open_images
from stages.export.network import Source, load

ADVICE = "choose another -o"
HOW_TO_SERVE = "README.md, Out of the house, has the lines of Python that serve it without torch"


class Format(NamedTuple):
    """A way to write an artifact.

    Attributes:
        name: of the file or folder, in the artifact's folder.
        write: writes it.
        load: reads it again, as a function of images.
        notes: what a file says of itself (`Source.notes`); None where it is no export.
        require: UserError where a package is missing.
    """

    name: str
    write: Callable[[Source, Path], None]
    load: Callable[[Path], Function]
    notes: Callable[[Path], Mapping[str, str] | None]
    require: Callable[[], None] = lambda: None


FORMATS = {
    "onnx": Format(
        NAMES["onnx"], onnx_file.write, onnx_file.load, onnx_file.notes, onnx_file.require_packages
    ),
    "timm": Format(NAMES["timm"], timm_folder.write, timm_folder.load, timm_folder.notes),
    "torchscript": Format(
        NAMES["torchscript"], torchscript.write, torchscript.load, torchscript.notes
    ),
}


def export(
    path: Path,
    to: str,
    out: Path | None = None,
    layer: int | None = None,
    int8: bool = False,
    where: str | None = None,
) -> list[str]:
    """Write an artifact as a file that was checked against torch.

    Args:
        path: the artifact's folder.
        to: a key of ``FORMATS``.
        out: the file or folder to write; None for the format's name in the artifact's folder.
        layer: export the features of this layer instead of probabilities (``network.load``).
        int8: for ONNX, write a second file with 8-bit weights beside, and measure both.
        where: images to check on instead of those of the run.

    Returns:
        What was written and found, for the user.

    Raises:
        UserError: the artifact cannot be exported, the file does not compute what torch does, or it
            cannot be written; then nothing is left of it.
    """
    form = FORMATS[to]
    form.require()
    read_meta(path)  # before a lock is made beside what is no artifact
    out = path / form.name if out is None else out
    files = [out, _small(out)] if int8 else [out]
    for file in files:
        _require_free(file, form)
    # no stage may make the artifact anew meanwhile
    stage = held(path.resolve(), advice=ADVICE) if out.parent == path else nullcontext()
    with stage, held(out, advice=ADVICE):
        for file in files:
            _require_free(file, form)  # another export may have ended just now
        source = load(path, layer)
        if int8 and not source.classes:
            raise UserError(
                "--int8 is measured by its predictions: it needs a classifier's, not --layer"
            )
        images = open_images(source, where)
        return _write(source, form, images, out, int8)


def _write(source: Source, form: Format, images: RealImages, out: Path, int8: bool) -> list[str]:
    """Write and check the file beside its name, and move it into place."""
    clean(out.parent)
    try:
        with temporary_folder(out.parent) as folder:
            new = folder / form.name
            form.write(source, new)
            lines = [check(source, form.load(new), images)]
            if int8:
                small = _small(new)
                onnx_file.quantize(source, new, small)
                lines += _compare_int8(source, new, small, images)
                lines.append(f"{_small(out)}: {_size(small)}")
            lines.insert(0, f"{out}: {_size(new)}, {_description(source)}")
            if out.is_dir():
                out.replace(folder / "old")
            new.replace(out)
            if int8:
                _small(new).replace(_small(out))
            elif form is FORMATS["onnx"]:
                lines += _without_another_int8(source, out)
            if form is FORMATS["onnx"] and source.classes:
                lines.append(HOW_TO_SERVE)
    except OSError as error:
        raise CannotWriteError(f"cannot write {out}: {error}; make room or {ADVICE}") from error
    return lines


def _require_free(out: Path, form: Format) -> None:
    """UserError where something else than an earlier export stands in the way."""
    if not os.path.lexists(out):
        return
    if form is FORMATS["timm"]:
        if form.notes(out) is None:
            raise UserError(f"{out} exists and is no folder of an earlier export; {ADVICE}")
    elif out.is_dir():
        raise UserError(f"{out} is a folder; -o names the file to write")
    elif not out.is_file() or form.notes(out) is None:
        raise UserError(f"{out} exists and is no earlier export of this format; {ADVICE}")


def _small(out: Path) -> Path:
    """The file with 8-bit weights beside an ONNX file."""
    return out.with_suffix(".int8.onnx")


def _without_another_int8(source: Source, out: Path) -> list[str]:
    """Remove a file with 8-bit weights of an earlier export of something else; say so."""
    small = _small(out)
    notes = onnx_file.notes(small) if small.is_file() else None
    if notes is None or notes == source.notes():
        return []
    delete(small)
    return [f"{small} is removed: it was of another export; --int8 makes it anew"]


def _compare_int8(source: Source, whole: Path, small: Path, images: RealImages) -> list[str]:
    """What the 8-bit weights cost."""
    functions = [onnx_file.load(file) for file in (whole, small)]
    (before, after), agreement, number = accuracies(functions, source, images)
    line = f"int8: the class of float on {100 * agreement:.1f}% of {number} {images.title}"
    if math.isnan(before):
        return [f"{line}; accuracy not measured: no image of these classes has a label"]
    return [f"{line}; top-1 {100 * after:.1f}%, float {100 * before:.1f}%"]


def _description(source: Source) -> str:
    """Inputs and outputs in one line."""
    size, shown = source.meta["image_size"], source.preprocessing()
    crop = f"the central {shown['crop_share']:.1%}" if shown["crop_share"] != 1 else "the middle"
    filter_ = "" if shown["antialias"] else "not "
    after = "" if source.layer is None else f" of layer {source.layer}"
    return (
        f"images (N, 3, {size}, {size}) float32, RGB in [0, 1] ({crop}, bicubic,"
        f" {filter_}antialiased) -> {source.output}{after}"
    )


def _size(path: Path) -> str:
    """Of a file or a folder."""
    files = path.iterdir() if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.2f} MB"


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Export one artifact: 0, or 2 after one line that says what is wrong."""
    arguments = parser().parse_args(argv)
    to, path, name = arguments.to, arguments.artifact, arguments.push_to_hub
    if arguments.int8 and to != "onnx":
        raise UserError(f"--int8 needs --to onnx, not {to}")
    if name is not None and to != "timm":
        raise UserError(f"--push_to_hub needs --to timm, not {to}")
    lines = export(path, to, arguments.out, arguments.layer, arguments.int8, arguments.images)
    say(*lines)
    if to == "timm":
        folder = arguments.out or path / FORMATS[to].name
        say(*timm_folder.how_to_load(folder))
        if name is not None:
            say_block(timm_folder.push(folder, name))
    return 0
