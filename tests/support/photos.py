"""Small folders of images for the tests."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image


def make_folder(root: Path, names, size: tuple[int, int] = (8, 8)) -> Path:
    """PNG files of noise, each another; ``size`` is width, height."""
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(path, "PNG")
    return root


def class_folders(root: Path, per_class: int, classes: str = "abc", **options) -> Path:
    """``root/a/0.png``, ..."""
    names = [f"{label}/{i}.png" for label in classes for i in range(per_class)]
    return make_folder(root, names, **options)


def process(index: int = 0, of: int = 1) -> SimpleNamespace:
    """What rooms ask of an Accelerator, as process ``index``."""
    return SimpleNamespace(
        num_processes=of,
        process_index=index,
        is_main_process=index == 0,
        is_local_main_process=index == 0,
        device=torch.device("cpu"),
        wait_for_everyone=lambda: None,
        print=print,
    )
