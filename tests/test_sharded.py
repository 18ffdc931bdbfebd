"""Sharded training: what works of it; the commands refuse it (docs/large.md says why)."""

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin

from shared.networks.batchnorm import synchronize
from shared.networks.encoders import create_encoder
from shared.networks.heads import ContrastiveModel, ProjectionHead
from shared.runtime.distributed import gather_with_grad, rank
from shared.training.losses import Pairs, nt_xent
from shared.training.optim import build_optimizer, set_learning_rate

PROCESSES, B = 2, 4
UNITS = ["ResidualBlock", "ProjectionHead"]


def network() -> ContrastiveModel:
    torch.manual_seed(0)
    encoder = create_encoder("simclr_resnet8_1x_sk0", 8)
    return ContrastiveModel(encoder, ProjectionHead(64, 3, 16, 32)).double()


def train(net, optimizer, own: slice, backward=torch.Tensor.backward) -> None:
    """Some steps of pretraining on this process's rows."""
    for step in range(4):
        set_learning_rate(optimizer, 1.0 + step)
        generator = torch.Generator().manual_seed(step)
        views = torch.rand(2, PROCESSES * B, 3, 8, 8, generator=generator).double()
        z1, z2 = net(views[:, own].flatten(0, 1)).chunk(2)
        gathered = gather_with_grad(z1, PROCESSES * B), gather_with_grad(z2, PROCESSES * B)
        backward(nt_xent(Pairs.of_views(z1, z2, *gathered, rank() * B), 0.3))
        optimizer.step()
        optimizer.zero_grad()


def work(number, folder):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
    }
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=number,
        world_size=PROCESSES,
        timeout=timedelta(seconds=120),
    )
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    # As accelerate does on GPUs; configured for FSDP on CPUs, it trains data parallel instead.
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=UNITS,
        cpu_ram_efficient_loading=False,
    )
    net = synchronize(network())
    net, optimizer = accelerator.prepare(net, build_optimizer("lars", net, 1e-2))
    train(net, optimizer, slice(number * B, (number + 1) * B), accelerator.backward)

    stored = sum(p.to_local().numel() for p in net.parameters())
    assert stored < 0.6 * sum(p.numel() for p in net.parameters())
    state = {
        k: t.full_tensor() if hasattr(t, "full_tensor") else t for k, t in net.state_dict().items()
    }
    torch.save(state, f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_lars_global_batch_norm_and_negatives_when_sharded(tmp_path):
    """FSDP2 as accelerate prepares it: the weights of one process with the whole batch."""
    mp.spawn(work, (str(tmp_path),), nprocs=PROCESSES)
    alone = network()
    train(alone, build_optimizer("lars", alone, 1e-2), slice(None))
    for number in range(PROCESSES):
        state = torch.load(tmp_path / f"{number}.pt")
        torch.testing.assert_close(state, dict(alone.state_dict()), rtol=1e-8, atol=1e-8)
