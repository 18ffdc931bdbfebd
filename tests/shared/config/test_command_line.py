"""Recipes, flags, what is refused and in which words, and the help."""

import dataclasses
from pathlib import Path

import pytest

import pipeline
from shared.config.command_line import override, read_command_line
from shared.config.pretext import TASK_SECTIONS
from shared.config.schema import SECTIONS, Config, dump
from stages import distill, finetune, pretrain
from tests.support.command_line import load, refusal

RECIPES = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
COMMANDS = [pipeline.main, pretrain.main, finetune.main, distill.main]


def recipe(path: Path, text: str) -> Path:
    (path / "recipe.yaml").write_text(text)
    return path / "recipe.yaml"


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


@pytest.mark.parametrize(
    ("text", "flags", "antialias"),
    [
        ("", ["--augment.antialias=true"], True),
        ("augment: {antialias: true}", [], True),
        ("augment: {antialias: true}", ["--data.antialias=false"], False),
        ("augment: {antialias: true}", ["--augment.antialias=false"], False),
        ("data: {antialias: true}", ["--augment.antialias=false"], False),
        ("data: {antialias: true}", ["--augment.flip=0"], True),
        ("augment: {antialias: false}", ["--data.antialias=true"], True),
    ],
)
def test_the_old_name_of_an_option(tmp_path, text, flags, antialias):
    config = load("--config", recipe(tmp_path, f"labels: 1pct\n{text}\n"), *flags)
    assert config.data.antialias == antialias
    assert load("--config", recipe(tmp_path, dump(config))) == config
    assert override(config, {"augment.antialias": not antialias}).data.antialias != antialias


@pytest.mark.parametrize("flags_first", [True, False])
@pytest.mark.parametrize("style", [["--config", "{}"], ["--config={}"]])
def test_flags_win_over_the_recipe(tmp_path, flags_first, style):
    path = recipe(tmp_path, "labels: 5pct\nseed: 4\npretrain:\n  temperature: 0.3\n")
    style = [part.format(path) for part in style]
    flags = ["--labels=7pct", "--pretrain.temperature", "0.7"]
    config = load(*flags, *style) if flags_first else load(*style, *flags)
    assert (config.labels, config.seed, config.pretrain.temperature) == ("7pct", 4, 0.7)
    assert config.pretrain.epochs == Config().pretrain.epochs  # the paper's where nothing is said


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
        ("pretrain:", "pretrain must be a section of options, got None"),
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


@pytest.mark.parametrize("text", ["", "- a\n- b", "just words", "a: [1", "\t: x"])
def test_what_is_no_recipe(capsys, tmp_path, text):
    assert "not YAML of the form" in refusal(capsys, "--config", recipe(tmp_path, text))


@pytest.mark.parametrize(
    "text", ["a: [1", "seed: three", "pretrain:\n  tempratur: 1", "pretrain: 3", "finetune: {"]
)
@pytest.mark.parametrize("form", ["{0}={1}", "{0} {1}"])
def test_the_recipe_that_is_wrong_is_named(capsys, tmp_path, text, form):
    path = recipe(tmp_path, text)
    line = refusal(capsys, *form.format("--config", path).split(), "--labels=2perclass")
    assert line.startswith(f"error: {path}: ")
    assert line.count(str(path)) == 1


def test_a_wrong_flag_is_not_blamed_on_the_recipe(capsys, tmp_path):
    path = recipe(tmp_path, "seed: 3")
    assert str(path) not in refusal(capsys, "--config", path, "--seed=three")


# ------------------------------------------------------------------------------------- own images
@pytest.mark.parametrize(
    ("source", "run"),
    [
        ("photos", "photos"),
        ("/data/My Photos/", "My-Photos"),
        ("a/b.parquet", "b"),
        ("zalando-datasets/fashion_mnist@train", "fashion_mnist"),
        ("imagenet:small", "imagenet"),
        ("../_x", "x"),
        ("..", "images"),
        ("Bäume", "Bäume"),
    ],
)
def test_own_images_have_the_recipe_for_photos_and_a_run_of_their_name(
    source, run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # whatever runs/ beside the code holds
    config = load(f"--data.train={source}")
    assert config.run == run
    small = load("--config", RECIPES[0].parent / "small_machine.yaml")
    assert config.pretrain == small.pretrain
    assert load(f"--data.train={source}", "--run=r").run == "r"


@pytest.mark.parametrize("output", [["--output"], ["--output="]])
def test_own_images_keep_the_recipe_of_their_run(capsys, tmp_path, output):
    kept = tmp_path / "photos" / "recipe.yaml"
    kept.parent.mkdir()
    kept.write_text("pretrain:\n  epochs: 7\nrun: another\nlabels: 50pct\n")
    place = [f"{output[0]}{tmp_path}"] if output[0][-1] == "=" else [output[0], tmp_path]
    own = ["--data.train=x/photos", *place]
    assert (load(*own).pretrain.epochs, load(*own).run, load(*own).labels) == (7, "photos", "50pct")
    assert load(*own, "--pretrain.epochs=8").pretrain.epochs == 8
    digits = RECIPES[0].parent / "digits.yaml"
    assert load(*own, "--config", digits).pretrain.epochs == 140
    kept.write_text("pretrain:\n  epochs: few")
    assert refusal(capsys, *own).startswith(f"error: {kept}: ")


def test_a_budget_is_for_the_pipeline(capsys):
    assert "--budget is for pipeline.py" in refusal(capsys, "--data.train=x", "--budget=2h")
    assert "--plan is for pipeline.py" in refusal(capsys, "--plan")
    assert "--plan is for pipeline.py" in refusal(capsys, "--data.train=x", "--plan=true")


@pytest.mark.parametrize(
    ("text", "seconds"), [("30min", 1800), ("2h", 7200), ("90s", 90), ("1.5h", 5400), ("3m", 180)]
)
def test_budgets(text, seconds):
    line = read_command_line([f"--budget={text}"], "", "")
    assert line.config.budget_seconds == seconds
    assert "budget: null" in dump(line.config)


@pytest.mark.parametrize("text", ["١٠min", "３h", "1_0s", "5", "min", "-1h"])
def test_what_is_no_budget(text, capsys):
    assert "budget" in refusal(capsys, f"--budget={text}")


def test_recipe_that_is_not_there(capsys, tmp_path):
    assert "nowhere.yaml" in refusal(capsys, "--config", tmp_path / "nowhere.yaml")
    assert "not a file" in refusal(capsys, "--config", tmp_path)
    assert "--config" in refusal(capsys, "--labels=1pct", "--config")


# -------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("main", COMMANDS, ids=lambda main: main.__module__)
def test_help_is_grouped(main, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: ")
    assert "[--config RECIPE.yaml]" in text
    assert f"one section each: {', '.join(TASK_SECTIONS)}" in " ".join(text.split())
    for section in set(SECTIONS) - set(TASK_SECTIONS):  # spelt out, or named in one line
        assert text.count(f"\n  --{section}.*") + text.count(f"\n--{section}.*") == 1
    assert "type: " not in text
    assert len(text.splitlines()) < 165
    assert max(map(len, text.splitlines())) < 100


def test_help_of_the_pipeline_fits_a_page(capsys):
    with pytest.raises(SystemExit):
        pipeline.main(["--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 75
    assert "--pretrain.temperature" not in text
    assert "python -m stages.predict runs/NAME/STAGE IMAGE" in text  # what comes next


def test_help_of_no_section_is_refused(capsys):
    assert "did you mean 'jigsaw'?" in refusal(capsys, "--help", "jigsw")
    with pytest.raises(SystemExit) as stopped:
        pipeline.main(["--help", "--labels", "10pct"])  # the value of an option is no section
    assert stopped.value.code == 0


@pytest.mark.parametrize("section", SECTIONS)
def test_help_of_a_section(section, capsys):
    """Every option, with a word of explanation and its default."""
    with pytest.raises(SystemExit):
        pipeline.main(["--help", section])
    text = " ".join(capsys.readouterr().out.split())
    assert "--run RUN" not in text  # the run's own options are another portion
    for option in dataclasses.fields(getattr(Config(), section)):
        rest = text.partition(f"--{section}.{option.name} ")[2]
        assert rest, option.name
        before_next = rest.partition(f" --{section}.")[0].partition("more options")[0]
        assert "(default: " in before_next
        assert len(before_next.partition("(default")[0].split()) > 2


HUGE = "9" * 400


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--threads=1000000000000", "threads must be at most 1,024"),
        ("--data.workers=1000000000000", "data.workers must be at most 1,024"),
        ("--pretrain.batch_size=1000000000000", "pretrain.batch_size must be at most"),
        ("--model.head_width=1000000000000", "model.head_width must be at most"),
        ("--data.image_size=1000000", "data.image_size must be at most"),
        (f"--pretrain.steps={HUGE}", "pretrain.steps must be at most"),
        (f"--pretrain.epochs={HUGE}", "pretrain.epochs must be a number of at most 308 digits"),
        ("--pretrain.epochs=1e400", "pretrain.epochs must be"),
        ("--data.std=[1e400, 1, 1]", "data.std must be at most"),
        (f"--seed={HUGE}", "seed must be 0 to 2**32 - 1"),
        (f"--labels={HUGE[:100]}perclass", "the number is too long"),
        (f"--seed={HUGE * 20}", "8,007 characters"),
        ("--labels=&a [*a]", "&a contains itself"),
        (f"--run={'a' * 300}", "is too long"),
        (f"--output={'a' * 300}", "is too long"),
        (f"--data.train={'a/' * 1600}", "is too long"),
        (f"--labels={'é' * 100}.csv", "longer than 150 bytes"),
        ("--data.train=a\0b", "has a NUL character"),
        ("--output=\udcff", "is not UTF-8"),
        ("--data.train=~no-such-user-here/x", "there is no such user"),
        ("--force=\x1b[31m\n", "force must be"),
    ],
)
def test_values_that_nothing_takes_are_one_line(argument, says, capsys):
    with pytest.raises(SystemExit) as left:
        read_command_line([argument], "p", "d")
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.endswith("\n")
    assert error[:-1].isprintable()
    assert len(error) < 2200


@pytest.mark.parametrize("option", ["finetune.learning_rate", "augment.flip", "linear.epochs"])
def test_a_number_that_no_float_holds_names_its_option(option, capsys):
    assert f"{option} must be a number of at most 308 digits" in refusal(
        capsys, f"--{option}={'9' * 400}"
    )
