"""Stage 3: distill the teacher into a student on all images (SimCLRv2, section 2, eq. 2 and 3).

The teacher's predictions on the unlabeled images are the student's labels. The teacher is the
fine-tuned network, or with ``--distill.taught_by features-logistic`` the regression on the frozen
features. Of several teachers the labels are the mean of their probabilities. The student may have
the teacher's architecture (self-distillation) or be any smaller network.

    accelerate launch -m stages.distill
    accelerate launch -m stages.distill --distill.teacher runs/digits/finetune-1pct-seed0
    accelerate launch -m stages.distill --distill.taught_by '[finetune, features-logistic]'
"""

import sys

from shared.config.command_line import load_config, refuse_unknown_options

if __name__ == "__main__":  # before torch is imported, which takes seconds
    refuse_unknown_options("stages.distill")

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from shared.config.command import run_command
from shared.config.methods import made_by, method_of
from shared.config.schema import Config
from shared.data.augment import augmentation_for
from shared.data.image_ops import upload
from shared.data.images import UNLABELED
from shared.data.labels import draw_labels
from shared.data.sources import open_run
from shared.networks.build import (
    build_classifier,
    load_classifier,
    network_of,
    require_weights,
    weights_setting,
)
from shared.networks.heads import Classifier
from shared.networks.moving_average import averaged, move_average
from shared.runtime.artifacts import ClassifierNetwork
from shared.runtime.distributed import weight_of_own_rows
from shared.runtime.errors import exit_code_2
from shared.runtime.progress import counted
from shared.runtime.records import field_of
from shared.training.device import prepare_to_train, read_later, to_inference
from shared.training.losses import distillation_loss, pseudo_label_loss, soft_targets
from shared.training.stage import Stage, follows, labels_meta, settings_of_test_images
from shared.training.teachers import read_teachers, require_same_task


def run(config: Config, accelerator: Accelerator, method: str = "distill") -> Path:
    """Train the student, unless it is done; continue, if it was interrupted.

    Args:
        config: the run's configuration.
        accelerator: of this process.
        method: distill, or self-distill for a student of the teacher's own architecture.

    Returns:
        The artifact folder ``<output>/<run>/<method>-<labels>-seed<seed>``: a classifier.

    Raises:
        ValueError: the method is neither.
        UserError: on bad input, a non-finite loss, or an artifact made with other settings.
        Stopped: after saving, where a signal asked for it.
    """
    cfg, row = config.distill, method_of("distill", method)
    require_weights(config, method)
    teachers = read_teachers(config, method)
    sources, metas = list(teachers), list(teachers.values())
    splits = open_run(config, accelerator)
    for source, meta in teachers.items():
        require_same_task(meta, source, splits, config.label_set)
    images, shown = splits.train, " and ".join(map(str, sources))
    first, known = metas[0], (meta["labels"] for meta in metas if meta["labels"]["hash"])
    taught_with = next(known, first["labels"])  # all have the same; imported ones do not say which
    pretrained = False if row.copies_teacher else cfg.student_pretrained
    labels, noted, own = None, taught_with, {}
    if cfg.labeled_weight or cfg.images == "labeled":
        labels = draw_labels(splits, config.label_set, config.seed)  # the teacher's may be others
        noted, own = labels_meta(config, labels), {"student_labels": labels.hash}
    settings = {
        "parent": field_of([meta["weights_sha256"] for meta in metas]),
        "images": images.fingerprint,
        **settings_of_test_images(splits),
        "labels": taught_with["hash"],
        **own,
        **weights_setting(pretrained),
        "seed": config.seed,
    }
    changes = follows(config, images)
    stage = Stage(config, accelerator, method, settings, config.seed, changes, unnoted=own)
    if stage.done:
        return stage.path

    decay = cfg.self_ema if row.copies_teacher else 0.0
    networks = [] if decay else [as_teacher(each, config, accelerator) for each in sources]
    stage.seed_initial_weights()
    classifier: ClassifierNetwork = {
        **network_of(first, config.data),
        "encoder": first["encoder"] if row.copies_teacher else cfg.student,
        "classes": first["classes"],
        "from_layer": first["from_layer"] if row.copies_teacher else 0,
    }
    student = load_classifier(sources[0])[0] if decay else build_classifier(classifier, pretrained)
    prepare_to_train(student, config, accelerator)
    average = averaged(student).eval() if decay else None
    if average:
        networks.append(average)
    ids = images.training_ids
    state = nn.ModuleDict({"model": student, "average": average}) if average else None
    net = stage.prepare(student, len(ids), state=state)
    stage.chance = math.log(len(first["classes"]))
    temperature = cfg.self_temperature if row.copies_teacher else cfg.temperature
    temperature = 1.0 if average else temperature
    augmentation = augmentation_for(cfg.views_of(config.augment), cfg.augmentation)
    labeled, targets = iter(()), torch.full((len(images),), UNLABELED)
    if labels:
        targets[labels.ids] = torch.from_numpy(labels.targets)
        ids = labels.ids if cfg.images == "labeled" else ids
        if cfg.labeled_weight:
            labeled = stage.batches(
                images,
                labels.ids,
                augmentation,
                purpose="labeled",
                batch_size=cfg.labeled_batch_size,
            ).steps(stage.start, stage.schedule.steps)
    batches = stage.batches(images, ids, augmentation, clean=cfg.teacher_view == "clean")
    accelerator.print(
        f"{method}: {shown} into {classifier['encoder']}, {counted(len(ids), 'image')},"
        f" {counted(stage.schedule.steps, 'step')} of {cfg.batch_size}, learning rate"
        f" {stage.schedule.peak:.4g},"
        f" {f'taught by its average, decay {decay}' if average else f'temperature {temperature}'}"
    )

    weight = weight_of_own_rows(cfg.batch_size)
    weight_of_labeled = weight_of_own_rows(cfg.labeled_batch_size)
    net.train()
    for _, batch in stage.steps(batches):
        with torch.inference_mode(), accelerator.autocast():
            plain = batch.images if batch.clean is None else batch.clean
            teacher_logits = [teacher(plain) for teacher in networks]  # (b, classes) each
        soft = soft_targets(teacher_logits, temperature)
        inputs, extra, target = batch.images, next(labeled, None), None
        if extra is not None:
            target = upload(targets[extra.ids], inputs.device)  # (labeled,)
            inputs = torch.cat([inputs, extra.images])
        logits = net(inputs)  # (b or b + labeled, classes)
        student_logits, labeled_logits = logits.tensor_split([len(batch.images)])
        if average:
            loss = weight * pseudo_label_loss(student_logits, soft, cfg.self_confidence)
        else:
            loss = weight * distillation_loss(student_logits, soft, temperature, cfg.bootstrap)
        if target is not None:
            hard = weight_of_labeled * F.cross_entropy(labeled_logits, target)
            loss = (1 - cfg.labeled_weight) * loss + cfg.labeled_weight * hard
        loss_value = read_later(loss)
        accelerator.backward(loss)
        stage.require_finite(loss_value)
        stage.optimizer.step()
        stage.optimizer.zero_grad()

        if stage.log_is_due:
            sure, labels_of_teacher = soft.max(1)
            shares = {"agreement": student_logits.argmax(1) == labels_of_teacher}
            shares |= {"confident": sure >= cfg.self_confidence} if average else {}
            means = {name: weight * share.float().mean() for name, share in shares.items()}
            stage.log(loss=loss, **means)
        if average:
            move_average(average, student, decay)
    return stage.finish_classifier(classifier, noted, splits.test, sources, average)


def as_teacher(folder: Path, config: Config, accelerator: Accelerator) -> Classifier:
    """The classifier of an artifact folder, to predict with."""
    return to_inference(load_classifier(folder)[0], config, accelerator)


def run_all(config: Config, accelerator: Accelerator) -> None:
    """Distill into the student; where ``self_first`` asks, into the teacher's own kind first."""
    methods = [name for name in made_by("distill") if config.asks_for(name)]
    for name in methods:
        require_weights(config, name)
    for name in methods:
        run(config, accelerator, name)


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Run this stage alone."""
    purpose = (
        "Stage 3: distill a classifier into a student on all images; writes"
        " <output>/<run>/distill-<labels>-seed<seed>."
    )
    config, _ = load_config(argv, "stages.distill", purpose, ("distill",))
    return run_command(run_all, config)


if __name__ == "__main__":
    sys.exit(main())
