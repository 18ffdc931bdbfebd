"""Stage 1: learn from all images without labels (SimCLRv2, section 2, eq. 1).

Two random views of each image go through the encoder and a deep projection head; the contrastive
loss asks each view to pick out its partner among all views of the batch. What is kept is the
encoder and the *whole* head, because fine-tuning starts from a middle layer of it.

With ``--pretrain.memory`` a moving average of the network embeds the views that the anchors are
compared with, and what it made of earlier batches is kept as further negatives.

    accelerate launch -m stages.pretrain                             # the embedded digits
    accelerate launch -m stages.pretrain --config configs/cifar10.yaml
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.batches import Batches
from shared.command import run_command
from shared.config import Config, Pretrain, content, dump
from shared.data import open_data
from shared.distributed import gather_with_grad, mean_over_processes
from shared.losses import contrastive_metrics, info_nce, nt_xent
from shared.memory import Memory
from shared.networks import build_contrastive, describe
from shared.optim import build_optimizer, set_learning_rate
from shared.randomness import seed_torch
from shared.runlog import RunLog
from shared.training import Keeper, open_stage, plan, require_finite, to_device


def run(config: Config, accelerator: Accelerator) -> Path:
    """Pretrain, unless it is done; continue, if it was interrupted.

    Returns:
        The artifact folder ``<output>/<run>/pretrain``: encoder and projection head.

    Raises:
        UserError: on bad input, a non-finite loss, or an artifact made with other settings.
        Stopped: after saving, where a signal asked for it.
    """
    cfg, data = config.pretrain, config.data
    images = open_data(data, config.labels, accelerator.is_local_main_process).train
    folder = open_stage(
        config, accelerator, "pretrain", "pretrain",
        {**content(config.model, "model"), **content(cfg, "pretrain"),
         "images": images.fingerprint},
    )  # fmt: skip
    if folder.done:
        return folder.path

    seed_torch(cfg.seed, "pretrain")
    description = describe(config.model, data)
    model = build_contrastive(description, config.model.pretrained)
    schedule = plan(cfg, len(images))
    optimizer = build_optimizer(cfg.optimizer, model, cfg.weight_decay, cfg.momentum)
    to_device(model, config, accelerator)
    memory, state = None, model
    if cfg.memory:
        memory = Memory(model, cfg.memory, config.model.head_out, cfg.memory_momentum)
        state = nn.ModuleDict({"model": model, "memory": memory})
    net, optimizer = accelerator.prepare(model, optimizer)
    folder.start(dump(config))
    start, spent = folder.load_state(state, optimizer)

    batches = Batches(
        images, np.arange(len(images)), data, config.augment, accelerator,
        seed=cfg.seed, stage="pretrain", batch_size=cfg.batch_size, views=2,
    )  # fmt: skip
    log = RunLog(folder, cfg, start, schedule.steps, accelerator)
    moco = cfg.negatives == "memory"
    negatives = cfg.memory + (0 if moco else 2 * cfg.batch_size - 2)
    keeper = Keeper(folder, cfg.checkpoint_every_steps, schedule.steps, log, accelerator, spent)
    accelerator.print(
        f"pretrain: {len(images):,} images, {schedule.steps:,} steps of {cfg.batch_size} images,"
        f" learning rate {schedule.peak:.4g}, negatives per anchor: {negatives}"
    )
    net.train()
    for step, batch in enumerate(log.waiting(batches.steps(start, schedule.steps)), start):
        learning_rate = schedule.learning_rate(step)
        set_learning_rate(optimizer, learning_rate)
        seed_torch(cfg.seed, "pretrain", step, accelerator.process_index)  # dropout, drop path
        offset = accelerator.process_index * len(batch.ids)
        if memory is None:
            z1, z2 = net(batch.images).chunk(2)  # (b, D) each
            z1_all, z2_all = gather_with_grad(z1), gather_with_grad(z2)  # (B, D) each
            loss = nt_xent(z1, z2, cfg.temperature, z1_all, z2_all, offset)
        else:
            loss, z1, z2_all = contrast_with_memory(net, memory, batch.images, cfg, accelerator)
        require_finite(loss, step, learning_rate, folder)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if memory is not None:
            memory.update(model, keys=z2_all)

        if log.due(step + 1):
            accuracy, entropy = contrastive_metrics(z1, z2_all, cfg.temperature, offset)
            log.write(
                step + 1,
                loss=mean_over_processes(loss),
                contrastive_top1=mean_over_processes(accuracy),
                contrastive_entropy=mean_over_processes(entropy),
                loss_of_chance=(1 if moco else 2) * math.log(negatives + 1),
                learning_rate=learning_rate,
                negatives_per_anchor=negatives,
            )
        keeper.after(step + 1, state, optimizer)
    log.close()
    meta = {"kind": "encoder", "stage": "pretrain", **description, "seed": cfg.seed,
            "images": len(images), "seconds": keeper.seconds}  # fmt: skip
    folder.finish(accelerator.unwrap_model(net), meta)
    accelerator.print(f"pretrain: done in {keeper.seconds:.0f} s, {folder.path}")
    return folder.path


def contrast_with_memory(
    net: nn.Module, memory: Memory, images: Tensor, cfg: Pretrain, accelerator: Accelerator
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss against keys, which the averaged network makes of this batch and of earlier ones.

    Args:
        net: the trained network.
        memory: the averaged network and its earlier keys; not changed but for batch norm's counts.
        images: (2b, 3, S, S), all first views, then all second ones.
        cfg: which negatives, and the temperature.
        accelerator: precision of the averaged network, and place of this process's rows.

    Returns:
        The loss, a scalar; embeddings of the first views (b, D) with gradient; keys of the second
        views of all processes (B, D).
    """
    if cfg.negatives == "memory":  # MoCo: each network sees one of the views
        first, second = images.chunk(2)
        z1 = net(first)  # (b, D)
        with torch.no_grad(), accelerator.autocast():
            k2 = memory.network(second)  # (b, D)
        return info_nce(z1, k2, memory.queue, cfg.temperature), z1, gather_with_grad(k2)

    z1, z2 = net(images).chunk(2)  # (b, D) each
    with torch.no_grad(), accelerator.autocast():
        k1, k2 = memory.network(images).chunk(2)  # (b, D) each
    k1_all, k2_all = gather_with_grad(k1), gather_with_grad(k2)  # (B, D) each
    offset = accelerator.process_index * len(z1)
    loss = nt_xent(z1, z2, cfg.temperature, k1_all, k2_all, offset, memory=memory.queue)
    return loss, z1, k2_all


def main(argv: Sequence[str] | None = None) -> int:
    """Run this stage alone."""
    return run_command(
        run,
        argv,
        "stages.pretrain",
        "Stage 1: learn from all images without labels; writes <output>/<run>/pretrain.",
        ("pretrain",),
    )


if __name__ == "__main__":
    sys.exit(main())
