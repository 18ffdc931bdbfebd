"""An exported file is checked on real images: those of the artifact's run, or others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from shared.config.command_line import read_config
from shared.config.labelset import LabelSet
from shared.config.sections import Data
from shared.data.batches import plain_batches
from shared.data.images import UNLABELED, ImageSet
from shared.data.sources import look_at, open_data
from shared.runtime.errors import UserError
from stages.export.network import Source

TOLERANCE = 1e-4  # of a probability; of features, as a share of the largest one
CHECKED = 500  # images at most, evenly spaced, for the comparison with torch
FEW = 50  # test images, of which fewer are no check
MEASURED = 5_000  # test images at most, evenly spaced, for the accuracy
BATCH = 64

Function = Callable[[Tensor], Tensor]  # images (N, 3, S, S) in [0, 1] -> outputs (N, F)


@dataclass(frozen=True)
class RealImages:
    """Images as evaluation shows them, without the normalisation, which is inside of the file.

    Attributes:
        images: the image set.
        data: image size, workers.
        title: what messages call the images.
        others: the training images, where those above are for testing.
    """

    images: ImageSet
    data: Data
    title: str
    others: ImageSet | None = None

    def batches(self, at_most: int, labeled: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (b, 3, S, S) float32 in [0, 1] and their classes (b,), evenly spaced."""
        labels = self.images.labels
        ids = np.flatnonzero(labels != UNLABELED) if labeled else np.arange(len(labels))
        places = np.linspace(0, len(ids) - 1, min(len(ids), at_most)).astype(int)
        for batch, positions in plain_batches(self.images, ids[places], self.data, BATCH, "cpu"):
            if len(batch):
                yield batch, torch.from_numpy(labels[positions.numpy()])

    def to_check(self) -> "RealImages":
        """These images, or the training images where they are more and these are few."""
        if self.others is None or len(self.images) >= min(FEW, len(self.others)):
            return self
        return RealImages(self.others, self.data, "training images")


def open_images(source: Source, where: str | None = None) -> RealImages:
    """The test images of the artifact's run, or its training images where it has none.

    Args:
        source: the artifact; its ``config.yaml`` names the images, or that of its run.
        where: other images, as ``data.train`` names them.

    Raises:
        UserError: the images cannot be opened.
    """
    folders = source.path, source.path.absolute().parent  # of imported weights only the run has one
    recipe = next((f / "config.yaml" for f in folders if (f / "config.yaml").exists()), None)
    if where is not None:
        # an unreadable photo is no fault of the file that is checked
        data, labels = Data(train=where, on_error="skip"), LabelSet.parse("100pct")
    elif recipe is not None:
        config = read_config(recipe)
        data, labels = config.data, config.label_set
    else:
        raise UserError(
            f"{source.path} has no config.yaml that names its images, on which the exported file is"
            " checked; give --images FOLDER"
        )
    unit = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    antialias = source.meta.get("antialias", False)
    data = replace(data, image_size=source.meta["image_size"], antialias=antialias, **unit)
    try:
        train, test = (open_data if where is None else look_at)(data, labels)
    except UserError as error:
        if where is not None:
            raise
        raise UserError(
            f"{error}; the exported file is checked on the images of its run: give --images FOLDER"
            " to check it on others"
        ) from error
    if test is None:
        return RealImages(train, data, "training images" if where is None else "images")
    return RealImages(test, data, "test images", train)


@torch.inference_mode()
def check(source: Source, exported: Function, images: RealImages) -> str:
    """Compare an exported file with torch.

    Every batch is passed in two parts of unequal size: the file must take any number of images.

    Args:
        source: the artifact.
        exported: the file, loaded again.
        images: to compare on; few test images are no test of a file, but training images are.

    Returns:
        What was found, for the user.

    Raises:
        UserError: an output is off by more than ``TOLERANCE``, or a likeliest class is another.
    """
    expected, actual, images = [], [], images.to_check()
    for batch, _ in images.batches(CHECKED):
        expected.append(source.network(batch))
        actual += [exported(part) for part in (batch[:1], batch[1:]) if len(part)]
    if not expected:
        raise UserError(
            "there is no readable image to check the exported file on; give --images FOLDER"
        )
    wanted, computed = torch.cat(expected), torch.cat(actual)
    largest = (computed - wanted).abs().max().item()  # NaN where one is NaN
    number, differ, what = len(wanted), 0, "probability"
    if source.layer is None:
        differ = int((computed.argmax(1) != wanted.argmax(1)).sum())
    else:
        largest, what = largest / (wanted.abs().max().item() or 1.0), "feature, of 1,"
    result = f"largest difference of a {what} {largest:.1e} on {number} {images.title}"
    if not largest <= TOLERANCE or differ:
        raise UserError(
            f"the exported file does not compute what torch does: {result}, allowed is"
            f" {TOLERANCE:.0e}, and another class on {differ}; nothing was written"
        )
    same = ", the same class on all" if source.layer is None else ""
    return f"checked against torch: {result}{same}"


@torch.inference_mode()
def accuracies(
    functions: Sequence[Function], source: Source, images: RealImages
) -> tuple[list[float], float, int]:
    """Top-1 of several classifiers on the labeled images.

    Args:
        functions: the classifiers; the first is the reference.
        source: has the names of the classes.
        images: their classes must have these names.

    Returns:
        The share of right predictions of each, the share of images on which the last has the class
        of the first, and the number of images; NaN where there are no labeled images.
    """
    right, agreed, number = np.zeros(len(functions)), 0, 0
    labeled = list(images.images.classes) == source.classes
    for batch, targets in images.batches(MEASURED, labeled):
        predictions = [function(batch).argmax(1) for function in functions]
        right += [int((p == targets).sum()) for p in predictions]
        agreed += int((predictions[0] == predictions[-1]).sum())
        number += len(batch)
    shares = right / number if labeled and number else np.full(len(functions), np.nan)
    return shares.tolist(), agreed / max(number, 1), number
