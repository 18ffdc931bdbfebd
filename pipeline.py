"""The whole path: many images and few labels in, a small classifier and a table out.

    accelerate launch pipeline.py --labels 1pct        # the embedded digits, offline
    python pipeline.py --config configs/image_folder.yaml --data.train photos/ --labels labels.csv
    accelerate launch pipeline.py --table label_efficiency   # a grid of such runs, and its table

Runs those of the three stages, and of the comparisons, that are not already done.
"""

import sys
from collections.abc import Collection, Sequence
from functools import partial

from accelerate import Accelerator

from shared.config.command import run_command
from shared.config.schema import Config
from shared.data.labels import draw_labels
from shared.data.sources import open_data
from shared.runs.forecast import forecast
from shared.runs.grid import fill
from shared.runs.results import collect, table, write_results
from shared.training.stage import plan
from stages import distill, finetune, pretrain
from stages.assess import assess

STAGES = {
    "pretrain": pretrain.run,
    "supervised": partial(finetune.run, method="supervised"),
    "supervised-student": partial(finetune.run, method="supervised-student"),
    "linear": partial(finetune.run, method="linear"),
    "finetune": partial(finetune.run, method="finetune"),
    "self-distill": partial(distill.run, stage="self-distill"),
    "distill": distill.run,
}


def run(config: Config, accelerator: Accelerator, flags: Collection[str] = ()) -> None:
    """Three stages and the rows to compare with; then the table of this label set and seed.

    Args:
        config: the run; with ``table`` a grid of runs instead.
        accelerator: of this process.
        flags: the options given on the command line, which win over those of a table.
    """
    if config.table:
        return fill(config, accelerator, {**STAGES, "assess": assess.run}, flags)
    skip = set() if config.distill.self_first else {"self-distill"}
    stages = {name: stage for name, stage in STAGES.items() if name not in skip}
    if config.plan:
        return forecast(config, accelerator, stages)
    splits = open_data(config.data, config.label_set, accelerator.is_local_main_process)
    # bad labels and impossible schedules stop the run before it pretrains
    labels = draw_labels(splits, config.label_set, config.seed)
    images = {"pretrain": len(splits.train), "distill": len(splits.train)}
    for section in ("pretrain", "supervised", "linear", "finetune", "distill"):
        plan(getattr(config, section), images.get(section, len(labels.ids)))
    accelerator.print(
        f"data: {len(splits.train):,} images for training, {len(labels.ids):,} of them with a"
        f" label; {len(splits.test) if splits.test else 0:,} for testing"
    )
    for stage in stages.values():
        stage(config, accelerator)

    if accelerator.is_main_process:
        rows = collect(config.folder)
        write_results(config.folder, rows)
        tag = config.label_set.tag
        now = [row for row in rows if (row["labels"], row["seed"]) == (tag, config.seed)]
        if splits.test:
            print(
                f"\non {len(splits.test):,} test images; NLL: mean negative log likelihood, ECE:"
                " expected calibration error"
            )
        print(f"\n{table(now)}\n\nrows of all label sets: {config.folder / 'results.jsonl'}")
        print(f"as a page with pictures: python -m stages.page {config.folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline from a command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = {a.split("=")[0].removeprefix("--") for a in arguments if a.startswith("--")}
    return run_command(
        partial(run, flags=flags),
        arguments,
        "pipeline.py",
        "Pretrain on all images, fine-tune on few labels, distill into a small student; what is"
        " already done is not done again.",
        (),
    )


if __name__ == "__main__":
    sys.exit(main())
