"""Transitive invariance: neighbours, the views of a pair, the closed set of pairs, refusals."""

import itertools
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from shared.config.command_line import load_config
from shared.config.labelset import LabelSet
from shared.config.sections import Augmentation, Data
from shared.data.batches import Batches
from shared.data.sources import open_data
from shared.pretext.build import make_task
from shared.pretext.transitive import Neighbours, Transitive, nearest
from shared.runtime.errors import UserError
from shared.runtime.stop import StopRequest
from shared.training.stage import Stage
from stages import pretrain
from tests.support.pretext import first_encoder, learn, options_of, upright
from tests.support.sources import images


def task(*options: str) -> Transitive:
    config, _ = load_config([*options_of("transitive"), *options], "", "")
    made = make_task(config, Accelerator(cpu=True))
    assert isinstance(made, Transitive)
    return made


def test_neighbours_are_the_most_similar_others():
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    similar = F.cosine_similarity(features[:, None], features[None], dim=2)
    similar.fill_diagonal_(-2)
    assert torch.equal(nearest(features, 3), similar.topk(3).indices)


def test_partners_are_neighbours_and_a_function_of_the_draw():
    made = task("--transitive.neighbours=2")
    made.neighbours = Neighbours(torch.tensor([[1, 2], [0, 2], [0, 1]]))
    ids = np.array([0, 1, 2, 2, 0] * 20)
    partners, again = (made.partners(np.random.default_rng(1), ids) for _ in range(2))
    assert np.array_equal(partners, again)
    pairs = set(zip(ids.tolist(), partners.tolist(), strict=True))
    assert pairs == {(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)}


def test_all_pairs_that_follow_are_positives():
    """A, A', B, B': the loss is the mean over the 12 ordered pairs, (A', B') among them."""
    made, N = task("--pretrain.batch_size=4"), 4
    outputs = torch.randn(4 * N, 5, generator=torch.Generator().manual_seed(0))
    z, losses = F.normalize(outputs, dim=1).view(4, N, 5), []
    for i, (a, p) in itertools.product(range(N), itertools.permutations(range(4), 2)):
        positive = 1 - z[a, i] @ z[p, i]
        others = (1 - z[:, torch.arange(N) != i] @ z[a, i]).flatten()
        farther = others[others > positive]
        negative = farther.min() if len(farther) else others.max()
        losses.append((positive - negative + 0.5).clamp(min=0))
    assert len(losses) == 12 * N
    assert made.loss((outputs,), ()).loss.item() == pytest.approx(torch.stack(losses).mean().item())
    assert made.loss((torch.ones(4 * N, 5),), ()).loss.item() == pytest.approx(made.chance)


@pytest.mark.parametrize("loading", ["memory", "workers"])
def test_the_second_half_of_the_views_is_of_the_partners(loading, tmp_path):
    data = Data(train=str(upright(tmp_path, number=6)), image_size=8, loading=loading, workers=0)
    splits = open_data(data, LabelSet.parse("1pct"))
    augmentation = Augmentation(
        crop_area=(1, 1), crop_aspect=(1, 1), flip=0, color_strength=0, blur=0
    )
    options = {"seed": 0, "stage": "a", "batch_size": 4}
    arguments = (splits.train, np.arange(6), data, augmentation, Accelerator(cpu=True))
    made = Batches(*arguments, **options, views=4, companions=lambda rng, ids: (ids + 1) % 6)
    (batch,) = made.steps(0, 1)
    views = batch.images.view(4, 4, 3, 8, 8)
    pixels = torch.stack([splits.train.decode(i) for i in range(6)]).float() / 255
    for view, shift in enumerate([0, 0, 1, 1]):
        expected = pixels[(batch.ids + shift) % 6]
        assert torch.allclose(views[view], expected, atol=0.01)
    (plain,) = Batches(*arguments, **options, views=2).steps(0, 1)
    assert torch.equal(plain.images, batch.images[:8])


def test_what_cannot_work_is_refused(capsys, tmp_path):
    for line, words in (
        (["--pretrain.task=transitive"], "transitive.init must be the run or artifact folder"),
        (
            ["--pretrain.task=multi-task", "--multi_task.tasks=rotation,transitive"],
            "tasks that can share a batch, so transitive is none",
        ),
    ):
        with pytest.raises(SystemExit, match="2"):
            load_config(line, "", "")
        assert words in capsys.readouterr().err
    with pytest.raises(UserError, match=r"neighbours must be less than the 3 images, got 5"):
        task().require(images([0] * 3))
    with pytest.raises(UserError, match="missing"):
        _ = task(f"--transitive.init={tmp_path / 'missing'}").settings
    with pytest.raises(UserError, match="is what this run makes"):
        task(
            "--transitive.init=runs/digits",
            "--output=runs",
            "--run=digits",
            f"--transitive.init={'runs/digits/pretrain'}",
        )


def test_the_first_network_counts_by_its_weights_and_a_run_is_a_folder():
    settings = task().settings
    assert len(settings["transitive.encoder"]) == 64
    assert task(f"--transitive.init={first_encoder().parent}").settings == settings


def test_a_run_that_goes_on_takes_the_neighbours_of_its_checkpoint(tmp_path, monkeypatch):
    """Embedding all images takes long, and another machine would find others."""
    arguments = [*options_of("transitive"), f"--output={tmp_path}", "--pretrain.steps=2"]
    with monkeypatch.context() as patch:

        def stop(self, step):
            patch.setattr(StopRequest, "received", signal.SIGTERM)
            checkpoint(self, step)

        checkpoint = Stage.checkpoint
        patch.setattr(Stage, "checkpoint", stop)
        assert pretrain.main(arguments) == 128 + signal.SIGTERM
    monkeypatch.setattr(StopRequest, "received", None)
    monkeypatch.setattr(Transitive, "begin", lambda *_: pytest.fail("embeds all images again"))
    assert pretrain.main(arguments) == 0


@pytest.mark.slow
def test_it_learns(tmp_path):
    line = learn(tmp_path, "transitive", "--transitive.neighbours=1")
    assert line["transitive_top1"] > 2 * line["top1_of_chance"], line
