"""What stage 1 knows of a pretext task: what it shows the network, and what it asks.

    task = make_task(config, accelerator)
    model = task.network(contrastive_model)
    task.start(model, images)
    task.begin(images)                                    # unless a checkpoint goes on
    for step, batch in stage.steps(batches):              # batches draw for the task
        task.at(step)
        outputs = net(*task.inputs(batch))
        answer = task.loss(outputs, task.targets(batch))
        ...                                               # backward, update
        task.update(model, answer)

All that a task draws is a row per image of the *global* batch, a function of seed and step. Its
inputs, targets and outputs are tensors whose rows are those of this process's images, once or
several times: (k b, ...), all first ones, then all second ones. So a batch may pass in parts, and
several processes see what one sees.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.pretext import TASKS
from shared.config.schema import Config
from shared.config.sections import Augmentation
from shared.data.augment import augmentation_for
from shared.data.batches import Batch, Companions
from shared.data.images import ImageSet
from shared.networks.heads import ContrastiveModel
from shared.runtime.distributed import weight_of_own_rows

Tensors = tuple[Tensor, ...]
Metrics = Mapping[str, float | Tensor]


class Answer(NamedTuple):
    """What a task makes of the network's outputs.

    Attributes:
        loss: scalar, weighted such that its average over processes is the loss of the batch.
        metrics: computes what the log says beside the loss, weighted likewise.
        kept: what `Task.update` remembers of the batch.
    """

    loss: Tensor
    metrics: Callable[[], Metrics]
    kept: tuple[Any, ...] = ()


class Task:
    """One pretext task; a subclass says what is not usual.

    Args:
        config: the run's; a task reads ``pretrain`` and the section of its own name.
        accelerator: of this process.

    Attributes:
        chance: the loss of a network that has learned nothing.
        companions: of which other images the second half of the views are; None: of no others.
        weight: of this process's rows, for means that are averaged over processes.
        step: number of updates before the present one (`at`).
    """

    name: ClassVar[str]
    chance: float
    companions: Companions | None = None
    step = 0

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.batch_size = config.pretrain.batch_size
        self.weight = weight_of_own_rows(self.batch_size)

    @property
    def views(self) -> int:
        """Random views of each image that a batch holds."""
        return self.config.task_kind(self.name).views

    @property
    def augmentation(self) -> Augmentation | None:
        """How the views are made."""
        kind: Literal["auto", "full", "crop", "none"] = self.config.pretrain.augmentation
        usual = self.config.task_kind(self.name).augmentation
        return augmentation_for(self.config.augment, usual if kind == "auto" else kind)

    @property
    def facts(self) -> str:
        """What the line at the start says of the task, with its numbers."""
        return TASKS[self.name].title

    @property
    def settings(self) -> dict[str, str]:
        """What the result depends on besides options: hashes of files that the task reads."""
        return {}

    @property
    def memory(self) -> nn.Module | None:
        """What a checkpoint holds besides the trained network, after `start`."""
        return None

    def require(self, images: ImageSet) -> None:
        """Refuse images that the task cannot learn from, before anything is trained.

        Raises:
            UserError: in one line, with what to do.
        """

    def network(self, model: ContrastiveModel) -> nn.Module:
        """What is trained: the encoder with its projection head, and the task's own layers.

        Args:
            model: encoder and projection head, which are kept; the head has no layers where no task
                answers by it.

        Returns:
            A network of `inputs` -> outputs, one tensor or several.
        """
        return model

    def start(self, model: nn.Module, images: ImageSet) -> None:
        """Make `memory`, where the task has one.

        Args:
            model: the network to be trained, on its device, not yet wrapped.
            images: that are trained on.
        """

    def begin(self, images: ImageSet) -> None:
        """Fill `memory` where that takes long: after `start`, and only where no checkpoint has it.

        Args:
            images: that are trained on.
        """

    def draw(self, rng: np.random.Generator, batch_size: int) -> Tensors:
        """What is drawn for a global batch: (B, ...) each, a row for each image."""
        return ()

    def at(self, step: int) -> None:
        """Say which step the next batch is of, where something changes with the steps."""
        self.step = step

    def inputs(self, batch: Batch) -> Tensors:
        """What the network sees: (k b, 3, s, s) each."""
        return (batch.images,)

    def targets(self, batch: Batch) -> Tensors:
        """What the loss compares the outputs with, without gradient: (k b, ...) each."""
        return ()

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """The loss of this process's rows.

        Args:
            outputs: what the network made of `inputs`.
            targets: of the same images.
        """
        raise NotImplementedError

    def update(self, model: nn.Module, answer: Answer) -> None:
        """Renew `memory` after an update of the network, and after the log.

        Args:
            model: the trained network, without wrapper.
            answer: of the batch.
        """
