"""The whole path: many images and few labels in, a small classifier and a table out.

    accelerate launch pipeline.py --labels 1pct        # the embedded digits, offline
    python pipeline.py --config configs/image_folder.yaml --data.train photos/ --labels labels.csv

Runs those of the three stages, and of the comparisons, that are not already done.
"""

import sys
from collections.abc import Sequence

from accelerate import Accelerator

from shared.command import run_command
from shared.config import Config
from shared.data import open_data
from shared.labels import draw_labels, labels_tag
from shared.report import collect, table, write_results
from stages import distill, finetune, pretrain


def run(config: Config, accelerator: Accelerator) -> None:
    """Three stages and the rows to compare with; then the table of this label set and seed."""
    splits = open_data(config.data, config.labels, accelerator.is_local_main_process)
    draw_labels(splits, config.labels, config.seed)  # bad labels stop the run before it pretrains
    pretrain.run(config, accelerator)
    for method in ("supervised", "supervised-student", "linear", "finetune"):
        finetune.run(config, accelerator, method)
    distill.run_all(config, accelerator)

    if accelerator.is_main_process:
        rows = collect(config.folder)
        write_results(config.folder, rows)
        tag = labels_tag(config.labels)
        now = [row for row in rows if (row["labels"], row["seed"]) == (tag, config.seed)]
        print(f"\n{table(now)}\n\nrows of all label sets: {config.folder / 'results.jsonl'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline from a command line."""
    return run_command(
        run,
        argv,
        "pipeline.py",
        "Pretrain on all images, fine-tune on few labels, distill into a small student; what is"
        " already done is not done again.",
        (),
    )


if __name__ == "__main__":
    sys.exit(main())
