"""Metrics against scikit-learn, calibration against its definition."""

import threading
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import datasets
import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from torch import nn

from shared.config.labelset import LabelSet
from shared.config.sections import Data
from shared.data.images import UNLABELED, ImageSet
from shared.data.names import Names
from shared.data.sources import open_data
from shared.runtime.errors import UserError
from shared.training.evaluate import (
    classification_metrics,
    outputs_of,
    over_images,
    predict,
    state_hash,
)
from tests.support.gloo import fork, join
from tests.support.photos import class_folders, process


def slow_ece(logits: np.ndarray, targets: np.ndarray) -> float:
    """Guo et al. 2017, eq. 3: 15 bins of equal width, weighted by how many fall in."""
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponents / exponents.sum(1, keepdims=True)
    total = 0.0
    for m in range(15):
        members = []
        for i in range(len(targets)):
            confidence = probabilities[i].max()
            if m / 15 <= confidence < (m + 1) / 15 or (m == 14 and confidence == 1):
                members.append((probabilities[i].argmax() == targets[i], confidence))
        if members:
            right, confidence = np.mean(members, axis=0)
            total += len(members) / len(targets) * abs(right - confidence)
    return float(total)


@settings(max_examples=40, deadline=None)
# scale to 3 only: scikit-learn cuts probabilities off at 2e-16, which is 36 nats
@given(st.integers(2, 12), st.integers(1, 200), st.floats(0.1, 3), st.integers(0, 10**6))
def test_metrics_are_those_of_scikit_learn(classes, n, scale, seed):
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((n, classes))
    targets = np.where(rng.random(n) < 0.5, logits.argmax(1), rng.integers(0, classes, n))
    metrics = classification_metrics(torch.from_numpy(logits), torch.from_numpy(targets))
    logits = logits.astype(np.float32).astype(np.float64)
    every = range(classes)
    assert metrics["top1"] == pytest.approx(accuracy_score(targets, logits.argmax(1)), abs=1e-6)
    if classes > 5:
        expected = top_k_accuracy_score(targets, logits, k=5, labels=every)
        assert metrics["top5"] == pytest.approx(expected, abs=1e-6)
    else:
        assert "top5" not in metrics
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = log_loss(targets, probabilities, labels=every)
    assert metrics["nll"] == pytest.approx(expected, rel=1e-5, abs=1e-6)  # ours is float32
    assert metrics["ece"] == pytest.approx(slow_ece(logits, targets), abs=1e-5)


def test_extremes():
    sure = torch.eye(7) * 100
    right = classification_metrics(sure, torch.arange(7))
    assert right == pytest.approx({"top1": 1, "top5": 1, "nll": 0, "ece": 0}, abs=1e-6)
    wrong = classification_metrics(sure, (torch.arange(7) + 1) % 7)
    assert wrong["top1"] == 0
    assert wrong["ece"] == pytest.approx(1)
    assert wrong["nll"] == pytest.approx(100)
    half = classification_metrics(sure.bfloat16(), torch.arange(7))
    assert half["top1"] == 1


class Mean(nn.Module):
    """Logits that tell which image was seen; wrong in train mode."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, images):
        level = images.mean((1, 2, 3)) * 255  # (B,)
        return torch.stack([level, -level, 0 * level], 1) * (0 if self.training else 1)


def images(labels) -> ImageSet:
    n = len(labels)
    pixels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 4, 4).clone()
    empty = datasets.Dataset.from_dict({})
    names = Names.of(map(str, range(n)))
    return ImageSet(empty, names, np.array(labels), ("a", "b", "c"), "stop", pixels)


def lone():
    """A lone process: nothing to gather."""
    accelerator = process()
    accelerator.autocast = nullcontext
    accelerator.gather = lambda x: x
    accelerator.pad_across_processes = lambda x, **options: x
    return accelerator


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e20])
def test_outputs_that_nothing_can_be_computed_with_are_refused(value):
    """scikit-learn ends with a traceback, or with the process, on some of them."""

    def network(batch):
        rows = batch.mean((1, 2, 3))[:, None].expand(-1, 2).clone()
        rows[5:, 1] = value
        return rows

    data, few = Data(image_size=4), images([0] * 7)
    rows, _ = outputs_of(network, few, np.arange(4), data, lone())
    assert rows.shape == (4, 2)
    with pytest.raises(UserError, match="the outputs of the network for 2 of 7 images are not"):
        outputs_of(network, few, np.arange(7), data, lone())


def test_predict_sees_labeled_images_in_eval_mode():
    labels = [0, 1, UNLABELED, 2, 0, UNLABELED, 1]
    data = Data(image_size=4)
    answers = predict(Mean().train(), images(labels), data, lone(), batch_size=2)
    assert answers.positions.tolist() == [0, 1, 3, 4, 6]
    assert answers.targets.tolist() == [0, 1, 2, 0, 1]
    levels = torch.tensor([0.0, 1, 3, 4, 6])
    expected = classification_metrics(
        torch.stack([levels, -levels, 0 * levels], dim=1), torch.tensor([0, 1, 2, 0, 1])
    )
    assert answers.metrics == pytest.approx(expected, abs=1e-5)


def test_metrics_of_many_classes_need_no_table_of_all_logits(tmp_path):
    """In batches of 8 images, the largest tensor holds 8 rows."""
    n, classes = 64, 50_000

    class Wide(nn.Module):
        def forward(self, batch):
            hot = (batch.mean((1, 2, 3)) * 255).round().long()
            return 9 * torch.nn.functional.one_hot(hot, classes).float()

    many = replace(images(np.arange(n)), classes=tuple(map(str, range(classes))))
    process = psutil.Process()
    predict(Wide(), many, Data(image_size=4), lone(), batch_size=8)  # loads code, opens pools
    before = process.memory_info().rss
    answers = predict(Wide(), many, Data(image_size=4), lone(), batch_size=8)
    assert process.memory_info().rss - before < n * classes * 4
    assert answers.predictions.tolist() == list(range(n))
    assert answers.metrics["top1"] == answers.metrics["top5"] == 1


def predict_on_one_of_two(rank, folder):
    """Two processes, three images: the second test set leaves process 1 without any."""
    join(rank, 2, folder)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    data = Data(image_size=4)
    for labels in ([0, 1, 2], [UNLABELED, 1, UNLABELED]):
        answers = predict(Mean(), images(labels), data, accelerator)
        known = [i for i, k in enumerate(labels) if k != UNLABELED]
        levels = torch.tensor(known).float()  # image k shows level k, and is of class k
        expected = classification_metrics(
            torch.stack([levels, -levels, 0 * levels], dim=1), torch.tensor(known)
        )
        assert answers.positions.tolist() == answers.targets.tolist() == known
        assert answers.metrics == pytest.approx(expected, abs=1e-5)
    accelerator.end_training()


def test_a_process_without_images_still_answers(tmp_path):
    fork(predict_on_one_of_two, (str(tmp_path),), 2)


def test_predictions_are_saved_in_the_order_of_the_images():
    arrays = predict(Mean(), images([0, UNLABELED, 2]), Data(image_size=4), lone()).arrays()
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "positions": [0, 2],
        "predictions": [0, 0],
        "targets": [0, 2],
    }
    assert all(array.dtype == np.int64 for array in arrays.values())


# ---------------------------------------------------------------------------------- rows
class Group:
    """Processes as threads: ``gather`` puts together what each has brought."""

    def __init__(self, of: int):
        self.barrier, self.brought, self.of = threading.Barrier(of, timeout=20), {}, of

    def process(self, index: int) -> SimpleNamespace:
        def pad(tensors, dim, pad_index):
            self.brought[index] = tensors
            self.barrier.wait()
            most = max(len(tensors[0]) for tensors in self.brought.values())
            self.barrier.wait()
            return tuple(
                torch.cat([t, t.new_full((most - len(t), *t.shape[1:]), pad_index)])
                for t in tensors
            )

        def gather(tensors):
            self.brought[index] = tensors
            self.barrier.wait()
            parts = [self.brought[i] for i in range(self.of)]
            return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))

        return SimpleNamespace(
            num_processes=self.of,
            process_index=index,
            is_main_process=index == 0,
            device=torch.device("cpu"),
            pad_across_processes=pad,
            gather=gather,
        )


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    folder = class_folders(tmp_path_factory.mktemp("photos"), 9, size=(6, 6))
    return open_data(
        Data(train=str(folder), image_size=6, workers=0), LabelSet.parse("100pct")
    ).train


def tagged(batch: torch.Tensor, number: int, _: np.ndarray) -> torch.Tensor:
    """The mean colours and the batch's number."""
    return torch.cat([batch.mean((2, 3)), batch.new_full((len(batch), 1), number)], dim=1)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_rows_do_not_depend_on_the_processes(noise, processes):
    ids = np.arange(1, len(noise), 2)  # 10 images, 3 batches
    data = Data(image_size=6, workers=0)
    one, at = over_images(tagged, noise, ids, data, process(), batch_size=4)
    assert at.tolist() == ids.tolist()
    assert one[:, 3].tolist() == [0] * 4 + [1] * 4 + [2] * 2
    wanted = noise.pixels[ids].float().mean((2, 3)).numpy() / 255
    np.testing.assert_allclose(one[:, :3], wanted, atol=1e-6)

    group, results = Group(processes), {}

    def work(index: int) -> None:
        results[index] = over_images(tagged, noise, ids, data, group.process(index), batch_size=4)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows, positions in results.values():
        np.testing.assert_array_equal(rows, one)
        np.testing.assert_array_equal(positions, at)


def test_state_hash_sees_parameters_and_buffers():
    model = nn.BatchNorm1d(3)
    before = state_hash(model)
    assert state_hash(model) == before
    model.eval()(torch.randn(4, 3))
    assert state_hash(model) == before
    model.train()(torch.randn(4, 3))  # moves only the statistics
    after = state_hash(model)
    assert after != before
    with torch.no_grad():
        model.weight[0] += 1e-6
    assert state_hash(model) != after
