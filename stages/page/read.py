"""What a run's folder holds: results, configuration, images, learning curves, assessments."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from shared.config.command_line import read_config
from shared.config.labelset import LabelSet, parse_folder
from shared.config.methods import METHODS
from shared.config.schema import Config
from shared.data.batches import Batches
from shared.data.images import UNLABELED, Splits
from shared.data.sources import look_at, offline, open_data
from shared.runs.assessment import (
    About,
    Baselines,
    ClassifierRow,
    Clusters,
    Corruptions,
    Hashes,
    LabelCheck,
    Linear,
    Map,
    Neighbours,
    OutOfDistribution,
    Transfer,
    read_arrays,
    read_assessment,
)
from shared.runs.results import collect
from shared.runtime.artifacts import ClassifierMeta, Meta, Result, read_meta
from shared.runtime.errors import UserError
from shared.runtime.files import did_you_mean


class Assessment:
    """``assess.json`` and ``assess.npz`` of one label set and seed."""

    def __init__(self, folder: Path, labels: LabelSet):
        self.folder = folder
        self.labels = labels
        self._numbers = read_assessment(folder)
        self._arrays = read_arrays(folder)

    @property
    def about(self) -> About:
        """What was assessed: data, classes, encoder."""
        return self._numbers["about"]

    @property
    def hashes(self) -> dict[str, Hashes]:
        """Network -> hashes ``before`` and ``after`` the assessment."""
        return self._numbers.get("hashes", {})

    @overload
    def part(self, name: Literal["linear"]) -> Linear: ...
    @overload
    def part(self, name: Literal["neighbours"]) -> Neighbours: ...
    @overload
    def part(self, name: Literal["clusters"]) -> Clusters: ...
    @overload
    def part(self, name: Literal["map"]) -> Map: ...
    @overload
    def part(self, name: Literal["classifiers"]) -> dict[str, ClassifierRow]: ...
    @overload
    def part(self, name: Literal["corruptions"]) -> Corruptions: ...
    @overload
    def part(self, name: Literal["ood"]) -> OutOfDistribution: ...
    @overload
    def part(self, name: Literal["transfer"]) -> Transfer: ...
    @overload
    def part(self, name: Literal["baselines"]) -> Baselines: ...
    @overload
    def part(self, name: Literal["labels"]) -> LabelCheck: ...
    def part(self, name: str) -> object:
        """A part of the assessment; UserError where it failed or was not asked for."""
        failed = self._numbers["failed"]
        if name in failed:
            raise UserError(f"this part failed: {failed[name]}")
        if name not in self._numbers:
            raise UserError(f"not measured; stages.assess --assess.parts {name} does it")
        return self._numbers[name]

    def array(self, name: str) -> np.ndarray:
        """An array; UserError where ``assess.npz`` lacks it."""
        if name not in self._arrays:
            raise UserError(f"assess.npz in {self.folder.name} has no {name}")
        return self._arrays[name]


@dataclass(frozen=True)
class Run:
    """What a run's folder holds.

    Attributes:
        folder: ``<output>/<run>``.
        rows: one per evaluated classifier, as ``shared.runs.results.collect`` gives them.
        metas: name of a stage's folder -> ``meta.json``.
        config: of the run, or why there is none.
        splits: the images, or why they could not be opened.
        assessments: (tag of the label set, seed) -> assessment, or why it could not be read.
    """

    folder: Path
    rows: Sequence[Result]
    metas: Mapping[str, Meta | ClassifierMeta]
    config: Config | str
    splits: Splits | str
    assessments: Mapping[tuple[str, int], Assessment | str]

    @property
    def tags(self) -> list[str]:
        """Tags of the label sets, fewest labels first."""
        return list(dict.fromkeys(row["labels"] for row in self.rows))

    def asks_for(self, method: str) -> bool:
        """Whether the run's configuration asks for the method; without it, the usual ones."""
        config = Config() if isinstance(self.config, str) else self.config
        return config.asks_for(method)

    @property
    def n_test(self) -> int | None:
        """Number of labeled test images; None where there are none, or it is unknown."""
        if isinstance(self.splits, str) or self.splits.test is None:
            return None
        return int((self.splits.test.labels != UNLABELED).sum())

    @property
    def n_labeled(self) -> int | None:
        """Number of training images with a known label; None where it is unknown."""
        if isinstance(self.splits, str):
            return None
        return int((self.splits.train.labels != UNLABELED).sum()) or None

    @property
    def unfinished(self) -> list[str]:
        """Names of the folders of stages that began and did not finish."""
        begun = (path.parent.name for path in self.folder.glob("*/settings.json"))
        return sorted(name for name in begun if name not in self.metas)

    @property
    def outdated(self) -> list[str]:
        """Names of the folders of results made from what has been redone since."""
        return [name for name, result in self._left_out.items() if result["stage"] in METHODS]

    @property
    def of_unknown_methods(self) -> list[str]:
        """Names of the folders of results whose method this version does not have."""
        return [name for name, result in self._left_out.items() if result["stage"] not in METHODS]

    @property
    def _left_out(self) -> dict[str, Result]:
        results = {name: meta["result"] for name, meta in self.metas.items() if "result" in meta}
        return {name: results[name] for name in sorted(results) if results[name] not in self.rows}


def read_run(folder: Path) -> Run:
    """Everything that the page shows of a run.

    Raises:
        UserError: where there is no such folder or no finished classifier in it.
    """
    if not folder.is_dir():
        raise UserError(f"no such run: {folder}{did_you_mean(folder)}")
    rows = collect(folder)
    if not rows:
        if (folder / "meta.json").exists():
            raise UserError(
                f"{folder} is the folder of a stage; give that of its run: {folder.parent}"
            )
        raise UserError(f"no finished classifier in {folder}; run pipeline.py first")
    metas = {path.parent.name: read_meta(path.parent) for path in folder.glob("*/meta.json")}
    config = _read_config(folder)
    splits = _read_splits(config, metas.values())
    return Run(folder, rows, metas, config, splits, _read_assessments(folder))


def _read_config(folder: Path) -> Config | str:
    path = folder / "config.yaml"
    if not path.exists():
        return f"{path} does not exist"
    try:
        return read_config(path)
    except UserError as error:
        return str(error)


def _read_splits(config: Config | str, metas: Iterable[Meta]) -> Splits | str:
    """The images that the run was made from.

    The run may be another's. So its configuration must not bring images of this machine into the
    page that the run never saw: their hash has to be one that the run notes. Nor is anything
    downloaded, or written where ``data.cache_folder`` says. Images are looked at first. They are
    decoded after their hash has matched, or where only their pixels can tell it.
    """
    if isinstance(config, str):
        return "the run's configuration could not be read"
    # photos with small copies are never held in memory whole
    loading = config.data.loading if config.data.cache is None else "workers"
    data = replace(config.data, workers=0, cache=None, cache_folder="", loading=loading)
    noted = {meta.get("settings", {}).get("images") for meta in metas}
    sources = " and ".join(filter(None, (data.train, data.unlabeled)))
    other = f"the images in {sources} are not those that the run was made from"
    try:
        with offline():
            matched = look_at(data, config.label_set).train.fingerprint in noted
            if not matched and data.loading == "workers" and data.on_error == "stop":
                return other
            splits = open_data(data, config.label_set, True)
    except UserError as error:
        return str(error)
    return splits if matched or splits.train.fingerprint in noted else other


def _read_assessments(folder: Path) -> dict[tuple[str, int], Assessment | str]:
    assessments: dict[tuple[str, int], Assessment | str] = {}
    for path in sorted(folder.glob("assess-*/assess.json")):
        key = parse_folder(path.parent.name, "assess")
        if key is None:
            continue
        try:
            assessments[key] = Assessment(path.parent, LabelSet.of_tag(key[0]))
        except UserError as error:
            assessments[key] = str(error)
    return assessments


def pretraining_views(run: Run, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images and two augmented views of each, as step 0 of pretraining draws them.

    Args:
        run: its configuration and its images.
        count: largest number of images.

    Returns:
        Images, first views, second views, (N, S, S, 3) each, float32 in [0, 1].

    Raises:
        UserError: where the configuration or the images could not be read.
    """
    if isinstance(run.config, str):
        raise UserError(run.config)
    if isinstance(run.splits, str):
        raise UserError(run.splits)
    images = run.splits.train
    data = replace(run.config.data, workers=0)
    batches = Batches(
        images,
        np.arange(len(images)),
        data,
        run.config.augment,
        Accelerator(cpu=not torch.cuda.is_available()),
        seed=run.config.pretrain.seed,
        stage="pretrain",
        batch_size=min(count, len(images)),
        views=2,
        clean=True,
    )
    batch = next(iter(batches.steps(0, 1)))
    assert batch.clean is not None
    first, second = batch.images.chunk(2)

    def pixels(batch: Tensor) -> np.ndarray:  # (N, 3, S, S), normalised -> (N, S, S, 3) in [0, 1]
        std, mean = (batch.new_tensor(value).view(3, 1, 1) for value in (data.std, data.mean))
        return (batch * std + mean).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()

    return pixels(batch.clean), pixels(first), pixels(second)
