"""How well ``stages.assess`` part ``labels`` tells outliers, where we planted them.

    python -m benchmarks.outliers runs/fm/pretrain

Pictures of noise, pictures of one grey, and scanned digits are planted among the training images
of the run, ten of each at once. Printed is the AUROC of each kind against the images of the run, by
the distance to the last of the nearest neighbours and by the mean distance to the first ten, and
how many of those beyond the fence are planted. Means of three seeds ± half their 95% intervals.
"""

import argparse
from pathlib import Path
from statistics import mean

import numpy as np
from accelerate import Accelerator
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from shared.config.command_line import read_config
from shared.config.labelset import LabelSet
from shared.data.sources import open_data
from shared.runs.statistics import interval
from shared.runtime.provenance import hardware
from shared.runtime.randomness import generator
from shared.training.predictor import Predictor
from stages.assess import doubts

SEEDS = (0, 1, 2)
EACH = 10  # pictures of a kind
IMAGES = 3000  # of the run, at most


def planted(side: int, seed: int) -> dict[str, np.ndarray]:
    """Kind -> (EACH, side, side, 3) uint8."""
    rng = generator(seed, "outliers")
    rows, _ = load_digits(return_X_y=True)  # (1797, 64), from 0 to 16
    digits = rows[rng.permutation(len(rows))[:EACH]].reshape(EACH, 8, 8)
    large = [Image.fromarray(np.uint8(15.9 * digit)).resize((side, side)) for digit in digits]
    greys = rng.integers(0, 256, (EACH, 1, 1, 1))
    return {
        "noise": rng.integers(0, 256, (EACH, side, side, 3), dtype=np.uint8),
        "grey": np.broadcast_to(greys, (EACH, side, side, 3)).astype(np.uint8),
        "digits": np.stack([np.asarray(image.convert("RGB")) for image in large]),
    }


def measure(predictor: Predictor, rows: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    """Score -> AUROC of each kind, and hits and number beyond the fence; rows are (n, F)."""
    kinds = planted(predictor.data.image_size, seed)
    every = [rows, *(predictor.features(list(images)) for images in kinds.values())]
    distances = doubts.nearest_others(np.concatenate(every), seed)[1]
    first = distances[:, : doubts.NEIGHBOURS].mean(1, keepdims=True)
    measured = {}
    for name, of_score in (("last neighbour", distances), ("mean of ten", first)):
        far, score = doubts.outliers(of_score)
        usual = score[: len(rows)]
        for number, kind in enumerate(kinds):
            start = len(rows) + EACH * number
            both = np.concatenate([usual, score[start : start + EACH]])
            auroc = roc_auc_score(np.arange(len(both)) >= len(rows), both)
            measured.setdefault(name, {})[kind] = 100 * float(auroc)
        measured[name] |= {"hits": float((far >= len(rows)).sum()), "found": float(len(far))}
    return measured


def main(pretrained: str) -> None:
    """Print a line for each score."""
    Accelerator(cpu=True)
    data = read_config(Path(pretrained).parent / "config.yaml").data
    images = open_data(data, LabelSet.parse("100pct")).train
    ids = generator(0, "outliers", "images").permutation(len(images))[:IMAGES]
    predictor = Predictor(pretrained, layer=0)
    pixels = [images.decode(int(k)).permute(1, 2, 0).numpy() for k in ids]
    rows = predictor.features(pixels)
    turns = [measure(predictor, rows, seed) for seed in SEEDS]
    print(
        f"{len(rows):,} images, {EACH} planted of each kind; mean ± half its 95% interval over"
        f" {len(SEEDS)} seeds; {hardware()}"
    )
    for name in turns[0]:
        cells = []
        for key in turns[0][name]:
            values = [turn[name][key] for turn in turns]
            cells.append(f"{key} {mean(values):.1f} ± {interval(values)[1] or 0.0:.1f}")
        print(f"{name}: {', '.join(cells)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pretrained", help="folder of a pretraining")
    main(**vars(parser.parse_args()))
