"""Steps and rates of a stage, from its options and the number of images."""

from dataclasses import replace

import pytest

from shared.config.sections import Distill, Finetune, Pretrain
from shared.runtime.errors import UserError
from shared.training.schedule import Schedule, schedule_of


def test_epochs_become_steps_and_the_rate_is_scaled():
    training = Pretrain(
        epochs=3, batch_size=256, learning_rate=0.1, learning_rate_scaling="linear", warmup_epochs=1
    )
    assert schedule_of(training, 1024) == Schedule(steps=13, warmup=4, peak=0.1)
    smaller = Pretrain(
        epochs=3, batch_size=64, learning_rate=0.1, learning_rate_scaling="sqrt", warmup_epochs=0
    )
    assert schedule_of(smaller, 1024) == Schedule(steps=49, warmup=0, peak=pytest.approx(0.8))


def test_steps_win_over_epochs():
    training = Finetune(steps=7, epochs=60, batch_size=8, warmup_epochs=0)
    assert schedule_of(training, 1000).steps == 7


@pytest.mark.parametrize(("images", "steps"), [(14, 100), (144, 100), (640, 301), (6400, 3001)])
def test_a_length_for_few_labels_grows_with_them(images, steps):
    training = Finetune(steps=100, least_epochs=30, batch_size=64, warmup_epochs=0)
    assert schedule_of(training, images).steps == steps
    alone = replace(training, steps=None, epochs=60)  # epochs grow by themselves
    assert schedule_of(alone, 640).steps == 601
    assert schedule_of(replace(training, least_epochs=0.0), images).steps == 100


def test_the_rate_of_each_step():
    schedule = Schedule(steps=12, warmup=2, peak=4.0)
    rates = [schedule.learning_rate(step) for step in (0, 1, 2, 7, 12)]
    assert rates == pytest.approx([0, 2, 4, 2, 0])


@pytest.mark.parametrize("steps", [15, 16])
def test_a_warmup_too_long_is_refused_and_named(steps):
    """Also one that is as long as the stage: it would never reach its rate."""
    training = Distill(steps=steps, batch_size=64, warmup_epochs=1.0)
    with pytest.raises(UserError) as error:
        schedule_of(training, 1024)
    says = f"distill.warmup_epochs=1.0 is 16 steps, but the stage has only {steps}; make it shorter"
    assert str(error.value).startswith(says)
    longer = Distill(steps=17, batch_size=64, warmup_epochs=1.0)
    assert schedule_of(longer, 1024).warmup == 16
