"""Stage 3: distill the teacher into a student on all images (SimCLRv2, section 2, eq. 2 and 3).

The teacher's predictions on the unlabeled images are the student's labels. The student may have the
teacher's architecture (self-distillation) or be any smaller network.

    accelerate launch -m stages.distill
    accelerate launch -m stages.distill --distill.teacher runs/digits/finetune-1pct-seed0
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from shared.config.command import run_command
from shared.config.labelset import LabelSet
from shared.config.schema import Config, dump, hashed_settings
from shared.data.batches import Batches
from shared.data.images import UNLABELED
from shared.data.labels import draw_labels
from shared.data.sources import open_data
from shared.networks.build import build_classifier, load_classifier, require_same_input
from shared.runtime.artifacts import read_meta
from shared.runtime.distributed import mean_over_processes
from shared.runtime.errors import UserError
from shared.runtime.randomness import seed_torch
from shared.training.evaluate import evaluate
from shared.training.losses import distillation_loss
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
    to_inference,
)


def run(config: Config, accelerator: Accelerator, stage: str = "distill") -> Path:
    """Train the student, unless it is done; continue, if it was interrupted.

    Args:
        config: the run's configuration.
        accelerator: of this process.
        stage: distill, or self-distill for a student of the teacher's own architecture.

    Returns:
        The artifact folder ``<output>/<run>/<stage>-<labels>-seed<seed>``: a classifier.

    Raises:
        UserError: on bad input, a non-finite loss, or an artifact made with other settings.
        Stopped: after saving, where a signal asked for it.
    """
    cfg, data = config.distill, config.data
    itself = stage == "self-distill"
    tag = config.label_set.tag
    before = "self-distill" if cfg.self_first and not itself else "finetune"
    source = config.folder / f"{before}-{tag}-seed{config.seed}"
    if cfg.teacher and before == "finetune":
        source = Path(cfg.teacher)
    teacher_meta = read_meta(source, "classifier")
    require_same_input(teacher_meta, data, source)
    temperature = cfg.self_temperature if itself else cfg.temperature
    splits = open_data(data, config.label_set, accelerator.is_local_main_process)
    images = splits.train
    classes = images.classes or (splits.test.classes if splits.test else ())
    if classes and list(classes) != teacher_meta["classes"]:
        raise UserError(
            f"the teacher {source} knows {len(teacher_meta['classes'])} classes"
            f" ({', '.join(teacher_meta['classes'][:3])}, ...), the images have"
            f" {len(classes)} ({', '.join(classes[:3])}, ...); they must be the same"
        )
    taught_with = teacher_meta["labels"]
    if taught_with["number"] and LabelSet.of_tag(taught_with["given"]).tag != tag:
        raise UserError(
            f"the teacher {source} was trained with --labels {taught_with['given']}, now it is"
            f" {config.labels}; give the same"
        )
    folder = open_stage(
        config,
        accelerator,
        stage,
        f"{stage}-{tag}-seed{config.seed}",
        {
            **hashed_settings(cfg, "distill"),
            "parent": teacher_meta["weights_sha256"],
            "images": images.fingerprint,
            **settings_of_test_images(splits),
            "labels": taught_with["hash"],
            "seed": config.seed,
        },
    )
    if folder.done:
        return folder.path

    teacher, _ = load_classifier(source)
    teacher = to_inference(teacher, config, accelerator)
    seed_torch(config.seed, stage)
    description = {
        **{key: teacher_meta[key] for key in ("head", "image_size", "mean", "std", "classes")},
        "encoder": teacher_meta["encoder"] if itself else cfg.student,
        "from_layer": teacher_meta["from_layer"] if itself else 0,
    }
    student = build_classifier(description)
    schedule = plan(cfg, len(images))
    optimizer = build_optimizer(cfg.optimizer, student, cfg.weight_decay, cfg.momentum)
    to_device(student, config, accelerator)
    net, optimizer = accelerator.prepare(student, optimizer)
    folder.start(dump(config))
    start, spent = folder.load_state(student, optimizer)

    views = augmentation_for(config.augment, cfg.augmentation)
    labels = None
    if cfg.labeled_weight or cfg.images == "labeled":
        labels = draw_labels(splits, config.label_set, config.seed)
    shown = labels.ids if labels and cfg.images == "labeled" else np.arange(len(images))
    batches = Batches(
        images,
        shown,
        data,
        views,
        accelerator,
        seed=config.seed,
        stage=stage,
        batch_size=cfg.batch_size,
        clean=cfg.teacher_view == "clean",
    )
    labeled, targets = iter(()), torch.full((len(images),), UNLABELED)
    if labels and cfg.labeled_weight:
        targets[labels.ids] = torch.from_numpy(labels.targets)
        labeled = Batches(
            images,
            labels.ids,
            data,
            views,
            accelerator,
            seed=config.seed,
            stage=f"{stage}-labeled",
            batch_size=cfg.labeled_batch_size,
        ).steps(start, schedule.steps)
    log = RunLog(folder, cfg, start, schedule.steps, accelerator)
    keeper = Keeper(folder, cfg.checkpoint_every_steps, schedule.steps, log, accelerator, spent)
    accelerator.print(
        f"{stage}: {source} into {description['encoder']}, {len(shown):,} images,"
        f" {schedule.steps:,} steps of {cfg.batch_size}, learning rate {schedule.peak:.4g},"
        f" temperature {temperature}"
    )
    net.train()
    for step, batch in enumerate(log.waiting(batches.steps(start, schedule.steps)), start):
        learning_rate = schedule.learning_rate(step)
        set_learning_rate(optimizer, learning_rate)
        seed_torch(config.seed, stage, step, accelerator.process_index)  # dropout, drop path
        with torch.inference_mode(), accelerator.autocast():
            plain = batch.images if batch.clean is None else batch.clean
            teacher_logits = teacher(plain)  # (b, classes)
        extra = next(labeled, None)
        inputs = batch.images if extra is None else torch.cat([batch.images, extra.images])
        logits = net(inputs)  # (b or b + labeled, classes)
        student_logits, labeled_logits = logits.tensor_split([len(batch.images)])
        loss = distillation_loss(student_logits, teacher_logits, temperature)
        if extra is not None:
            target = targets[extra.ids].to(loss.device)
            hard = F.cross_entropy(labeled_logits, target)
            loss = (1 - cfg.labeled_weight) * loss + cfg.labeled_weight * hard
        value = read_later(loss)
        accelerator.backward(loss)
        require_finite(value, step, learning_rate, folder)
        optimizer.step()
        optimizer.zero_grad()

        if log.due(step + 1):
            agreement = (student_logits.argmax(1) == teacher_logits.argmax(1)).float().mean()
            log.write(
                step + 1,
                loss=mean_over_processes(loss),
                agreement=mean_over_processes(agreement),
                learning_rate=learning_rate,
            )
        keeper.after(step + 1, net, optimizer)
    log.close()
    student = accelerator.unwrap_model(net)
    result = {
        "stage": stage,
        "labels": tag,
        "n_labels": taught_with["number"],
        "seed": config.seed,
        **evaluate(student, splits.test, data, accelerator),
        "seconds": round(keeper.seconds, 1),
    }
    meta = {
        "kind": "classifier",
        "stage": stage,
        **description,
        "seed": config.seed,
        "labels": taught_with,
        "result": result,
        "seconds": keeper.seconds,
    }
    folder.finish(student, meta, parent=source)
    keeper.say_done(result)
    return folder.path


def run_all(config: Config, accelerator: Accelerator) -> None:
    """Distill into the student; where ``self_first`` asks, into the teacher's own kind first."""
    if config.distill.self_first:
        run(config, accelerator, "self-distill")
    run(config, accelerator)


def main(argv: Sequence[str] | None = None) -> int:
    """Run this stage alone."""
    return run_command(
        run_all,
        argv,
        "stages.distill",
        "Stage 3: distill a classifier into a student on all images; writes"
        " <output>/<run>/distill-<labels>-seed<seed>.",
        ("distill",),
    )


if __name__ == "__main__":
    sys.exit(main())
