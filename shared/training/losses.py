"""The contrastive losses and the distillation loss (SimCLRv2, arXiv 2006.10029, eq. 1 and 2).

`nt_xent` is SimCLRv2's. `nt_logistic` and `margin_triplet` are the losses that SimCLR (arXiv
2002.05709, Tables 2 and 4) compares it with. `pair` is the older contrastive loss of Hadsell et al.
`decoupled` is NT-Xent without the positive among what is compared. `info_nce` is MoCo's.
`semi_hard_triplet` is for more than two views of an image. `swapped_codes` is SwAV's.

All are pure functions of tensors and numbers. The caller passes in what other processes computed.
They compute in float32 (float64 for float64 input), whatever the autocast state. With temperature
0.1 a bfloat16 logit would be wrong by up to 0.04.

Each is a mean over this process's B images. So its average over processes, weighted by their
numbers of images (`distributed.weight_of_own_rows`), is the loss of one process with all N, in
value and, where the candidates come from a gather with gradient, in gradient.

Shape letters: V views (2, or 1 for MoCo's one direction), B images of this process, N images of all
processes, K embeddings in the memory, D embedding width, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.networks.products import add_product, product

# `nt_xent` forms logits matrices of up to this many elements (4 MiB in float32) as a whole.
PLAIN_ELEMENTS = 2**20
# It computes larger ones in tiles of this many rows, so that a tile stays in the cache of a core.
TILE_ROWS = 128


@dataclass(frozen=True, eq=False)
class Pairs:
    """The embeddings of a batch: the anchors, and the candidates that each is compared with.

    `of_views` and `of_queries` make it, once for the loss and `contrastive_metrics`. All embeddings
    are float32 (float64 for float64 input).

    Attributes:
        anchors: (VB, D), this process's embeddings; with two views all first views come first.
        candidates: (VN, D), those of all processes in the same order; the very object ``anchors``
            where this process is alone and its anchors are compared with one another.
        memory: (K, D), more negatives for every anchor, or None.
        views: V. With 2, the positive of an anchor is the candidate of its image in the other view,
            and the candidate in its own view is the anchor itself or the averaged network's
            embedding of the same view, which does not count. With 1, the anchors are first views,
            the candidates second views, and the positive is the candidate of the same image.
        offset: row of this process's first image among the N images.
        unit_length: whether all embeddings are of unit length.
    """

    anchors: Tensor
    candidates: Tensor
    memory: Tensor | None
    views: int
    offset: int
    unit_length: bool

    @classmethod
    def of_views(
        cls,
        z1: Tensor,
        z2: Tensor,
        z1_all: Tensor | None = None,
        z2_all: Tensor | None = None,
        offset: int = 0,
        normalize: bool = True,
        memory: Tensor | None = None,
    ) -> "Pairs":
        """Both views are anchors and candidates.

        Args:
            z1: embeddings of the first views, (B, D), any floating dtype.
            z2: embeddings of the second views, (B, D).
            z1_all: first views of all processes, (N, D); None means that ``z1`` is all there is.
            z2_all: second views of all processes, (N, D).
            offset: row of ``z1_all`` at which this process's rows start.
            normalize: divide each embedding by its length first.
            memory: more negatives for every anchor, (K, D).

        Raises:
            ValueError: shapes or offset do not fit.
        """
        if (z1_all is None) != (z2_all is None):
            raise ValueError("z1_all and z2_all belong together: gather both views or neither")
        alone = (z1_all is None or z1_all is z1) and (z2_all is None or z2_all is z2)
        z1_all, z2_all = (z1 if z1_all is None else z1_all), (z2 if z2_all is None else z2_all)
        _check_shapes(z1, z2, z1_all, z2_all, offset, memory)
        with torch.autocast(z1.device.type, enabled=False):
            anchors = candidates = _embeddings(torch.cat([z1, z2]), normalize)
            if not alone:
                candidates = _embeddings(torch.cat([z1_all, z2_all]), normalize)
            if memory is not None:
                memory = _embeddings(memory, normalize)
        return cls(anchors, candidates, memory, 2, offset, normalize)

    @classmethod
    def of_queries(
        cls,
        queries: Tensor,
        keys: Tensor,
        memory: Tensor,
        offset: int = 0,
        normalize: bool = True,
    ) -> "Pairs":
        """First views are the anchors, and second views the candidates (MoCo).

        Args:
            queries: embeddings of the first views, (B, D), any floating dtype.
            keys: what the averaged network makes of the second views of all processes, (N, D).
            memory: earlier keys, (K, D).
            offset: row of ``keys`` at which the keys of this process's images start.
            normalize: divide each embedding by its length first.

        Raises:
            ValueError: shapes or offset do not fit.
        """
        _check_shapes(queries, queries, keys, keys, offset, memory)
        with torch.autocast(queries.device.type, enabled=False):
            q, k, m = (_embeddings(z, normalize) for z in (queries, keys, memory))
        return cls(q, k, m, 1, offset, normalize)

    @property
    def images(self) -> int:
        """B, the number of this process's images."""
        return len(self.anchors) // self.views

    @property
    def images_of_all(self) -> int:
        """N, the number of all processes' images."""
        return len(self.candidates) // self.views

    @property
    def rows(self) -> Tensor:
        """(B,) int64, the rows of this process's images among all images."""
        return torch.arange(self.offset, self.offset + self.images, device=self.anchors.device)

    def columns(self) -> tuple[Tensor, Tensor]:
        """With two views, the columns of each anchor itself and of its positive, (2B,) each."""
        first = self.rows
        second = first + self.images_of_all
        return torch.cat([first, second]), torch.cat([second, first])

    def candidates_and_memory(self) -> Tensor:
        """(VN + K, D), the memory's last."""
        return self.candidates if self.memory is None else torch.cat([self.candidates, self.memory])


def nt_xent(pairs: Pairs, temperature: float) -> Tensor:
    """Normalized-temperature cross-entropy of two views, the sum of both directions.

    Each embedding has to pick out its other view among all embeddings but itself. As in the
    authors' tf2/objective.py the result is mean over B of (loss of view 1 + loss of view 2): twice
    the mean over all 2B anchors.

    With the memory of SimCLRv2's third improvement (section 2) the candidates are what a moving
    average of the network makes of the same views, and the memory is what it made of earlier
    batches. For the anchor a = z1[i], without the candidate z1_all[i] of its own view, as always,

        loss = -log exp(a z2_all[i] / t) / (sum over j != i of exp(a z1_all[j] / t)
               + sum over j of exp(a z2_all[j] / t) + sum over m of exp(a m / t)),

    and likewise with the views swapped. So all that an anchor is compared with, its positive too,
    comes from the averaged network. The paper only says that its output is buffered as negative
    examples. That the candidates of the current batch are its output too, as in MoCo, is what the
    first author answered in github.com/google-research/simclr/issues/115.

    Args:
        pairs: of two views.
        temperature: divides the similarities, > 0.

    Returns:
        The loss, a scalar; 0 for a batch of one image without memory, which has no negatives.

    Raises:
        ValueError: the pairs are of one direction, or the temperature is not positive.
    """
    _check_two_views(pairs)
    _check_temperature(temperature)
    candidates = pairs.candidates_and_memory()
    if len(pairs.anchors) * len(candidates) > PLAIN_ELEMENTS:
        return nt_xent_tiled(pairs, temperature)
    with torch.autocast(candidates.device.type, enabled=False):
        logits = pairs.anchors @ candidates.T / temperature  # (2B, 2N + K)
        itself, positive = pairs.columns()
        # Masked, where the reference lowers by 1e9: the same, and right in every dtype.
        logits = logits.scatter(1, itself[:, None], -torch.inf)
        return F.cross_entropy(logits, positive, reduction="sum") / pairs.images


def nt_xent_tiled(pairs: Pairs, temperature: float, tile_rows: int = TILE_ROWS) -> Tensor:
    """`nt_xent` in O(N) memory: the logits exist only ``tile_rows`` rows at a time.

    Same arguments, result and gradients; ``nt_xent`` calls this for large batches. The backward
    pass recomputes the tiles and is written out: with logits s = u v^T and p their softmax, the
    loss sum_i (logsumexp_j s_ij - s_i,positive) has the gradients p v - v_positive with respect
    to u, and p^T u - u (this one added to the rows of the positives) with respect to v.
    """
    _check_two_views(pairs)
    _check_temperature(temperature)
    candidates = pairs.candidates_and_memory()
    with torch.autocast(candidates.device.type, enabled=False):
        u = pairs.anchors * temperature**-0.5  # the temperature goes into the embeddings: s = u v^T
        # Unit vectors bound the logits by 1/temperature. Up to 32 their exponentials, their sums
        # and the quotients of these are far from overflow, so no maximum need be subtracted.
        if candidates is pairs.anchors and pairs.unit_length and temperature >= 1 / 32:
            return _SymmetricNTXent.apply(u, min(tile_rows, pairs.images))
        v = candidates * temperature**-0.5
        return _GatheredNTXent.apply(u, v, *pairs.columns(), tile_rows)


class _SymmetricNTXent(torch.autograd.Function):
    """One process: anchors and candidates are the same u (2N, D), so s = u u^T is symmetric.

    Only tiles from the diagonal to the right are computed; each stands for its mirror image too.
    With at most N rows to a tile, a pair of views meets in the tile of its first view alone.
    """

    @staticmethod
    def forward(ctx, u: Tensor, tile_rows: int) -> Tensor:
        N = len(u) // 2
        sums = u.new_zeros(2 * N)  # sum over j of exp(s_ij)
        positives = u.new_empty(N)  # exp(s_i,positive), the same for both views of an image
        for start in range(0, len(u), tile_rows):
            stop = start + tile_rows  # may lie past the end: slices allow it
            e = _symmetric_tile(u, start, stop)
            sums[start:stop] += e.sum(1)
            sums[stop:] += e[:, tile_rows:].sum(0)
            positives[start:stop] = e.diagonal(N)  # empty in rows of second views
        ctx.save_for_backward(u, sums)
        ctx.tile_rows = tile_rows
        # The quotient of what one product gave loses no digits where the loss is nearly 0.
        return (sums.view(2, N) / positives).log().sum() / N

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        u, sums = ctx.saved_tensors
        N = len(u) // 2
        inverse = sums.reciprocal()
        grad = torch.zeros_like(u)
        with torch.autocast(u.device.type, enabled=False):
            for start in range(0, len(u), ctx.tile_rows):
                stop = start + ctx.tile_rows
                p = _symmetric_tile(u, start, stop)
                p *= inverse[start:stop, None] + inverse[start:]  # p_ij + p_ji
                p.diagonal(N).sub_(2)  # s_i,positive: once for i, once for its partner
                add_product(grad[start:stop], p, u[start:])
                add_product(grad[stop:], p[:, ctx.tile_rows :].T, u[start:stop])
        return grad * (grad_loss / N), None


def _symmetric_tile(u: Tensor, start: int, stop: int) -> Tensor:
    """exp(s) of the rows start to stop and the columns from start on, 0 on the diagonal."""
    e = product(u[start:stop], u[start:].T).exp_()  # (rows, 2N - start)
    e.diagonal().zero_()
    return e


class _GatheredNTXent(torch.autograd.Function):
    """The general case: anchors u (2B, D), candidates v (2N + K, D), logits of any size.

    ``itself`` and ``positive``, (2B,) each, are the columns of each anchor and of its positive.
    """

    @staticmethod
    def forward(
        ctx, u: Tensor, v: Tensor, itself: Tensor, positive: Tensor, tile_rows: int
    ) -> Tensor:
        losses = u.new_empty(len(u))
        for start in range(0, len(u), tile_rows):
            rows = slice(start, start + tile_rows)
            s = product(u[rows], v.T).scatter_(1, itself[rows, None], -torch.inf)  # (rows, 2N + K)
            losses[rows] = F.cross_entropy(s, positive[rows], reduction="none")
        ctx.save_for_backward(u, v, losses, itself, positive)
        ctx.tile_rows = tile_rows
        return losses.sum() / (len(u) // 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        u, v, losses, itself, positive = ctx.saved_tensors
        grad_u = torch.zeros_like(u)
        grad_v = torch.zeros_like(v) if ctx.needs_input_grad[1] else None  # no gradient to a memory
        with torch.autocast(u.device.type, enabled=False):
            for start in range(0, len(u), ctx.tile_rows):
                rows = slice(start, start + ctx.tile_rows)
                s = product(u[rows], v.T)  # (rows, 2N + K)
                s.scatter_(1, itself[rows, None], -torch.inf)
                s -= s.gather(1, positive[rows, None])
                p = s.sub_(losses[rows, None]).exp_()  # as loss = logsumexp(s) - s_positive
                p[torch.arange(len(p), device=p.device), positive[rows]] -= 1
                add_product(grad_u[rows], p, v)
                if grad_v is not None:
                    add_product(grad_v, p.T, u[rows])
        scale = grad_loss / (len(u) // 2)
        return grad_u * scale, None if grad_v is None else grad_v * scale, None, None, None


def decoupled(pairs: Pairs, temperature: float) -> Tensor:
    """Decoupled contrastive loss: `nt_xent` without the positive in its denominator.

    So a positive that is found already does not weaken the gradient of the negatives, which helps
    small batches most (Yeh et al. 2022, arXiv 2110.06848, eq. 6). Both directions are summed.

    Args:
        pairs: of two views, without memory.
        temperature: divides the similarities, > 0.

    Returns:
        The loss, a scalar; 0 for a batch of one image, which has no negatives.

    Raises:
        ValueError: the pairs are of one direction or have a memory, or the temperature is not
            positive.
    """
    _check_two_views(pairs)
    _check_temperature(temperature)
    if pairs.memory is not None:
        raise ValueError("the decoupled loss takes no memory")
    with torch.autocast(pairs.anchors.device.type, enabled=False):
        logits = pairs.anchors @ pairs.candidates.T / temperature  # (2B, 2N)
        own = torch.stack(pairs.columns(), 1)  # (2B, 2): itself, positive
        positives = logits.gather(1, own[:, 1:]).squeeze(1)
        if pairs.images_of_all == 1:
            return 0 * positives.sum()
        negatives = logits.scatter(1, own, -torch.inf).logsumexp(1)
        return (negatives - positives).sum() / pairs.images


def info_nce(pairs: Pairs, temperature: float) -> Tensor:
    """The loss of MoCo (arXiv 1911.05722, eq. 1), whose negatives are those of the memory alone.

    Mean over B of -log exp(q k / t) / (exp(q k / t) + sum over m of exp(q m / t)): one direction,
    unlike `nt_xent`, which sums two.

    Args:
        pairs: of queries.
        temperature: divides the similarities, > 0.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: the pairs are of two views, or the temperature is not positive.
    """
    if pairs.views != 1 or pairs.memory is None:
        raise ValueError("info_nce compares queries with a memory: make the pairs by of_queries")
    _check_temperature(temperature)
    q, memory = pairs.anchors, pairs.memory
    k = pairs.candidates[pairs.offset : pairs.offset + pairs.images]  # (B, D)
    with torch.autocast(q.device.type, enabled=False):
        positives, negatives = (q * k).sum(1, keepdim=True), q @ memory.T  # (B, 1), (B, K)
        logits = torch.cat([positives, negatives], 1) / temperature  # (B, 1 + K)
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def nt_logistic(pairs: Pairs, temperature: float, semi_hard: bool = False) -> Tensor:
    """The NT-Logistic loss that SimCLR compares NT-Xent with (arXiv 2002.05709, Table 2).

    For an anchor u with positive v+ and one negative v- the table has the loss

        -log sigma(u v+ / t) - log sigma(-u v- / t),

    averaged here over all negatives of the anchor, which are the other images' embeddings in the
    other view. (The paper's comparison takes negatives of one view only as well.) As in `nt_xent`
    the result is mean over B of (loss of view 1 + loss of view 2).

    Args:
        pairs: of two views, without memory.
        temperature: divides the similarities, > 0.
        semi_hard: each anchor's one negative is the semi-hard one, as section 5.1 mines it (after
            Schroff et al. 2015): the most similar of those that are less similar than the positive.
            An anchor that has none only has its positive term.

    Returns:
        The loss, a scalar; of positive terms alone for a batch of one image.

    Raises:
        ValueError: the pairs are of one direction or have a memory, or the temperature is not
            positive.
    """
    _check_temperature(temperature)
    with torch.autocast(pairs.anchors.device.type, enabled=False):
        positives, negatives, share = _similarities(pairs, semi_hard)
        of_positives = F.logsigmoid(positives / temperature)  # (2B, 1)
        of_negatives = share * F.logsigmoid(-negatives / temperature)  # (2B, N or 1)
        return -(of_positives.sum() + of_negatives.sum()) / pairs.images


def margin_triplet(pairs: Pairs, margin: float, semi_hard: bool = False) -> Tensor:
    """The margin triplet loss that SimCLR compares NT-Xent with (arXiv 2002.05709, Table 2).

    For an anchor u with positive v+ and one negative v- that is max(u v- - u v+ + m, 0). Negatives,
    averages and arguments are those of `nt_logistic`, with the margin m >= 0 instead of a
    temperature. That a semi-hard negative lies within the margin needs no rule of its own: beyond
    it the loss and its gradient are 0.

    Raises:
        ValueError: the pairs are of one direction or have a memory, or the margin is negative.
    """
    _check_margin(margin)
    with torch.autocast(pairs.anchors.device.type, enabled=False):
        positives, negatives, share = _similarities(pairs, semi_hard)
        return (share * F.relu(negatives - positives + margin)).sum() / pairs.images


def pair(pairs: Pairs, margin: float, semi_hard: bool = False) -> Tensor:
    """The contrastive loss of pairs (Hadsell, Chopra and LeCun 2006, eq. 4).

    For an anchor u with positive v+ and one negative v- that is

        |u - v+|^2 + max(m - |u - v-|, 0)^2,

    twice the paper's, which halves both terms. Distances are Euclidean, between embeddings of unit
    length, so they lie in [0, 2]. A negative at distance m or more has no gradient. Negatives,
    averages and arguments are those of `nt_logistic`, with the margin m >= 0 instead of a
    temperature.

    Raises:
        ValueError: the pairs are of one direction or have a memory, their embeddings are not of
            unit length, or the margin is negative.
    """
    _check_margin(margin)
    if not pairs.unit_length:
        raise ValueError("this loss compares unit vectors: make the pairs with normalize=True")
    with torch.autocast(pairs.anchors.device.type, enabled=False):
        positives, negatives, share = _similarities(pairs, semi_hard)
        # The bound keeps the root's gradient finite where a negative equals its anchor.
        distances = (2 - 2 * negatives).clamp_min(1e-12).sqrt()  # (2B, N or 1)
        of_positives = 2 - 2 * positives  # (2B, 1)
        of_negatives = share * F.relu(margin - distances).square()
        return (of_positives.sum() + of_negatives.sum()) / pairs.images


def _similarities(pairs: Pairs, semi_hard: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities of the 2B anchors, each with the N candidates of its other view.

    Returns:
        Those of the positives (2B, 1); those of the negatives (2B, N), or (2B, 1) if semi-hard;
        the weight of each negative in its anchor's mean, 0 for what is none.
    """
    _check_two_views(pairs)
    if pairs.memory is not None:
        raise ValueError("only nt_xent and info_nce take a memory: leave it out")
    B, N = pairs.images, pairs.images_of_all
    first, second = pairs.candidates.split(N)  # (N, D) each
    s = torch.cat([pairs.anchors[:B] @ second.T, pairs.anchors[B:] @ first.T])  # (2B, N)
    own = pairs.rows.repeat(2)[:, None]  # (2B, 1)
    positives = s.gather(1, own)
    if semi_hard:
        farther = s.detach().masked_fill(s >= positives, -torch.inf)  # and no longer the positive
        hardest = farther.argmax(1, keepdim=True)
        return positives, s.gather(1, hardest), farther.gather(1, hardest).isfinite().to(s.dtype)
    return positives, s, torch.full_like(s, 1 / max(N - 1, 1)).scatter(1, own, 0)


def semi_hard_triplet(z: Tensor, z_all: Tensor, margin: float, offset: int = 0) -> Tensor:
    """The triplet loss of FaceNet with several views of each image (arXiv 1503.03832, section 3).

    Each ordered pair of views of an image is an anchor and its positive. Its negative, among all
    views of all other images, is the nearest of those that are farther than the positive; where
    there is none, the farthest of all. Distances are squared, between embeddings of unit length,
    2 - 2 cos; the loss of a triplet is max(d+ - d- + margin, 0).

    Args:
        z: embeddings of this process's images, (B, V, D) with V > 1, any floating dtype.
        z_all: those of all processes, (N, V, D) with N > 1.
        margin: by how much a negative is to be farther than the positive, >= 0.
        offset: row of ``z_all`` at which this process's rows start.

    Returns:
        The mean over the B V (V - 1) pairs, a scalar.

    Raises:
        ValueError: there is one view, or one image, or the margin is negative.
    """
    if z.shape[1] < 2 or len(z_all) < 2 or not margin >= 0:
        raise ValueError(f"needs two views and two images, got {tuple(z_all.shape)}, {margin=}")
    with torch.autocast(z.device.type, enabled=False):
        s, own, itself = _view_similarities(z, z_all, offset)
        positives = s.gather(1, own)  # (BV, V)
        ranked = s.detach().scatter(1, own, -torch.inf).sort(1)  # those of its own image come first
        farther = torch.searchsorted(ranked.values, positives.detach()) - 1  # by similarity: less
        nearest = ranked.indices.gather(1, farther.clamp(min=z.shape[1]))  # (BV, V)
        triplets = F.relu(2 * (s.gather(1, nearest) - positives) + margin)
        return triplets.masked_fill(itself, 0).sum() / (len(s) * (z.shape[1] - 1))


def swapped_codes(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Each view predicts the code of the other one (SwAV, arXiv 2006.09882, eq. 2).

    The mean of both directions, as in the authors' main_swav.py; the paper's equation is the sum.

    Args:
        scores: similarities of this process's embeddings with all K prototypes, (2B, K), any
            floating dtype; all first views come first.
        codes: shares of the prototypes in each embedding, (2B, K); no gradient reaches them.
        temperature: divides the scores, > 0.

    Returns:
        The mean cross-entropy, a scalar.

    Raises:
        ValueError: the shapes differ or have an odd number of rows, or the temperature is not
            positive.
    """
    _check_temperature(temperature)
    if scores.shape != codes.shape or len(scores) % 2:
        raise ValueError(
            f"scores {tuple(scores.shape)} and codes {tuple(codes.shape)} must have the same shape"
            " (2B, K)"
        )
    with torch.autocast(scores.device.type, enabled=False):
        logits = _at_least_float32(scores) / temperature
        return F.cross_entropy(logits, codes.detach().to(logits.dtype).roll(len(codes) // 2, 0))


@torch.no_grad()
def nearest_is_own(z: Tensor, z_all: Tensor, offset: int = 0) -> Tensor:
    """Share of views whose most similar other view, among those of all images, is of their image.

    Args are those of `semi_hard_triplet`; chance is (V - 1) / (N V - 1).
    """
    with torch.autocast(z.device.type, enabled=False):
        s, own, itself = _view_similarities(z, z_all, offset)
        s.scatter_(1, own[itself][:, None], -torch.inf)
        return (s.argmax(1, keepdim=True) == own).any(1).float().mean()


def _view_similarities(z: Tensor, z_all: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines of this process's BV views with all NV, views of an image together.

    Returns:
        The cosines (BV, NV); for each view the columns of its image's views, (BV, V) int64; which
        of these is the view itself, (BV, V) bool.
    """
    B, V = z.shape[:2]
    s = _embeddings(z.flatten(0, 1), True) @ _embeddings(z_all.flatten(0, 1), True).T
    views = torch.arange(V, device=z.device)
    first = torch.arange(offset, offset + B, device=z.device) * V
    own = (first[:, None] + views).repeat_interleave(V, 0)
    return s, own, (views[:, None] == views).repeat(B, 1)


@torch.no_grad()
def contrastive_metrics(pairs: Pairs, temperature: float) -> tuple[Tensor, Tensor]:
    """How well first views find their second views, as tf2/metrics.py counts it; no gradient.

    Args:
        pairs: those of the loss.
        temperature: that of the loss.

    Returns:
        Two scalars, means over this process's images: the share of first views whose most similar
        second view is their own, and the mean entropy (nats) of the softmax over second views.
    """
    B, own = pairs.images, pairs.rows
    first, second = pairs.anchors[:B], pairs.candidates[-pairs.images_of_all :]  # (B, D), (N, D)
    hits, entropy = first.new_zeros(()), first.new_zeros(())
    with torch.autocast(first.device.type, enabled=False):
        for rows in torch.arange(B, device=first.device).split(TILE_ROWS):  # bounds the memory
            logits = first[rows] @ second.T / temperature  # (rows, N)
            p = logits.softmax(1)
            hits += (logits.argmax(1) == own[rows]).sum()
            entropy -= (p * (p + 1e-8).log()).sum()
    return hits / B, entropy / B


def _embeddings(z: Tensor, normalize: bool) -> Tensor:
    """In float32 or float64, and of unit length if asked (a zero row stays zero)."""
    z = _at_least_float32(z)
    if normalize:  # the bound lies inside the root, as in tf.math.l2_normalize
        z = z * z.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt()
    return z


def _check_two_views(pairs: Pairs) -> None:
    if pairs.views != 2:
        raise ValueError("this loss compares two views: make the pairs by of_views")


def _check_shapes(
    z1: Tensor, z2: Tensor, z1_all: Tensor, z2_all: Tensor, offset: int, memory: Tensor | None
) -> None:
    if z1.ndim != 2 or z1.shape != z2.shape or len(z1) == 0:
        raise ValueError(
            f"the two views must have one shape (B, D) with B >= 1, "
            f"got {tuple(z1.shape)} and {tuple(z2.shape)}"
        )
    if z1_all.shape != z2_all.shape or z1_all.shape[1:] != z1.shape[1:]:
        raise ValueError(
            f"gathered views must have one shape (N, {z1.shape[1]}), "
            f"got {tuple(z1_all.shape)} and {tuple(z2_all.shape)}"
        )
    if not 0 <= offset <= len(z1_all) - len(z1):
        raise ValueError(
            f"offset {offset} with {len(z1)} rows does not lie within the {len(z1_all)} gathered "
            "rows: pass the number of this process's first row"
        )
    if memory is not None and memory.shape[1:] != z1.shape[1:]:
        raise ValueError(
            f"the memory must have the shape (K, {z1.shape[1]}), got {tuple(memory.shape)}"
        )


def soft_targets(teacher_logits: Sequence[Tensor], temperature: float) -> Tensor:
    """The mean of the teachers' softened predictions: of probabilities, not of logits.

    Hinton et al. (arXiv 1503.02531, section 3) distill an ensemble with such a mean. Each teacher's
    logits are divided by the temperature before its softmax, so a teacher whose logits are larger
    is not softened less.

    Args:
        teacher_logits: (B, C) of each teacher, any floating dtype. No gradient reaches them.
        temperature: divides all logits, > 0.

    Returns:
        (B, C) probabilities, float32 (float64 for float64 logits).

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.
    """
    _check_temperature(temperature)
    shapes = {tuple(logits.shape) for logits in teacher_logits}
    if len(shapes) != 1:
        raise ValueError(f"teacher logits must have one shape (B, C), got {sorted(shapes)}")
    logits = torch.stack([_at_least_float32(each.detach()) for each in teacher_logits])
    return (logits / temperature).softmax(2).mean(0)


def distillation_loss(
    student_logits: Tensor, targets: Tensor, temperature: float, own_share: float = 0.0
) -> Tensor:
    """Cross-entropy of the student with its teachers' softened predictions (SimCLRv2, eq. 2).

    The factor temperature^2, from the authors' colabs/distillation_self_training.ipynb, keeps the
    size of the gradient independent of the temperature.

    With ``own_share`` s the targets are (1 - s) * targets + s * the student's own prediction q:
    soft bootstrapping (Reed et al., arXiv 1412.6596, eq. 6, with 1 - s = 0.95). The gradient goes
    through both q, so the loss is (1 - s) * cross-entropy + s * entropy of q: with q as a constant
    its part would have no gradient at all.

    Args:
        student_logits: (B, C), any floating dtype.
        targets: (B, C) probabilities, `soft_targets` at the same temperature.
        own_share: s, in [0, 1).
        temperature: divides the student's logits, > 0; the paper uses 0.1 for self-distillation and
            1.0 from a big network to a small one.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.
    """
    _check_temperature(temperature)
    if student_logits.shape != targets.shape:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and targets {tuple(targets.shape)} must"
            " have the same shape (B, C): give the student as many classes as the teacher"
        )
    logits = _at_least_float32(student_logits) / temperature
    if own_share:
        targets = (1 - own_share) * targets + own_share * logits.softmax(1)
    return temperature**2 * F.cross_entropy(logits, targets)


def pseudo_label_loss(student_logits: Tensor, targets: Tensor, confidence: float) -> Tensor:
    """Cross-entropy with the teacher's likeliest class, where the teacher is sure enough.

    FixMatch's (arXiv 2001.07685, eq. 4): the mean is over all images, also those left out.

    Args:
        student_logits: (B, C), any floating dtype.
        targets: (B, C) probabilities of the teacher.
        confidence: the smallest of the largest probabilities that count.

    Returns:
        A scalar, 0 where the teacher is sure of none.
    """
    sure, labels = targets.max(1)
    losses = F.cross_entropy(_at_least_float32(student_logits), labels, reduction="none")
    return (losses * (sure >= confidence)).mean()


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_margin(margin: float) -> None:
    if not margin >= 0:
        raise ValueError(f"margin must be >= 0, got {margin}")


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
