"""The folder of one stage: whether it is done, goes on, or was made with other settings.

    config.yaml          the resolved configuration, and
    settings.json        what of it (and which parents) the content depends on: written first
    label_file.json      of a classifier: where its labels are, if they are in a file
    metrics.jsonl        one line per log interval
    state/<step>.safetensors   the latest checkpoint
    model.safetensors    the result
    predictions.npz      of a classifier: what it says of each test image
    meta.json            written last and atomically: the stage is done

Every file is written beside its name and moved into place, so a process killed at any moment leaves
the previous version.
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from shared.runtime.artifacts import Meta, read_meta
from shared.runtime.checkpoints import (
    checkpoints,
    expected_tensors,
    noted_settings,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from shared.runtime.distributed import refuse_together
from shared.runtime.errors import UserError
from shared.runtime.files import clean, delete, remove, write_atomically
from shared.runtime.lock import clear, held, release, require_held, take
from shared.runtime.provenance import provenance
from shared.runtime.records import REDO, field_of, read_json
from shared.runtime.tensors import require_size, save_arrays, save_tensors, sha256

# What it means that a setting which is a hash has changed.
_HELD_OUT = " or which of them are held out for testing"
HASHES = {
    "images": f" the training images have changed,{_HELD_OUT} (not with --data.test);",
    "test_images": f" the test images have changed,{_HELD_OUT} (not with --data.test);",
    "classes": " the names of the classes, or which image is in which, have changed;",
    "labels": " other images are labeled;",
    "student_labels": " the student sees other labels;",
    "parent": " the artifact that it starts from is another one;",
}

LARGEST = 2**34  # bytes of a checkpoint that is read for a message alone

WORDS = {"classes": "labels", "test_images": "test images", "student_labels": "labels"}


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
    states = checkpoints(path)
    if not states:
        return None
    # the checkpoint's own word; those of earlier versions do not say
    return noted_settings(states[-1]) or read_json(path / "settings.json", REDO)


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
            others = ", ".join(dict.fromkeys(WORDS.get(key, key) for key in changed))
            self.accelerator.print(f"{self.stage}: made again, with other {others}")
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

    def start(self, config: str, notes: Mapping[str, str] | None = None) -> None:
        """Take the folder's lock and write its settings; the run's folder gets ``config`` too.

        ``notes`` are further files: name -> content.

        The lock is held until `finish`, or until the command ends.

        Raises:
            UserError: another process works in the folder, or has done so since this object was
                made; or the folder cannot be written. All processes raise it.
        """
        refuse_together(partial(self._start, config, notes or {}), self.main)

    def _start(self, config: str, notes: Mapping[str, str]) -> None:
        take(self.path)
        if not self.force:
            noted = made_with(self.path)
            if (self.path / "meta.json").exists() or (noted and self._changed(noted)):
                raise UserError(
                    f"another process has worked in {self.path} since this one began; run the same"
                    " command again"
                )
        state = self.path / "state"
        if state.is_symlink() or (state.exists() and not state.is_dir()):
            raise UserError(
                f"{state} is {'a link' if state.is_symlink() else 'no folder'}; remove it"
            )
        clean(self.path.parent)
        for folder in (self.path, self.path / "state"):
            clean(folder, alone=True)
        if self.force:
            self._clear()
        write_atomically(self.path.parent / "config.yaml", config)
        for name, content in {"config.yaml": config, **notes}.items():
            write_atomically(self.path / name, content)
        write_atomically(self.path / "settings.json", json.dumps(self.settings, indent=1))

    def _clear(self) -> None:
        """Delete what is in the folder; first what says that it is done."""
        delete(self.path / "meta.json")
        for path in list(self.path.iterdir()) if self.path.exists() else ():
            delete(path)

    def _forget_state(self) -> None:
        """Delete what a process left that was killed, or met errors, when the stage was done."""
        if self.done and self.main:
            clean(self.path)
            if (self.path / "state").exists():
                with suppress(UserError, OSError), held(self.path):
                    remove(self.path / "state")
            clear(self.path)

    def save_state(
        self, step: int, seconds: float, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Checkpoint after ``step`` updates; the previous one goes once this one is there."""
        if self.main:
            require_held(self.path)
            save_checkpoint(self.path, step, seconds, self.settings, model, optimizer)

    def load_state(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, total: int | None = None
    ) -> tuple[int, float]:
        """Continue from the last checkpoint: updates done and seconds spent, or 0, 0.

        Args:
            model: gets its weights.
            optimizer: gets its state.
            total: updates of the whole stage, where they are known.

        Raises:
            UserError: the checkpoint is damaged, or belongs to other settings. Nothing is changed.
        """
        states = checkpoints(self.path)
        if not states:
            return 0, 0.0
        try:
            require_size(states[-1], expected_tensors(model, optimizer))
            checkpoint = read_checkpoint(states[-1])
            noted = self.settings if checkpoint.settings is None else checkpoint.settings
            for key, (before, now) in self._changed(noted).items():
                raise UserError(f"it was made with {key}={before}, now it is {now}")
            if total is not None and checkpoint.step > total:
                raise UserError(f"it notes step {checkpoint.step:,} of {total:,}")
            restore(checkpoint, model, optimizer)
        except UserError as error:
            raise self._useless(states, error) from error
        return checkpoint.step, checkpoint.seconds

    def _require_whole(self) -> None:
        """UserError where the last checkpoint is damaged; a very large one is not read for that."""
        states = checkpoints(self.path)
        if states and not (states[-1].is_file() and states[-1].stat().st_size > LARGEST):
            try:
                read_checkpoint(states[-1])
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

    def last_checkpoint(self) -> str:
        """The last checkpoint's path, for messages."""
        states = checkpoints(self.path)
        return str(states[-1]) if states else "none yet"

    def finish(
        self,
        model: nn.Module | None,
        meta: Mapping[str, object],
        parents: Sequence[Path] = (),
        predictions: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write the result and, last, ``meta.json``; then the checkpoint is no longer needed.

        Args:
            model: the result; None where it is the predictions alone.
            meta: what it is.
            parents: folders of the artifacts that it was made from; their places relative to this
                folder are noted, for ``is_outdated``.
            predictions: what a classifier says of the test images; see ``read_predictions``.
        """
        if self.main:
            require_held(self.path)
            weights = self.path / ("predictions.npz" if model is None else "model.safetensors")
            if predictions is not None:
                save_arrays(self.path / "predictions.npz", predictions)
            if model is not None:
                save_tensors(weights, model.state_dict(), {})
            places = [os.path.relpath(each.resolve(), self.path.resolve()) for each in parents]
            complete = {
                **meta,
                "parent": field_of(places),
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
