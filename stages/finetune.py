"""Stage 2: fine-tune on the few labels, from a middle layer of the projection head (section 2).

The classifier is the encoder, the first layers of the projection head (which layers: the visible
line marked below), and a new linear layer. Everything is trained. The same loop makes the rows to
compare with, chosen by ``--method``:

    finetune             the pretrained network, all of it trained
    linear               the encoder frozen, a linear layer on top: linear evaluation
    supervised           the same network from scratch on the same labels
    supervised-student   the student's network from scratch on the same labels

    accelerate launch -m stages.finetune --labels 10pct
    accelerate launch -m stages.finetune --method linear --linear.init runs/digits/pretrain
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from shared.config.command import run_command
from shared.config.schema import Config, dump, hashed_settings
from shared.data.batches import Batches, plain_batches
from shared.data.images import UNLABELED, ImageSet
from shared.data.labels import Labels, draw_labels, write_labels
from shared.data.sources import open_data
from shared.networks.build import (
    build_classifier,
    keep_layers,
    load_contrastive,
    network_meta,
    require_same_input,
)
from shared.networks.heads import Classifier, freeze
from shared.runtime.artifacts import read_meta
from shared.runtime.distributed import mean_over_processes
from shared.runtime.errors import UserError
from shared.runtime.randomness import seed_torch
from shared.training.evaluate import evaluate, state_hash
from shared.training.optim import build_optimizer, set_learning_rate
from shared.training.runlog import RunLog
from shared.training.stage import (
    Keeper,
    augmentation_for,
    open_stage,
    plan,
    read_later,
    require_finite,
    settings_of_test_images,
    to_device,
)


def run(config: Config, accelerator: Accelerator, method: str = "finetune") -> Path:
    """Train one classifier on the labels, unless it is done; continue, if it was interrupted.

    Args:
        config: the run's configuration.
        accelerator: of this process.
        method: finetune, linear, supervised or supervised-student.

    Returns:
        The artifact folder ``<output>/<run>/<method>-<labels>-seed<seed>``: a classifier.

    Raises:
        UserError: on bad input, a non-finite loss, or an artifact made with other settings.
        Stopped: after saving, where a signal asked for it.
    """
    pretrained = method in ("finetune", "linear")
    cfg = {"finetune": config.finetune, "linear": config.linear}.get(method, config.supervised)
    splits = open_data(config.data, config.label_set, accelerator.is_local_main_process)
    labels = draw_labels(splits, config.label_set, config.seed)
    # from which layer of the projection head to tune (section 2); 0 is the encoder's own output
    few = len(labels.ids) <= round(0.1 * len(splits.train))
    from_layer = cfg.from_layer if cfg.from_layer is not None else int(few)
    source = Path(cfg.init) if cfg.init else config.folder / "pretrain"
    if pretrained:
        network = read_meta(source, "encoder")
        require_same_input(network, config.data, source)
        origin = {"parent": network["weights_sha256"]}
    else:
        of_student = method == "supervised-student"
        encoder = config.distill.student if of_student else config.model.encoder
        network = network_meta(replace(config.model, encoder=encoder), config.data)
        origin = hashed_settings(replace(config.model, encoder=encoder), "model")
    tag = config.label_set.tag
    folder = open_stage(
        config,
        accelerator,
        method,
        f"{method}-{tag}-seed{config.seed}",
        {
            **hashed_settings(cfg, cfg.section),
            **origin,
            "from_layer": from_layer,
            "images": splits.train.fingerprint,
            **settings_of_test_images(splits),
            "labels": labels.hash,
            "classes": splits.train.labels_fingerprint,
            "seed": config.seed,
        },
    )
    if folder.done:
        return folder.path
    seed_torch(config.seed, method)
    description = {
        **{key: network[key] for key in ("encoder", "head", "image_size", "mean", "std")},
        "classes": list(splits.train.classes),
        "from_layer": from_layer,
    }
    if pretrained:
        model = keep_layers(load_contrastive(source)[0], from_layer, len(splits.train.classes))
    else:
        model = build_classifier(description)
    if method == "linear":
        freeze(model)
    elif cfg.freeze_after_block is not None:
        try:
            freeze(model, cfg.freeze_after_block)
        except ValueError as error:
            raise UserError(f"{cfg.section}.freeze_after_block: {error}") from error
    schedule = plan(cfg, len(labels.ids))
    rates = {"encoder": cfg.encoder_rate}
    if from_layer:
        rates["layers"] = cfg.encoder_rate
    optimizer = build_optimizer(cfg.optimizer, model, cfg.weight_decay, cfg.momentum, rates)
    to_device(model, config, accelerator)
    if cfg.linear_init == "class_means":
        start_from_class_means(model, splits.train, labels, config, accelerator.device)
    before = state_hash(model.encoder) if method == "linear" else ""
    net, optimizer = accelerator.prepare(model, optimizer)
    folder.start(dump(config))
    if accelerator.is_main_process:
        write_labels(folder.path / "labels.csv", splits.train, labels)
    start, spent = folder.load_state(model, optimizer)

    batches = Batches(
        splits.train,
        labels.ids,
        config.data,
        augmentation_for(config.augment, cfg.augmentation),
        accelerator,
        seed=config.seed,
        stage=method,
        batch_size=cfg.batch_size,
    )
    log = RunLog(folder, cfg, start, schedule.steps, accelerator)
    keeper = Keeper(folder, cfg.checkpoint_every_steps, schedule.steps, log, accelerator, spent)
    targets = torch.full((len(splits.train),), UNLABELED)
    targets[labels.ids] = torch.from_numpy(labels.targets)
    accelerator.print(
        f"{method}: {len(labels.ids):,} labels of {len(description['classes'])} classes"
        f" (hash {labels.hash}), {schedule.steps:,} steps of {cfg.batch_size}, learning rate"
        f" {schedule.peak:.4g}, from layer {from_layer} of the projection head"
    )
    net.train(cfg.batch_norm == "batch")
    for step, batch in enumerate(log.waiting(batches.steps(start, schedule.steps)), start):
        learning_rate = schedule.learning_rate(step)
        set_learning_rate(optimizer, learning_rate)
        seed_torch(config.seed, method, step, accelerator.process_index)  # dropout, drop path
        logits = net(batch.images)  # (b, classes)
        target = targets[batch.ids].to(logits.device)  # (b,)
        loss = F.cross_entropy(logits, target)
        value = read_later(loss)
        accelerator.backward(loss)
        require_finite(value, step, learning_rate, folder)
        optimizer.step()
        optimizer.zero_grad()

        if log.due(step + 1):
            accuracy = (logits.argmax(1) == target).float().mean()
            log.write(
                step + 1,
                loss=mean_over_processes(loss),
                top1=mean_over_processes(accuracy),
                learning_rate=learning_rate,
            )
        keeper.after(step + 1, net, optimizer)
    log.close()
    model = accelerator.unwrap_model(net)
    if method == "linear" and state_hash(model.encoder) != before:
        raise AssertionError("linear evaluation changed the encoder")
    result = {
        "stage": method,
        "labels": tag,
        "n_labels": len(labels.ids),
        "seed": config.seed,
        **evaluate(model, splits.test, config.data, accelerator),
        "seconds": round(keeper.seconds, 1),
    }
    meta = {
        "kind": "classifier",
        "stage": method,
        **description,
        "seed": config.seed,
        "labels": {"given": config.labels, "hash": labels.hash, "number": len(labels.ids)},
        "result": result,
        "seconds": keeper.seconds,
    }
    folder.finish(model, meta, parent=source if pretrained else None)
    keeper.say_done(result)
    return folder.path


@torch.no_grad()
def start_from_class_means(
    model: Classifier, images: ImageSet, labels: Labels, config: Config, device: torch.device
) -> None:
    """Set the linear layer to the nearest-class-mean classifier of the pretrained features.

    -|x - m|^2 / 2 = m x - |m|^2 / 2 - |x|^2 / 2, whose last term all classes share: so the class
    mean m is the kernel and -|m|^2 / 2 the bias. Both are divided by the mean of |x - m|^2, which
    puts the logits on the scale of the distances (a Gaussian of that variance in each class).
    """
    model.eval()
    batches = plain_batches(images, labels.ids, config.data, 256, device)
    rows = [(model.features(batch).float(), ids) for batch, ids in batches]
    features, ids = torch.cat([f for f, _ in rows]), torch.cat([i for _, i in rows])  # (k, F)
    place = np.searchsorted(labels.ids, ids.numpy())  # without the unreadable images
    targets = torch.from_numpy(labels.targets[place]).to(device)
    classes = F.one_hot(targets, model.linear.out_features).float()  # (k, C)
    means = (classes.T @ features) / classes.sum(0)[:, None]  # (C, F)
    variance = (features - means[targets]).square().sum(1).mean()
    if not variance:  # one image per class: take the spread of the means instead
        variance = (means - means.mean(0)).square().sum(1).mean()
    model.linear.weight.copy_(means / variance)
    model.linear.bias.copy_(-means.square().sum(1) / (2 * variance))


def main(argv: Sequence[str] | None = None) -> int:
    """Run this stage alone."""
    return run_command(
        lambda config, accelerator: run(config, accelerator, config.method),
        argv,
        "stages.finetune",
        "Stage 2: fine-tune on the labels; writes <output>/<run>/<method>-<labels>-seed<seed>.",
        ("finetune",),
    )


if __name__ == "__main__":
    sys.exit(main())
