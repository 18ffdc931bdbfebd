"""The contrastive task of SimCLRv2 (section 2, eq. 1), which is the default of stage 1.

Two random views of each image go through the encoder and a deep projection head; the loss asks each
view to pick out its partner among all views of the batch. What is kept is the encoder and the
*whole* head, because fine-tuning starts from a middle layer of it.

With ``--pretrain.memory`` a moving average of the network embeds the views that the anchors are
compared with, and what it made of earlier batches is kept as further negatives.
"""

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.schema import Config
from shared.config.sections import Pretrain
from shared.data.batches import Batch
from shared.data.images import ImageSet
from shared.networks.heads import ContrastiveModel
from shared.networks.negatives_queue import Memory
from shared.pretext.attention import attention_head
from shared.pretext.network import PretextModel, kept_part
from shared.pretext.task import Answer, Metrics, Task, Tensors
from shared.runtime.distributed import gather_with_grad, own_rows
from shared.training.losses import (
    Pairs,
    contrastive_metrics,
    decoupled,
    info_nce,
    margin_triplet,
    nt_logistic,
    nt_xent,
    pair,
)


class Contrastive(Task):
    """Each view picks out its partner."""

    name = "contrastive"

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        self.cfg = config.pretrain
        self._memory: Memory | None = None
        self.negatives, self.chance = without_learning(self.cfg)

    @property
    def facts(self) -> str:
        """How many negatives there are."""
        return f"negatives per anchor: {self.negatives}"

    @property
    def memory(self) -> Memory | None:
        """The averaged network and its keys of earlier batches; None without them."""
        return self._memory

    def network(self, model: ContrastiveModel) -> nn.Module:
        """Encoder and projection head, or the encoder with attention and a head of its own."""
        if self.cfg.contextualisation == "none":
            return model
        return PretextModel(model, [attention_head(model, self.config)])

    def start(self, model: nn.Module, images: ImageSet) -> None:
        """Copy the network, where an average of it is to embed the candidates."""
        cfg = self.cfg
        if cfg.memory:
            width = self.config.model.head_out
            self._memory = Memory(kept_part(model), cfg.memory, width, cfg.memory_momentum)

    def inputs(self, batch: Batch) -> Tensors:
        """Both views (2b, 3, S, S) or, as MoCo, the first ones (b, 3, S, S)."""
        alone = self.cfg.negatives == "memory"
        return (batch.images.chunk(2)[0] if alone else batch.images,)

    def targets(self, batch: Batch) -> Tensors:
        """With a memory the keys, by the averaged network: (2b, D) or, as MoCo, (b, D)."""
        if self.memory is None:
            return ()
        images = batch.images
        with torch.no_grad(), self.accelerator.autocast():
            alone = self.cfg.negatives == "memory"
            return (self.memory.network(images.chunk(2)[1] if alone else images),)

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """The loss of the embeddings against those of all processes, or against keys.

        Args:
            outputs: embeddings (2b, D) or, as MoCo, (b, D).
            targets: keys, where there is a memory. They are the candidates then, together with the
                memory's keys of earlier batches.

        Returns:
            The loss; it keeps the candidates' second views of all processes, (B, D).

        Raises:
            ValueError: the loss has no branch here.
        """
        pairs, keys = self._pairs(outputs[0], targets[0] if targets else None)
        return self.of_pairs(pairs)._replace(kept=(keys,))

    def of_pairs(self, pairs: Pairs) -> Answer:
        """The chosen loss of what is compared."""
        loss = self.weight * contrastive_loss(pairs, self.cfg)

        def metrics() -> Metrics:
            accuracy, entropy = contrastive_metrics(pairs, self.cfg.temperature)
            return {
                "contrastive_top1": self.weight * accuracy,
                "contrastive_entropy": self.weight * entropy,
                "negatives_per_anchor": self.negatives,
            }

        return Answer(loss, metrics)

    def _pairs(self, z: Tensor, keys: Tensor | None) -> tuple[Pairs, Tensor]:
        """What is compared, and the candidates' second views of all processes."""
        total = self.cfg.batch_size
        first = own_rows(total).start
        queue = None if self.memory is None else self.memory.queue
        if queue is not None and keys is not None and self.cfg.negatives == "memory":
            keys_all = gather_with_grad(keys, total)  # (B, D)
            return Pairs.of_queries(z, keys_all, queue, first), keys_all
        z1, z2 = z.chunk(2)  # (b, D) each
        c1, c2 = (z1, z2) if keys is None else keys.chunk(2)
        c1_all, c2_all = (gather_with_grad(c, total) for c in (c1, c2))  # (B, D) each
        return Pairs.of_views(z1, z2, c1_all, c2_all, first, memory=queue), c2_all

    def update(self, model: nn.Module, answer: Answer) -> None:
        """Move the averaged network, and replace the oldest keys."""
        if self.memory is not None:
            self.memory.update(kept_part(model), answer.kept[0].detach())


def contrastive_loss(pairs: Pairs, cfg: Pretrain) -> Tensor:
    """The loss that ``pretrain.loss`` names, of this process's rows.

    Raises:
        ValueError: the loss has no branch here.
    """
    if cfg.negatives == "memory":
        return info_nce(pairs, cfg.temperature)
    if cfg.loss == "nt_logistic":
        return nt_logistic(pairs, cfg.temperature, cfg.semi_hard)
    if cfg.loss == "margin_triplet":
        return margin_triplet(pairs, cfg.margin, cfg.semi_hard)
    if cfg.loss == "pair":
        return pair(pairs, cfg.margin, cfg.semi_hard)
    if cfg.loss == "dcl":
        return decoupled(pairs, cfg.temperature)
    if cfg.loss == "nt_xent":
        return nt_xent(pairs, cfg.temperature)
    raise ValueError(f"pretrain.loss={cfg.loss} has no branch here")


def without_learning(cfg: Pretrain) -> tuple[int, float]:
    """Negatives per anchor, and the loss of a network that cannot tell any two images apart."""
    if cfg.negatives == "memory":  # one direction; all others are the sum of two
        return cfg.memory, math.log(cfg.memory + 1)
    if cfg.loss == "nt_xent":
        negatives = cfg.memory + 2 * cfg.batch_size - 2
        return negatives, 2 * math.log(negatives + 1)
    if cfg.loss == "dcl":  # 0 for one image, which has no negatives
        negatives = 2 * cfg.batch_size - 2
        return negatives, 2 * math.log(max(negatives, 1))
    # Where all distances are d, each direction has d^2 + (margin - d)^2. This is the least of them.
    d = min(cfg.margin / 2, 2.0)  # no distance of unit vectors is larger than 2
    chance = {
        "nt_logistic": 4 * math.log(2),  # where the similarities of all pairs are 0
        "margin_triplet": 2 * cfg.margin,
        "pair": 2 * (d**2 + (cfg.margin - d) ** 2),
    }
    return (1 if cfg.semi_hard else cfg.batch_size - 1), chance[cfg.loss]
