"""A quantisation head: candidates are made of few learned vectors (wav2vec 2.0, arXiv 2006.11477).

A projection chooses one entry of each of several small code books. The chosen entries, one after
the other, and a linear layer on them are what stands for the view as a candidate. So each view has
to find the code of the other view of its image. The choice is drawn by Gumbel noise; its gradient
is that of a softmax whose temperature sinks with the steps (arXiv 1611.01144). A further term keeps
the entries in even use. Code books are thrown away after pretraining.

What differs on purpose from fairseq's "gumbel_vector_quantizer.py" and "wav2vec2.py": the layer
that chooses starts with small weights, as the projections come with unit variance. Candidates with
the same code as the positive count as negatives. Entries start as normal numbers.
"""

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.schema import Config
from shared.data.batches import Batch
from shared.data.image_ops import upload
from shared.networks.heads import ContrastiveModel
from shared.pretext.contrastive import Contrastive
from shared.pretext.network import PretextModel, heads_of
from shared.pretext.task import Answer, Metrics, Tensors
from shared.runtime.distributed import gather_with_grad, own_rows
from shared.training.losses import Pairs


class Quantised(Contrastive):
    """Each view picks out the code of its partner."""

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        self.book, self.width = config.code_book, config.model.head_out

    @property
    def facts(self) -> str:
        """How many codes there are."""
        book = self.book
        return f"{super().facts}, {book.groups} code books of {book.entries} entries"

    @property
    def gumbel_temperature(self) -> float:
        """Of the present step."""
        start, least = self.book.temperature, self.book.least_temperature
        return max(start * self.book.decay**self.step, least)

    def network(self, model: ContrastiveModel) -> nn.Module:
        """With the code books on the projections."""
        (inner,) = heads_of(super().network(model))
        head = CodeBookHead(self.width, self.book.groups, self.book.entries, inner)
        return PretextModel(model, [head])

    def draw(self, rng: np.random.Generator, batch_size: int) -> Tensors:
        """Gumbel noise (B, 2, G V) float32, for both views."""
        shape = (batch_size, 2, self.book.groups * self.book.entries)
        uniform = rng.random(shape, dtype=np.float32).clip(1e-7, 1 - 1e-7)
        return (torch.from_numpy(-np.log(-np.log(uniform))),)

    def inputs(self, batch: Batch) -> Tensors:
        """Both views (2b, 3, S, S), their noise (2b, G V), and the temperature (2b, 1)."""
        noise = torch.cat([batch.drawn[0][:, 0], batch.drawn[0][:, 1]])
        temperature = torch.full((len(noise), 1), self.gumbel_temperature)
        device = batch.images.device
        return (*super().inputs(batch), upload(noise, device), upload(temperature, device))

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """Of projections, their quantised form, and the logits of the choice: (2b, 2 D + G V)."""
        D, total, V = self.width, self.batch_size, self.book.entries
        z, quantised, logits = outputs[0].float().split([D, D, outputs[0].shape[1] - 2 * D], 1)
        (z1, z2), (q1, q2) = z.chunk(2), quantised.chunk(2)
        q1_all, q2_all = gather_with_grad(q1, total), gather_with_grad(q2, total)
        pairs = Pairs.of_views(z1, z2, q1_all, q2_all, own_rows(total).start)
        with torch.autocast(z.device.type, enabled=False):
            each = logits.unflatten(1, (-1, V))  # (2b, G, V)
            shares = self._mean(each.softmax(2))
            unused = 1 - perplexity(shares).mean() / V
        of_pairs = self.of_pairs(pairs)

        def metrics() -> Metrics:
            hard = F.one_hot(each.detach().argmax(2), V).float()
            return {
                **of_pairs.metrics(),
                "code_perplexity": perplexity(self._mean(hard)).mean(),
                "entries": V,
                "gumbel_temperature": self.gumbel_temperature,
            }

        return Answer(of_pairs.loss + self.book.diversity * unused, metrics)

    def _mean(self, rows: Tensor) -> Tensor:
        """The mean of (2b, G, V) over the views of all processes: (G, V)."""
        of_images = rows.unflatten(0, (2, -1)).mean(0)
        return gather_with_grad(of_images, self.batch_size).mean(0)


def perplexity(shares: Tensor) -> Tensor:
    """How many entries are in use: of shares (..., V) that sum to 1, (...) from 1 to V."""
    return torch.special.entr(shares).sum(-1).exp()


class CodeBookHead(nn.Module):
    """Chooses an entry of each code book, in float32 whatever the autocast state.

    Args:
        width: D, of the projections.
        groups: G, a divisor of D.
        entries: V, of each code book.
        inner: what makes the projections; None: the projection head of the model.
    """

    further_inputs = 2

    def __init__(self, width: int, groups: int, entries: int, inner: nn.Module | None) -> None:
        super().__init__()
        self.sees = "projection" if inner is None else "map"
        self.inner = inner if inner is not None else nn.Identity()
        self.choice = nn.Linear(width, groups * entries)
        nn.init.normal_(self.choice.weight, std=width**-0.5)
        nn.init.zeros_(self.choice.bias)
        self.entries = nn.Parameter(torch.randn(groups, entries, width // groups))
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
        """Projections (n, D), noise (n, G V), temperature (n, 1) -> (n, 2 D + G V)."""
        z = self.inner(x)
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            logits = self.choice(z)
            drawn = (logits + noise).unflatten(1, self.entries.shape[:2])  # (n, G, V)
            soft = (drawn / temperature[:, :, None]).softmax(2)
            hard = F.one_hot(drawn.argmax(2), drawn.shape[2]).float()
            chosen = hard + soft - soft.detach()
            codes = torch.einsum("ngv,gvd->ngd", chosen, self.entries).flatten(1)
            return torch.cat([z, self.project(codes), logits], 1)
