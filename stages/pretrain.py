"""Stage 1: learn from all images without labels (SimCLRv2, section 2, eq. 1).

A pretext task (``shared/pretext``) makes inputs of the images, and asks the network something that
it can answer only if it has learned to see. The paper's is the contrastive one: two random views of
each image pick each other out. Whatever the task, what is kept is the encoder, with the projection
head where the task answers by it: all later stages are the same.

With ``--pretrain.micro_batch`` the batch passes in parts, with the gradient of the whole.

    accelerate launch -m stages.pretrain                             # the embedded digits
    accelerate launch -m stages.pretrain --config configs/cifar10.yaml
    accelerate launch -m stages.pretrain --pretrain.task rotation
"""

import sys

from shared.config.command_line import CommandLine, read_command_line, refuse_unknown_options

if __name__ == "__main__":  # before torch is imported, which takes seconds
    refuse_unknown_options("stages.pretrain")

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch import nn

from shared.config.command import run_command
from shared.config.imported import first_pretraining, pretraining_is_imported
from shared.config.methods import method_of
from shared.config.pretext import TASKS
from shared.config.schema import Config, hashed_settings
from shared.config.sections import Pretrain
from shared.data.batches import Parts
from shared.data.images import ImageSet
from shared.data.labels import write_names
from shared.data.sources import open_run
from shared.networks.batchnorm import stretch_memory
from shared.networks.build import (
    build_contrastive,
    fill,
    network_meta,
    require_same_input,
    require_weights,
    weights_setting,
)
from shared.networks.heads import ContrastiveModel
from shared.pretext.build import make_task
from shared.pretext.gradient_cache import backward_in_parts
from shared.pretext.network import as_tuple, freeze_unseen, kept_part
from shared.runs.fit import fit, settings_as_before
from shared.runs.forecast import forecast
from shared.runtime.artifacts import NetworkMeta, read_meta
from shared.runtime.errors import UserError, exit_code_2
from shared.runtime.progress import counted
from shared.training.device import prepare_to_train, read_later
from shared.training.neighbours import NeighbourProbe
from shared.training.stage import Stage, images_then


def run(config: Config, accelerator: Accelerator, method: str = "pretrain") -> Path:
    """Pretrain, unless it is done or imported; continue, if it was interrupted.

    Args:
        config: the run's configuration.
        accelerator: of this process.
        method: pretrain.

    Returns:
        The artifact folder ``<output>/<run>/pretrain``: encoder and projection head.

    Raises:
        ValueError: another stage makes the method.
        UserError: on bad input, a non-finite loss, or an artifact made with other settings.
        Stopped: after saving, where a signal asked for it.
    """
    method_of("pretrain", method)  # refuses those of other stages
    cfg = config.pretrain
    if pretraining_is_imported(config):
        accelerator.print(kept_import(config))
        return config.folder_of(method)
    require_weights(config, method)
    images = open_run(config, accelerator).train
    images = those_begun_with(images, config, accelerator)
    task = make_task(config, accelerator)
    source = first_pretraining(config, "pretrain.init")
    settings = {
        **hashed_settings(config.model, "model"),
        **weights_setting(config.model.pretrained),
        "images": images.fingerprint,
        "parent": read_meta(source, "encoder")["weights_sha256"] if source else None,
        **task.settings,
    }
    stage = Stage(config, accelerator, method, settings, cfg.seed)
    if stage.done:
        return stage.path
    require_pairs(images, config)
    task.require(images)
    probe = NeighbourProbe(images, config.data, accelerator) if cfg.knn_every_steps else None

    stage.seed_initial_weights()
    network = network_meta(config.model, config.data, config.head_layers)
    if source:
        kept = begun_from(source, network, config, accelerator)
    else:
        kept = build_contrastive(network, config.model.pretrained)
    model = task.network(kept)
    freeze_unseen(model, config.data.image_size)
    prepare_to_train(model, config, accelerator)
    parts = cfg.batch_size // cfg.images_at_once
    if parts > 1:
        stretch_memory(model, parts)
    task.start(model, images)
    state = nn.ModuleDict({"model": model, "memory": task.memory}) if task.memory else None
    net = stage.prepare(model, len(images), state=state)
    if stage.start == 0:
        task.begin(images)
    if accelerator.is_main_process:
        write_names(stage.path / "images.csv", images)
    everything = np.arange(len(images))
    batches = stage.batches(
        images,
        everything,
        task.augmentation,
        views=task.views,
        draw=task.draw,
        companions=task.companions,
    )
    stage.chance = task.chance
    accelerator.print(
        f"{method}: {counted(len(images), 'image')}, {counted(stage.schedule.steps, 'step')} of"
        f" {cfg.batch_size} images{f' in {parts} parts' if parts > 1 else ''},"
        f" learning rate {stage.schedule.peak:.4g}, {task.facts}",
        *warnings_for(config, images),
        sep="\n",
    )

    net.train()
    steps = stage.steps(batches) if parts == 1 else stage.steps_in_parts(batches, parts)
    for step, batch in steps:
        task.at(step)
        if isinstance(batch, Parts):
            key = (cfg.seed, method, step, accelerator.process_index)
            answer = backward_in_parts(net, batch, task, accelerator, key)
            loss_value = read_later(answer.loss)
        else:
            outputs = as_tuple(net(*task.inputs(batch)))
            answer = task.loss(outputs, task.targets(batch))
            loss_value = read_later(answer.loss)
            accelerator.backward(answer.loss)
        stage.require_finite(loss_value)
        stage.optimizer.step()
        stage.optimizer.zero_grad()
        if stage.log_is_due:  # of what the step saw: before the task learns from it
            seen = {**answer.metrics(), "loss_of_chance": task.chance}
            if probe and probe_is_due(step + 1, cfg, stage.schedule.steps):
                seen["knn_top1"] = probe.top1(model.get_submodule("encoder"))
            stage.log(loss=answer.loss, **seen)
        task.update(model, answer)
    meta = {"kind": "encoder", **network, "task": cfg.task, "images": len(images)}
    return stage.finish(meta, model=kept_part(model))


def probe_is_due(step: int, cfg: Pretrain, total: int) -> bool:
    """Whether this line of the log is the last, or the first after a look's time has come.

    Args:
        step: number of updates at a line of the log.
        cfg: says how often.
        total: number of updates in all.
    """
    return step == total or step % cfg.knn_every_steps < cfg.log_every_steps


def begun_from(
    source: Path, network: NetworkMeta, config: Config, accelerator: Accelerator
) -> ContrastiveModel:
    """The network that another pretraining has left: its projection head too, where both have one.

    Some tasks leave the encoder alone. From one of them, or for one of them, only the encoder is
    taken, and a line says so.

    Args:
        source: the other pretraining's artifact.
        network: what is trained now.
        config: the run's.
        accelerator: of this process.

    Raises:
        UserError: the artifact is of another encoder or head, or of images that are fed otherwise.
    """
    meta, described = read_meta(source, "encoder"), "--model and --data describe"
    require_same_input(meta, config.data, source)
    if meta["head"]["layers"] and network["head"]["layers"]:
        return fill(build_contrastive(network), source, described)
    theirs = fill(build_contrastive({**network, "head": meta["head"]}), source, described)
    kept = build_contrastive(network)
    kept.encoder = theirs.encoder
    if meta["head"]["layers"] or network["head"]["layers"]:
        head = "its projection head is left" if meta["head"]["layers"] else "the head starts anew"
        task = meta.get("task", "contrastive")
        accelerator.print(f"pretrain: starts from the encoder of {source}, {task}; {head}")
    return kept


def kept_import(config: Config) -> str:
    """That imported weights are there in place of this stage, and stay."""
    folder = config.folder_of("pretrain")
    kept = ", which --force leaves as they are; to pretrain, delete them or give another --run"
    return f"pretrain: done, by the imported weights in {folder}{kept * config.forces('pretrain')}"


def those_begun_with(images: ImageSet, config: Config, accelerator: Accelerator) -> ImageSet:
    """The images, without those that came after a pretraining was begun; a line counts these."""
    folder = config.folder_of("pretrain")
    then = images if config.forces("pretrain") else images_then(folder, images, config.data)
    if then is not images:
        accelerator.print(
            f"note: {len(images) - len(then):,} of {len(images):,} images are new; {folder} is kept"
            " without them; --force pretrain does it again, and another --run with"
            f" --pretrain.init {folder} goes on from it"
        )
    return then


def require_pairs(images: ImageSet, config: Config) -> None:
    """UserError where a task tells images apart, and there is one alone."""
    kinds = map(config.task_kind, config.task_weights)
    if len(images) < max(kind.batch for kind in kinds):
        raise UserError(
            f"pretrain.task={config.pretrain.task} tells images apart, and there is"
            f" {counted(len(images), 'image')}; add images to --data.train"
        )


def warnings_for(config: Config, images: ImageSet) -> list[str]:
    """One line for each setting of pretraining that is allowed but hardly meant."""
    cfg, size, warnings = config.pretrain, config.data.image_size, []
    kinds = [TASKS[task] for task in config.task_weights]
    compares = any(kind.embeds and kind.batch > 1 for kind in kinds)  # images with one another
    if cfg.batch_size > len(images) and compares:
        warnings.append(
            f"note: a batch of {cfg.batch_size} has some of the {len(images)} images more than"
            " once, as negatives of themselves; a smaller --pretrain.batch_size?"
        )
    with suppress(UserError):  # the batches report an unreadable image
        shape = images.decode(0).shape[1:]
        if size <= 96 and min(shape) >= 3 * size:
            warnings.append(
                f"note: the first image has {shape[1]} x {shape[0]} pixels, and the network sees"
                f" {size} x {size}; another recipe (--config, see configs/) or --data.image_size?"
            )
    return warnings


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Run this stage alone."""
    purpose = "Stage 1: learn from all images without labels; writes <output>/<run>/pretrain."
    began = time.time()
    line = read_command_line(argv, "stages.pretrain", purpose, ("pretrain",))
    return run_command(partial(run_fitted, line=line, began=began), line.config)


def run_fitted(config: Config, accelerator: Accelerator, line: CommandLine, began: float) -> None:
    """`run`, with settings that are fitted to own images first, where nothing else says them.

    Raises:
        UserError: also where there is a budget, and a recipe or imported weights leave no choice.
    """
    imported = pretraining_is_imported(config)
    if line.origin in ("begun", "kept"):
        accelerator.print(settings_as_before(config))
    elif line.origin == "open" and not imported:
        config, _ = fit(line, accelerator, {"pretrain": run}, began)
    elif config.budget:
        raise UserError(
            "--budget chooses the length of a pretraining on own images, without --config, in a new"
            " --run"
        )
    if config.plan and not imported:
        return forecast(config, accelerator, {"pretrain": run})
    run(config, accelerator)


if __name__ == "__main__":
    sys.exit(main())
