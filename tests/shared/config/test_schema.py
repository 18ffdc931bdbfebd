"""Recipes, flags, what is refused and in which words, and the help."""

import dataclasses
from pathlib import Path

import pytest

import pipeline
from shared.config.command_line import load_config
from shared.config.schema import SECTIONS, Config, Finetune, dump, hashed_settings
from stages import distill, finetune, pretrain

RECIPES = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
COMMANDS = [pipeline.main, pretrain.main, finetune.main, distill.main]


def load(*arguments: object) -> Config:
    return load_config([str(a) for a in arguments], "command", "What it does.")[0]


def recipe(path: Path, text: str) -> Path:
    (path / "recipe.yaml").write_text(text)
    return path / "recipe.yaml"


def refusal(capsys, *arguments: object) -> str:
    """The one line on standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        load(*arguments)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


# ---------------------------------------------------------------------------------------- recipes
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path):
    config = load("--config", path)
    assert config != Config()
    assert path.read_text().startswith("# ") or path.stem == "digits"  # says what it is


def test_there_are_recipes():
    assert {"digits", "cifar10", "imagenet", "image_folder"} <= {path.stem for path in RECIPES}


def test_without_a_recipe_the_embedded_digits():
    assert load() == load("--config", RECIPES[0].parent / "digits.yaml")
    assert load().data.train == "digits"


@pytest.mark.parametrize("flags_first", [True, False])
@pytest.mark.parametrize("style", [["--config", "{}"], ["--config={}"]])
def test_flags_win_over_the_recipe(tmp_path, flags_first, style):
    path = recipe(tmp_path, "labels: 5pct\nseed: 4\npretrain:\n  temperature: 0.3\n")
    style = [part.format(path) for part in style]
    flags = ["--labels=7pct", "--pretrain.temperature", "0.7"]
    config = load(*flags, *style) if flags_first else load(*style, *flags)
    assert (config.labels, config.seed, config.pretrain.temperature) == ("7pct", 4, 0.7)
    assert config.pretrain.epochs == Config().pretrain.epochs  # the paper's where nothing is said


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


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_dump_and_print_config_can_be_loaded_again(tmp_path, path, capsys):
    flags = ["--labels=3perclass", "--data.mean=[0.1,0.2,0.3]", "--finetune.steps=7"]
    config = load("--config", path, *flags)
    assert load("--config", recipe(tmp_path, dump(config))) == config
    with pytest.raises(SystemExit) as stopped:
        load("--config", path, *flags, "--print_config")
    assert stopped.value.code in (0, None)
    assert load("--config", recipe(tmp_path, capsys.readouterr().out)) == config


# ---------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("--labls=1pct", "did you mean --labels?"),
        ("--lab=1pct", "did you mean --labels?"),  # no abbreviations
        ("--pretrain.tempature=1", "did you mean --pretrain.temperature?"),
        ("--pretran.temperature=1", "did you mean --pretrain.temperature?"),
        ("--modle.encoder=x", "did you mean --model.encoder?"),
        ("--batch_size=64", "did you mean --pretrain.batch_size or --finetune.batch_size or"),
        ("--pretrain.section=x", "unknown option --pretrain.section"),
        ("--print_confg", "did you mean --print_config?"),
    ],
)
def test_misspelt_flag(capsys, wrong, hint):
    message = refusal(capsys, wrong)
    assert f"unknown option {wrong.partition('=')[0]}" in message
    assert hint in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("labls: 1pct", "unknown option labls; did you mean labels?"),
        (
            "pretrain:\n  tempature: 1",
            "unknown option pretrain.tempature; did you mean pretrain.temperature?",
        ),
        (
            "pretran:\n  temperature: 1",
            "unknown option pretran.temperature; did you mean pretrain.temperature?",
        ),
    ],
)
def test_misspelt_key_in_a_recipe(capsys, tmp_path, text, says):
    assert says in refusal(capsys, "--config", recipe(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: three", "seed must be a whole number, got three"),
        ("seed: true", "seed must be a whole number, got True"),
        ("labels: 10", "labels must be text, got 10"),
        ("pretrain:\n  batch_size: 3.7", "pretrain.batch_size must be a whole number, got 3.7"),
        ("pretrain:\n  temperature: hot", "pretrain.temperature must be a number, got hot"),
        ("finetune:\n  steps: many", "finetune.steps must be a whole number or null, got many"),
        (
            "pretrain:\n  optimizer: adam",
            "pretrain.optimizer must be one of 'lars', 'sgd', 'adamw', got 'adam'",
        ),
        ("precision: no", "precision must be one of 'auto', 'no', 'bf16', got False"),
        ("distill:\n  self_first: 3", "distill.self_first must be true or false, got 3"),
        ("data:\n  mean: [1, 2]", "data.mean must be tuple with 3 elements"),
        ("pretrain: 3", "pretrain must be a section of options, got 3"),
        ("labels: 1pct\npretrain:", "pretrain must be a section of options, got None"),
    ],
)
def test_wrong_type(capsys, tmp_path, text, says):
    assert says in refusal(capsys, "--config", recipe(tmp_path, text))


def test_wrong_type_in_a_flag(capsys):
    assert "seed must be a whole number, got three" in refusal(capsys, "--seed=three")
    assert "finetune.steps must be a whole number or null" in refusal(capsys, "--finetune.steps=x")
    assert "pretrain.learning_rate must be a number" in refusal(
        capsys, "--pretrain.learning_rate=nan"
    )
    assert "'1pct' belongs to no option" in refusal(capsys, "1pct")
    assert "--labels" in refusal(capsys, "--labels")


@pytest.mark.parametrize("text", ["", "- a\n- b", "just words", "a: [1", "\t: x", "pretrain:"])
def test_what_is_no_recipe(capsys, tmp_path, text):
    assert "the recipe is not YAML of the form" in refusal(
        capsys, "--config", recipe(tmp_path, text)
    )


def test_recipe_that_is_not_there(capsys, tmp_path):
    assert "nowhere.yaml" in refusal(capsys, "--config", tmp_path / "nowhere.yaml")
    assert "not a file" in refusal(capsys, "--config", tmp_path)
    assert "--config" in refusal(capsys, "--labels=1pct", "--config")


RANGES = {
    "run": (["a/b", "..", "", ".x"], "letters, digits"),
    "labels": (["1%", "pct", "..pct", "1.2.3pct", "-1pct", "labels.json"], "1pct, 10pct, 100pct"),
    "seed": ([-1, 2**32], "0 to 2**32 - 1"),
    "force": (["pretain", "finetune,linaer"], "pretrain, supervised"),
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
        shown = str(value).split(",")[-1].strip("[]")
        assert shown in message.partition("got ")[2]


def test_head_layer_out_of_range(capsys):
    message = refusal(capsys, "--finetune.from_layer=4")
    assert "finetune.from_layer must be 0 to 3 (model.head_layers), got 4" in message
    assert "0 to 1" in refusal(capsys, "--linear.from_layer=2", "--model.head_layers=1")
    # another artifact has its own head
    assert load("--finetune.from_layer=4", "--finetune.init=elsewhere").finetune.from_layer == 4


def test_label_values():
    for value in ("1pct", "100pct", "0.5pct", "7perclass", "a b/list.txt", "/x/labels.csv"):
        assert load("--labels", value).labels == value


# ---------------------------------------------------------------------------------------- the rest
def test_content_is_what_decides_the_result():
    before, after = Finetune(), Finetune(log_every_steps=1, checkpoint_every_steps=2, init="x")
    assert hashed_settings(before, "finetune") == hashed_settings(after, "finetune")
    assert hashed_settings(before, "finetune") != hashed_settings(
        Finetune(learning_rate=9), "finetune"
    )
    assert hashed_settings(before, "finetune")["finetune.encoder_rate"] == 1.0
    assert "section" not in hashed_settings(before)


@pytest.mark.parametrize("main", COMMANDS, ids=lambda main: main.__module__)
def test_help_is_grouped(main, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: ")
    assert "[--config RECIPE.yaml]" in text
    for section in SECTIONS:  # spelt out, or named in one line
        assert text.count(f"\n  --{section}.*") + text.count(f"\n--{section}.*") == 1
    assert "type: " not in text
    assert len(text.splitlines()) < 140
    assert max(map(len, text.splitlines())) < 100


def test_help_of_the_pipeline_fits_a_page(capsys):
    with pytest.raises(SystemExit):
        pipeline.main(["--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 70
    assert "--pretrain.temperature" not in text


@pytest.mark.parametrize("section", SECTIONS)
def test_help_of_a_section(section, capsys):
    """Every option, with a word of explanation and its default."""
    with pytest.raises(SystemExit):
        pipeline.main(["--help", section])
    text = " ".join(capsys.readouterr().out.split())
    for option in dataclasses.fields(getattr(Config(), section)):
        rest = text.partition(f"--{section}.{option.name} ")[2]
        assert rest, option.name
        before_next = rest.partition(f" --{section}.")[0].partition("more options")[0]
        assert "(default: " in before_next
        assert len(before_next.partition("(default")[0].split()) > 2


# ------------------------------------------------------------------------ what follows from methods
def test_kept_layers_are_the_papers_unless_set():
    assert [Finetune().kept_layers(labels, 1000) for labels in (10, 100, 101)] == [1, 1, 0]
    assert Finetune(from_layer=2).kept_layers(1000, 1000) == 2
    assert Config().linear.kept_layers(10, 1000) == Config().supervised.kept_layers(10, 1000) == 0


def test_what_a_method_trains_and_starts_from():
    config = load("--distill.student=resnet18")
    assert config.training_of("supervised-student") is config.supervised
    assert config.training_of("self-distill") is config.distill
    assert config.encoder_of("finetune") == config.model.encoder
    assert config.encoder_of("distill") == config.encoder_of("supervised-student") == "resnet18"
    assert config.parent_of("supervised") is config.parent_of("pretrain") is None
    assert config.parent_of("finetune") == config.parent_of("linear") == "pretrain"
    assert config.parent_of("distill") == config.parent_of("self-distill") == "finetune"
    twice = load("--distill.self_first=true")
    assert twice.parent_of("distill") == "self-distill"
    assert twice.parent_of("self-distill") == "finetune"


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
