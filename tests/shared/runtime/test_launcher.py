"""The variables that a launcher sets for its processes."""

import pytest

from shared.runtime.launcher import WORLD_SIZES, launcher_number, wrong_launcher

NUMBERS = [*WORLD_SIZES, "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"]
USUAL = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1"}


@pytest.fixture
def places(monkeypatch):
    """Sets variables; no others are there."""
    for name in NUMBERS:
        monkeypatch.delenv(name, raising=False)

    def place(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return place


@pytest.mark.parametrize(
    "variables",
    [
        {},
        USUAL,
        USUAL | {"MASTER_PORT": "29500"},
        {"RANK": "0", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "3", "RANK": "2", "LOCAL_RANK": "2"},
        {"OMPI_COMM_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"},
        {"PMI_SIZE": "16"},
    ],
)
def test_what_launchers_set(variables, places):
    places(**variables)
    assert wrong_launcher() == ""


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["z", "-1", "1e9", "", "1.0", "9999999", "9" * 5000, "\u0663"])
def test_what_is_no_number_of_processes(name, value, places):
    places(**{name: value})
    wrong = wrong_launcher()
    assert f"{name} must be a whole number from " in wrong
    assert len(wrong) < 300


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE says that there are 1 processes"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, but WORLD_SIZE says"),
        (USUAL | {"LOCAL_RANK": "2"}, "LOCAL_RANK is 2, but LOCAL_WORLD_SIZE says"),
        (USUAL | {"LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE is more than WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number from 1 to"),
        ({"PMI_SIZE": "2", "RANK": "5"}, "RANK is 5, but PMI_SIZE says"),
    ],
)
def test_numbers_that_contradict_each_other(variables, says, places):
    places(**variables)
    assert says in wrong_launcher()


def test_what_is_no_number_counts_as_not_set(places):
    """An error line must come out all the same."""
    places(RANK="z", LOCAL_RANK="3")
    assert [launcher_number(name, 7) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == [7, 3, 7]
