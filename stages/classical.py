"""Rows to compare with, from scikit-learn on the same labels, in seconds.

    pixels-svm           a support vector machine (RBF) on the pixels
    pixels-forest        a random forest on them
    pixels-spreading     label spreading over the graph of all images (Zhou et al. 2004)
    gradients-svm        the support vector machine on gradients and colours: histograms of oriented
                         gradients (Dalal and Triggs 2005) and of colours
    published            logistic regression on the features of published weights, where
                         --classical.published names them
    features-logistic    logistic regression on the features of the pretrained network, or on those
                         of layers of its projection head (--classical.from_layer); with
                         --classical.self_training it learns from images without a label too
    features-neighbours  a vote of the nearest labeled images, by the cosine of the same features
                         (--classical.neighbours true, or where a table names it)

Hyper-parameters are chosen by cross-validation on the labeled images; the vote has fixed ones. Of
the rows on pixels and of the vote only the predictions for the test images are saved:
scikit-learn's models could only be pickled, and a pickle can execute anything when it is read. The
others are a linear layer on a network. So they are saved as classifiers like the others, and can be
deployed.

    python -m stages.classical --labels 10pct
"""

import sys

from shared.config.command_line import load_config, refuse_unknown_options

if __name__ == "__main__":  # before torch is imported, which takes seconds
    refuse_unknown_options("stages.classical")

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import SVC
from torch import Tensor

from shared.config.command import run_command
from shared.config.label_file import file_notes
from shared.config.labelset import LabelSet
from shared.config.methods import CLASSES_FITTED, METHODS, made_by, method_of
from shared.config.schema import Config, defaults, dump, hashed_settings
from shared.config.sections import Data
from shared.data.images import UNLABELED, ImageSet, Splits
from shared.data.labels import Labels, draw_labels
from shared.data.sources import open_beside, open_data, open_run
from shared.networks.build import (
    input_of,
    keep_layers,
    load_contrastive,
    network_of,
    require_same_input,
)
from shared.networks.heads import Classifier
from shared.runtime.artifacts import ClassifierNetwork, Meta, read_meta
from shared.runtime.errors import exit_code_2
from shared.runtime.progress import counted
from shared.runtime.randomness import generator
from shared.runtime.stage_folder import StageFolder
from shared.training.classical import (
    Fit,
    as_pixels,
    fit,
    fit_logistic_regression,
    log_probabilities,
    scale_of,
    scaled,
)
from shared.training.device import to_device
from shared.training.evaluate import Predictions, outputs_of, over_images, predict
from shared.training.neighbours import TEMPERATURE, VOTERS, shares_of_votes
from shared.training.stage import (
    FOLLOWS,
    finish,
    follows,
    labels_meta,
    measured,
    result_of,
    settings_of_test_images,
)

FEATURE_LABELS = 10_000  # that the rows on features learn from at most, which keeps them to seconds
FEATURE_OTHERS = 5_000  # that self-training adds at most, which keeps it to a minute or two
ORIENTATIONS, LEVELS = 9, 4  # of the histograms: directions of a gradient, levels of a colour


class Pixels(NamedTuple):
    """The images that a row on pixels learns from and is tested on, (., 3, S, S) float32 in [0, 1].

    Attributes:
        labeled: (k, 3, S, S); at most ``classical.pixel_images``.
        targets: (k,) int64.
        others: (u, 3, S, S) training images without a label, by lot; as many with the labeled.
        test: (t, 3, S, S).
        positions: (t,) of the test images.
    """

    labeled: np.ndarray
    targets: np.ndarray
    others: np.ndarray
    test: np.ndarray
    positions: np.ndarray


class Clocks(NamedTuple):
    """When the work on a row began, in seconds of the wall clock and of the processor."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Clocks":
        """Now."""
        return cls(time.perf_counter(), time.process_time())

    def passed(self) -> dict[str, float]:
        """What ``meta.json`` says of the time since then."""
        wall, processor = Clocks.now()
        return {
            "seconds": wall - self.wall,
            "cpu_seconds": round(processor - self.processor, 1),
        }


class Row(NamedTuple):
    """A fitted row whose model is not saved.

    Attributes:
        fit: the model and its hyper-parameters.
        logits: (t, classes) for the test images; of a support vector machine scores.
        numbers: how many numbers it needs to predict: its size, beside a network's parameters.
    """

    fit: Fit
    logits: np.ndarray
    numbers: int


def run(config: Config, accelerator: Accelerator, method: str) -> Path | None:
    """Fit one of the classifiers, unless it is done.

    Args:
        config: the run's configuration.
        accelerator: of this process. All processes fit the same model, and share out the images.
        method: of the rows above.

    Returns:
        The artifact folder ``<output>/<run>/<method>-<labels>-seed<seed>``; None where the row is
        left out, which a line says.

    Raises:
        ValueError: another stage makes the method.
        UserError: on bad input, or an artifact made with other settings.
    """
    row = method_of("classical", method)
    splits = open_run(config, accelerator)
    labels = draw_labels(splits, config.label_set, config.seed)
    if reason := _why_left_out(row.saved, splits):
        accelerator.print(f"{method}: left out, {reason}")
        return None
    settings = {
        **hashed_settings(config.data, "data"),
        "images": splits.train.fingerprint,
        **settings_of_test_images(splits),
        "labels": labels.hash,
        "classes": splits.train.labels_fingerprint,
        "seed": config.seed,
    }
    if row.frozen:
        on_features = _on_features if row.saved else _neighbours
        return on_features(config, accelerator, method, splits, labels, settings)
    return _on_pixels(config, accelerator, method, splits, labels, settings)


def _why_left_out(saved: bool, splits: Splits) -> str:
    """Why a row is not made; empty where it is."""
    if len(splits.train.classes) > CLASSES_FITTED:
        return (
            f"because there are {len(splits.train.classes):,} classes, more than {CLASSES_FITTED}"
        )
    if splits.test is None and not saved:
        return "because there are no test images, and its model is not saved"
    return ""


def _folder(
    config: Config,
    accelerator: Accelerator,
    method: str,
    settings: dict[str, Any],
    images: ImageSet,
) -> StageFolder:
    folder = StageFolder(
        config.folder_of(method),
        {"stage": method, **settings},
        force=config.forces(method),
        accelerator=accelerator,
        go_on=config.to_go_on(method),
        defaults=defaults(),
        follows=FOLLOWS if follows(config, images) else (),
    )
    if folder.done:
        accelerator.print(f"{method}: already done, {folder.path}")
    else:
        folder.start(dump(config), file_notes(config, method))
    return folder


# ------------------------------------------------------------------------------------- on pixels
def _on_pixels(
    config: Config,
    accelerator: Accelerator,
    method: str,
    splits: Splits,
    labels: Labels,
    settings: dict[str, Any],
) -> Path:
    """Fit a row on pixels and save what it says of the test images."""
    settings = settings | {"classical.pixel_images": config.classical.pixel_images}
    folder = _folder(config, accelerator, method, settings, splits.train)
    if folder.done:
        return folder.path
    began = Clocks.now()
    pixels = small_images(
        config.data, config.label_set, config.seed, config.classical.pixel_images, accelerator
    )
    if len(pixels.targets) < len(labels.ids):
        accelerator.print(f"{method}: learns from {len(pixels.targets):,} of the labels, by lot")
    row = ROWS[method](pixels, len(splits.train.classes), config.seed)
    return _finish_unsaved(folder, config, method, splits, labels, row, pixels.positions, began)


def _finish_unsaved(
    folder: StageFolder,
    config: Config,
    method: str,
    splits: Splits,
    labels: Labels,
    row: Row,
    positions: np.ndarray,
    began: Clocks,
    parents: Sequence[Path] = (),
) -> Path:
    """Save what a row says of the test images at these positions (t,); its model is not saved."""
    assert splits.test is not None
    predictions = Predictions.from_logits(positions, row.logits, splits.test.labels[positions])
    metrics = measured(predictions)
    if isinstance(row.fit.model, SVC):  # it gives scores and no probabilities
        metrics = {
            name: value
            for name, value in metrics.items()
            if name.startswith("top") or name == "n_test"
        }
    known, times = labels_meta(config, labels), began.passed()
    meta = {
        "kind": "predictions",
        "encoder": METHODS[method].title,
        "image_size": config.data.image_size,
        "classes": list(splits.train.classes),
        "labels": known,
        "hyper": row.fit.hyper,
        "validation": row.fit.validation,
        "result": result_of(config, method, known, row.numbers, times["seconds"], metrics),
        "stage": method,
        "seed": config.seed,
        **times,
    }
    return finish(folder, None, meta, parents, predictions)


@lru_cache(maxsize=1)
def small_images(
    data: Data, label_set: LabelSet, seed: int, at_most: int, accelerator: Accelerator
) -> Pixels:
    """Labeled, other and test images as evaluation shows them, of at most 32 pixels a side.

    ``at_most``: of the training images, labeled ones first. All are kept, for four rows use them.
    """
    splits = open_data(data, label_set, accelerator.is_local_main_process)
    labels = draw_labels(splits, label_set, seed)
    assert splits.test is not None
    unit = replace(data, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def images(of: Any, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, positions = over_images(
            lambda batch, *_: as_pixels(batch), of, ids, unit, accelerator, title="pixels"
        )
        side = round((rows.shape[1] / 3) ** 0.5)
        return rows.reshape(-1, 3, side, side), positions

    kept = labels.ids[by_lot(labels.targets, at_most, seed)]
    others = unlabeled_by_lot(splits, labels, at_most - len(kept), seed)
    seen, positions = images(splits.train, np.sort(np.concatenate([kept, others])))
    place = np.searchsorted(labels.ids, positions).clip(max=len(labels.ids) - 1)
    is_labeled = labels.ids[place] == positions
    test, of_test = images(splits.test, np.flatnonzero(splits.test.labels != UNLABELED))
    return Pixels(
        seen[is_labeled], labels.targets[place[is_labeled]], seen[~is_labeled], test, of_test
    )


def by_lot(targets: np.ndarray, at_most: int, seed: int) -> np.ndarray:
    """Indices of so many targets (k,) by lot, ascending; one of every class is among them."""
    order = generator(seed, "classical", "labels").permutation(len(targets))
    first = order[np.unique(targets[order], return_index=True)[1]]
    rest = order[~np.isin(order, first)]
    return np.sort(np.concatenate([first, rest])[:at_most])


def unlabeled_by_lot(splits: Splits, labels: Labels, at_most: int, seed: int) -> np.ndarray:
    """Ids (u,) of so many training images without a label, by lot; none for 0 or less."""
    if at_most <= 0:
        return np.empty(0, np.int64)
    rest = np.setdiff1d(splits.train.training_ids, labels.ids)
    return generator(seed, "classical", "others").permutation(rest)[:at_most]


def gradients_and_colors(images: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients and of colours: images (n, 3, S, S) -> rows (n, F).

    A pixel's gradient is that of the channel where it is steepest. About 8 x 8 cells share the
    image. Each has a histogram of the directions, weighted by the steepness, in ``ORIENTATIONS``
    bins with linear interpolation. Blocks of 2 x 2 cells are scaled to unit length. Colours are
    counted in ``LEVELS``^3 bins; the square root (Hellinger) weakens the background's. Both parts
    are scaled to the same weight.
    """
    x = torch.from_numpy(images)
    across, down = torch.zeros_like(x), torch.zeros_like(x)
    across[..., 1:-1] = x[..., 2:] - x[..., :-2]
    down[..., 1:-1, :] = x[..., 2:, :] - x[..., :-2, :]
    steepness, channel = torch.hypot(across, down).max(1, keepdim=True)  # (n, 1, S, S)
    angle = torch.atan2(down.gather(1, channel), across.gather(1, channel)) / torch.pi
    place = angle.remainder(1) * ORIENTATIONS  # of undirected gradients
    part = place - place.floor()
    bins = place.floor().long() % ORIENTATIONS
    oriented = x.new_zeros(len(x), ORIENTATIONS, *x.shape[2:])
    oriented.scatter_add_(1, bins, steepness * (1 - part))
    oriented.scatter_add_(1, (bins + 1) % ORIENTATIONS, steepness * part)
    cells = F.avg_pool2d(oriented, max(2, x.shape[-1] // 8))
    corners = [
        cells[..., :-1, :-1],
        cells[..., :-1, 1:],
        cells[..., 1:, :-1],
        cells[..., 1:, 1:],
    ]
    blocks = torch.cat(corners, dim=1)
    blocks = blocks / (blocks.square().sum(1, keepdim=True) + 1e-4).sqrt()
    return np.hstack([_unit(blocks.flatten(1)), _unit(_colors(x).sqrt())])


def _colors(x: Tensor) -> Tensor:
    """Shares of the pixels (n, 3, S, S) in each of ``LEVELS``^3 colours."""
    levels = (x * LEVELS).long().clamp(0, LEVELS - 1)
    color = (levels * torch.tensor([LEVELS**2, LEVELS, 1]).view(3, 1, 1)).sum(1).flatten(1)
    counts = x.new_zeros(len(x), LEVELS**3).scatter_add_(1, color, x.new_ones(color.shape))
    return counts / color.shape[1]


def _unit(rows: Tensor) -> np.ndarray:
    """Rows divided by the square root of their number of features."""
    return (rows / rows.shape[1] ** 0.5).numpy()


def _svm(rows: Callable[[np.ndarray], np.ndarray], pixels: Pixels, classes: int, seed: int) -> Row:
    train, test = scaled(rows(pixels.labeled), rows(pixels.test))
    unit = 1 / train.shape[1]  # squared distances grow with the number of features
    # the kernel as matrix products: 40 times as fast as SVC's own for thousands of pixels
    kernels = [partial(rbf_kernel, gamma=share * unit) for share in (0.3, 1.0)]
    estimator = SVC(C=10, kernel=cast(Any, kernels[0]), break_ties=True)
    fitted = fit(
        estimator, [{"C": [1.0, 10.0, 100.0], "kernel": kernels}], train, pixels.targets, seed
    )
    hyper = {"C": fitted.hyper["C"], "gamma": fitted.hyper["kernel"].keywords["gamma"]}
    scores = fitted.model.decision_function(test)
    if scores.ndim == 1:  # of the second of two classes
        scores = np.stack([-scores, scores], axis=1)
    logits = np.full((len(test), classes), scores.min() - 1, dtype=np.float32)
    logits[:, fitted.model.classes_] = scores
    numbers = len(fitted.model.support_) * (train.shape[1] + len(fitted.model.classes_) - 1)
    return Row(replace(fitted, hyper=hyper), logits, numbers)


def _forest(pixels: Pixels, classes: int, seed: int) -> Row:
    rows, test = (part.reshape(len(part), -1) for part in (pixels.labeled, pixels.test))
    hyper = {"n_estimators": 200, "max_samples": min(1_000, len(rows))}  # of each tree
    forest = RandomForestClassifier(random_state=seed).set_params(**hyper)
    fitted = fit(forest, [], rows, pixels.targets, seed)
    trees = [tree.tree_ for tree in fitted.model.estimators_]
    numbers = sum(4 * tree.node_count + tree.value.size for tree in trees)
    logits = log_probabilities(fitted.model, test, classes)
    return Row(replace(fitted, hyper=hyper), logits, numbers)


def _spreading(pixels: Pixels, classes: int, seed: int) -> Row:
    seen = np.concatenate([pixels.labeled, pixels.others])
    train, test = scaled(*(part.reshape(len(part), -1) for part in (seen, pixels.test)))
    # alpha is the paper's; gamma did best on training images of the digits
    hyper = {"gamma": 30 / train.shape[1], "alpha": 0.99}
    known = np.concatenate([pixels.targets, np.full(len(pixels.others), UNLABELED)])
    model = LabelSpreading("rbf", **hyper, max_iter=100)
    fitted = fit(model, [], train, known, seed)
    logits = log_probabilities(fitted.model, test, classes)
    numbers = train.size + fitted.model.label_distributions_.size
    return Row(replace(fitted, hyper=hyper), logits, numbers)


ROWS: dict[str, Callable[[Pixels, int, int], Row]] = {
    "pixels-svm": partial(_svm, lambda images: images.reshape(len(images), -1)),
    "pixels-forest": _forest,
    "pixels-spreading": _spreading,
    "gradients-svm": partial(_svm, gradients_and_colors),
}


# ----------------------------------------------------------------------------------- on features
class Frozen(NamedTuple):
    """The pretrained network of a row on features.

    Attributes:
        source: its artifact folder.
        meta: what that says.
        from_layer: how many layers of its projection head stay below the row.
    """

    source: Path
    meta: Meta
    from_layer: int

    @classmethod
    def of(cls, config: Config, method: str, splits: Splits, labels: Labels) -> "Frozen":
        """That of a row under this configuration; UserError where it is made for other images."""
        own_input = METHODS[method].own_input
        init = config.classical.published if own_input else config.classical.init
        source = Path(init) if init else config.folder_of("pretrain")
        meta = read_meta(source, "encoder")
        if not own_input:
            require_same_input(meta, config.data, source)
        layers = 0 if own_input else meta["head"]["layers"]
        kept = config.classical.kept_layers(len(labels.ids), len(splits.train), layers)
        return cls(source, meta, kept)

    def settings(self, method: str, accelerator: Accelerator) -> dict[str, Any]:
        """What a row depends on because of it."""
        return {
            "parent": self.meta["weights_sha256"],
            "precision": accelerator.mixed_precision,
            **({} if METHODS[method].own_input else {"classical.from_layer": self.from_layer}),
        }

    def look(
        self,
        config: Config,
        splits: Splits,
        labels: Labels,
        accelerator: Accelerator,
        others: int = 0,
    ) -> tuple[Classifier, np.ndarray, np.ndarray]:
        """The network without gradient, and what it makes of the images that the row sees.

        ``others``: how many images without a label to add, at most, drawn by lot.

        Returns:
            The classifier with a linear layer of zeros, features (k, F), targets (k,) int64 with -1
            for the others; at most ``FEATURE_LABELS`` are labeled.
        """
        pretrained, classes = load_contrastive(self.source)[0], len(splits.train.classes)
        model = keep_layers(pretrained, self.from_layer, classes).requires_grad_(False)
        to_device(model, config, accelerator).eval()
        kept = labels.ids[by_lot(labels.targets, FEATURE_LABELS, config.seed)]
        lot = unlabeled_by_lot(splits, labels, others, config.seed)
        ids = np.sort(np.concatenate([kept, lot]))
        rows, positions = outputs_of(
            model.features, splits.train, ids, config.data, accelerator, "features"
        )
        known = np.full(len(splits.train), UNLABELED)
        known[labels.ids] = labels.targets
        return model, rows, known[positions]


def _frozen_and_folder(
    config: Config,
    accelerator: Accelerator,
    method: str,
    splits: Splits,
    labels: Labels,
    settings: dict[str, Any],
) -> tuple[Frozen, StageFolder]:
    """The network that a row stands on, and the folder of what is made with it."""
    frozen = Frozen.of(config, method, splits, labels)
    settings = settings | frozen.settings(method, accelerator)
    return frozen, _folder(config, accelerator, method, settings, splits.train)


def _on_features(
    config: Config,
    accelerator: Accelerator,
    method: str,
    splits: Splits,
    labels: Labels,
    settings: dict[str, Any],
) -> Path:
    """Fit the linear layer of a classifier whose encoder stays as it is."""
    others = 0
    if not METHODS[method].own_input:
        settings = settings | {"classical.self_training": config.classical.self_training}
        others = FEATURE_OTHERS if config.classical.self_training else 0
    frozen, folder = _frozen_and_folder(config, accelerator, method, splits, labels, settings)
    if folder.done:
        return folder.path
    began = Clocks.now()
    if METHODS[method].own_input:
        config = replace(config, data=input_of(frozen.meta, config.data))
        splits = open_beside(config.data, config.label_set)  # without the small copies
    model, rows, targets = frozen.look(config, splits, labels, accelerator, others)
    fitted = set_linear_layer(model, rows, targets, config.seed)
    if fitted.self_labeled is not None:
        without = int((targets == UNLABELED).sum())
        accelerator.print(
            f"{method}: self-training took {fitted.self_labeled:,} of"
            f" {counted(without, 'image')} without a label"
        )
    predictions = None
    if splits.test is not None:
        predictions = predict(model, splits.test, config.data, accelerator)
    classifier: ClassifierNetwork = {
        **network_of(frozen.meta, config.data),
        "classes": list(splits.train.classes),
        "from_layer": frozen.from_layer,
    }
    known, times = labels_meta(config, labels), began.passed()
    size, metrics = sum(p.numel() for p in model.parameters()), measured(predictions)
    about = {
        "kind": "classifier",
        **classifier,
        "labels": known,
        "hyper": fitted.hyper,
        "validation": fitted.validation,
        "self_labeled": fitted.self_labeled,
        "result": result_of(config, method, known, size, times["seconds"], metrics),
        "stage": method,
        "seed": config.seed,
        **times,
    }
    return finish(folder, model, about, [frozen.source], predictions)


def _neighbours(
    config: Config,
    accelerator: Accelerator,
    method: str,
    splits: Splits,
    labels: Labels,
    settings: dict[str, Any],
) -> Path:
    """Let the nearest labeled images vote on each test image, and save the votes."""
    frozen, folder = _frozen_and_folder(config, accelerator, method, splits, labels, settings)
    if folder.done:
        return folder.path
    began = Clocks.now()
    model, rows, targets = frozen.look(config, splits, labels, accelerator)
    assert splits.test is not None
    tested = np.flatnonzero(splits.test.labels != UNLABELED)
    seen, positions = outputs_of(
        model.features, splits.test, tested, config.data, accelerator, "features"
    )
    shares = shares_of_votes(
        *map(torch.from_numpy, (seen, rows, targets)), classes=len(splits.train.classes)
    )
    hyper = {"neighbours": min(VOTERS, len(rows)), "temperature": TEMPERATURE}
    network = sum(p.numel() for p in (*model.encoder.parameters(), *model.layers.parameters()))
    logits = shares.clamp(min=1e-12).log().numpy()
    row = Row(Fit(None, hyper, None), logits, network + rows.size)
    return _finish_unsaved(
        folder, config, method, splits, labels, row, positions, began, [frozen.source]
    )


def set_linear_layer(model: Classifier, rows: np.ndarray, targets: np.ndarray, seed: int) -> Fit:
    """Fit logistic regression to features (k, F) of classes (k,), and put it into the model.

    Classes are -1 where unknown: the images that self-training adds.

    The scale of the features moves into the weights: w (x - m) / s + b = (w / s) x + b - w m / s. A
    class without a label gets a probability of about 1e-12.
    """
    mean, spread = scale_of(rows)
    fitted = fit_logistic_regression((rows - mean) / spread, targets, seed)
    weights, bias = fitted.model.coef_ / spread, fitted.model.intercept_
    bias = bias - weights @ mean
    if len(weights) == 1:  # of two classes: the log odds of the second
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    linear = model.linear
    linear.weight.zero_()
    linear.bias.fill_(np.log(1e-12))
    seen = torch.from_numpy(fitted.model.classes_).to(linear.bias.device)
    linear.weight[seen] = torch.from_numpy(weights).to(linear.weight)
    linear.bias[seen] = torch.from_numpy(bias).to(linear.bias)
    return fitted


def run_all(config: Config, accelerator: Accelerator) -> None:
    """Fit all rows; those on features where there is a pretrained network."""
    pretrained = config.classical.init or (config.folder_of("pretrain") / "meta.json").exists()
    for method in made_by("classical"):
        if METHODS[method].asked_by != "classical.enabled" and not config.asks_for(method):
            continue
        if METHODS[method].made_from and not pretrained:
            accelerator.print(f"{method}: left out, because this run has no pretrained network yet")
        else:
            run(config, accelerator, method)


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Run this stage alone."""
    purpose = (
        "Rows to compare with, from scikit-learn; writes <output>/<run>/<method>-<labels>-seed<n>."
    )
    config, _ = load_config(argv, "stages.classical", purpose, ("classical",))
    return run_command(run_all, config)


if __name__ == "__main__":
    sys.exit(main())
