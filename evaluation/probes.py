"""Probes of frozen features, with scikit-learn: standardised logistic regression, and nearest neighbours.

A probe says which test rows it gets right. Two encoders are compared on the same rows, with the same draws of labels.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np


def draw(labels: np.ndarray, per_class: int | None, seed: int) -> np.ndarray:
    """Row numbers of `per_class` random samples of each class (None: of all)."""
    random = np.random.RandomState(seed)
    if per_class is None:
        return np.arange(len(labels))
    return np.concatenate([random.permutation(np.flatnonzero(labels == c))[:per_class] for c in np.unique(labels)])


def linear(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> np.ndarray:
    """Test rows that a logistic regression on standardised features gets right.

    scikit-learn's defaults: C = 1 and at most 100 iterations. Untrained features are ill-conditioned: 500 iterations
    give them about 2 points more, and trained features less than one.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y).predict(test_x) == test_y


def neighbours(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, k: int = 20) -> np.ndarray:
    """Test rows that the k nearest neighbours by cosine, weighted by distance, get right."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(min(k, len(x)), metric="cosine", weights="distance")
    return model.fit(x, y).predict(test_x) == test_y


PROBES = {"linear": linear, "knn": neighbours}


def over_draws(probe, x, y, test_x, test_y, per_class: int | None, draws: int) -> np.ndarray:
    """Hits `[draws n]` of a probe on n test rows: True where it is right. The same draws for the same labels."""
    index = [draw(y, per_class, seed) for seed in range(draws)]
    return np.stack([probe(x[i], y[i], test_x, test_y) for i in index])


class Score(NamedTuple):
    """An accuracy or a difference of two, in per cent.

    `deviation` is that over draws of labels (None: there was one draw). `error` is the standard error of the mean, of
    the draws and of the test rows together: another draw and other rows of the same kind would be about so far off.
    """

    mean: float
    deviation: float | None
    error: float

    @property
    def sure(self) -> bool:
        """True where the mean is more than two standard errors above 0."""
        return self.mean > 2 * self.error


def score(hits: np.ndarray, other: np.ndarray | None = None) -> Score:
    """The accuracy, or by how much it is above that of `other` hits on the same rows, with the same draws (paired)."""
    values = 100 * hits.astype(float)
    if other is not None:
        values = values - 100 * other.astype(float)
    draws, rows = values.mean(1), values.mean(0)
    deviation = float(draws.std(ddof=1)) if len(draws) > 1 else None
    variance = rows.var(ddof=1) / len(rows) if len(rows) > 1 else 0.0
    if deviation is not None:
        variance += deviation**2 / len(draws)
    return Score(float(values.mean()), deviation, math.sqrt(variance))


def plain_features(rows) -> np.ndarray:
    """What the data gives without any encoder: `[n, values]` of the modality's evaluation view."""
    import torch

    from triptych.modalities import EVALUATION
    from triptych.training.loader import Samples

    samples = Samples(rows.table, rows.column, rows.modality, (EVALUATION,), 0, len(rows))
    parts = []
    for at in range(0, len(rows), 250):
        made = samples.__getitems__([(0, i) for i in range(at, min(at + 250, len(rows)))])
        view = rows.modality.prepare(made["views"][0])
        parts.append(torch.as_tensor(view.data).flatten(1).float().numpy())
    return np.concatenate(parts)
