"""What an assessment measures: the networks and images it reads, and its parts.

``stages.assess`` calls the parts and describes their results.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from shared.config.labelset import LabelSet
from shared.config.schema import ASSESSMENTS, Config, Data, hashed_settings
from shared.data.batches import normalize, plain_batches
from shared.data.images import UNLABELED, ImageSet, Splits
from shared.data.labels import Labels, draw_labels
from shared.data.sources import open_data
from shared.networks.build import load_classifier, load_contrastive, require_same_input
from shared.networks.heads import Classifier, ContrastiveModel
from shared.runs.results import TITLES
from shared.runtime.artifacts import read_meta
from shared.runtime.errors import UserError
from shared.runtime.randomness import generator
from shared.training.evaluate import classification_metrics, state_hash
from shared.training.stage import to_device
from stages.assess import corruptions, features

NEIGHBOURS = 20  # that vote, as is usual; Wu et al. 2018 take 200 on ImageNet
RETRIEVED, QUERIES = 8, 30  # training images shown for each of so many test images
MISTAKES = 16  # the most confident ones that are shown
TEST_IMAGES = 1000  # that are corrupted, at most: there are 55 variants of each
OOD_IMAGES = 10_000
THUMBNAIL = 96  # pixels per side of stored pictures, at most
OF_CLASSIFIERS = ("classifiers", "corruptions", "ood")  # these parts; the others are of features

Result = tuple[dict[str, Any], dict[str, np.ndarray]]  # numbers and arrays of a part


# ---------------------------------------------------------------------------------- what is read
@dataclass(frozen=True)
class Inputs:
    """The networks and images of a run; what several parts need is computed once.

    Attributes:
        config: of the run.
        accelerator: of this process.
        splits: training and test images.
        labels: those that training may see.
        pretrained: encoder and projection head, frozen.
        network: what ``meta.json`` says of it: encoder, image_size, weights_sha256.
        classifiers: the finished ones of these labels and this seed, by stage.
        metas: their ``meta.json``.
    """

    config: Config
    accelerator: Accelerator
    splits: Splits
    labels: Labels
    pretrained: ContrastiveModel
    network: dict[str, Any]
    classifiers: dict[str, Classifier]
    metas: dict[str, dict[str, Any]]

    @property
    def main(self) -> bool:
        """Whether this process is the one that computes what is not divided."""
        return self.accelerator.is_main_process

    @property
    def test_images(self) -> ImageSet:
        """The test images; ``open_inputs`` has made sure that there are some."""
        assert self.splits.test is not None
        return self.splits.test

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.splits.train.classes)

    @property
    def unit_data(self) -> Data:
        """Where images stay in [0, 1]."""
        return replace(self.config.data, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def about(self) -> dict[str, Any]:
        """As ``assess.json`` has it."""
        return {
            "labels": self.config.label_set.tag,
            "n_labels": len(self.labels.ids),
            "n_train": len(self.splits.train),
            "n_train_seen": len(self.seen),
            "n_test": len(self.known_test),
            "seed": self.config.seed,
            "classes": list(self.splits.train.classes),
            "encoder": self.network["encoder"],
            "image_size": self.config.data.image_size,
            "classifiers": {stage: meta["folder"] for stage, meta in self.metas.items()},
        }

    def settings(self) -> dict[str, str]:
        """For each part a hash of all that its numbers depend on."""
        options, train, test = self.config.assess, self.splits.train, self.test_images
        common = [
            hashed_settings(self.config.data, "data"),
            train.fingerprint,
            train.labels_fingerprint,
            test.fingerprint,
            test.labels_fingerprint,
            self.labels.hash,
            self.config.seed,
        ]
        of_features = [self.network["weights_sha256"], options.max_images]
        of_classifiers = {stage: meta["weights_sha256"] for stage, meta in self.metas.items()}
        own = {"map": options.map_points, "ood": options.ood, "transfer": options.transfer}
        return {
            part: hashlib.sha256(
                json.dumps(
                    [
                        common,
                        of_classifiers if part in OF_CLASSIFIERS else of_features,
                        own.get(part),
                    ]
                ).encode()
            ).hexdigest()[:16]
            for part in ASSESSMENTS
        }

    def hashes(self) -> dict[str, str]:
        """Of all parameters and buffers, to prove that nothing was trained."""
        networks: dict[str, nn.Module] = {"encoder": self.pretrained, **self.classifiers}
        return {name: state_hash(network) for name, network in networks.items()}

    def apply(self, network: nn.Module, images: Tensor) -> Tensor:
        """Float32 outputs in the precision in which the run evaluates."""
        with self.accelerator.autocast():
            return network(images).float()

    def rows(
        self,
        function: Callable[[Tensor, int], Tensor],
        images: ImageSet,
        ids: np.ndarray,
        data: Data,
        title: str,
    ) -> tuple[np.ndarray, np.ndarray]:
        """``features.over_images`` on this run's processes."""
        return features.over_images(function, images, ids, data, self.accelerator, title=title)

    def all_layers(self, images: ImageSet, ids: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """The encoder's output and that of each layer of the head, and the images' positions."""
        rows, positions = self.rows(
            lambda batch, _: self.apply(_AllLayers(self.pretrained), batch),
            images,
            ids,
            self.config.data,
            "features",
        )
        edges = np.cumsum(self.pretrained.head.widths)[:-1]
        return np.split(rows, edges, axis=1), positions

    @cached_property
    def seen(self) -> np.ndarray:
        """Training images that are looked at: the labeled ones, and others by lot."""
        rest = np.setdiff1d(np.arange(len(self.splits.train)), self.labels.ids)
        room = max(self.config.assess.max_images - len(self.labels.ids), 0)
        others = generator(self.config.seed, "assess", "seen").permutation(rest)[:room]
        return np.sort(np.concatenate([self.labels.ids, others]))

    @cached_property
    def known_test(self) -> np.ndarray:
        """Test images with a class."""
        return np.flatnonzero(self.test_images.labels != UNLABELED)

    @cached_property
    def train(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Features of the training images, one array a layer, and their positions."""
        return self.all_layers(self.splits.train, self.seen)

    @cached_property
    def test(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Likewise of the test images."""
        return self.all_layers(self.test_images, self.known_test)

    @cached_property
    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Training and test images as rows of pixels."""
        return self.pixel_rows(self.splits.train, self.seen, self.test_images, self.known_test)

    def pixel_rows(
        self, train: ImageSet, train_ids: np.ndarray, test: ImageSet, test_ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of any images; of grey ones one channel."""
        pair = [
            self.rows(
                lambda batch, _: features.as_pixels(batch), images, ids, self.unit_data, "pixels"
            )[0]
            for images, ids in ((train, train_ids), (test, test_ids))
        ]
        channels = [rows.reshape(len(rows), 3, -1) for rows in pair]
        if all((c == c[:, :1]).all() for c in channels):
            pair = [np.ascontiguousarray(c[:, 0]) for c in channels]
        return pair[0], pair[1]

    def label_sets(self) -> dict[str, np.ndarray]:
        """The classes of the seen images: those given to training, and all that are known."""
        positions = self.train[1]
        given, every = np.full(len(self.splits.train), UNLABELED), self.splits.train.labels.copy()
        given[self.labels.ids] = every[self.labels.ids] = self.labels.targets
        sets = {self.config.label_set.tag: given[positions], "all": every[positions]}
        if (sets["all"] == given[positions]).all():
            del sets["all"]
        return sets

    @cached_property
    def logits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Logits (T, C) of each classifier and positions (T,) of the test images."""
        return {
            stage: self.rows(
                lambda batch, _, network=network: self.apply(network, batch),
                self.test_images,
                self.known_test,
                self.config.data,
                stage,
            )
            for stage, network in self.classifiers.items()
        }

    def some(self, ids: np.ndarray, most: int, what: str) -> np.ndarray:
        """At most so many of the ids, by lot, ascending."""
        return np.sort(generator(self.config.seed, "assess", what).permutation(ids)[:most])

    def pictures(self, images: ImageSet, positions: np.ndarray) -> np.ndarray:
        """(..., S, S, 3) uint8 of the images at positions (...), at most ``THUMBNAIL`` wide."""
        batches = plain_batches(images, positions.ravel(), self.unit_data, 256, "cpu")
        size = min(self.config.data.image_size, THUMBNAIL)
        found = [thumbnails(batch) for batch, _ in batches] or [np.zeros((0, size, size, 3), "u1")]
        return np.concatenate(found).reshape(*positions.shape, *found[0].shape[1:])


class _AllLayers(nn.Module):
    """Images -> outputs of the encoder and of every layer of the head, side by side."""

    def __init__(self, pretrained: ContrastiveModel):
        super().__init__()
        self.pretrained = pretrained

    def forward(self, images: Tensor) -> Tensor:
        features_ = self.pretrained.encoder(images)
        return torch.cat([layer.float() for layer in self.pretrained.head(features_)], dim=1)


def thumbnails(images: Tensor) -> np.ndarray:
    """Images (B, 3, S, S) in [0, 1] -> (B, s, s, 3) uint8 with s at most ``THUMBNAIL``."""
    if images.shape[-1] > THUMBNAIL:
        images = F.interpolate(images, size=THUMBNAIL, mode="area")
    return images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def open_inputs(config: Config, accelerator: Accelerator) -> Inputs:
    """Open the run's images and networks.

    Raises:
        UserError: where there is no pretrained network or no labeled test image, or a network was
            made from other images, other labels or for another size.
    """
    source = Path(config.linear.init) if config.linear.init else config.folder / "pretrain"
    meta = read_meta(source, "encoder")
    require_same_input(meta, config.data, source)
    splits = open_data(config.data, config.label_set, accelerator.is_local_main_process)
    if splits.test is None:
        raise UserError("there are no labeled test images to measure with; give --data.test")
    labels = draw_labels(splits, config.label_set, config.seed)
    pretrained, _ = load_contrastive(source)
    networks, metas = {}, {}
    for stage in TITLES:
        folder = config.folder / f"{stage}-{config.label_set.tag}-seed{config.seed}"
        if not (folder / "meta.json").exists():
            continue
        networks[stage], metas[stage] = load_classifier(folder)
        metas[stage]["folder"] = folder.name
        require_same_input(metas[stage], config.data, folder)
        require_same_images(metas[stage], splits, folder)
        if metas[stage]["classes"] != list(splits.train.classes):
            raise UserError(
                f"{folder} knows other classes than the images have; give the --data"
                " options with which it was made"
            )
    if not config.linear.init:
        require_same_images(meta, splits, source)
    for network in (pretrained, *networks.values()):
        to_device(network, config, accelerator).eval().requires_grad_(False)
    described = {key: meta[key] for key in ("encoder", "image_size", "weights_sha256")}
    return Inputs(config, accelerator, splits, labels, pretrained, described, networks, metas)


def require_same_images(meta: dict[str, Any], splits: Splits, folder: Path) -> None:
    """UserError where a network was trained on other images: test images might be among them."""
    trained_on = meta.get("settings", {}).get("images")
    if trained_on not in (None, splits.train.fingerprint):
        raise UserError(
            f"{folder} was trained on other images (hash {trained_on}) than the training images now"
            f" ({splits.train.fingerprint}); give the --data options with which it was made"
        )


# ---------------------------------------------------------------------------------- the parts
# Each is called in every process, because networks are applied by all of them; only the main
# process goes on from there, and only its result counts.
def linear(inputs: Inputs) -> Result:
    """Linear evaluation and nearest neighbours on each layer, with the given and all labels."""
    (train, _), (test, positions), seed = inputs.train, inputs.test, inputs.config.seed
    if not inputs.main:
        return {}, {}
    targets = inputs.test_images.labels[positions]
    rows, best = [], {}
    for tag, known in inputs.label_sets().items():
        labeled = known != UNLABELED
        for layer, (keys, queries) in enumerate(zip(train, test, strict=True)):
            a, b = features.scaled(keys, queries)
            found = features.fit_logistic_regression(a[labeled], known[labeled], seed)
            near, similarity = features.nearest(keys[labeled], queries, NEIGHBOURS)
            voted = features.vote(similarity, known[labeled][near])
            rows.append(
                {
                    "layer": layer,
                    "width": keys.shape[1],
                    "labels": tag,
                    "n_labels": int(labeled.sum()),
                    **features.scores(found.model, b, targets, inputs.classes),
                    "knn": float((voted == targets).mean()),
                    **found.row(),
                }
            )
        of_tag = [row for row in rows if row["labels"] == tag]
        if of_tag[0]["validation"] is not None:
            best[tag] = max(of_tag, key=lambda row: row["validation"])["layer"]
    return {"rows": rows, "best_layer": best}, {}


def neighbours(inputs: Inputs) -> Result:
    """The training images nearest to test images, and how many of them have the same class."""
    (train, seen), (test, positions) = inputs.train, inputs.test
    if not inputs.main:
        return {}, {}
    every = [*inputs.label_sets().values()][-1]
    targets = inputs.test_images.labels[positions]
    near, similarity = features.nearest(train[0], test[0], RETRIEVED)
    classes = every[near]  # (T, 8)
    same, known = classes == targets[:, None], classes != UNLABELED
    shares = {
        f"same_class_at_{k}": float(same[:, :k][known[:, :k]].mean())
        if known[:, :k].any()
        else None
        for k in (1, RETRIEVED)
    }
    # as many of each class as fit
    order = generator(inputs.config.seed, "assess", "queries").permutation(len(targets))
    turn = {c: iter(order[targets[order] == c]) for c in dict.fromkeys(targets[order])}
    shown: list[int] = []
    while len(shown) < min(QUERIES, len(targets)):
        shown += [index for it in turn.values() if (index := next(it, None)) is not None]
    chosen = np.array(sorted(shown[:QUERIES], key=lambda i: (targets[i], i)))
    return {"k": RETRIEVED, **shares}, {
        "query_positions": positions[chosen],
        "query_targets": targets[chosen],
        "positions": seen[near[chosen]],
        "targets": classes[chosen],
        "similarity": similarity[chosen].astype(np.float32),
        "query_images": inputs.pictures(inputs.test_images, positions[chosen]),
        "images": inputs.pictures(inputs.splits.train, seen[near[chosen]]),
    }


def clusters(inputs: Inputs) -> Result:
    """k-means with as many clusters as classes, on the features and on the pixels."""
    (train, _), (test, positions), pixels = inputs.train, inputs.test, inputs.pixels
    if not inputs.main:
        return {}, {}
    targets = inputs.test_images.labels[positions]
    some = inputs.some(np.arange(len(train[0])), features.CLUSTER_IMAGES, "clusters")
    k = len(np.unique(targets))

    def quality(keys: np.ndarray, queries: np.ndarray) -> dict[str, float]:
        return features.cluster_quality(keys[some], queries, targets, k, inputs.config.seed)

    return {
        "k": k,
        "n_images": len(some),
        **quality(train[0], test[0]),
        "pixels": quality(*pixels),
    }, {}


def map_(inputs: Inputs) -> Result:
    """Two-dimensional maps of test images, by their features and by their pixels."""
    (test, positions), pixels = inputs.test, inputs.pixels
    if not inputs.main:
        return {}, {}
    some = inputs.some(np.arange(len(positions)), inputs.config.assess.map_points, "map")
    seed = inputs.config.seed
    maps = {
        "tsne": features.tsne(test[0][some], seed),
        "tsne_pixels": features.tsne(pixels[1][some], seed, metric="euclidean"),
    }
    if (places := features.umap(test[0][some], seed)) is not None:
        maps["umap"] = places
    targets = inputs.test_images.labels[positions[some]]
    return {"n": len(some), "methods": list(maps)}, {
        "positions": positions[some],
        "targets": targets,
        **{name: places.astype(np.float32) for name, places in maps.items()},
    }


def classifiers(inputs: Inputs) -> Result:
    """Predictions, confusion matrix and most confident mistakes of each classifier."""
    numbers, arrays = {}, {}
    for stage, (logits, positions) in inputs.logits.items():
        if not inputs.main:
            continue
        targets = torch.from_numpy(inputs.test_images.labels[positions])
        confidence, predictions = torch.from_numpy(logits).softmax(1).max(1)
        wrong = (predictions != targets).nonzero()[:, 0]
        mistakes = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES].numpy()
        meta = inputs.metas[stage]
        numbers[stage] = {
            "title": TITLES[stage],
            **classification_metrics(torch.from_numpy(logits), targets),
            "parameters": sum(p.numel() for p in inputs.classifiers[stage].parameters()),
            "n_labels": meta["labels"]["number"],
        }
        arrays |= {
            f"{stage}/{name}": array
            for name, array in {
                "positions": positions,
                "targets": targets.numpy(),
                "predictions": predictions.numpy(),
                "confidence": confidence.numpy(),
                "mistakes": mistakes,
                "confusion": confusion_matrix(targets, predictions, labels=range(inputs.classes)),
                "mistake_images": inputs.pictures(inputs.test_images, positions[mistakes]),
            }.items()
        }
    return numbers, arrays


def corrupted(inputs: Inputs) -> Result:
    """Accuracy of each classifier under every corruption at every severity."""
    images, data, seed = inputs.test_images, inputs.config.data, inputs.config.seed
    kinds = [(name, severity) for name in corruptions.NAMES for severity in corruptions.SEVERITIES]
    networks = inputs.classifiers.values()

    def variant(batch: Tensor, name: str, severity: int, number: int) -> Tensor:
        rng = generator(seed, "assess", name, severity, number)
        return corruptions.corrupt(batch, name, severity, rng)

    def predictions(batch: Tensor, number: int) -> Tensor:
        shown = [batch, *(variant(batch, *kind, number) for kind in kinds)]
        answers = [
            inputs.apply(network, normalize(view, data)).argmax(1)
            for view in shown
            for network in networks
        ]
        return torch.stack(answers, dim=1)

    ids = inputs.some(inputs.known_test, TEST_IMAGES, "corruptions")
    rows, positions = inputs.rows(predictions, images, ids, inputs.unit_data, "corruptions")
    if not inputs.main:
        return {}, {}
    right = rows.reshape(len(rows), -1, len(networks)) == images.labels[positions][:, None, None]
    shares = right.mean(0)  # (1 + corruptions * severities, classifiers)
    clean = next(plain_batches(images, positions[:1], inputs.unit_data, 1, "cpu"))[0]
    views = torch.cat([variant(clean, *kind, 0) for kind in kinds])
    each = shares[1:].reshape(len(corruptions.NAMES), len(corruptions.SEVERITIES), -1)
    return {
        "n_images": len(rows),
        "names": list(corruptions.NAMES),
        "groups": {name: group for group, names in corruptions.GROUPS.items() for name in names},
        "severities": list(corruptions.SEVERITIES),
        "clean": {stage: float(shares[0, i]) for i, stage in enumerate(inputs.classifiers)},
        "mean": {stage: float(each[..., i].mean()) for i, stage in enumerate(inputs.classifiers)},
        "accuracy": {
            stage: {name: each[j, :, i].tolist() for j, name in enumerate(corruptions.NAMES)}
            for i, stage in enumerate(inputs.classifiers)
        },
    }, {
        "clean": thumbnails(clean)[0],
        "examples": thumbnails(views).reshape(*each.shape[:2], *thumbnails(clean).shape[1:]),
    }


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


def out_of_distribution(inputs: Inputs) -> Result:
    """How much surer the classifiers are of test images than of images that are of no class.

    By the largest probability (Hendrycks & Gimpel 2017, arXiv 1610.02136).
    """
    config, test = inputs.config, inputs.test_images
    sets: dict[str, tuple[ImageSet, np.ndarray, Any]] = {
        "shuffled pixels": (test, inputs.known_test, shuffle_pixels),
        "noise": (test, inputs.known_test, noise),
    }
    if config.assess.ood:
        other = open_other(config, config.assess.ood, inputs.accelerator)
        images = other.test or other.train
        sets[config.assess.ood] = (
            images,
            inputs.some(np.arange(len(images)), OOD_IMAGES, "ood"),
            lambda batch, _: batch,
        )
    inside = {
        stage: torch.from_numpy(logits).softmax(1).amax(1).numpy()
        for stage, (logits, _) in inputs.logits.items()
    }
    numbers: dict[str, Any] = {
        "sets": {},
        "auroc": {stage: {} for stage in inside},
        "confidence": {stage: {"test": float(sure.mean())} for stage, sure in inside.items()},
    }
    arrays = {}
    for name, (images, ids, change) in sets.items():

        def changed(batch: Tensor, number: int, name: str = name, change: Any = change) -> Tensor:
            return change(batch, generator(config.seed, "assess", name, number))

        def confidence(batch: Tensor, number: int, changed: Any = changed) -> Tensor:
            view = normalize(changed(batch, number), config.data)
            answers = [inputs.apply(network, view) for network in inputs.classifiers.values()]
            return torch.stack([logits.softmax(1).amax(1) for logits in answers], dim=1)

        outside, positions = inputs.rows(confidence, images, ids, inputs.unit_data, name)
        if not inputs.main:
            continue
        numbers["sets"][name] = len(outside)
        for i, (stage, sure) in enumerate(inside.items()):
            numbers["auroc"][stage][name] = features.auroc(sure, outside[:, i])
            numbers["confidence"][stage][name] = float(outside[:, i].mean())
        batch = next(plain_batches(images, positions[:8], inputs.unit_data, 8, "cpu"))[0]
        arrays[f"{name}/examples"] = thumbnails(changed(batch, 0))
    return numbers, arrays


def open_other(config: Config, source: str, accelerator: Accelerator) -> Splits:
    """Another data set, shown as the run's images are."""
    data = replace(
        config.data, train=source, test=None, unlabeled=None, image_column=None, label_column=None
    )
    return open_data(data, LabelSet.parse("100pct"), accelerator.is_local_main_process)


def transfer(inputs: Inputs) -> Result:
    """Linear evaluation on another data set, with all its labels, of the features and pixels."""
    source = inputs.config.assess.transfer
    assert source is not None
    train, test = open_other(inputs.config, source, inputs.accelerator)
    if test is None:
        raise UserError(f"assess.transfer={source} has no labels, or too few to test with")
    known = np.flatnonzero(train.labels != UNLABELED)
    ids = inputs.some(known, inputs.config.assess.max_images, "transfer")
    test_ids = np.flatnonzero(test.labels != UNLABELED)
    (a, a_positions), (b, b_positions) = (
        inputs.all_layers(images, chosen) for images, chosen in ((train, ids), (test, test_ids))
    )
    pixels = inputs.pixel_rows(train, ids, test, test_ids)
    if not inputs.main:
        return {}, {}
    rows = []
    for name, pair in (("features", (a[0], b[0])), ("pixels", pixels)):
        keys, queries = features.scaled(*pair)
        found = features.fit_logistic_regression(
            keys, train.labels[a_positions], inputs.config.seed
        )
        metrics = features.scores(
            found.model, queries, test.labels[b_positions], len(train.classes)
        )
        rows.append({"input": name, **metrics, **found.row()})
    return {
        "data": source,
        "classes": len(train.classes),
        "n_train": len(a_positions),
        "n_test": len(b_positions),
        "rows": rows,
    }, {}


def baselines(inputs: Inputs) -> Result:
    """The classical methods of scikit-learn, on pixels and on our features."""
    (train, _), (test, positions), pixels = inputs.train, inputs.test, inputs.pixels
    if not inputs.main:
        return {}, {}
    targets = inputs.test_images.labels[positions]
    given = next(iter(inputs.label_sets().values()))
    rows = []
    for name, pair in (("pixels", pixels), ("features", (train[0], test[0]))):
        keys, queries = features.scaled(*pair)
        found = features.classical_baselines(keys, given, queries, targets, inputs.config.seed)
        rows += [{"input": name, **row} for row in found]
    return {"rows": rows}, {}


PARTS: dict[str, Callable[[Inputs], Result]] = {
    "linear": linear,
    "neighbours": neighbours,
    "clusters": clusters,
    "map": map_,
    "classifiers": classifiers,
    "corruptions": corrupted,
    "ood": out_of_distribution,
    "transfer": transfer,
    "baselines": baselines,
}
