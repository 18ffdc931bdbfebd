"""The memory: its losses, the averaged network, the queue, resuming, and several processes."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shared.config.command_line import load_config
from shared.config.schema import Config, hashed_settings
from shared.config.sections import Model, Pretrain
from shared.data.batches import Batch, Batches
from shared.data.sources import open_data
from shared.networks.build import build_contrastive, network_meta
from shared.networks.negatives_queue import Memory
from shared.pretext import contrastive
from shared.pretext.contrastive import Contrastive
from shared.runtime import distributed
from shared.runtime.randomness import seed_torch
from shared.training.device import to_device
from shared.training.losses import (
    Pairs,
    info_nce,
    margin_triplet,
    nt_logistic,
    nt_xent,
    nt_xent_tiled,
)
from shared.training.optim import build_optimizer, set_learning_rate
from shared.training.schedule import schedule_of
from shared.training.stage import Stage
from stages import pretrain
from tests.support.gloo import fork, join
from tests.support.sources import images

BOTH, ALONE = "batch+memory", "memory"
TINY = [
    "--model.encoder=simclr_resnet8_1x_sk0",
    "--model.head_layers=2",
    "--model.head_width=32",
    "--model.head_out=16",
    "--pretrain.batch_size=32",
    "--pretrain.warmup_epochs=0",
    "--pretrain.optimizer=sgd",
    "--pretrain.learning_rate=0.05",
    "--pretrain.temperature=0.2",
    "--pretrain.log_every_steps=1",
    "--pretrain.memory=64",
    "--pretrain.memory_momentum=0.9",
    "--precision=no",
    "--threads=1",
]


class Recorder(Memory):
    """What the stage uses, but the test can look at it afterwards."""

    made: "Recorder"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        Recorder.made = self


def run(output: Path, *options: str) -> Path:
    """Pretrain; return the artifact folder."""
    assert pretrain.main([*TINY, f"--output={output}", *options]) == 0
    return output / "digits" / "pretrain"


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


# ---- losses ----


def share_of_positive(anchor, positive, negatives, temperature):
    """-log of the positive's share, written out."""
    up = [(anchor @ positive / temperature).exp()]
    others = [(anchor @ negative / temperature).exp() for negative in negatives]
    return -(up[0] / torch.stack(up + others).sum()).log()


def by_definition(q1, q2, k1, k2, memory, temperature, offset):
    """SimCLRv2 with memory as a slow loop: every anchor against all keys but its own view's."""
    q1, q2, k1, k2, memory = (F.normalize(z, dim=1) for z in (q1, q2, k1, k2, memory))
    loss = q1.new_zeros(())
    for i in range(len(q1)):
        own = offset + i
        others = [k[j] for k in (k1, k2) for j in range(len(k)) if j != own]
        negatives = [*others, *memory]
        loss = loss + share_of_positive(q1[i], k2[own], negatives, temperature)
        loss = loss + share_of_positive(q2[i], k1[own], negatives, temperature)
    return loss / len(q1)


def moco_by_definition(q, k, memory, temperature):
    q, k, memory = (F.normalize(z, dim=1) for z in (q, k, memory))
    losses = [share_of_positive(*pair, memory, temperature) for pair in zip(q, k, strict=True)]
    return torch.stack(losses).mean()


def random_rows(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def assert_close(actual, expected, relative=1e-9):
    assert (actual - expected).abs().max() <= relative * expected.abs().max() + 1e-12


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 6),
    before=st.integers(0, 4),
    after=st.integers(0, 4),
    K=st.integers(0, 9),
    D=st.integers(2, 6),
    temperature=st.floats(0.05, 2.0),
    tile_rows=st.integers(1, 13),
    seed=st.integers(0, 2**31),
)
def test_batch_and_memory_is_the_definition(B, before, after, K, D, temperature, tile_rows, seed):
    """Value and gradients, plain and tiled; the keys are leaves here to see their gradients too."""
    N = before + B + after
    q, k = random_rows(2, B, D, seed=seed), random_rows(2, N, D, seed=seed + 1)
    inputs = [*q, *k, random_rows(K, D, seed=seed + 2)]

    def value_and_gradients(loss):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = loss(*leaves)
        value.backward()
        return [value.detach(), *(x.grad for x in leaves if x.numel())]

    def tiled(q1, q2, k1, k2, memory):
        pairs = Pairs.of_views(q1, q2, k1, k2, before, memory=memory)
        return nt_xent_tiled(pairs, temperature, tile_rows)

    def plain(q1, q2, k1, k2, memory):
        return nt_xent(Pairs.of_views(q1, q2, k1, k2, before, memory=memory), temperature)

    expected = value_and_gradients(lambda *z: by_definition(*z, temperature, before))
    for results in (value_and_gradients(plain), value_and_gradients(tiled)):
        for actual, wanted in zip(results, expected, strict=True):
            assert_close(actual, wanted)


@settings(max_examples=30, deadline=None)
@given(
    B=st.integers(1, 6),
    K=st.integers(1, 9),
    D=st.integers(2, 6),
    temperature=st.floats(0.05, 2.0),
    seed=st.integers(0, 2**31),
)
def test_memory_alone_is_the_definition(B, K, D, temperature, seed):
    q, k = random_rows(2, B, D, seed=seed)
    memory = random_rows(K, D, seed=seed + 1)
    a, b = q.clone().requires_grad_(), q.clone().requires_grad_()
    value = info_nce(Pairs.of_queries(a, k, memory), temperature)
    expected = moco_by_definition(b, k, memory, temperature)
    value.backward()
    expected.backward()
    assert_close(value.detach(), expected.detach())
    assert_close(a.grad, b.grad)


@pytest.mark.parametrize("loss", [nt_xent, nt_xent_tiled])
def test_the_batch_itself_may_be_the_candidates_beside_a_memory(loss):
    z, memory = random_rows(2, 5, 4, seed=0), random_rows(7, 4, seed=1)
    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    value = loss(Pairs.of_views(a[0], a[1], memory=memory), 0.3)
    expected = by_definition(b[0], b[1], b[0], b[1], memory, 0.3, 0)
    value.backward()
    expected.backward()
    assert_close(value.detach(), expected.detach())
    assert_close(a.grad, b.grad)


def test_a_large_memory_never_forms_its_logits():
    q, k, memory = (random_rows(n, 2, seed=n).float() for n in (32, 33, 65536))
    q.requires_grad_()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: sizes.append(x.numel()) or x, lambda x: x
    ):
        value = nt_xent(Pairs.of_views(q[:16], q[16:], k[:16], k[16:32], memory=memory), 0.1)
    assert max(sizes) < 4 * len(memory)  # the logits are 32 x 65568
    value.backward()
    expected = q.detach().clone().requires_grad_()
    u, v = F.normalize(expected, dim=1), F.normalize(torch.cat([k[:32], memory]), dim=1)
    logits = (u @ v.T / 0.1).masked_fill(torch.eye(32, len(v), dtype=torch.bool), -torch.inf)
    (2 * F.cross_entropy(logits, torch.arange(32).roll(16))).backward()
    assert_close(q.grad, expected.grad, 1e-4)


def test_wrong_memories_are_named():
    z, memory = torch.ones(3, 4), torch.ones(6, 4)
    with pytest.raises(ValueError, match=r"memory must have the shape \(K, 4\), got \(6, 5\)"):
        Pairs.of_views(z, z, memory=torch.ones(6, 5))
    with pytest.raises(ValueError, match=r"\(K, 4\), got \(4,\)"):
        Pairs.of_queries(z, z, torch.ones(4))
    with pytest.raises(ValueError, match="must have one shape"):
        Pairs.of_queries(z, torch.ones(3, 5), memory)
    with pytest.raises(ValueError, match=r"offset 0 with 3 rows .* the 2 gathered rows"):
        Pairs.of_queries(z, torch.ones(2, 4), memory)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        info_nce(Pairs.of_queries(z, z, memory), 0.0)


def test_losses_refuse_pairs_of_the_other_kind():
    z, memory = torch.ones(3, 4), torch.ones(6, 4)
    queries = Pairs.of_queries(z, z, memory)
    for loss in (nt_xent, nt_xent_tiled, nt_logistic, margin_triplet):
        with pytest.raises(ValueError, match="compares two views: make the pairs by of_views"):
            loss(queries, 0.1)
    with_memory = Pairs.of_views(z, z, memory=memory)
    for loss in (nt_logistic, margin_triplet):
        with pytest.raises(ValueError, match="only nt_xent and info_nce take a memory"):
            loss(with_memory, 0.1)
    with pytest.raises(ValueError, match="compares queries with a memory"):
        info_nce(with_memory, 0.1)


# ---- the averaged network and the queue ----


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_the_queue_replaces_its_oldest_keys_and_wraps_around():
    model = small_model()
    memory = Memory(model, 6, 2)
    start = memory.queue.clone()
    assert start.shape == (6, 2)
    keys = torch.arange(16.0).view(4, 2, 2)  # of four steps
    memory.update(model, keys[0])
    assert torch.equal(memory.queue, torch.cat([keys[0], start[2:]]))
    assert memory.position == 2
    memory.update(model, keys[1])
    memory.update(model, keys[2])
    assert torch.equal(memory.queue, torch.cat([keys[0], keys[1], keys[2]]))
    assert memory.position == 0
    memory.update(model, keys[3])
    assert torch.equal(memory.queue, torch.cat([keys[3], keys[1], keys[2]]))
    with pytest.raises(ValueError, match="memory of 6 keys must be a multiple of the 4 keys"):
        memory.update(model, torch.zeros(4, 2))


def test_the_network_is_a_moving_average_without_gradients():
    model, m = small_model().eval(), 0.9
    memory = Memory(model, 4, 2, m)
    expected = [p.detach().double() for p in model.parameters()]
    for average, current in zip(memory.network.parameters(), model.parameters(), strict=True):
        assert torch.equal(average, current)
        assert average is not current
        assert not average.requires_grad
        assert current.requires_grad
    assert all(part.training for part in memory.network.modules())
    for _ in range(5):
        with torch.no_grad():
            for p in [*model.parameters(), *model.buffers()]:
                p += 1
        expected = [
            m * k + (1 - m) * q.detach().double()
            for k, q in zip(expected, model.parameters(), strict=True)
        ]
        memory.update(model, torch.zeros(2, 2))
    for average, wanted in zip(memory.network.parameters(), expected, strict=True):
        assert_close(average.double(), wanted, 1e-6)
    for buffer, current in zip(memory.network.buffers(), model.buffers(), strict=True):
        assert torch.equal(buffer, current)


def test_the_queue_starts_as_torchs_seed_says():
    queues = []
    for seed in (0, 0, 1):
        model = small_model()
        torch.manual_seed(seed)
        queues.append(Memory(model, 8, 2).queue)
    assert torch.equal(queues[0], queues[1])
    assert not torch.equal(queues[0], queues[2])


def test_the_state_dict_holds_it_all():
    model = small_model()
    memory, other = Memory(model, 4, 2), Memory(model, 4, 2)
    with torch.no_grad():
        model[0].weight += 1
    memory.update(model, torch.ones(2, 2))
    other.load_state_dict(memory.state_dict())
    for a, b in ((memory, other),):
        a.update(model, torch.full((2, 2), 2.0))
        b.update(model, torch.full((2, 2), 2.0))
        for name, tensor in a.state_dict().items():
            assert torch.equal(b.state_dict()[name], tensor), name


# ---- the stage ----


@pytest.mark.parametrize("negatives", [BOTH, ALONE])
def test_the_stage_is_the_method_written_by_hand(negatives, tmp_path, monkeypatch):
    """Five updates; memory alone with the two-layer head is MoCo v2's step."""
    monkeypatch.setattr(contrastive, "Memory", Recorder)
    # with seed 0 an activation lies so near zero that on AVX2 rounding decides its sign
    options = ["--pretrain.steps=5", "--pretrain.seed=1"]
    folder = run(tmp_path, *options, f"--pretrain.negatives={negatives}")

    config = load_config([*TINY, *options], "", "")[0]
    cfg = config.pretrain
    images = open_data(config.data, config.label_set).train
    accelerator = Accelerator(cpu=True)
    batches = Batches(
        images,
        np.arange(len(images)),
        config.data,
        config.augment,
        accelerator,
        seed=cfg.seed,
        stage="pretrain",
        batch_size=32,
        views=2,
    )
    seed_torch(cfg.seed, "pretrain")
    f_q = build_contrastive(network_meta(config.model, config.data)).train()
    to_device(f_q, config, accelerator)  # the layout decides how a convolution rounds
    f_k = copy.deepcopy(f_q)
    queue = torch.randn(64, 16)
    optimizer = build_optimizer("sgd", f_q, cfg.weight_decay, cfg.momentum)
    schedule, losses = schedule_of(cfg, len(images)), []
    for step, batch in enumerate(batches.steps(0, 5)):
        x1, x2 = batch.images.chunk(2)
        if negatives == ALONE:
            q, k = f_q(x1), f_k(x2).detach()
            loss = moco_by_definition(q, k, queue, 0.2)
        else:
            q1, q2 = f_q(torch.cat([x1, x2])).chunk(2)
            k1, k = f_k(torch.cat([x1, x2])).detach().chunk(2)
            loss = by_definition(q1, q2, k1, k, queue, 0.2, 0)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        set_learning_rate(optimizer, schedule.learning_rate(step))
        optimizer.step()
        for p_k, p_q in zip(f_k.parameters(), f_q.parameters(), strict=True):
            p_k.data = 0.9 * p_k.data + 0.1 * p_q.data
        queue = torch.cat([queue[32:], k])  # oldest first

    lines = logged(folder)
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    chance = np.log(65) if negatives == ALONE else 2 * np.log(127)
    assert lines[0]["loss_of_chance"] == pytest.approx(chance, rel=1e-5)
    assert lines[0]["negatives_per_anchor"] == (64 if negatives == ALONE else 126)
    trained = load_file(folder / "model.safetensors")
    assert trained.keys() == f_q.state_dict().keys()  # the model alone, not the averaged one
    for name, tensor in f_q.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    made = Recorder.made
    start = int(made.position)  # 5 steps of 32 in 64: not at the beginning
    assert start == 32
    in_order = torch.cat([made.queue[start:], made.queue[:start]])
    torch.testing.assert_close(in_order, queue, rtol=1e-3, atol=1e-3)
    for average, p_k in zip(made.network.parameters(), f_k.parameters(), strict=True):
        torch.testing.assert_close(average.data, p_k.data, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("negatives", [BOTH, ALONE])
def test_an_interrupted_run_goes_on_to_the_same_bits(negatives, tmp_path, monkeypatch):
    monkeypatch.setattr(contrastive, "Memory", Recorder)
    arguments = [
        "--pretrain.steps=10",
        "--pretrain.checkpoint_every_steps=5",
        f"--pretrain.negatives={negatives}",
    ]
    whole = run(tmp_path / "whole", *arguments)
    memory = Recorder.made.state_dict()

    checked = Stage.require_finite

    def dies(self, loss):
        checked(self, loss)
        if self.step == 7:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Stage, "require_finite", dies)
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "parts", *arguments)
    monkeypatch.setattr(Stage, "require_finite", checked)
    states = list((tmp_path / "parts").rglob("state/*.safetensors"))
    assert [path.stem for path in states] == ["000000005"]
    parts = run(tmp_path / "parts", *arguments)
    assert [x["loss"] for x in logged(parts)] == [x["loss"] for x in logged(whole)]
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for name, tensor in Recorder.made.state_dict().items():
        assert torch.equal(tensor, memory[name]), name


def test_the_artifact_depends_on_the_memory(tmp_path, capsys):
    plain = hashed_settings(Pretrain(batch_size=32), "pretrain")
    for key, value in (("memory", 64), ("memory_momentum", 0.5), ("negatives", ALONE)):
        with_it = hashed_settings(Pretrain(batch_size=32, **{"memory": 64, key: value}), "pretrain")
        assert with_it[f"pretrain.{key}"] == value != plain[f"pretrain.{key}"]
    run(tmp_path, "--pretrain.steps=1")
    again = [*TINY, f"--output={tmp_path}", "--pretrain.steps=1", "--pretrain.memory=96"]
    assert pretrain.main(again) == 2
    assert "was made with pretrain.memory=64, now it is 96" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--pretrain.memory=50"],
            "pretrain.memory must be 0 or a multiple of pretrain.batch_size=32, got 50",
        ),
        (["--pretrain.memory=-32"], "got -32"),
        (["--pretrain.memory_momentum=1"], "pretrain.memory_momentum must be in [0, 1), got 1"),
        (
            ["--pretrain.memory=0", "--pretrain.negatives=memory"],
            "greater than 0 with pretrain.negatives=memory",
        ),
        (["--pretrain.negatives=queue"], "pretrain.negatives must be one of"),
    ],
)
def test_wrong_options_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        pretrain.main([*TINY, *arguments])
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_the_recipes_have_the_papers_numbers():
    recipes = Path(pretrain.__file__).parents[1] / "configs"
    images = 1281167

    moco = load_config([f"--config={recipes / 'imagenet_moco_v2.yaml'}"], "", "")[0]
    assert moco.pretrain.negatives == "memory"
    assert (moco.pretrain.memory, moco.pretrain.memory_momentum) == (65536, 0.999)
    assert (moco.pretrain.temperature, moco.model.head_layers) == (0.2, 2)
    assert schedule_of(moco.pretrain, images).peak == 0.03

    first = load_config([f"--config={recipes / 'imagenet_simclr_v1.yaml'}"], "", "")[0]
    assert first.pretrain.memory == 0
    assert (first.augment.brightness, first.model.head_layers) == ("additive", 2)
    assert schedule_of(first.pretrain, images).peak == pytest.approx(4.8)
    assert schedule_of(first.linear, images).peak == pytest.approx(1.6)
    assert schedule_of(first.finetune, 12811).peak == pytest.approx(0.8)


# ---- several processes ----

B_ALL, K, STEPS = 8, 24, 5  # the queue wraps around


def steps_in_float64(wrap, mode):
    """Losses, last gradients and queue of a few updates, as the stage makes them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    own = distributed.own_rows(B_ALL)
    cfg = Pretrain(batch_size=B_ALL, memory=K, memory_momentum=0.9, negatives=mode, temperature=0.2)
    task = Contrastive(Config(model=Model(head_out=5), pretrain=cfg), Accelerator())
    task.start(model, images([0]))
    memory = task.memory.double()
    net = wrap(model)
    losses, gradients = [], torch.empty(0)
    for step in range(STEPS):
        views = random_rows(2, B_ALL, 6, seed=step)
        views[1] = views[0] + 0.3 * views[1]
        batch = Batch(views[:, own].flatten(0, 1), torch.arange(0), None)
        answer = task.loss((net(*task.inputs(batch)),), task.targets(batch))
        answer.loss.backward()
        losses.append(distributed.mean_over_processes(answer.loss).item())
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
        model.zero_grad()
        task.update(model, answer)
    return {"losses": torch.tensor(losses), "gradients": gradients, "queue": memory.queue}


def stage_in_float32(output, mode, accelerator):
    arguments = [
        *TINY,
        f"--output={output}",
        "--pretrain.steps=4",
        f"--pretrain.negatives={mode}",
        f"--run={mode.replace('+', '-')}",
    ]
    folder = pretrain.run(load_config(arguments, "", "")[0], accelerator)
    return {
        "losses": torch.tensor([line["loss"] for line in logged(folder)]),
        "queue": Recorder.made.queue,
        **load_file(folder / "model.safetensors"),
    }


def work(rank, processes, folder):
    join(rank, processes, folder)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    assert accelerator.num_processes == processes
    pretrain.Memory = Recorder
    results = {
        (level, mode): values
        for mode in (BOTH, ALONE)
        for level, values in (
            ("steps", steps_in_float64(DistributedDataParallel, mode)),
            ("stage", stage_in_float32(f"{folder}/three", mode, accelerator)),
        )
    }
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_three_processes_equal_one(tmp_path, monkeypatch):
    """They have 2, 3 and 3 of 8 rows; 10, 11 and 11 of 32 in the stage."""
    monkeypatch.setattr(contrastive, "Memory", Recorder)
    fork(work, (3, str(tmp_path)), 3)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(3)]
    for mode in (BOTH, ALONE):
        one = steps_in_float64(lambda model: model, mode)
        for three in ranks:
            for name, expected in one.items():
                assert_close(three["steps", mode][name], expected, 1e-10)
        one = stage_in_float32(tmp_path / "one", mode, Accelerator(cpu=True))
        for three in ranks:
            assert three["stage", mode].keys() == one.keys()
            for name, expected in one.items():
                torch.testing.assert_close(
                    three["stage", mode][name], expected, rtol=1e-3, atol=2e-3, msg=name
                )
        for level in ("steps", "stage"):  # the same bits on every process
            first, *others = (three[level, mode]["queue"] for three in ranks)
            assert all(torch.equal(first, other) for other in others)
