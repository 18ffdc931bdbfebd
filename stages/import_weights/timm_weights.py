"""Published weights of a timm model, as an artifact that takes the place of stage 1.

    python -m stages.import_weights timm:resnet50.a1_in1k runs/photos/pretrain
    python -m stages.import_weights timm:resnet50.a1_in1k=weights.safetensors runs/photos/pretrain
    python pipeline.py --data.train photos

The encoder comes without a projection head, so stages 2 and 3 start from its own output, layer 0.
Size, mean and standard deviation of its images are timm's, and the later stages take them over. A
folder as on timm's hub, or a file in one, says in ``config.json`` what it holds; of any other file
the command says it. Nothing in a file is executed.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

from timm.models import PretrainedCfg

from shared.config.sections import WEIGHT_FORMATS, Data, Model
from shared.networks.build import build_encoder, network_meta
from shared.networks.encoders import fetch_weights, known_encoder
from shared.networks.heads import ContrastiveModel, ProjectionHead
from shared.runtime.bounds import LEVEL, SIDE
from shared.runtime.errors import UserError
from shared.runtime.files import did_you_mean
from shared.runtime.records import damaged, mismatch, read_json
from stages.import_weights.artifact import (
    check_output,
    require_empty,
    require_expected,
    write_artifact,
)

PREFIX = "timm:"
SUFFIXES = (".safetensors", ".bin")  # of files that need no prefix: nobody else's end so


class Seen(TypedDict):
    """How weights see images, as timm's ``config.json`` says it."""

    input_size: list[int]
    mean: list[float]
    std: list[float]
    interpolation: str
    crop_pct: float | None


class Published(NamedTuple):
    """Weights that somebody has published.

    Attributes:
        name: of the timm model.
        file: that holds the weights; None for those of timm's hub.
        config: how these weights see images.
    """

    name: str
    file: Path | None
    config: PretrainedCfg


def is_published(source: str) -> bool:
    """Whether a source is meant for this module, and is no checkpoint of TensorFlow."""
    return source.startswith(PREFIX) or source.endswith(SUFFIXES)


def import_published(
    source: str, out: Path, image_size: int | None = None, expect: Collection[str] = ()
) -> list[str]:
    """Make an artifact folder of published weights.

    Args:
        source: ``timm:NAME``, ``timm:NAME=FILE``, or ``timm:FILE`` and ``timm:FOLDER`` beside whose
            weights a ``config.json`` says what they are.
        out: folder of the artifact.
        image_size: pixels per side; None takes the published size.
        expect: the sha256 that the file must have; empty where any will do.

    Returns:
        A report for the user, line by line.

    Raises:
        UserError: timm knows no such model, its weights cannot be reached or read, they are of
            another network or do not take images of this size, or ``out`` holds an artifact.
    """
    require_empty(out)
    published = find(source.removeprefix(PREFIX))
    config = published.config
    try:
        side = _side(config)
        mean, std = _per_channel(config.mean), _per_channel(config.std)
        side = side if image_size is None else image_size
        if side > SIDE:
            raise ValueError(f"images of {side:.6g} pixels a side; at most {SIDE:,}")
        data = Data(image_size=side, antialias=True, mean=mean, std=std)
        pretrained = str(published.file) if published.file else bool(config.has_weights)
        if not pretrained:
            raise ValueError(f"timm has no published weights of it; give {PREFIX}NAME=FILE")
        file = fetch_weights(published.name, pretrained, f"connect, or give {PREFIX}NAME=FILE")
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: {error}") from error
    if expect and file is None:
        raise UserError(f"{source}: timm keeps these weights itself, so --expect cannot be checked")
    files = [file] if file else []
    # what is no weights may be a terabyte, so it is hashed last, unless its hash is asked for
    digests = require_expected(files, expect) if expect else {}
    size = data.image_size
    encoder = build_encoder(published.name, size, pretrained)
    features = cast(int, encoder.head_hidden_size)
    model = ContrastiveModel(encoder, ProjectionHead(features, 0))
    check_output(model, size)

    digests = digests or require_expected(files, expect)
    digest = digests[file.name] if file else None
    account = {
        "stage": "import",
        "source": f"{PREFIX}{published.name}",
        "file": file.name if file else None,
        "sha256": digest,
        "interpolation": config.interpolation,
        "crop_pct": config.crop_pct,
    }
    # the tag names the weights and not the network, and timm may drop it
    network = network_meta(Model(encoder=published.name.partition(".")[0]), data)
    meta = {
        "kind": "encoder",
        "stage": "import",
        **network,
        "head": {"layers": 0, "width": None, "out": None},
        "images": None,
        "seed": None,
        "seconds": 0.0,
        "settings": account,
    }
    write_artifact(out, model, meta)
    return _report(published, file, digest, out, data, model)


def find(source: str) -> Published:
    """The weights that a source names, after ``timm:``.

    Raises:
        UserError: timm knows no such model, or nothing says which model a file is of.
    """
    if not source:
        raise UserError(f"{PREFIX} names no model; give {PREFIX}NAME, such as {PREFIX}resnet50")
    if "\0" in source or len(source) > 2000 or max(map(len, os.fsencode(source).split(b"/"))) > 255:
        raise UserError(f"{PREFIX}{source[:40]}... is no name and no path; give {PREFIX}NAME=FILE")
    named = None if os.path.exists(source) else re.fullmatch(r"([\w.-]+)=(.+)", source)
    name, path = (named[1], Path(named[2])) if named else ("", Path(source))
    if not named and not path.is_dir() and path.suffix not in WEIGHT_FORMATS:
        name, path = source.removeprefix("hf-hub:").removeprefix("timm/"), None
    file = _file_in(path) if path else None
    notes = _notes_beside(file) if file else {}
    name = name or notes.get("architecture", "")
    if not isinstance(name, str) or not name:
        raise UserError(
            f"{file} does not say of which model it is, and no config.json of timm lies beside it;"
            f" give timm:NAME={file}, such as timm:resnet50={file}"
        )
    try:
        config = known_encoder(name)
    except ValueError as error:
        raise UserError(f"{PREFIX}{source}: {error}") from error
    if file and notes.get("architecture") == name.partition(".")[0]:
        config = replace(config, **_seen(notes, file))
    return Published(name, file, config)


def _file_in(path: Path) -> Path:
    """A file of weights: the path itself, or the one in its folder; UserError where it is none."""
    if path.is_dir():
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin")]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise UserError(f"{path} holds neither model.safetensors nor pytorch_model.bin")
        return file
    if not path.is_file() or path.suffix not in WEIGHT_FORMATS:
        what = "is no file of weights" if path.exists() else "does not exist"
        raise UserError(
            f"{path} {what}; give one of {', '.join(WEIGHT_FORMATS)}, or timm's folder"
            f"{did_you_mean(path)}"
        )
    return path


def _notes_beside(file: Path) -> dict[str, Any]:
    """What ``config.json`` beside the weights says, as timm writes it; nothing where it is none."""
    notes = file.with_name("config.json")
    return read_json(notes, _remedy(file)) if notes.is_file() else {}


def _remedy(file: Path) -> str:
    return f"fetch the model's folder again, or remove config.json and give timm:NAME={file}"


def _seen(notes: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What ``config.json`` says of the images; UserError where it can be none of that."""
    described = notes.get("pretrained_cfg", notes)
    wrong = mismatch(described, Seen, "pretrained_cfg", partial=True)
    if not wrong:
        share, filter_name = described.get("crop_pct"), described.get("interpolation", "")
        if share is not None and not 0 < share <= 10:
            wrong = f"crop_pct is {share!r:.40}, needed is a share of an image"
        if len(filter_name) > 40:
            wrong = "interpolation is longer than 40 characters"
    if wrong:
        raise damaged(file.with_name("config.json"), ValueError(wrong), _remedy(file))
    return {key: described[key] for key in Seen.__annotations__ if key in described}


def _side(config: PretrainedCfg) -> int:
    """Pixels per side of the images that the weights were trained with.

    Raises:
        ValueError: these are not square, or have not three channels.
    """
    size = tuple(config.input_size)
    if len(size) != 3 or size[0] != 3 or size[1] != size[2]:
        raise ValueError(
            f"it takes images of {' x '.join(map(str, size)):.60}; here an encoder takes square"
            " images of 3 channels"
        )
    return size[1]


def _per_channel(values: Sequence[float]) -> tuple[float, float, float]:
    """Three numbers; ValueError where they are not."""
    numbers = tuple(map(float, values))
    if len(numbers) != 3 or not all(abs(number) <= LEVEL for number in numbers):
        raise ValueError(f"mean and std are three numbers each, not {values!r:.60}")
    return cast(tuple[float, float, float], numbers)


def _report(
    published: Published,
    file: Path | None,
    digest: str | None,
    out: Path,
    data: Data,
    model: ContrastiveModel,
) -> list[str]:
    """What was imported, for the user, line by line."""
    parameters = sum(p.numel() for p in model.parameters())
    mean, std = (", ".join(f"{x:g}" for x in numbers) for numbers in (data.mean, data.std))
    other = published.config.interpolation != "bicubic"
    lines = [
        f"{PREFIX}{published.name}: {file or published.config.url}",
        *([f"  sha256 {digest}"] if digest else []),
        f"{out}: encoder, images of {data.image_size} pixels",
        f"  encoder {published.name}: {parameters:,} parameters, {model.head.widths[0]} features",
        "  no projection head: stages 2 and 3 start from layer 0",
        f"  mean {mean}; std {std}; resized with the antialiased bicubic filter"
        + f", in place of the published {published.config.interpolation!r}" * other,
        "  the stages take size, mean and std from here: none of them has to be given",
        "  self-check: the output for a random image is finite",
    ]
    return lines
