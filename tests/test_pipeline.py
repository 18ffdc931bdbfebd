"""The whole path at toy size: order, skipping, other settings, --force, the table."""

import json
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pipeline
from shared.config.methods import METHODS, made_by
from shared.data.batches import Batches
from shared.runs.results import collect
from stages import distill, finetune, pretrain, report
from tests.support.toy_run import call

STEPS = ("pretrain", "finetune", "linear", "supervised", "distill")
TRAINED = ["supervised", "supervised-student", "linear", "finetune", "distill"]
ON_DEMAND = ("published", "features-neighbours")
FOLDERS = [*(name for name in made_by("classical") if name not in ON_DEMAND), *TRAINED]


def made(output) -> dict[str, int]:
    """Which artifacts there are, and when each was finished."""
    metas = sorted((output / "digits").glob("*/meta.json"))
    return {meta.parent.name: meta.stat().st_mtime_ns for meta in metas}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    assert call(pipeline.main, output) == 0
    return output


def test_writes_every_artifact_and_row(finished):
    names = [f"{stage}-1pct-seed0" for stage in FOLDERS]
    assert sorted(made(finished)) == sorted([*names, "pretrain"])
    rows = [json.loads(line) for line in (finished / "digits/results.jsonl").open()]
    assert [row["stage"] for row in rows] == [name for name in METHODS if name in FOLDERS]
    for row in rows:
        assert row["n_labels"] == 14
        assert 0 <= row["top1"] <= row["top5"] <= 1
        assert row["parameters"] > 1_000
        if not row["stage"].endswith("svm"):  # which has no probabilities
            assert row["nll"] > 0
            assert 0 <= row["ece"] <= 1
    meta = json.loads((finished / "digits/finetune-1pct-seed0/meta.json").read_text())
    assert meta["from_layer"] == 1  # the paper's choice for 1% of the labels
    assert meta["classes"] == [str(digit) for digit in range(10)]
    assert len((finished / "digits/finetune-1pct-seed0/labels.csv").read_text().split()) == 15


def test_second_call_only_prints_the_table(finished, capsys):
    before = made(finished)
    assert call(pipeline.main, finished) == 0
    assert made(finished) == before
    printed = capsys.readouterr().out
    assert "distilled student" in printed
    assert "1pct: Deploy: " in printed
    assert "retraining " in printed.partition("Deploy: ")[2]
    assert "steps of" not in printed  # no stage announced itself


def test_other_labels_and_seeds_share_the_pretraining(finished):
    before = made(finished)
    assert call(pipeline.main, finished, "--labels=2perclass", "--seed=1") == 0
    after = made(finished)
    assert after["pretrain"] == before["pretrain"]
    assert set(after) - set(before) == {f"{stage}-2perclass-seed1" for stage in FOLDERS}


def test_other_settings_stop_and_name_both_values(finished, capsys):
    before = made(finished)
    assert call(pipeline.main, finished, "--finetune.learning_rate=0.5") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "finetune.learning_rate=" in message
    assert "now it is 0.5" in message
    assert "--force finetune" in message
    assert made(finished) == before


def test_settings_that_do_not_change_the_result_do_not_stop(finished):
    assert call(pipeline.main, finished, "--pretrain.log_every_steps=7", "--data.workers=1") == 0


def test_force_redoes_a_stage_and_what_is_made_from_it(finished):
    before = made(finished)
    assert call(pipeline.main, finished, "--force=finetune") == 0
    after = made(finished)
    redone = {name for name in before if after[name] != before[name]}
    assert redone == {"finetune-1pct-seed0", "distill-1pct-seed0"}


def test_rows_of_a_pretraining_that_was_redone_are_left_out(finished, tmp_path, capsys):
    """Other label sets and seeds stay on disk; the table never mixes two pretrainings."""
    shutil.copytree(finished / "digits", tmp_path / "digits")
    before = made(tmp_path)
    assert call(pretrain.main, tmp_path, "--force=pretrain") == 0
    assert report.main([str(tmp_path / "digits")]) == 0
    assert "left out" not in capsys.readouterr().err  # the same bits as before
    assert call(pretrain.main, tmp_path, "--force=pretrain", "--pretrain.seed=1") == 0
    capsys.readouterr()
    rows = collect(tmp_path / "digits")
    says = capsys.readouterr().err
    unsaved = {name for name in made_by("classical") if not METHODS[name].saved}
    without = {"supervised", "supervised-student"} | unsaved - {*ON_DEMAND}
    assert {row["stage"] for row in rows} == without
    for name in before:
        assert (name in says) == (not name.startswith(("pretrain", *without)))
    assert says.count("\n") == 1
    assert "redo them with --force distill,features-logistic,finetune,linear" in says
    assert made(tmp_path).keys() == before.keys()
    assert call(finetune.main, tmp_path, "--method=linear", "--force=linear") == 0
    assert "linear" in {row["stage"] for row in collect(tmp_path / "digits")}


def test_each_stage_alone_from_a_folder_given_by_path(finished, tmp_path):
    source = finished / "digits"
    assert call(finetune.main, tmp_path, f"--finetune.init={source / 'pretrain'}") == 0
    assert (
        call(finetune.main, tmp_path, "--method=linear", f"--linear.init={source / 'pretrain'}")
        == 0
    )
    teacher = source / "finetune-1pct-seed0"
    assert call(distill.main, tmp_path, f"--distill.teacher={teacher}") == 0
    assert sorted(made(tmp_path)) == [
        "distill-1pct-seed0",
        "finetune-1pct-seed0",
        "linear-1pct-seed0",
    ]


def test_distillation_variants(finished, tmp_path):
    """Clean teacher view, labeled loss mixed in, self-distillation first."""
    teacher = finished / "digits/finetune-1pct-seed0"
    variants = [
        "--distill.teacher_view=clean",
        "--distill.labeled_weight=0.3",
        "--distill.labeled_batch_size=8",
    ]
    assert call(distill.main, tmp_path, f"--distill.teacher={teacher}", *variants) == 0
    assert call(pipeline.main, finished, "--distill.self_first=true", "--force=distill") == 0
    made_now = made(finished)
    assert "self-distill-1pct-seed0" in made_now
    student = json.loads((finished / "digits/distill-1pct-seed0/meta.json").read_text())
    itself = json.loads((finished / "digits/self-distill-1pct-seed0/meta.json").read_text())
    assert student["settings"]["parent"] == itself["weights_sha256"]
    assert itself["encoder"] == "simclr_resnet8_1x_sk0"


def test_stages_2_and_3_use_no_colour_and_no_blur(finished, tmp_path, monkeypatch):
    """With augmentation crop, the default of both, whatever pretraining does to the images."""
    augmentations = {}
    initialise = Batches.__init__

    def remember(self, images, ids, data, augmentation, *rest, **options):
        augmentations[options["stage"]] = augmentation
        initialise(self, images, ids, data, augmentation, *rest, **options)

    monkeypatch.setattr(Batches, "__init__", remember)
    source = finished / "digits"
    options = [
        f"--finetune.init={source / 'pretrain'}",
        "--finetune.augmentation=crop",
        f"--distill.teacher={source / 'finetune-1pct-seed0'}",
        "--distill.augmentation=crop",
        "--distill.labeled_weight=0.5",
        "--augment.blur=1",
        "--augment.grayscale=1",
        "--augment.color_strength=1",
        "--augment.rotate=7",
    ]
    assert call(finetune.main, tmp_path, *options) == 0
    assert call(distill.main, tmp_path, *options) == 0
    assert augmentations.keys() == {"finetune", "distill", "distill-labeled"}
    for augmentation in augmentations.values():
        assert (augmentation.color_strength, augmentation.blur, augmentation.rotate) == (0, 0, 7)


def test_tensorboard_shows_each_stage_at_its_own_steps(tmp_path):
    options = ["--tracker=tensorboard", "--classical.enabled=false"]
    options += [f"--{s}.log_every_steps=2" for s in STEPS]
    assert call(pipeline.main, tmp_path, *options) == 0
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events)).Reload()
    for stage, steps in (("pretrain", [2, 4, 6]), ("finetune", [2, 4]), ("distill", [2, 4])):
        scalars = accumulator.Scalars(f"{stage}/loss")
        assert [scalar.step for scalar in scalars] == steps
        (folder,) = tmp_path.glob(f"digits/{stage}*")
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        assert [scalar.value for scalar in scalars] == pytest.approx([x["loss"] for x in lines])


def test_an_impossible_schedule_of_a_late_stage_stops_before_the_first(tmp_path, capsys):
    assert call(pipeline.main, tmp_path, "--distill.warmup_epochs=500") == 2
    assert "distill.warmup_epochs=500" in capsys.readouterr().err
    late = ["--distill.warmup_epochs=500", "--pretrain.warmup_epochs=600"]
    assert call(pipeline.main, tmp_path, *late) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1  # all of them at once
    assert "distill.warmup_epochs=500" in line
    assert "pretrain.warmup_epochs=600" in line
    assert not made(tmp_path)
