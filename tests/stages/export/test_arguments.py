"""What `stages.export` is asked for."""

import pytest

from shared.runtime.errors import UserError
from stages.export.arguments import NAMES, parser
from stages.export.export import FORMATS


def test_each_format_can_be_asked_for():
    assert {to: form.name for to, form in FORMATS.items()} == NAMES
    for to in FORMATS:
        assert parser().parse_args(["runs/a", "--to", to]).to == to


def test_another_is_refused():
    with pytest.raises(UserError, match="--to: invalid choice: 'tiff'"):
        parser().parse_args(["runs/a", "--to", "tiff"])
