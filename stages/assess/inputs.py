"""What an assessment reads: the images and networks of a run, and features of one by the other."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.labelset import LabelSet
from shared.config.methods import CLASSIFIERS
from shared.config.schema import Config
from shared.config.sections import Data
from shared.data.batches import plain_batches
from shared.data.images import UNLABELED, ImageSet, Splits
from shared.data.labels import Labels, draw_labels
from shared.data.sources import open_data, open_run
from shared.networks.build import load_classifier, load_contrastive, require_same_input
from shared.networks.heads import Classifier, ContrastiveModel
from shared.runs.assessment import About
from shared.runtime.artifacts import ClassifierMeta, Meta, read_meta
from shared.runtime.errors import UserError
from shared.runtime.randomness import generator
from shared.training.classical import as_pixels
from shared.training.device import to_device
from shared.training.evaluate import outputs_of, over_images, require_usable, state_hash
from shared.training.stage import images_then

THUMBNAIL = 96  # pixels per side of stored pictures, at most

Arrays = dict[str, np.ndarray]  # of a part: name -> array


@dataclass(frozen=True)
class Inputs:
    """The networks and images of a run. What several parts need is computed once.

    Attributes:
        config: of the run.
        accelerator: of this process.
        splits: training and test images.
        labels: those that training may see.
        pretrained: encoder and projection head, frozen.
        pretrained_meta: its ``meta.json``.
        classifiers: stage -> the finished classifier of these labels and this seed.
        metas: stage -> its ``meta.json``.
    """

    config: Config
    accelerator: Accelerator
    splits: Splits
    labels: Labels
    pretrained: ContrastiveModel
    pretrained_meta: Meta
    classifiers: dict[str, Classifier]
    metas: dict[str, ClassifierMeta]

    @property
    def is_main(self) -> bool:
        """Whether this process computes everything that is not divided among the processes."""
        return self.accelerator.is_main_process

    @property
    def test_images(self) -> ImageSet:
        """The test images; without any no part is done that needs them."""
        assert self.splits.test is not None
        return self.splits.test

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.splits.train.classes)

    @property
    def unit_data(self) -> Data:
        """The section ``data`` without normalisation: images stay in [0, 1]."""
        return replace(self.config.data, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def about(self) -> About:
        """``about`` of ``assess.json``."""
        return {
            "labels": self.config.label_set.tag,
            "n_labels": len(self.labels.ids),
            "n_train": len(self.splits.train.training_ids),
            "n_train_seen": len(self.train_ids),
            "n_test": len(self.test_ids),
            "seed": self.config.seed,
            "classes": list(self.splits.train.classes),
            "encoder": self.pretrained_meta["encoder"],
            "image_size": self.config.data.image_size,
            "classifiers": {stage: self.config.folder_of(stage).name for stage in self.classifiers},
        }

    def hashes(self) -> dict[str, str]:
        """Hash of all parameters and buffers of each network, to prove that nothing was trained."""
        networks: dict[str, nn.Module] = {"encoder": self.pretrained, **self.classifiers}
        return {name: state_hash(network) for name, network in networks.items()}

    def apply(self, network: nn.Module, images: Tensor) -> Tensor:
        """Outputs as float32, computed in the precision in which the run evaluates."""
        with self.accelerator.autocast():
            return network(images).float()

    def rows(
        self,
        function: Callable[[Tensor, int, np.ndarray], Tensor],
        images: ImageSet,
        ids: np.ndarray,
        data: Data,
        title: str,
    ) -> tuple[np.ndarray, np.ndarray]:
        """``over_images`` with this run's processes: usable rows (n, F) and positions (n,)."""
        rows, positions = over_images(function, images, ids, data, self.accelerator, title=title)
        require_usable(rows, "of the network")
        return rows, positions

    def answers(
        self, network: nn.Module, images: ImageSet, ids: np.ndarray, title: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a network answers to images: rows (n, F) and positions (n,)."""
        return outputs_of(network, images, ids, self.config.data, self.accelerator, title)

    def all_layers(self, images: ImageSet, ids: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Rows (n, F) of the encoder and of each layer of the head, and positions (n,)."""
        network = _AllLayers(self.pretrained)
        rows, positions = self.answers(network, images, ids, "features")
        edges = np.cumsum(self.pretrained.head.widths)[:-1]
        return np.split(rows, edges, axis=1), positions

    @cached_property
    def train_ids(self) -> np.ndarray:
        """Positions of the training images that are used: the labeled ones, and others by lot."""
        rest = np.setdiff1d(self.splits.train.training_ids, self.labels.ids)
        room = max(self.config.assess.max_images - len(self.labels.ids), 0)
        others = generator(self.config.seed, "assess", "seen").permutation(rest)[:room]
        return np.sort(np.concatenate([self.labels.ids, others]))

    @cached_property
    def test_ids(self) -> np.ndarray:
        """Positions of the test images with a class; none where there are no test images."""
        labels = np.zeros(0) if self.splits.test is None else self.splits.test.labels
        return np.flatnonzero(labels != UNLABELED)

    @cached_property
    def train_features(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Features of the training images, one array per layer, and the images' positions."""
        return self.all_layers(self.splits.train, self.train_ids)

    @cached_property
    def test_features(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Features of the test images, one array per layer, and the images' positions."""
        return self.all_layers(self.test_images, self.test_ids)

    @cached_property
    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Training and test images as rows of pixels, each (n, D)."""
        return self.pixel_rows(self.splits.train, self.train_ids, self.test_images, self.test_ids)

    def pixel_rows(
        self, train: ImageSet, train_ids: np.ndarray, test: ImageSet, test_ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """These training and test images as rows of pixels; one channel where all are grey."""
        pair = [
            self.rows(lambda batch, *_: as_pixels(batch), images, ids, self.unit_data, "pixels")[0]
            for images, ids in ((train, train_ids), (test, test_ids))
        ]
        channels = [rows.reshape(len(rows), 3, -1) for rows in pair]
        if all((c == c[:, :1]).all() for c in channels):
            pair = [np.ascontiguousarray(c[:, 0]) for c in channels]
        return pair[0], pair[1]

    def label_sets(self) -> dict[str, np.ndarray]:
        """Classes of the used training images: those that training may see, and "all" known ones.

        There is no "all" where the two are equal. Beside a file all.csv it is called "all known".
        """
        positions = self.train_features[1]
        of_training, known = (
            np.full(len(self.splits.train), UNLABELED),
            self.splits.train.labels.copy(),
        )
        of_training[self.labels.ids] = known[self.labels.ids] = self.labels.targets
        sets = {self.config.label_set.tag: of_training[positions]}
        if (known != of_training)[positions].any():
            sets["all" if "all" not in sets else "all known"] = known[positions]
        return sets

    @cached_property
    def logits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Logits (T, C) of each classifier and positions (T,) of the test images."""
        return {
            stage: self.answers(network, self.test_images, self.test_ids, stage)
            for stage, network in self.classifiers.items()
        }

    def sample(self, ids: np.ndarray, at_most: int, purpose: str) -> np.ndarray:
        """At most so many of the ids, by lot, ascending; each purpose has its own lot."""
        return np.sort(generator(self.config.seed, "assess", purpose).permutation(ids)[:at_most])

    def pictures(self, images: ImageSet, positions: np.ndarray) -> np.ndarray:
        """(..., S, S, 3) uint8 of the images at positions (...), at most ``THUMBNAIL`` wide."""
        batches = plain_batches(images, positions.ravel(), self.unit_data, 256, "cpu")
        size = min(self.config.data.image_size, THUMBNAIL)
        parts = [thumbnails(batch) for batch, _ in batches] or [np.zeros((0, size, size, 3), "u1")]
        return np.concatenate(parts).reshape(*positions.shape, *parts[0].shape[1:])


class _AllLayers(nn.Module):
    """Images -> outputs of the encoder and of every layer of the head, concatenated."""

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
        UserError: there is no pretrained network, or a network was made from other images, with
            other classes or for another size.
    """
    source = Path(config.linear.init) if config.linear.init else config.folder_of("pretrain")
    meta = read_meta(source, "encoder")
    require_same_input(meta, config.data, source)
    splits = open_run(config, accelerator)
    labels = draw_labels(splits, config.label_set, config.seed)
    pretrained, _ = load_contrastive(source)
    networks: dict[str, Classifier] = {}
    metas: dict[str, ClassifierMeta] = {}
    ours = (name for name, method in CLASSIFIERS.items() if method.saved and not method.own_input)
    for stage in ours:
        folder = config.folder_of(stage)
        if not (folder / "meta.json").exists():
            continue
        networks[stage], metas[stage] = load_classifier(folder)
        require_same_input(metas[stage], config.data, folder)
        require_same_images(metas[stage], splits.train, folder)
        if metas[stage]["classes"] != list(splits.train.classes):
            raise UserError(
                f"{folder} knows other classes than the images have; give the --data"
                " options with which it was made"
            )
    if not config.linear.init:
        require_same_images(meta, images_then(source, splits.train, config.data), source)
    for network in (pretrained, *networks.values()):
        to_device(network, config, accelerator).eval().requires_grad_(False)
    return Inputs(config, accelerator, splits, labels, pretrained, meta, networks, metas)


def require_same_images(meta: Meta, images: ImageSet, folder: Path) -> None:
    """UserError if a network was trained on other images: they may include the test images."""
    trained_on = meta.get("settings", {}).get("images")
    if trained_on not in (None, images.fingerprint):
        raise UserError(
            f"{folder} was trained on other images (hash {trained_on}) than the training images now"
            f" ({images.fingerprint}); give the --data options with which it was made"
        )


def open_other(config: Config, source: str, accelerator: Accelerator) -> Splits:
    """Another data set, with the run's image size and normalisation."""
    data = config.data.of_another(source)
    return open_data(data, LabelSet.parse("100pct"), accelerator.is_local_main_process)
