"""Probes of frozen features, with scikit-learn: standardised logistic regression, and nearest neighbours."""

import warnings

import numpy as np


def draw(labels: np.ndarray, per_class: int | None, seed: int) -> np.ndarray:
    """Row numbers of `per_class` random samples of each class (None: of all)."""
    random = np.random.RandomState(seed)
    if per_class is None:
        return np.arange(len(labels))
    return np.concatenate([random.permutation(np.flatnonzero(labels == c))[:per_class] for c in np.unique(labels)])


def linear(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> float:
    """Accuracy in per cent of a logistic regression on standardised features.

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
        return 100 * model.fit(x, y).score(test_x, test_y)


def neighbours(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, k: int = 20) -> float:
    """Accuracy in per cent of the k nearest neighbours by cosine, weighted by distance."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(min(k, len(x)), metric="cosine", weights="distance")
    return 100 * model.fit(x, y).score(test_x, test_y)


PROBES = {"linear": linear, "knn": neighbours}


def over_draws(probe, x, y, test_x, test_y, per_class: int | None, draws: int) -> tuple[float, float]:
    """Mean and deviation of a probe over label draws."""
    scores = []
    for seed in range(draws):
        index = draw(y, per_class, seed)
        scores.append(probe(x[index], y[index], test_x, test_y))
    return float(np.mean(scores)), float(np.std(scores))


def plain_features(rows) -> np.ndarray:
    """What the data gives without any encoder: `[n, values]` of the modality's evaluation view."""
    import torch

    from modalities import EVALUATION
    from training.loader import Samples

    samples = Samples(rows.table, rows.column, rows.modality, (EVALUATION,), 0, len(rows))
    parts = []
    for at in range(0, len(rows), 250):
        made = samples.__getitems__([(0, i) for i in range(at, min(at + 250, len(rows)))])
        view = rows.modality.prepare(made["views"][0])
        parts.append(torch.as_tensor(view.data).flatten(1).float().numpy())
    return np.concatenate(parts)
