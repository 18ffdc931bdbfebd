"""Use a classifier: a line of class and probability for each image.

    python -m stages.predict runs/photos/distill-10pct-seed0 new/*.jpg > predictions.csv

The network sees each image as in evaluation: its central part, normalised as in training.
"""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from PIL import Image

from shared.config.schema import Data
from shared.data.batches import central_photo, normalize
from shared.data.images import USUAL, Decoding, decode_image
from shared.networks.build import load_classifier
from shared.runtime.errors import CommandParser, UserError, exit_code_2
from shared.runtime.progress import Progress


@torch.inference_mode()
def predict(
    folder: Path, files: Iterable[Path], decoding: Decoding = USUAL
) -> Iterator[tuple[Path, str, float]]:
    """Each file with its most likely class and that class's probability.

    The classifier sees each image as in evaluation: its central part at the classifier's size,
    normalised as in training (``meta.json`` has size, mean and deviation).

    Args:
        folder: artifact of a classifier.
        files: images in any format that training reads.
        decoding: what is read of unusual files.

    Raises:
        UserError: where the folder holds no classifier, or a file is no readable image.
    """
    model, meta = load_classifier(folder)
    model.eval()
    mean, std = (cast(tuple[float, float, float], tuple(meta[key])) for key in ("mean", "std"))
    antialias = meta.get("antialias", False)
    data = Data(image_size=meta["image_size"], antialias=antialias, mean=mean, std=std)
    for file in files:
        try:
            pixels = decode_image(str(file), decoding)  # (3, H, W) uint8
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read {file}: {error}") from error
        image = normalize(central_photo(pixels[None], data), data)  # (1, 3, S, S)
        probability, index = model(image).softmax(1)[0].max(0)
        yield file, meta["classes"][int(index)], float(probability)


def _parser() -> CommandParser:
    parser = CommandParser(
        "python -m stages.predict",
        description="Print the most likely class of each image, and its probability, as CSV.",
    )
    parser.add_argument(
        "classifier",
        type=Path,
        metavar="runs/NAME/STAGE",
        help="the folder of a classifier: runs/photos/distill-10pct-seed0",
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument(
        "--load_truncated", action="store_true", help="read what there is of files that are cut off"
    )
    parser.add_argument(
        "--max_pixels", type=int, default=USUAL.max_pixels, help="refuse images of more pixels"
    )
    return parser


def _require_images(files: Iterable[Path], decoding: Decoding) -> None:
    """Refuse files that are no images, before any line is printed."""
    Image.MAX_IMAGE_PIXELS = None  # `decode_image` checks
    for file in files:
        try:
            with Image.open(file) as image:
                if not decoding.load_truncated:
                    image.verify()
        except Exception as error:  # verify raises whatever its format does
            raise UserError(f"cannot read {file}: {error}; nothing was predicted") from error


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Print ``file,label,probability`` for each image."""
    arguments = _parser().parse_args(argv)
    decoding = Decoding(arguments.load_truncated, arguments.max_pixels)
    _require_images(arguments.images, decoding)
    lines = csv.writer(sys.stdout, lineterminator="\n")
    bar = Progress("predict", len(arguments.images), "images")
    predictions = bar.over(predict(arguments.classifier, arguments.images, decoding))
    for number, (file, label, probability) in enumerate(predictions):
        if number == 0:
            lines.writerow(["file", "label", "probability"])
        lines.writerow([file, label, f"{probability:.4f}"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
