"""Defaults, what is refused as out of range, what is hashed, and what follows from methods."""

import dataclasses

import pytest
import yaml

from shared.config.command_line import override
from shared.config.schema import SECTIONS, Config, dump, hashed_settings
from shared.config.sections import Distill, Finetune
from tests.support.command_line import load, refusal


def test_everything_is_frozen():
    config = Config()
    for part in (config, *(getattr(config, name) for name in SECTIONS)):
        name = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, "other")


def test_the_defaults_are_the_papers():
    """SimCLRv2, sections 2 and 3, appendix B; the README of the reference."""
    config = Config()
    assert (config.model.head_layers, config.model.head_out) == (3, 128)
    pre = config.pretrain
    assert (pre.epochs, pre.batch_size, pre.temperature) == (800, 4096, 0.1)
    assert (pre.learning_rate, pre.learning_rate_scaling, pre.weight_decay) == (0.1, "sqrt", 1e-4)
    assert (pre.optimizer, pre.momentum, pre.warmup_epochs) == ("lars", 0.9, 40)
    assert (config.finetune.batch_size, config.finetune.epochs) == (1024, 60)
    assert (config.finetune.learning_rate, config.finetune.warmup_epochs) == (0.005, 0)
    assert config.data.mean == (0, 0, 0)
    assert (config.distill.epochs, config.distill.temperature) == (400, 1.0)
    assert config.distill.self_temperature == 0.1


# ---------------------------------------------------------------------------------------- refusals
RANGES = {
    "run": (["a/b", "..", "", ".x"], "letters, digits"),
    "labels": (["1%", "pct", "..pct", "1.2.3pct", "-1pct", "labels.json"], "1pct, 10pct, 100pct"),
    "seed": ([-1, 2**32], "0 to 2**32 - 1"),
    "force": (["pretain", "finetune,linaer"], "did you mean"),
    "threads": ([-1], "0 or more"),
    "data.image_size": ([3], "at least 4 pixels"),
    "data.test_fraction": ([0, 1], "in (0, 1)"),
    "data.std": (["[1,1,0]"], "greater than 0"),
    "data.workers": ([-1], "0 or more"),
    "data.split_seed": ([-1], "0 to 2**32 - 1"),
    "augment.crop_area": (["[0.9,0.5]", "[0,1]"], "two numbers 0 < low <= high <= 1"),
    "augment.flip": ([1.5], "in [0, 1]"),
    "model.head_layers": ([0, 5], "1 to 4"),
    "model.head_width": ([0], "1 or more"),
    "model.head_out": ([0], "1 or more"),
    "pretrain.epochs": ([0], "greater than 0"),
    "pretrain.steps": ([0], "1 or more"),
    "pretrain.batch_size": ([0], "1 or more"),
    "pretrain.learning_rate": ([0, -1], "greater than 0"),
    "pretrain.warmup_epochs": ([-1], "0 or more"),
    "finetune.least_epochs": ([-1], "0 or more"),
    "pretrain.weight_decay": ([-1], "0 or more"),
    "pretrain.momentum": ([1, -0.1], "in [0, 1)"),
    "pretrain.log_every_steps": ([0], "1 or more"),
    "pretrain.checkpoint_every_steps": ([0], "1 or more"),
    "pretrain.temperature": ([0], "greater than 0"),
    "pretrain.seed": ([-1], "0 to 2**32 - 1"),
    "finetune.from_layer": ([-1], "0 or more"),
    "finetune.encoder_rate": ([-1], "0 or more"),
    "finetune.freeze_after_block": ([-1], "0 or more"),
    "linear.momentum": ([1], "in [0, 1)"),
    "supervised.epochs": ([0], "greater than 0"),
    "supervised.crop_area": (["[0.9,0.5]", "[0,1]"], "two numbers 0 < low <= high <= 1, or null"),
    "distill.zoom_area": (["[0.5,1.1]"], "two numbers 0 < low <= high <= 1, or null"),
    "classical.from_layer": ([-1], "0 or more"),
    "classical.pixel_images": ([0, 100_001], "from 1 to 100,000"),
    "distill.temperature": ([0], "greater than 0"),
    "distill.self_temperature": ([0], "greater than 0"),
    "distill.labeled_weight": ([1, -0.1], "in [0, 1)"),
    "distill.labeled_batch_size": ([0], "1 or more"),
}


@pytest.mark.parametrize("key", RANGES)
def test_range(capsys, key):
    """The message names key, value and what is allowed."""
    for value in RANGES[key][0]:
        message = refusal(capsys, f"--{key}={value}")
        assert f"{key} must be " in message
        assert RANGES[key][1] in message
        last = str(value).split(",")[-1].strip("[]")
        assert last in message.partition("got ")[2]


def test_head_layer_out_of_range(capsys):
    message = refusal(capsys, "--finetune.from_layer=4")
    assert "finetune.from_layer must be 0 to 3 (model.head_layers), got 4" in message
    for section in ("linear", "classical"):
        assert "0 to 1" in refusal(capsys, f"--{section}.from_layer=2", "--model.head_layers=1")
    # another artifact has its own head
    assert load("--finetune.from_layer=4", "--finetune.init=elsewhere").finetune.from_layer == 4


def test_label_values():
    for value in ("1pct", "100pct", "0.5pct", "7perclass", "a b/list.txt", "/x/labels.csv"):
        assert load("--labels", value).labels == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pretrain.micro_batch=5"], "pretrain.micro_batch must be a divisor of pretrain.batch_"),
        (["--pretrain.micro_batch=0"], "pretrain.micro_batch must be a divisor of pretrain.batch_"),
        (["--pretrain.margin=-1"], "pretrain.margin must be 0 or more, got -1.0"),
        (
            ["--pretrain.semi_hard=true"],
            "semi_hard=True is an option of pretrain.loss=nt_logistic or",
        ),
        (
            ["--pretrain.loss=nt_logistic", "--pretrain.memory=64"],
            "pretrain.memory=64 is an option of pretrain.loss=nt_xent, which is nt_logistic; leave",
        ),
        (
            ["--pretrain.loss=pair", "--pretrain.memory=64"],
            "pretrain.memory=64 is an option of pretrain.loss=nt_xent, which is pair; leave it out",
        ),
        (["--pretrain.loss=triplet"], "pretrain.loss must be one of"),
        (["--pretrain.batch_size=1"], "pretrain.batch_size must be 2 or more without pretrain.mem"),
    ],
)
def test_impossible_options_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        load("--pretrain.batch_size=32", *arguments)
    assert message in capsys.readouterr().err


# ----------------------------------------------------------------------------- what follows from it
def test_content_is_what_decides_the_result():
    before, after = Finetune(), Finetune(log_every_steps=1, checkpoint_every_steps=2, init="x")
    assert hashed_settings(before, "finetune") == hashed_settings(after, "finetune")
    assert hashed_settings(before, "finetune") != hashed_settings(
        Finetune(learning_rate=9), "finetune"
    )
    assert hashed_settings(before, "finetune")["finetune.encoder_rate"] == 1.0
    assert "section" not in hashed_settings(before)


def test_what_a_method_trains_and_starts_from():
    config = load("--distill.student=resnet18")
    assert config.training_of("supervised-student") is config.supervised
    assert config.training_of("self-distill") is config.distill
    assert config.encoder_of("finetune") == config.model.encoder
    assert config.encoder_of("distill") == config.encoder_of("supervised-student") == "resnet18"
    assert config.parents_of("supervised") == config.parents_of("pretrain") == ()
    assert config.parents_of("finetune") == config.parents_of("linear") == ("pretrain",)
    assert config.parents_of("distill") == config.parents_of("self-distill") == ("finetune",)
    twice = load("--distill.self_first=true")
    assert twice.parents_of("distill") == ("self-distill",)
    assert twice.parents_of("self-distill") == ("finetune",)


def test_another_teacher_takes_the_place_of_the_fine_tuned_one(capsys):
    flag = "--distill.taught_by=features-logistic"
    config = load(flag)
    assert (
        config.parents_of("distill") == config.parents_of("self-distill") == ("features-logistic",)
    )
    assert config.parents_of("finetune") == ("pretrain",)
    assert load(flag, "--distill.self_first=true").parents_of("distill") == ("self-distill",)
    for forced, redone in (("features-logistic", True), ("linear", False), ("finetune", True)):
        assert load(flag, f"--force={forced}").forces("distill") == redone
    assert not load("--force=features-logistic").forces("distill")
    alone = load(flag, "--classical.enabled=false")  # the teacher is made all the same
    assert alone.asks_for("features-logistic")
    assert not alone.asks_for("pixels-svm")
    assert "one of 'finetune', 'features-logistic'" in refusal(capsys, "--distill.taught_by=linear")


def test_several_teachers():
    both = ("features-logistic", "finetune")
    config = load("--distill.taught_by=[features-logistic, finetune]", "--classical.enabled=false")
    assert config.parents_of("distill") == config.parents_of("self-distill") == both
    assert config.parents_of("finetune") == ("pretrain",)
    assert all(config.asks_for(teacher) for teacher in both)
    assert "features-logistic" in config.ancestors_of("distill")
    assert yaml.safe_load(dump(config))["distill"]["taught_by"] == [*both]
    assert override(config, {}).distill == config.distill
    one = Distill(taught_by=("finetune",), teacher=("runs/a",))
    assert one == Distill(teacher="runs/a")  # which has the same hash


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"taught_by": ("finetune", "feature-logistic")}, "did you mean 'features-logistic'"),
        ({"taught_by": ("finetune", "finetune")}, "taught_by must be different ones, got"),
        ({"taught_by": ()}, r"taught_by must be one or a list, got \(\)"),
        ({"teacher": ("a", "a")}, "teacher must be different ones"),
        (
            {"teacher": ("a", "b"), "self_ema": 0.9},
            r"self_ema must be 0 with several teachers \(a, b",
        ),
        ({"taught_by": ("finetune", "features-logistic"), "self_ema": 0.9}, "0 with several"),
        ({"self_ema": 1.0}, r"distill.self_ema must be in \[0, 1\)"),
        ({"self_confidence": -0.1}, r"self_confidence must be in \[0, 1\)"),
        ({"bootstrap": 1}, r"bootstrap must be in \[0, 1\)"),
    ],
)
def test_teachers_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        Distill(**options)
    both = ("finetune", "features-logistic")
    assert Distill(teacher="a", taught_by=both, self_ema=0.9).teacher_folders == ("a",)


# ------------------------------------------------------------------------------------------- force
@pytest.mark.parametrize(
    ("force", "stage", "says"),
    [
        ("", "pretrain", "run the same command"),
        ("pretrain", "finetune", "run the same command, now with --force self-distill,distill,"),
        ("linear", "linear", "run the same command, now without --force,"),
        ("distill", "finetune", "run the same command, now with --force distill,"),
    ],
)
def test_how_a_stopped_run_goes_on(force, stage, says):
    """Without doing again what is done or begun, but all that comes later."""
    assert Config(force=force).to_go_on(stage) == says
