"""How options refuse a value."""

import pytest

from shared.config.checks import not_hashed, require, require_one_of


def test_what_is_allowed_passes_and_the_rest_is_named():
    require(True, "a.b", 3, "3 or more")
    with pytest.raises(ValueError, match=r"a\.b must be 3 or more, got 2"):
        require(False, "a.b", 2, "3 or more")


@pytest.mark.parametrize(
    ("value", "hint"), [("sgdd", "did you mean 'sgd'"), ("LARS", ""), ("zzz", "")]
)
def test_names(value, hint):
    require_one_of(("lars", "sgd"), "x.optimizer", "sgd")
    with pytest.raises(ValueError, match=r"x\.optimizer must be one of 'lars', 'sgd'") as error:
        require_one_of(("lars", "sgd"), "x.optimizer", value)
    assert hint in str(error.value)
    assert bool(hint) == ("did you mean" in str(error.value))


def test_not_hashed():
    assert not_hashed(3).metadata == {"hashed": False}
