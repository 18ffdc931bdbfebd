"""How good features are: linear evaluation, neighbours, clusters, maps, classical baselines.

Pure functions of arrays, most of them a few lines around scikit-learn, and ``over_images``, which
makes the arrays. Features are (n, F) float32, classes (n,) int64 with -1 where unknown. Test labels
are used for scores only: every choice is made on labeled training images.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from scipy.optimize import linear_sum_assignment
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_auc_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from sklearn.svm import SVC
from torch import Tensor

from shared.config.schema import Data
from shared.data.batches import plain_batches
from shared.data.images import UNLABELED, ImageSet
from shared.runs.assessment import Baseline, Choice, ClusterQuality, Metrics
from shared.runtime.progress import Progress
from shared.training.evaluate import classification_metrics

PIXEL_SIDE = 32  # larger images are shrunk to this side where pixels are the features
HOLD_OUT = 1000  # from so many labels on, one part is held out instead of five in turn
# Images that the slower methods see, at most; the rows of the methods say how many they saw.
SPREADING_IMAGES, SVM_IMAGES, CLUSTER_IMAGES = 5_000, 10_000, 10_000
REGULARISATION = tuple(10.0**power for power in range(-4, 3))  # C of logistic regression


# ---------------------------------------------------------------------------------- images to rows
@torch.inference_mode()
def over_images(
    function: Callable[[Tensor, int], Tensor],
    images: ImageSet,
    ids: np.ndarray,
    data: Data,
    accelerator: Accelerator,
    batch_size: int = 256,
    title: str = "images",
) -> tuple[np.ndarray, np.ndarray]:
    """Apply a function to every image as evaluation shows it, divided among the processes.

    Args:
        function: a normalised batch (b, 3, S, S) and its number -> (b, F). Batch k holds the ids
            k * batch_size and following, however many processes there are: random numbers may
            depend on k.
        images: the image set.
        ids: positions in it, ascending.
        data: image size, normalisation, workers.
        accelerator: of this process.
        batch_size: images per call.
        title: of the progress.

    Returns:
        Rows (n, F) float32 and their positions (n,), ascending, on every process. Where
        ``on_error`` is skip, unreadable images are left out.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    numbers = range(-(-len(ids) // batch_size))[rank::world]
    mine = [ids[number * batch_size : (number + 1) * batch_size] for number in numbers]
    rows, positions = [], [torch.zeros(0, dtype=torch.int64)]
    batches = plain_batches(
        images, np.concatenate([*mine, ids[:0]]), data, batch_size, accelerator.device
    )
    with Progress(title, len(numbers), "batches", shown=accelerator.is_main_process) as bar:
        for number, (batch, of_batch) in zip(numbers, batches, strict=True):
            rows.append(function(batch, number).float())
            positions.append(of_batch)
            bar.update()
    if world == 1:
        return torch.cat(rows).cpu().numpy(), torch.cat(positions).numpy()
    if not rows:  # fewer batches than processes: the width is that of one image
        batch, _ = next(plain_batches(images, ids[:1], data, 1, accelerator.device))
        rows.append(function(batch, 0).float()[:0])
    # processes may hold different numbers of images: pad with rows marked -1
    padded = accelerator.pad_across_processes(
        (torch.cat(rows), torch.cat(positions).to(accelerator.device)), dim=0, pad_index=-1
    )
    all_rows, all_positions = (part.cpu().numpy() for part in accelerator.gather(padded))
    order = np.argsort(all_positions)[(all_positions < 0).sum() :]
    return all_rows[order], all_positions[order]


def as_pixels(images: Tensor) -> Tensor:
    """Images (B, 3, S, S) as rows (B, D), shrunk to ``PIXEL_SIDE`` where they are larger."""
    if images.shape[-1] > PIXEL_SIDE:
        images = F.interpolate(images, size=PIXEL_SIDE, mode="area")
    return images.flatten(1)


def scaled(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Subtract the mean of the training rows and divide all by one number: mean variance 1.

    One number for all features keeps the meaning of distances, and a pixel that is rarely set does
    not grow. The kernels and C below are meant for rows on this scale.
    """
    mean = train.mean(0)
    spread = np.sqrt(train.var(0).mean()) or 1
    return [(rows - mean) / spread for rows in (train, *others)]


# ---------------------------------------------------------------------------------- classifiers
@dataclass(frozen=True)
class Fit:
    """A classifier of scikit-learn, and how its hyper-parameters were found.

    Attributes:
        model: fitted on all rows.
        hyper: the hyper-parameters.
        validation: accuracy on the labeled training images that were held out. None: there were
            too few to hold any out, and the hyper-parameters are the defaults.
    """

    model: Any
    hyper: dict[str, Any]
    validation: float | None

    def choice(self) -> Choice:
        """Everything but the model."""
        chosen_by = "default" if self.validation is None else "validation"
        return {"hyper": self.hyper, "chosen_by": chosen_by, "validation": self.validation}


def fit(
    estimator: BaseEstimator,
    param_grid: list[dict[str, list]],
    rows: np.ndarray,
    targets: np.ndarray,
    seed: int,
) -> Fit:
    """Fit with hyper-parameters chosen on held-out parts of the labeled images.

    Up to five stratified parts are held out in turn; from ``HOLD_OUT`` labels on, only the first.
    The best values have the highest accuracy there. Many logistic regressions often share it; of
    them the best has the highest likelihood. A semi-supervised estimator sees the unlabeled images
    each time. Where some class has a single label, nothing is held out, and the estimator keeps its
    own values.

    Args:
        estimator: with its defaults.
        param_grid: the values to choose from, as ``GridSearchCV`` takes them.
        rows: (n, F).
        targets: (n,) with -1 for unlabeled rows.
        seed: of the parts.
    """
    labeled, rest = np.flatnonzero(targets != UNLABELED), np.flatnonzero(targets == UNLABELED)
    fewest = np.unique(targets[labeled], return_counts=True)[1].min()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the best one has converged
        warnings.filterwarnings("ignore", "invalid value", RuntimeWarning)  # LabelSpreading: 0 / 0
        if fewest < 2:
            names = sorted({name for part in param_grid for name in part})
            hyper = {name: estimator.get_params()[name] for name in names}
            return Fit(cast(Any, estimator).fit(rows, targets), _short(hyper), None)
        parts = StratifiedKFold(int(min(5, fewest)), shuffle=True, random_state=seed)
        splits = [
            (np.concatenate([labeled[kept], rest]), labeled[held])
            for kept, held in parts.split(labeled, targets[labeled])
        ]
        best_by = _log_likelihood if isinstance(estimator, LogisticRegression) else "accuracy"
        search = GridSearchCV(
            estimator,
            param_grid,
            scoring={"accuracy": "accuracy", "best": best_by},
            refit="best",  # type: ignore[arg-type]
            cv=splits[:1] if len(labeled) >= HOLD_OUT else splits,
        ).fit(rows, targets)
    accuracy = search.cv_results_["mean_test_accuracy"][search.best_index_]
    return Fit(search.best_estimator_, _short(search.best_params_), float(accuracy))


def _log_likelihood(model: Any, rows: np.ndarray, targets: np.ndarray) -> float:
    classes = max(model.classes_.max(), targets.max()) + 1
    return _log_probabilities(model, rows, classes)[np.arange(len(rows)), targets].mean()


def _log_probabilities(model: Any, rows: np.ndarray, classes: int) -> np.ndarray:
    """(n, classes); 1e-12 for unseen classes, and for rows that label spreading cannot reach."""
    logits = np.full((len(rows), classes), np.log(1e-12))
    logits[:, model.classes_] = np.log(np.nan_to_num(model.predict_proba(rows)).clip(1e-12))
    return logits


def _short(hyper: dict[str, Any]) -> dict[str, Any]:
    return {name.rpartition("__")[2]: value for name, value in hyper.items()}


def fit_logistic_regression(rows: np.ndarray, targets: np.ndarray, seed: int) -> Fit:
    """Multinomial logistic regression, C from ``REGULARISATION`` (10 by default)."""
    return fit(
        LogisticRegression(C=10, max_iter=500), [{"C": list(REGULARISATION)}], rows, targets, seed
    )


def scores(model: Any, rows: np.ndarray, targets: np.ndarray, classes: int) -> Metrics:
    """Metrics of a classifier with probabilities, as ``shared.training.evaluate`` defines them.

    Args:
        model: fitted; classes that it has not seen get a probability of 1e-12.
        rows: (n, F).
        targets: (n,).
        classes: number of classes.
    """
    logits = torch.from_numpy(_log_probabilities(model, rows, classes))
    return metrics_of(logits, torch.from_numpy(targets))


def metrics_of(logits: torch.Tensor, targets: torch.Tensor) -> Metrics:
    """``classification_metrics``, as ``assess.json`` holds them."""
    return cast(Metrics, classification_metrics(logits, targets))


def classical_baselines(
    train: np.ndarray, known: np.ndarray, test: np.ndarray, targets: np.ndarray, seed: int
) -> list[Baseline]:
    """What scikit-learn makes of the same labels, supervised and semi-supervised.

    Logistic regression; a support vector machine with an RBF kernel; self-training, which adds to
    the labels of a logistic regression what it is sure of (Yarowsky 1995); label spreading over the
    graph of all images (Zhou et al. 2004; alpha 0.99 is theirs). The other defaults, for labels too
    few to choose by, did best on training images of the digits whose labels were hidden.

    Args:
        train: (n, F), ``scaled``.
        known: (n,) their classes where training may see them, else -1.
        test: (m, F), scaled with the same mean and factor.
        targets: (m,) their classes, for the scores.
        seed: of the lot that leaves images out where there are too many.

    Returns:
        One row for each method. Where every image is labeled, the two semi-supervised methods have
        no row.
    """
    rows: list[Baseline] = []
    for name, estimator, param_grid, at_most, semi_supervised in _methods(train):
        labeled, rest = np.flatnonzero(known != UNLABELED), np.flatnonzero(known == UNLABELED)
        if semi_supervised and not len(rest):
            continue
        rng = np.random.default_rng(seed)
        seen = np.concatenate([rng.permutation(labeled), rng.permutation(rest)])[:at_most]
        seen = seen if semi_supervised else seen[known[seen] != UNLABELED]
        fitted = fit(estimator, param_grid, train[seen], known[seen], seed)
        right = fitted.model.predict(test) == targets
        n_labels = int((known[seen] != UNLABELED).sum())
        rows.append(
            {
                "method": name,
                "top1": float(right.mean()),
                "n_labels": n_labels,
                "n_unlabeled": len(seen) - n_labels,
                **fitted.choice(),
            }
        )
    return rows


def _methods(
    train: np.ndarray,
) -> list[tuple[str, BaseEstimator, list[dict[str, list]], int, bool]]:
    """Of each method: name, estimator, hyper-parameters to try, and what it learns from.

    The last two are the most images that it may see, and whether it is semi-supervised.
    """
    unit = 1 / train.shape[1]  # squared distances grow with the number of features
    regression = LogisticRegression(C=10, max_iter=500)
    return [
        ("logistic regression", regression, [{"C": list(REGULARISATION)}], len(train), False),
        (
            "support vector machine",
            SVC(C=10, gamma=0.3 * unit),
            [{"C": [1.0, 10.0, 100.0], "gamma": [0.3 * unit, unit]}],
            SVM_IMAGES,
            False,
        ),
        (
            "self-training",
            SelfTrainingClassifier(regression, threshold=0.9),
            [{"estimator__C": [0.1, 1.0, 10.0], "threshold": [0.75, 0.9]}],
            SPREADING_IMAGES,
            True,
        ),
        (
            "label spreading",
            LabelSpreading("rbf", gamma=30 * unit, alpha=0.99, max_iter=100),
            [
                {"kernel": ["rbf"], "gamma": [10 * unit, 30 * unit], "alpha": [0.2, 0.99]},
                {"kernel": ["knn"], "n_neighbors": [7, 20], "alpha": [0.2, 0.99]},
            ],
            SPREADING_IMAGES,
            True,
        ),
    ]


# ---------------------------------------------------------------------------------- geometry
def nearest(keys: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k keys most similar to each query, by cosine: indices and similarities, (q, k) each."""
    index = NearestNeighbors(n_neighbors=min(k, len(keys)), metric="cosine", algorithm="brute")
    distances, indices = index.fit(keys).kneighbors(queries)
    return indices, 1 - distances


def vote(similarity: np.ndarray, classes: np.ndarray, temperature: float = 0.07) -> np.ndarray:
    """Classes (q,) that the neighbours vote for, each with weight exp(similarity / temperature).

    Wu et al. 2018 (arXiv 1805.01978), section 3.4, with their temperature.

    Args:
        similarity: (q, k).
        classes: (q, k) of the neighbours.
        temperature: of the weights.
    """
    weights = np.exp((similarity - similarity.max(1, keepdims=True)) / temperature)
    ballot = np.zeros((len(classes), classes.max() + 1))
    np.add.at(ballot, (np.arange(len(classes))[:, None], classes), weights)
    return ballot.argmax(1)


def cluster_quality(
    train: np.ndarray, test: np.ndarray, targets: np.ndarray, k: int, seed: int
) -> ClusterQuality:
    """How well k-means clusters of the training rows agree with the classes of the test rows.

    All rows are scaled to unit length first.

    Args:
        train: (n, F), to find the clusters.
        test: (m, F), assigned to them.
        targets: (m,).
        k: clusters.
        seed: of the ten starts, the best of which counts.
    """
    train, test = (F.normalize(torch.from_numpy(rows)).numpy() for rows in (train, test))
    means = KMeans(min(k, len(train)), n_init=10, random_state=seed)  # type: ignore[arg-type]
    clusters = means.fit(train).predict(test)
    counts = contingency_matrix(targets, clusters)  # (classes, clusters)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return {
        "nmi": float(normalized_mutual_info_score(targets, clusters)),
        "ari": float(adjusted_rand_score(targets, clusters)),
        "accuracy": float(matched / len(targets)),
    }


def tsne(rows: np.ndarray, seed: int, metric: str = "cosine") -> np.ndarray:
    """Points (n, 2) on a map that keeps neighbours together (van der Maaten & Hinton 2008)."""
    perplexity = min(30, (len(rows) - 1) / 3)
    return TSNE(perplexity=perplexity, metric=metric, random_state=seed).fit_transform(rows)


def umap(rows: np.ndarray, seed: int) -> np.ndarray | None:
    """The same by UMAP (McInnes et al. 2018); None without the package umap-learn."""
    if find_spec("umap") is None:
        return None
    model = import_module("umap").UMAP(metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(model.fit_transform(rows))


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Chance that an image of the test set gets the higher score of the two; 0.5 is guessing."""
    known = np.repeat([1, 0], [len(inside), len(outside)])
    return float(roc_auc_score(known, np.concatenate([inside, outside])))
