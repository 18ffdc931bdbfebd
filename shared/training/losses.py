"""The contrastive and the distillation loss of SimCLRv2 (arXiv 2006.10029, eq. 1 and 2).

Also the two losses that SimCLR (arXiv 2002.05709, Tables 2 and 4) compares the first with.

Pure functions of tensors and numbers; what other processes computed is passed in. They compute in
float32 (float64 for float64 input) whatever the autocast state: with temperature 0.1 a bfloat16
logit would be wrong by up to 0.04.

Shape letters: B images of this process, N images of all processes, D embedding width, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits matrices up to this many elements (4 MiB in float32) are simply formed.
PLAIN_ELEMENTS = 2**20
# Larger ones pass by in tiles of so many rows; then a tile stays in the cache of a core.
TILE_ROWS = 128


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: float,
    z1_all: Tensor | None = None,
    z2_all: Tensor | None = None,
    offset: int = 0,
    normalize: bool = True,
    memory: Tensor | None = None,
) -> Tensor:
    """Normalized-temperature cross-entropy of two views, the sum of both directions.

    Each embedding has to pick out its other view among all embeddings but itself. As in the
    authors' tf2/objective.py the result is mean over B of (loss of view 1 + loss of view 2): twice
    the mean over all 2B anchors. The average over processes equals the loss of one process with
    the whole batch, in value and, when ``z1_all`` comes from a gather with gradient, in gradient.

    With the memory of SimCLRv2's third improvement (section 2) ``z1_all`` and ``z2_all`` are what a
    moving average of the network makes of the same views, and ``memory`` is what it made of
    earlier batches. For the anchor a = z1[i], with the own view z1_all[i] left out as ever,

        loss = -log exp(a z2_all[i] / t) / (sum over j != i of exp(a z1_all[j] / t)
               + sum over j of exp(a z2_all[j] / t) + sum over m of exp(a m / t)),

    and likewise with the views swapped. So all that an anchor is compared with, its positive too,
    comes from the averaged network: the paper only says that its output is buffered as negative
    examples; that the current batch's candidates are its output as well, as in MoCo, is what the
    first author answered in github.com/google-research/simclr/issues/115.

    Args:
        z1: Embeddings of the first view, (B, D), any floating dtype.
        z2: Embeddings of the second view, (B, D).
        temperature: Divides the similarities, > 0.
        z1_all: First views of all processes, (N, D); None means that ``z1`` is all there is.
        z2_all: Second views of all processes, (N, D).
        offset: Row of ``z1_all`` at which this process's rows start.
        normalize: Divide each embedding by its length first.
        memory: More negatives for every anchor, (K, D).

    Returns:
        The loss, a scalar; 0 for a batch of one image without memory, which has no negatives.

    Raises:
        ValueError: Shapes, offset or temperature do not fit.
    """
    _check(z1, z2, temperature, z1_all, z2_all, offset, memory)
    B, N = len(z1), len(z1) if z1_all is None else len(z1_all)
    K = 0 if memory is None else len(memory)
    if 2 * B * (2 * N + K) > PLAIN_ELEMENTS:
        return nt_xent_tiled(z1, z2, temperature, z1_all, z2_all, offset, normalize, memory=memory)

    with torch.autocast(z1.device.type, enabled=False):
        anchors, candidates = _stack_views(z1, z2, z1_all, z2_all, normalize, memory)
        logits = anchors @ candidates.T / temperature  # (2B, 2N + K)
        itself, positive = _columns(B, N, offset, z1.device)
        # Masked, where the reference lowers by 1e9: the same, and right in every dtype.
        logits = logits.scatter(1, itself[:, None], -torch.inf)
        return F.cross_entropy(logits, positive, reduction="sum") / B


def nt_xent_tiled(
    z1: Tensor,
    z2: Tensor,
    temperature: float,
    z1_all: Tensor | None = None,
    z2_all: Tensor | None = None,
    offset: int = 0,
    normalize: bool = True,
    tile_rows: int = TILE_ROWS,
    memory: Tensor | None = None,
) -> Tensor:
    """`nt_xent` in O(N) memory: the (2B, 2N) logits exist only ``tile_rows`` rows at a time.

    Same arguments, result and gradients; ``nt_xent`` calls this for large batches. The backward
    pass recomputes the tiles and is written out: with logits s = u v^T and p their softmax, the
    loss sum_i (logsumexp_j s_ij - s_i,positive) has the gradients p v - v_positive with respect
    to u, and p^T u - u (this one added to the rows of the positives) with respect to v.
    """
    _check(z1, z2, temperature, z1_all, z2_all, offset, memory)
    with torch.autocast(z1.device.type, enabled=False):
        anchors, candidates = _stack_views(z1, z2, z1_all, z2_all, normalize, memory)
        u = anchors * temperature**-0.5  # the temperature goes into the embeddings: s = u v^T
        # Unit vectors bound the logits by 1/temperature. Up to 32 their exponentials, their sums
        # and the quotients of these are far from overflow, so no maximum need be subtracted.
        if candidates is anchors and normalize and temperature >= 1 / 32:
            return _SymmetricNTXent.apply(u, min(tile_rows, len(z1)))
        v = candidates * temperature**-0.5
        N = len(z1) if z1_all is None else len(z1_all)
        return _GatheredNTXent.apply(u, v, N, offset, tile_rows)


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
                grad[start:stop].addmm_(p, u[start:])
                grad[stop:].addmm_(p[:, ctx.tile_rows :].T, u[start:stop])
        return grad * (grad_loss / N), None


def _symmetric_tile(u: Tensor, start: int, stop: int) -> Tensor:
    """exp(s) of the rows start to stop and the columns from start on, 0 on the diagonal."""
    e = (u[start:stop] @ u[start:].T).exp_()  # (rows, 2N - start)
    e.diagonal().zero_()
    return e


class _GatheredNTXent(torch.autograd.Function):
    """The general case: anchors u (2B, D), candidates v (2N + K, D), logits of any size."""

    @staticmethod
    def forward(ctx, u: Tensor, v: Tensor, N: int, offset: int, tile_rows: int) -> Tensor:
        B = len(u) // 2
        itself, positive = _columns(B, N, offset, u.device)
        losses = u.new_empty(2 * B)
        for start in range(0, 2 * B, tile_rows):
            rows = slice(start, start + tile_rows)
            s = (u[rows] @ v.T).scatter_(1, itself[rows, None], -torch.inf)  # (rows, 2N + K)
            losses[rows] = F.cross_entropy(s, positive[rows], reduction="none")
        ctx.save_for_backward(u, v, losses, itself, positive)
        ctx.tile_rows = tile_rows
        return losses.sum() / B

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        u, v, losses, itself, positive = ctx.saved_tensors
        B = len(u) // 2
        grad_u = torch.zeros_like(u)
        grad_v = torch.zeros_like(v) if ctx.needs_input_grad[1] else None  # no gradient to a memory
        with torch.autocast(u.device.type, enabled=False):
            for start in range(0, 2 * B, ctx.tile_rows):
                rows = slice(start, start + ctx.tile_rows)
                s = (u[rows] @ v.T).scatter_(1, itself[rows, None], -torch.inf)  # (rows, 2N + K)
                s -= s.gather(1, positive[rows, None])
                p = s.sub_(losses[rows, None]).exp_()  # as loss = logsumexp(s) - s_positive
                p[torch.arange(len(p), device=p.device), positive[rows]] -= 1
                grad_u[rows].addmm_(p, v)
                if grad_v is not None:
                    grad_v.addmm_(p.T, u[rows])
        scale = grad_loss / B
        return grad_u * scale, None if grad_v is None else grad_v * scale, None, None, None


def info_nce(
    queries: Tensor, keys: Tensor, memory: Tensor, temperature: float, normalize: bool = True
) -> Tensor:
    """The loss of MoCo (arXiv 1911.05722, eq. 1), whose negatives are those of the memory alone.

    Mean over B of -log exp(q k / t) / (exp(q k / t) + sum over m of exp(q m / t)): one direction,
    unlike `nt_xent`, which sums two. The average over processes is the loss of the whole batch.

    Args:
        queries: Embeddings of the first views, (B, D), any floating dtype.
        keys: What the averaged network makes of the second views of the same images, (B, D).
        memory: Earlier keys, (K, D).
        temperature: Divides the similarities, > 0.
        normalize: Divide each embedding by its length first.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: Shapes or temperature do not fit.
    """
    _check(queries, keys, temperature, memory=memory)
    with torch.autocast(queries.device.type, enabled=False):
        q, k, m = (_embeddings(z, normalize) for z in (queries, keys, memory))
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ m.T], 1) / temperature  # (B, 1 + K)
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def nt_logistic(
    z1: Tensor,
    z2: Tensor,
    temperature: float,
    z1_all: Tensor | None = None,
    z2_all: Tensor | None = None,
    offset: int = 0,
    normalize: bool = True,
    semi_hard: bool = False,
) -> Tensor:
    """The NT-Logistic loss that SimCLR compares NT-Xent with (arXiv 2002.05709, Table 2).

    For an anchor u with positive v+ and one negative v- the table has the loss

        -log sigma(u v+ / t) - log sigma(-u v- / t),

    averaged here over all negatives of the anchor, which are the other images' embeddings in the
    other view. (The paper's comparison takes negatives of one view only as well.) As in `nt_xent`
    the result is mean over B of (loss of view 1 + loss of view 2), and its average over processes
    is the loss of the whole batch.

    Args:
        z1: Embeddings of the first view, (B, D), any floating dtype.
        z2: Embeddings of the second view, (B, D).
        temperature: Divides the similarities, > 0.
        z1_all: First views of all processes, (N, D); None means that ``z1`` is all there is.
        z2_all: Second views of all processes, (N, D).
        offset: Row of ``z1_all`` at which this process's rows start.
        normalize: Divide each embedding by its length first.
        semi_hard: Each anchor's one negative is the semi-hard one, as section 5.1 mines it (after
            Schroff et al. 2015): the most similar of those that are less similar than the positive.
            An anchor that has none only has its positive term.

    Returns:
        The loss, a scalar; of positive terms alone for a batch of one image.

    Raises:
        ValueError: Shapes, offset or temperature do not fit.
    """
    _check(z1, z2, temperature, z1_all, z2_all, offset)
    with torch.autocast(z1.device.type, enabled=False):
        anchors, candidates = _stack_views(z1, z2, z1_all, z2_all, normalize, None)
        positives, negatives, share = _pairs(anchors, candidates, offset, semi_hard)
        of_positives = F.logsigmoid(positives / temperature)  # (2B, 1)
        of_negatives = share * F.logsigmoid(-negatives / temperature)  # (2B, N or 1)
        return -(of_positives.sum() + of_negatives.sum()) / len(z1)


def margin_triplet(
    z1: Tensor,
    z2: Tensor,
    margin: float,
    z1_all: Tensor | None = None,
    z2_all: Tensor | None = None,
    offset: int = 0,
    normalize: bool = True,
    semi_hard: bool = False,
) -> Tensor:
    """The margin triplet loss that SimCLR compares NT-Xent with (arXiv 2002.05709, Table 2).

    For an anchor u with positive v+ and one negative v- that is max(u v- - u v+ + m, 0). Negatives,
    averages and arguments are those of `nt_logistic`, with the margin m >= 0 instead of a
    temperature. That a semi-hard negative lies within the margin needs no rule of its own: beyond
    it the loss and its gradient are 0.

    Raises:
        ValueError: Shapes, offset or margin do not fit.
    """
    _check(z1, z2, 1.0, z1_all, z2_all, offset)
    if not margin >= 0:
        raise ValueError(f"margin must be >= 0, got {margin}")
    with torch.autocast(z1.device.type, enabled=False):
        anchors, candidates = _stack_views(z1, z2, z1_all, z2_all, normalize, None)
        positives, negatives, share = _pairs(anchors, candidates, offset, semi_hard)
        return (share * F.relu(negatives - positives + margin)).sum() / len(z1)


def _pairs(
    anchors: Tensor, candidates: Tensor, offset: int, semi_hard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities of 2B anchors, each with the N candidates (2N, D) of its other view.

    Returns:
        Those of the positives (2B, 1); those of the negatives (2B, N), or (2B, 1) if semi-hard;
        the weight of each negative in its anchor's mean, 0 for what is none.
    """
    B, N = len(anchors) // 2, len(candidates) // 2
    s = torch.cat([anchors[:B] @ candidates[N:].T, anchors[B:] @ candidates[:N].T])  # (2B, N)
    own = torch.arange(offset, offset + B, device=s.device).repeat(2)[:, None]  # (2B, 1)
    positives = s.gather(1, own)
    if semi_hard:
        farther = s.detach().masked_fill(s >= positives, -torch.inf)  # and no longer the positive
        hardest = farther.argmax(1, keepdim=True)
        return positives, s.gather(1, hardest), farther.gather(1, hardest).isfinite().to(s.dtype)
    return positives, s, torch.full_like(s, 1 / max(N - 1, 1)).scatter(1, own, 0)


@torch.no_grad()
def contrastive_metrics(
    z1: Tensor,
    z2_all: Tensor,
    temperature: float,
    offset: int = 0,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:
    """How well first views find their second views, as tf2/metrics.py counts it; no gradient.

    Args:
        z1: Embeddings of this process's first views, (B, D).
        z2_all: Second views of all processes, (N, D); of this one alone where there is no other.
        temperature: That of the loss.
        offset: Row of ``z2_all`` at which this process's rows start.
        normalize: That of the loss.

    Returns:
        Two scalars, to be averaged over processes: the share of first views whose most similar
        second view is their own, and the mean entropy (nats) of the softmax over second views.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2_all = _embeddings(z1, normalize), _embeddings(z2_all, normalize)
        own = torch.arange(offset, offset + len(z1), device=z1.device)
        hits, entropy = z1.new_zeros(()), z1.new_zeros(())
        for rows in torch.arange(len(z1), device=z1.device).split(TILE_ROWS):  # bounds the memory
            logits = z1[rows] @ z2_all.T / temperature  # (rows, N)
            p = logits.softmax(1)
            hits += (logits.argmax(1) == own[rows]).sum()
            entropy -= (p * (p + 1e-8).log()).sum()
        return hits / len(z1), entropy / len(z1)


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the student with the teacher's softened predictions (SimCLRv2, eq. 2).

    The factor temperature^2, from the authors' colabs/distillation_self_training.ipynb, keeps the
    size of the gradient independent of the temperature. No gradient reaches the teacher.

    Args:
        student_logits: (B, C), any floating dtype.
        teacher_logits: (B, C).
        temperature: Divides both logits, > 0; the paper uses 0.1 for self-distillation and 1.0
            from a big network to a small one.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        ValueError: The shapes differ, or the temperature is not positive.
    """
    _check_temperature(temperature)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and teacher logits "
            f"{tuple(teacher_logits.shape)} must have the same shape (B, C): give the student as "
            "many classes as the teacher"
        )
    targets = (_at_least_float32(teacher_logits.detach()) / temperature).softmax(1)
    loss = F.cross_entropy(_at_least_float32(student_logits) / temperature, targets)
    return temperature**2 * loss


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _embeddings(z: Tensor, normalize: bool) -> Tensor:
    """In float32 or float64, and of unit length if asked (a zero row stays zero)."""
    z = _at_least_float32(z)
    if normalize:  # the bound lies inside the root, as in tf.math.l2_normalize
        z = z * z.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt()
    return z


def _stack_views(
    z1: Tensor,
    z2: Tensor,
    z1_all: Tensor | None,
    z2_all: Tensor | None,
    normalize: bool,
    memory: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Anchors (2B, D), first views first, and candidates (2N + K, D), the memory's last.

    One and the same tensor without a gather and a memory.
    """
    anchors = candidates = _embeddings(torch.cat([z1, z2]), normalize)
    if z1_all is not None and z2_all is not None and not (z1_all is z1 and z2_all is z2):
        candidates = _embeddings(torch.cat([z1_all, z2_all]), normalize)
    if memory is not None:
        candidates = torch.cat([candidates, _embeddings(memory, normalize)])
    return anchors, candidates


def _columns(B: int, N: int, offset: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each of the 2B anchors, the columns of itself and its positive among the candidates."""
    first = torch.arange(offset, offset + B, device=device)
    return torch.cat([first, first + N]), torch.cat([first + N, first])


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")


def _check(
    z1: Tensor,
    z2: Tensor,
    temperature: float,
    z1_all: Tensor | None = None,
    z2_all: Tensor | None = None,
    offset: int = 0,
    memory: Tensor | None = None,
) -> None:
    _check_temperature(temperature)
    if z1.ndim != 2 or z1.shape != z2.shape or len(z1) == 0:
        raise ValueError(
            f"the two views must have one shape (B, D) with B >= 1, "
            f"got {tuple(z1.shape)} and {tuple(z2.shape)}"
        )
    if (z1_all is None) != (z2_all is None):
        raise ValueError("z1_all and z2_all belong together: gather both views or neither")
    columns1, columns2 = (z1 if z1_all is None else z1_all), (z2 if z2_all is None else z2_all)
    if columns1.shape != columns2.shape or columns1.shape[1:] != z1.shape[1:]:
        raise ValueError(
            f"gathered views must have one shape (N, {z1.shape[1]}), "
            f"got {tuple(columns1.shape)} and {tuple(columns2.shape)}"
        )
    if not 0 <= offset <= len(columns1) - len(z1):
        raise ValueError(
            f"offset {offset} with {len(z1)} rows does not lie within the {len(columns1)} gathered "
            "rows: pass rank * batch size of one process"
        )
    if memory is not None and memory.shape[1:] != z1.shape[1:]:
        raise ValueError(
            f"the memory must have the shape (K, {z1.shape[1]}), got {tuple(memory.shape)}"
        )
