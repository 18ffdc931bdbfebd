"""Instance discrimination: which image of all is this (Wu et al. 2018, arXiv 1805.01978)?

Each image is a class of its own. A memory bank holds one vector of unit length for every image, and
the loss asks the projection of a view to find its image's vector among all of them: by an exact
softmax, or by noise-contrastive estimation against a drawn number of them. After each update an
image's vector moves towards its new projection. Where labels of the images are known, the log says
how well the bank's nearest neighbours tell them; nothing is learned from that.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.schema import Config
from shared.data.batches import Batch
from shared.data.image_ops import upload
from shared.data.images import UNLABELED, ImageSet
from shared.pretext.task import Answer, Metrics, Task, Tensors
from shared.runtime.distributed import gather_with_grad, mean_over_processes
from shared.runtime.errors import UserError
from shared.training.device import free_bytes
from shared.training.neighbours import votes

# Up to so many images for each drawn one, a product with the whole bank costs less than copying the
# vectors that were drawn.
PRODUCTS = 16


class Bank(nn.Module):
    """One vector for every image; the state dict holds them and resumes them.

    Args:
        images: n.
        width: D of a vector.
        momentum: share of the old vector in a new one, in [0, 1).
        device: where it lies.

    Attributes:
        vectors: (n, D) float32 of unit length, at first random directions, from torch's generator
            of the CPU, so that all processes begin with the same.
        partition: () float32, the normaliser Z of noise-contrastive estimation, estimated from the
            first batch; 0 until then.
    """

    vectors: Tensor
    partition: Tensor

    def __init__(self, images: int, width: int, momentum: float, device: torch.device) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("vectors", F.normalize(torch.randn(images, width)).to(device))
        self.register_buffer("partition", torch.zeros((), device=device))

    @torch.no_grad()
    def update(self, ids: Tensor, projections: Tensor) -> None:
        """Move the vectors of these images; of an image that is there twice, the last one counts.

        Args:
            ids: (N,) int64 positions of the images.
            projections: (N, D) of unit length, those of all processes.
        """
        rows = last_of_each(ids, len(self.vectors))
        old, new = self.vectors[ids], projections.index_select(0, rows).float()
        self.vectors[ids] = F.normalize(old.lerp(new, 1 - self.momentum))


def last_of_each(ids: Tensor, images: int) -> Tensor:
    """For each image of a batch the last row where it stands: (N,) int64.

    So all rows of an image write the same, and it does not matter which one writes last.

    Args:
        ids: (N,) int64 positions of the images.
        images: how many there are in all.
    """
    rows = torch.arange(len(ids), device=ids.device)
    last = rows.new_zeros(images).scatter_reduce(0, ids, rows, "amax", include_self=False)
    return last[ids]


class Instances(Task):
    """Each image is told from all others by its vector of the bank."""

    name = "instances"
    bank: Bank

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        self.cfg = config.instances

    @property
    def facts(self) -> str:
        """What each image is told apart from."""
        negatives = self.cfg.negatives
        return f"a class for each image, against {f'{negatives:,}' if negatives else 'all'} others"

    @property
    def memory(self) -> Bank:
        """The vectors of all images."""
        return self.bank

    def require(self, images: ImageSet) -> None:
        """Refuse more images than a bank has room for."""
        width, k = self.config.model.head_out, self.cfg.negatives
        # with gradient: the vectors that were drawn, or the similarities to all
        each = (k + 1) * width if k else 2 * len(images)
        needed = 4 * (width * len(images) + self.batch_size * each)
        if needed > (room := free_bytes(self.accelerator)):
            raise UserError(
                f"a memory bank of {len(images):,} images takes {needed / 2**30:.1f} GiB with its"
                f" similarities, and {room / 2**30:.1f} are free; smaller are --model.head_out,"
                " --pretrain.batch_size and --instances.negatives, or take --pretrain.task"
                " contrastive"
            )

    def start(self, model: nn.Module, images: ImageSet) -> None:
        """Make the bank of all images."""
        device = next(model.parameters()).device
        self.bank = Bank(len(images), self.config.model.head_out, self.cfg.momentum, device)
        self.labels = torch.from_numpy(images.labels).to(device)
        n, k = len(images), self.cfg.negatives
        self.images = n
        # of equal probabilities: a softmax of n, or one positive and k negatives of NCE
        self.chance = math.log(n) if k is None else math.log1p(k) + k * math.log1p(1 / k)

    def draw(self, rng: np.random.Generator, batch_size: int) -> Tensors:
        """With noise-contrastive estimation (B, k) int64 images to be told apart from."""
        if self.cfg.negatives is None:
            return ()
        return (torch.from_numpy(rng.integers(0, self.images, (batch_size, self.cfg.negatives))),)

    def targets(self, batch: Batch) -> Tensors:
        """(b,) int64 positions of the images; and (b, k) of the drawn ones, if any."""
        device = self.bank.vectors.device
        return tuple(upload(positions, device) for positions in (batch.ids, *batch.drawn))

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """Of the projections (b, D); it keeps those of all processes and their images."""
        ids, *drawn = targets
        with torch.autocast(outputs[0].device.type, enabled=False):
            v = F.normalize(outputs[0].float())  # (b, D)
            if drawn:
                loss, correct = self._estimated(v, ids, drawn[0])
            else:
                logits = v @ self.bank.vectors.T / self.cfg.temperature  # (b, n)
                loss, correct = F.cross_entropy(logits, ids), logits.argmax(1) == ids
        gathered = (
            gather_with_grad(ids, self.batch_size),
            gather_with_grad(v.detach(), self.batch_size),
        )

        def metrics() -> Metrics:
            found = {"instances_top1": self.weight * correct.float().mean()}
            return {**found, **self._neighbours(v.detach(), ids)}

        return Answer(self.weight * loss, metrics, gathered)

    def _estimated(self, v: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of noise-contrastive estimation, and whether the image is the most similar."""
        bank, n = self.bank.vectors, self.images
        ids = torch.cat([positives[:, None], negatives], 1)  # (b, 1 + k)
        if n <= PRODUCTS * ids.shape[1]:
            similar = (v @ bank.T).gather(1, ids)
        else:
            similar = (bank[ids] @ v[:, :, None]).squeeze(2)
        logits = similar / self.cfg.temperature
        # The first batch of all processes estimates Z; to ask whether there is one would wait.
        mean = gather_with_grad(logits.detach().exp().mean(1), self.batch_size).mean()
        known = self.bank.partition
        known.copy_(torch.where(known > 0, known, n * mean))
        return nce(logits, self.bank.partition, n), logits.argmax(1) == 0

    @torch.no_grad()
    def _neighbours(self, v: Tensor, ids: Tensor) -> Metrics:
        """Accuracy of a vote of the bank's most similar labeled images, the image itself left out.

        As the original's test: votes weigh exp(similarity / temperature). Images without label do
        not count. Collective where images of the set have labels; which rows have does not matter.
        """
        if (self.labels == UNLABELED).all():
            return {}
        similar = v @ self.bank.vectors.T  # (b, n)
        similar[torch.arange(len(v)), ids] = -math.inf
        similar[:, self.labels == UNLABELED] = -math.inf
        voters = min(self.cfg.neighbours, self.images - 1)
        right = votes(similar, self.labels, voters, self.cfg.temperature) == self.labels[ids]
        known = self.labels[ids] != UNLABELED
        counts = torch.stack([(right & known).sum(), known.sum()]).float()
        hits, labeled = mean_over_processes(counts)
        return {"neighbours_top1": hits / labeled} if labeled > 0 else {}

    def update(self, model: nn.Module, answer: Answer) -> None:
        """Move the vectors of the batch's images."""
        self.bank.update(*answer.kept)


def nce(logits: Tensor, partition: Tensor | float, n: int) -> Tensor:
    """Noise-contrastive estimation of a softmax over n classes (arXiv 1805.01978, eq. 6 and 7).

    Args:
        logits: (b, 1 + k): of the right class, and of k that were drawn evenly from all.
        partition: Z, the softmax's normaliser.
        n: number of classes.

    Returns:
        The mean over b. As k grows, with the right Z, its gradient becomes that of the softmax.
    """
    k = logits.shape[1] - 1
    # log of P(class) / (k P(noise)): how much likelier it is data than noise
    odds = logits - torch.as_tensor(partition, dtype=logits.dtype).log() - math.log(k / n)
    return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(1)).mean()
