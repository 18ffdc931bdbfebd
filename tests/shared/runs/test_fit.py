"""The recipe for own images: sizes, batches, lengths, the clock, and that the choice is kept."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from shared.config.command_line import read_command_line
from shared.config.methods import METHODS
from shared.config.schema import RECIPES
from shared.data.images import MEMORY_LIMIT
from shared.data.sources import OPENED
from shared.runs import fit as fitting
from shared.runs.cost import Counts
from shared.runs.fit import (
    Look,
    Pace,
    fit_batches,
    fit_size,
    fit_teacher,
    fit_warmups,
    lengthen,
    note_on_few,
    share_out,
)
from shared.runs.forecast import StagePlan
from shared.runs.redo import same_run
from shared.runtime.errors import UserError
from shared.training.schedule import schedule_of
from stages import finetune, pretrain
from tests.support.photo_run import run
from tests.support.photos import class_folders, make_folder, process

CPU = SimpleNamespace(device=torch.device("cpu"), mixed_precision="no", num_processes=1)
BRIEF = ["pretrain", "supervised", "linear", "finetune", "distill"]


def line(*flags: str):
    return read_command_line(["--data.train=own", *flags], "test", "")


def look(side=400, longer=600, equal=False, **counts) -> Look:
    usual = {"train": 1600, "labeled": 160, "test": 400, "classes": 4}
    return Look(Counts(**usual | counts), side, longer, equal, "10pct")


def plan(stage: str, seconds: float, fixed: float = 1.0, steps: int = 100) -> StagePlan:
    return StagePlan(stage, 1600, steps, 64, 10, 1e9, seconds + fixed, fixed, 1e9, 1e6, 64)


# ------------------------------------------------------------------------------------------ sizes
@pytest.mark.parametrize(
    ("side", "equal", "size", "cache"),
    [
        (400, False, 32, 59),
        (40, False, 32, 59),
        (400, True, 32, 59),
        (28, True, 28, None),
        (20, False, 20, 37),
        (8, True, 8, None),
        (3, True, 8, None),
        (0, False, 8, 8),
    ],
)
def test_no_more_pixels_than_the_images_have(side, equal, size, cache):
    command = line()
    seen = look(side, int(1.5 * side), equal)
    data = fit_size(command.config, command.flags, seen, on_cpu=True).data
    assert (data.image_size, data.cache) == (size, cache)
    assert MEMORY_LIMIT > 3 * 28 * 42 * 2000


@pytest.mark.parametrize("side", [16, 12, 8])
def test_tiny_images_are_cropped_in_fractions_of_a_pixel(side):
    command = line()
    augment = fit_size(command.config, command.flags, look(side, side, True), True).augment
    assert (augment.crop_area == (1, 1)) == (side < 16)
    assert (augment.zoom_area != (1, 1)) == (side < 16)


@pytest.mark.parametrize(
    "flag",
    ["--data.image_size=64", "--data.cache=100", "--data.workers=1", "--data.loading=memory"],
)
def test_flags_win_over_what_the_images_ask(flag):
    command = line(flag)
    fitted = fit_size(command.config, command.flags, look(8, 8, True), on_cpu=True)
    option, value = flag.removeprefix("--").split("=")
    assert str(fitted.option(option)) == value


def test_copies_of_very_many_images_are_small():
    command = line()
    fitted = fit_size(command.config, command.flags, look(train=10**9), on_cpu=True)
    assert fitted.data.cache == 32


@pytest.fixture
def light(monkeypatch):
    """Networks whose activations fit into any memory."""
    monkeypatch.setattr(fitting, "cost_of", lambda *_: SimpleNamespace(activations=1000))


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize(("train", "batch"), [(1600, 128), (320, 128), (100, 32), (20, 8), (3, 4)])
def test_batches_of_at_most_half_the_images(train, batch):
    command = line()
    counts = Counts(train, 3, 5, 2)
    fitted = fit_batches(command.config, command.flags, counts, CPU)
    assert fitted.pretrain.batch_size == fitted.distill.batch_size == batch
    assert fitted.finetune.batch_size == 8
    kept = line("--pretrain.batch_size=100")
    assert fit_batches(kept.config, kept.flags, counts, CPU).pretrain.batch_size == 100


def test_a_batch_that_does_not_fit_into_memory_passes_in_parts(monkeypatch):
    command = line()
    monkeypatch.setattr(fitting, "free_bytes", lambda accelerator: 2**24)
    monkeypatch.setattr(fitting, "cost_of", lambda *_: SimpleNamespace(activations=2**18))
    fitted = fit_batches(command.config, command.flags, look().counts, CPU)
    assert fitted.pretrain.batch_size == 128
    assert fitted.pretrain.micro_batch < 128
    assert fitted.distill.batch_size < 128


@pytest.mark.parametrize(("batch", "part"), [(100, 10), (96, 12), (128, 8), (77, 11), (101, None)])
def test_parts_divide_any_batch_evenly(monkeypatch, batch, part):
    """There is room for 15 images. Parts of a prime number of images there are none."""
    command = line(f"--pretrain.batch_size={batch}", "--pretrain.memory=0")
    monkeypatch.setattr(fitting, "free_bytes", lambda accelerator: 15.5 * 2**18 / 0.6)
    monkeypatch.setattr(fitting, "cost_of", lambda *_: SimpleNamespace(activations=2**18))
    fitted = fit_batches(command.config, command.flags, look().counts, CPU)
    assert (fitted.pretrain.batch_size, fitted.pretrain.micro_batch) == (batch, part)


@pytest.mark.parametrize(
    ("flag", "warmup"), [("--pretrain.epochs=5", 0.5), ("--pretrain.steps=8", 0.032 * 8 / 4)]
)
def test_a_warmup_that_does_not_fit_shrinks(flag, warmup):
    command = line(flag, "--pretrain.batch_size=64")
    counts = Counts(1000, 10, 10, 2)
    fitted = fit_warmups(command.config, command.flags, counts).pretrain
    assert fitted.warmup_epochs == pytest.approx(warmup, abs=0.02)
    asked = line(flag, "--pretrain.warmup_epochs=7")
    assert fit_warmups(asked.config, asked.flags, counts).pretrain.warmup_epochs == 7


# ---------------------------------------------------------------------------------------- lengths
@given(
    st.lists(st.floats(0.1, 1000), min_size=5, max_size=5),
    st.floats(0, 5000),
    st.sets(st.sampled_from(BRIEF)),
    st.sampled_from([1.0, 5.0]),
)
def test_stages_share_the_room_and_never_exceed_it(seconds, room, kept, longest):
    plans = [plan(name, each) for name, each in zip(BRIEF, seconds, strict=True)]
    flags = [f"{name}.epochs" for name in kept]
    factors = share_out(plans, flags, room, longest)
    assert not kept & factors.keys()
    spent = sum(p.fixed_seconds + factors.get(p.stage, 1) * (p.seconds - 1) for p in plans)
    least = 5 + sum(p.seconds - 1 for p in plans if p.stage in kept)
    assert spent <= max(room, least) + 1e-6
    if factors and room > least:  # all of it is used, unless the longest length is reached
        full = all(factors.get(name, longest) == longest for name in ("pretrain", "distill"))
        assert spent == pytest.approx(room) or full
    assert {name for name in factors if factors[name] > 1} <= {"pretrain", "distill"}


@pytest.mark.parametrize(
    ("room", "factor"), [(1000, 1), (170, 1), (166, 1), (86, 0.5), (46, 0.25), (0, 0)]
)
def test_stages_on_few_labels_keep_their_length_in_a_quarter_of_the_time(room, factor):
    """They take 40 s, the others 4,000 s; all have 6 s that do not depend on the length."""
    few = {"supervised": 10, "linear": 10, "finetune": 20}
    plans = [plan("pretrain", 3000), *(plan(*each) for each in few.items()), plan("distill", 1000)]
    factors = share_out(plans, [], room, 5.0)
    for name in few:
        assert factors[name] == pytest.approx(factor, abs=0.03)
    assert factors["pretrain"] == factors["distill"] < 0.3


@pytest.mark.parametrize(("epochs", "times"), [(5, "4.0"), (13.3, "1.5"), (19.9, "1.1")])
def test_few_epochs_ask_for_more_than_the_budget(epochs, times):
    said = note_on_few(epochs)
    assert said.startswith(f"note: {epochs:g} epochs of pretraining are few; for 20 give")
    assert said.endswith(f"about {times} times the budget")


@pytest.mark.parametrize(
    ("factor", "epochs", "steps"),
    [(0.5, 200, 300), (0.333, 130, 190), (1e-4, 0.04, 1), (2, 800, 1200)],
)
def test_lengths_have_two_digits_and_at_least_one_step(factor, epochs, steps):
    command = line()
    fitted = lengthen(command.config, command.flags, {"pretrain": factor, "supervised": factor})
    assert fitted.pretrain.epochs == pytest.approx(epochs)
    assert fitted.supervised.steps == steps
    kept = line("--pretrain.epochs=7", "--supervised.steps=8")
    fitted = lengthen(kept.config, kept.flags, {"pretrain": factor, "supervised": factor})
    assert (fitted.pretrain.epochs, fitted.supervised.steps) == (7, 8)


# ---------------------------------------------------------------------------------------- the clock
@pytest.mark.parametrize(
    ("budget", "took", "expected"),
    [
        (202, 100, 100),
        (300, 200, 48),
        (300, 290, 2.1),
        (300, 400, 1),
        (300, 50, 200),
        (300, 100, 170),
    ],
)
def test_the_last_stage_keeps_the_budget(tmp_path, monkeypatch, capsys, budget, took, expected):
    """Pretraining was planned for 100 s; distillation of 100 epochs for 101 s."""
    now = SimpleNamespace(time=1000.0)
    monkeypatch.setattr(fitting.time, "time", lambda: now.time)
    command = line(f"--output={tmp_path}", "--distill.epochs=100")
    accelerator = SimpleNamespace(is_main_process=True, print=print)
    plans = [plan("pretrain", 99), replace(plan("distill", 100, steps=1250), batch_size=128)]
    pace = Pace(plans, 1000.0 + budget, {"data.train", "output"}, look())
    first = pace.before("pretrain", command.config, accelerator)
    assert first == command.config
    now.time += took
    last = pace.before("distill", first, accelerator)
    assert last.distill.epochs == pytest.approx(expected, rel=0.02)
    changed = last != first
    assert ("now, to end within the budget" in capsys.readouterr().out) == changed
    if changed:
        kept = yaml.safe_load((last.folder / "recipe.yaml").read_text())
        assert kept["distill"]["epochs"] == last.distill.epochs


@pytest.mark.parametrize(
    ("budget", "took", "steps"),
    [
        (300, 270, 100),  # 20 s of 300 are left
        (300, 100, 100),
        (90, 100, 77),  # none is left; a quarter is 22.5 s
        (300, 400, 64),  # four times as slow: a quarter is worth 18.75 s
        (60, 400, 12),
    ],
)
def test_a_slow_pretraining_spares_the_stages_on_few_labels(
    tmp_path, monkeypatch, budget, took, steps
):
    """Pretraining was planned for 100 s, fine-tuning for 29 s, distillation for 100 s."""
    now = SimpleNamespace(time=1000.0)
    monkeypatch.setattr(fitting.time, "time", lambda: now.time)
    command = line(f"--output={tmp_path}", "--finetune.steps=100")
    plans = [plan("pretrain", 99), plan("finetune", 29), plan("distill", 99)]
    pace = Pace(plans, 1000.0 + budget, {"pretrain.steps"}, look())
    first = pace.before("pretrain", command.config, process())
    now.time += took
    then = pace.before("finetune", first, process())
    assert then.finetune.steps == pytest.approx(steps, abs=2)
    now.time += 30
    last = pace.before("distill", then, process())
    assert last.finetune == then.finetune
    assert last.distill.epochs < (20 if took > 100 else 2 * command.config.distill.epochs)


@pytest.mark.parametrize("reason", ["flag", "begun", "another method"])
def test_what_was_asked_for_or_begun_keeps_its_length(tmp_path, reason):
    flags = {"supervised.steps"} if reason == "flag" else set()
    command = line(f"--output={tmp_path}")
    if reason == "begun":
        command.config.folder_of("supervised").mkdir(parents=True)
    pace = Pace([plan("supervised", 1000)], 0.0, flags, look())
    method = "linear" if reason == "another method" else "supervised-student"
    pace.plans |= {"supervised-student": plan("supervised-student", 100)}
    assert pace.before(method, command.config, process()) == command.config


@pytest.mark.parametrize(
    ("flags", "labels", "classes", "teacher"),
    [
        ([], 250, 14, "features-logistic"),
        ([], 5_000, 14, "finetune"),
        ([], 250, 101, "finetune"),
        (["--distill.taught_by=features-logistic"], 5_000, 14, "features-logistic"),
    ],
)
def test_the_regression_teaches_where_labels_are_few(flags, labels, classes, teacher):
    command = line(*flags)
    counts = Counts(9_000, labels, 10, classes)
    assert fit_teacher(command.config, command.flags, counts).distill.taught_by == teacher


# --------------------------------------------------------------------------------- whole command
SHORT = [
    "--model.encoder=simclr_resnet8_1x_sk0",
    "--model.head_width=8",
    "--model.head_out=8",
    "--precision=no",
    "--threads=1",
    *(f"--{name}.steps=2" for name in BRIEF),
]


@pytest.fixture
def photos(tmp_path):
    for index, size in enumerate([(40, 30), (30, 50), (70, 64)]):
        class_folders(tmp_path / "my photos" / f"{index}", 10, size=size)
    return tmp_path / "my photos"


def call(photos, *flags: str) -> int:
    OPENED.clear()
    places = [f"--output={photos.parent / 'out'}", f"--data.cache_folder={photos.parent / 'cache'}"]
    return pipeline.main([f"--data.train={photos}", *places, *flags])


@pytest.mark.slow
def test_the_choice_is_made_once_and_kept(photos, capsys, monkeypatch):
    assert call(photos, *SHORT) == 0
    printed = capsys.readouterr().out
    run = photos.parent / "out" / "my-photos"
    assert "settings fitted to" in printed
    # 18 test images: any row whose model is saved may have the most of them right
    assert re.search(rf"python -m stages\.predict {run}/[a-z-]+-25pct-seed0 IMAGE", printed)
    assert f"distill: {run}/features-logistic-25pct-seed0 into" in printed
    kept = yaml.safe_load((run / "recipe.yaml").read_text())
    assert kept["data"]["image_size"] == 30  # the smallest have 40 x 30 pixels, most 50 x 30
    assert kept["data"]["cache"] == 55
    assert kept["pretrain"]["batch_size"] == 32  # of 72 images
    assert kept["labels"] == "25pct"  # 10pct would be one label a class
    monkeypatch.setattr(fitting, "look_at", lambda *_: pytest.fail("it was fitted again"))
    changed = [flag for flag in SHORT if not flag.startswith("--finetune")]
    assert call(photos, "--seed=1", "--labels=3perclass") == 0
    printed = capsys.readouterr().out
    assert "settings as chosen before" in printed
    assert "pretrain: already done" in printed
    assert call(photos, *changed, "--finetune.steps=3") == 2  # flags win, and are compared
    assert "--force finetune" in capsys.readouterr().err
    assert "seed" not in yaml.safe_load((run / "recipe.yaml").read_text())


# ------------------------------------------------------------------------ images without a label
@pytest.fixture
def unlabeled(tmp_path):
    return make_folder(tmp_path / "new", [f"{i}.png" for i in range(24)], size=(40, 36))


@pytest.mark.parametrize("main", [pipeline.main, pretrain.main])
def test_images_without_labels_are_pretrained_alone(unlabeled, capsys, monkeypatch, main):
    flags = [f"--data.train={unlabeled}", f"--output={unlabeled.parent / 'out'}"]
    own = ["--distill.student=simclr_resnet14_1x_sk0", *SHORT[:5], "--pretrain.steps=2"]
    own.append("--data.workers=0")
    assert main([*flags, *own, f"--data.cache_folder={unlabeled.parent}"]) == 0
    printed = capsys.readouterr().out
    assert "24 images for training, for stage 1 alone, without labels" in printed
    run = unlabeled.parent / "out/new"
    if main is pipeline.main:
        assert f"python -m stages.suggest {run} --budget 50" in printed
        assert f"--output {run.parent} --labels {run}/to_label.csv" in printed
    kept = yaml.safe_load((run / "recipe.yaml").read_text())
    assert "labels" not in kept
    assert (kept["pretrain"]["batch_size"], kept["data"]["image_size"]) == (8, 32)
    assert kept["distill"] == {"student": "simclr_resnet14_1x_sk0"}
    made = (run / "pretrain/meta.json").stat().st_mtime_ns

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "fit", lambda *_: pytest.fail("fitted again"))
        assert pipeline.main(flags) == 0
    assert "pretrain: already done" in capsys.readouterr().out
    assert finetune.main([*flags, "--labels=x.csv"]) == 2
    assert "settings: small_machine.yaml as it is; pipeline.py fits" in capsys.readouterr().out

    table = unlabeled.parent / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(20)))
    seen = []
    monkeypatch.setattr(pipeline, "train", lambda config, *_: seen.append(config))
    lengths = [flag for flag in SHORT[5:] if not flag.startswith("--pretrain")]
    assert pipeline.main([*flags, f"--labels={table}", *lengths]) == 0
    printed = capsys.readouterr().out
    assert "of 2 classes" in printed
    (config,) = seen
    assert (config.pretrain.batch_size, config.pretrain.steps) == (8, 2)
    assert config.distill.student == "simclr_resnet14_1x_sk0"
    assert yaml.safe_load((run / "recipe.yaml").read_text())["labels"] == "10pct"
    assert (run / "pretrain/meta.json").stat().st_mtime_ns == made

    (run / "recipe.yaml").unlink()  # lost: another choice would only be refused
    labeled = [f"--labels={table}"] if main is pipeline.main else []
    assert main([*flags, "--precision=no", *labeled]) == 2
    error = capsys.readouterr().err
    assert f"{run}/recipe.yaml is missing, which says the settings that pretrain were" in error
    assert f"go on with python pipeline.py --config {run}/config.yaml" in error
    assert not (run / "recipe.yaml").exists()
    assert pipeline.main([f"--config={run}/config.yaml", f"--labels={table}"]) == 0
    assert seen[-1].pretrain == config.pretrain


@pytest.mark.parametrize("main", [pipeline.main, pretrain.main])
@pytest.mark.parametrize("theirs", ["labels: 5pct\n", "pretrain:\n  epochs: 7\n"])
def test_a_choice_of_another_process_meanwhile_stays(unlabeled, capsys, monkeypatch, main, theirs):
    kept = unlabeled.parent / "out/new/recipe.yaml"
    flags = [f"--data.train={unlabeled}", f"--output={kept.parents[1]}", *SHORT[:5]]

    def measured(config, *_):
        kept.parent.mkdir(parents=True)
        kept.write_text(theirs)
        return config, [plan("pretrain", 9)]

    monkeypatch.setattr(fitting, "fit_lengths", measured)
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "another process has chosen the settings of this run" in error
    assert kept.read_text() == theirs
    assert [file.name for file in kept.parent.iterdir()] == ["recipe.yaml"]


def test_a_stopped_pretraining_goes_on_by_the_same_command(unlabeled, capsys, monkeypatch):
    flags = [f"--data.train={unlabeled}", f"--output={unlabeled.parent / 'out'}", *SHORT[:5]]
    flags += ["--data.workers=0", f"--data.cache_folder={unlabeled.parent}", "--budget=5min"]
    monkeypatch.setattr(fitting, "fit_threads", lambda config, *_: config)
    monkeypatch.setattr(fitting, "fit_lengths", lambda config, *_: (config, [plan("pretrain", 9)]))
    monkeypatch.setattr(pretrain, "forecast", lambda *_: print("a forecast"))

    assert pretrain.main([*flags, "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "not kept, as it is a plan" in printed
    assert printed.rstrip().endswith("a forecast")
    run = unlabeled.parent / "out/new"
    assert not run.exists()

    monkeypatch.setattr(pretrain, "run", lambda *_: print("it trains"))
    said = "settings fitted to"
    for _ in range(3):  # then after a stop, then when it is done
        assert pretrain.main(flags) == 0
        printed = capsys.readouterr().out
        assert said in printed
        assert "it trains" in printed
        said = f"settings as chosen before: {run}/recipe.yaml; --budget was for that choice"
    assert pretrain.main([*flags, "--plan"]) == 0
    assert "it trains" not in capsys.readouterr().out
    assert pretrain.main([*flags, f"--config={run / 'recipe.yaml'}"]) == 2
    assert "without --config" in capsys.readouterr().err


@pytest.mark.parametrize("origin", ["open", "begun"])
def test_of_two_first_choices_one_is_kept(tmp_path, origin):
    first, second = "labels: 5pct\n", "pretrain:\n  epochs: 7\n"
    kept = tmp_path / "own/recipe.yaml"
    kept.parent.mkdir()
    if origin == "begun":
        kept.write_text(second)
    command = line(f"--output={tmp_path}")
    assert command.origin == origin
    fitting.keep_first(command, replace(command.config, plan=True), "10pct", process())
    assert kept.exists() == (origin == "begun")
    for other in [first] if origin == "begun" else [first, second]:
        kept.write_text(other)  # meanwhile
        with pytest.raises(UserError, match="another process has chosen the settings of this run"):
            fitting.keep_first(command, command.config, "10pct", process())
        assert kept.read_text() == other
    kept.unlink()
    command = line(f"--output={tmp_path}")
    fitting.keep_first(command, command.config, None, process())
    again = line(f"--output={tmp_path}")
    assert again.origin == "begun"
    fitting.keep_first(again, again.config, "10pct", process())
    assert line(f"--output={tmp_path}").origin == "kept"
    assert [file.name for file in kept.parent.iterdir()] == ["recipe.yaml"]


def test_only_without_a_recipe_missing_labels_mean_stage_1_alone(unlabeled, tmp_path, monkeypatch):
    own = [f"--data.train={unlabeled}", f"--output={tmp_path}"]
    for columns, cell in (("text", "a caption"), ("species", "cat"), ("label", "-1")):
        rows = "".join(f"{i}.png,{cell}\n" for i in range(24))
        (unlabeled / "metadata.csv").write_text(f"file_name,{columns}\n{rows}")
        assert pipeline.lacks_labels(read_command_line(own, "", ""))
    (unlabeled / "metadata.csv").unlink()
    assert pipeline.lacks_labels(read_command_line(own, "", ""))
    monkeypatch.setattr("shared.data.sources.look_at", lambda *_: pytest.fail("the folder is read"))
    recipe = tmp_path / "r.yaml"
    for text in ("labels: 10pct\n", "seed: 1\n", f"data:\n  train: {unlabeled}\n"):
        recipe.write_text(text)
        assert not pipeline.lacks_labels(read_command_line([*own, f"--config={recipe}"], "", ""))


@pytest.mark.parametrize(
    "flags", [["--labels=10pct"], ["--data.label_column=species"], ["--table=x"]]
)
def test_labels_that_were_asked_for_are_missed(unlabeled, tmp_path, capsys, flags):
    rows = "".join(f"{i}.png,a caption\n" for i in range(24))
    (unlabeled / "metadata.csv").write_text("file_name,caption\n" + rows)
    assert (
        pipeline.main(
            [f"--data.train={unlabeled}", f"--output={tmp_path / 'runs'}", *flags, "--precision=no"]
        )
        == 2
    )
    assert not (tmp_path / "runs/new").exists()


def test_a_command_names_what_the_run_needs(unlabeled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read_command_line(["--data.train=my new"], "", "").config
    assert same_run(config) == "python pipeline.py --config runs/my-new/config.yaml"
    config.folder.mkdir(parents=True)
    (config.folder / "recipe.yaml").write_text("run: my-new")
    assert same_run(config) == "python pipeline.py --data.train 'my new'"
    elsewhere = replace(config, output=str(tmp_path / "runs"))
    assert same_run(elsewhere).endswith(f"'my new' --output {tmp_path / 'runs'}")


@pytest.mark.parametrize(
    ("one", "all_of_them", "flags", "threads"),
    [(10, 5, (), 4), (10, 9.5, (), 1), (10, 80, (), 1), (10, 80, ("threads",), 0)],
)
def test_more_threads_only_where_they_are_faster(monkeypatch, one, all_of_them, flags, threads):
    known = {"now": 4}
    monkeypatch.setattr(torch, "get_num_threads", lambda: known["now"])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: known.update(now=number))

    def measured(config, accelerator, stages, seconds):
        assert list(stages) == ["pretrain"]
        return [plan("pretrain", one if known["now"] == 1 else all_of_them)], None, ""

    monkeypatch.setattr(fitting, "measure", measured)
    stages = {"pretrain": None, "distill": None}
    fitted = fitting.fit_threads(line().config, flags, CPU, stages)
    assert fitted.threads == threads
    assert known["now"] == (threads or 4)


def test_a_plan_and_a_refusal_keep_nothing(photos, capsys, monkeypatch):
    def measured(config, *_):
        """Each stage takes 500 s."""
        images = {name: 72 if METHODS[name].all_images else 18 for name in BRIEF}
        steps = {name: schedule_of(config.training_of(name), images[name]).steps for name in BRIEF}
        plans = [replace(plan(name, 499), steps=steps[name], images=images[name]) for name in BRIEF]
        return plans, None, ""

    monkeypatch.setattr(fitting, "measure", measured)
    monkeypatch.setattr("shared.runs.forecast.forecast", lambda *_: None)
    assert call(photos, "--plan", "--budget=30min", "--precision=no", "--threads=1") == 0
    printed = capsys.readouterr().out
    expected = float(printed.partition("Expected: ")[2].partition(" min")[0])
    assert 25 < expected <= 27
    assert "not kept, as it is a plan" in printed
    for budget in ("7s", "0.1s"):
        assert call(photos, f"--budget={budget}", "--precision=no", "--threads=1") == 2
        assert f"--budget {budget} is too short" in capsys.readouterr().err
    # enough for a pass over all images, and for 2 % of the stages on the labels
    assert call(photos, "--budget=200s", "--precision=no", "--threads=1") == 2
    error = capsys.readouterr().err
    assert "is too short for the stages on the labels: less than 10% of their length" in error
    assert not (photos.parent / "out").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--budget=1h"], "--budget chooses the lengths of a run on own images"),
        (["--data.train=x", "--budget=soon"], "budget must be like 30min, 1.5h or 90s"),
        (["--budget=0min"], "budget must be like 30min, 1.5h or 90s"),
        (["--data.train=x", "--budget=2h"], "neither --config nor --table"),
    ],
)
def test_budgets_that_are_refused(tmp_path, capsys, flags, says):
    assert run(pipeline.main, f"--output={tmp_path}", *flags) == 2
    assert says in capsys.readouterr().err


def test_a_budget_on_several_processes_is_refused():
    with pytest.raises(UserError, match="--budget measures one process"):
        fitting.fit(line("--budget=1h"), SimpleNamespace(num_processes=2), {}, 0.0)


def test_a_recipe_that_takes_days_on_a_cpu_is_warned_of(monkeypatch):
    """README's command on 2,434 pictures: 200 epochs of ResNet-50 at 224 pixels, batches of 256."""
    cost = SimpleNamespace(update=48.6e9, activations=170 * 2**20)
    monkeypatch.setattr(fitting, "cost_of", lambda *_: cost)
    monkeypatch.setattr(fitting.os, "cpu_count", lambda: 2)
    memory = SimpleNamespace(total=24 * 2**30)
    monkeypatch.setattr(fitting.psutil, "virtual_memory", lambda: memory)
    recipe = [f"--config={RECIPES / 'image_folder.yaml'}"]
    counts = Counts(2434, 240, 600, 14)
    time, room = fitting.warnings_for(line(*recipe).config, counts, CPU)
    assert "13.1 hours or more" in time
    assert "42 GiB of memory or more, here are 24; without --config" in room
    assert not fitting.warnings_for(line().config, counts, CPU)  # small
    short = line(
        *recipe, "--pretrain.steps=10", "--pretrain.warmup_epochs=0", "--pretrain.batch_size=8"
    ).config
    assert not fitting.warnings_for(replace(short), counts, CPU)
    assert not fitting.warnings_for(line(*recipe).config, counts, process_on("cuda"))


def process_on(device: str) -> SimpleNamespace:
    return SimpleNamespace(device=torch.device(device))


def test_a_gpu_takes_the_photo_recipe(photos, monkeypatch):
    monkeypatch.setattr(fitting.torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(fitting, "free_bytes", lambda accelerator: 2**33)
    monkeypatch.setattr(fitting, "broadcast_object_list", lambda objects: objects)
    monkeypatch.setattr(fitting, "cost_of", lambda *_: SimpleNamespace(activations=2**27))
    monkeypatch.setattr(fitting, "look_at", lambda *_: look(equal=True))
    gpu = process(of=2)
    gpu.device, gpu.mixed_precision = torch.device("cuda"), "bf16"
    gpu.print = print
    command = read_command_line([f"--data.train={photos}", f"--output={photos.parent}"], "", "")
    config, pace = fitting.fit(command, gpu, dict.fromkeys(METHODS), 0.0)
    assert pace is None
    assert config.model.encoder == "simclr_resnet50_1x_sk0"
    assert (config.data.image_size, config.data.cache, config.run) == (224, None, "my-photos")
    assert 1 < config.pretrain.images_at_once < 256  # 16 GiB
    assert config.pretrain.batch_size == 256
