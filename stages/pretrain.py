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
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.command import run_command
from shared.config.schema import Config, Pretrain, dump, hashed_settings
from shared.data.batches import Batches, Parts
from shared.data.sources import open_data
from shared.networks.batchnorm import stretch_memory
from shared.networks.build import build_contrastive, network_meta
from shared.networks.negatives_queue import Memory
from shared.runtime.distributed import gather_with_grad, mean_over_processes, rank
from shared.runtime.randomness import seed_torch
from shared.training.losses import (
    contrastive_metrics,
    info_nce,
    margin_triplet,
    nt_logistic,
    nt_xent,
)
from shared.training.optim import build_optimizer, set_learning_rate
from shared.training.runlog import RunLog
from shared.training.stage import (
    Keeper,
    open_stage,
    plan,
    read_later,
    require_finite,
    to_device,
    warnings_for,
)


def run(config: Config, accelerator: Accelerator) -> Path:
    """Pretrain, unless it is done; continue, if it was interrupted.

    Returns:
        The artifact folder ``<output>/<run>/pretrain``: encoder and projection head.

    Raises:
        UserError: on bad input, a non-finite loss, or an artifact made with other settings.
        Stopped: after saving, where a signal asked for it.
    """
    cfg, data = config.pretrain, config.data
    images = open_data(data, config.label_set, accelerator.is_local_main_process).train
    folder = open_stage(
        config,
        accelerator,
        "pretrain",
        "pretrain",
        {
            **hashed_settings(config.model, "model"),
            **hashed_settings(cfg, "pretrain"),
            "images": images.fingerprint,
        },
    )
    if folder.done:
        return folder.path

    seed_torch(cfg.seed, "pretrain")
    description = network_meta(config.model, data)
    model = build_contrastive(description, config.model.pretrained)
    schedule = plan(cfg, len(images))
    optimizer = build_optimizer(cfg.optimizer, model, cfg.weight_decay, cfg.momentum)
    to_device(model, config, accelerator)
    parts = cfg.batch_size // (cfg.micro_batch or cfg.batch_size)
    if parts > 1:
        stretch_memory(model, parts)
    memory, state = None, model
    if cfg.memory:
        memory = Memory(model, cfg.memory, config.model.head_out, cfg.memory_momentum)
        state = nn.ModuleDict({"model": model, "memory": memory})
    net, optimizer = accelerator.prepare(model, optimizer)
    folder.start(dump(config))
    start, spent = folder.load_state(state, optimizer)

    batches = Batches(
        images,
        np.arange(len(images)),
        data,
        config.augment,
        accelerator,
        seed=cfg.seed,
        stage="pretrain",
        batch_size=cfg.batch_size,
        views=2,
    )
    whole = start, schedule.steps
    steps = batches.steps(*whole) if parts == 1 else batches.steps_in_parts(*whole, parts)
    log = RunLog(folder, cfg, start, schedule.steps, accelerator)
    negatives, chance = without_learning(cfg)
    keeper = Keeper(folder, cfg.checkpoint_every_steps, schedule.steps, log, accelerator, spent)
    accelerator.print(
        f"pretrain: {len(images):,} images, {schedule.steps:,} steps of {cfg.batch_size} images"
        f"{f' in {parts} parts' if parts > 1 else ''},"
        f" learning rate {schedule.peak:.4g}, negatives per anchor: {negatives}",
        *warnings_for(config, images),
        sep="\n",
    )
    net.train()
    for step, batch in enumerate(log.waiting(steps), start):
        learning_rate = schedule.learning_rate(step)
        set_learning_rate(optimizer, learning_rate)
        seed_torch(cfg.seed, "pretrain", step, accelerator.process_index)  # dropout, drop path
        if isinstance(batch, Parts):
            loss, z1, z2_all = backward_in_parts(net, memory, batch, cfg, accelerator, step)
            value = read_later(loss)
        else:
            z, keys = embed(net, memory, batch.images, cfg, accelerator)  # (2b, D)
            loss, z1, z2_all = contrast(z, keys, memory, cfg)
            value = read_later(loss)
            accelerator.backward(loss)
        require_finite(value, step, learning_rate, folder)
        optimizer.step()
        optimizer.zero_grad()
        if memory is not None:
            memory.update(model, keys=z2_all)

        if log.due(step + 1):
            offset = accelerator.process_index * len(z1)
            accuracy, entropy = contrastive_metrics(z1, z2_all, cfg.temperature, offset)
            log.write(
                step + 1,
                loss=mean_over_processes(loss),
                contrastive_top1=mean_over_processes(accuracy),
                contrastive_entropy=mean_over_processes(entropy),
                loss_of_chance=chance,
                learning_rate=learning_rate,
                negatives_per_anchor=negatives,
            )
        keeper.after(step + 1, state, optimizer)
    log.close()
    meta = {
        "kind": "encoder",
        "stage": "pretrain",
        **description,
        "seed": cfg.seed,
        "images": len(images),
        "seconds": keeper.seconds,
    }
    folder.finish(accelerator.unwrap_model(net), meta)
    keeper.say_done()
    return folder.path


def without_learning(cfg: Pretrain) -> tuple[int, float]:
    """Negatives per anchor, and the loss of a network that cannot tell any two images apart."""
    if cfg.loss == "nt_xent":
        if cfg.negatives == "memory":  # one direction; all others are the sum of two
            return cfg.memory, math.log(cfg.memory + 1)
        negatives = cfg.memory + 2 * cfg.batch_size - 2
        return negatives, 2 * math.log(negatives + 1)
    negatives = 1 if cfg.semi_hard else cfg.batch_size - 1
    # NT-Logistic's is this small only where the similarities of all pairs are 0.
    return negatives, 2 * cfg.margin if cfg.loss == "margin_triplet" else 4 * math.log(2)


def embed(
    net: nn.Module, memory: Memory | None, images: Tensor, cfg: Pretrain, accelerator: Accelerator
) -> tuple[Tensor, Tensor | None]:
    """Embeddings of the views; with a memory also their keys, by the averaged network.

    Args:
        net: the trained network.
        memory: has the averaged network; not changed but for batch norm's counts.
        images: (2b, 3, S, S), all first views, then all second ones.
        cfg: with ``negatives=memory``, as MoCo, each network sees one of the views.
        accelerator: precision of the averaged network.

    Returns:
        (2b, D) embeddings with gradient, and (2b, D) keys without or None; (b, D) each, of the
        first and of the second views, as MoCo.
    """
    anchors, others = images.chunk(2) if cfg.negatives == "memory" else (images, images)
    z = net(anchors)
    if memory is None:
        return z, None
    with torch.no_grad(), accelerator.autocast():
        return z, memory.network(others)


def contrast(
    z: Tensor, keys: Tensor | None, memory: Memory | None, cfg: Pretrain
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of the embeddings against those of all processes, or against keys.

    Args:
        z: embeddings, as `embed` returns them.
        keys: what it returns with a memory: the candidates then, with those of earlier batches.
        memory: has the keys of earlier batches.
        cfg: which loss and its numbers.

    Returns:
        The loss, a scalar; embeddings of this process's first views (b, D); of all processes'
        second views, the embeddings or, with a memory, the keys (B, D).
    """
    if memory is not None and keys is not None and cfg.negatives == "memory":
        return info_nce(z, keys, memory.queue, cfg.temperature), z, gather_with_grad(keys)

    z1, z2 = z.chunk(2)  # (b, D) each
    c1, c2 = (z1, z2) if keys is None else keys.chunk(2)
    views = z1, z2
    gathered = gather_with_grad(c1), gather_with_grad(c2), rank() * len(z1)  # (B, D) twice, offset
    if cfg.loss == "nt_logistic":
        loss = nt_logistic(*views, cfg.temperature, *gathered, semi_hard=cfg.semi_hard)
    elif cfg.loss == "margin_triplet":
        loss = margin_triplet(*views, cfg.margin, *gathered, semi_hard=cfg.semi_hard)
    else:
        queue = None if memory is None else memory.queue
        loss = nt_xent(*views, cfg.temperature, *gathered, memory=queue)
    return loss, z1, gathered[1]


def backward_in_parts(
    net: nn.Module,
    memory: Memory | None,
    batch: Parts,
    cfg: Pretrain,
    accelerator: Accelerator,
    step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the whole batch, with the activations of one part in memory at a time.

    By the chain rule the gradient is d loss / d z times d z / d weights, and the second factor
    needs no other part: so a first pass makes all embeddings without keeping activations, the loss
    of all of them gives d loss / d z, and a second pass makes the embeddings again, part by part,
    and carries that through the network (gradient caching: Gao et al. 2021, arXiv 2101.06983).

    Both passes see the same views and the same dropout, and batch norm counts each part once. Its
    statistics are those of the part (ghost batch norm): what differs from the batch in one piece.

    Args:
        net: the trained network; its gradients are added to.
        memory: as for `embed`.
        batch: this process's part of the batch, in smaller parts.
        cfg: as for `contrast`.
        accelerator: averages the gradient over processes, once.
        step: the update's number, for the randomness.

    Returns:
        As `contrast`, without gradient.
    """

    def seeded_parts() -> Iterator[Tensor]:
        for i, part in enumerate(batch):
            seed_torch(cfg.seed, "pretrain", step, accelerator.process_index, i)
            yield part.images

    before = [buffer.clone() for buffer in net.buffers()]
    with torch.no_grad():
        embedded = [embed(net, memory, images, cfg, accelerator) for images in seeded_parts()]
        for buffer, value in zip(net.buffers(), before, strict=True):
            buffer.copy_(value)  # the second pass counts the batch
    z = in_order([z for z, _ in embedded]).requires_grad_()
    keys = None if memory is None else in_order([k for _, k in embedded if k is not None])

    loss, z1, z2_all = contrast(z, keys, memory, cfg)
    (grad,) = torch.autograd.grad(loss, z)  # collective: of the losses of all processes
    grads = grad.unflatten(0, (-1, batch.number)).unbind(1)

    for i, images in enumerate(seeded_parts()):
        last = i == batch.number - 1
        with nullcontext() if last else accelerator.no_sync(net):
            part, _ = embed(net, None, images, cfg, accelerator)
            part.backward(grads[i])
    return loss.detach(), z1.detach(), z2_all.detach()


def in_order(parts: list[Tensor]) -> Tensor:
    """Rows of the whole batch from those of its parts, of which part i has rows i, i + P, ..."""
    return torch.stack(parts, 1).flatten(0, 1)


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
