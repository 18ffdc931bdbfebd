"""What has to be redone after a change: all of it in one line, before anything trains."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest

from shared.config.methods import METHODS
from shared.config.schema import hashed_settings
from shared.runs.redo import (
    all_to_redo,
    pretraining_is_kept,
    require_no_artifacts,
    require_same_options,
)
from shared.runtime.stage_folder import OtherSettingsError
from shared.training.stage import options_of
from tests.support.command_line import load as config_of
from tests.support.stage_folder import message

MADE = ("pretrain", "supervised", "linear", "finetune", "distill")


def settings_of(config, name: str) -> dict:
    settings = {"stage": name, "images": "one", "labels": "two", **options_of(config, name)}
    if name in ("pretrain", "supervised"):
        settings |= hashed_settings(config.model, "model")
    if name == "pretrain":
        del settings["labels"]
    return settings


@pytest.fixture
def made(tmp_path):
    """A function that makes the run's finished folders and gives its changed configuration."""

    def make(*flags: str):
        config = config_of(f"--output={tmp_path}")
        for name in MADE:
            folder = config.folder_of(name)
            folder.mkdir(parents=True, exist_ok=True)
            known = {"kind": "x", "encoder": "x", "image_size": 8, "weights_sha256": "x"}
            meta = {**known, "settings": settings_of(config, name)}
            (folder / "meta.json").write_text(json.dumps(meta))
        return config_of(f"--output={tmp_path}", *flags)

    return make


def test_the_same_options_pass(made):
    require_same_options(made())
    require_same_options(made("--data.workers=1", "--pretrain.log_every_steps=3"))


def test_a_run_with_artifacts_and_no_recipe_is_not_chosen_anew(made, tmp_path):
    config = made()
    text = message(lambda: require_no_artifacts(config))
    assert f"{config.folder}/recipe.yaml is missing" in text
    assert (
        "that pretrain, supervised, linear, finetune, distill were made with; put it back" in text
    )
    assert f"--config {config.folder}/config.yaml, or choose another --run" in text
    require_no_artifacts(replace(made(), plan=True))  # keeps nothing
    require_no_artifacts(made("--force=all"))
    assert "settings that pretrain were" in message(
        lambda: require_no_artifacts(made("--seed=7"))  # its pretraining alone is there
    )
    meta = config.folder_of("pretrain") / "meta.json"
    imported = json.dumps(json.loads(meta.read_text()) | {"stage": "import"})
    made("--seed=7")
    meta.write_text(imported)
    require_no_artifacts(config_of(f"--output={tmp_path}", "--seed=7"))
    require_no_artifacts(config_of(f"--output={tmp_path}", "--run=other"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--data.label_column=species", "--data.test_fraction=0.3", "--data.split_seed=2"],
        ["--distill.self_first=true"],
        ["--augment.antialias=true"],
    ],
)
def test_what_was_made_with_the_same_flags_passes(tmp_path, flags):
    """Also settings that a stage leaves out, and old names of options."""
    config = config_of(f"--output={tmp_path}", *flags)
    for name in (*MADE, "self-distill"):
        folder = config.folder_of(name)
        folder.mkdir(parents=True, exist_ok=True)
        settings = settings_of(config, name)
        if name == "pretrain" and settings["data.antialias"]:
            settings["augment.antialias"] = settings.pop("data.antialias")
        known = {"kind": "x", "encoder": "x", "image_size": 8, "weights_sha256": "x"}
        (folder / "meta.json").write_text(json.dumps({**known, "settings": settings}))
    require_same_options(config)


@pytest.mark.parametrize(
    ("flags", "change", "concerned", "force"),
    [
        (["--data.image_size=16"], "data.image_size=8, now it is 16", MADE, "pretrain,supervised"),
        (["--finetune.learning_rate=7"], "rate=0.001, now it is 7.0", MADE[3:], "finetune"),
        (["--distill.epochs=7"], "distill.epochs=75.0, now it is 7.0", MADE[4:], "distill"),
        (
            ["--augment.crop_area=[0.5,1]"],
            "augment.crop_area=[1.0, 1.0], now it is [0.5, 1.0]",
            MADE,
            "pretrain,supervised",
        ),
        (["--model.head_out=3"], "model.head_out=64, now it is 3", MADE, "pretrain,supervised"),
        (
            ["--supervised.steps=9", "--linear.steps=3"],
            "linear.steps=200, now it is 3 (also changed: supervised.steps)",
            MADE[1:3],
            "supervised,linear",
        ),
    ],
)
def test_all_that_a_change_concerns_is_one_line_and_one_force(
    made, flags, change, concerned, force
):
    config = made(*flags)
    text = message(require_same_options, config)
    assert change in text
    assert f"this concerns {', '.join(concerned)}: " in text
    assert f"--force {force} or choose another --run" in text
    require_same_options(made(*flags, f"--force={force}"))  # that command passes


def test_what_shares_an_old_hash_is_redone_with_the_stage_that_noticed(made):
    config, images = made(), cast(Any, SimpleNamespace(names=["0"]))
    error = OtherSettingsError("one stage", {"images": ("one", "three")})
    text = str(all_to_redo(config, error, images))
    assert "images=one, now it is three" in text
    assert "the training images have changed" in text
    assert "--force pretrain,supervised or" in text
    error = OtherSettingsError("one stage", {"labels": ("two", "three")})
    assert "--force supervised,linear,finetune or" in str(all_to_redo(config, error, images))
    error = OtherSettingsError("one stage", {"unheard": ("of", "it")})
    assert all_to_redo(config, error, images) is error
    assert set(MADE) < METHODS.keys()


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (
            ["0", "2", "3"],
            "2 of 3 training images are new, 1 of the earlier ones are gone or for testing;",
        ),
        (["0"], "0 of 1 training image are new, 1 of the earlier ones are gone or for testing;"),
        (
            ["4", "5"],
            "2 of 2 training images are new, 2 of the earlier ones are gone or for testing;",
        ),
    ],
)
def test_images_that_are_others_are_counted(made, now, says):
    """The pretraining does not stay then, and no line may say that it does."""
    config, images = made(), cast(Any, MagicMock(names=now, fingerprint="three"))
    images.__len__.return_value = len(now)
    folder = config.folder_of("pretrain")
    (folder / "images.csv").write_text("file\n0\n1\n")
    error = OtherSettingsError("one stage", {"images": ("one", "three")})
    text = str(all_to_redo(config, error, images))
    assert text.startswith(f"{config.folder} was made with other images: {says} this concerns")
    assert text.endswith(f"or give --run NEW --pretrain.init {folder} to go on from it")
    assert not pretraining_is_kept(config, images)
    images.fingerprint = "one"
    assert pretraining_is_kept(config, images)
    assert not pretraining_is_kept(made("--force=pretrain"), images)
