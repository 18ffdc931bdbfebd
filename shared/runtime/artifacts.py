"""Artifact folders: how stages hand over, resume, and know that they are done.

    config.yaml          the resolved configuration, and
    settings.json        what of it (and which parents) the content depends on: written first
    metrics.jsonl        one line per log interval
    state/<step>.safetensors   the latest checkpoint: model, optimizer, step, seconds
    model.safetensors    the result
    predictions.npz      of a classifier: what it says of each test image
    meta.json            written last and atomically: the stage is done

Every file is written beside its name and moved into place, so a process killed at any moment leaves
the previous version. Everything is read with safetensors or json: nothing loaded is ever executed.
"""

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, Literal, NotRequired, TypedDict, cast, overload
from zipfile import ZipFile

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.runtime.bounds import CLASSES, LAYERS, LEVEL, SIDE, WIDTH
from shared.runtime.distributed import refuse_together
from shared.runtime.errors import CannotWriteError, UserError
from shared.runtime.files import (
    clean,
    did_you_mean,
    into_place,
    open_regular,
    remove,
    temporary_folder,
)
from shared.runtime.lock import held, release, require_held, take
from shared.runtime.records import REDO, damaged, mismatch, parse_json, read_json


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
    test images, ``top5`` for more than 5 classes.
    """

    stage: str
    labels: str
    n_labels: int
    seed: int
    parameters: int
    seconds: float
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
        parent: folder of the artifact that it was made from, relative to its own.
        stage: the method that made it; ``import`` of an imported one.
        seed: of the stage; None of an imported artifact.
        images: number of images of a pretraining; None of an imported one.
        seconds: wall time of the stage.
        processes: number of processes that made it.
        versions: of packages.
        git: commit of this code.
        hardware: what computed it.
    """

    kind: str
    weights_sha256: str
    settings: dict[str, Any]
    parent: NotRequired[str | None]
    stage: NotRequired[str]
    seed: NotRequired[int | None]
    images: NotRequired[int | None]
    seconds: NotRequired[float]
    processes: NotRequired[int]
    versions: NotRequired[dict[str, str | None]]
    git: NotRequired[str | None]
    hardware: NotRequired[str]


class ClassifierMeta(Meta, ClassifierNetwork):
    """What ``meta.json`` says of a classifier; one that was never evaluated has no result."""

    labels: LabelsMeta
    result: NotRequired[Result]


PLACE = {"stage", "labels", "n_labels", "seed"}  # of a result among the others
# Bounds in bytes: the arrays of a file; the header of a safetensors file.
ARRAYS, HEADER = 2**32, 2**24

# What it means that a setting which is a hash has changed.
_HELD_OUT = " or which of them are held out for testing"
HASHES = {
    "images": f" the training images have changed,{_HELD_OUT} (not with --data.test);",
    "test_images": f" the test images have changed,{_HELD_OUT} (not with --data.test);",
    "classes": " the names of the classes, or which image is in which, have changed;",
    "labels": " other images are labeled;",
    "parent": " the artifact that it starts from is another one;",
}


class OtherSettingsError(UserError):
    """An artifact was made with other settings.

    Args:
        message: what is printed.
        changed: setting -> its value before, and now.
    """

    def __init__(self, message: str, changed: Mapping[str, tuple[Any, Any]]):
        super().__init__(message)
        self.changed = changed


def made_with(path: Path) -> dict[str, Any] | None:
    """The settings of a stage's folder that is done or has a checkpoint; None without either.

    Raises:
        UserError: its file is damaged.
    """
    if (path / "meta.json").exists():
        return read_meta(path).get("settings", {})
    states = sorted((path / "state").glob("*.safetensors"))
    if not states:
        return None
    # the checkpoint's own word; those of earlier versions do not say
    with suppress(ValueError):  # a damaged one is said where it is read
        if noted := _notes(states[-1]).get("settings"):
            return parse_json(noted)
    return read_json(path / "settings.json", REDO)


def _whole(state: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and notes of a checkpoint; UserError where it is damaged.

    Those of earlier versions note no hash.
    """
    tensors, notes = load_tensors(state)
    plain = {key: value for key, value in notes.items() if key != "sha256"}
    hashed = "sha256" in notes or "settings" in notes  # both came with one version
    if hashed and notes.get("sha256") != digest(tensors, plain):
        raise UserError("it is damaged: its content does not have the hash that it notes")
    return tensors, notes


def _notes(state: Path) -> dict[str, str]:
    """The text notes of a checkpoint; none where it is damaged, as reading it will say."""
    try:
        with open_regular(state), safe_open(state, framework="pt") as file:
            return file.metadata() or {}
    except Exception:  # the library raises of many kinds
        return {}


def differences(
    made_with: Mapping[str, Any],
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    renamed: Mapping[str, str],
) -> dict[str, tuple[Any, Any]]:
    """The settings that are others now: name -> before, now; JSON values.

    Args:
        made_with: those of an artifact.
        settings: those of now.
        defaults: what an option was before there was the option.
        renamed: new name of an option -> its old one.
    """
    old_names = {new: made_with[old] for new, old in renamed.items() if old in made_with}
    plain = json.loads(
        json.dumps({"before": {**defaults, **old_names, **made_with}, "now": settings})
    )
    pairs = {key: (plain["before"].get(key), now) for key, now in sorted(plain["now"].items())}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def write_atomically(path: Path, content: str) -> None:
    """Write a text file so that at any moment the old or the new one is there, whole."""
    _into_place(path, lambda file: file.write(content.encode()))


def _into_place(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """`into_place`, with its errors as a UserError."""
    try:
        into_place(path, write)
    except (OSError, SafetensorError) as error:
        raise CannotWriteError(
            f"cannot write {path}: {error}; make room or choose another --output, then run the"
            " same command again (without --force): it goes on from the last checkpoint"
        ) from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Save named tensors and text notes in one safetensors file, atomically.

    Raises:
        UserError: where the disk is full or not writable.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(file: BinaryIO) -> None:
        # safetensors writes under a name of its own first, which `clean` does not know
        with temporary_folder(path.parent) as folder:
            save_file(plain, folder / path.name, dict(notes))
            (folder / path.name).replace(file.name)

    _into_place(path, write)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Save named arrays in one compressed .npz file, atomically.

    Raises:
        UserError: where the disk is full or not writable.
    """
    _into_place(path, lambda file: np.savez_compressed(file, **cast(Any, arrays)))


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what ``save_arrays`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no regular file, or its arrays take more than ``ARRAYS`` bytes.
    """
    try:
        with open_regular(path) as file:
            with ZipFile(file) as members:
                if sum(member.file_size for member in members.infolist()) > ARRAYS:
                    raise ValueError(f"its arrays take more than {ARRAYS:,} bytes")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
    except FileNotFoundError:
        raise
    except Exception as error:  # of many kinds, by what is damaged
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what ``save_tensors`` wrote.

    Raises:
        UserError: where the file is missing, truncated or no safetensors file.
    """
    try:
        with open_regular(path), safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; run the stage that makes it again") from error
    except Exception as error:  # of many kinds, by what is damaged
        raise UserError(
            f"{path} is truncated or not a safetensors file ({error});"
            " delete its folder and run the stage again"
        ) from error


def sha256(path: Path) -> str:
    """Hash of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def provenance() -> dict[str, Any]:
    """Hardware and versions that computed a result; the git commit of this code where known.

    What cannot be told here is None: a result is never lost because of its label.
    """
    packages = ("torch", "torchvision", "timm", "accelerate", "datasets", "scikit-learn")
    return {
        "versions": {name: _version(name) for name in packages},
        "git": _git_commit(),
        "hardware": hardware(),
    }


def _version(package: str) -> str | None:
    """The version of an installed package; None where its metadata were stripped."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of this code; None without git, without a repository, or where git hangs."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    here = Path(__file__).parent
    try:
        git = subprocess.run(
            command, cwd=here, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None


def hardware() -> str:
    """The GPU's name or, without one, the processor's and its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux tells the model only here
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.partition(":")[2].strip() for x in lines if x[:10] == "model name"), name)
    return f"{name}, {os.cpu_count()} cores"


class StageFolder:
    """The folder of one stage under ``runs/<name>``; only the main process writes.

    Args:
        path: the folder.
        settings: flat mapping of everything the content depends on, JSON values.
        force: forget what is there; ``start`` deletes it.
        go_on: which command continues the stage when it is stopped, for messages.
        defaults: what an option was before there was the option: an artifact of an earlier version
            stays good as long as its new options are left alone.
        renamed: new name of an option -> the old one, which artifacts of earlier versions have.
        follows: settings whose change, other than of ``parent`` alone, makes the artifact anew as
            ``force`` does.
        accelerator: decides which process writes.

    Raises:
        UserError: where the folder was made with other settings, naming those that differ, one with
            both values.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        force: bool,
        accelerator: Accelerator,
        go_on: str = "run the same command",
        defaults: Mapping[str, Any] | None = None,
        renamed: Mapping[str, str] | None = None,
        follows: Collection[str] = (),
    ):
        self.defaults, self.renamed = defaults or {}, renamed or {}
        self.path, self.accelerator, self.go_on = path, accelerator, go_on
        self.main = accelerator.is_main_process
        self.settings = json.loads(json.dumps(settings))  # tuples become lists, as on disk
        self.meta: Meta | None = None
        self.force, self.follows = force, {*follows}
        if force:
            return
        if (path / "meta.json").exists():
            self.meta = read_meta(path)
            self._compare(self.meta.get("settings", {}))
            self._require_result()
            self._forget_state()
        elif (noted := made_with(path)) is not None:
            if self._changed(noted):  # or the checkpoint's word is damaged
                self._require_whole()
            self._compare(noted)

    def _require_result(self) -> None:
        """UserError where the network of a finished stage is gone, which others would need."""
        if self.meta is None or self.meta["kind"] not in ("encoder", "classifier"):
            return
        weights = self.path / "model.safetensors"
        if not weights.exists():
            raise UserError(
                f"{weights} is missing, although {self.stage} is done; put it back, or redo the"
                f" stage with --force {self.stage}"
            )

    def _changed(self, noted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        return differences(noted, self.settings, self.defaults, self.renamed)

    def _compare(self, noted: Mapping[str, Any]) -> None:
        changed = self._changed(noted)
        if self.done:  # what is finished may be read on other hardware
            changed.pop("precision", None)
        if changed and changed.keys() <= self.follows and changed.keys() != {"parent"}:
            self.accelerator.print(f"{self.stage}: made again, with other {', '.join(changed)}")
            self.force, self.meta = True, None
            self.accelerator.wait_for_everyone()  # all have read what `start` deletes
        elif changed:
            first = sorted(changed, key=lambda key: key not in HASHES)  # other data, above all
            key, others = first[0], first[1:]
            before, now = changed[key]
            also = f" (also changed: {', '.join(others[:5])})" if others else ""
            raise OtherSettingsError(
                f"{self.path} was made with {key}={before}, now it is {now}{also};"
                f"{HASHES.get(key, '')} redo it with --force {self.stage}"
                " or choose another --run",
                changed,
            )

    @property
    def stage(self) -> str:
        """The stage's name, as ``--force`` takes it."""
        return self.settings["stage"]

    @property
    def done(self) -> bool:
        """Whether ``meta.json`` was there when this object was made."""
        return self.meta is not None

    def start(self, config: str) -> None:
        """Take the folder's lock and write its settings; the run's folder gets ``config`` too.

        The lock is held until `finish`, or until the command ends.

        Raises:
            UserError: another process works in the folder, or has done so since this object was
                made; or the folder cannot be written. All processes raise it.
        """
        refuse_together(partial(self._start, config), self.main)

    def _start(self, config: str) -> None:
        take(self.path)
        if not self.force:
            noted = made_with(self.path)
            if (self.path / "meta.json").exists() or (noted and self._changed(noted)):
                raise UserError(
                    f"another process has worked in {self.path} since this one began; run the same"
                    " command again"
                )
        if (self.path / "state").is_symlink():
            raise UserError(f"{self.path / 'state'} is a link; remove it")
        clean(self.path.parent)
        for folder in (self.path, self.path / "state"):
            clean(folder, alone=True)
        if self.force:
            self._clear()
        write_atomically(self.path.parent / "config.yaml", config)
        write_atomically(self.path / "config.yaml", config)
        write_atomically(self.path / "settings.json", json.dumps(self.settings, indent=1))

    def _clear(self) -> None:
        """Delete what is in the folder; first what says that it is done."""
        try:
            (self.path / "meta.json").unlink(missing_ok=True)
            for path in list(self.path.iterdir()) if self.path.exists() else ():
                remove(path)
        except OSError as error:
            raise CannotWriteError(
                f"cannot delete what is in {self.path}: {error}; delete it yourself, or choose"
                " another --run"
            ) from error

    def _forget_state(self) -> None:
        """Delete the checkpoint of a stage that is done, which a process killed just then left."""
        if self.done and self.main and (self.path / "state").exists():
            with suppress(UserError, OSError), held(self.path):
                remove(self.path / "state")

    def _states(self) -> list[Path]:
        return sorted((self.path / "state").glob("*.safetensors"))

    def save_state(
        self, step: int, seconds: float, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Checkpoint after ``step`` updates; the previous one goes once this one is there."""
        if not self.main:
            return
        require_held(self.path)
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        notes = {
            "step": str(step),
            "seconds": str(seconds),
            "settings": json.dumps(self.settings),
        }
        older = self._states()
        path = self.path / "state" / f"{step:09d}.safetensors"
        save_tensors(path, tensors, {**notes, "sha256": digest(tensors, notes)})
        for old in older:
            if old != path:
                old.unlink()

    def load_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
        """Continue from the last checkpoint: updates done and seconds spent, or 0, 0.

        Raises:
            UserError: the checkpoint is damaged, or belongs to other settings. Nothing is changed.
        """
        states = self._states()
        if not states:
            return 0, 0.0
        file = states[-1]
        try:
            tensors, notes = _whole(file)
            step, seconds = self._require_own(file, notes)
            slots = _slots(tensors, model, optimizer)
            if not slots and "sha256" not in notes:
                raise UserError("the optimizer's state is missing")
        except UserError as error:
            raise self._useless(states, error) from error
        model.load_state_dict(_under(tensors, "model."))
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": slots, "param_groups": groups})
        return step, seconds

    def _require_whole(self) -> None:
        """UserError where the last checkpoint is damaged."""
        if states := self._states():
            try:
                _whole(states[-1])
            except UserError as error:
                raise self._useless(states, error) from error

    def _useless(self, states: Sequence[Path], error: UserError) -> UserError:
        """What to say where the last of the checkpoints cannot be used."""
        older = f"delete it, then the same command goes on from {states[-2:][0].name}"
        redo = f"redo the stage with --force {self.stage}"
        return UserError(
            f"cannot go on from the checkpoint {states[-1]}: {error};"
            f" {older if len(states) > 1 else redo}"
        )

    def _require_own(self, file: Path, notes: Mapping[str, str]) -> tuple[int, float]:
        """Step and seconds of a checkpoint; UserError where it is not this stage's."""
        try:
            changed = self._changed(parse_json(notes["settings"])) if "settings" in notes else {}
            step, seconds = int(notes["step"]), float(notes["seconds"])
        except (KeyError, ValueError) as error:
            raise UserError(f"it does not note its step and seconds ({error})") from error
        for key, (before, now) in changed.items():
            raise UserError(f"it was made with {key}={before}, now it is {now}")
        if step < 1 or file.stem != f"{step:09d}" or not 0 <= seconds < math.inf:
            raise UserError(f"it notes step {step} and {seconds} seconds")
        return step, seconds

    def last_checkpoint(self) -> str:
        """The last checkpoint's path, for messages."""
        states = self._states()
        return str(states[-1]) if states else "none yet"

    def finish(
        self,
        model: nn.Module | None,
        meta: Mapping[str, object],
        parent: Path | None = None,
        predictions: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write the result and, last, ``meta.json``; then the checkpoint is no longer needed.

        Args:
            model: the result; None where it is the predictions alone.
            meta: what it is.
            parent: folder of the artifact that it was made from; its place relative to this folder
                is noted, for ``is_outdated``.
            predictions: what a classifier says of the test images; see ``read_predictions``.
        """
        if self.main:
            require_held(self.path)
            weights = self.path / ("predictions.npz" if model is None else "model.safetensors")
            if predictions is not None:
                save_arrays(self.path / "predictions.npz", predictions)
            if model is not None:
                save_tensors(weights, model.state_dict(), {})
            place = os.path.relpath(parent.resolve(), self.path.resolve()) if parent else None
            complete = {
                **meta,
                "parent": place,
                "weights_sha256": sha256(weights),
                "settings": self.settings,
                "processes": self.accelerator.num_processes,
                **provenance(),
            }
            write_atomically(self.path / "meta.json", json.dumps(complete, indent=1))
            with suppress(OSError):
                remove(self.path / "state")
            release(self.path)
        self.accelerator.wait_for_everyone()


def _slots(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]]:
    """The optimizer's part of a checkpoint, by the number of the weight.

    Raises:
        UserError: this part, or the model's, does not fit.
    """
    require_fitting(_under(tensors, "model."), model.state_dict())
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(tensors, "optimizer.").items():
        index, _, slot = name.partition(".")
        weight = weights[int(index)] if index.isdecimal() and int(index) < len(weights) else None
        if weight is None or not (value.shape == weight.shape or value.numel() == 1):
            raise UserError(f"optimizer.{name!r} {tuple(value.shape)} belongs to no weight")
        slots.setdefault(int(index), {})[slot] = _with_strides_of(weight, value)
    require_finite(tensors)
    trained = {index for index, weight in enumerate(weights) if weight.requires_grad}
    partly = len({frozenset(slot) for slot in slots.values()}) > 1
    if slots and (partly or slots.keys() != trained):  # before the first update there is none
        raise UserError(
            f"it has the optimizer's state of {len(slots)} weights of {len(trained)}, or a part"
        )
    return slots


class MisfitError(UserError):
    """Tensors are not those of the network that they should be of."""


def require_size(file: Path, expected: Mapping[str, Tensor]) -> None:
    """MisfitError where a file is larger than these tensors and a header, before it is read."""
    most = sum(value.nbytes for value in expected.values()) + HEADER
    if file.is_file() and (size := file.stat().st_size) > most:
        raise MisfitError(f"it has {size:,} bytes, at most {most:,} are needed")


def require_fitting(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """MisfitError where names, shapes or dtypes are others than those of a network."""
    for name in sorted(expected.keys() - tensors.keys()):
        raise MisfitError(f"{name} is missing")
    for name in sorted(tensors.keys() - expected.keys()):
        raise MisfitError(f"{name[:100]!r} is not the network's")
    for name, value in expected.items():
        there, wanted = (f"{tuple(x.shape)} {x.dtype}" for x in (tensors[name], value))
        if there != wanted:
            raise MisfitError(f"{name} is {there}, needed is {wanted}")


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """MisfitError where a tensor of floating-point numbers has one that is not finite."""
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise MisfitError(f"{name!r} has numbers that are not finite")


def digest(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    """Hash of named tensors on CPU and text notes, 64 hexadecimal digits."""
    parts = hashlib.sha256(json.dumps(notes, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        parts.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        parts.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return parts.hexdigest()


def _with_strides_of(weight: Tensor, value: Tensor) -> Tensor:
    """The value in the memory layout of its weight, as the optimizer made it at first.

    A file holds contiguous tensors. The fused and foreach updates go through weight and moment side
    by side in memory: with different strides they refuse, or pair the wrong elements.
    """
    if value.shape != weight.shape:
        return value  # AdamW's step is one number
    return torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


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
    if not path.is_dir():
        raise UserError(
            f"no such artifact folder: {path}; run the stage that makes it first, with the same"
            f" --run, --labels and --seed{did_you_mean(path)}"
        )
    stages = sorted(meta.parent.name for meta in path.glob("*/meta.json"))
    if stages and not (path / "meta.json").exists():
        raise UserError(
            f"{path} is the folder of a run; give one of its stages: {', '.join(stages)}"
        )
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
    seen = {path.resolve()}
    while parent := meta.get("parent"):
        path = path / parent
        if path.resolve() in seen or not (path / "meta.json").exists():
            return False
        seen.add(path.resolve())
        noted, meta = meta.get("settings", {}).get("parent"), read_meta(path)
        if meta["weights_sha256"] != noted:
            return True
    return False
