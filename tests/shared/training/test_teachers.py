"""Who teaches a student, and whether they know its task."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from shared.config.labelset import LabelSet
from shared.config.schema import Config
from shared.config.sections import Distill
from shared.data.images import Splits
from shared.runtime.errors import UserError
from shared.training import teachers
from shared.training.teachers import teacher_folders


def test_who_teaches():
    config = Config(output="out", run="r", labels="1pct", seed=3)
    own = Path("out/r/finetune-1pct-seed3")
    assert teacher_folders(config, "distill") == [own]
    assert teacher_folders(config, "self-distill") == [own]
    regression = replace(config, distill=Distill(taught_by="features-logistic"))
    for method in ("distill", "self-distill"):
        folder = Path("out/r/features-logistic-1pct-seed3")
        assert teacher_folders(regression, method) == [folder]
    other = replace(
        config, distill=Distill(teacher="elsewhere/classifier", taught_by="features-logistic")
    )
    assert teacher_folders(other, "distill") == [Path("elsewhere/classifier")]


def test_who_teaches_with_self_distillation_first():
    """The teacher that is named teaches itself; the student learns from the result."""
    config = Config(output="out", run="r", labels="1pct", seed=3)
    twice = replace(config, distill=Distill(teacher="elsewhere/classifier", self_first=True))
    assert teacher_folders(twice, "self-distill") == [Path("elsewhere/classifier")]
    assert teacher_folders(twice, "distill") == [Path("out/r/self-distill-1pct-seed3")]


def require_same_task(taught_with: str, number: int, labels: str, train=(), test=None) -> None:
    """A teacher of the classes a and b against splits with these classes."""
    teacher = {
        "classes": ["a", "b"],
        "labels": {"given": taught_with, "hash": "0", "number": number},
    }
    sets = [None if names is None else SimpleNamespace(classes=names) for names in (train, test)]
    teachers.require_same_task(teacher, Path("teacher"), Splits(*sets), LabelSet.parse(labels))


@pytest.mark.parametrize(("train", "test"), [(("b", "a"), None), (("a", "c"), None), ((), ("a",))])
def test_the_teacher_must_know_the_classes_in_their_order(train, test):
    with pytest.raises(
        UserError, match=r"teacher knows 2 classes \(a, b, \.\.\.\), the images have"
    ):
        require_same_task("1pct", 14, "1pct", train, test)


def test_the_teacher_must_have_the_same_label_set():
    for train, test in ((("a", "b"), None), ((), ("a", "b")), ((), None)):
        require_same_task("1pct", 14, "1pct", train, test)
        with pytest.raises(UserError, match=r"trained with --labels 1pct, now it is 2pct"):
            require_same_task("1pct", 14, "2pct", train, test)
    require_same_task("here/mine.csv", 14, "there/mine.csv")  # a file is known by its name
    with pytest.raises(UserError, match=r"trained with --labels here/mine\.csv"):
        require_same_task("here/mine.csv", 14, "here/other.csv")
    with pytest.raises(UserError, match=r"trained with --labels 1pct, now it is 1pct\.csv"):
        require_same_task("1pct", 14, "1pct.csv")
    require_same_task("100pct", 0, "1pct")  # an imported teacher does not say how many
