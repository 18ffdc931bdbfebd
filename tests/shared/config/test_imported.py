"""What imported networks decide of a run's options; no weights are needed to know it."""

import json

import pytest

from shared.config.command_line import load_config, override
from shared.config.imported import imported, imported_options, pretraining_is_imported
from shared.runtime.errors import UserError
from tests.support.command_line import load, refusal

SEEN = {"image_size": 96, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "antialias": True}
NO_HEAD = {"layers": 0, "width": None, "out": None}


def artifact(folder, stage: str = "import", **changes):
    folder.mkdir(parents=True)
    meta = {"kind": "encoder", "stage": stage, "encoder": "resnet18", "head": NO_HEAD, **SEEN}
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))
    return folder


def seen_by(config) -> dict:
    data = config.data
    return {
        "image_size": data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
        "antialias": data.antialias,
    }


@pytest.mark.parametrize("recipe", ["digits", "image_folder", "small_machine"])
def test_a_run_takes_its_input_from_an_imported_stage_1(recipe, tmp_path, capsys):
    artifact(tmp_path / "r/pretrain")
    line = [f"--config=configs/{recipe}.yaml", "--run=r", f"--output={tmp_path}"]
    config, fixed = load_config(line, "", "")
    assert seen_by(config) == SEEN
    assert (config.model.encoder, config.finetune.from_layer) == ("resnet18", 0)
    assert config.classical.from_layer == 0
    assert {"data.mean", "data.image_size", "model.encoder"} <= fixed  # nothing fits them anew
    assert capsys.readouterr().out.count("from the imported network") == 1
    assert pretraining_is_imported(config)
    assert not pretraining_is_imported(load(*line, "--run=other"))


@pytest.mark.parametrize("option", ["finetune.init", "linear.init", "classical.init"])
def test_an_option_may_name_it(option, tmp_path):
    folder = artifact(tmp_path / "elsewhere")
    config = load(f"--{option}={folder}", f"--output={tmp_path}")
    assert seen_by(config) == SEEN
    assert config.model.encoder == "simclr_resnet8_2x_sk0"  # of the run's own pretraining
    assert seen_by(override(load(f"--output={tmp_path}"), {option: str(folder)})) == SEEN


def test_flags_win(tmp_path):
    artifact(tmp_path / "r/pretrain")
    line = ["--run=r", f"--output={tmp_path}", "--data.image_size=64", "--model.encoder=resnet34"]
    config = load(*line, "--data.std=[1,1,1]", "--augment.antialias=false")
    assert seen_by(config) == {
        "image_size": 64,
        "mean": SEEN["mean"],
        "std": [1, 1, 1],
        "antialias": False,
    }
    assert config.model.encoder == "resnet34"


def test_print_config_shows_it(tmp_path, capsys):
    artifact(tmp_path / "r/pretrain")
    with pytest.raises(SystemExit) as stopped:
        load("--run=r", f"--output={tmp_path}", "--print_config")
    assert stopped.value.code == 0
    assert "image_size: 96" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["trained", "damaged", "no object", "missing"])
def test_other_artifacts_decide_nothing(kind, tmp_path, capsys):
    folder = artifact(tmp_path / "r/pretrain", "pretrain" if kind == "trained" else "import")
    if kind == "damaged":
        (folder / "meta.json").write_text('{"stage": "import", "image')
    elif kind == "no object":
        (folder / "meta.json").write_text('["import"]')
    elif kind == "missing":
        (folder / "meta.json").unlink()
    assert imported(folder) is None
    config = load("--run=r", f"--output={tmp_path}")
    assert config.data.image_size == 8
    assert capsys.readouterr().out == ""


def test_a_head_is_kept(tmp_path):
    """Of the authors' checkpoints, which do not say whether to antialias."""
    head = {"layers": 3, "width": 512, "out": 128}
    folder = artifact(tmp_path / "elsewhere", head=head)
    meta = json.loads((folder / "meta.json").read_text())
    del meta["antialias"]
    (folder / "meta.json").write_text(json.dumps(meta))
    config = load(f"--finetune.init={folder}", f"--output={tmp_path}")
    assert seen_by(config) == {**SEEN, "antialias": False}
    assert config.finetune.from_layer is None
    assert imported_options(config, [folder], set()).keys() == {
        "data.image_size",
        "data.mean",
        "data.std",
    }


def test_two_of_different_input_are_refused(tmp_path, capsys):
    one = artifact(tmp_path / "one")
    other = artifact(tmp_path / "other", image_size=64)
    line = [f"--finetune.init={one}", f"--linear.init={other}", f"--output={tmp_path}"]
    assert "was made for data.image_size=96" in refusal(capsys, *line)
    assert load(*line, "--data.image_size=64").data.image_size == 64
    with pytest.raises(UserError, match=r"give --data\.image_size"):
        override(load(), {"finetune.init": str(one), "linear.init": str(other)})


def test_values_that_cannot_be_are_one_line(tmp_path, capsys):
    artifact(tmp_path / "r/pretrain", image_size="large")
    assert "image_size" in refusal(capsys, "--run=r", f"--output={tmp_path}")
