"""Several processes equal one with the whole batch: loss and gradient, through DDP on gloo."""

import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shared.runtime import distributed
from shared.training.losses import (
    Pairs,
    info_nce,
    margin_triplet,
    nt_logistic,
    nt_xent,
    nt_xent_tiled,
    pair,
)
from tests.support import golden
from tests.support.gloo import fork, join

B_ALL, TEMPERATURE = 8, 0.2
REPLICAS = {2: "r2_b4_d16_t0.1", 4: "r4_b2_d8_t0.5"}  # golden cases, by number of processes


def model_and_views():
    """No batch norm: it would have to be global, which is another file's matter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)).double()
    view1 = torch.randn(B_ALL, 6).double()
    return model, view1, view1 + 0.3 * torch.randn(B_ALL, 6).double()


def both_views(z1, z2, gather):
    first = distributed.own_rows(B_ALL).start
    return Pairs.of_views(z1, z2, gather(z1, B_ALL), gather(z2, B_ALL), first)


def queries(z1, z2, gather):
    """The keys have a gradient here, so that the test sees it come back from the others."""
    memory = torch.randn(6, 5, generator=torch.Generator().manual_seed(3)).double()
    return Pairs.of_queries(z1, gather(z2, B_ALL), memory, distributed.own_rows(B_ALL).start)


def train_step(loss, pairs, gather, model, view1, view2):
    """What the pretraining loop does; returns the mean loss and the gradients DDP averaged."""
    z1, z2 = model(torch.cat([view1, view2])).chunk(2)
    value = loss(pairs(z1, z2, gather), TEMPERATURE) * distributed.weight_of_own_rows(B_ALL)
    value.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return distributed.mean_over_processes(value), gradients


def mined_triplet(pairs, margin):
    return margin_triplet(pairs, margin, semi_hard=True)


def detached_gather(x, total):
    """What Accelerator.gather and torch.distributed.all_gather do."""
    return distributed.gather_with_grad(x, total).detach()


def unweighted(pairs, temperature):
    """Each process's loss counts the same, however many rows it has."""
    return nt_xent(pairs, temperature) / distributed.weight_of_own_rows(B_ALL)


STEPS = {
    "plain": (nt_xent, both_views, distributed.gather_with_grad),
    "tiled": (nt_xent_tiled, both_views, distributed.gather_with_grad),
    "logistic": (nt_logistic, both_views, distributed.gather_with_grad),
    "triplet": (margin_triplet, both_views, distributed.gather_with_grad),
    "pair": (pair, both_views, distributed.gather_with_grad),
    "mined triplet": (mined_triplet, both_views, distributed.gather_with_grad),
    "moco": (info_nce, queries, distributed.gather_with_grad),
    "detached": (nt_xent, both_views, detached_gather),
    "unweighted": (unweighted, both_views, distributed.gather_with_grad),
}


def replica_gradients(case):
    """d(mean over processes of the loss) / d hidden, of this process, for a golden case."""
    arrays, meta = golden.load("multi_replica.npz")
    hidden = torch.tensor(arrays[f"{case}/hidden"][distributed.rank()], requires_grad=True)
    z1, z2 = hidden.chunk(2)
    total = len(z1) * distributed.world_size()
    gathered = distributed.gather_with_grad(z1, total), distributed.gather_with_grad(z2, total)
    offset = distributed.rank() * len(z1)
    loss = nt_xent(Pairs.of_views(z1, z2, *gathered, offset), meta[case]["temperature"])
    (loss / distributed.world_size()).backward()
    return loss.item(), hidden.grad.numpy()


def work(rank, processes, folder):
    warnings.simplefilter("error")  # a deprecated call in our code fails here
    join(rank, processes, folder)
    assert (distributed.rank(), distributed.world_size()) == (rank, processes)

    for total in (processes, 2 * processes, 2 * processes + 1, 3 * processes - 1):
        own = distributed.own_rows(total)
        everything = torch.arange(3.0 * total).view(3, total).T
        # A view that is not contiguous, and a gradient that is not (an expanded one).
        x = everything[own].requires_grad_()
        gathered = distributed.gather_with_grad(x, total)
        assert torch.equal(gathered, everything)
        (gathered.sum() * (rank + 1)).backward()
        assert torch.all(x.grad == sum(range(1, processes + 1)))
        mean = everything[own].mean(0) * distributed.weight_of_own_rows(total)
        mean = distributed.mean_over_processes(mean)
        torch.testing.assert_close(mean, everything.mean(0))
        with pytest.raises(ValueError, match=f"process {rank} of {processes} has .* rows, not"):
            distributed.gather_with_grad(torch.zeros(4, 2), total)

    assert distributed.agree(rank == processes - 1, 7 + rank) == (True, 7)
    assert distributed.agree(False, 3) == (False, 3)
    # lists of other lengths, and empty ones
    expected = [r for r in range(processes) for _ in range(r)]
    assert distributed.gather_all([rank] * rank) == expected
    mean = distributed.mean_over_processes(torch.tensor(float(rank), requires_grad=True))
    assert mean.item() == (processes - 1) / 2
    assert not mean.requires_grad

    model, view1, view2 = model_and_views()
    own = distributed.own_rows(B_ALL)
    results = {}
    model = DistributedDataParallel(model)
    for name, step in STEPS.items():
        value, gradients = train_step(*step, model, view1[own], view2[own])
        results[f"{name}/loss"], results[f"{name}/gradients"] = value.numpy(), gradients.numpy()
    if processes in REPLICAS:
        replica = replica_gradients(REPLICAS[processes])
        results["replica/loss"], results["replica/gradients"] = replica
    np.savez(f"{folder}/rank{rank}.npz", **results)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "processes", [3, *(pytest.param(p, marks=pytest.mark.slow) for p in (2, 4, 5, 7))]
)
def test_processes_together_equal_one(processes, tmp_path):
    """With as many rows each, or not: 8 rows on 3 processes are 2, 3 and 3."""
    fork(work, (processes, str(tmp_path)), processes)
    for name, (loss, pairs, _) in STEPS.items():
        loss = nt_xent if loss is unweighted else loss
        gather = distributed.gather_with_grad
        loss, expected = train_step(loss, pairs, gather, *model_and_views())
        for rank in range(processes):
            with np.load(tmp_path / f"rank{rank}.npz") as file:
                result, gradients = file[f"{name}/loss"], file[f"{name}/gradients"]
            error = np.abs(gradients - expected.numpy()).max() / expected.abs().max().item()
            uneven = B_ALL % processes > 0
            assert (result == pytest.approx(loss.item(), rel=1e-10)) == (
                name != "unweighted" or not uneven
            )
            if name == "detached":  # the right loss, and quietly another gradient
                assert error > 0.05
            elif name == "unweighted" and uneven:
                assert error > 0.01
            else:
                assert error < 1e-10, name
    if processes in REPLICAS:
        is_the_reference(REPLICAS[processes], processes, tmp_path)


def is_the_reference(case, processes, folder):
    arrays, _ = golden.load("multi_replica.npz")
    for rank in range(processes):
        with np.load(folder / f"rank{rank}.npz") as file:
            results = dict(file)
        golden_gradients = arrays[f"{case}/grad_per_replica"][rank]
        assert results["replica/loss"] == pytest.approx(
            arrays[f"{case}/loss_per_replica"][rank], rel=1e-5
        )
        np.testing.assert_allclose(
            results["replica/gradients"],
            golden_gradients,
            atol=1e-5 * np.abs(golden_gradients).max(),
        )


@given(st.integers(1, 300), st.integers(1, 40))
def test_rows_are_divided_without_gap_and_as_evenly_as_they_can_be(total, processes):
    rows = [range(total)[distributed.rows_of(r, processes, total)] for r in range(processes)]
    assert [i for own in rows for i in own] == list(range(total))
    assert max(map(len, rows)) - min(map(len, rows)) == (total % processes > 0)


def test_a_lone_process_needs_no_group():
    x = torch.ones(3, 2, requires_grad=True)
    assert distributed.gather_with_grad(x, 3) is x
    assert distributed.own_rows(3) == slice(0, 3)
    assert distributed.weight_of_own_rows(3) == 1
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.agree(True, 5) == (True, 5)
    assert distributed.agree(False, 3) == (False, 3)
    assert distributed.gather_all([1, 2]) == [1, 2]
    assert not distributed.mean_over_processes(x).requires_grad


def test_a_group_of_one_is_a_lone_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    try:
        test_a_lone_process_needs_no_group()
    finally:
        dist.destroy_process_group()
