"""What a recipe costs: counts against networks that compute."""

import pytest
import torch

from shared.config.command_line import load_config
from shared.config.labelset import LabelSet
from shared.networks.build import build_contrastive, network_meta
from shared.networks.size import Size
from shared.runs import cost
from shared.runs.cost import Counts, cost_of, known_counts, network_size
from shared.runtime.errors import UserError

TINY = [
    "--pretrain.batch_size=32",
    "--distill.batch_size=32",
    "--supervised.batch_size=8",
    "--linear.batch_size=8",
    "--finetune.batch_size=8",
    "--precision=no",
]


def config_of(*flags):
    return load_config([*TINY, *flags], "test", "")[0]


def test_size_of_the_recipe_network():
    config = config_of()
    size = network_size("pretrain", config, Counts(1437, 14, 360, 10), "no")
    network = build_contrastive(network_meta(config.model, config.data))
    assert size.parameters == sum(p.numel() for p in network.parameters())
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        network(torch.rand(2, 3, 8, 8))
    own = {p.data_ptr() for p in (*network.parameters(), *network.buffers())}
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    real = sum(nbytes for place, nbytes in kept.items() if place not in own) // 2
    # statistics per channel, which images share, are part of the real sum and small
    assert size.activations == pytest.approx(real, rel=0.1)
    half = network_size("pretrain", config, Counts(1437, 14, 360, 10), "bf16")
    assert half.activations < 0.6 * size.activations
    assert half.flops == size.flops


@pytest.mark.parametrize(
    ("labels", "number"),
    [
        ("1pct", 600),
        ("0.001pct", 10),
        ("100pct", 60_000),
        ("4perclass", 40),
        ("14random", 14),
        ("14suggested", 14),
    ],
)
def test_labels_of_a_data_set_that_is_not_here(labels, number):
    counts = known_counts(60_000, 10_000, 10, LabelSet.parse(labels))
    assert counts == Counts(60_000, number, 10_000, 10)


def test_labels_of_a_file_for_a_data_set_that_is_not_here(tmp_path):
    (tmp_path / "names.txt").write_text("a.png\n\nmy photo 1.png\na.png\n")
    (tmp_path / "labels.csv").write_text("file,label\na.png,cat\nb.png,dog\nc.png,a cat\n")
    for name, number in (("names.txt", 2), ("labels.csv", 3)):
        labels = LabelSet.parse(str(tmp_path / name))
        assert known_counts(60_000, 10_000, 10, labels).labeled == number
    with pytest.raises(UserError, match=r"nowhere\.txt"):
        known_counts(60_000, 10_000, 10, LabelSet.parse(str(tmp_path / "nowhere.txt")))


def test_cost_of_each_method():
    config = config_of()
    counts = Counts(1437, 14, 360, 10)

    def cost(method, *flags):
        return cost_of(method, config_of(*flags), counts, "no")

    size = network_size("pretrain", config, counts, "no")
    one = cost("pretrain")
    assert (one.update, one.prediction) == (6 * size.flops, size.flops)
    assert one.activations == 2 * size.activations
    assert cost("pretrain", "--pretrain.memory=64").update == 8 * size.flops
    moco = ("--pretrain.memory=64", "--pretrain.negatives=memory")
    assert cost("pretrain", *moco).update == 4 * size.flops
    assert cost("pretrain", "--pretrain.micro_batch=16").update == 8 * size.flops
    assert cost("linear").update == cost("linear").prediction
    teacher, student = cost("finetune"), cost("distill")
    assert student.update == 3 * student.prediction + teacher.prediction
    itself = cost("self-distill")
    assert itself.parameters == teacher.parameters  # its layers of the head too
    assert itself.update == 4 * teacher.prediction
    assert student.parameters == cost("supervised-student").parameters < teacher.parameters


@pytest.mark.parametrize("method", ["distill", "self-distill"])
def test_each_teacher_sees_each_image(method, monkeypatch):
    """An update of the student costs one forward pass of each: 3 of its own, and those."""
    monkeypatch.setattr(cost, "network_size", lambda *_: Size(1, 10.0, 100))
    for option, flops in (
        ("taught_by=finetune", 40),
        ("taught_by=[finetune, features-logistic]", 50),
        ("teacher=a", 40),
        ("teacher=[a, b, c]", 60),
    ):
        config = config_of(f"--distill.{option}")
        assert cost_of(method, config, Counts(1437, 14, 360, 10), "no").update == flops
