"""The parts of an assessment that measure the finished classifiers.

Every process calls every part, because all of them apply the networks. Only the main process goes
on from there; the others return None.
"""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor

from shared.config.methods import METHODS
from shared.data.batches import normalize, plain_batches
from shared.data.images import ImageSet
from shared.runs.assessment import ClassifierRow, Corruptions, OutOfDistribution
from shared.runtime.randomness import generator
from stages.assess import corruptions, features
from stages.assess.inputs import Arrays, Inputs, open_other, thumbnails

MISTAKES = 16  # the most confident ones are stored
TEST_IMAGES = 1000  # that are corrupted, at most: there are 55 variants of each
OOD_IMAGES = 10_000
VARIANTS = [(name, severity) for name in corruptions.NAMES for severity in corruptions.SEVERITIES]

# Images (B, 3, S, S) in [0, 1] and a source of chance -> images of no class.
Change = Callable[[Tensor, np.random.Generator], Tensor]


def classifiers(inputs: Inputs) -> tuple[dict[str, ClassifierRow], Arrays] | None:
    """Predictions, confusion matrix and most confident mistakes of each classifier."""
    all_logits = inputs.logits
    if not inputs.is_main:
        return None
    numbers: dict[str, ClassifierRow] = {}
    arrays: Arrays = {}
    for stage, (rows, positions) in all_logits.items():
        logits = torch.from_numpy(rows)
        targets = torch.from_numpy(inputs.test_images.labels[positions])
        confidence, predictions = logits.softmax(1).max(1)
        wrong = (predictions != targets).nonzero()[:, 0]
        most_confident = confidence[wrong].argsort(descending=True, stable=True)
        mistakes = wrong[most_confident][:MISTAKES].numpy()
        numbers[stage] = {
            "title": METHODS[stage].title,
            **features.metrics_of(logits, targets),
            "parameters": sum(p.numel() for p in inputs.classifiers[stage].parameters()),
            "n_labels": inputs.metas[stage]["labels"]["number"],
        }
        of_stage = {
            "positions": positions,
            "targets": targets.numpy(),
            "predictions": predictions.numpy(),
            "confidence": confidence.numpy(),
            "mistakes": mistakes,
            "confusion": confusion_matrix(targets, predictions, labels=range(inputs.classes)),
            "mistake_images": inputs.pictures(inputs.test_images, positions[mistakes]),
        }
        arrays |= {f"{stage}/{name}": array for name, array in of_stage.items()}
    return numbers, arrays


# ---------------------------------------------------------------------------------- corruptions
def corrupted(inputs: Inputs) -> tuple[Corruptions, Arrays] | None:
    """Accuracy of each classifier under every corruption at every severity."""
    images, data, seed = inputs.test_images, inputs.config.data, inputs.config.seed
    networks = inputs.classifiers.values()

    def variant(batch: Tensor, name: str, severity: int, number: int) -> Tensor:
        rng = generator(seed, "assess", name, severity, number)
        return corruptions.corrupt(batch, name, severity, rng)

    def predictions(batch: Tensor, number: int, *_: object) -> Tensor:
        views = [batch, *(variant(batch, *kind, number) for kind in VARIANTS)]
        answers = [
            inputs.apply(network, normalize(view, data)).argmax(1)
            for view in views
            for network in networks
        ]
        return torch.stack(answers, dim=1)

    ids = inputs.sample(inputs.test_ids, TEST_IMAGES, "corruptions")
    rows, positions = inputs.rows(predictions, images, ids, inputs.unit_data, "corruptions")
    if not inputs.is_main:
        return None
    right = rows.reshape(len(rows), -1, len(networks)) == images.labels[positions][:, None, None]
    # right: (images, 1 + corruptions * severities, classifiers)
    clean = next(plain_batches(images, positions[:1], inputs.unit_data, 1, "cpu"))[0]
    examples = thumbnails(torch.cat([variant(clean, *kind, 0) for kind in VARIANTS]))
    variants = len(corruptions.NAMES), len(corruptions.SEVERITIES)
    return _corruption_shares(right.mean(0), list(inputs.classifiers), len(rows)), {
        "clean": thumbnails(clean)[0],
        "examples": examples.reshape(*variants, *examples.shape[1:]),
    }


def _corruption_shares(shares: np.ndarray, stages: list[str], n_images: int) -> Corruptions:
    """Accuracies (1 + corruptions * severities, classifiers), the clean one first, by name."""
    names = list(corruptions.NAMES)
    severities: list[int] = list(corruptions.SEVERITIES)
    accuracy = shares[1:].reshape(len(names), len(severities), -1)
    return {
        "n_images": n_images,
        "names": names,
        "groups": {
            name: group for group, members in corruptions.GROUPS.items() for name in members
        },
        "severities": severities,
        "clean": {stage: float(shares[0, i]) for i, stage in enumerate(stages)},
        "mean": {stage: float(accuracy[..., i].mean()) for i, stage in enumerate(stages)},
        "accuracy": {
            stage: {name: accuracy[j, :, i].tolist() for j, name in enumerate(names)}
            for i, stage in enumerate(stages)
        },
    }


# ------------------------------------------------------------------------------ images of no class
def shuffle_pixels(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image (B, 3, S, S) with its pixels in another order: its colours without its shapes."""
    B, C, H, W = images.shape
    order = torch.from_numpy(rng.random((B, 1, H * W)).argsort(2)).to(images.device)
    return images.flatten(2).gather(2, order.expand(B, C, H * W)).view_as(images)


def noise(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Uniform noise in place of each image (B, 3, S, S), grey where the image is grey."""
    out = torch.from_numpy(rng.random(images.shape, dtype=np.float32)).to(images.device)
    grey = (images == images[:, :1]).flatten(1).all(1).view(-1, 1, 1, 1)
    return torch.where(grey, out[:, :1], out)


def out_of_distribution(inputs: Inputs) -> tuple[OutOfDistribution, Arrays] | None:
    """How much surer the classifiers are of test images than of images that are of no class.

    By the largest probability (Hendrycks & Gimpel 2017, arXiv 1610.02136).
    """
    inside = {
        stage: torch.from_numpy(logits).softmax(1).amax(1).numpy()
        for stage, (logits, _) in inputs.logits.items()
    }
    numbers: OutOfDistribution = {
        "sets": {},
        "auroc": {stage: {} for stage in inside},
        "confidence": {stage: {"test": float(sure.mean())} for stage, sure in inside.items()},
    }
    arrays: Arrays = {}
    for name, (images, ids, change) in _sets_of_no_class(inputs).items():
        outside, examples = _confidence(inputs, name, images, ids, change)
        if not inputs.is_main:
            continue
        numbers["sets"][name] = len(outside)
        for i, (stage, sure) in enumerate(inside.items()):
            numbers["auroc"][stage][name] = features.auroc(sure, outside[:, i])
            numbers["confidence"][stage][name] = float(outside[:, i].mean())
        arrays[f"{name}/examples"] = examples
    return (numbers, arrays) if inputs.is_main else None


def _sets_of_no_class(inputs: Inputs) -> dict[str, tuple[ImageSet, np.ndarray, Change]]:
    """Name -> images, the positions of those that are used, and how they are changed."""
    config, test = inputs.config, inputs.test_images
    sets: dict[str, tuple[ImageSet, np.ndarray, Change]] = {
        "shuffled pixels": (test, inputs.test_ids, shuffle_pixels),
        "noise": (test, inputs.test_ids, noise),
    }
    if config.assess.ood:
        other = open_other(config, config.assess.ood, inputs.accelerator)
        images = other.test or other.train
        ids = inputs.sample(np.arange(len(images)), OOD_IMAGES, "ood")
        name = config.assess.ood
        sets[f"data set {name}" if name in sets else name] = images, ids, lambda batch, _: batch
    return sets


def _confidence(
    inputs: Inputs, name: str, images: ImageSet, ids: np.ndarray, change: Change
) -> tuple[np.ndarray, np.ndarray]:
    """Largest probabilities (n, classifiers), and pictures of the first eight images."""
    config = inputs.config

    def changed(batch: Tensor, number: int) -> Tensor:
        return change(batch, generator(config.seed, "assess", name, number))

    def confidence(batch: Tensor, number: int, *_: object) -> Tensor:
        view = normalize(changed(batch, number), config.data)
        answers = [inputs.apply(network, view) for network in inputs.classifiers.values()]
        return torch.stack([logits.softmax(1).amax(1) for logits in answers], dim=1)

    rows, positions = inputs.rows(confidence, images, ids, inputs.unit_data, name)
    batch = next(plain_batches(images, positions[:8], inputs.unit_data, 8, "cpu"))[0]
    return rows, thumbnails(changed(batch, 0))
