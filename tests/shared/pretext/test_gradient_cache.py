"""Batches that pass in parts, through the functions of pretraining."""

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shared.config.schema import Config
from shared.config.sections import Model, Pretrain
from shared.data.batches import Batch, Parts
from shared.networks.batchnorm import BatchNorm, synchronize
from shared.pretext.contrastive import Contrastive
from shared.pretext.gradient_cache import backward_in_parts, in_order
from shared.runtime import distributed
from shared.runtime.randomness import seed_torch
from tests.support.gloo import fork, join
from tests.support.sources import images
from tests.support.toy_run import run_pretrain

B_ALL, K, D = 14, 28, 5


LOSSES = [
    {"loss": "nt_xent"},
    {"loss": "nt_logistic"},
    {"loss": "margin_triplet", "semi_hard": True},
    {"loss": "pair", "margin": 1.5},
    {"memory": K},
    {"memory": K, "negatives": "memory"},
]


def names(options) -> str:
    return "-".join(str(value) for value in options.values())


def network(*layers: nn.Module) -> nn.Sequential:
    """In float64, with what differs between passes: dropout, and both kinds of batch norm."""
    torch.manual_seed(0)
    layers = layers or (BatchNorm(16), nn.BatchNorm1d(16), nn.Dropout(0.3))
    return nn.Sequential(nn.Linear(6, 16), *layers, nn.Tanh(), nn.Linear(16, D)).double()


def views() -> torch.Tensor:
    """(2, B_ALL, 6)."""
    first = torch.randn(B_ALL, 6, generator=torch.Generator().manual_seed(1)).double()
    return torch.stack([first, first.flip(0) * 0.1 + 0.9 * first])


def in_parts(images, number) -> Parts:
    """Made anew for each pass, as `Batches.steps_in_parts` does; ``images`` are (2, b, 6)."""
    first = distributed.own_rows(B_ALL).start
    rows = [slice((i - first) % number, None, number) for i in range(number)]

    def make(i):
        return Batch(images[:, rows[i]].flatten(0, 1).clone(), torch.arange(0), None)

    return Parts(make, rows, images.shape[1])


def gradients(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def contrastive(cfg, model) -> Contrastive:
    """The task, on a network that is no picture's; the averaged network is in float64 too."""
    config = Config(model=Model(head_out=D), pretrain=cfg)
    task = Contrastive(config, Accelerator(cpu=True))
    torch.manual_seed(2)
    task.start(model, images([0]))
    if task.memory:
        task.memory.double()
    return task


def two_passes(net, task, batch, accelerator):
    """The step of the stage whose batch passes in parts."""
    key = (0, "pretrain", 7, accelerator.process_index)
    return backward_in_parts(net, batch, task, accelerator, key)


def by_parts(cfg, number, model, rows, wrap=lambda model: model):
    task = contrastive(cfg, model)
    net = wrap(model)
    answer = two_passes(net, task, in_parts(rows, number), Accelerator(cpu=True))
    return answer.loss, gradients(model), answer.kept[0].detach(), dict(model.named_buffers())


def by_one_graph(cfg, number, model, rows):
    """All parts' activations kept until the one backward pass: the definition."""
    task = contrastive(cfg, model)
    outputs, targets = [], []
    batch = in_parts(rows, number)
    for i, part in enumerate(batch):
        seed_torch(cfg.seed, "pretrain", 7, 0, i)
        outputs.append((model(*task.inputs(part)),))
        targets.append(task.targets(part))
    answer = task.loss(in_order(outputs, batch), in_order(targets, batch))
    answer.loss.backward()
    keys = answer.kept[0].detach()
    return answer.loss.detach(), gradients(model), keys, dict(model.named_buffers())


@pytest.mark.parametrize("number", [1, 2, 7])
@pytest.mark.parametrize("options", LOSSES, ids=names)
def test_two_passes_have_the_gradient_of_one_graph(options, number):
    """Same dropout, the same rows, and batch norm counts each part once."""
    cfg = Pretrain(batch_size=B_ALL, temperature=0.3, **options)
    expected = by_one_graph(cfg, number, network(), views())
    loss, gradient, keys, buffers = by_parts(cfg, number, network(), views())
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(loss, expected[0], **close)
    torch.testing.assert_close(gradient, expected[1], **close)
    torch.testing.assert_close(keys, expected[2], **close)
    torch.testing.assert_close(buffers, expected[3], **close)
    assert buffers["1.num_batches_tracked"] == buffers["2.num_batches_tracked"] == number


@pytest.mark.parametrize("options", LOSSES, ids=names)
def test_without_batch_norm_it_is_the_whole_batch(options):
    cfg = Pretrain(batch_size=B_ALL, temperature=0.3, **options)
    expected = by_one_graph(cfg, 1, network(nn.ReLU()), views())
    actual = by_parts(cfg, 7, network(nn.ReLU()), views())
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_bfloat16_reaches_the_weights_in_both_passes():
    """A cast that autocast remembers from a pass without gradient would cut the second one's."""
    model = network(nn.ReLU()).float()
    accelerator = Accelerator(cpu=True)
    net = accelerator.prepare_model(model)
    net.forward = torch.autocast("cpu", dtype=torch.bfloat16)(net.forward)
    cfg = Pretrain(batch_size=B_ALL, temperature=0.3)
    batch = in_parts(views().float(), 2)
    two_passes(net, contrastive(cfg, model), batch, accelerator)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


# ---- several processes ----
STAGE = ["--pretrain.micro_batch=8", "--pretrain.loss=nt_logistic", "--pretrain.temperature=0.5"]


def work(rank, processes, folder):
    join(rank, processes, folder)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    own = views()[:, distributed.own_rows(B_ALL)]
    results = {}
    for options in LOSSES:
        cfg = Pretrain(batch_size=B_ALL, temperature=0.3, **options)
        model = synchronize(network(BatchNorm(16), nn.BatchNorm1d(16)))
        loss, *others = by_parts(cfg, 2, model, own, DistributedDataParallel)
        results[names(options)] = (distributed.mean_over_processes(loss), *others)
    results["stage"] = run_pretrain(folder, accelerator, *STAGE)[1]
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_processes_together_equal_one(tmp_path):
    """Embeddings of all processes, batch norm over them, one average of the gradient.

    Three processes have 4, 5 and 5 of the 14 images, and of each part of 7 images 2 or 3; in the
    stage 10, 11 and 11 of 32 images, and of each part of 8 images 2 or 3.
    """
    # first in this process, whose images the forks then have
    one = run_pretrain(tmp_path / "one", Accelerator(cpu=True), *STAGE)[1]
    fork(work, (3, str(tmp_path)), 3)
    for rank in range(3):
        results = torch.load(tmp_path / f"rank{rank}.pt")
        for options in LOSSES:
            cfg = Pretrain(batch_size=B_ALL, temperature=0.3, **options)
            model = network(BatchNorm(16), nn.BatchNorm1d(16))
            expected = by_one_graph(cfg, 2, model, views())
            torch.testing.assert_close(results[names(options)], expected, rtol=1e-9, atol=1e-9)
        for name, tensor in one.items():
            assert results["stage"][name].sub(tensor).abs().max() < 1e-3, name
