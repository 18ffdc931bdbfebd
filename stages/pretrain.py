"""Stage 1: learn from all images without labels (SimCLRv2, section 2, eq. 1).

Two random views of each image go through the encoder and a deep projection head; the contrastive
loss asks each view to pick out its partner among all views of the batch. What is kept is the
encoder and the *whole* head, because fine-tuning starts from a middle layer of it.

With ``--pretrain.memory`` a moving average of the network embeds the views that the anchors are
compared with, and what it made of earlier batches is kept as further negatives. With
``--pretrain.micro_batch`` the batch passes in parts, with the gradient of the whole.

    accelerate launch -m stages.pretrain                             # the embedded digits
    accelerate launch -m stages.pretrain --config configs/cifar10.yaml
"""

import math
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.command import run_command
from shared.config.command_line import CommandLine, read_command_line
from shared.config.imported import pretraining_is_imported
from shared.config.methods import method_of
from shared.config.schema import Config, Pretrain, hashed_settings
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
from shared.networks.negatives_queue import Memory
from shared.runs.fit import fit, settings_as_before
from shared.runs.forecast import forecast
from shared.runtime.artifacts import read_meta
from shared.runtime.distributed import gather_with_grad, own_rows, weight_of_own_rows
from shared.runtime.errors import UserError
from shared.runtime.progress import counted
from shared.training.device import read_later, to_device
from shared.training.gradient_cache import Contrast, Embedded, backward_in_parts
from shared.training.losses import (
    Pairs,
    contrastive_metrics,
    info_nce,
    margin_triplet,
    nt_logistic,
    nt_xent,
)
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
    source = starting_folder(config)
    settings = {
        **hashed_settings(config.model, "model"),
        **weights_setting(config.model.pretrained),
        "images": images.fingerprint,
        "parent": read_meta(source, "encoder")["weights_sha256"] if source else None,
    }
    stage = Stage(config, accelerator, method, settings, cfg.seed)
    if stage.done:
        return stage.path

    stage.seed_initial_weights()
    network = network_meta(config.model, config.data)
    if source:
        require_same_input(read_meta(source, "encoder"), config.data, source)
        model = fill(build_contrastive(network), source, "--model and --data describe")
    else:
        model = build_contrastive(network, config.model.pretrained)
    to_device(model, config, accelerator)
    parts = cfg.batch_size // cfg.images_at_once
    if parts > 1:
        stretch_memory(model, parts)
    memory, state = None, None
    if cfg.memory:
        memory = Memory(model, cfg.memory, config.model.head_out, cfg.memory_momentum)
        state = nn.ModuleDict({"model": model, "memory": memory})
    net = stage.prepare(model, len(images), state=state)
    if accelerator.is_main_process:
        write_names(stage.path / "images.csv", images)
    batches = stage.batches(images, np.arange(len(images)), config.augment, views=cfg.views)
    negatives, chance = without_learning(cfg)
    stage.chance = chance
    accelerator.print(
        f"{method}: {counted(len(images), 'image')}, {counted(stage.schedule.steps, 'step')} of"
        f" {cfg.batch_size} images{f' in {parts} parts' if parts > 1 else ''},"
        f" learning rate {stage.schedule.peak:.4g}, negatives per anchor: {negatives}",
        *warnings_for(config, images),
        sep="\n",
    )
    embed_views = partial(embed, net, memory, cfg=cfg, accelerator=accelerator)
    embed_again = partial(embed_anchors, net, cfg=cfg)
    contrast_views = partial(contrast, memory=memory, cfg=cfg)
    weight = weight_of_own_rows(cfg.batch_size)

    net.train()
    steps = stage.steps(batches) if parts == 1 else stage.steps_in_parts(batches, parts)
    for step, batch in steps:
        if isinstance(batch, Parts):
            key = (cfg.seed, method, step, accelerator.process_index)
            loss, pairs, keys = backward_in_parts(
                net, batch, embed_views, embed_again, contrast_views, accelerator, key
            )
            loss_value = read_later(loss)
        else:
            loss, pairs, keys = contrast_views(*embed_views(batch.images))
            loss_value = read_later(loss)
            accelerator.backward(loss)
        stage.require_finite(loss_value)
        stage.optimizer.step()
        stage.optimizer.zero_grad()
        if memory is not None:
            memory.update(model, keys)

        if stage.log_is_due:
            accuracy, entropy = contrastive_metrics(pairs, cfg.temperature)
            stage.log(
                loss=loss,
                contrastive_top1=weight * accuracy,
                contrastive_entropy=weight * entropy,
                loss_of_chance=chance,
                negatives_per_anchor=negatives,
            )
    return stage.finish({"kind": "encoder", **network, "images": len(images)})


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


def starting_folder(config: Config) -> Path | None:
    """The artifact that ``pretrain.init`` names by its folder, or by that of its run.

    Raises:
        UserError: it is the one that this run makes.
    """
    if not config.pretrain.init:
        return None
    folder = Path(config.pretrain.init)
    folder = folder / "pretrain" if (folder / "pretrain").is_dir() else folder
    if folder.resolve() == config.folder_of("pretrain").resolve():
        raise UserError(f"pretrain.init={folder} is what this run makes; give another --run")
    return folder


def warnings_for(config: Config, images: ImageSet) -> list[str]:
    """One line for each setting of pretraining that is allowed but hardly meant."""
    cfg, size, warnings = config.pretrain, config.data.image_size, []
    if cfg.batch_size > len(images):
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


def without_learning(cfg: Pretrain) -> tuple[int, float]:
    """Negatives per anchor, and the loss of a network that cannot tell any two images apart."""
    if cfg.negatives == "memory":  # one direction; all others are the sum of two
        return cfg.memory, math.log(cfg.memory + 1)
    if cfg.loss == "nt_xent":
        negatives = cfg.memory + 2 * cfg.batch_size - 2
        return negatives, 2 * math.log(negatives + 1)
    chance = {
        "nt_logistic": 4 * math.log(2),  # where the similarities of all pairs are 0
        "margin_triplet": 2 * cfg.margin,
    }
    return (1 if cfg.semi_hard else cfg.batch_size - 1), chance[cfg.loss]


def embed_anchors(net: nn.Module, images: Tensor, cfg: Pretrain) -> Tensor:
    """What the trained network makes of both views of each image or, as MoCo, of the first."""
    return net(images.chunk(2)[0] if cfg.negatives == "memory" else images)


def embed(
    net: nn.Module,
    memory: Memory | None,
    images: Tensor,
    cfg: Pretrain,
    accelerator: Accelerator,
) -> Embedded:
    """Embeddings of the views; with a memory also their keys, by the averaged network.

    Args:
        net: the trained network.
        memory: has the averaged network; only batch norm's counts of it change.
        images: (2b, 3, S, S), all first views, then all second ones.
        cfg: with ``negatives=memory``, as MoCo, each network sees one of the views.
        accelerator: precision of the averaged network.

    Returns:
        (2b, D) embeddings with gradient, and (2b, D) keys without or None; (b, D) each, of the
        first and of the second views, as MoCo.
    """
    z = embed_anchors(net, images, cfg)
    if memory is None:
        return z, None
    with torch.no_grad(), accelerator.autocast():
        return z, memory.network(images.chunk(2)[1] if cfg.negatives == "memory" else images)


def contrast(z: Tensor, keys: Tensor | None, memory: Memory | None, cfg: Pretrain) -> Contrast:
    """The loss of the embeddings against those of all processes, or against keys.

    Args:
        z: embeddings, as `embed` returns them.
        keys: what `embed` returns with a memory. They are the candidates then, together with the
            memory's keys of earlier batches.
        memory: has the keys of earlier batches.
        cfg: which loss and its numbers.

    Returns:
        The loss with the weight of this process's rows, the pairs that it compares, and the
        candidates' second views of all processes.

    Raises:
        ValueError: the loss has no branch here.
    """
    first, weight = own_rows(cfg.batch_size).start, weight_of_own_rows(cfg.batch_size)
    queue = None if memory is None else memory.queue
    if queue is not None and keys is not None and cfg.negatives == "memory":
        keys_all = gather_with_grad(keys, cfg.batch_size)  # (B, D)
        pairs = Pairs.of_queries(z, keys_all, queue, first)
        return Contrast(weight * info_nce(pairs, cfg.temperature), pairs, keys_all)

    z1, z2 = z.chunk(2)  # (b, D) each
    c1, c2 = (z1, z2) if keys is None else keys.chunk(2)
    c1_all, c2_all = (gather_with_grad(c, cfg.batch_size) for c in (c1, c2))  # (B, D) each
    pairs = Pairs.of_views(z1, z2, c1_all, c2_all, first, memory=queue)
    if cfg.loss == "nt_logistic":
        loss = nt_logistic(pairs, cfg.temperature, cfg.semi_hard)
    elif cfg.loss == "margin_triplet":
        loss = margin_triplet(pairs, cfg.margin, cfg.semi_hard)
    elif cfg.loss == "nt_xent":
        loss = nt_xent(pairs, cfg.temperature)
    else:
        raise ValueError(f"pretrain.loss={cfg.loss} has no branch here")
    return Contrast(weight * loss, pairs, c2_all)


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
