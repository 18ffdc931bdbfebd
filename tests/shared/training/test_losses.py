"""NT-Xent and distillation against the authors' numbers and against the definition."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.training.losses import (
    Pairs,
    contrastive_metrics,
    decoupled,
    distillation_loss,
    margin_triplet,
    nt_logistic,
    nt_xent,
    nt_xent_tiled,
    pair,
    pseudo_label_loss,
    soft_targets,
)
from tests.support import golden

NT_XENT, NT_XENT_META = golden.load("nt_xent.npz")
DISTILL, DISTILL_META = golden.load("distill_supervised.npz")
REPLICAS, REPLICAS_META = golden.load("multi_replica.npz")


def assert_close(actual, expected, relative=1e-5, rounding=1e-12):
    """Relative to the largest entry; where all are 0 (a batch of one) only rounding is allowed."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    error = np.abs(actual - expected).max()
    assert error <= relative * np.abs(expected).max() + rounding, f"off by {error}"


def by_definition(z1, z2, temperature, z1_all, z2_all, offset, normalize):
    """NT-Xent as a slow loop: -log of the share of the positive among all but oneself."""
    if normalize:
        z1, z2, z1_all, z2_all = (F.normalize(z, dim=1) for z in (z1, z2, z1_all, z2_all))
    loss = z1.new_zeros(())
    candidates = torch.cat([z1_all, z2_all])
    for i in range(len(z1)):
        own1, own2 = offset + i, len(z1_all) + offset + i
        for anchor, itself, positive in ((z1[i], own1, own2), (z2[i], own2, own1)):
            others = [j for j in range(len(candidates)) if j != itself]
            logits = torch.stack([anchor @ candidates[j] for j in others]) / temperature
            loss = loss + logits.logsumexp(0) - anchor @ candidates[positive] / temperature
    return loss / len(z1)


@pytest.mark.parametrize("loss", [nt_xent, nt_xent_tiled])
@pytest.mark.parametrize("case", NT_XENT_META)
def test_nt_xent_is_the_reference(case, loss):
    flags = NT_XENT_META[case]
    hidden = torch.tensor(NT_XENT[f"{case}/hidden"], requires_grad=True)
    z1, z2 = hidden.chunk(2)
    value = loss(Pairs.of_views(z1, z2, normalize=flags["hidden_norm"]), flags["temperature"])
    value.backward()
    expected = NT_XENT[f"{case}/grad"]
    assert_close(value.item(), NT_XENT[f"{case}/loss"])
    assert_close(value.item(), NT_XENT[f"{case}/loss_np64"])
    huge = np.abs(expected).max(1) > 1e3  # the zero row's, 1e6 times that of the others
    assert huge.any() == (flags["kind"] == "zero_row")
    assert_close(hidden.grad[~huge], expected[~huge])
    if huge.any():
        assert_close(hidden.grad[huge], expected[huge])


@pytest.mark.parametrize("case", NT_XENT_META)
def test_metrics_are_the_reference(case):
    flags = NT_XENT_META[case]
    z1, z2 = torch.tensor(NT_XENT[f"{case}/hidden"]).chunk(2)
    pairs = Pairs.of_views(z1, z2, normalize=flags["hidden_norm"])
    accuracy, entropy = contrastive_metrics(pairs, flags["temperature"])
    assert accuracy.item() == pytest.approx(NT_XENT[f"{case}/contrast_acc"], rel=1e-6)
    assert entropy.item() == pytest.approx(NT_XENT[f"{case}/contrast_entropy"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("loss", [nt_xent, nt_xent_tiled])
@pytest.mark.parametrize("case", [case for case in REPLICAS_META if case.startswith("r")])
def test_each_replica_has_the_reference_loss(case, loss):
    flags = REPLICAS_META[case]
    R, b = flags["replicas"], flags["per_replica_batch"]
    hidden = torch.tensor(REPLICAS[f"{case}/hidden"], requires_grad=True)  # (R, 2b, D)
    z1_all, z2_all = hidden[:, :b].flatten(0, 1), hidden[:, b:].flatten(0, 1)  # (Rb, D)
    replicas = [
        Pairs.of_views(hidden[r, :b], hidden[r, b:], z1_all, z2_all, r * b) for r in range(R)
    ]
    losses = torch.stack([loss(pairs, flags["temperature"]) for pairs in replicas])
    losses.mean().backward()
    assert_close(losses.detach(), REPLICAS[f"{case}/loss_per_replica"])
    assert_close(losses.mean().item(), REPLICAS[f"{case}/global_loss"])
    assert_close(hidden.grad, REPLICAS[f"{case}/grad_per_replica"])


@pytest.mark.parametrize("case", [case for case in REPLICAS_META if case.startswith("r")])
def test_metrics_count_columns_of_other_processes(case):
    flags = REPLICAS_META[case]
    b = flags["per_replica_batch"]
    hidden = torch.tensor(REPLICAS[f"{case}/hidden"])
    for r in range(flags["replicas"]):
        logits = REPLICAS[f"{case}/logits_ab"][r]  # (b, Rb)
        z1_all, z2_all = hidden[:, :b].flatten(0, 1), hidden[:, b:].flatten(0, 1)  # (Rb, D)
        pairs = Pairs.of_views(hidden[r, :b], hidden[r, b:], z1_all, z2_all, r * b)
        accuracy, entropy = contrastive_metrics(pairs, flags["temperature"])
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        expected = -(p * np.log(p + 1e-8)).sum(1).mean()
        assert accuracy.item() == np.mean(logits.argmax(1) == r * b + np.arange(b))
        assert entropy.item() == pytest.approx(expected, rel=1e-5)


def random_views(B, N, D, seed):
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2, N, D, generator=generator, dtype=torch.float64)
    views[1] += views[0]
    return views


@settings(max_examples=60, deadline=None)
@example(B=1, before=0, after=4, D=1, temperature=1 / 64, normalize=True, tile_rows=1, seed=2)
@given(
    B=st.integers(1, 9),
    before=st.integers(0, 5),
    after=st.integers(0, 5),
    D=st.integers(1, 8),
    temperature=st.floats(0.005, 5.0),
    normalize=st.booleans(),
    tile_rows=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
def test_values_and_gradients_are_those_of_the_definition(
    B, before, after, D, temperature, normalize, tile_rows, seed
):
    """Plain and tiled, with the gathered views as separate leaves, and for one process."""
    N = before + B + after
    views = random_views(B, N, D, seed)
    own = views[:, before : before + B]
    rounding = 1e-12 / min(temperature, 1)  # a gradient has terms of 1 / temperature

    def run(loss, one_process, **options):
        z, z_all = own.clone().requires_grad_(), views.clone().requires_grad_()
        gathered = () if one_process else (z_all[0], z_all[1], before)
        pairs = Pairs.of_views(z[0], z[1], *gathered, normalize=normalize)
        value = loss(pairs, temperature, **options)
        value.backward()
        return value.detach(), z.grad, z_all.grad

    z, z_all = own.clone().requires_grad_(), views.clone().requires_grad_()
    expected = by_definition(z[0], z[1], temperature, z_all[0], z_all[1], before, normalize)
    expected.backward()
    for result in (run(nt_xent, False), run(nt_xent_tiled, False, tile_rows=tile_rows)):
        assert_close(result[0], expected.detach(), 1e-9)
        for actual, wanted in zip(result[1:], (z.grad, z_all.grad), strict=True):
            assert_close(actual, wanted, 1e-9, rounding)

    z = own.clone().requires_grad_()
    expected = by_definition(z[0], z[1], temperature, z[0], z[1], 0, normalize)
    expected.backward()
    for result in (run(nt_xent, True), run(nt_xent_tiled, True, tile_rows=tile_rows)):
        assert_close(result[0], expected.detach(), 1e-9)
        assert_close(result[1], z.grad, 1e-9, rounding)


@pytest.mark.parametrize("temperature", [0.01, 0.03, 0.05, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("D", [8, 128])
@pytest.mark.parametrize("gathered", [False, True])
def test_tiled_equals_plain_in_float32(D, temperature, gathered):
    z = random_views(300, 300, D, 0).float()
    if D == 128:
        z[1] = torch.randn(300, D, generator=torch.Generator().manual_seed(1))
    plain, tiled = z.clone().requires_grad_(), z.clone().requires_grad_()
    others = (z[0].clone(), z[1].clone()) if gathered else ()
    a = nt_xent(Pairs.of_views(*plain, *others), temperature)
    b = nt_xent_tiled(Pairs.of_views(*tiled, *others), temperature)
    a.backward()
    b.backward()
    assert_close(b.item(), a.item())
    assert_close(tiled.grad, plain.grad)


def test_a_large_batch_never_forms_its_logits():
    """Above the threshold nt_xent is the tiled one: no tensor of (2N, 2N) elements is saved."""
    N = 600
    z = random_views(N, N, 4, 0).float().requires_grad_()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: sizes.append(x.numel()) or x, lambda x: x
    ):
        value = nt_xent(Pairs.of_views(z[0], z[1]), 0.1)
    assert max(sizes) < 10 * N * 4
    value.backward()
    assert_close(value.item(), by_blocks(z.detach(), 0.1))


def by_blocks(z, temperature):
    z1, z2 = F.normalize(z, dim=2)
    same1, same2, cross = (a @ b.T / temperature for a, b in ((z1, z1), (z2, z2), (z1, z2)))
    eye = torch.eye(len(z1), dtype=torch.bool)
    rows1 = torch.cat([cross, same1.masked_fill(eye, -torch.inf)], 1).logsumexp(1)
    rows2 = torch.cat([cross.T, same2.masked_fill(eye, -torch.inf)], 1).logsumexp(1)
    return (rows1 + rows2 - 2 * cross.diagonal()).mean().item()


@pytest.mark.parametrize("loss", [nt_xent, nt_xent_tiled])
def test_views_given_as_their_own_gather_are_one_process(loss):
    """A gather on one process returns its input: the same computation to the last digit."""
    z = random_views(200, 200, 16, 1).float()
    alone, gathered = z.clone().requires_grad_(), z.clone().requires_grad_()
    loss(Pairs.of_views(alone[0], alone[1]), 0.1).backward()
    z1, z2 = gathered.unbind()
    loss(Pairs.of_views(z1, z2, z1, z2, 0), 0.1).backward()
    assert torch.equal(gathered.grad, alone.grad)


@pytest.mark.parametrize("loss", [nt_xent, nt_xent_tiled])
def test_logits_beyond_the_range_of_exp(loss):
    """Similarities of embeddings that are not normalized have no bound; exp(400) is infinite."""
    z = (20 * torch.eye(4)).repeat(2, 1, 1).requires_grad_()
    value = loss(Pairs.of_views(z[0], z[1], normalize=False), 1.0)
    value.backward()
    assert value.item() == 0.0
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("loss", [nt_xent, nt_xent_tiled])
def test_the_upstream_gradient_counts(loss):
    z = random_views(5, 5, 3, 1)
    once, thrice = z.clone().requires_grad_(), z.clone().requires_grad_()
    loss(Pairs.of_views(once[0], once[1]), 0.1).backward()
    (3 * loss(Pairs.of_views(thrice[0], thrice[1]), 0.1)).backward()
    assert_close(thrice.grad, 3 * once.grad, 1e-12)


@pytest.mark.parametrize("loss", [nt_xent, nt_xent_tiled])
@pytest.mark.parametrize("gathered", [False, True])
def test_swapping_the_views_changes_nothing(loss, gathered):
    z1, z2 = random_views(6, 6, 4, 2)
    pairs = Pairs.of_views(z1, z2, *((z1.clone(), z2.clone()) if gathered else ()))
    swapped = Pairs.of_views(z2, z1, *((z2.clone(), z1.clone()) if gathered else ()))
    first, second = loss(pairs, 0.2), loss(swapped, 0.2)
    assert first.item() == pytest.approx(second.item(), rel=1e-12)


@pytest.mark.parametrize("loss", [nt_xent, nt_xent_tiled])
@pytest.mark.parametrize("gathered", [False, True])
def test_autocast_does_not_reach_the_logits(loss, gathered):
    z = random_views(20, 20, 16, 3).float()
    outside, inside = z.clone().requires_grad_(), z.clone().requires_grad_()
    others = (z[0].clone(), z[1].clone()) if gathered else ()
    expected = loss(Pairs.of_views(outside[0], outside[1], *others), 0.1)
    expected.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(Pairs.of_views(inside[0], inside[1], *others), 0.1)
        metrics = contrastive_metrics(Pairs.of_views(z[0], z[1]), 0.1)
        if loss is nt_xent_tiled:  # torch's own backward functions do follow autocast
            value.backward()
    if loss is nt_xent:
        value.backward()
    assert value.dtype == torch.float32
    assert value.item() == expected.item()
    assert torch.equal(inside.grad, outside.grad)
    assert metrics == contrastive_metrics(Pairs.of_views(z[0], z[1]), 0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_are_computed_with_in_float32(dtype):
    z = random_views(8, 8, 16, 4).to(dtype)
    value = nt_xent(Pairs.of_views(z[0], z[1]), 0.1)
    assert value.dtype == torch.float32
    expected = nt_xent(Pairs.of_views(z[0].float(), z[1].float()), 0.1)
    assert value.item() == expected.item()
    logits = z[0] * 30
    targets = soft_targets([z[1]], 0.1)
    assert distillation_loss(logits, targets, 0.1).dtype == targets.dtype == torch.float32
    assert torch.equal(targets, soft_targets([z[1].float()], 0.1))
    expected = distillation_loss(logits.float(), targets, 0.1)
    assert distillation_loss(logits, targets, 0.1).item() == expected.item()


@pytest.mark.parametrize(("B", "start", "temperature"), [(4, 0, 0.5), (3, 2, 0.1), (1, 0, 1.0)])
def test_decoupled_is_its_definition(B, start, temperature):
    """Yeh et al., eq. 6: all but the anchor and its positive stand below the positive."""
    N = 6 if B > 1 else 1
    z = random_views(N, N, 5, 3)
    own = z[:, start : start + B]
    value = decoupled(Pairs.of_views(own[0], own[1], z[0], z[1], start), temperature)
    u = F.normalize(z, dim=-1)
    total = 0.0
    for view in (0, 1):
        for i in range(start, start + B):
            a, p = u[view, i], u[1 - view, i]
            others = [u[v, j] for v in (0, 1) for j in range(N) if j != i]
            below = sum(math.exp(a @ o / temperature) for o in others)
            total += math.log(below) - float(a @ p) / temperature if others else 0.0
    assert value.item() == pytest.approx(total / B)
    with torch.autocast("cpu", torch.bfloat16):
        again = decoupled(Pairs.of_views(own[0], own[1], z[0], z[1], start), temperature)
    assert again.item() == value.item()


@pytest.mark.parametrize("loss", [nt_xent, nt_xent_tiled])
def test_float64_stays_float64(loss):
    z = random_views(8, 8, 16, 4)
    assert loss(Pairs.of_views(z[0], z[1]), 0.1).dtype == torch.float64


@pytest.mark.parametrize("loss", [nt_xent, nt_xent_tiled])
def test_collapsed_embeddings_cost_log_of_the_candidates(loss):
    """All embeddings equal: 2 log(2N - 1), and no better than chance at finding the positive."""
    z = torch.ones(2, 10, 4)
    assert loss(Pairs.of_views(z[0], z[1]), 0.1).item() == pytest.approx(2 * math.log(19), rel=1e-6)
    accuracy, entropy = contrastive_metrics(Pairs.of_views(z[0], z[1]), 0.1)
    assert accuracy.item() == pytest.approx(0.1)
    assert entropy.item() == pytest.approx(math.log(10), rel=1e-6)


def test_metrics_take_more_rows_than_one_tile():
    z = random_views(300, 300, 6, 5)
    logits = F.normalize(z[0], dim=1) @ F.normalize(z[1], dim=1).T / 0.5
    accuracy, entropy = contrastive_metrics(Pairs.of_views(z[0], z[1]), 0.5)
    p = logits.softmax(1)
    assert accuracy.item() == (logits.argmax(1) == torch.arange(300)).double().mean().item()
    assert entropy.item() == pytest.approx(-(p * p.log()).sum(1).mean().item(), rel=1e-5)
    certain = contrastive_metrics(Pairs.of_views(torch.eye(4), torch.eye(4)), 0.005)
    # the probabilities of all other second views are 0
    assert [x.item() for x in certain] == [1.0, pytest.approx(0.0, abs=1e-6)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((3, 4), (2, 4)), "must have one shape"),
        (((0, 4), (0, 4)), "B >= 1"),
        (((3, 4), (3, 4), (6, 4)), "belong together"),
        (((3, 4), (3, 4), (6, 4), (5, 4)), "gathered views"),
        (((3, 4), (3, 4), (6, 5), (6, 5)), "gathered views"),
        (((3, 4), (3, 4), (6, 4), (6, 4), 4), "offset 4"),
        (((3, 4), (3, 4), (6, 4), (6, 4), -1), "offset -1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    tensors = [torch.ones(a) if isinstance(a, tuple) else a for a in arguments]
    with pytest.raises(ValueError, match=message):
        Pairs.of_views(*tensors)


@pytest.mark.parametrize("loss", [nt_xent, nt_xent_tiled])
def test_a_wrong_temperature_is_named(loss):
    z = torch.ones(3, 4)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        loss(Pairs.of_views(z, z), 0.0)


# ------------------------------------------------------------- NT-Logistic and margin triplet
def pairs_by_definition(term, alone, z1, z2, z1_all, z2_all, offset, normalize, semi_hard):
    """A slow loop over anchors and negatives of ``term(s+, s-)``; ``alone(s+)`` without one."""
    if normalize:
        z1, z2, z1_all, z2_all = (F.normalize(z, dim=1) for z in (z1, z2, z1_all, z2_all))
    loss = z1.new_zeros(())
    for anchors, others in ((z1, z2_all), (z2, z1_all)):
        for i, anchor in enumerate(anchors):
            positive = anchor @ others[offset + i]
            negatives = [anchor @ others[j] for j in range(len(others)) if j != offset + i]
            if semi_hard:
                farther = [s for s in negatives if s < positive]
                negatives = sorted(farther, key=torch.Tensor.item)[-1:]
            terms = [term(positive, s) for s in negatives] or [alone(positive)]
            loss = loss + torch.stack(terms).mean()
    return loss / len(z1)


def logistic_by_definition(t, *arguments):
    def term(p, n):
        return alone(p) - torch.log(torch.sigmoid(-n / t))

    def alone(p):
        return -torch.log(torch.sigmoid(p / t))

    return pairs_by_definition(term, alone, *arguments)


def triplet_by_definition(m, *arguments):
    def term(p, n):
        return n - p + m if n - p + m > 0 else 0 * p

    return pairs_by_definition(term, lambda p: 0 * p, *arguments)


@pytest.mark.parametrize(
    ("loss", "definition"),
    [(nt_logistic, logistic_by_definition), (margin_triplet, triplet_by_definition)],
)
@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 6),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
    D=st.integers(1, 6),
    number=st.floats(0.1, 3.0),
    normalize=st.booleans(),
    semi_hard=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_pair_losses_are_their_definition(
    loss, definition, B, before, after, D, number, normalize, semi_hard, seed
):
    """Value and gradients, with the gathered views as separate leaves, and for one process."""
    views = random_views(before + B + after, before + B + after, D, seed)
    if D == 1:  # similarities of signs are equal but for rounding, on which mining would turn
        normalize = False

    def ours(*arguments):
        return loss(Pairs.of_views(*arguments, normalize=normalize), number, semi_hard)

    results = []
    for function in (
        lambda z, z_all: ours(*z, *z_all, before),
        lambda z, z_all: definition(number, *z, *z_all, before, normalize, semi_hard),
        lambda z, _: ours(*z),
        lambda z, _: definition(number, *z, *z, 0, normalize, semi_hard),
    ):
        z = views[:, before : before + B].clone().requires_grad_()
        z_all = views.clone().requires_grad_()
        value = function(z, z_all)
        value.backward()
        results.append([value.detach(), z.grad, z_all.grad])
    for a, b in zip(results[0], results[1], strict=True):
        assert_close(a, b, 1e-9)
    for a, b in zip(results[2][:2], results[3][:2], strict=True):
        assert_close(a, b, 1e-9)


def test_gradients_of_table_2():
    """Of one anchor u with v+ and v-, all of unit length, as the paper's table has them."""
    u, positive, negative = F.normalize(torch.randn(3, 5, dtype=torch.float64), dim=1)
    t, m = 0.3, 0.5
    a, b = torch.sigmoid(-u @ positive / t), torch.sigmoid(u @ negative / t)
    close = (u @ positive - u @ negative < m).double()
    for loss, number, ascent in (
        (nt_logistic, t, (a * positive - b * negative) / t),
        (margin_triplet, m, close * (positive - negative)),
    ):
        anchor = u.clone().requires_grad_()
        others = torch.stack([positive, negative])
        zeros = torch.zeros_like(others)  # the other direction has no part in u's gradient
        pairs = Pairs.of_views(anchor[None], zeros[:1], zeros, others, 0, normalize=False)
        loss(pairs, number).backward()
        assert_close(-anchor.grad, ascent, 1e-9)


def test_mined_is_the_most_similar_of_the_less_similar():
    anchor = torch.tensor([[1.0, 0.0]])
    others = torch.tensor([[0.5, 0.0], [0.9, 0.0], [0.4, 0.0], [-1.0, 0.0]])  # the first is its own
    zeros = torch.zeros_like(others)

    def value(margin, others):
        # the other direction is that of an anchor 0: the margin, where it is mined at all
        gathered = zeros[: len(others)], others
        pairs = Pairs.of_views(anchor, zeros[:1], *gathered, normalize=False)
        return margin_triplet(pairs, margin, semi_hard=True).item()

    assert value(0.3, others) == pytest.approx(0.4 - 0.5 + 0.3)
    assert value(0.05, others) == 0  # beyond the margin
    assert value(0.3, others[:2]) == 0  # the only negative is more similar than the positive


@settings(max_examples=30, deadline=None)
@given(
    B=st.integers(1, 6),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
    margin=st.floats(0.0, 3.0),
    semi_hard=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_pair_is_its_definition(B, before, after, margin, semi_hard, seed):
    """Value and gradients, with the gathered views as separate leaves."""

    def distance(s):  # of unit vectors with this cosine
        return (2 - 2 * s).sqrt()

    def term(p, n):
        return alone(p) + (margin - distance(n)).clamp(min=0) ** 2

    def alone(p):
        return distance(p) ** 2

    views = random_views(before + B + after, before + B + after, 4, seed)
    results = []
    for function in (
        lambda z, z_all: pair(Pairs.of_views(*z, *z_all, before), margin, semi_hard),
        lambda z, z_all: pairs_by_definition(
            term, alone, *z, *z_all, before, normalize=True, semi_hard=semi_hard
        ),
    ):
        z = views[:, before : before + B].clone().requires_grad_()
        z_all = views.clone().requires_grad_()
        value = function(z, z_all)
        value.backward()
        results.append([value.detach(), z.grad, z_all.grad])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-9)


@pytest.mark.parametrize(("margin", "pushes"), [(1.0, False), (1.3, False), (1.5, True)])
def test_beyond_the_margin_a_negative_has_no_gradient(margin, pushes):
    """All negatives lie at the distance of orthogonal vectors, 1.414; the positives at 0."""
    anchors = torch.eye(4, dtype=torch.float64, requires_grad=True)
    z = anchors.detach()
    loss = pair(Pairs.of_views(anchors, z, z, z), margin)
    loss.backward()
    expected = 2 * (margin - 2**0.5) ** 2 if pushes else 0.0
    assert loss.item() == pytest.approx(expected)
    assert (anchors.grad.abs().max().item() > 0.01) == pushes
    if not pushes:
        assert_close(anchors.grad, torch.zeros(4, 4), 1e-12)


def test_pair_is_finite_where_all_embeddings_are_the_same():
    z = torch.ones(2, 5, 3, requires_grad=True)
    loss = pair(Pairs.of_views(*z), 0.8)
    loss.backward()
    assert loss.item() == pytest.approx(2 * 0.8**2, rel=1e-2)
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("loss", [nt_logistic, margin_triplet, pair])
def test_pair_losses_compute_in_float32(loss):
    z = random_views(20, 20, 16, 3).float()
    expected = loss(Pairs.of_views(*z), 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(Pairs.of_views(*z), 0.3).item() == expected.item()
    rounded = z.bfloat16()
    expected = loss(Pairs.of_views(*rounded.float()), 0.3)
    assert loss(Pairs.of_views(*rounded), 0.3).item() == expected.item()
    assert loss(Pairs.of_views(*z.double()), 0.3).dtype == torch.float64


def test_pair_losses_name_what_is_wrong():
    z = torch.ones(3, 4)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        nt_logistic(Pairs.of_views(z, z), 0.0)
    with pytest.raises(ValueError, match=r"margin must be >= 0, got -0\.1"):
        margin_triplet(Pairs.of_views(z, z), -0.1)
    with pytest.raises(ValueError, match=r"margin must be >= 0, got nan"):
        pair(Pairs.of_views(z, z), float("nan"))
    with pytest.raises(ValueError, match="unit vectors"):
        pair(Pairs.of_views(z, z, normalize=False), 0.5)
    with pytest.raises(ValueError, match="memory"):
        pair(Pairs.of_views(z, z, memory=z), 0.5)
    with pytest.raises(ValueError, match="offset 4"):
        Pairs.of_views(z, z, torch.ones(6, 4), torch.ones(6, 4), 4)


@pytest.mark.parametrize("case", [case for case in DISTILL_META if case.startswith("kd")])
def test_distillation_is_the_reference(case):
    student = torch.tensor(DISTILL[f"{case}/student_logits"], requires_grad=True)
    teacher = torch.tensor(DISTILL[f"{case}/teacher_logits"], requires_grad=True)
    temperature = DISTILL_META[case]["temperature"]
    loss = distillation_loss(student, soft_targets([teacher], temperature), temperature)
    loss.backward()
    assert_close(loss.item(), DISTILL[f"{case}/loss"])
    assert_close(loss.item(), DISTILL[f"{case}/loss_np64"])
    assert_close(student.grad, DISTILL[f"{case}/grad_student"])
    assert teacher.grad is None


def test_distillation_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"\(2, 5\).*\(2, 10\)"):
        distillation_loss(torch.zeros(2, 5), torch.zeros(2, 10), 1.0)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        distillation_loss(torch.zeros(2, 5), torch.zeros(2, 5), 0.0)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        soft_targets([torch.zeros(2, 5)], -1.0)
    with pytest.raises(ValueError, match=r"one shape \(B, C\), got \[\(2, 5\), \(2, 10\)\]"):
        soft_targets([torch.zeros(2, 10), torch.zeros(2, 5)], 1.0)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_bootstrapping_adds_the_entropy_of_the_student(temperature):
    """With a gradient: the student's own prediction as a constant would add none."""
    student = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    student.requires_grad_()
    targets = soft_targets([torch.eye(4, 3).double()], temperature)
    q = (student / temperature).softmax(1)
    cross, entropy = -(targets * q.log()).sum(1).mean(), -(q * q.log()).sum(1).mean()
    expected = temperature**2 * (0.9 * cross + 0.1 * entropy)
    loss = distillation_loss(student, targets, temperature, 0.1)
    assert_close(loss.item(), expected.item())
    gradients = [
        torch.autograd.grad(each, student, retain_graph=True)[0] for each in (loss, expected)
    ]
    assert_close(*gradients)


def test_pseudo_labels_count_where_the_teacher_is_sure():
    """0.6 is sure enough for 0.6; the mean is over all three images."""
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.5, 0.5]])
    loss = pseudo_label_loss(logits, teacher, 0.6)
    assert_close(loss.item(), (math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 3)
    assert torch.autograd.grad(loss, logits)[0][2].tolist() == [0, 0]
    assert pseudo_label_loss(logits, teacher, 0.95).item() == 0


def test_several_teachers_say_the_mean_of_their_probabilities():
    """Not of their logits: sure teachers who disagree leave the choice open between their two."""
    teachers = [torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.0]])]
    for temperature in (1.0, 0.5):
        e2, e4 = math.exp(2 / temperature), math.exp(4 / temperature)
        first, second = [e2, 1, 1], [1, e4, 1]
        expected = [
            (a / sum(first) + b / sum(second)) / 2 for a, b in zip(first, second, strict=True)
        ]
        assert_close(soft_targets(teachers, temperature), torch.tensor([expected]))
    assert torch.equal(soft_targets(teachers[:1], 0.5), (teachers[0] / 0.5).softmax(1))


@pytest.mark.parametrize("case", [case for case in DISTILL_META if case.startswith("sup")])
def test_torch_cross_entropy_is_the_supervised_loss_of_the_reference(case):
    """The stages call torch's; duplicated labels belong to two views, all of the first first."""
    logits = torch.tensor(DISTILL[f"{case}/logits"], requires_grad=True)
    labels = torch.tensor(DISTILL[f"{case}/labels"])
    loss = F.cross_entropy(logits, labels.repeat(len(logits) // len(labels)))
    loss.backward()
    assert_close(loss.item(), DISTILL[f"{case}/loss"])
    assert_close(logits.grad, DISTILL[f"{case}/grad"])
