"""What `stages.suggest` is asked for."""

import pytest

from shared.runtime.errors import UserError
from stages.suggest.arguments import WAYS, parser


def test_the_budget_is_a_number_of_images():
    assert parser().parse_args(["runs/a", "--budget", "30"]).budget == 30
    with pytest.raises(UserError, match="it is a number of images, such as 30, got '30min'"):
        parser().parse_args(["runs/a", "--budget", "30min"])


def test_each_way_can_be_asked_for():
    for way in WAYS:
        assert parser().parse_args(["runs/a", "--budget", "3", "--by", way]).by == way
