"""Which images to label: by the features of stage 1, without a look at any label.

    python -m stages.suggest runs/photos --budget 50
    python -m stages.suggest runs/photos --budget 50 --labels runs/photos/to_label.csv
    python -m stages.suggest runs/photos --budget 50 --test

writes two files into the run's folder (or --out). ``to_label.csv`` has the columns file and label,
with the label empty, the image that is most worth a label first; filled, it is a file for
``--labels``. ``to_label.html`` is a sheet on which a person types or clicks the classes and saves
that file. No image is copied.

First the images are clustered (k-means), into as many clusters as images are wanted, and each
cluster gives one: the densest (typiclust), or the nearest to its centre (kmeans). After a first
round there are as many clusters as labels, given and wanted. Clusters without a label come first;
if the run has a classifier that was made from these labels, those first of whose image it is least
sure: the two highest probabilities are closest. The labels that were given stay in the first rows,
so that one file grows.

``--test`` draws images by lot, to test with: suggested ones are easier than most. ``to_test.csv``
and its sheet are without the labels of ``to_label.csv``; filled, it is a file for ``--data.test``,
and grows in the same way. No image is suggested for both.
"""

import re
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from pathlib import Path

from shared.runtime.errors import CommandParser
from shared.runtime.media import printable

WAYS = ("typiclust", "kmeans", "random")


def parser() -> CommandParser:
    """The options of ``stages.suggest``."""
    made = CommandParser(
        "python -m stages.suggest",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("run", type=Path, metavar="runs/NAME", help="the folder of a run with a pretraining")
    add("--budget", type=_images, required=True, metavar="N", help="images that you can label now")
    add("--by", choices=WAYS, help=f"how they are chosen; default: {WAYS[0]}")
    add(
        "--labels",
        metavar="FILE",
        help="the labels so far: a CSV file, or as --labels of pipeline.py; default: the run's own"
        " CSV file, if it has one",
    )
    add("--out", type=Path, metavar="FOLDER", help="folder of the two files; default: the run's")
    add(
        "--test",
        action="store_true",
        help="images by lot, to test with: to_test.csv, a file for --data.test",
    )
    add("--seed", type=int, metavar="N", help="of the clusters or the lot; default: the run's")
    return made


def _images(text: str) -> int:
    """The budget as argparse reads it; that of pipeline.py is a time."""
    if not re.fullmatch("-?[0-9]{1,12}", text):
        raise ArgumentTypeError(f"it is a number of images, such as 30, got {printable(text)!r}")
    return int(text)
