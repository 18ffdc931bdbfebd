"""The contrastive task; its gradients are tested with parts, its memory with the queue."""

import dataclasses
import math

import pytest
import torch
from accelerate import Accelerator

from shared.config.schema import Config
from shared.config.sections import Pretrain
from shared.pretext.contrastive import Contrastive, contrastive_loss, without_learning
from shared.training.losses import Pairs
from tests.support.pretext import learn


def test_chance_is_what_equal_embeddings_give():
    for loss in ("nt_xent", "dcl", "nt_logistic", "margin_triplet"):
        cfg = Pretrain(batch_size=6, temperature=1.0, loss=loss)
        _, chance = without_learning(cfg)
        by_softmax = loss in ("nt_xent", "dcl")
        z = torch.ones(6, 3) if by_softmax else torch.eye(12)[:6]
        other = torch.ones(6, 3) if by_softmax else torch.eye(12)[6:]
        assert contrastive_loss(Pairs.of_views(z, other), cfg).item() == pytest.approx(chance)


def test_chance_of_pairs_is_the_least_that_equal_distances_allow():
    for margin in (0.0, 0.8, 3.0, 5.0):
        cfg = Pretrain(batch_size=6, loss="pair", margin=margin)
        _, chance = without_learning(cfg)
        angles = torch.linspace(0, math.pi, 201, dtype=torch.float64)
        losses = []
        for angle in angles:  # each distance of the views that no image changes
            z = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(6, 2)
            other = torch.stack([angle.cos(), angle.sin()]).expand(6, 2)
            losses.append(contrastive_loss(Pairs.of_views(z, other), cfg).item())
        assert min(losses) == pytest.approx(chance, abs=1e-3)
        assert min(losses) > chance - 1e-9


def test_negatives_and_what_the_first_line_says():
    cfg = Pretrain(batch_size=6)
    assert without_learning(cfg) == (10, 2 * math.log(11))
    moco = dataclasses.replace(cfg, memory=12, negatives="memory")
    assert without_learning(moco) == (12, math.log(13))
    task = Contrastive(Config(pretrain=cfg), Accelerator(cpu=True))
    assert (task.facts, task.views, task.memory) == ("negatives per anchor: 10", 2, None)


def test_it_learns(tmp_path):
    line = learn(tmp_path, "contrastive", "--pretrain.steps=60")
    assert line["loss"] < 0.9 * line["loss_of_chance"], line
    assert line["contrastive_top1"] > 0.15 > 7 / 47, line  # of 47 others


def test_pairs_learn(tmp_path):
    line = learn(tmp_path, "contrastive-pair", "--pretrain.steps=60", "--pretrain.margin=1.4")
    assert line["loss"] < 0.9 * line["loss_of_chance"], line
    assert line["contrastive_top1"] > 0.15 > 7 / 47, line  # of 47 others


def test_a_loss_without_a_branch_is_a_defect():
    cfg = dataclasses.replace(Pretrain(batch_size=6))
    object.__setattr__(cfg, "loss", "other")
    with pytest.raises(ValueError, match=r"pretrain\.loss=other has no branch"):
        contrastive_loss(Pairs.of_views(torch.ones(6, 3), torch.ones(6, 3)), cfg)
