"""Several tasks at once, on one encoder (Doersch & Zisserman 2017, arXiv 1708.07860).

The loss is the weighted sum of the parts' losses. Each part sees its own inputs and answers by its
own head, or by the projection head where it embeds. A part of weight 0 is left out: it changes no
bit of what the others learn.

The parts share the views of a batch. There are as many as the greediest part wants, and each part
takes the first ones. The views have full augmentation where a part usually has it, unless
``pretrain.augmentation`` says otherwise (``Config.task_kind``).

What differs on purpose: the original gives each task batches, machines and colours of its own, and
harmonises the colours as an option. Here all parts see the same images, so one step serves all.
Batch norm sees each input as a batch of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.schema import Config
from shared.data.batches import Batch
from shared.data.images import ImageSet
from shared.networks.heads import ContrastiveModel
from shared.pretext.network import PretextModel, heads_of
from shared.pretext.task import Answer, Metrics, Task, Tensors


class MultiTask(Task):
    """A weighted sum of tasks.

    Args:
        config: the run's.
        accelerator: of this process.
        parts: the tasks by their names.
    """

    name = "multi-task"

    def __init__(self, config: Config, accelerator: Accelerator, parts: Mapping[str, Task]) -> None:
        super().__init__(config, accelerator)
        self.parts, self.weights = parts, config.task_weights
        # of each part, how many tensors it draws, has answered and compares these with
        self._drawn = self._answered = self._compared = [0] * len(parts)

    @property
    def facts(self) -> str:
        """The parts, with their weights."""
        each = (
            f"{self.weights[name]:g} x {name}: {part.facts}" for name, part in self.parts.items()
        )
        return "; ".join(each)

    @property
    def memory(self) -> nn.Module | None:
        """What the parts remember."""
        memories = {
            name: part.memory for name, part in self.parts.items() if part.memory is not None
        }
        return nn.ModuleDict(memories) if memories else None

    def require(self, images: ImageSet) -> None:
        """Refuse images that a part cannot learn from."""
        for part in self.parts.values():
            part.require(images)

    def network(self, model: ContrastiveModel) -> nn.Module:
        """With the heads of all parts."""
        heads = [heads_of(part.network(model)) for part in self.parts.values()]
        self._answered = [len(own) for own in heads]
        return PretextModel(model, [*chain(*heads)])

    def start(self, model: nn.Module, images: ImageSet) -> None:
        """Make what the parts remember."""
        for part in self.parts.values():
            part.start(model, images)
        self.chance = sum(self.weights[name] * part.chance for name, part in self.parts.items())

    def begin(self, images: ImageSet) -> None:
        """Fill what the parts remember."""
        for part in self.parts.values():
            part.begin(images)

    def draw(self, rng: np.random.Generator, batch_size: int) -> Tensors:
        """What the parts draw, one after the other."""
        drawn = [part.draw(rng, batch_size) for part in self.parts.values()]
        self._drawn = [len(own) for own in drawn]
        return tuple(chain(*drawn))

    def at(self, step: int) -> None:
        """Say it to all parts."""
        for part in self.parts.values():
            part.at(step)

    def inputs(self, batch: Batch) -> Tensors:
        """Those of all parts."""
        return tuple(chain(*(part.inputs(own) for part, own in self._batches(batch))))

    def targets(self, batch: Batch) -> Tensors:
        """Those of all parts."""
        targets = [part.targets(own) for part, own in self._batches(batch)]
        self._compared = [len(own) for own in targets]
        return tuple(chain(*targets))

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """The weighted sum; it keeps what the parts answer."""
        both = zip(
            _divided(outputs, self._answered), _divided(targets, self._compared), strict=True
        )
        answers = {
            name: part.loss(*own)
            for (name, part), own in zip(self.parts.items(), both, strict=True)
        }
        losses = [self.weights[name] * answer.loss for name, answer in answers.items()]
        kept = tuple(answer._replace(loss=answer.loss.detach()) for answer in answers.values())

        def metrics() -> Metrics:
            log: dict[str, float | Tensor] = {}
            for name, answer in zip(answers, kept, strict=True):
                log[f"{name}_loss"] = answer.loss
                for key, value in answer.metrics().items():
                    log[key if key.startswith(name) else f"{name}_{key}"] = value
            return log

        return Answer(sum(losses[1:], losses[0]), metrics, kept)

    def update(self, model: nn.Module, answer: Answer) -> None:
        """Renew what the parts remember."""
        for part, own in zip(self.parts.values(), answer.kept, strict=True):
            part.update(model, own)

    def _batches(self, batch: Batch) -> Iterator[tuple[Task, Batch]]:
        """Each part with its views of the batch, and what it drew."""
        drawn = _divided(batch.drawn, self._drawn)
        for part, own in zip(self.parts.values(), drawn, strict=True):
            images = batch.images[: part.views * len(batch.ids)]
            yield part, batch._replace(images=images, drawn=own)


def _divided(values: Tensors, numbers: Sequence[int]) -> list[Tensors]:
    """So many of the values for each part, in their order."""
    rest = iter(values)
    return [tuple(islice(rest, number)) for number in numbers]
