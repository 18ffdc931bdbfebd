"""The table of optimizers: its records are true, and options take the same names."""

import re

import pytest
import torch

from shared.config.command_line import load_config
from shared.config.optimizers import OPTIMIZERS
from shared.training.optim import build_optimizer
from tests.support.networks import small_classifier


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_records_say_what_the_optimizers_do(name):
    kind, model = OPTIMIZERS[name], small_classifier()
    assert kind.name == name
    optimizer = build_optimizer(name, model, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter in model.parameters():
        kept = [value for value in optimizer.state[parameter].values() if value.ndim]
        assert sum(value.numel() for value in kept) == kind.slots * parameter.numel()
    groups = optimizer.param_groups
    assert any(group["adapt"] for group in groups) == kind.adapts_layers
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert (id(model["linear"].bias) in decayed) == kind.decays_biases


def test_the_configuration_takes_the_same_names(capsys):
    for name in OPTIMIZERS:
        assert load_config([f"--pretrain.optimizer={name}"], "", "")[0].pretrain.optimizer == name
    with pytest.raises(SystemExit):
        load_config(["--pretrain.optimizer=adam"], "", "")
    message = capsys.readouterr().err
    choices = re.search(r"must be one of (.+), got", message)
    assert choices
    assert set(re.findall(r"\w+", choices[1])) == set(OPTIMIZERS)
