"""What a stage would refuse is refused before any stage trains; what it takes is not."""

import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator

import pipeline
from shared.config.command_line import load_config
from shared.config.methods import METHODS
from shared.data.labels import draw_labels
from shared.data.sources import look_at
from shared.runs import possible
from shared.runs.possible import require_possible
from shared.runtime.errors import UserError
from tests.support.exported import artifact
from tests.support.toy_run import TINY

AS_MADE = ["--data.mean=[0.5,0.4,0.3]", "--data.std=[0.2,0.3,0.4]", "--data.antialias=false"]


def ask(method: str, output: Path, *options: str, own: tuple[Path, ...] = ()) -> None:
    config, _ = load_config([*TINY, f"--output={output}", *options], "pipeline.py", "")
    splits = look_at(config.data, config.label_set)
    labels = len(draw_labels(splits, config.label_set, 0).ids)
    require_possible(config, method, splits, labels, Accelerator(cpu=True), own)


@pytest.mark.parametrize("method", METHODS)
def test_the_usual_is_possible(method, tmp_path):
    ask(method, tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("pretrain", ["--model.encoder=test_vit"], "encoder test_vit at 8 pixels"),
        ("pretrain", ["--pretrain.warmup_epochs=999"], "pretrain.warmup_epochs=999"),
        ("pretrain", ["--checkpoint_activations=true", "--model.encoder=resnet18"], "batch norm"),
        ("finetune", ["--finetune.init=nowhere"], "--finetune.init: no such artifact folder"),
        ("linear", ["--linear.init={encoder}"], "--linear.init: .* was trained with data.mean"),
        ("finetune", ["--finetune.init={classifier}"], "--finetune.init: .* of kind classifier"),
        ("features-logistic", ["--classical.init=nowhere"], "--classical.init: no such artifact"),
        ("finetune", ["--finetune.freeze_after_block=9"], "after_block is 9"),
        ("supervised", ["--supervised.freeze_after_block=9"], "after_block is 9"),
        (
            "finetune",
            ["--finetune.auxiliary=rotation", "--finetune.encoder_rate=0"],
            "nothing to teach",
        ),
        ("supervised-student", ["--distill.student=test_vit"], "encoder test_vit at 8 pixels"),
        ("distill", ["--distill.student=test_vit"], "encoder test_vit at 8 pixels"),
        ("distill", ["--distill.teacher=nowhere"], "--distill.teacher: no such artifact folder"),
        ("distill", ["--distill.teacher={classifier}", *AS_MADE[:1]], "data.std"),
        (
            "distill",
            ["--distill.teacher={classifier}", *AS_MADE],
            "knows 3 classes",
        ),
    ],
)
def test_what_a_stage_would_refuse(method, options, says, tmp_path):
    made = {
        "classifier": artifact(tmp_path / "classifier", ["a", "b", "c"]),
        "encoder": artifact(tmp_path / "encoder"),
    }
    options = [option.format(**made) for option in options]
    with pytest.raises(UserError, match=says):
        ask(method, tmp_path / "runs", *options)
    assert not (tmp_path / "runs").exists()


def test_what_is_done_needs_no_network(tmp_path):
    options = ["--distill.student=test_vit", "--distill.teacher=nowhere"]
    folder = tmp_path / "digits/distill-1pct-seed0"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text("{}")
    ask("distill", tmp_path, *options)
    shutil.rmtree(folder)
    with pytest.raises(UserError):
        ask("distill", tmp_path, *options)


def test_a_teacher_that_this_run_makes_is_asked_for_later(tmp_path):
    """However the option writes its path; the other teachers are asked for now."""
    later = tmp_path / "runs/digits/finetune-1pct-seed0"
    written = tmp_path / "runs/../runs/digits/finetune-1pct-seed0"
    ask("distill", tmp_path / "runs", f"--distill.teacher={written}", own=(later,))
    with pytest.raises(UserError, match=r"--distill.teacher: no such artifact folder"):
        ask("distill", tmp_path, f"--distill.teacher=[{written},nowhere]", own=(later,))


def test_an_encoder_that_needs_storage_is_built_with_it(monkeypatch):
    places = []

    def make():
        places.append(str(possible.torch.zeros(1).device))
        if places[-1] == "meta":
            raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    possible._require_built(make)
    assert places == ["meta", "cpu"]


@pytest.mark.parametrize(
    "options",
    [
        ["--finetune.init=nowhere"],
        ["--distill.teacher=nowhere"],
        ["--finetune.freeze_after_block=9"],
        ["--distill.student=test_vit"],
        ["--labels=999perclass"],
    ],
)
def test_the_pipeline_trains_nothing_before(options, tmp_path, capsys):
    assert pipeline.main([*TINY, f"--output={tmp_path}/runs", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
