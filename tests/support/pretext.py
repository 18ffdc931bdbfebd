"""Every pretext task at toy size: the options with which it runs in a second."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from shared.config.pretext import TASKS
from shared.config.schema import Data
from stages import pretrain
from tests.support.exported import artifact
from tests.support.toy_run import TINY

SMALL = [
    "--pretrain.batch_size=8",
    "--pretrain.log_every_steps=1",
    "--pretrain.optimizer=sgd",  # adamw makes a step of every rounding of a gradient near 0
    "--pretrain.learning_rate=0.02",
    "--pretrain.learning_rate_scaling=none",
]
# what a task needs besides; by default it takes the digits at 8 pixels
NEEDS: dict[str, list[str]] = {
    "decoupling": ["--decoupling.from_share=0.5"],
    "exemplar": ["--exemplar.views=3"],
    "multi-task": [
        "--multi_task.tasks=rotation,instances:0.5,contrastive:2",
        "--instances.negatives=32",
    ],
}
VARIANTS = {
    **{name: [f"--pretrain.task={name}"] for name in TASKS},
    "instances-nce": ["--pretrain.task=instances", "--instances.negatives=32"],
}


@cache
def first_encoder() -> Path:
    """An encoder of random weights for images of 8 pixels, whose neighbours are those of pixels."""
    folder = Path(tempfile.mkdtemp(prefix="first-encoder-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return artifact(folder / "pretrain", data=Data(image_size=8))


def options_of(variant: str) -> list[str]:
    """A command line for stage 1 with this task."""
    chosen = VARIANTS[variant]
    task = chosen[0].rpartition("=")[2]
    if task == "transitive":
        chosen = [*chosen, f"--transitive.init={first_encoder()}"]
    size = "32" if TASKS[task].smallest > 8 else "8"
    return [*TINY, *SMALL, f"--data.image_size={size}", *NEEDS.get(task, []), *chosen]


def upright(folder: Path, size: int = 8, number: int = 48) -> Path:
    """Made-up pictures in which every task finds something: bright above, each with its own marks.

    Returns:
        The folder of the PNG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    slope = np.linspace(220, 30, size)[:, None, None]
    for i in range(number):
        marks = np.kron(rng.uniform(-60, 60, (4, 4, 3)), np.ones((size // 4, size // 4, 1)))
        pixels = np.clip(slope + marks, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def learn(output: Path, variant: str, *options: str) -> dict[str, float]:
    """The last line of the log of some seconds of stage 1 on `upright` pictures."""
    arguments = options_of(variant)
    size = int(next(a for a in arguments if "image_size" in a).rpartition("=")[2])
    photos = upright(output / "photos", size)
    arguments += [
        f"--data.train={photos}",
        f"--output={output}",
        "--run=learn",
        "--pretrain.batch_size=24",
        "--pretrain.optimizer=adamw",
        "--pretrain.learning_rate=0.005",
        "--pretrain.steps=80",
        "--pretrain.log_every_steps=10",
        "--augment.crop_area=[0.6,1.0]",
        "--augment.flip=0",
    ]
    assert pretrain.main([*arguments, *options]) == 0
    lines = (output / "learn/pretrain/metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])
