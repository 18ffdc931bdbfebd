"""The whole path: many images and few labels in, a small classifier and a table out.

    python pipeline.py --labels 1pct                   # the embedded digits, offline
    python pipeline.py --config configs/image_folder.yaml --data.train photos/ --labels labels.csv
    accelerate launch pipeline.py --table label_efficiency   # a grid of runs

It runs every stage and every comparison that is not done yet. The command line is read before torch
is imported: a misspelt option, an unknown table or a missing file of labels is answered at once.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from shared.config.command_line import load_config
from shared.config.methods import METHODS
from shared.config.schema import Config
from shared.runs.table import load_table
from shared.runtime.errors import UserError, exit_code_2

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
    from shared.networks.build import require_weights
    from shared.runs.forecast import forecast
    from shared.runs.grid import fill
    from stages.assess import assess

    if config.table:
        return fill(config, accelerator, {**stages(), "assess": assess.run}, flags)
    wanted = {name: stage for name, stage in stages().items() if config.asks_for(name)}
    for name in wanted:
        require_weights(config, name)
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
    from shared.data.sources import open_run
    from shared.runs.metrics import legend
    from shared.runs.results import collect, results_text, write_results
    from shared.training.schedule import require_an_image_each, schedule_of
    from shared.training.stage import to_follow

    splits = open_run(config, accelerator)
    # bad labels, impossible schedules and too many processes stop the run before it pretrains
    labels = draw_labels(splits, config.label_set, config.seed)
    train, apart = splits.train, len(splits.train.held_out)
    for name in wanted:
        images = len(train.training_ids) if METHODS[name].all_images else len(labels.ids)
        schedule_of(config.training_of(name), images)
        require_an_image_each(config, name, accelerator.num_processes)
    tested = len(splits.test) if splits.test else 0
    accelerator.print(
        f"data: {len(train.training_ids):,} images for training, {len(labels.ids):,} of them with a"
        f" label; {tested:,} for testing{', which stage 1 sees too, without labels' * bool(apart)}",
        *labels.notes(splits.train.classes),
        sep="\n",
    )
    outdated = to_follow(config, splits, labels)
    if outdated and not config.forces("pretrain"):
        accelerator.print(
            f"{config.labels} or the images have changed: {', '.join(outdated)} are made again;"
            " the pretraining is kept"
        )
    for stage in wanted.values():
        stage(config, accelerator)

    if accelerator.is_main_process:
        rows = collect(config.folder)
        write_results(config.folder, rows)
        this_run = (config.label_set.tag, config.seed)
        own = [row for row in rows if (row["labels"], row["seed"]) == this_run]
        if tested:
            seen = " (stage 1 saw them without their labels)" if apart else ""
            print(f"\non {tested:,} test images{seen}; {legend()}")
        print(f"\n{results_text(own)}\n\nrows of all label sets: {config.folder / 'results.jsonl'}")
        print(f"as a page with pictures: python -m stages.page {config.folder}")


def refuse_missing_files(config: Config) -> None:
    """UserError where the table or the file of labels cannot be read."""
    file = config.label_set.file
    if config.table:
        load_table(config.table)
    elif file and not file.is_file():
        raise UserError(f"cannot read the label file {file}: there is no such file")


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline from a command line."""
    purpose = (
        "Pretrain on all images, fine-tune on few labels, distill into a small student; what is"
        " already done is not done again."
    )
    config, flags = load_config(argv, "pipeline.py", purpose, ())
    refuse_missing_files(config)
    from shared.config.command import run_command  # imports torch

    return run_command(partial(run, flags=flags), config)


if __name__ == "__main__":
    sys.exit(main())
