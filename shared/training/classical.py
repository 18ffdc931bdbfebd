"""Classifiers of scikit-learn on rows of numbers: pixels, or the features of a network.

Rows are (n, F) float32, classes (n,) int64 with -1 where unknown. Every choice is made on labeled
training images.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch.nn.functional as F
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.semi_supervised import SelfTrainingClassifier
from torch import Tensor

from shared.data.images import UNLABELED

PIXEL_SIDE = 32  # larger images are shrunk to this side where pixels are the features
HOLD_OUT = 1000  # from so many labels on, one part is held out instead of five in turn
REGULARISATION = tuple(10.0**power for power in range(-4, 3))  # C of logistic regression


def as_pixels(images: Tensor) -> Tensor:
    """Images (B, 3, S, S) as rows (B, D), shrunk to ``PIXEL_SIDE`` where they are larger."""
    if images.shape[-1] > PIXEL_SIDE:
        images = F.interpolate(images, size=PIXEL_SIDE, mode="area")
    return images.flatten(1)


def scale_of(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean (F,) of rows (n, F), and the number that divides them to a mean variance of 1.

    One number for all features keeps the meaning of distances, and a pixel that is rarely set does
    not grow. The kernels and C below are meant for rows on this scale.
    """
    return rows.mean(0), float(np.sqrt(rows.var(0).mean())) or 1.0


def scaled(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Subtract the mean of the training rows from all, and divide by their ``scale_of``."""
    mean, spread = scale_of(train)
    return [(rows - mean) / spread for rows in (train, *others)]


@dataclass(frozen=True)
class Fit:
    """A classifier of scikit-learn, and how its hyper-parameters were found.

    Attributes:
        model: fitted on all rows.
        hyper: the hyper-parameters.
        validation: accuracy on the labeled training images that were held out. None: there were
            too few to hold any out, and the hyper-parameters are the defaults.
        self_labeled: how many rows without a label took part in self-training; None: it was none.
    """

    model: Any
    hyper: dict[str, Any]
    validation: float | None
    self_labeled: int | None = None


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
    each time. Where some class has a single label, or there is nothing to choose from, nothing is
    held out, and the estimator keeps its own values.

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
        # many classes and few labels are no regression; a forest would say so for each tree
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        if fewest < 2 or not param_grid:
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
    return log_probabilities(model, rows, classes)[np.arange(len(rows)), targets].mean()


def log_probabilities(model: Any, rows: np.ndarray, classes: int) -> np.ndarray:
    """Logarithms of a fitted classifier's probabilities for rows (n, F): (n, classes) float64.

    1e-12 for classes that it has not seen, and for rows that label spreading cannot reach.
    """
    logits = np.full((len(rows), classes), np.log(1e-12))
    logits[:, model.classes_] = np.log(np.nan_to_num(model.predict_proba(rows)).clip(1e-12))
    return logits


def _short(hyper: dict[str, Any]) -> dict[str, Any]:
    return {name.rpartition("__")[2]: value for name, value in hyper.items()}


def fit_logistic_regression(rows: np.ndarray, targets: np.ndarray, seed: int) -> Fit:
    """Multinomial logistic regression; where rows have no label (-1), by self-training.

    Then it is fitted again and again, each time with the classes of further rows of which it was
    sure (Yarowsky 1995). The model is the last one. Of equally good values the first are taken.
    """
    if (targets != UNLABELED).all():
        return fit(*regression(), rows, targets, seed)
    fitted = fit(*self_training(), rows, targets, seed)
    joined = int((fitted.model.labeled_iter_ > 0).sum())
    return replace(fitted, model=fitted.model.estimator_, self_labeled=joined)


def regression() -> tuple[LogisticRegression, list[dict[str, list]]]:
    """Logistic regression, and the hyper-parameters to choose from."""
    return LogisticRegression(C=10, max_iter=500), [{"C": list(REGULARISATION)}]


def self_training() -> tuple[SelfTrainingClassifier, list[dict[str, list]]]:
    """Self-training by that regression, and the hyper-parameters to choose from."""
    grid = {"estimator__C": [0.1, 1.0, 10.0], "threshold": [0.75, 0.9]}
    return SelfTrainingClassifier(regression()[0], threshold=0.9), [grid]
