"""Several processes equal one with the whole batch: loss and gradient, through DDP on gloo."""

import warnings
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shared.runtime import distributed
from shared.training.losses import Pairs, margin_triplet, nt_logistic, nt_xent, nt_xent_tiled
from tests.support import golden

B_ALL, TEMPERATURE = 8, 0.2


def model_and_views():
    """No batch norm: it would have to be global, which is another file's matter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)).double()
    view1 = torch.randn(B_ALL, 6).double()
    return model, view1, view1 + 0.3 * torch.randn(B_ALL, 6).double()


def train_step(loss, gather, model, view1, view2):
    """What the pretraining loop does; returns the mean loss and the gradients DDP averaged."""
    B = len(view1)
    z1, z2 = model(torch.cat([view1, view2])).chunk(2)
    offset = distributed.rank() * B
    value = loss(Pairs.of_views(z1, z2, gather(z1), gather(z2), offset), TEMPERATURE)
    value.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return distributed.mean_over_processes(value), gradients


def mined_triplet(pairs, margin):
    return margin_triplet(pairs, margin, semi_hard=True)


def detached_gather(x):
    """What Accelerator.gather and torch.distributed.all_gather do."""
    return distributed.gather_with_grad(x).detach()


def replica_gradients(case):
    """d(mean over processes of the loss) / d hidden, of this process, for a golden case."""
    arrays, meta = golden.load("multi_replica.npz")
    hidden = torch.tensor(arrays[f"{case}/hidden"][distributed.rank()], requires_grad=True)
    z1, z2 = hidden.chunk(2)
    gathered = distributed.gather_with_grad(z1), distributed.gather_with_grad(z2)
    offset = distributed.rank() * len(z1)
    loss = nt_xent(Pairs.of_views(z1, z2, *gathered, offset), meta[case]["temperature"])
    (loss / distributed.world_size()).backward()
    return loss.item(), hidden.grad.numpy()


def work(rank, processes, folder):
    warnings.simplefilter("error")  # a deprecated call in our code fails here
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=60),
    )
    assert (distributed.rank(), distributed.world_size()) == (rank, processes)

    gathered = distributed.gather_with_grad(torch.full((2, 3), float(rank)))
    assert gathered[:, 0].tolist() == [r for r in range(processes) for _ in range(2)]
    # A view that is not contiguous, and a gradient that is not (an expanded one).
    x = torch.arange(6.0).view(3, 2).T.requires_grad_()
    gathered = distributed.gather_with_grad(x)
    assert torch.equal(gathered[2 * rank : 2 * rank + 2], x)
    (gathered.sum() * (rank + 1)).backward()
    assert torch.all(x.grad == sum(range(1, processes + 1)))

    assert distributed.agree(rank == processes - 1, 7 + rank) == (True, 7)
    assert distributed.agree(False, 3) == (False, 3)
    # lists of other lengths, and empty ones
    expected = [r for r in range(processes) for _ in range(r)]
    assert distributed.gather_all([rank] * rank) == expected
    mean = distributed.mean_over_processes(torch.tensor(float(rank), requires_grad=True))
    assert mean.item() == (processes - 1) / 2
    assert not mean.requires_grad

    model, view1, view2 = model_and_views()
    own = slice(rank * B_ALL // processes, (rank + 1) * B_ALL // processes)
    results = {}
    model = DistributedDataParallel(model)
    for name, loss, gather in (
        ("plain", nt_xent, distributed.gather_with_grad),
        ("tiled", nt_xent_tiled, distributed.gather_with_grad),
        ("detached", nt_xent, detached_gather),
        ("logistic", nt_logistic, distributed.gather_with_grad),
        ("triplet", mined_triplet, distributed.gather_with_grad),
    ):
        value, gradients = train_step(loss, gather, model, view1[own], view2[own])
        results[f"{name}/loss"], results[f"{name}/gradients"] = value.numpy(), gradients.numpy()
    case = {2: "r2_b4_d16_t0.1", 4: "r4_b2_d8_t0.5"}[processes]
    results["replica/loss"], results["replica/gradients"] = replica_gradients(case)
    np.savez(f"{folder}/rank{rank}.npz", **results)
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_together_equal_one(processes, tmp_path):
    mp.spawn(work, (processes, str(tmp_path)), nprocs=processes)
    alone = {
        loss: train_step(loss, distributed.gather_with_grad, *model_and_views())
        for loss in (nt_xent, nt_logistic, mined_triplet)
    }
    expected_loss, expected = alone[nt_xent]
    arrays, _ = golden.load("multi_replica.npz")
    case = {2: "r2_b4_d16_t0.1", 4: "r4_b2_d8_t0.5"}[processes]

    def error(gradients, expected=expected):
        return np.abs(gradients - expected.numpy()).max() / expected.abs().max().item()

    for rank in range(processes):
        with np.load(tmp_path / f"rank{rank}.npz") as file:
            results = dict(file)
        for name in ("plain", "tiled"):
            assert results[f"{name}/loss"] == pytest.approx(expected_loss.item(), rel=1e-10)
            assert error(results[f"{name}/gradients"]) < 1e-10
        for name, loss in (("logistic", nt_logistic), ("triplet", mined_triplet)):
            assert results[f"{name}/loss"] == pytest.approx(alone[loss][0].item(), rel=1e-10)
            assert error(results[f"{name}/gradients"], alone[loss][1]) < 1e-10
        # The gather without gradient has the right loss, and quietly another gradient.
        assert results["detached/loss"] == pytest.approx(expected_loss.item(), rel=1e-10)
        assert error(results["detached/gradients"]) > 0.05

        golden_gradients = arrays[f"{case}/grad_per_replica"][rank]
        assert results["replica/loss"] == pytest.approx(
            arrays[f"{case}/loss_per_replica"][rank], rel=1e-5
        )
        np.testing.assert_allclose(
            results["replica/gradients"],
            golden_gradients,
            atol=1e-5 * np.abs(golden_gradients).max(),
        )


def test_a_lone_process_needs_no_group():
    x = torch.ones(3, 2, requires_grad=True)
    assert distributed.gather_with_grad(x) is x
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
