"""Permutation: which tile belongs where, as a matrix (DeepPermNet: Santa Cruz et al. 2017)?

The tiles of an image are shuffled, by any of all orders. The answer is a score for each tile and
each cell. Sinkhorn's normalisation makes a nearly doubly stochastic matrix of it, and the loss is
the cross-entropy of its rows (arXiv 1704.02729; "train_val_grid3.prototxt" of
rfsantacruz/deep-perm-net). The order that the log judges is the nearest permutation, by the
Hungarian method.

On purpose it differs: the normalisation is of logarithms, ends with rows, and has no softmax and
no constant before it, so the loss of a row is that of a distribution. The head has one hidden layer
and no dropout.
"""

import math

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from shared.config.schema import Config
from shared.data.batches import Batch
from shared.data.image_ops import upload
from shared.pretext.sinkhorn import sinkhorn
from shared.pretext.task import Answer, Metrics, Tensors
from shared.pretext.tiles import TileTask, alike


class Permutation(TileTask):
    """A row of the matrix for each tile, a column for each cell."""

    name = "permutation"

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        self.cfg = config.permutation
        n = self.grid.tiles
        self.head_width, self.outputs = self.cfg.head_width, n**2
        self.chance = math.log(n)
        self.groups = torch.arange(n)[None]

    def draw(self, rng: np.random.Generator, batch_size: int) -> Tensors:
        """For each image: places (B, n, 2), and the cell that each tile is of (B, n), int64."""
        places = self.grid.draw(rng, batch_size)
        order = rng.random((batch_size, self.grid.tiles)).argsort(1)
        return places, torch.from_numpy(order)

    def inputs(self, batch: Batch) -> Tensors:
        """The tiles in their order by lot: (n b, 3, T, T)."""
        return (alike(self.grid.cut(batch.images, *batch.drawn), batch.images),)

    def targets(self, batch: Batch) -> Tensors:
        """(b, n) int64: the cell that each tile is of."""
        return (upload(batch.drawn[1], batch.images.device),)

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """Cross-entropy of the rows of the scores (b, n n)."""
        n, cells = self.grid.tiles, targets[0]
        with torch.autocast(outputs[0].device.type, enabled=False):
            scores = outputs[0].float().unflatten(1, (n, n))  # (b, tiles, cells)
            log_matrix = sinkhorn(scores, self.cfg.sinkhorn_steps)
            loss = -log_matrix.gather(2, cells[:, :, None]).mean()

        def metrics() -> Metrics:
            nearest, truth = nearest_permutations(log_matrix.detach()), cells.cpu().numpy()
            placed = nearest == truth
            means = {
                "permutation_top1": placed.all(1).mean(),
                "tiles_top1": placed.mean(),
                "kendall_tau": kendall_tau(nearest, truth).mean(),
            }
            return {
                **{name: self.weight * loss.new_tensor(mean) for name, mean in means.items()},
                "top1_of_chance": 1 / math.factorial(n),
                "tiles_top1_of_chance": 1 / n,
            }

        return Answer(self.weight * loss, metrics)


def nearest_permutations(log_matrix: Tensor) -> np.ndarray:
    """The permutation with the largest product of entries, by the Hungarian method.

    Args:
        log_matrix: (b, n, n) logarithms.

    Returns:
        (b, n) int64: the column of each row.
    """
    from scipy.optimize import linear_sum_assignment  # 0.4 s to import, for this task alone

    matrices = log_matrix.cpu().double().numpy()
    return np.stack([linear_sum_assignment(m, maximize=True)[1] for m in matrices])


def kendall_tau(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kendall's rank correlation of permutations (N, n) and (N, n): (N,), from -1 to 1."""
    first, second = np.triu_indices(a.shape[1], 1)
    signs = (np.sign(x[:, first] - x[:, second]) for x in (a, b))
    return np.prod(list(signs), axis=0).mean(1)
