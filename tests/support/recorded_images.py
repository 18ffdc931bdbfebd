"""The recorded numbers of the authors' augmentation, and images to compare with them."""

import numpy as np
import torch

from tests.support import golden

ATOL = 2e-6  # of values in [0, 1]; the largest difference seen is 8.4e-7


def cases(prefix, ending):
    """The names that stand between ``prefix`` and ``ending`` among the recorded arrays."""
    with np.load(golden.path("augment.npz")) as file:
        names = [key for key in file.files if key.startswith(prefix) and key.endswith(ending)]
    return [name[len(prefix) : len(name) - len(ending)] for name in names]


def to_torch(images):
    """(H, W, 3) or (B, H, W, 3) to (B, 3, H, W)."""
    return torch.from_numpy(images.reshape(-1, *images.shape[-3:])).movedim(-1, 1)


def to_numpy(images):
    return images.movedim(1, -1).numpy()


def photos(B, H=32, W=32, name="augment"):
    return to_torch(golden.image(name, B, H, W))
