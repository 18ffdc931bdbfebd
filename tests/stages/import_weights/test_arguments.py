"""What `stages.import_weights` is asked for."""

import pytest

from shared.config.sections import WEIGHT_FORMATS
from shared.runtime.errors import UserError
from stages.import_weights.arguments import parser


def test_lists_and_names():
    asked = parser().parse_args(["w", "out", "--drop", "a*", "--drop", "b*", "--as", "encoder"])
    assert (asked.drop, asked.kind, asked.expect) == (["a*", "b*"], "encoder", [])


def test_another_kind_is_refused():
    with pytest.raises(UserError, match="--as: invalid choice: 'student'"):
        parser().parse_args(["w", "out", "--as", "student"])


def test_the_help_says_which_files_hold_weights():
    assert ", ".join(WEIGHT_FORMATS) in " ".join(parser().format_help().split())
