"""Instance discrimination: its bank, its two losses, and that it learns."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from shared.config.pretext import Instances as Options
from shared.config.schema import Config
from shared.config.sections import Model, Pretrain
from shared.data.batches import Batch
from shared.pretext import instances as module
from shared.pretext.instances import Bank, Instances, nce
from shared.runtime.errors import UserError
from shared.training.losses import Pairs, info_nce
from stages import pretrain
from tests.support.pretext import learn, options_of
from tests.support.sources import images

N, D = 40, 6


def task(options: Options, batch_size: int = N, labels=None) -> Instances:
    torch.manual_seed(0)
    pretrain = Pretrain(task="instances", batch_size=batch_size)
    config = Config(model=Model(head_out=D), pretrain=pretrain, instances=options)
    made = Instances(config, Accelerator(cpu=True))
    made.start(torch.nn.Linear(1, 1), images(np.zeros(N) if labels is None else labels))
    return made


def test_without_momentum_and_with_all_images_it_is_info_nce():
    """The bank holds the last projections then: one positive, all others as negatives."""
    made = task(Options(temperature=0.2, momentum=0.0))
    keys, queries = torch.randn(N, D), torch.randn(N, D)
    made.bank.update(torch.arange(N), F.normalize(keys))
    assert torch.allclose(made.bank.vectors, F.normalize(keys), atol=1e-6)
    loss = made.loss((queries,), (torch.arange(N),)).loss
    rows = []
    for i in range(N):  # info_nce has the same negatives for each query: so one query at a time
        others = torch.cat([keys[:i], keys[i + 1 :]])
        rows.append(info_nce(Pairs.of_queries(queries[i : i + 1], keys[i : i + 1], others), 0.2))
    assert loss.item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-5)


def test_rows_stay_of_unit_length_and_the_last_of_an_image_counts():
    bank = Bank(N, D, 0.5, torch.device("cpu"))
    before = bank.vectors.clone()
    new = F.normalize(torch.randn(3, D))
    bank.update(torch.tensor([4, 9, 4]), new)
    assert torch.allclose(bank.vectors.norm(dim=1), torch.ones(N))
    assert torch.allclose(bank.vectors[4], F.normalize(before[4] + new[2], dim=0))
    assert torch.allclose(bank.vectors[9], F.normalize(before[9] + new[1], dim=0))
    untouched = [i for i in range(N) if i not in (4, 9)]
    assert torch.equal(bank.vectors[untouched], before[untouched])


def test_the_gradient_of_many_drawn_negatives_is_that_of_the_softmax():
    """With the right normaliser, the more are drawn the nearer; no draw has this gradient."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(N, generator=generator).double()  # logits of one image
    exact = classes.clone().requires_grad_()
    F.cross_entropy(exact[None], torch.tensor([3])).backward()
    distance = {}
    for k in (50, 200_000):
        logits = classes.clone().requires_grad_()
        drawn = torch.randint(0, N, (1, k), generator=generator)
        picked = torch.cat([logits[3].view(1, 1), logits[drawn]], 1)
        nce(picked, classes.exp().sum(), N).backward()
        distance[k] = (logits.grad - exact.grad).norm() / exact.grad.norm()
    assert distance[200_000] < 0.02 < distance[50]


def test_a_product_with_the_whole_bank_says_the_same_as_the_drawn_vectors(monkeypatch):
    said = []
    for products in (0, 16):
        monkeypatch.setattr("shared.pretext.instances.PRODUCTS", products)
        torch.manual_seed(0)
        made = task(Options(negatives=7))
        v = torch.randn(N, D, requires_grad=True)
        loss = made.loss((v,), (torch.arange(N), torch.randint(0, N, (N, 7)))).loss
        loss.backward()
        said.append((loss.detach(), v.grad))
    torch.testing.assert_close(*said)


def test_chance_is_that_of_equal_similarities():
    for options in (Options(), Options(negatives=7)):
        made = task(options)
        made.bank.vectors.fill_(0)
        drawn = (torch.zeros(N, 7, dtype=torch.long),) if options.negatives else ()
        answer = made.loss((torch.randn(N, D),), (torch.arange(N), *drawn))
        assert answer.loss.item() == pytest.approx(made.chance, rel=1e-5)
    assert task(Options()).chance == math.log(N)


def test_neighbours_vote_without_the_image_itself():
    """The bank separates two clusters of labels; unlabeled images neither vote nor count."""
    labels = np.array([0] * 15 + [1] * 15 + [-1] * 10)
    made = task(Options(momentum=0.0, neighbours=5), labels=labels)
    directions = torch.eye(D)[torch.from_numpy(labels)]  # -1: the last one
    noise = 0.01 * torch.randn(N, D)
    made.bank.update(torch.arange(N), F.normalize(directions + noise))
    metrics = made.loss((directions,), (torch.arange(N),)).metrics()
    assert metrics["neighbours_top1"] == 1
    made.labels = torch.from_numpy(np.full(N, -1))
    assert "neighbours_top1" not in made.loss((directions,), (torch.arange(N),)).metrics()


def test_the_draw_is_even_and_needs_no_history():
    made = task(Options(negatives=50))
    drawn, again = (made.draw(np.random.default_rng(3), 400)[0] for _ in range(2))
    assert torch.equal(drawn, again)
    counts = drawn.flatten().bincount(minlength=N)
    assert counts.sum() == 20_000
    assert 400 < counts.min() <= counts.max() < 600  # 500 each, standard deviation 22


def test_a_bank_that_has_no_room_is_refused(monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda accelerator: 2**10)
    with pytest.raises(UserError, match=r"a memory bank of 40 images takes .* GiB") as error:
        task(Options()).require(images([0] * N))
    assert "--instances.negatives" in str(error.value)


@pytest.mark.parametrize("plan", [["--plan"], []])
def test_a_bank_without_room_is_said_before_it_starts(plan, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module, "free_bytes", lambda accelerator: 2**10)
    arguments = [*options_of("instances"), f"--output={tmp_path}", *plan]
    assert pretrain.main(arguments) == 2
    error = capsys.readouterr().err
    assert "a memory bank of 1,437 images takes" in error
    assert error.count("\n") == 1
    assert not [*tmp_path.rglob("*.safetensors")]


def test_it_learns(tmp_path):
    line = learn(tmp_path, "instances")
    assert line["instances_top1"] > 0.25  # of 48 images: chance 0.02
    assert learn(tmp_path / "nce", "instances-nce")["instances_top1"] > 0.15


def test_targets_are_positions():
    made = task(Options())
    batch = Batch(torch.zeros(3, 3, 4, 4), torch.tensor([5, 2, 7]), None)
    assert made.targets(batch)[0].tolist() == [5, 2, 7]
