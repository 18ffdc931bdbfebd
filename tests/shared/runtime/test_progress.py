"""Lines about every half minute, by a clock that the test turns; a bar on a terminal."""

import sys

import pytest

from shared.runtime.progress import LINE_EVERY, Progress, counted, duration


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def lines_of(capsys) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_line_each_half_minute_says_where_the_work_is(capsys):
    clock = Clock()
    bar = Progress("pretrain", 400, "steps", speed=("images", 64), clock=clock)
    for step in range(200):
        clock.now += 0.5
        bar.note(f"loss {step}")
        bar.update()
    lines = lines_of(capsys)
    assert len(lines) == 100 // LINE_EVERY
    assert lines[0] == "pretrain: 60 of 400 steps, loss 59, 128 images/s, 2.8 min left"
    assert lines[-1].startswith("pretrain: 180 of 400 steps, ")
    bar.close()
    assert lines_of(capsys) == []


def test_the_speed_is_the_present_one_and_the_time_left_that_of_all_so_far(capsys):
    clock = Clock()
    bar = Progress("decoding", 300, "images", start=100, clock=clock)
    clock.now += 30
    bar.update(30)
    clock.now += 30
    bar.update(90)
    assert lines_of(capsys) == [
        "decoding: 130 of 300 images, 1 images/s, 2.8 min left",
        "decoding: 220 of 300 images, 3 images/s, 40 s left",
    ]


@pytest.mark.parametrize("seconds", [0, 10, 29.9])
def test_short_work_leaves_no_line(capsys, seconds):
    clock = Clock()
    for _ in Progress("page", 2, "sections", clock=clock).over("ab"):
        clock.now += seconds / 2
    assert lines_of(capsys) == []


def test_only_the_process_that_shows_prints(capsys):
    clock = Clock()
    for _ in Progress("page", 2, "sections", shown=False, clock=clock).over("ab"):
        clock.now += 100
    assert lines_of(capsys) == []


def test_one_slow_unit_is_one_line(capsys):
    clock = Clock()
    for _ in Progress("assess", 3, "parts", clock=clock).over("abc"):
        clock.now += 300
    assert [line.split(",")[0] for line in lines_of(capsys)] == [
        f"assess: {number} of 3 parts" for number in (1, 2, 3)
    ]


def test_a_bar_on_a_terminal_and_no_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = Clock()
    bar = Progress("decoding", 3, "images", clock=clock)
    for _ in bar.over("abc"):
        clock.now += 100
    err = capsys.readouterr().err
    assert "decoding:" in err
    assert "left" not in err
    assert bar._bar is None  # closed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2.0 min"), (7200, "2.0 hours"), (200_000, "2.3 days")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_numbers_with_their_nouns():
    assert counted(1, "unknown image") == "1 unknown image"
    assert counted(2000, "image") == "2,000 images"
    assert counted(3, "class", "classes") == "3 classes"
