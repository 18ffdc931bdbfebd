"""Whatever is read: a sane result, or one line and exit code 2.

Each case is a reader and a seed. Anything else than a result or a UserError fails: another
exception, five seconds of computing, twenty of waiting, or a file that was written outside.

    pytest tests/fuzz                 the default run's cases
    pytest -m slow tests/fuzz         all of them
    FUZZ_SEEDS=1000:2000 pytest -m slow tests/fuzz    others

What once was no answer is kept in ``found.json`` (``found.py`` adds to it), each with its bytes.
"""

import hashlib
import json
import os
import signal
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from shutil import rmtree

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.config.labelset import LabelSet
from shared.runtime.errors import UserError
from shared.runtime.media import one_line, printable
from tests.fuzz import found, hostile
from tests.fuzz.readers import READERS, encoded

FEW, MANY = 12, 90  # cases of each reader: in the default run, and of all


class Hang(BaseException):
    """No exception that a reader could catch."""


@contextmanager
def patience(computing: float = 5.0, waiting: float = 20.0):
    """Hang after so many seconds of processor, or on the wall: this machine may be busy."""

    def stop(number, frame):
        raise Hang(signal.Signals(number).name)

    before = [signal.signal(number, stop) for number in (signal.SIGVTALRM, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_VIRTUAL, computing)
    signal.setitimer(signal.ITIMER_REAL, waiting)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGVTALRM, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


ACCEPTED, REFUSED = "accepted", "refused"


def judge(read: Callable[[Path], None], base: Path) -> str:
    """``ACCEPTED`` or ``REFUSED``; else what is wrong with the answer to one case.

    Args:
        read: reads in an empty folder, which is the current one, what it may have made there.
        base: where the folder is made.
    """
    answer = ACCEPTED
    folder, outside = base / "in", base / "outside"
    rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    outside.mkdir(exist_ok=True)
    (outside / "secret.png").write_bytes(encoded("PNG"))
    before, here = hashes(outside), Path.cwd()
    os.chdir(folder)
    try:
        with patience(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of decoders, on damaged files
            read(folder)
    except UserError as error:
        answer = REFUSED
        if printable(line := one_line(error)) != line or len(line) > 2100 or not line:
            return f"not one line: {line!r}"
    except SystemExit as left:
        answer = REFUSED
        if left.code != 2:
            return f"exit code {left.code}"
    except (Exception, Hang) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        os.chdir(here)
    if hashes(outside) != before:
        return "a file outside was written"
    return answer


def answers(reader: str, seeds, base: Path) -> dict[int, str]:
    return {
        seed: judge(partial(READERS[reader], Random(f"{reader} {seed}")), base) for seed in seeds
    }


def faults(judged: dict[int, str]) -> dict[int, str]:
    return {seed: answer for seed, answer in judged.items() if answer not in (ACCEPTED, REFUSED)}


@pytest.mark.parametrize("reader", READERS)
def test_a_sane_result_or_one_line(reader, tmp_path):
    judged = answers(reader, range(FEW), tmp_path)
    assert faults(judged) == {}


def plain_csv(rng: Random, names: list[str]) -> bytes:
    return "".join(
        ["file,label\n", *(f"{x},{'ab'[i % 2]}\n" for i, x in enumerate(names))]
    ).encode()


def plain_entry(rng: Random, folder: Path, at: bytes, content: bytes) -> None:
    (folder / os.fsdecode(at)).write_bytes(encoded("PNG"))


HARMLESS = {
    "text": lambda rng: "1",
    "value": lambda rng, depth=3: 1,
    "changed": lambda rng, whole: whole,
    "json_text": lambda rng, whole: json.dumps(whole).encode(),
    "damaged": lambda rng, data: data,
    "yaml_text": lambda rng, whole: yaml.safe_dump(whole).encode(),
    "csv_bytes": plain_csv,
    "name": lambda rng: b"%d.png" % rng.randrange(10**6),
    "odd_entry": plain_entry,
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_not_damaged_is_accepted(reader, tmp_path, monkeypatch):
    """A reader that refuses everything would pass all other tests."""
    for name, function in HARMLESS.items():
        monkeypatch.setattr(hostile, name, function)
    judged: dict[int, str] = {}
    for seed in range(FEW):  # some readers also change what hostile.py does not
        judged |= answers(reader, [seed], tmp_path)
        if [*judged.values()].count(ACCEPTED) == 2:
            break
    else:
        pytest.fail(f"of {FEW} files without damage, fewer than two were read: {judged}")
    assert faults(judged) == {}


@pytest.mark.parametrize("case", found.cases(), ids=lambda case: case["reader"])
def test_what_was_found_once(case, tmp_path):
    assert judge(partial(found.read, case), tmp_path) in (ACCEPTED, REFUSED)


def test_what_is_found_is_kept_as_it_is(tmp_path):
    """A reader that makes nothing of its seeds any more changes no case that is kept."""
    made = {"meta": 33, "weights": 14, "results": 7, "metrics": 10}
    for reader, seed in made.items():
        judge(partial(READERS[reader], Random(f"{reader} {seed}")), tmp_path / "made")
        judge(partial(found.read, found.keep(reader, str(seed), "")), tmp_path / "kept")
        contents = [
            {
                str(path.relative_to(tmp_path / top)): path.read_bytes() if path.is_file() else None
                for path in sorted((tmp_path / top).rglob("*"))
            }
            for top in ("made", "kept")
        ]
        assert contents[0] == contents[1]


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_more_cases(reader, tmp_path):
    first, last = map(int, os.environ.get("FUZZ_SEEDS", f"{FEW}:{MANY}").split(":"))
    judged = answers(reader, range(first, last), tmp_path)
    assert faults(judged) == {}
    assert reader == "weights" or ACCEPTED in judged.values()  # a hash refuses all of those


@pytest.mark.parametrize("reader", ["recipe", "table", "labels_csv", "table_text", "cells"])
def test_hypothesis_finds_nothing_smaller(reader, tmp_path):
    @settings(deadline=None, max_examples=15, suppress_health_check=[*HealthCheck], database=None)
    @given(st.randoms(use_true_random=False))
    def search(rng):
        assert judge(partial(READERS[reader], rng), tmp_path) in (ACCEPTED, REFUSED)

    search()


def test_the_judge_refuses_what_it_should(tmp_path):
    readers = {
        "nothing": lambda folder: None,
        "refusal": lambda folder: LabelSet.parse("0pct"),
        "hang": lambda folder: next(x for x in iter(int, 1) if x),
        "outside": lambda folder: (folder / "../outside/x").write_text("x"),
        "defect": lambda folder: [][0],
        "endless": lambda folder: (_ for _ in ()).throw(SystemExit(1)),
    }
    assert judge(readers["nothing"], tmp_path) == ACCEPTED
    assert judge(readers["refusal"], tmp_path) == REFUSED
    assert judge(readers["outside"], tmp_path / "a") == "a file outside was written"
    assert judge(readers["defect"], tmp_path / "b").startswith("IndexError")
    assert judge(readers["endless"], tmp_path / "c") == "exit code 1"
    with pytest.raises(Hang), patience(computing=0.2):
        readers["hang"](tmp_path)
