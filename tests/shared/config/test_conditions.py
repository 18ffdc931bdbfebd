"""Options that nothing reads are refused, wherever they are set."""

from dataclasses import fields

import pytest

from shared.config.command_line import load_config, override, read_config
from shared.config.schema import SECTIONS, Config
from shared.runtime.errors import UserError
from tests.shared.config.test_pretext import refusal

TASK = "--pretrain.task="


@pytest.mark.parametrize(
    ("arguments", "option", "condition", "choice"),
    [
        (
            [TASK + "rotation", "--instances.momentum=0.3"],
            "instances.momentum=0.3",
            "pretrain.task=instances or decoupling, which is rotation",
            "pretrain.task instances",
        ),
        (
            [TASK + "colour", "--colour.target=regression", "--colour.bin=20"],
            "colour.bin=20.0",
            "colour.target=classes, which is regression",
            "colour.target classes",
        ),
        (
            [TASK + "colour", "--colour.window=5"],
            "colour.window=5",
            "colour.target=histograms, which is classes",
            "colour.target histograms",
        ),
        (
            [TASK + "inpainting", "--inpainting.adversary_rate=0.1"],
            "inpainting.adversary_rate=0.1",
            "inpainting.adversarial, which is 0.0",
            "inpainting.adversarial",
        ),
        (
            [
                TASK + "patches",
                "--patches.jitter=0",
                "--patches.joint_jitter=true",
                "--data.image_size=32",
            ],
            "patches.joint_jitter=True",
            "patches.jitter, which is 0.0",
            "patches.jitter",
        ),
        (
            ["--pretrain.memory_momentum=0.9"],
            "pretrain.memory_momentum=0.9",
            "pretrain.memory, which is 0",
            "pretrain.memory",
        ),
        (
            ["--pretrain.margin=0.3"],
            "pretrain.margin=0.3",
            "pretrain.loss=margin_triplet or pair, which is nt_xent",
            "pretrain.loss margin_triplet",
        ),
        (
            ["--pretrain.loss=pair", "--pretrain.temperature=0.3"],
            "pretrain.temperature=0.3",
            "pretrain.loss=nt_xent or",
            "pretrain.loss nt_xent",
        ),
        (
            [TASK + "rotation", "--pretrain.temperature=0.1"],
            "pretrain.temperature=0.1",
            "pretrain.task=contrastive, which is rotation",
            "pretrain.task contrastive",
        ),
        (
            [TASK + "multi-task", "--multi_task.tasks=rotation", "--pretrain.loss=pair"],
            "pretrain.loss='pair'",
            "pretrain.task=contrastive, which is multi-task",
            "pretrain.task contrastive",
        ),
        (
            ["--finetune.auxiliary_weight=0.2"],
            "finetune.auxiliary_weight=0.2",
            "finetune.auxiliary=rotation, which is none",
            "finetune.auxiliary rotation",
        ),
    ],
)
def test_options_that_are_not_read_are_refused(arguments, option, condition, choice, capsys):
    error = refusal(capsys, *arguments)
    assert f"{option} is an option of {condition}" in error
    assert f"leave it out, or give --{choice} (see" in error


def test_recipes_are_refused_likewise_but_for_the_temperature(tmp_path, capsys):
    """Every recipe sets it for the contrastive task, whatever a flag then chooses."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {image_size: 8}\npretrain: {task: rotation, temperature: 0.3}\n")
    assert load_config([f"--config={recipe}"], "", "")[0].pretrain.temperature == 0.3
    recipe.write_text("pretrain: {task: colour}\ncolour: {target: histograms, sigma: 3}\n")
    assert "colour.sigma=3.0 is an option of colour.target=classes" in refusal(
        capsys, f"--config={recipe}"
    )
    assert read_config(recipe).colour.sigma == 3  # an old run's, which a command only reads
    with pytest.raises(UserError, match=r"colour.levels=3 is an option of colour.target"):
        override(Config(), {"pretrain.task": "colour", "colour.levels": 3})


def test_a_table_may_be_given_what_some_of_its_rows_read():
    config, _ = load_config(["--table=loss", "--pretrain.margin=0.3"], "", "")
    assert config.pretrain.margin == 0.3
    assert override(config, {"pretrain.loss": "pair"}).pretrain.margin == 0.3
    config, _ = load_config(["--table=tasks", "--colour.bin=20"], "", "")
    assert override(config, {"pretrain.task": "colour"}).colour.bin == 20


def test_every_condition_names_an_option_and_values_that_it_takes():
    config = Config()
    for section in SECTIONS:
        for f in fields(getattr(config, section)):
            if "only_with" in f.metadata:
                name, values = f.metadata["only_with"]
                owner = getattr(config, section if "." not in name else name.partition(".")[0])
                usual = getattr(owner, name.rpartition(".")[2])
                assert all(isinstance(value, type(usual)) for value in values), f.name


@pytest.mark.parametrize(
    ("flags", "least"),
    [
        ([], 30.0),
        (["--finetune.steps=4"], 0.0),
        (["--finetune.steps=4", "--finetune.least_epochs=2"], 2.0),
        (["--supervised.steps=4"], 30.0),
    ],
)
def test_steps_in_a_flag_win_over_the_recipes_least_passes(flags, least):
    assert load_config(flags, "test", "")[0].finetune.least_epochs == least
