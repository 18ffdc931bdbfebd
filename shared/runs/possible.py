"""What a stage would refuse before its first step, asked before any stage trains.

Artifacts that options name, schedules, and networks: these are built without storage.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn

from shared.config.imported import imported
from shared.config.methods import METHODS
from shared.config.schema import Config
from shared.config.sections import Finetune
from shared.data.images import Splits
from shared.networks.build import (
    build_classifier,
    build_contrastive,
    freeze_beginning,
    keep_layers,
    network_meta,
    network_of,
    require_same_input,
    start_head_at_random,
)
from shared.pretext.rotation import aided_by_rotation
from shared.runtime.artifacts import read_meta
from shared.runtime.errors import UserError
from shared.training.device import make_lean
from shared.training.schedule import schedule_of
from shared.training.stage import require_an_image_each
from shared.training.teachers import read_teachers, require_same_task


def require_possible(
    config: Config,
    method: str,
    splits: Splits,
    labels: int,
    accelerator: Accelerator,
    own: Collection[Path] = (),
    pretrained_by: Config | None = None,
) -> None:
    """UserError where the stage of a method would refuse what it gets.

    Args:
        config: of the stage.
        method: of ``METHODS``.
        splits: the images.
        labels: how many there are.
        accelerator: of this process.
        own: folders of artifacts that are made before, which options may name.
        pretrained_by: the configuration of the pretraining that it starts from; None: its own.
    """
    row = METHODS[method]
    if not row.fitted:
        seen = splits.train if method == "pretrain" else splits.train.training_ids
        schedule_of(config.training_of(method), len(seen) if row.all_images else labels)
        require_an_image_each(config, method, accelerator.num_processes)
    if (config.folder_of(method) / "meta.json").exists() and not config.forces(method):
        return
    _require_given(config, method, splits, own)
    limit, classes = config.classical.pixel_images, len(splits.train.classes)
    if row.stage == "classical" and not row.saved and limit < classes:
        raise UserError(
            f"classical.pixel_images must be {classes} or more, one of each class, got {limit}"
        )
    make = {"pretrain": _pretrained, "finetune": _tuned, "distill": _student}.get(row.stage)
    if make:
        source = pretrained_by or config
        _require_built(lambda: make_lean(make(config, method, splits, labels, source), config))


def _require_given(config: Config, method: str, splits: Splits, own: Collection[Path]) -> None:
    """UserError where an artifact that an option names is not there, or is of other images."""
    row = METHODS[method]
    later = {folder.resolve() for folder in own}
    option = f"{row.section}.init" if "pretrain" in row.made_from else ""
    init = config.option(option) if option else None
    if init and Path(init).resolve() not in later:
        _with_option(option, lambda: _require_encoder(config, Path(init)))
    if row.stage == "distill" and config.given_teachers(method):
        _with_option("distill.teacher", lambda: _require_teachers(config, method, splits, later))


def _require_encoder(config: Config, folder: Path) -> None:
    require_same_input(read_meta(folder, "encoder"), config.data, folder)


def _require_teachers(config: Config, method: str, splits: Splits, later: Collection[Path]) -> None:
    for folder, meta in read_teachers(config, method, apart_from=later).items():
        require_same_task(meta, folder, splits, config.label_set)


def _with_option(option: str, check: Callable[[], object]) -> None:
    """Let the refusal of a check name the option."""
    try:
        check()
    except UserError as error:
        raise UserError(f"--{option}: {error}") from error


def _require_built(make: Callable[[], object]) -> None:
    """UserError where a network cannot be built; some encoders can be built with storage alone."""
    try:
        with torch.device("meta"):
            make()
    except UserError:
        raise
    except Exception:  # what the real one raises counts
        make()


def _pretrained(
    config: Config, method: str, splits: Splits, labels: int, source: Config
) -> nn.Module:
    return build_contrastive(network_meta(config.model, config.data, config.head_layers))


def _tuned(config: Config, method: str, splits: Splits, labels: int, source: Config) -> nn.Module:
    """The classifier of a method of ``stages/finetune.py``, as far as it depends on options."""
    row, cfg = METHODS[method], cast(Finetune, config.training_of(method))
    classes = len(splits.train.classes)
    if row.made_from:
        folder = Path(cfg.init) if cfg.init else config.folder_of("pretrain")
        stays = bool(cfg.init) or not config.forces("pretrain")
        there = stays and (folder / "meta.json").exists()
        network = (
            network_of(read_meta(folder, "encoder"), config.data)
            if there
            else network_meta(source.model, config.data, source.head_layers)
        )
        layer = cfg.kept_layers(labels, len(splits.train), network["head"]["layers"])
        if there and imported(folder):
            layer = cfg.from_layer or layer
        pretrained = build_contrastive(network)
        if cfg.fresh_head:
            start_head_at_random(pretrained, network, layer)
        model = keep_layers(pretrained, layer, classes)
    else:
        scratch = replace(config.model, encoder=config.encoder_of(method))
        network = network_meta(scratch, config.data)
        layer = cfg.kept_layers(labels, len(splits.train), network["head"]["layers"])
        model = build_classifier({**network, "classes": [""] * classes, "from_layer": layer})
    freeze_beginning(model, cfg, whole=row.frozen)
    return model if cfg.auxiliary == "none" else aided_by_rotation(model, cfg)


def _student(config: Config, method: str, splits: Splits, labels: int, source: Config) -> nn.Module:
    """The student; one of its teacher's architecture is built as that is."""
    if METHODS[method].copies_teacher:
        given = [Path(folder) for folder in config.given_teachers(method)[:1]]
        if given and (given[0] / "meta.json").exists():
            return build_classifier(read_meta(given[0], "classifier"))
        return _pretrained(config, method, splits, labels, source)
    model = replace(config.model, encoder=config.distill.student)
    classes = [""] * len(splits.train.classes)
    return build_classifier(
        {**network_meta(model, config.data), "classes": classes, "from_layer": 0}
    )
