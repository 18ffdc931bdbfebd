"""One stage's run, around the step: folder, optimizer, state, batches, log, result.

    stage = Stage(config, accelerator, "finetune", settings, seed)
    if stage.done:
        return stage.path
    net = stage.prepare(model, images=len(labels.ids))
    for step, batch in stage.steps(batches):
        ...                                       # forward, loss
        accelerator.backward(loss)
        stage.require_finite(loss_value)
        stage.optimizer.step()
        stage.optimizer.zero_grad()
        if stage.log_is_due:
            stage.log(loss=loss, top1=accuracy)
    return stage.finish(...)

``steps`` sets the learning rate and seeds torch before each step, and checkpoints after it. The
step itself stays in the stage's file.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.label_file import file_notes
from shared.config.methods import CLASSIFIERS, METHODS
from shared.config.schema import RENAMED, Config, defaults, dump, hashed_settings
from shared.config.sections import Augmentation, Data, Training
from shared.data.batches import Batch, Batches, Companions, Draw, Parts
from shared.data.images import ImageSet, Splits
from shared.data.labels import Labels, read_names
from shared.runtime.artifacts import ClassifierNetwork, LabelsMeta, Result, read_meta
from shared.runtime.distributed import mean_over_processes
from shared.runtime.errors import UserError
from shared.runtime.randomness import seed_torch
from shared.runtime.records import REDO, read_json
from shared.runtime.stage_folder import StageFolder
from shared.runtime.stop import Stopped, StopRequest
from shared.training.evaluate import Predictions, predict
from shared.training.optim import build_optimizer, set_learning_rate
from shared.training.runlog import RunLog
from shared.training.schedule import schedule_of

# what a file of labels decides: a classifier follows its changes without --force, see `follows`
FOLLOWS = (
    *("labels", "student_labels", "classes", "images", "test_images"),
    *("from_layer", "parent"),
)

B = TypeVar("B")
# what runs one stage, as the pipeline hands it to a grid of runs
RunStage = Callable[[Config, Accelerator], object]


def options_of(config: Config, method: str) -> dict[str, Any]:
    """The options that a method's artifact depends on, besides those that its module adds."""
    data, training = hashed_settings(config.data, "data"), config.training_of(method)
    if method == "pretrain":  # it sees no labels, and its images are known by their hash
        for option in ("image_column", "label_column", "test_fraction", "split_seed", "hold_out"):
            del data[f"data.{option}"]
    options = {
        **data,
        **hashed_settings(config.augment, "augment"),
        **hashed_settings(training, training.section),
    }
    if method == "pretrain":
        for section in config.task_sections:
            options |= hashed_settings(getattr(config, section), section)
    independent = METHODS[method].independent
    return {key: value for key, value in options.items() if key not in independent}


def renamed_of(method: str) -> Mapping[str, str]:
    """New names of options -> the old ones, which an artifact of an earlier version may have.

    What was trained before the renaming is the same; but classifiers were measured on images that
    were never antialiased.
    """
    return {} if method in CLASSIFIERS else RENAMED


def require_an_image_each(config: Config, method: str, processes: int) -> None:
    """Refuse a method whose batches have fewer images than there are processes.

    What is done already is not refused: any number of processes may read it.

    Raises:
        UserError: naming the option, and the sizes that fit.
    """
    if (config.folder_of(method) / "meta.json").exists() and not config.forces(method):
        return
    training = config.training_of(method)
    keys = ["batch_size", "micro_batch"]
    if getattr(training, "labeled_weight", 0):
        keys.append("labeled_batch_size")
    for key in keys:
        size = getattr(training, key, None)
        if size is not None and size < processes:
            raise UserError(
                f"{training.section}.{key}={size} leaves some of the {processes} processes without"
                f" an image; give --{training.section}.{key} {processes} or more, or start fewer"
                " processes"
            )


class Stage:
    """One run of a stage: new, interrupted or done.

    Args:
        config: the run's configuration; its data, augmentation and precision count for every
            stage, and so does the section that the method reads.
        accelerator: of this process.
        method: of ``shared.config.methods``.
        settings: what else the artifact depends on, JSON values.
        seed: of initial weights, order, augmentation and dropout.
        follows: whether a classifier is made again, without ``--force``, where labels or images
            have changed.
        unnoted: of settings that earlier versions did not note, what their artifacts count as.

    Attributes:
        done: the artifact is there already, made with these settings.
        path: its folder.
        optimizer: after ``prepare``.
        schedule: after ``prepare``: number of steps, and their learning rates.
        start: after ``prepare``: updates that an interrupted run has done.
        chance: the loss of a network that has learned nothing, to be shown beside the loss; set by
            the stage where it is known.
        step: within ``steps``: number of updates before this one.
        learning_rate: within ``steps``: of this update.

    Raises:
        UserError: where the folder was made with other settings, or a batch that is still to be
            trained on has fewer images than there are processes.
    """

    optimizer: torch.optim.Optimizer
    chance: float | None = None

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        method: str,
        settings: Mapping[str, Any],
        seed: int,
        follows: bool = False,
        unnoted: Mapping[str, Any] | None = None,
    ):
        self.config, self.accelerator, self.method, self.seed = config, accelerator, method, seed
        self.training: Training = config.training_of(method)
        everything = {
            "stage": method,
            **options_of(config, method),
            "precision": accelerator.mixed_precision,
            **settings,
        }
        self.folder = StageFolder(
            config.folder_of(method),
            everything,
            force=config.forces(method),
            accelerator=accelerator,
            go_on=config.to_go_on(method),
            defaults={**defaults(), **(unnoted or {})},
            renamed=renamed_of(method),
            follows=FOLLOWS if follows else (),
        )
        self.path, self.done = self.folder.path, self.folder.done
        if self.done:
            accelerator.print(f"{method}: already done, {self.path}")
        require_an_image_each(config, method, accelerator.num_processes)

    def seed_initial_weights(self) -> None:
        """Make the weights that are drawn next a function of the seed and the method."""
        seed_torch(self.seed, self.method)

    def prepare(
        self,
        model: nn.Module,
        images: int,
        *,
        state: nn.Module | None = None,
        learning_rates: Mapping[str, float] | None = None,
    ) -> nn.Module:
        """Build the optimizer, write the settings, and go on from the last checkpoint.

        Args:
            model: what is trained, on its device.
            images: number of images that it is trained on.
            state: what a checkpoint holds, where that is more than the model.
            learning_rates: factors on the learning rate by module path.

        Returns:
            The model as accelerate wraps it; ``model`` stays the one inside.

        Raises:
            UserError: on an impossible schedule or a damaged checkpoint.
        """
        training = self.training
        self.schedule = schedule_of(training, images)
        optimizer = build_optimizer(
            training.optimizer, model, training.weight_decay, training.momentum, learning_rates
        )
        self.model, self.state = model, model if state is None else state
        net, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.folder.start(dump(self.config), file_notes(self.config, self.method))
        self.start, self.seconds_before = self.folder.load_state(
            self.state, self.optimizer, self.schedule.steps
        )
        if not self.accelerator.trackers:  # not before: a refused run leaves no files
            self.accelerator.init_trackers(self.config.run)
        self._log = RunLog(self.folder, training, self.start, self.schedule.steps, self.accelerator)
        self._began, self._cpu_began = time.perf_counter(), time.process_time()
        return net

    def batches(
        self,
        images: ImageSet,
        ids: np.ndarray,
        augmentation: Augmentation | None,
        *,
        views: int = 1,
        clean: bool = False,
        purpose: str = "",
        batch_size: int | None = None,
        draw: Draw | None = None,
        companions: Companions | None = None,
    ) -> Batches:
        """Batches of this stage, as ``Batches`` makes them.

        Args:
            images: where they come from.
            ids: positions of the images that take part.
            augmentation: how views are made; None shows the image as in evaluation.
            views: number of views of each image.
            clean: also give the image as in evaluation.
            purpose: of batches beside the main ones, which then see other draws.
            batch_size: of these; unset: the stage's own.
            draw: makes what a pretext task draws for a batch.
            companions: says of which other images the second half of the views are.
        """
        return Batches(
            images,
            ids,
            self.config.data,
            augmentation,
            self.accelerator,
            seed=self.seed,
            stage=f"{self.method}-{purpose}" if purpose else self.method,
            batch_size=batch_size or self.training.batch_size,
            views=views,
            clean=clean,
            draw=draw,
            companions=companions,
        )

    def steps(self, batches: Batches) -> Iterator[tuple[int, Batch]]:
        """Number and batch of every step that is left, with all that belongs around a step.

        Before a step the learning rate is set, and torch is seeded for dropout and drop path. After
        it a checkpoint is saved, if it is time or the run is asked to stop.

        Raises:
            UserError: where weights or statistics are not finite any more.
            Stopped: after saving, where SIGTERM or SIGINT has arrived.
        """
        return self._around(batches.steps(self.start, self.schedule.steps))

    def steps_in_parts(self, batches: Batches, parts: int) -> Iterator[tuple[int, Parts]]:
        """The same, with every batch in so many parts."""
        return self._around(batches.steps_in_parts(self.start, self.schedule.steps, parts))

    def _around(self, batches: Iterator[B]) -> Iterator[tuple[int, B]]:
        kept = self._keeping(batches)
        for step, batch in enumerate(self._log.waiting(kept), self.start):
            self.step, self.learning_rate = step, self.schedule.learning_rate(step)
            set_learning_rate(self.optimizer, self.learning_rate)
            seed_torch(self.seed, self.method, step, self.accelerator.process_index)
            yield step, batch
            self.checkpoint(step + 1)
        self._log.close()

    def _keeping(self, batches: Iterator[B]) -> Iterator[B]:
        """Pass the batches on; where one cannot be made, what was learned so far is saved.

        Of several processes the main one saves, if its own batch is the one: others that cannot go
        on have no part in the next exchange, and so no way to tell it before that.
        """
        done = self.start
        try:
            for done, batch in enumerate(batches, self.start):
                yield batch
                done += 1
        except UserError:
            if done > self.start:
                self._keep(done)
            raise

    def _keep(self, step: int) -> None:
        """Save what was learned, after an error, which is the one to tell."""
        with suppress(UserError):
            self._require_finite_state(step)
            self.folder.save_state(step, self.seconds, self.state, self.optimizer)

    def require_finite(self, loss: Callable[[], float]) -> None:
        """Stop before the update where the loss, as ``read_later`` gives it, is not a number.

        Raises:
            UserError: naming step, learning rate and the last good checkpoint.
        """
        if not math.isfinite(value := loss()):
            raise UserError(
                f"the loss is {value} at step {self.step} of {self.method} (learning rate"
                f" {self.learning_rate:.3g}); start another --run with a lower rate or a longer"
                f" warmup; last good checkpoint: {self.folder.last_checkpoint()}"
            )

    @property
    def log_is_due(self) -> bool:
        """Whether this step is one of those that ``metrics.jsonl`` tells of."""
        return self._log.due(self.step + 1)

    def log(self, **metrics: float | Tensor) -> None:
        """Log metrics after this step's update, with the learning rate.

        Args:
            metrics: numbers; tensors are averaged over processes, so all processes must call. A
                mean over this process's rows needs its ``weight_of_own_rows``.
        """
        means = {
            name: mean_over_processes(value) if isinstance(value, Tensor) else value
            for name, value in metrics.items()
        }
        self._log.write(self.step + 1, self.chance, **means, learning_rate=self.learning_rate)

    def checkpoint(self, step: int) -> None:
        """Save after ``step`` updates if it is time; after the last the artifact itself is saved.

        Raises:
            UserError: where what would be saved, weights or statistics, is not finite.
            Stopped: after saving, where SIGTERM or SIGINT has arrived.
        """
        total = self.schedule.steps
        stop = StopRequest.agreed(step)
        if not (stop or step % self.training.checkpoint_every_steps == 0 or step == total):
            return
        self._require_finite_state(step)
        if stop or step < total:
            self.folder.save_state(step, self.seconds, self.state, self.optimizer)
        if stop:
            self._log.close()
            raise Stopped(
                f"stopped as asked after step {step} of {total} of {self.method}; the state is"
                f" saved: {self.folder.go_on} to go on"
            )

    def _require_finite_state(self, step: int) -> None:
        if not all(tensor.isfinite().all() for tensor in self.state.state_dict().values()):
            raise UserError(
                f"weights are not finite after step {step} of {self.method}; start another --run"
                " with a lower learning rate or a longer warmup; last good checkpoint:"
                f" {self.folder.last_checkpoint()}"
            )

    @property
    def seconds(self) -> float:
        """Wall time of the stage so far, interruptions left out."""
        return self.seconds_before + time.perf_counter() - self._began

    def finish(
        self,
        meta: Mapping[str, object],
        parents: Sequence[Path] = (),
        predictions: Predictions | None = None,
        model: nn.Module | None = None,
    ) -> Path:
        """Save the trained model and what it is; the stage is done.

        Args:
            meta: what the artifact is: keys of ``shared.runtime.artifacts.Meta``.
            parents: folders of the artifacts that it was made from.
            predictions: of a classifier, where there are test images.
            model: the part of the trained model that is kept; unset: all of it.

        Returns:
            The artifact folder.
        """
        run = {"stage": self.method, "seed": self.seed, "seconds": self.seconds}
        run["updates"] = self.schedule.steps
        if not self.start:
            run["cpu_seconds"] = round(time.process_time() - self._cpu_began, 1)
        self.accelerator.free_memory()  # else it holds on to every network that it prepared
        return finish(self.folder, model or self.model, {**meta, **run}, parents, predictions)

    def finish_classifier(
        self,
        network: ClassifierNetwork,
        labels: LabelsMeta,
        test: ImageSet | None,
        parents: Sequence[Path],
        model: nn.Module | None = None,
    ) -> Path:
        """Evaluate the trained classifier and save it, with its row of the table.

        Args:
            network: what it is.
            labels: what it was made from.
            test: test images, where there are any.
            parents: folders of the artifacts that it was made from.
            model: the part of the trained model that is kept; unset: all of it.

        Returns:
            The artifact folder.
        """
        config, model = self.config, model or self.model
        try:
            predictions = predict(model, test, config.data, self.accelerator) if test else None
        except Exception:  # an image that cannot be read, too little memory
            self._keep(self.schedule.steps)
            raise
        parameters = sum(p.numel() for p in model.parameters())
        result = result_of(
            config, self.method, labels, parameters, self.seconds, measured(predictions)
        )
        meta = {"kind": "classifier", **network, "labels": labels, "result": result}
        return self.finish(meta, parents, predictions, model)


def measured(predictions: Predictions | None) -> dict[str, float]:
    """The metrics of the predictions, and of how many images; nothing without test images."""
    if predictions is None:
        return {}
    return {**predictions.metrics, "n_test": len(predictions.targets)}


def result_of(
    config: Config,
    method: str,
    labels: LabelsMeta,
    parameters: int,
    seconds: float,
    metrics: Mapping[str, float],
) -> Result:
    """A classifier's row of the tables."""
    known = {
        "stage": method,
        "labels": config.label_set.tag,
        "n_labels": labels["number"],
        "seed": config.seed,
        "parameters": parameters,
    }
    return cast(Result, {**known, **metrics, "seconds": round(seconds, 1)})


def finish(
    folder: StageFolder,
    model: nn.Module | None,
    meta: Mapping[str, Any],
    parents: Sequence[Path],
    predictions: Predictions | None,
) -> Path:
    """Save an artifact, and say so.

    Args:
        folder: of the artifact.
        model: the artifact; None where it is the predictions alone.
        meta: what it is.
        parents: folders of the artifacts that it was made from.
        predictions: of a classifier, where there are test images.
    """
    folder.finish(model, meta, parents, predictions.arrays() if predictions else None)
    top1 = meta.get("result", {}).get("top1")
    accuracy = f", top-1 {100 * top1:.1f} %" if top1 is not None else ""
    folder.accelerator.print(
        f"{meta['stage']}: done in {meta['seconds']:.0f} s{accuracy}, {folder.path}"
    )
    return folder.path


def settings_of_test_images(splits: Splits) -> dict[str, str | None]:
    """What settings say of the test images, so that a mended test set is measured anew."""
    if splits.test is None:
        return {"test_images": None}
    return {"test_images": f"{splits.test.fingerprint}-{splits.test.labels_fingerprint}"}


def labels_meta(config: Config, labels: Labels) -> LabelsMeta:
    """What an artifact notes of the labels that it was made with."""
    return {"given": config.labels, "hash": labels.hash, "number": len(labels.ids)}


def follows(config: Config, images: ImageSet) -> bool:
    """Whether classifiers follow the labels: these are in a file that people fill in."""
    return config.label_set.file is not None or images.edited


def to_follow(config: Config, splits: Splits, labels: Labels) -> list[str]:
    """Methods whose artifact is there, of another content of the file of labels than now."""
    if not follows(config, splits.train):
        return []
    now = {"labels": labels.hash, "images": splits.train.fingerprint}
    now |= settings_of_test_images(splits)
    outdated = []
    for method in CLASSIFIERS:
        folder = config.folder_of(method)
        if not config.asks_for(method) or not (folder / "meta.json").exists():
            continue
        made_with = read_meta(folder).get("settings", {})
        if any(made_with.get(key) != value for key, value in now.items()):
            outdated.append(method)
    return outdated


def images_then(folder: Path, images: ImageSet, data: Data) -> ImageSet:
    """The images that a pretraining began with, where all are still there and others came later.

    Args:
        folder: of the pretraining, begun or done.
        images: the images now. They are returned where none or more than additions differ.
        data: how they were opened.
    """
    file = folder / "images.csv"
    if not file.exists():
        return images
    place = {name: position for position, name in enumerate(images.names)}
    positions = [place.get(name, -1) for name in read_names(file)]
    if len(positions) >= len(images) or -1 in positions:
        return images
    then = images.select(np.array(positions, dtype=np.int64))
    # a new image of another size keeps all of them out of memory
    if images.pixels is None and data.loading == "auto":
        then = then.loaded(data.loading, data.workers, False)
    made_with = read_json(folder / "settings.json", REDO)
    return then if then.fingerprint == made_with.get("images") else images
