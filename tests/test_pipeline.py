"""The whole path at toy size: order, skipping, other settings, --force, the table."""

import json

import pytest

import pipeline
from stages import distill, finetune, pretrain

TINY = [
    "--model.encoder=simclr_resnet8_1x_sk0", "--model.head_width=32", "--model.head_out=16",
    "--pretrain.steps=6", "--pretrain.batch_size=32", "--pretrain.warmup_epochs=0",
    "--finetune.steps=4", "--linear.steps=4", "--supervised.steps=4",
    "--supervised.warmup_epochs=0", "--distill.steps=4", "--distill.batch_size=32",
    "--distill.warmup_epochs=0", "--precision=no", "--threads=1",
]  # fmt: skip
FOLDERS = ["distill", "finetune", "linear", "supervised", "supervised-student"]


def call(main, output, *more: str) -> int:
    return main([*TINY, f"--output={output}", *more])


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
    assert [row["stage"] for row in rows] == ["supervised", "supervised-student", "linear",
                                              "finetune", "distill"]  # fmt: skip
    for row in rows:
        assert row["n_labels"] == 14
        assert 0 <= row["top1"] <= row["top5"] <= 1
        assert row["nll"] > 0
        assert 0 <= row["ece"] <= 1
        assert row["parameters"] > 10_000
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


def test_each_stage_alone_from_a_folder_given_by_path(finished, tmp_path):
    source = finished / "digits"
    assert call(finetune.main, tmp_path, f"--finetune.init={source / 'pretrain'}") == 0
    assert call(
        finetune.main, tmp_path, "--method=linear", f"--linear.init={source / 'pretrain'}"
    ) == 0  # fmt: skip
    teacher = source / "finetune-1pct-seed0"
    assert call(distill.main, tmp_path, f"--distill.teacher={teacher}") == 0
    assert sorted(made(tmp_path)) == [
        "distill-1pct-seed0", "finetune-1pct-seed0", "linear-1pct-seed0",
    ]  # fmt: skip


def test_distillation_variants(finished, tmp_path):
    """Clean teacher view, labeled loss mixed in, self-distillation first."""
    teacher = finished / "digits/finetune-1pct-seed0"
    variants = ["--distill.teacher_view=clean", "--distill.labeled_weight=0.3",
                "--distill.labeled_batch_size=8"]  # fmt: skip
    assert call(distill.main, tmp_path, f"--distill.teacher={teacher}", *variants) == 0
    assert call(pipeline.main, finished, "--distill.self_first=true", "--force=distill") == 0
    made_now = made(finished)
    assert "self-distill-1pct-seed0" in made_now
    student = json.loads((finished / "digits/distill-1pct-seed0/meta.json").read_text())
    itself = json.loads((finished / "digits/self-distill-1pct-seed0/meta.json").read_text())
    assert student["settings"]["parent"] == itself["weights_sha256"]
    assert itself["encoder"] == "simclr_resnet8_1x_sk0"


def test_tensorboard_is_written_when_asked(tmp_path):
    assert call(pretrain.main, tmp_path, "--tracker=tensorboard") == 0
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_non_finite_loss_stops_before_the_update(tmp_path, capsys):
    arguments = ["--pretrain.learning_rate=1e30", "--pretrain.checkpoint_every_steps=1"]
    assert call(pretrain.main, tmp_path, *arguments) == 2
    message = capsys.readouterr().err
    assert "the loss is nan at step" in message
    assert "learning rate" in message
    assert ".safetensors" in message  # the last good checkpoint
