"""The crash test: runs are killed at each of their file operations, and have to end the same.

    python -m tests.crash.crash                    # all scenarios, all points, killed and torn
    python -m tests.crash.crash stages --every 7   # a sample of one

`shim.c` numbers the operations: files opened for writing, writes, syncs, renames, removals, and
folders. A point is a number and what happens there (`MODES`). After it the same command is run
again. It has to end with exit code 0 and the files of a run that was never killed, bit for bit.
Only what a clock says may differ.
"""

import argparse
import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.support.photos import class_folders
from tests.support.published import publish
from tests.support.tables import write

HERE = Path(__file__).parent
RECORDS: dict[str, Callable[[str], Any]] = {  # files in which a clock may have written
    ".json": json.loads,
    ".jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
    ".csv": lambda text: list(csv.DictReader(io.StringIO(text))),
}
SECONDS = (
    "seconds",
    "cpu_seconds",
    "images_per_second",
    "waiting_for_data",
    "git",
    "calls",
)  # clocks, commit, and which call of predict wrote which rows
TOY = [
    "--model.encoder=simclr_resnet8_1x_sk0",
    "--model.head_width=32",
    "--model.head_out=16",
    *(f"--{s}.warmup_epochs=0" for s in ("pretrain", "supervised", "distill")),
    *(f"--{s}.batch_size=32" for s in ("pretrain", "distill")),
    *(f"--{s}.checkpoint_every_steps=2" for s in ("pretrain", "distill")),
    *(f"--{s}.checkpoint_every_steps=2" for s in ("finetune", "linear", "supervised")),
    *(f"--{s}.log_every_steps=1" for s in ("pretrain", "distill", "finetune")),
    *(f"--{s}.steps=3" for s in ("linear", "supervised")),
    *(f"--{s}.steps=5" for s in ("pretrain", "distill", "finetune")),
    "--threads=1",
    "--data.workers=1",
]


@dataclass(frozen=True)
class Mode:
    """What happens at a point.

    Attributes:
        event: its number in ``shim.c``.
        codes: exit codes that the run may have then; any where there are none.
        error: what a failing operation is told.
        kinds: of operations that are points.
    """

    event: int
    codes: tuple[int, ...]
    error: int = 0
    kinds: tuple[str, ...] = ()


NEED_ROOM = ("write", "open", "mkdir")
MODES = {
    "kill": Mode(1, (-9,)),  # before the operation
    "torn": Mode(2, (-9,), kinds=("write",)),  # after the first half of it
    "full": Mode(3, (2,), errno.ENOSPC, NEED_ROOM),  # from here on nothing more has room
    "quota": Mode(3, (2,), errno.EDQUOT, NEED_ROOM),
    # from here on everything fails; where the work was done, a command may be able to do without
    "read-only": Mode(6, (0, 2), errno.EROFS),
    "forbidden": Mode(6, (0, 2), errno.EACCES),
    "broken": Mode(6, (0, 2), errno.EIO),
    "fail": Mode(5, (0, 2), errno.EIO),  # this one operation fails
    "other": Mode(4, ()),  # of two processes the other one is killed
}


@dataclass(frozen=True)
class Scenario:
    """Commands that are killed.

    Attributes:
        commands: module and arguments, of the folder to work in.
        begins_with: makes what lies there before, once; it may run commands.
        processes: that train together.
    """

    commands: Callable[[Path], list[list[str]]]
    begins_with: Callable[["Crash", Path], None] = lambda crash, work: None
    processes: int = 1


def pipeline(work: Path, *options: str) -> list[str]:
    """The pipeline at toy size."""
    return ["pipeline", *TOY, f"--output={work}/runs", "--classical.enabled=false", *options]


def finished_run(crash: "Crash", work: Path) -> None:
    """A run of all stages."""
    crash.must_run(work, [pipeline(work)])


def photos(crash: "Crash", work: Path) -> None:
    """A few photos."""
    class_folders(work / "photos", 12, size=(40, 36))


def finished_and_photos(crash: "Crash", work: Path) -> None:
    """Both."""
    finished_run(crash, work)
    class_folders(work / "photos", 12, size=(40, 36))


def weights(crash: "Crash", work: Path) -> None:
    """A file of timm's weights."""
    publish("mobilenetv3_small_050", work / "weights.safetensors")


def with_table(crash: "Crash", work: Path) -> None:
    """A finished run, and a table that needs other artifacts too."""
    finished_run(crash, work)
    rows = {"a": {"method": "finetune"}, "b": {"method": "linear", "linear.learning_rate": 0.02}}
    write(work, rows=rows, columns={"1%": {"labels": "1pct"}, "5": {"labels": "5perclass"}})


def student(work: Path) -> str:
    """Folder of the distilled student."""
    return f"{work}/runs/digits/distill-1pct-seed0"


OWN_PHOTOS = [
    "--labels=4perclass",
    "--run=photos",
    "--data.image_size=16",
    "--config=configs/digits.yaml",
]
SCENARIOS = {
    "pretrain": Scenario(lambda work: [["stages.pretrain", *TOY, f"--output={work}/runs"]]),
    "stages": Scenario(lambda work: [pipeline(work)]),
    "two": Scenario(lambda work: [pipeline(work)], processes=2),
    "two in float32": Scenario(lambda work: [pipeline(work, "--precision=no")], processes=2),
    "table": Scenario(lambda work: [pipeline(work, f"--table={work}/mine.yaml")], with_table),
    "choice": Scenario(lambda work: [pipeline(work, "--labels=20suggested")], finished_run),
    "classical": Scenario(lambda work: [pipeline(work, "--classical.enabled=true")], finished_run),
    "force": Scenario(lambda work: [pipeline(work, "--force=finetune")], finished_run),
    "cache": Scenario(
        lambda work: [
            pipeline(
                work,
                f"--data.train={work}/photos",
                f"--data.cache_folder={work}/cache",
                "--data.cache=20",
                *OWN_PHOTOS,
            )
        ],
        photos,
    ),
    "suggest": Scenario(
        lambda work: [["stages.suggest.suggest", f"{work}/runs/digits", "--budget=10"]],
        finished_run,
    ),
    "export": Scenario(
        lambda work: [
            ["stages.export.export", student(work), f"--to={form}", *options]
            for form, options in (("onnx", ["--int8"]), ("torchscript", []), ("timm", []))
        ],
        finished_run,
    ),
    "export again": Scenario(
        lambda work: [["stages.export.export", student(work), "--to=timm"]],
        lambda crash, work: crash.must_run(
            work, [pipeline(work), ["stages.export.export", student(work), "--to=timm"]]
        ),
    ),
    "import": Scenario(
        lambda work: [
            [
                "stages.import_weights.command",
                f"timm:mobilenetv3_small_050={work}/weights.safetensors",
                f"{work}/runs/own/pretrain",
            ]
        ],
        weights,
    ),
    "predict": Scenario(
        lambda work: [
            ["stages.predict.command", student(work), f"{work}/photos", "-o", f"{work}/rows{form}"]
            for form in (".csv", ".jsonl", ".parquet")
        ],
        finished_and_photos,
    ),
    "page": Scenario(lambda work: [["stages.page.__main__", f"{work}/runs/digits"]], finished_run),
    "assess": Scenario(
        lambda work: [["stages.assess.assess", *pipeline(work)[1:-1]]], finished_run
    ),
}


def contents(folder: Path) -> dict[str, Any]:
    """What lies in a folder: hashes of files, without what a clock says; links; folders."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() or path.is_dir():
            found[name] = str(path.readlink()) if path.is_symlink() else "folder"
            continue
        whole = path.read_bytes()
        with suppress(ValueError):  # it is torn
            if path.suffix in RECORDS:
                records = RECORDS[path.suffix](whole.decode())
                whole = json.dumps(_without_clock(records)).encode()
        found[name] = sha256(whole).hexdigest()
    return found


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_clock(v) for k, v in value.items() if k not in SECONDS}
    return [_without_clock(v) for v in value] if isinstance(value, list) else value


class Crash:
    """A process with torch, which forks one for each run.

    Args:
        folder: to work in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._points: dict[str, tuple[dict[str, Any], list[str]]] = {}
        shim = folder / "shim.so"
        source = HERE / "shim.c"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", source, "-o", shim, "-ldl"], check=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.forked", *TOY],
            env={**os.environ, "LD_PRELOAD": str(shim)},
            cwd=HERE.parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def run(self, work: Path, commands: list[list[str]], **options: object) -> dict[str, Any]:
        """Run commands; options as `tests.crash.forked.run` has them."""
        request = {"commands": commands, "watch": str(work), "output": str(self.folder), **options}
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def must_run(self, work: Path, commands: list[list[str]], **options: object) -> None:
        """The same, to the end."""
        answer = self.run(work, commands, **options)
        assert not any(answer["codes"]), (commands, answer)

    # ------------------------------------------------------------------------------------ a point
    def points(self, name: str) -> tuple[dict[str, Any], list[str]]:
        """Run a scenario without a crash: its files, and its operations in order."""
        if name in self._points:
            return self._points[name]
        scenario, work = SCENARIOS[name], self.folder / "work"
        before = self.folder / name.replace(" ", "-")
        if not before.exists():
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            scenario.begins_with(self, work)
            work.rename(before)
        self._begin(name)
        log = self.folder / "operations"
        self.must_run(work, scenario.commands(work), log=str(log), processes=scenario.processes)
        self._points[name] = contents(work), log.read_text().splitlines()
        return self._points[name]

    def _begin(self, name: str) -> Path:
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        return shutil.copytree(self.folder / name.replace(" ", "-"), work, symlinks=True)

    def crash(self, name: str, whole: dict[str, Any], mode: str, point: int) -> str:
        """End a scenario at a point, and run it again: what is wrong then, or nothing."""
        happens = MODES[mode]
        event = {"event": happens.event, "code": happens.error, "point": point}
        return self.interrupt(name, whole, happens.codes, **event)

    def interrupt(
        self, name: str, whole: dict[str, Any], allowed: tuple[int, ...], **options: object
    ) -> str:
        """Run a scenario in a bad way, and again in a good one: what is wrong, or nothing.

        Args:
            name: of the scenario.
            whole: the files of a whole run.
            allowed: exit codes of the first run; none allow any, and any number of errors.
            options: of the first run, as `run` has them.
        """
        scenario, work = SCENARIOS[name], self._begin(name)
        commands, several = scenario.commands(work), {"processes": scenario.processes}
        ended = self.run(work, commands, **options, **several)
        code, errors = ended["codes"][0], ended["err"].splitlines()
        lines = [line for line in errors if line.startswith("error: ")]
        if "Traceback" in ended["err"]:
            return f"traceback: {errors[-1]}"
        if allowed and code not in allowed:
            return f"exit codes {ended['codes']}: {ended['err'][-300:]}"
        if allowed and code == 2 and len(lines) != 1:
            return f"not one line: {ended['err']!r}"
        again = self.run(work, commands, **several)
        if any(again["codes"]):
            return f"run again: exit codes {again['codes']}: {again['err'][-500:]}"
        if "Traceback" in again["err"]:
            return f"run again: traceback: {again['err'][-500:]}"
        return self.differences(whole)

    def differences(self, whole: dict[str, Any]) -> str:
        """What lies in the folder otherwise than at the end of a whole run."""
        now = contents(self.folder / "work")
        wrong = [path for path in sorted({*whole, *now}) if whole.get(path) != now.get(path)]
        return "; ".join(f"{path} {_fault(path, whole, now)}" for path in wrong[:4])

    def campaign(
        self, name: str, modes: list[str], every: int = 1, first: int = 1
    ) -> Iterator[Any]:
        """Crash a scenario at every so many-th point.

        Yields:
            (mode, operation, what is wrong or an empty text) of each point.
        """
        whole, operations = self.points(name)
        for mode in modes:
            chosen = [
                operation
                for operation in operations
                if not MODES[mode].kinds or operation.split()[1] in MODES[mode].kinds
            ]
            for operation in chosen[min(first, len(chosen)) - 1 :: every]:
                yield mode, operation, self.crash(name, whole, mode, int(operation.split()[0]))


def _fault(path: str, whole: dict[str, Any], now: dict[str, Any]) -> str:
    if path not in whole:
        return "is left"
    return "differs" if path in now else "is missing"


def main() -> int:
    """Crash the scenarios; 1 where one ended otherwise than whole."""
    parser = argparse.ArgumentParser("python -m tests.crash.crash", description=__doc__)
    parser.add_argument("scenarios", nargs="*", default=[*SCENARIOS], metavar="SCENARIO")
    parser.add_argument("--modes", default="kill,torn")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=1)
    arguments = parser.parse_args()
    number, wrong = 0, 0
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        crash = Crash(Path(folder))
        for name in arguments.scenarios:
            began, before = time.time(), number
            modes = arguments.modes.split(",")
            for mode, operation, fault in crash.campaign(
                name, modes, arguments.every, arguments.first
            ):
                number += 1
                if fault:
                    wrong += 1
                    print(f"{name}: {mode} at {operation}: {fault}", flush=True)
            print(f"{name}: {number - before} points, {time.time() - began:.0f} s", flush=True)
        crash.close()
    print(f"{number} points, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
