"""The rate of ``stages.predict`` beside that of the loader alone, on JPEG files of 224 pixels.

    python -m benchmarks.predict FOLDER --images 10000 --encoder simclr_resnet8_1x_sk0 --size 32

The loader alone decodes the same images with as many workers and throws them away. The two work in
turns in one process, so imports count for neither. Each turn prints a line, and the last line has
the medians, least and greatest. CPU milliseconds are those of all processes: they tell the cost
where the cores are shared; the rate on the wall does not. FOLDER keeps images and network.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from torch.utils.data import DataLoader

from benchmarks.laps import cpu_seconds
from benchmarks.photos import photo
from shared.config.sections import Data, Model
from shared.data.batches import _Decode
from shared.data.sources import open_images
from shared.training.predictor import Predictor
from stages.predict import main as predict
from tests.support.exported import DIGITS, artifact

SIDE = 224  # pixels of the JPEG files


def make_images(folder: Path, number: int) -> Path:
    """A folder of that many square JPEG files; those that are there stay."""
    images = folder / f"jpeg-{number}"
    images.mkdir(parents=True, exist_ok=True)
    for seed in range(number):
        file = images / f"{seed:05}.jpg"
        if not file.exists():
            photo(seed, SIDE, SIDE).save(file, quality=90)
    return images


def make_network(folder: Path, encoder: str, size: int) -> Path:
    """The artifact of a classifier of ten classes with random weights."""
    path = folder / f"{encoder}-{size}"
    if not path.exists():
        data = Data(image_size=size, antialias=True)
        artifact(path, DIGITS, data, Model(encoder=encoder))
    return path


def load(images: Path, data: Data, batch_size: int) -> None:
    """Decode the images as `stages.predict` does, and throw them away."""
    opened = open_images([images], Data())
    chunks = [
        list(range(start, min(start + batch_size, len(opened))))
        for start in range(0, len(opened), batch_size)
    ]
    for _ in DataLoader(_Decode(opened, data), batch_sampler=chunks, num_workers=data.workers):
        pass


def timed(work: Callable[[], object], number: int) -> tuple[float, float]:
    """CPU milliseconds and wall milliseconds an image."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    work()
    return (cpu_seconds() - cpu) / number * 1e3, (time.perf_counter() - wall) / number * 1e3


def spread(values: list[float]) -> str:
    """Median, least and greatest."""
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Print the turns."""
    number, workers = arguments.images, arguments.workers
    images = make_images(folder, number)
    network = make_network(folder, arguments.encoder, arguments.size)
    rows = folder / "rows.csv"
    data = replace(Predictor(network).data, workers=workers)

    def whole() -> None:
        for file in folder.glob("rows.csv*"):
            file.unlink()
        assert predict([str(network), str(images), "-o", str(rows), "--workers", str(workers)]) == 0

    shares_of_cpu, shares_of_rate = [], []
    for turn in range(1 + arguments.turns):
        loader = timed(lambda: load(images, data, arguments.batch_size), number)
        predicted = timed(whole, number)
        cpu, rate = loader[0] / predicted[0], loader[1] / predicted[1]
        print(
            f"turn {turn}: loader {loader[0]:.3f} CPU ms, {1000 / loader[1]:.0f} images/s; predict"
            f" {predicted[0]:.3f} CPU ms, {1000 / predicted[1]:.0f} images/s; shares {cpu:.3f},"
            f" {rate:.3f}",
            flush=True,
        )
        if turn:  # the first warms up
            shares_of_cpu.append(cpu)
            shares_of_rate.append(rate)
    print(
        f"{arguments.encoder}, {arguments.size} px, {number:,} images, {workers} workers: share of"
        f" the loader's rate by CPU time {spread(shares_of_cpu)}, on the wall"
        f" {spread(shares_of_rate)}"
    )


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--encoder", default="simclr_resnet8_1x_sk0", help="of the student")
    parser.add_argument("--size", type=int, default=32, help="of the student's images")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=64)
    arguments = parser.parse_args()
    measure(arguments.folder, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
