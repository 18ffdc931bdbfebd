"""Stage 2: fine-tune on the few labels, from a middle layer of the projection head (section 2).

The classifier is the encoder, the first layers of the projection head (which layers: the visible
line marked below), and a new linear layer. Everything is trained. The same loop makes the rows to
compare with, chosen by ``--method``:

    finetune             the pretrained network, all of it trained
    linear               the encoder frozen, a linear layer on top: linear evaluation
    supervised           the same network from scratch on the same labels
    supervised-student   the student's network from scratch on the same labels

With ``--finetune.auxiliary rotation`` (or ``--supervised.``) the images pass in all four
orientations, and a second linear layer, thrown away at the end, tells these apart.

    accelerate launch -m stages.finetune --labels 10pct
    accelerate launch -m stages.finetune --method linear --linear.init runs/digits/pretrain
"""

import sys

from shared.config.command_line import load_config, refuse_unknown_options

if __name__ == "__main__":  # before torch is imported, which takes seconds
    refuse_unknown_options("stages.finetune")

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from shared.config.command import run_command
from shared.config.imported import imported
from shared.config.methods import method_of
from shared.config.schema import Config, hashed_settings
from shared.config.sections import Finetune
from shared.data.augment import augmentation_for
from shared.data.batches import plain_batches
from shared.data.image_ops import upload
from shared.data.images import UNLABELED, ImageSet
from shared.data.labels import Labels, draw_labels, write_labels
from shared.data.sources import open_run
from shared.networks.build import (
    build_classifier,
    freeze_beginning,
    keep_layers,
    load_contrastive,
    network_meta,
    network_of,
    require_same_input,
    start_head_at_random,
)
from shared.networks.heads import Classifier
from shared.pretext.network import as_tuple
from shared.pretext.rotation import aided_by_rotation, told_turns
from shared.runtime.artifacts import ClassifierNetwork, NetworkMeta, read_meta
from shared.runtime.distributed import weight_of_own_rows
from shared.runtime.errors import UserError, exit_code_2
from shared.runtime.progress import counted
from shared.training.device import prepare_to_train, read_later
from shared.training.evaluate import state_hash
from shared.training.stage import Stage, follows, labels_meta, settings_of_test_images

LEAST_SPREAD = 1e-3  # a smaller share of the features' square is a rounding error, not a variance


def run(config: Config, accelerator: Accelerator, method: str = "finetune") -> Path:
    """Train one classifier on the labels, unless it is done; continue, if it was interrupted.

    Args:
        config: the run's configuration.
        accelerator: of this process.
        method: finetune, linear, supervised or supervised-student.

    Returns:
        The artifact folder ``<output>/<run>/<method>-<labels>-seed<seed>``: a classifier.

    Raises:
        ValueError: the method is none of these.
        UserError: on bad input, a non-finite loss, or an artifact made with other settings.
        Stopped: after saving, where a signal asked for it.
    """
    row = method_of("finetune", method)
    cfg = cast(Finetune, config.training_of(method))
    splits = open_run(config, accelerator)
    images, classes = splits.train, splits.train.classes
    labels = draw_labels(splits, config.label_set, config.seed)
    source, network, origin = starting_point(config, method)
    # from which layer of the projection head to tune (section 2); 0 is the encoder's own output
    from_layer = cfg.kept_layers(len(labels.ids), len(images), network["head"]["layers"])
    if source and imported(source):  # it has set the option, so another value is a flag's
        from_layer = cfg.from_layer or from_layer
    settings = {
        **origin,
        "from_layer": from_layer,
        "images": images.fingerprint,
        **settings_of_test_images(splits),
        "labels": labels.hash,
        "classes": images.labels_fingerprint,
        "seed": config.seed,
    }
    changes = follows(config, images)
    stage = Stage(config, accelerator, method, settings, config.seed, follows=changes)
    if stage.done:
        return stage.path

    stage.seed_initial_weights()
    classifier: ClassifierNetwork = {
        **network,
        "classes": list(classes),
        "from_layer": from_layer,
    }
    if source:
        pretrained = load_contrastive(source)[0]
        if cfg.fresh_head:
            start_head_at_random(pretrained, network, from_layer)
        model = keep_layers(pretrained, from_layer, len(classes))
    else:
        model = build_classifier(classifier)
    freeze_beginning(model, cfg, whole=row.frozen)
    trained = model if cfg.auxiliary == "none" else aided_by_rotation(model, cfg)
    prepare_to_train(trained, config, accelerator)
    if cfg.linear_init == "class_means":
        start_from_class_means(model, images, labels, config, accelerator.device)
    encoder_before = state_hash(model.encoder) if row.frozen else ""
    slower = ["encoder", "layers"] if from_layer and not cfg.fresh_head else ["encoder"]
    rates = dict.fromkeys(slower, cfg.encoder_rate)
    net = stage.prepare(trained, len(labels.ids), learning_rates=rates)
    stage.chance = math.log(len(classes))
    if accelerator.is_main_process:
        write_labels(stage.path / "labels.csv", images, labels)
    views = augmentation_for(cfg.views_of(config.augment), cfg.augmentation)
    batches = stage.batches(images, labels.ids, views)
    targets = torch.full((len(images),), UNLABELED)
    targets[labels.ids] = torch.from_numpy(labels.targets)
    taught = len(np.unique(labels.targets))
    all_of = "" if taught == len(classes) else f"{taught} of "  # the pipeline names the others
    accelerator.print(
        f"{method}: {counted(len(labels.ids), 'label')} of {all_of}{len(classes)} classes"
        f" (hash {labels.hash}), {counted(stage.schedule.steps, 'step')} of {cfg.batch_size},"
        f" learning rate {stage.schedule.peak:.4g}, from layer {from_layer} of the projection head"
    )

    weight = weight_of_own_rows(cfg.batch_size)
    net.train(cfg.batch_statistics(len(labels.ids)))
    if cfg.fresh_head:  # it has no statistics that could be frozen
        model.layers.train()
    for _, batch in stage.steps(batches):
        target = upload(targets[batch.ids], batch.images.device)  # (b,)
        logits, *turns = as_tuple(net(batch.images))  # (b, classes); with rotation also (4b, 4)
        loss = total = weight * F.cross_entropy(logits, target)
        rotation = told_turns(turns[0], weight) if turns else None
        if rotation:
            total = loss + cfg.auxiliary_weight * rotation.loss
        loss_value = read_later(total)
        accelerator.backward(total)
        stage.require_finite(loss_value)
        stage.optimizer.step()
        stage.optimizer.zero_grad()

        if stage.log_is_due:
            top1 = weight * (logits.argmax(1) == target).float().mean()
            stage.log(loss=loss, top1=top1, **(rotation.metrics() if rotation else {}))
    if row.frozen and state_hash(model.encoder) != encoder_before:
        raise AssertionError(f"{method} changed the frozen encoder")
    known = labels_meta(config, labels)
    parents = [source] if source else []
    return stage.finish_classifier(classifier, known, splits.test, parents, model)


def starting_point(config: Config, method: str) -> tuple[Path | None, NetworkMeta, dict[str, Any]]:
    """What a method starts from: the pretrained network, or one from scratch.

    Returns:
        The folder of the pretrained network, or None; the network's description; what the settings
        say of it.
    """
    if method_of("finetune", method).made_from:
        init = cast(Finetune, config.training_of(method)).init
        source = Path(init) if init else config.folder_of("pretrain")
        meta = read_meta(source, "encoder")
        require_same_input(meta, config.data, source)
        return source, network_of(meta, config.data), {"parent": meta["weights_sha256"]}
    scratch = replace(config.model, encoder=config.encoder_of(method))
    return None, network_meta(scratch, config.data), hashed_settings(scratch, "model")


@torch.no_grad()
def start_from_class_means(
    model: Classifier, images: ImageSet, labels: Labels, config: Config, device: torch.device
) -> None:
    """Set the linear layer to the nearest-class-mean classifier of the pretrained features.

    -|x - m|^2 / 2 = m x - |m|^2 / 2 - |x|^2 / 2, whose last term all classes share: so the class
    mean m is the kernel and -|m|^2 / 2 the bias. Both are divided by the mean of |x - m|^2, which
    puts the logits on the scale of the distances (a Gaussian of that variance in each class).

    Where the images of a class are copies of one another, the spread of the means is taken, and
    where all features are nearly the same, ``LEAST_SPREAD`` of their square. A class without a
    readable label gets the lowest logit that any of these images has in any class.

    Raises:
        UserError: none of the labeled images can be read.
    """
    model.eval()
    batches = plain_batches(images, labels.ids, config.data, 256, device)
    rows = [(model.features(batch).float().cpu(), ids) for batch, ids in batches]
    features, ids = torch.cat([f for f, _ in rows]), torch.cat([i for _, i in rows])  # (k, F)
    if not len(ids):
        raise UserError(f"none of the {len(labels.ids)} labeled images can be read")
    place = np.searchsorted(labels.ids, ids.numpy())  # without the unreadable images
    targets = torch.from_numpy(labels.targets[place])
    classes = F.one_hot(targets, model.linear.out_features).float()  # (k, C)
    numbers = classes.sum(0)  # (C,)
    means = (classes.T @ features) / numbers.clamp(min=1)[:, None]  # (C, F)
    variance = (features - means[targets]).square().sum(1).mean()
    known = means[numbers > 0]
    spread = (known - known.mean(0)).square().sum(1).mean()
    if variance <= LEAST_SPREAD * spread:  # one image per class, or copies
        variance = spread
    square = features.square().sum(1).mean().clamp(min=LEAST_SPREAD)  # 0 where all features are
    variance = variance.maximum(LEAST_SPREAD * square)
    weight, bias = means / variance, -means.square().sum(1) / (2 * variance)
    lowest = (features @ weight.T + bias).masked_fill(numbers == 0, torch.inf).min()
    bias = bias.where(numbers > 0, lowest)
    model.linear.weight.copy_(weight)
    model.linear.bias.copy_(bias)


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Run this stage alone."""
    purpose = (
        "Stage 2: fine-tune on the labels; writes <output>/<run>/<method>-<labels>-seed<seed>."
    )
    config, _ = load_config(argv, "stages.finetune", purpose, ("finetune",))
    return run_command(partial(run, method=config.method), config)


if __name__ == "__main__":
    sys.exit(main())
