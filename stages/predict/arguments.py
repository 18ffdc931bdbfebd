"""Use an artifact on new images: a row for each image.

    python -m stages.predict runs/photos/distill-10pct-seed0 new/ -o predictions.csv
    python -m stages.predict runs/photos/distill-10pct-seed0 new/*.jpg > predictions.csv
    python -m stages.predict runs/photos/pretrain new/ --features -o features.parquet

The network sees each image as in evaluation: its central part, normalised as in training. With -o
the rows are written block by block, and the same command goes on where it was stopped.
"""

from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from shared.config.sections import Data
from shared.runtime.errors import CommandParser


def parser() -> CommandParser:
    """The options of ``stages.predict``."""
    made = CommandParser(
        "python -m stages.predict",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add(
        "artifact",
        type=Path,
        metavar="runs/NAME/STAGE",
        help="the folder of a classifier, as runs/photos/distill-10pct-seed0; or of an encoder",
    )
    add(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="image files, folders (all images below them), .parquet files",
    )
    add(
        "--load_truncated", action="store_true", help="read what there is of files that are cut off"
    )
    add("--max_pixels", type=int, default=Data.max_pixels, help="refuse images of more pixels")
    add(
        "-o",
        "--out",
        type=Path,
        metavar="OUT",
        help="write the rows into OUT: .csv, .jsonl or .parquet; else they are printed as CSV",
    )
    add("--top_k", type=int, default=1, metavar="K", help="the K likeliest classes")
    add("--probabilities", action="store_true", help="the probabilities of all classes")
    add(
        "--features",
        type=int,
        nargs="?",
        const=0,
        metavar="LAYER",
        help="the features of a layer: 0 (the default) is the encoder's output, K what K layers of"
        " the projection head make of it",
    )
    add(
        "--abstain",
        type=float,
        metavar="THRESHOLD",
        help="no label where the probability is below, after a temperature that is fitted on"
        " labeled images of the artifact's run that it has not learned from: the test images",
    )
    add(
        "--on_error",
        choices=("stop", "skip"),
        default="stop",
        help="stop at an unreadable image, or skip it: it has no row, and is listed",
    )
    add("--image_column", metavar="NAME", help="of a .parquet file, where it cannot be guessed")
    add("--workers", type=int, default=Data.workers, help="processes that decode images")
    add("--batch_size", type=int, default=64, help="images at once, and rows in a block")
    return made
