"""Use an artifact on new images: a row for each image.

The network sees each image as in evaluation: its central part, normalised as in training. With -o
the rows are written block by block, and the same command goes on where it was stopped.
"""

import os
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from traceback import clear_frames
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from shared.config.command import keep_freed_memory
from shared.config.command_line import read_config
from shared.config.schema import Config
from shared.config.sections import Data
from shared.data.images import UNLABELED, USUAL, Decoding, ImageSet, Splits
from shared.data.labels import draw_labels
from shared.data.sources import open_data, open_images
from shared.runtime.artifacts import ClassifierMeta
from shared.runtime.errors import UserError, exit_code_2
from shared.runtime.lock import held
from shared.runtime.media import abbreviated, printable, say
from shared.runtime.progress import Progress, counted
from shared.runtime.provenance import provenance
from shared.runtime.stop import Stopped, StopRequest
from shared.training.calibration import fit_temperature
from shared.training.predictor import Outputs, Predictor
from shared.training.stage import settings_of_test_images
from stages.predict.arguments import parser
from stages.predict.rows import FORMS, Printed, RowFile

CALIBRATED = 5_000  # labeled images at most, evenly spaced, that a temperature is fitted on


def predict(
    folder: Path, files: Iterable[Path], decoding: Decoding = USUAL
) -> Iterator[tuple[Path, str, float]]:
    """Each file with its most likely class and that class's probability.

    The classifier sees each image as in evaluation: its central part at the classifier's size,
    normalised as in training (``meta.json`` has size, mean and deviation).

    Args:
        folder: artifact of a classifier.
        files: images in any format that training reads.
        decoding: what is read of unusual files.

    Raises:
        UserError: where the folder holds no classifier, or a file is no readable image.
    """
    predictor, files = Predictor(folder, decoding=decoding), list(files)
    for start in range(0, len(files), predictor.batch_size):
        chunk = files[start : start + predictor.batch_size]
        probabilities, classes = predictor(chunk)
        for file, row in zip(chunk, probabilities, strict=True):
            yield file, classes[row.argmax()], float(row.max())


class Wanted(NamedTuple):
    """What a row holds besides the file.

    Attributes:
        classes: of the classifier; none of an encoder.
        top_k: the likeliest classes, so many.
        every: the probabilities of all classes.
        width: number of features; 0 for none.
        abstain: the least probability for which a class is named.
        temperature: divides the logits.
    """

    classes: tuple[str, ...]
    top_k: int = 1
    every: bool = False
    width: int = 0
    abstain: float = 0.0
    temperature: float = 1.0

    def schema(self) -> pa.Schema:
        """The columns: file; label, probability, label_2, ...; one for each class; features."""
        fields: list[tuple[str, pa.DataType]] = [("file", pa.string())]
        if self.classes:
            for end in ("", *(f"_{k}" for k in range(2, self.top_k + 1))):
                fields += [(f"label{end}", pa.string()), (f"probability{end}", pa.float32())]
        if self.every:
            fields += [(f"probability:{name}", pa.float32()) for name in self.classes]
        if self.width:
            fields.append(("features", pa.list_(pa.float32(), self.width)))
        return pa.schema(fields)

    def rows(self, names: Sequence[str], outputs: Outputs) -> pa.RecordBatch:
        """Rows of images with these names."""
        columns: list[pa.Array] = [pa.array(names, pa.string())]
        if self.classes:
            logits = cast(Tensor, outputs.logits) / self.temperature
            probabilities = logits.softmax(1)
            best, index = probabilities.topk(self.top_k, dim=1)  # (b, K) each
            unsure = (best[:, 0] < self.abstain).numpy()
            names_of = np.array(self.classes, dtype=object)
            for k in range(self.top_k):
                labels = np.where(unsure, None, names_of[index[:, k].numpy()])  # type: ignore[call-overload]
                columns += [pa.array(labels, pa.string()), pa.array(best[:, k].numpy())]
            if self.every:
                columns += [pa.array(column) for column in probabilities.T.numpy()]
        if self.width:
            flat = pa.array(cast(Tensor, outputs.features).flatten().numpy())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, self.width))
        return pa.record_batch(columns, schema=self.schema())


def _temperature(folder: Path, predictor: Predictor) -> float:
    """Fitted on labeled images of the artifact's run that it has not learned from.

    A network is too sure of the images that it has learned, so these say nothing. Without others
    the temperature is 1.

    Raises:
        UserError: the images of the run cannot be opened, or have other classes.
    """
    recipe, why = (
        folder / "config.yaml",
        "--abstain fits a temperature on labeled images of the run",
    )
    if not recipe.exists():
        raise UserError(f"{why}, and {printable(folder)} has no config.yaml that names them")
    config = read_config(recipe)
    shape = {
        key: getattr(predictor.data, key) for key in ("image_size", "antialias", "mean", "std")
    }
    try:
        splits = open_data(replace(config.data, **shape), config.label_set)
    except UserError as error:
        raise UserError(f"{why}, which cannot be opened: {error}") from error
    if (classes := splits.train.classes) != predictor.classes:
        raise UserError(f"{why}, but their classes are others now: {abbreviated(classes)}")
    images, ids, what = _not_learned(splits, config, cast(ClassifierMeta, predictor.meta))
    ids = ids[np.linspace(0, len(ids) - 1, min(len(ids), CALIBRATED)).astype(int)]
    batches = list(predictor.over(images, ids))
    if not batches:
        say(
            "temperature 1, not fitted: the run has no labeled images that it has not learned from",
            error=True,
        )
        return 1.0
    logits = torch.cat([cast(Tensor, batch.logits) for batch in batches])
    positions = np.concatenate([batch.positions for batch in batches])
    temperature = fit_temperature(logits, torch.from_numpy(images.labels[positions]))
    say(f"temperature {temperature:.3f}, fitted on {len(positions):,} {what}", error=True)
    return temperature


def _not_learned(
    splits: Splits, config: Config, meta: ClassifierMeta
) -> tuple[ImageSet, np.ndarray, str]:
    """Labeled images that a classifier has not learned from, as far as these can be told now.

    Returns:
        An image set, positions (k,) in it, and what these images are.
    """
    train, test = splits
    now = settings_of_test_images(splits)["test_images"]
    if test is not None and meta.get("settings", {}).get("test_images", now) == now:
        return test, np.flatnonzero(test.labels != UNLABELED), "test images of the run"
    with suppress(UserError):  # the file of labels may be gone
        labels = draw_labels(splits, config.label_set, config.seed)
        if labels.hash == meta["labels"]["hash"]:
            rest = np.setdiff1d(np.flatnonzero(train.labels != UNLABELED), labels.ids)
            return train, rest, "images of the run whose labels it has not seen"
    return train, np.zeros(0, np.int64), ""


def _as_here(message: str) -> str:
    """A message of the data's rooms with the options of this command."""
    message = re.sub(r"(--)?data\.(on_error|max_pixels|image_column)", r"--\2", message)
    return re.sub(r"--data\.load_truncated true", "--load_truncated", message)


def _require_values(arguments: Namespace) -> None:
    """UserError where an option has a value that no artifact could have."""
    out, threshold = arguments.out, arguments.abstain
    if out is not None and out.suffix not in FORMS:
        raise UserError(f"-o {printable(out)} must end in {', '.join(FORMS)}")
    for name, least in (("top_k", 1), ("batch_size", 1), ("max_pixels", 1), ("workers", 0)):
        if (value := getattr(arguments, name)) < least:
            raise UserError(f"--{name} must be {least} or more, got {value}")
    if threshold is not None and not 0 < threshold <= 1:
        raise UserError(f"--abstain must be in (0, 1], got {threshold:g}")


def _wanted(arguments: Namespace, predictor: Predictor) -> Wanted:
    """What the rows hold; UserError where the artifact cannot give that."""
    classes, layer, top_k = predictor.classes, arguments.features, arguments.top_k
    if not classes:
        asked = [("--top_k", top_k > 1), ("--probabilities", arguments.probabilities)]
        asked += [("--abstain", arguments.abstain is not None)]
        options = [name for name, is_asked in asked if is_asked]
        if options or layer is None:
            needs = f"{options[0]} needs a classifier" if options else "give --features [LAYER]"
            raise UserError(
                f"{printable(arguments.artifact)} holds an encoder, which knows no classes; {needs}"
            )
    elif top_k > len(classes):
        raise UserError(f"--top_k {top_k}: there are {counted(len(classes), 'class', 'classes')}")
    width = 0 if layer is None else predictor.widths[layer]
    return Wanted(classes, top_k, arguments.probabilities, width, arguments.abstain or 0.0)


def _run(arguments: Namespace) -> None:
    decoding = Decoding(arguments.load_truncated, arguments.max_pixels)
    predictor = Predictor(
        arguments.artifact,
        arguments.features,
        decoding=decoding,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )
    if predictor.device.type == "cpu":
        keep_freed_memory()  # a tenth of the network's time
    wanted = _wanted(arguments, predictor)
    data = Data(
        on_error=arguments.on_error,
        load_truncated=arguments.load_truncated,
        max_pixels=arguments.max_pixels,
        image_column=arguments.image_column,
    )
    out: RowFile | Printed = Printed(wanted.schema(), whole=arguments.on_error == "stop")
    if arguments.out is not None:
        options = ("top_k", "probabilities", "features", "abstain", "image_column")
        made_with = {name: getattr(arguments, name) for name in options}
        made_with = {"artifact": predictor.meta["weights_sha256"], **made_with}
        out = RowFile(arguments.out, wanted.schema(), made_with)
    images = open_images(arguments.images, data, progress=True)
    names, sources = images.names.tolist(), arguments.images
    if isinstance(out, RowFile):
        out.require_same_images(names, _changed_at(sources, names), _base(sources))
    ids = out.missing(names)
    if wanted.abstain:
        if "temperature" not in out.about:
            out.about["temperature"] = _temperature(arguments.artifact, predictor)
        wanted = wanted._replace(temperature=out.about["temperature"])
    try:
        readable = _predict_into(out, predictor, images, ids, wanted)
    except UserError as error:
        if out.number and isinstance(out, RowFile):
            raise UserError(f"{error}; {out.kept()}") from error
        raise
    unreadable = _unreadable(images, np.setdiff1d(ids, readable))
    if len(unreadable) == len(images):
        first = unreadable[0]
        raise UserError(f"none of {counted(len(images), 'image')} can be read: {first}")
    out.about |= {"skipped": unreadable, **provenance()}
    out.finish()
    _report(arguments.out, out, wanted, unreadable, len(images))


def _changed_at(sources: Sequence[Path], names: Sequence[str]) -> list[int]:
    """When the file of each image was changed or put there last, nanoseconds."""
    tables = [source for source in sources if source.suffix == ".parquet" and source.is_file()]
    of_tables, times = max(map(_changed, tables), default=0), []
    for name in names:
        try:
            times.append(of_tables if [*sources] == tables else _changed(name))
        except (OSError, ValueError):  # a row of a table, or gone
            times.append(of_tables)
    return times


def _changed(file: str | Path) -> int:
    """No program can set ctime back, as copying does with mtime; on Windows it is another time."""
    status = os.stat(file)
    return status.st_ctime_ns if os.name == "posix" else status.st_mtime_ns


def _base(sources: Sequence[Path]) -> Path | None:
    """What the names of the images are relative to; None where they are absolute."""
    if len(sources) == 1 and sources[0].suffix == ".parquet" and sources[0].is_file():
        return sources[0].resolve()
    return None if all(source.is_absolute() for source in sources) else Path.cwd()


def _predict_into(
    out: RowFile | Printed, predictor: Predictor, images: ImageSet, ids: np.ndarray, wanted: Wanted
) -> np.ndarray:
    """Write the rows of the images at these positions; the positions of those that have one."""
    readable = [ids[:0]]
    earlier = len(images) - len(ids)
    with Progress("predict", len(images), "images", start=earlier) as bar:
        for outputs in predictor.over(images, ids):
            out.append(wanted.rows(images.names[outputs.positions].tolist(), outputs))
            readable.append(outputs.positions)
            bar.update(len(outputs.positions))
            if StopRequest.received:
                kept = out.kept() if isinstance(out, RowFile) else "without -o nothing is kept"
                raise Stopped(f"stopped as asked: {kept}")
    return np.concatenate(readable)


def _unreadable(images: ImageSet, ids: np.ndarray) -> list[str]:
    """Why each of these images was skipped."""
    reasons = []
    for index in ids.tolist():
        try:
            images.decode(index)
            reasons.append(f"cannot read {printable(images.names[index])} at times")
        except UserError as error:
            reasons.append(str(error).partition("; remove it")[0])
    return reasons


def _report(
    path: Path | None, out: RowFile | Printed, wanted: Wanted, unreadable: list[str], number: int
) -> None:
    """Say on standard error what is not in the rows, and where they are."""
    if unreadable:
        what = f"skipped {len(unreadable):,} of {counted(number, 'image')}"
        if isinstance(out, RowFile):
            say(f"{what}: {'; '.join(unreadable[:3])}; all are listed in {out.notes}", error=True)
        else:
            say(f"{what}:", *unreadable, error=True)
    if wanted.abstain:
        share = f"{out.unlabeled:,} of {counted(out.number, 'row')}"
        say(f"no label in {share}: the probability is below {wanted.abstain:g}", error=True)
    if path is not None:
        say(f"{counted(out.number, 'row')} in {printable(path)}", error=True)


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Write or print a row for each image."""
    arguments = parser().parse_args(argv)
    _require_values(arguments)
    StopRequest.listen()
    try:
        out, advice = arguments.out, "choose another -o"
        with held(out, advice=advice) if out else nullcontext():  # two would mix their rows
            _run(arguments)
    except UserError as error:
        raise UserError(_as_here(str(error))) from error
    except Stopped as stopped:
        say(stopped.args[0], error=True)
        clear_frames(stopped.__traceback__)  # they keep workers alive
        return 128 + (StopRequest.received or 0)
    return 0
