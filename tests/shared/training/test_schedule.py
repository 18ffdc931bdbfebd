"""Steps and rates of a stage, from its options and the number of images."""

from dataclasses import replace

import pytest

from shared.config.schema import Config, Distill, Finetune, Pretrain
from shared.runtime.errors import UserError
from shared.training.schedule import Schedule, require_an_image_each, schedule_of


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


# ------------------------------------------------------------------------------------- processes
@pytest.mark.parametrize("processes", range(1, 17))
def test_batches_are_taken_whatever_their_remainder(processes):
    config = Config(pretrain=Pretrain(batch_size=64, micro_batch=16))
    require_an_image_each(config, "pretrain", processes)


def test_batches_with_fewer_images_than_processes_are_refused():
    config = Config(finetune=Finetune(batch_size=2))
    require_an_image_each(config, "finetune", 2)
    with pytest.raises(UserError) as error:
        require_an_image_each(config, "finetune", 3)
    assert str(error.value) == (
        "finetune.batch_size=2 leaves some of the 3 processes without an image; give"
        " --finetune.batch_size 3 or more, or start fewer processes"
    )
    require_an_image_each(config, "pretrain", 4)
    parts = Config(pretrain=Pretrain(batch_size=64, micro_batch=2))
    with pytest.raises(UserError, match=r"pretrain.micro_batch=2 leaves some of the 4 processes"):
        require_an_image_each(parts, "pretrain", 4)


def test_labeled_batches_count_where_there_are_any():
    without = Distill(batch_size=6, labeled_batch_size=2)
    require_an_image_each(Config(distill=without), "distill", 3)
    mixed = Distill(batch_size=6, labeled_batch_size=2, labeled_weight=0.5)
    for method in ("distill", "self-distill"):
        with pytest.raises(UserError, match=r"distill.labeled_batch_size=2 leaves some of the 3"):
            require_an_image_each(Config(distill=mixed), method, 3)


def test_what_is_done_is_read_by_any_number_of_processes(tmp_path):
    config = Config(output=str(tmp_path), finetune=Finetune(batch_size=2))
    folder = config.folder_of("finetune")
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"finetune.batch_size=2"):
        require_an_image_each(config, "finetune", 3)
    (folder / "meta.json").touch()
    require_an_image_each(config, "finetune", 3)
    for force in ("finetune", "pretrain", "all"):
        with pytest.raises(UserError, match=r"finetune.batch_size=2"):
            require_an_image_each(replace(config, force=force), "finetune", 3)
    require_an_image_each(replace(config, force="distill"), "finetune", 3)
