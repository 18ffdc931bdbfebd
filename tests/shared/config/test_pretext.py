"""Pretext tasks on the command line."""

import pytest

from shared.config.command_line import load_config
from shared.config.pretext import TASK_SECTIONS, TASKS
from shared.config.schema import Config, dump
from shared.training.stage import options_of
from tests.support.pretext import VARIANTS
from tests.support.pretext import options_of as command_line


def refusal(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit, match="2"):
        load_config(arguments, "", "")
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("typed", "meant"), [("rotatoin", "rotation"), ("instance", "instances"), ("Rotation", "rotat")]
)
def test_a_misspelt_task_is_named(typed, meant, capsys):
    error = refusal(capsys, f"--pretrain.task={typed}")
    assert f"got {typed!r}; did you mean {meant!r}"[:-2] in error
    for task in TASKS:
        assert repr(task) in error


@pytest.mark.parametrize("section", ["finetune", "classical"])
def test_where_a_task_leaves_no_head_there_is_layer_0_alone(section, capsys):
    """Recipes that were made for the contrastive task name another layer."""
    option = f"--{section}.from_layer=1"
    config, _ = load_config(["--pretrain.task=rotation", option], "", "")
    assert getattr(config, section).kept_layers(10, 100, config.head_layers) == 0
    config, _ = load_config([option], "", "")
    assert getattr(config, section).kept_layers(10, 100, config.head_layers) == 1
    error = refusal(capsys, f"--{section}.from_layer=4")
    assert f"{section}.from_layer must be 0 to 3 (model.head_layers), got 4" in error


def test_an_artifact_depends_on_its_own_task_alone():
    """So a new task, or a new option of one, leaves the artifacts of all others good."""
    for variant in VARIANTS:
        config, _ = load_config(command_line(variant), "", "")
        sections = {option.partition(".")[0] for option in options_of(config, "pretrain")}
        own = {TASKS[task].section for task in config.tasks} & TASK_SECTIONS.keys()
        cfg = config.pretrain
        own |= {cfg.loss} & {"prototypes", "infomax"}
        own |= {cfg.contextualisation} & {"attention"}
        own |= {"code_book"} if cfg.quantisation == "gumbel" else set()
        assert sections & TASK_SECTIONS.keys() == own
        assert {line.partition(":")[0] for line in dump(config).splitlines()} & {
            *TASK_SECTIONS
        } == own


def test_which_tasks_leave_a_projection_head():
    assert Config().head_layers == 3
    assert load_config(["--pretrain.task=rotation"], "", "")[0].head_layers == 0
    assert load_config(["--pretrain.task=instances"], "", "")[0].head_layers == 3
