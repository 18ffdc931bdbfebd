"""How many wrong labels ``stages.assess`` part ``labels`` finds, where we know which are wrong.

    python -m benchmarks.wrong_labels runs/fm/pretrain FOLDER

A share of the labels is changed to another class by lot, and what the part suspects is compared
with that: by the features of the pretrained network, and by two rivals that need no network, the
principal components of the pixels and histograms of gradients. All else is the same code. Writes
``table.csv`` (a line per seed) and ``table.md`` (means ± half their 95% intervals) into FOLDER.
"""

import argparse
import csv
import io
import time
from pathlib import Path
from statistics import mean

import numpy as np
from accelerate import Accelerator

from shared.config.command_line import read_config
from shared.config.labelset import LabelSet
from shared.data.sources import open_data
from shared.runs.statistics import interval
from shared.runs.text import markdown
from shared.runtime.files import write_atomically
from shared.runtime.provenance import hardware
from shared.runtime.randomness import generator
from shared.training.predictor import Predictor
from stages.assess.doubts import doubts
from stages.classical import gradients_and_colors

SEEDS = (0, 1, 2)
SHARE = 0.05
COLUMNS = (
    "input",
    "seed",
    "suspects",
    "hits",
    "changed",
    "precision",
    "recall",
    "first",
    "seconds",
)


def flipped(targets: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes (n,) of which a share is another class by lot, and which these are."""
    rng, classes = generator(seed, "flipped"), int(targets.max()) + 1
    changed = np.sort(rng.permutation(len(targets))[: round(share * len(targets))])
    labels = targets.copy()
    labels[changed] = (labels[changed] + rng.integers(1, classes, len(changed))) % classes
    return labels, changed


def measure(rows: np.ndarray, targets: np.ndarray, seed: int) -> dict[str, float]:
    """Precision and recall of the suspects; ``first``: precision of as many as were changed.

    Args:
        rows: (n, F) features.
        targets: (n,) right classes.
        seed: of the changed labels, and of the parts held out.
    """
    labels, changed = flipped(targets, SHARE, seed)
    began = time.process_time()
    judgement = doubts(rows, labels, seed)
    seconds = time.process_time() - began
    hits = np.isin(judgement.suspects, changed).sum()
    first = np.argsort(judgement.quality, kind="stable")[: len(changed)]
    return {
        "suspects": len(judgement.suspects),
        "hits": int(hits),
        "changed": len(changed),
        "precision": float(hits / max(len(judgement.suspects), 1)),
        "recall": float(hits / len(changed)),
        "first": float(np.isin(first, changed).mean()),
        "seconds": round(seconds, 1),
    }


def inputs_of(pretrained: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Name -> rows (n, F) of the labeled training images, and their classes (n,)."""
    data = read_config(pretrained.parent / "config.yaml").data
    images = open_data(data, LabelSet.parse("100pct")).train
    pixels = np.stack([images.decode(k).numpy() for k in range(len(images))])  # (n, 3, S, S)
    unit = (pixels / 255).astype(np.float32)
    features = Predictor(pretrained, layer=0).features(pixels.transpose(0, 2, 3, 1))
    return {
        "pretrained features": features,
        "principal components of the pixels": unit[:, 0].reshape(len(unit), -1),
        "histograms of gradients": gradients_and_colors(unit),
    }, images.labels


def main(pretrained: str, folder: str) -> None:
    """Measure all inputs with all seeds, and write the tables."""
    Accelerator(cpu=True)
    rows, targets = inputs_of(Path(pretrained))
    lines = []
    for name, features in rows.items():
        for seed in SEEDS:
            lines.append({"input": name, "seed": seed, **measure(features, targets, seed)})
            print(lines[-1], flush=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_atomically(Path(folder) / "table.csv", text.getvalue())
    head = [
        "input",
        "suspects",
        "precision %",
        "recall %",
        "precision of the first %",
        "CPU seconds",
    ]
    table = [head]
    for name in rows:
        of_name = [line for line in lines if line["input"] == name]
        cells = [f"{mean(line['suspects'] for line in of_name):.0f}"]
        for key in ("precision", "recall", "first"):
            shares = [100 * line[key] for line in of_name]
            cells.append(f"{mean(shares):.1f} ± {interval(shares)[1] or 0.0:.1f}")
        table.append([name, *cells, f"{mean(line['seconds'] for line in of_name):.0f}"])
    caption = (
        f"{len(targets):,} labels, {SHARE:.0%} changed; mean ± half its 95% interval over"
        f" {len(SEEDS)} seeds; {hardware()}"
    )
    write_atomically(Path(folder) / "table.md", f"{caption}\n\n{markdown(table)}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "pretrained", help="folder of a pretraining whose training images all have labels"
    )
    parser.add_argument("folder", help="where table.csv and table.md are written")
    main(**vars(parser.parse_args()))
