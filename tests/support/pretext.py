"""Every pretext task at toy size: the options with which it runs in a second."""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from shared.config.pretext import TASKS
from shared.config.sections import Data
from shared.data.colour_space import lab_to_rgb
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
    "patches": ["--patches.head_width=16"],
    "jigsaw": ["--jigsaw.head_width=16", "--jigsaw.permutations=6"],
    "permutation": ["--permutation.head_width=16", "--permutation.grid=2"],
    "decoupling": ["--decoupling.from_share=0.5"],
    "exemplar": ["--exemplar.views=3"],
    "multi-task": [
        "--multi_task.tasks=rotation,instances:0.5,contrastive:2",
        "--instances.negatives=32",
    ],
}
VARIANTS = {
    **{name: [f"--pretrain.task={name}"] for name in TASKS},
    "multi-task-memory": [
        "--pretrain.task=multi-task",
        "--multi_task.tasks=instances,contrastive",
        "--pretrain.memory=16",
    ],
    "instances-nce": ["--pretrain.task=instances", "--instances.negatives=32"],
    "patches-improved": [
        "--pretrain.task=patches",
        "--patches.colors=blur",
        "--patches.joint_jitter=true",
        "--patches.aperture=0.6",
        "--patches.turns=true",
    ],
    "colour-histograms": ["--pretrain.task=colour", "--colour.target=histograms"],
    "contrastive-prototypes": [
        "--pretrain.task=contrastive",
        "--pretrain.loss=prototypes",
        "--prototypes.number=12",
    ],
    "contrastive-infomax": [
        "--pretrain.task=contrastive",
        "--pretrain.loss=infomax",
        "--infomax.width=32",
    ],
    "contrastive-dv": [
        "--pretrain.task=contrastive",
        "--pretrain.loss=infomax",
        "--infomax.width=32",
        "--infomax.bound=dv",
        "--infomax.across=true",
    ],
    "contrastive-attention": [
        "--pretrain.task=contrastive",
        "--pretrain.contextualisation=attention",
    ],
    "contrastive-codes": [
        "--pretrain.task=contrastive",
        "--pretrain.quantisation=gumbel",
        "--code_book.entries=8",
        "--code_book.decay=0.9",
    ],
    "contrastive-context-codes": [
        "--pretrain.task=contrastive",
        "--pretrain.contextualisation=attention",
        "--pretrain.quantisation=gumbel",
        "--code_book.entries=8",
    ],
    "contrastive-pair": ["--pretrain.task=contrastive", "--pretrain.loss=pair"],
    "inpainting-adversarial": ["--pretrain.task=inpainting", "--inpainting.adversarial=0.1"],
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
    data = []
    if task in PICTURES:  # named as the digits' run, which tests look for
        data = [f"--data.train={painted_once(int(size))}", "--run=digits"]
    return [*TINY, *SMALL, f"--data.image_size={size}", *data, *NEEDS.get(task, []), *chosen]


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


def gratings(folder: Path, size: int = 32, number: int = 48) -> Path:
    """Pictures whose nine cells have stripes of their own direction, each with its own phase.

    Returns:
        The folder of the PNG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    angle = np.pi * (3 * (3 * y // size) + 3 * x // size) / 9
    for i in range(number):
        wave = np.sin((y * np.sin(angle) + x * np.cos(angle)) * 1.5 + rng.uniform(0, 6.3))
        pixels = 128 + 80 * wave[:, :, None] + rng.uniform(-30, 30, (size, size, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def painted(folder: Path, size: int = 8, number: int = 48) -> Path:
    """Made-up pictures whose colours can be told from the lightness: bright blue on dark orange.

    Returns:
        The folder of the PNG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    blue, orange = np.array([90, 160, 255]), np.array([130, 50, 0])
    for i in range(number):
        blocks = np.kron(rng.integers(0, 2, (size // 4, size // 4, 1)), np.ones((4, 4, 1)))
        pixels = blocks * blue + (1 - blocks) * orange + rng.normal(0, 8, (size, size, 1))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder


# tasks that need other pictures than the digits
PICTURES: dict[str, Callable[[Path, int], Path]] = {"colour": painted}


@cache
def painted_once(size: int) -> Path:
    """`painted`, in a folder that goes at the end."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return painted(folder, size)


def colourful(n: int = 60, size: int = 16) -> torch.Tensor:
    """Images of cells in every colour, (n, 3, S, S) uint8: most are nearly grey, few are not."""
    generator = torch.Generator().manual_seed(0)
    lab = torch.rand(n, 3, size // 4, size // 4, generator=generator) * 2 - 1
    lab = lab**3 * torch.tensor([40.0, 80, 80]).view(1, 3, 1, 1)
    lab[:, 0] += 55
    pixels = lab_to_rgb(lab).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return (255 * pixels).round().to(torch.uint8)


def learn(
    output: Path,
    variant: str,
    *options: str,
    pictures: Callable[[Path, int], Path] | None = None,
) -> dict[str, float]:
    """The last line of the log of some seconds of stage 1 on pictures that suit the task."""
    arguments = options_of(variant)
    size = int(next(a for a in arguments if "image_size" in a).rpartition("=")[2])
    task = VARIANTS[variant][0].rpartition("=")[2]
    photos = (pictures or PICTURES.get(task, upright))(output / "photos", size)
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
