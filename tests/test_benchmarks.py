"""The benchmarks at toy size: they run our real code, and what they print follows from the laps."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from scipy.special import stdtrit

from benchmarks import claims, compare, gpu, ours, tasks
from benchmarks.laps import PeakMemory, cpu_seconds
from benchmarks.photos import make_photos, make_small
from shared.config.command import hardware_precision
from shared.networks import cpu as convolution
from shared.pretext.adversary import Adversary
from shared.runs.table import load_table


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    make_photos(folder / "photos", 8)
    make_small(folder / "small", 64)
    return folder


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """One process has one precision, and one way of convolution; the tests share a process."""
    for name in ("WEIGHTS_PER_POSITION", "LEAST_CHANNELS", "LEAST_CHANNELS_BY_ONEDNN"):
        monkeypatch.setattr(convolution, name, getattr(convolution, name))
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


class EnoughError(Exception):
    """Two laps were run."""


OUR_TASKS = [
    name + who.removeprefix("ours")
    for name, line in compare.LINES.items()
    for who in line.contenders
    if who.startswith("ours") and name not in ("loss4096", "loss8192") and who != "ours:compiled"
]


LONG_TASKS = {"convolution_float32", "convolution_float32:torch"}


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=[pytest.mark.slow] * (t in LONG_TASKS)) for t in OUR_TASKS]
)
def test_our_side_of_every_line_works_lap_after_lap(task, work):
    laps = []

    def lap(items, **numbers):
        laps.append(items)
        if len(laps) == 3:
            raise EnoughError

    with pytest.raises(EnoughError):
        ours.run(task, lap, work, quick=True)
    assert laps[0] == laps[1] == laps[2] > 0


def test_cpu_seconds_count_workers_alive_and_ended():
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    before = cpu_seconds()
    child = subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    alive = cpu_seconds() - before
    child.communicate(b"\n")
    ended = cpu_seconds() - before
    assert alive >= 0.28  # the clock of a living process ticks in hundredths
    assert ended >= alive


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells")
def test_peak_memory_is_that_of_the_call():
    memory = PeakMemory()
    np.ones(20_000_000, np.uint8).sum()
    assert 18 < memory.rise() < 40
    assert PeakMemory().rise() < 10  # forgets what was before


def laps(*cpu, items=10, **numbers):
    return [{"items": items, "cpu": seconds, "wall": 9.0, **numbers} for seconds in cpu]


def test_table_takes_ratios_within_turns():
    # the machine slows down threefold in the last turn: the ratio does not notice
    measured = {"ours": laps(1, 1, 3), "lightly": laps(4, 4, 12), "solo": laps(2, 2, 6)}
    rows = compare.table({"data224": {"laps": measured}}, "amx").splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[2:-1]] for row in rows]
    assert cells == [
        ["ours", "10", "3.33 to 10", "images / CPU s", "", ""],
        ["lightly", "2.5", "0.833 to 2.5", "images / CPU s", "4.00 × (4.00 to 4.00)", "≥ 2 ×, met"],
        ["solo-learn", "5", "1.67 to 5", "images / CPU s", "2.00 × (2.00 to 2.00)", "≥ 2 ×, met"],
    ]


def test_table_turns_ratios_round_where_less_is_better():
    sides = {
        "ours": laps(1, items=1, extra_mb=100.0),
        "lightly": laps(3, items=1, extra_mb=700.0),
    }
    rows = compare.table({"loss8192": {"laps": sides}}, "amx").splitlines()[2:]
    assert "3.00 × (3.00 to 3.00) | ≥ 4 ×, missed" in rows[1]
    assert "7.00 × (7.00 to 7.00) | ≥ 8 ×, missed" in rows[3]
    waiting = {"waiting32": {"laps": {"ours": laps(1, waiting=0.031)}}}
    assert "< 3, missed" in compare.table(waiting, "avx2")


def test_tables_go_between_their_marks():
    text = "a\n<!-- cpu -->\nold\n<!-- /cpu -->\nb\n"
    assert compare.replace_between(text, "cpu", "new") == text.replace("old", "new")
    with pytest.raises(SystemExit, match="no place"):
        compare.replace_between("a", "cpu", "new")


def test_saved_results_belong_to_known_lines():
    files = list(compare.RESULTS.glob("cpu-*.json"))
    assert {file.stem.removeprefix("cpu-") for file in files} <= compare.KINDS.keys()
    for file in files:
        for name, result in json.loads(file.read_text()).items():
            assert set(result["laps"]) == set(compare.LINES[name].contenders)
            assert all(len(measured) >= 3 for measured in result["laps"].values())


def test_targets_are_those_of_the_kind_of_processor(monkeypatch):
    sides = {"ours": laps(1), "lightly": laps(2), "solo": laps(1.2)}
    for kind, verdicts in {"amx": "≥ 2.8 ×, missed", "avx2": "≥ 1.3 ×, met"}.items():
        assert verdicts in compare.table({"step32": {"laps": sides}}, kind).splitlines()[3]
    for capability, precision, amx, kind in [
        ("AVX512", "bf16", True, "amx"),
        ("AVX512", "bf16", False, "avx512_bf16"),
        ("AVX512", "no", False, "avx512"),
        ("AVX2", "no", True, "avx2"),
        ("DEFAULT", "no", False, "other"),
    ]:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda there=amx: there)
        monkeypatch.setattr(compare, "hardware_precision", lambda device, p=precision: p)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        assert compare.kind() == kind
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert "EMULATING other by ONEDNN_MAX_CPU_ISA=AVX2" in compare.hardware()


def test_document_shows_the_saved_results():
    for file in compare.RESULTS.glob("cpu-*.json"):
        table = compare.table(json.loads(file.read_text()), file.stem.removeprefix("cpu-"))
        assert table in compare.DOCUMENT.read_text()


def test_tasks_are_measured_with_both_networks_of_an_adversary(work):
    both = tasks.measure("inpainting, adversary", work / "small", batch=4, turns=1)
    assert both["ratio"] == pytest.approx(both["whole"] / both["bare"])
    config = tasks.read(tasks.ROWS["inpainting, adversary"], work / "small", 4)
    for alone in (False, True):  # whether the adversary is left out
        accelerator = Accelerator(cpu=True, mixed_precision=hardware_precision("cpu"))
        _, bare = tasks.contenders(config, accelerator, alone)
        with patch.object(Adversary, "learn") as learn:
            bare()
        assert learn.called == (not alone)


def test_the_table_of_tasks_is_that_of_the_saved_results():
    saved = tasks.saved()
    assert all(rows.keys() <= tasks.ROWS.keys() for rows in saved.values())
    assert tasks.table(saved) in compare.DOCUMENT.read_text()
    row = {"whole": 41.2, "bare": 50.4, "ratio": 0.82, "measured": "here"}
    lines = tasks.table({"amx": {"colour": row}, "avx2": {"rotation": row}}).splitlines()
    assert lines[2] == "| rotation |  |  |  | 41 | 50 | 82%, below 90% |"
    assert lines[3] == "| colour | 41 | 50 | 82%, below 90% |  |  |  |"
    assert lines[5:] == ["- with AMX: bf16, all: here", "- with AVX2: float32, all: here"]


COUNTER = """
from benchmarks.laps import Laps
lap, n = Laps(), 0
print("not a report")
while True:
    lap(n)
    n += 1
"""


def test_contender_works_when_told_and_leaves_when_left(tmp_path):
    contender = compare.Contender([sys.executable, "-c", COUNTER], tmp_path / "log", threads=1)
    assert [contender.lap(first=True)["items"], contender.lap()["items"]] == [1, 2]
    contender.stop()
    assert contender.process.returncode == 0
    assert (tmp_path / "log").read_text() == "not a report\n"


def test_contender_that_fails_is_quoted(tmp_path):
    contender = compare.Contender([sys.executable, "-c", "1 / 0"], tmp_path / "it.log", threads=1)
    with pytest.raises(SystemExit, match=r"it failed:(.|\n)*ZeroDivisionError"):
        contender.lap(first=True)
    contender.stop()


@pytest.mark.slow
def test_gpu_script_at_toy_size_without_a_gpu(tmp_path, capsys):
    assert gpu.main(["--quick", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "gpu.json").read_text())
    lightly = results.pop("lightly")
    assert isinstance(lightly, dict) or lightly == "cannot be imported here"
    assert not [v for v in results.values() if isinstance(v, str) and v.startswith("failed")]
    table = capsys.readouterr().out
    for text in ("32 px, in memory: pretrain", "224 px, in memory: distill", "| 256 |", "| 4 |"):
        assert text in table


def test_gpu_script_refuses_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    assert gpu.main([]) == 2
    assert "no GPU is visible" in capsys.readouterr().err


@pytest.mark.slow
def test_whole_command_at_toy_size(capsys):
    compare.main(["--quick", "--no_peers", "--repeats", "2", "--only", "loss1024", "data224"])
    assert "loss alone, 1,024 embeddings" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("line", ["augment32", "data32", "data224", "loss1024", "model32"])
def test_peers_run_the_same_work(line, capsys):
    """Installs them: needs a package registry."""
    compare.main(["--quick", "--repeats", "1", "--only", line])
    assert "lightly" in capsys.readouterr().out


@pytest.mark.parametrize("pairs", [3, 5, 10])
def test_the_smallest_difference_found_is_found_in_four_of_five_cases(pairs):
    rows = np.random.default_rng(pairs).standard_normal((40_000, pairs))
    half = stdtrit(pairs - 1, 0.975) * rows.std(axis=1, ddof=1) / np.sqrt(pairs)
    true_half = stdtrit(pairs - 1, 0.975) / np.sqrt(pairs)  # of pairs whose deviation is 1
    shift = claims.smallest_found(true_half, pairs)
    assert np.mean(rows.mean(axis=1) + shift > half) == pytest.approx(0.8, abs=0.01)


def test_claims_are_differences_of_pairs_of_the_same_repetition(tmp_path, capsys, monkeypatch):
    table = tmp_path / "table.csv"
    table.write_text(
        "row,column,seed,status,top1\n"
        "ours,1%,0,done,0.9\nours,1%,1,done,0.8\nours,1%,2,failed,\nours,1%,3,done,0.7\n"
        "rival,1%,3,done,0.6\nrival,1%,0,done,0.8\nrival,1%,2,done,0.1\nrival,1%,1,done,0.6\n"
        "ours,10%,0,done,0.9\nrival,10%,0,done,0.95\n"
    )
    monkeypatch.setattr("sys.argv", ["claims", str(table), "ours", "rival"])
    claims.main()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("| 1%: ours minus rival | +13.3 ± 14.3 | 3 of 3 | undecided | ")
    assert second == "10%: ours: no rival has 3 of its repetitions"


def test_the_best_of_several_rivals_is_that_of_the_column(tmp_path, capsys, monkeypatch):
    table = tmp_path / "table.csv"
    lines = ["row,column,seed,status,top1"]
    for seed in range(3):
        for row, few, many in (("ours", 0.8, 0.9), ("a", 0.7, 0.6), ("b", 0.6, 0.95)):
            noise = seed / 100 * (row == "ours")
            lines += [
                f"{row},1%,{seed},done,{few + noise}",
                f"{row},10%,{seed},done,{many + noise}",
            ]
    table.write_text("\n".join(lines))
    monkeypatch.setattr("sys.argv", ["claims", str(table), "ours", "a", "b"])
    claims.main()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("| 1%: ours minus a | +11.0 ± 2.5 | 3 of 3 | holds |")
    assert second.startswith("| 10%: ours minus b | -4.0 ± 2.5 | 0 of 3 | **behind** |")
    monkeypatch.setattr("sys.argv", ["claims", str(table), "our", "a"])
    with pytest.raises(SystemExit, match="2"):
        claims.main()
    assert "no row 'our' is done; there are ours, a, b" in capsys.readouterr().err


def test_a_rival_with_one_lucky_run_does_not_hide_the_best(tmp_path, capsys, monkeypatch):
    table = tmp_path / "table.csv"
    lines = ["row,column,seed,status,top1", "lucky,1%,0,done,0.99"]
    for seed in range(3):
        lines += [f"ours,1%,{seed},done,0.8{seed}", f"rival,1%,{seed},done,0.7"]
    table.write_text("\n".join(lines))
    monkeypatch.setattr("sys.argv", ["claims", str(table), "ours", "lucky", "rival"])
    claims.main()
    assert capsys.readouterr().out.startswith("| 1%: ours minus rival | +11.0 ")


def test_a_gain_is_the_difference_of_two_differences(tmp_path, capsys, monkeypatch):
    table = tmp_path / "table.csv"
    lines = ["row,column,seed,status,top1"]
    for seed, (big_few, small_few, big_many, small_many) in enumerate(
        [(0.80, 0.70, 0.92, 0.90), (0.81, 0.73, 0.93, 0.91), (0.79, 0.68, 0.91, 0.90)]
    ):
        lines += [
            f"big,1%,{seed},done,{big_few}",
            f"small,1%,{seed},done,{small_few}",
            f"big,10%,{seed},done,{big_many}",
            f"small,10%,{seed},done,{small_many}",
        ]
    lines += ["big,1%,3,done,0.9", "small,1%,3,done,0.1"]  # no pair at 10%
    table.write_text("\n".join(lines))
    arguments = ["claims", str(table), "big", "small", "--gain", "1%"]
    monkeypatch.setattr("sys.argv", [*arguments, "10%"])
    claims.main()  # 8, 6 and 10
    assert capsys.readouterr().out.startswith(
        "| 1% minus 10%: big minus small | +8.0 ± 5.0 | 3 of 3 | holds |"
    )
    monkeypatch.setattr("sys.argv", [*arguments, "100%"])
    with pytest.raises(SystemExit, match="2"):
        claims.main()
    assert "no column '100%' is done; there are 1%, 10%" in capsys.readouterr().err
    monkeypatch.setattr(
        "sys.argv", ["claims", str(table), "big", "small", "big", *arguments[4:], "10%"]
    )
    with pytest.raises(SystemExit, match="2"):
        claims.main()
    assert "--gain takes one rival, got 2" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "a,b\n1,2\n", "row,column,seed,status,top1\nr,c,0,done,\n"])
def test_what_is_no_table_is_refused(tmp_path, capsys, monkeypatch, text):
    table = tmp_path / "table.csv"
    if text:
        table.write_text(text)
    monkeypatch.setattr("sys.argv", ["claims", str(table), "ours", "rival"])
    with pytest.raises(SystemExit, match="2"):
        claims.main()
    assert "cannot read the columns" in capsys.readouterr().err


RESULTS = Path(__file__).parents[1] / "docs/results"
CLAIM = re.compile(r"\| ([^:|]+): (.+) minus (.+) \| [^|]+ \| [^|]+ \| [^|]+ \| [^|]+ \|")


def claimed() -> list[tuple[str, str, str, str, Path]]:
    """Each line of the tables of claims in docs/results: itself, column, row, rival, file.

    The file is that of the table that was named last before it.
    """
    found, table, inside = [], RESULTS, False
    for line in (RESULTS / "README.md").read_text().splitlines():
        if named := re.findall(r"\]\(([\w/-]+)/table\.(?:md|csv)\)", line):
            table = RESULTS / named[-1] / "table.csv"
        inside = line.startswith("|") and (inside or "better in" in line)
        if inside and "better in" not in line and not line.startswith("|---"):
            parts = CLAIM.fullmatch(line)
            assert parts, f"no claim: {line}"
            found.append((line, *parts.groups(), table))
    return found


@pytest.mark.parametrize(("line", "column", "row", "rival", "table"), claimed())
def test_claims_of_the_results_follow_from_their_table(line, column, row, rival, table):
    accuracy = claims.top1([table])
    if " minus " in column:
        accuracy = claims.gains(accuracy, *column.split(" minus "))
    assert claims.claim(accuracy, column, row, rival) == line


@pytest.mark.parametrize("folder", ["digits/headline", "fashion_mnist/fashion"])
def test_each_row_of_ours_is_compared_with_the_best_rival(folder):
    """A claim against a weaker rival alone would flatter; too few repetitions give none."""
    file, table = RESULTS / folder / "table.csv", load_table(Path(folder).name)
    said = {claim[1:4] for claim in claimed() if claim[4] == file}
    accuracy = claims.top1([file])
    for column in table.columns:
        for row in table.rows.keys() - set(table.against):
            if len(accuracy.get((row, column), {})) < claims.LEAST:
                continue
            rival = claims.best(accuracy, column, row, table.against)
            assert (column, row, rival) in said


@pytest.mark.parametrize(
    "path", sorted(Path(claims.__file__).parent.glob("*.py")), ids=lambda p: p.stem
)
def test_each_benchmark_can_be_imported(path):
    if path.stem == "peers":  # has packages of its own, in an environment of its own
        pytest.importorskip("lightly")
    importlib.import_module(f"benchmarks.{path.stem}")
