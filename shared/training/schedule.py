"""How long a stage trains, and at which rates."""

from dataclasses import dataclass

from shared.config.sections import Training
from shared.runtime.errors import UserError
from shared.training.optim import (
    learning_rate_at,
    scaled_learning_rate,
    training_steps,
    warmup_steps,
)


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rates of a stage.

    Attributes:
        steps: updates in all.
        warmup: updates of linear warmup.
        peak: learning rate at the end of the warmup, after scaling by the global batch size.
    """

    steps: int
    warmup: int
    peak: float

    def learning_rate(self, step: int) -> float:
        """The rate of update ``step`` (counted from 0)."""
        return learning_rate_at(step, self.steps, self.warmup, self.peak)


def schedule_of(training: Training, images: int) -> Schedule:
    """Turn epochs into steps and scale the rate, as the reference does.

    Raises:
        UserError: where the warmup is as long as the whole stage.
    """
    size = training.batch_size
    epochs = training.least_epochs if training.steps else training.epochs
    steps = max(training.steps or 0, training_steps(images, epochs, size) if epochs else 0)
    warmup = warmup_steps(images, training.warmup_epochs, size)
    if warmup >= steps:
        raise UserError(
            f"{training.section}.warmup_epochs={training.warmup_epochs} is {warmup} steps, but the"
            f" stage has only {steps}; make it shorter or train longer"
        )
    peak = scaled_learning_rate(training.learning_rate, size, training.learning_rate_scaling)
    return Schedule(steps, warmup, peak)
