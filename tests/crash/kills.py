"""SIGKILL at random times, over the default run in the default precision.

    python -m tests.crash.kills --kills 100                # the whole recipe: hours
    python -m tests.crash.kills --kills 100 --share 0.02   # the same stages, 2 % of the steps

A chain is one run that is killed several times, and then left alone. It has to end with the files
of a run that was never killed, bit for bit. Only what a clock says may differ.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from shared.config.command_line import load_config
from shared.config.schema import Config
from tests.crash.crash import Crash, contents

STAGES = ("pretrain", "supervised", "linear", "finetune", "distill")


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
    crash: Crash, work: Path, command: list[str], kills: int, seconds: float, rng: random.Random
) -> int:
    """Kill a run so often, and let it end; the number of kills that met it running."""
    met = 0
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for _ in range(kills):
        codes = crash.run(work, [command], seconds=rng.uniform(0, seconds))["codes"]
        if codes == [0]:
            break
        assert codes == [-9], codes
        met += 1
    crash.must_run(work, [command])
    return met


def main() -> int:
    """Kill; 1 where a chain ended otherwise than the run that was never killed."""
    parser = argparse.ArgumentParser("python -m tests.crash.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--chain", type=int, default=10, help="kills of one run, at most")
    parser.add_argument("--share", type=float, default=1.0, help="of the recipe's steps")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    arguments = parser.parse_args()
    print("seed", arguments.seed)
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        crash, work = Crash(Path(folder)), Path(folder) / "work"
        options = shorter(load_config(["--labels=1pct"], "", "")[0], arguments.share)
        command = ["pipeline", "--labels=1pct", *options, f"--output={work}"]
        work.mkdir()
        began = time.monotonic()
        crash.must_run(work, [command])
        seconds, whole = time.monotonic() - began, contents(work)
        print(f"a run that is not killed takes {seconds:.1f} s", flush=True)
        kills = same = 0
        while kills < arguments.kills:
            number = min(arguments.chain, arguments.kills - kills)
            met = chain(crash, work, command, number, seconds, rng)
            now = contents(work)
            wrong = [path for path in {*whole, *now} if whole.get(path) != now.get(path)]
            kills, same = kills + met, same + met * (not wrong)
            print(f"{kills} kills, {same} ended with the same bits {sorted(wrong)[:5]}", flush=True)
        crash.close()
    return int(same < kills)


if __name__ == "__main__":
    sys.exit(main())
