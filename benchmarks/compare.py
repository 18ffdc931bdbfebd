"""Us and the libraries that a user would otherwise pick, on the same work, in one run.

    python -m benchmarks.compare                          # every line, about 10 CPU minutes
    python -m benchmarks.compare --only step224 loss8192  # some lines; the others stay as they are
    python -m benchmarks.compare --table                  # the tables again, nothing measured

Each contender is a process of its own. They work in turns, A B A B, after one lap each that does
not count, and what is compared is the work per CPU second of a process with its workers, for the
cores may be shared. A ratio is taken within each turn, so that what slows the machine for a while
slows both sides of it. lightly and solo-learn are installed into an environment of their own, which
borrows torch from this one.

Images are made on the spot. The laps are saved in benchmarks/results, a file for each kind of
processor, with hardware, versions, date and commit, and the tables of docs/performance.md, one for
each kind, are written from there.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from typing import IO, Any, cast

import psutil
import torch
from tqdm import tqdm

from benchmarks.photos import make_photos, make_small
from shared.config.command import hardware_precision

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
KINDS = {  # of processors, by what makes their matrix products fast
    "amx": "with AMX: bf16",
    "avx512_bf16": "with the bf16 products of AVX-512, without AMX: bf16",
    "avx512": "with AVX-512, without AMX: float32",
    "avx2": "with AVX2: float32",
    "other": "of other kinds",
}
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
DOCUMENT = ROOT / "docs" / "performance.md"
PEERS = ROOT / "benchmarks" / ".peers"  # their environment
PACKAGES = ("lightly", "solo-learn")
NAMES = {
    "ours": "ours",
    "lightly": "lightly",
    "solo": "solo-learn",
    "lightly:bf16": "lightly, bf16",
    "ours:bare": "our network, loss and optimizer alone",
    "ours:gpu": "ours beside a GPU, which takes colours and blur",
    "ours:paper": "ours with the paper's recipe: crops in float, not antialiased",
    "ours:torch": "torch's convolution",
    "ours:fp32": "float32",
    "ours:nchw": "without channels_last",
    "ours:returned": "without keep_freed_memory",
    "ours:compiled": "with torch.compile",
}

Record = Mapping[str, float]


@dataclass(frozen=True)
class Measure:
    """A number that is made of a lap.

    Args:
        unit: as printed.
        value: of one lap.
        less: whether less is better.
        targets: by contender, how many times better than it we want to be on a processor with AMX.
        plain: the same on the others.
        limit: what we do not want to be above.
    """

    unit: str
    value: Callable[[Record], float]
    less: bool = False
    targets: Mapping[str, float] | None = None
    plain: Mapping[str, float] | None = None
    limit: float | None = None

    def ratio(self, ours: Record, other: Record) -> float:
        """How many times better ours is."""
        a, b = self.value(ours), self.value(other)
        return b / a if self.less else a / b


def rate(
    unit: str, targets: Mapping[str, float] | None = None, plain: Mapping[str, float] | None = None
) -> tuple[Measure, ...]:
    """Items per CPU second."""
    value: Callable[[Record], float] = lambda lap: lap["items"] / lap["cpu"]  # noqa: E731
    return (Measure(f"{unit} / CPU s", value, targets=targets, plain=plain),)


def peers(factor: float) -> dict[str, float]:
    """The same target for both."""
    return dict.fromkeys(("lightly", "solo"), factor)


def loss_measures(
    faster: Mapping[str, float] | None = None,
    leaner: Mapping[str, float] | None = None,
    faster_plain: Mapping[str, float] | None = None,
) -> tuple[Measure, ...]:
    """CPU time and memory of one forward and backward."""
    return (
        Measure("CPU ms", cpu_ms, True, faster, faster_plain),
        Measure("MB extra at the peak", lambda lap: lap["extra_mb"], True, leaner, leaner),
    )


def cpu_ms(lap: Record) -> float:
    """CPU time of one item."""
    return 1000 * lap["cpu"] / lap["items"]


@dataclass(frozen=True)
class Line:
    """One piece of work, who does it, and what is measured."""

    title: str
    contenders: tuple[str, ...]
    measures: tuple[Measure, ...]


THREE = ("ours", "lightly", "solo")
LINES = {
    "step32": Line(
        "whole step, ResNet-18 with small-image stem, 32 px, batch 256, each as it recommends",
        THREE,
        rate("images", {"lightly": 2.8, "solo": 2.4}, peers(1.3)),
    ),
    "step32_bf16": Line(
        "the same, batch 64, peers given bf16 (solo-learn with channels_last)",
        (*THREE, "ours:bare"),
        rate("images", {"lightly": 1.25, "solo": 1.0, "ours:bare": 0.95}),
    ),
    "step224": Line(
        "whole step, ResNet-50, 224-px JPEGs, batch 8, 2 workers",
        (*THREE, "ours:bare"),
        rate("images", peers(2.2), peers(1.3)),
    ),
    "augment32": Line(
        "augmentation alone, 32 px",
        THREE,
        rate("views", peers(4), peers(8)),
    ),
    "load224": Line(
        "loading alone: JPEG to 224 px as in evaluation, 2 workers",
        ("ours", "lightly"),
        rate("images"),
    ),
    "data224": Line(
        "loading + augmenting two views, 224-px JPEGs, 2 workers",
        (*THREE, "ours:gpu", "ours:paper"),
        rate("images", peers(2), peers(2)),
    ),
    "data32": Line(
        "loading + augmenting two views, 32 px, in memory",
        THREE,
        rate("images", peers(5), peers(5)),
    ),
    "model32": Line(
        "model, loss and optimizer alone, ResNet-18 at 32 px, batch 64",
        ("ours:bare", "lightly", "lightly:bf16"),
        rate("images"),
    ),
    "settings32": Line(
        "what our settings are worth: network, loss, optimizer; ResNet-18, 32 px, batch 64",
        ("ours:bare", "ours:fp32", "ours:nchw", "ours:returned", "ours:compiled"),
        rate("images"),
    ),
    "convolution": Line(
        "3 x 3 convolution of 512 channels on 4 x 4 maps, bf16, 128 views, forward and backward",
        ("ours", "ours:torch"),
        (Measure("CPU ms", cpu_ms, True),),
    ),
    "convolution_float32": Line(
        "3 x 3 convolution of 256 channels on 8 x 8 maps, float32, 128 views, forward and backward",
        ("ours", "ours:torch"),
        (Measure("CPU ms", cpu_ms, True),),
    ),
    "loss1024": Line("loss alone, 1,024 embeddings of width 128", THREE, loss_measures()),
    "loss4096": Line("loss alone, 4,096 embeddings", THREE, loss_measures()),
    "loss8192": Line(
        "loss alone, 8,192 embeddings", THREE, loss_measures(peers(4), peers(8), peers(6))
    ),
    "teacher224": Line(
        "predictions of the frozen teacher, ResNet-50, 224 px, batch 16",
        ("ours", "ours:fp32"),
        rate("images", {"ours:fp32": 3.5}),
    ),
    "waiting32": Line(
        "share of the time in which a step at 32 px, batch 64, waits for data",
        ("ours",),
        (Measure("% of the step", lambda lap: 100 * lap["waiting"], True, limit=3.0),),
    ),
}


# ---------------------------------------------------------------------------------- measuring
def peers_python() -> Path:
    """Python of the peers' environment, which is made where it is not there."""
    python = PEERS / "bin" / "python"
    complete = PEERS / "complete"
    if not complete.exists():
        print(f"installing {', '.join(PACKAGES)} into {PEERS.relative_to(ROOT)}", flush=True)
        shutil.rmtree(PEERS, ignore_errors=True)
        venv.create(PEERS, with_pip=True)
        (PEERS / ".gitignore").write_text("*\n")
        ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (peers_site() / "borrowed.pth").write_text("\n".join(ours))  # torch above all
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "lightly>=1.6"], check=True)
        # Without what it depends on: its release in the registry asks for torch 1.9.
        subprocess.run([*pip, "--no-deps", "solo-learn"], check=True)
        complete.touch()
    return python


def peers_site() -> Path:
    """Where the peers' packages lie."""
    return next(PEERS.glob("lib/python*/site-packages"))


def command(name: str, line: str, work: Path, quick: bool) -> list[str]:
    """What a contender of a line is started with."""
    who, _, variant = name.partition(":")
    task = f"{line}:{variant}" if variant else line
    if who == "ours":
        return [sys.executable, "-m", "benchmarks.ours", task, str(work), *["--quick"] * quick]
    return [str(peers_python()), "-m", "benchmarks.peers", task, who, str(work)]


class Contender:
    """A process that works one lap on demand; what it prints goes to ``log``."""

    def __init__(self, command: Sequence[str], log: Path, threads: int):
        self.log = log
        number = str(threads)
        limits = {
            "OMP_NUM_THREADS": number,
            "MKL_NUM_THREADS": number,
            "CUDA_VISIBLE_DEVICES": "",  # all of them on the CPU
        }
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                text=True,
                bufsize=1,
                env=os.environ | limits,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
            )
        self._to, self._from = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)

    def lap(self, first: bool = False) -> dict[str, float]:
        """What the next lap took; the first is under way already."""
        if not first:
            self._to.write("\n")
        report = self._from.readline()
        if not report:
            end = "\n".join(self.log.read_text().splitlines()[-15:])
            raise SystemExit(f"{self.log.stem} failed:\n{end}")
        return json.loads(report)

    def stop(self) -> None:
        """End the process; it leaves when nobody is there to tell it to go on."""
        self._to.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._from.close()


def measure(name: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All laps of a line, and where and when they were run."""
    contenders = [
        who for who in LINES[name].contenders if not options.no_peers or who.startswith("ours")
    ]
    load = os.getloadavg()[0]
    running: dict[str, Contender] = {}
    try:
        for who in contenders:  # one after the other: preparations would disturb each other
            log = work / f"{name}-{who}.log"
            task = command(who, name, work, options.quick)
            running[who] = Contender(task, log, options.threads)
            running[who].lap(first=True)
        laps: dict[str, list] = {who: [] for who in contenders}
        for _ in tqdm(range(options.repeats), name, unit="turn", disable=None):
            for who, contender in running.items():
                laps[who].append(contender.lap())
    finally:
        for contender in running.values():
            contender.stop()
    return {
        **circumstances(not options.no_peers),
        "threads": options.threads,
        "load_before": round(load, 2),
        "laps": laps,
    }


def circumstances(peers: bool) -> dict[str, Any]:
    """Hardware, versions, date and commit; versions of the peers too, if asked."""
    names = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow")
    versions = {name: version(name) for name in names} | {"python": platform.python_version()}
    if peers:
        installed = {d.metadata["Name"]: d.version for d in distributions(path=[str(peers_site())])}
        versions |= {name: installed[name] for name in PACKAGES}
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions,
    }


def kind() -> str:
    """Of this processor: a key of `KINDS`, as torch and oneDNN may use it."""
    if hardware_precision("cpu") == "bf16":
        return "amx" if torch.cpu._is_amx_tile_supported() else "avx512_bf16"
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return capability if capability in KINDS else "other"


def hardware() -> str:
    """The processor in words, and what was kept from using."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    has = {
        ", AMX": torch.cpu._is_amx_tile_supported(),
        ", AVX-512 with bf16": torch.cpu._is_avx512_bf16_supported(),
    }
    bf16 = next((words for words, there in has.items() if there), "")
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    emulated = f", EMULATING {kind()} by {' '.join(limits)}" if limits else ""
    memory = psutil.virtual_memory().total / 2**30
    return f"{model}{bf16}{emulated}, {os.cpu_count()} cores, {memory:.0f} GiB"


def commit() -> str:
    """Of the project; with a plus where files differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
        changed = subprocess.check_output([*git, "status", "--porcelain"], text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed else "")


# ---------------------------------------------------------------------------------- tables
def table(results: Mapping[str, Any], on: str) -> str:
    """Markdown: median and range over the turns, for each line and contender.

    Args:
        results: by line, as `measure` returns them.
        on: the kind of processor, which decides about targets.
    """
    rows = [
        "| work | | median | min to max | | ours is better by | target |",
        "|---|---|--:|--:|---|--:|--:|",
    ]
    for name, line in LINES.items():
        if name not in results:
            continue
        laps = results[name]["laps"]
        ours = line.contenders[0]
        for number, m in enumerate(line.measures):
            for who in filter(laps.get, line.contenders):
                title = line.title if who == ours and number == 0 else ""
                values = [m.value(lap) for lap in laps[who]]
                cells = [
                    title,
                    NAMES[who],
                    number_(statistics.median(values)),
                    f"{number_(min(values))} to {number_(max(values))}",
                    m.unit,
                ]
                rows.append("| " + " | ".join([*cells, *verdict(m, laps, ours, who, on)]) + " |")
    return "\n".join(rows)


def verdict(m: Measure, laps: Mapping[str, list], ours: str, who: str, on: str) -> tuple[str, str]:
    """Our advantage over a contender with its range, and the target with whether it is met."""
    if who == ours:
        if m.limit is None:
            return "", ""
        met = statistics.median(map(m.value, laps[ours])) < m.limit
        return "", f"< {m.limit:g}, {'met' if met else 'missed'}"
    ratios = [m.ratio(a, b) for a, b in zip(laps[ours], laps[who], strict=True)]
    median = statistics.median(ratios)
    better = f"{median:.2f} × ({min(ratios):.2f} to {max(ratios):.2f})"
    target = ((m.targets if on == "amx" else m.plain) or {}).get(who)
    if target is None:
        return better, ""
    return better, f"≥ {target:g} ×, {'met' if median >= target else 'missed'}"


def number_(value: float) -> str:
    """Three significant digits, thousands with a comma."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def origins(results: Mapping[str, Any]) -> str:
    """One line for each set of circumstances, with the lines of the table measured in it."""
    groups: dict[str, list[str]] = {}
    for name in filter(results.get, LINES):
        r = results[name]
        versions = ", ".join(f"{key} {value}" for key, value in r["versions"].items())
        text = (
            f"{r['hardware']}; {r['threads']} thread per process; {versions}; commit {r['commit']},"
            f" {r['date'].split()[0]}"
        )
        groups.setdefault(text, []).append(name)
    return "\n".join(f"- {', '.join(names)}: {text}" for text, names in groups.items())


def saved(on: str) -> Path:
    """The file of results of a kind of processor."""
    return RESULTS / f"cpu-{on}.json"


def write_document() -> None:
    """Put the tables of all kinds into docs/performance.md."""
    parts = []
    for on, title in KINDS.items():
        if saved(on).exists():
            results = json.loads(saved(on).read_text())
            parts.append(f"### Processors {title}\n\n{table(results, on)}\n\n{origins(results)}")
    DOCUMENT.write_text(replace_between(DOCUMENT.read_text(), "cpu", "\n\n".join(parts)))


def replace_between(text: str, key: str, content: str) -> str:
    """Put content between ``<!-- key -->`` and ``<!-- /key -->``."""
    start, end = f"<!-- {key} -->\n", f"<!-- /{key} -->"
    head, _, rest = text.partition(start)
    _, marker, tail = rest.partition(end)
    if not marker:
        raise SystemExit(f"the document has no place marked {start.strip()} ... {end}")
    return f"{head}{start}{content.rstrip()}\n{end}{tail}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        "benchmarks.compare", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="LINE",
        choices=LINES,
        default=list(LINES),
        help=f"of {', '.join(LINES)}",
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns that count")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--quick", action="store_true", help="tiny work, nothing saved")
    parser.add_argument("--no_peers", action="store_true", help="our side alone")
    parser.add_argument("--table", action="store_true", help="only write the tables again")
    options = parser.parse_args(argv)

    on = kind()
    print(f"{hardware()}: a processor {KINDS[on]}", flush=True)
    results = json.loads(saved(on).read_text()) if saved(on).exists() and not options.quick else {}
    if not options.table:
        if not options.no_peers:
            peers_python()
        with tempfile.TemporaryDirectory(prefix="few-labels-bench-") as folder:
            work = Path(folder)
            make_photos(work / "photos", 8 if options.quick else 64)
            make_small(work / "small", 64 if options.quick else 2048)
            for name in options.only:
                results[name] = measure(name, work, options)
                print(table({name: results[name]}, on), flush=True)
                if not options.quick:
                    saved(on).write_text(json.dumps(results, indent=1) + "\n")
                    write_document()
    print(f"\n{table(results, on)}\n\n{origins(results)}")
    if options.table:
        write_document()
    return 0


if __name__ == "__main__":
    sys.exit(main())
