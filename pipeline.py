"""The whole path: many images and few labels in, a small classifier and a table out.

    accelerate launch pipeline.py --labels 1pct        # the embedded digits, offline
    python pipeline.py --config configs/image_folder.yaml --data.train photos/ --labels labels.csv
    accelerate launch pipeline.py --table label_efficiency   # a grid of such runs, and its table

It runs every stage and every comparison that is not done yet. The command line is read before torch
is imported: a misspelt option is answered at once.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from shared.config.command_line import load_config
from shared.config.methods import METHODS
from shared.config.schema import Config

if TYPE_CHECKING:
    from accelerate import Accelerator

    from shared.training.stage import RunStage


def stages() -> dict[str, "RunStage"]:
    """What makes the artifact of each method, in the order in which they run."""
    return {
        name: partial(import_module(f"stages.{method.stage}").run, method=name)
        for name, method in METHODS.items()
    }


def run(config: Config, accelerator: "Accelerator", flags: Collection[str] = ()) -> None:
    """Three stages and the rows to compare with; then the table of this label set and seed.

    Args:
        config: the run; with ``table`` a grid of runs instead.
        accelerator: of this process.
        flags: the options given on the command line, which win over those of a table.
    """
    from shared.runs.forecast import forecast
    from shared.runs.grid import fill
    from stages.assess import assess

    if config.table:
        return fill(config, accelerator, {**stages(), "assess": assess.run}, flags)
    wanted = {name: stage for name, stage in stages().items() if config.asks_for(name)}
    if config.plan:
        return forecast(config, accelerator, wanted)
    train(config, accelerator, wanted)


def train(
    config: Config,
    accelerator: "Accelerator",
    wanted: Mapping[str, "RunStage"],
) -> None:
    """Check data, labels and schedules; run the stages; print the table."""
    from shared.data.labels import draw_labels
    from shared.data.sources import open_data
    from shared.runs.metrics import legend
    from shared.runs.results import advice_text, collect, results_text, write_results
    from shared.training.schedule import require_equal_shares, schedule_of

    splits = open_data(config.data, config.label_set, accelerator.is_local_main_process)
    # bad labels and impossible schedules stop the run before it pretrains
    labels = draw_labels(splits, config.label_set, config.seed)
    for name in wanted:
        if METHODS[name].fitted:
            continue  # it has no schedule
        images = len(splits.train) if METHODS[name].all_images else len(labels.ids)
        schedule_of(config.training_of(name), images)
        require_equal_shares(config.training_of(name), accelerator.num_processes)
    tested = len(splits.test) if splits.test else 0
    accelerator.print(
        f"data: {len(splits.train):,} images for training, {len(labels.ids):,} of them with a"
        f" label; {tested:,} for testing"
    )
    for stage in wanted.values():
        stage(config, accelerator)

    if accelerator.is_main_process:
        rows = collect(config.folder)
        write_results(config.folder, rows)
        this_run = (config.label_set.tag, config.seed)
        own = [row for row in rows if (row["labels"], row["seed"]) == this_run]
        if tested:
            print(f"\non {tested:,} test images; {legend()}")
        print(f"\n{results_text(own)}\n\n{advice_text(config.folder, own)}")
        print(f"\nrows of all label sets: {config.folder / 'results.jsonl'}")
        print(f"as a page with pictures: python -m stages.page {config.folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline from a command line."""
    purpose = (
        "Pretrain on all images, fine-tune on few labels, distill into a small student; what is"
        " already done is not done again."
    )
    config, flags = load_config(argv, "pipeline.py", purpose, ())
    from shared.config.command import run_command  # imports torch

    return run_command(partial(run, flags=flags), config)


if __name__ == "__main__":
    sys.exit(main())
