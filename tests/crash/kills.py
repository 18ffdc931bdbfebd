"""SIGKILL at random times, over the default run in the default precision.

    python -m tests.crash.kills --kills 100 --chain 20     # the whole recipe, five chains: hours
    python -m tests.crash.kills --kills 100 --share 0.02   # the same stages, 2 % of the steps

A chain is one run that is killed several times, and then left alone. It has to end with the files
of a run that was never killed, bit for bit. Only what a clock says may differ. The times are drawn
so that the kills spread over the run: the more of them in a chain, the shorter it works between,
and checkpoints should be nearer (``-- --pretrain.checkpoint_every_steps 50``).
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from shared.config.command_line import load_config
from shared.config.schema import Config
from tests.crash.crash import Crash, contents

STAGES = ("pretrain", "supervised", "linear", "finetune", "distill")
PATIENCE = 7200.0  # seconds that a run may take that is left alone; the machine may be busy


def shorter(config: Config, share: float) -> list[str]:
    """Options that cut the stages' lengths, and the distances of their checkpoints, to a share."""
    options = []
    for stage in STAGES if share < 1 else ():
        training = getattr(config, stage)
        unit = "steps" if training.steps else "epochs"
        length = share * (training.steps or training.epochs)
        options += [
            f"--{stage}.{unit}={max(4, int(length)) if training.steps else length}",
            f"--{stage}.warmup_epochs={share * training.warmup_epochs}",
            f"--{stage}.checkpoint_every_steps={max(2, int(share * 200))}",
        ]
    return options


def chain(
    crash: Crash, work: Path, command: list[str], kills: int, longest: float, rng: random.Random
) -> Counter[str]:
    """Kill a run so often, and let it end; how many kills met it running, by the stage then.

    Args:
        crash: runs it.
        work: its folder, which is emptied.
        command: module and arguments.
        kills: at most; fewer where it ends before.
        longest: seconds until a kill.
        rng: draws the times.
    """
    met = Counter[str]()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for _ in range(kills):
        codes = crash.run(work, [command], seconds=rng.uniform(0, longest))["codes"]
        if codes == [0]:
            break
        assert codes == [-9], codes
        met[stage_at_work(work)] += 1
    crash.must_run(work, [command], seconds=PATIENCE)
    return met


def stage_at_work(work: Path) -> str:
    """The stage whose folder was made last, unless it is done."""
    folders = [path for path in work.glob("*/*-*") if path.is_dir()] + [*work.glob("*/pretrain")]
    last = max(folders, key=lambda path: path.stat().st_mtime_ns, default=None)
    if last is None or (last / "meta.json").exists():
        return "between"
    return last.name


def cpu_seconds(crash: Crash) -> float:
    """Of all runs so far."""
    return sum(psutil.Process(crash.process.pid).cpu_times()[:4])


def main() -> int:
    """Kill; 1 where a chain ended otherwise than the run that was never killed."""
    parser = argparse.ArgumentParser("python -m tests.crash.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--chain", type=int, default=3, help="kills of one run, at most")
    parser.add_argument("--share", type=float, default=1.0, help="of the recipe's steps")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("options", nargs="*", help="of the pipeline, behind --")
    arguments = parser.parse_args()
    print("seed", arguments.seed)
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        crash, work = Crash(Path(folder)), Path(folder) / "work"
        options = shorter(load_config(["--labels=1pct"], "", "")[0], arguments.share)
        command = ["pipeline", "--labels=1pct", *options, *arguments.options, f"--output={work}"]
        work.mkdir()
        began = time.monotonic()
        crash.must_run(work, [command], seconds=PATIENCE)
        seconds, whole = time.monotonic() - began, contents(work)
        print(f"a run that is not killed takes {seconds:.1f} s, {cpu_seconds(crash):.0f} of CPU")
        longest = 2 * seconds / (arguments.chain + 1)
        kills, same, by_stage = 0, 0, Counter[str]()
        while kills < arguments.kills:
            number = min(arguments.chain, arguments.kills - kills)
            met = chain(crash, work, command, number, longest, rng)
            now = contents(work)
            wrong = [path for path in {*whole, *now} if whole.get(path) != now.get(path)]
            kills, same = kills + met.total(), same + met.total() * (not wrong)
            by_stage += met
            print(f"{kills} kills, {same} ended with the same bits {sorted(wrong)[:5]}", end="; ")
            print(f"{cpu_seconds(crash):.0f} s of CPU; {dict(by_stage)}", flush=True)
        crash.close()
    return int(same < kills)


if __name__ == "__main__":
    sys.exit(main())
