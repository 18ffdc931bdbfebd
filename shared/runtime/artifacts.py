"""What an artifact folder holds: its description, and what its classifier says of test images.

``meta.json`` describes the artifact; where it is, the stage that made the folder is done. All is
read within bounds and as the types that it should have.
"""

import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast, overload

import numpy as np

from shared.runtime.bounds import CLASSES, LAYERS, LEVEL, SIDE, WIDTH
from shared.runtime.errors import UserError
from shared.runtime.files import did_you_mean
from shared.runtime.records import REDO, damaged, listed, mismatch, read_json
from shared.runtime.tensors import load_arrays


class HeadMeta(TypedDict):
    """The projection head: number of layers, width of the hidden ones, width of the output.

    The hidden width is None where it is the encoder's or there is none. An imported classifier
    without a head has no output width.
    """

    layers: int
    width: int | None
    out: int | None


class NetworkMeta(TypedDict):
    """A network, enough to build it again and to feed it.

    Attributes:
        encoder: timm's name of it.
        head: the projection head; of a classifier, that of the network it was made from.
        image_size: pixels per side.
        mean: subtracted from images in [0, 1], per channel.
        std: divided by, per channel.
        antialias: whether the resize filter is widened where an image is shrunk; artifacts of
            earlier versions do not say, and their classifiers were measured without.
    """

    encoder: str
    head: HeadMeta
    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    antialias: NotRequired[bool]


class ClassifierNetwork(NetworkMeta):
    """A classifier's network.

    Attributes:
        classes: their names, in the order of the outputs.
        from_layer: how many layers of the projection head it keeps.
    """

    classes: list[str]
    from_layer: int


class LabelsMeta(TypedDict):
    """The labels a classifier was made from: as the user gave them, their hash, their number.

    An imported classifier has no hash.
    """

    given: str
    hash: str | None
    number: int


class Result(TypedDict):
    """One evaluated classifier: a row of ``results.jsonl`` and of the tables.

    Accuracies are shares in [0, 1]; those and ``nll`` (nats) and ``ece`` are there where there are
    test images, ``top5`` for more than 5 classes; ``n_test`` is how many those are.
    """

    stage: str
    labels: str
    n_labels: int
    seed: int
    parameters: int
    seconds: float
    n_test: NotRequired[int]
    top1: NotRequired[float]
    top5: NotRequired[float]
    nll: NotRequired[float]
    ece: NotRequired[float]


class Meta(NetworkMeta):
    """What ``meta.json`` says of an artifact of any kind.

    Attributes:
        kind: encoder, classifier, assessment, or predictions: those of a model of scikit-learn,
            which is not saved itself; ``encoder`` then says which it was.
        weights_sha256: hash of ``model.safetensors``; of ``predictions.npz`` for predictions.
        settings: everything that the content depends on.
        parent: folder of the artifact that it was made from, relative to its own; a list of them
            for several teachers, whose hashes ``settings`` then has as a list too.
        stage: the method that made it; ``import`` of an imported one.
        seed: of the stage; None of an imported artifact.
        images: number of images of a pretraining; None of an imported one.
        seconds: wall time of the stage.
        updates: of its weights, where it is trained in steps.
        cpu_seconds: processor time of the stage, in the first process; unknown where it was
            interrupted.
        processes: number of processes that made it.
        versions: of packages.
        git: commit of this code.
        hardware: what computed it.
    """

    kind: str
    weights_sha256: str
    settings: dict[str, Any]
    parent: NotRequired[str | list[str] | None]
    stage: NotRequired[str]
    seed: NotRequired[int | None]
    images: NotRequired[int | None]
    seconds: NotRequired[float]
    updates: NotRequired[int]
    cpu_seconds: NotRequired[float]
    processes: NotRequired[int]
    versions: NotRequired[dict[str, str | None]]
    git: NotRequired[str | None]
    hardware: NotRequired[str]


class ClassifierMeta(Meta, ClassifierNetwork):
    """What ``meta.json`` says of a classifier; one that was never evaluated has no result."""

    labels: LabelsMeta
    result: NotRequired[Result]


PLACE = {"stage", "labels", "n_labels", "seed"}  # of a result among the others


@overload
def read_meta(path: Path, kind: Literal["classifier"]) -> ClassifierMeta: ...
@overload
def read_meta(path: Path, kind: Literal["encoder"] | None = None) -> Meta: ...
def read_meta(path: Path, kind: str | None = None) -> Meta | ClassifierMeta:
    """``meta.json`` of a finished artifact.

    Args:
        path: the folder.
        kind: what the caller needs, encoder or classifier; None takes either.

    Raises:
        UserError: where the folder does not exist, holds no finished artifact or one of the other
            kind, or its ``meta.json`` is damaged.
    """
    if path.is_file():
        raise UserError(
            f"{path} is a file; give the folder of a stage, such as runs/photos/distill-10pct-seed0"
        )
    if not path.is_dir():
        raise UserError(
            f"no such artifact folder: {path}; give the folder of a finished stage, such as"
            " runs/photos/distill-10pct-seed0, or run that stage first, with the same --run,"
            f" --labels and --seed{did_you_mean(path)}"
        )
    stages = [meta.parent for meta in sorted(path.glob("*/meta.json"))]
    if stages and not (path / "meta.json").exists():
        saved = [stage for stage in stages if (stage / "model.safetensors").exists()]
        names = ", ".join(stage.name for stage in saved or stages)
        raise UserError(f"{path} is the folder of a run; give one of its stages: {names}")
    if not (path / "meta.json").exists():
        raise UserError(
            f"{path} holds no finished artifact (no meta.json); run its stage to the end first"
        )
    file = path / "meta.json"
    meta = read_json(file, REDO)
    missing = {"kind", "encoder", "image_size", "weights_sha256"} - meta.keys()
    if missing:
        raise UserError(f"{file} is not a stage's: it lacks {', '.join(sorted(missing))}")
    if wrong := mismatch(meta, ClassifierMeta, partial=True) or _unsound(meta):
        raise damaged(file, ValueError(wrong), REDO)
    if kind not in (None, meta["kind"]):
        unsaved = "; models of scikit-learn are not saved" * (meta["kind"] == "predictions")
        raise UserError(
            f"{path} holds an artifact of kind {meta['kind']}, needed is {kind}{unsaved}"
        )
    needed = {"encoder": NetworkMeta, "classifier": ClassifierNetwork}.get(kind or "")
    if needed and (wrong := mismatch(meta, needed)):
        raise damaged(file, ValueError(wrong), REDO)
    return cast(ClassifierMeta, meta)


def _unsound(meta: Mapping[str, Any]) -> str:
    """What of a network's description no network can have; empty where all is well."""
    head, classes = meta.get("head", {}), meta.get("classes", [])
    bounds = [
        ("image_size", meta["image_size"], 1, SIDE),
        ("layers of the head", head.get("layers"), 0, LAYERS),
        ("width of the head", head.get("width"), 0, WIDTH),
        ("output of the head", head.get("out"), 0, WIDTH),
        ("from_layer", meta.get("from_layer"), 0, LAYERS),
        ("number of classes", len(classes) or None, 1, CLASSES),
    ]
    for name, value, low, high in bounds:
        if value is not None and not low <= value <= high:
            return f"{name} is {value}, needed is {low} to {high}"
    for key in ("mean", "std"):
        numbers = meta.get(key, [1.0] * 3)
        if len(numbers) != 3 or not all(abs(number) <= LEVEL for number in numbers):
            return f"{key} is {numbers!r:.60}, needed are three numbers"
    if min(meta.get("std", [1.0])) <= 0:
        return "std is not greater than 0"
    lacks = PLACE - meta.get("result", dict.fromkeys(PLACE)).keys()
    return f"result lacks {', '.join(sorted(lacks))}" if lacks else ""


def read_predictions(path: Path) -> dict[str, np.ndarray] | None:
    """What a classifier of an artifact folder says of the test images; None where it is not noted.

    Artifacts of earlier versions and imported ones have no such file.

    Returns:
        ``positions`` (N,) in the test images, ``predictions`` (N,) and ``targets`` (N,), int64.

    Raises:
        UserError: the file is damaged.
    """
    file = path / "predictions.npz"
    try:
        arrays = load_arrays(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); redo the stage with --force") from error
    rows = {name: arrays.get(name, np.zeros(0)) for name in ("positions", "predictions", "targets")}
    whole = all(row.ndim == 1 and row.dtype == np.int64 for row in rows.values())
    if not whole or len({row.shape for row in rows.values()}) > 1:
        raise UserError(f"{file} is damaged (not three rows of int64); redo the stage with --force")
    return rows


def is_outdated(path: Path, meta: Meta) -> bool:
    """Whether an artifact was made from one that has been made anew since, at any remove.

    An artifact whose parent is no longer there is as good as it ever was.
    """
    seen, unchecked = {path.resolve()}, [(path, meta)]
    while unchecked:
        path, meta = unchecked.pop()
        places, noted = listed(meta.get("parent")), listed(meta.get("settings", {}).get("parent"))
        for place, sha256 in zip_longest(places, noted[: len(places)]):
            parent = path / place
            if not os.path.exists(parent / "meta.json"):  # False for a name that is too long
                continue
            parent_meta = read_meta(parent)
            if parent_meta["weights_sha256"] != sha256:
                return True
            if parent.resolve() not in seen:
                seen.add(parent.resolve())
                unchecked.append((parent, parent_meta))
    return False
