"""Single sections: what they refuse, and what stages ask of them."""

import dataclasses

import pytest

from shared.config.pretext import Exemplar
from shared.config.schema import Config
from shared.config.sections import Augmentation, Distill, Finetune, Pretrain
from tests.support.command_line import load


def test_stages_may_crop_in_their_own_way():
    config = load("--augment.crop_area=[0.1,1]", "--finetune.crop_area=[0.6,0.9]")
    views = config.finetune.views_of(config.augment)
    assert (views.crop_area, views.zoom_area) == ((0.6, 0.9), config.augment.zoom_area)
    assert config.linear.views_of(config.augment) == config.augment
    assert config.distill.views_of(config.augment).zoom_area == (0.7, 1.0)  # as the recipe says
    config = load("--augment.crop_min_covered=0.5", "--linear.crop_area=[0.1,0.3]")
    assert config.linear.views_of(config.augment).crop_min_covered == 0.3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flip", 2.0),
        ("flip", float("nan")),
        ("jitter", -0.1),
        ("grayscale", 1.5),
        ("blur", 7),
        ("crop_area", (0.0, 1.0)),
        ("crop_area", (0.5, 0.2)),
        ("crop_area", (0.08, 1.5)),
        ("crop_aspect", (0.0, 1.0)),
        ("crop_aspect", (2.0, 1.0)),
        ("crop_min_covered", 1.1),
        ("rotate", -1.0),
        ("shear", 90.0),
        ("color_strength", 1.3),
        ("brightness", "darker"),
        ("blur_sigma", (0.0, 2.0)),
        ("blur_sigma_per", "epoch"),
    ],
)
def test_a_bad_setting_is_named(name, value):
    with pytest.raises(ValueError, match=rf"^augment\.{name} must be .*, got ") as error:
        Augmentation(**{name: value})
    assert str(error.value).endswith(f"got {value}")
    assert "\n" not in str(error.value)


def test_kept_layers_are_the_papers_unless_set():
    assert [Finetune().kept_layers(labels, 1000, 3) for labels in (10, 100, 101)] == [1, 1, 0]
    assert Finetune(from_layer=2).kept_layers(1000, 1000, 3) == 2
    assert Finetune().kept_layers(10, 1000, 0) == 0  # a task that leaves no projection head
    assert (
        Config().linear.kept_layers(10, 1000, 3)
        == Config().supervised.kept_layers(10, 1000, 3)
        == 0
    )


def test_batch_norm_follows_the_number_of_labels_where_it_is_auto():
    auto = Finetune(batch_norm="auto", batch_size=64)
    assert [auto.batch_statistics(labels) for labels in (14, 255, 256, 1437)] == [0, 0, 1, 1]
    for kind, batch in (("batch", True), ("frozen", False)):
        tuned = Finetune(batch_norm=kind, batch_size=64)
        assert {tuned.batch_statistics(labels) for labels in (14, 1437)} == {batch}


def test_facts_of_a_training():
    def passes(cfg: Pretrain, **options) -> tuple[int, float]:
        config = Config(pretrain=cfg, **options)
        return config.passes_of("pretrain"), config.inputs_of("pretrain")

    plain, tuned = Pretrain(batch_size=256), Finetune(batch_size=256)
    assert passes(plain) == (6, 2)
    assert (Config().passes_of("finetune"), Config().inputs_of("finetune")) == (3, 1)
    assert (plain.images_at_once, plain.batch_unit) == (256, 1)
    assert (tuned.images_at_once, tuned.batch_unit) == (256, 1)
    in_parts = dataclasses.replace(plain, micro_batch=64, memory=1024)
    assert (passes(in_parts), in_parts.images_at_once, in_parts.batch_unit) == ((10, 2), 64, 64)
    assert passes(dataclasses.replace(plain, memory=1024, negatives="memory")) == (4, 1)
    assert passes(dataclasses.replace(plain, micro_batch=256)) == (6, 2)
    assert passes(Pretrain(task="rotation")) == (12, 4)
    assert passes(Pretrain(task="exemplar"), exemplar=Exemplar(views=5)) == (15, 5)
    assert (Distill().has_teacher, Distill().kept_layers(10, 1000, 3)) == (True, 0)
    assert not tuned.has_teacher


def test_another_batch_size_keeps_the_rest():
    tuned = Finetune(epochs=3).with_batch(16)
    assert tuned == Finetune(epochs=3, batch_size=16)
    pretraining = Pretrain(batch_size=256, memory=1024)
    assert [pretraining.with_batch(size).memory for size in (32, 96, 2048)] == [1024, 960, 2048]
    assert Pretrain(batch_size=256).with_batch(32).memory == 0
