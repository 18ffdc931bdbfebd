"""What follows from the table of methods."""

import importlib

import pytest

from shared.config.methods import (
    CLASSIFIERS,
    METHODS,
    ancestors,
    depends_on,
    made_by,
    method_of,
)
from shared.config.pretext import TASK_SECTIONS
from shared.config.schema import SECTIONS, Config
from shared.config.sections import Classical


def test_every_row_fits_the_configuration_and_has_its_stage():
    config = Config()
    for name, method in METHODS.items():
        assert name == method.name
        assert method.section in SECTIONS
        assert callable(importlib.import_module(f"stages.{method.stage}").run)
        assert set(method.made_from) <= METHODS.keys()
        for key in (*method.depends, *method.independent, *filter(None, [method.network])):
            section, _, option = key.partition(".")
            assert section in SECTIONS
            assert not option or hasattr(getattr(config, section), option), key


def test_parents_stand_above_what_is_made_from_them():
    order = list(METHODS)
    for name, method in METHODS.items():
        assert all(order.index(parent) < order.index(name) for parent in method.made_from)


def test_lines_of_a_picture_differ():
    for values in ([m.color for m in CLASSIFIERS.values()], [m.marker for m in METHODS.values()]):
        assert len(set(values)) >= len(CLASSIFIERS)


def test_what_is_made_from_what():
    assert ancestors("pretrain") == ancestors("supervised") == ancestors("assess") == ()
    assert ancestors("linear") == ancestors("finetune") == ("pretrain",)
    assert ancestors("self-distill") == ("pretrain", "finetune")
    assert ancestors("distill") == ("pretrain", "finetune", "self-distill")


def test_what_is_frozen():
    assert [name for name, method in METHODS.items() if method.frozen] == [
        "published",
        "linear",
        "features-logistic",
        "features-neighbours",
    ]


def test_what_is_fitted_at_once_and_what_is_not_saved():
    fitted = [name for name, method in METHODS.items() if method.fitted]
    assert fitted == made_by("classical")
    unsaved = {name for name, method in CLASSIFIERS.items() if not method.saved}
    assert unsaved == {*fitted} - {"published", "features-logistic"}
    assert not any(Config(classical=Classical(enabled=False)).asks_for(name) for name in fitted)
    on_demand = {"published": "weights", "features-neighbours": True}
    assert all(Config().asks_for(name) for name in fitted if name not in on_demand)
    for name, value in on_demand.items():
        assert not Config().asks_for(name)
        option = METHODS[name].asked_by.partition(".")[2]
        assert Config(classical=Classical(**{option: value})).asks_for(name)


def test_what_an_artifact_depends_on():
    pretrained = ("data", "augment", "model", "pretrain", *TASK_SECTIONS)
    assert depends_on("pretrain") == pretrained
    assert depends_on("linear") == (*pretrained, "linear")
    assert (
        depends_on("self-distill")
        == depends_on("distill")
        == (
            *pretrained,
            "finetune",
            "distill",
        )
    )
    assert depends_on("supervised") == ("data", "augment", "model", "supervised")
    assert depends_on("pixels-svm") == ("data", "classical")
    for name in ("features-logistic", "features-neighbours"):
        assert depends_on(name) == (*pretrained, "classical")


def test_a_stage_refuses_what_it_does_not_make():
    assert method_of("finetune", "linear") is METHODS["linear"]
    for name in ("distill", "lineal"):
        with pytest.raises(ValueError, match=f"supervised-student, linear, finetune, not '{name}'"):
            method_of("finetune", name)
