"""Measures of a probe's output, as values whose mean is the measure and whose scatter says its error.

So another encoder's output on the same rows can be paired with it, and rows of one patient can count as one. Accuracy
is a mean over rows as it is. Recall, F1, AUROC and R² become such means by their influence functions (of AUROC: DeLong,
DeLong and Clarke-Pearson 1988): each row's value is the measure and what the row moves it by. Average precision
and Spearman's correlation are recomputed without each of 20 blocks of rows (the jackknife).

Of a class or a label with fewer than 5 rows to judge nothing can be said: macro measures leave it out.
"""

from typing import Protocol

import numpy as np
from jaxtyping import Float, Shaped
from scipy.stats import rankdata

BLOCKS = 20
LEAST = 5
WORDS = {  # as people write them
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "mean_average_precision": "mAP",
    "r2": "R²",
    "spearman": "Spearman",
}


class Measure(Protocol):
    """Output `[n k]` and labels `[n ...]` -> values `[n m]` by row or `[m]`, of classes or labels with `least` rows."""

    def __call__(self, output: np.ndarray, y: np.ndarray, least: int = ...) -> np.ndarray: ...


def hits(output, y, least=LEAST) -> Float[np.ndarray, "n 1"]:
    """1 where the class with the highest score is right."""
    return (output.argmax(1) == y)[:, None].astype(float)


def judged(y, least: int) -> np.ndarray:
    """The classes with so many rows; none where there is only one of them."""
    classes, count = np.unique(y, return_counts=True)
    found = classes[count >= least]
    return found if len(found) > 1 else found[:0]


def recalls(output, y, least=LEAST) -> Float[np.ndarray, "n m"]:
    """Of each class that is judged, the part of its rows that is found; their mean is balanced accuracy."""
    true = y[:, None] == judged(y, least)
    right = true & hits(output, y).astype(bool)
    recall = right.sum(0) / true.sum(0)
    return recall + true * (right - recall) / true.mean(0)


def f1_scores(output, y, least=LEAST) -> Float[np.ndarray, "n m"]:
    """Of each class that is judged, 2 × right / (rows of it + rows said to be of it)."""
    there = judged(y, least)
    true, said = (values[:, None] == there for values in (y, output.argmax(1)))
    both, share = true & said, true.mean(0) + said.mean(0)
    f1 = 2 * both.mean(0) / share
    return f1 + (2 * both - f1 * (true.astype(float) + said)) / share


def class_areas(output, y, least=LEAST) -> Float[np.ndarray, "n m"]:
    """AUROC of each class that is judged, against the rest."""
    there = judged(y, least)
    return areas(output[:, there], y[:, None] == there, least)


def areas(output, y, least=LEAST) -> Float[np.ndarray, "n m"]:
    """AUROC of each label: the part of pairs, of a row with it and one without, that its score puts right; ties half.

    A row's value is its own part of the pairs. NaN of a label that fewer than `least` rows have, or lack.
    """
    made = np.full(output.shape, np.nan)
    for label, (score, true) in enumerate(zip(output.T, (y > 0).T, strict=True)):
        positive, negative = true.sum(), (~true).sum()
        if min(positive, negative) < least:
            continue
        rank, own = rankdata(score), np.empty(len(score))
        own[true], own[~true] = rankdata(score[true]), rankdata(score[~true])
        part = np.where(true, (rank - own) / negative, 1 - (rank - own) / positive)
        area = part[true].mean()
        made[:, label] = area + (part - area) / np.where(true, true.mean(), (~true).mean())
    return made


def precisions(output, y, least=LEAST) -> Float[np.ndarray, " m"]:
    """Average precision of each label. NaN of a label that fewer than `least` rows have, or lack."""
    from sklearn.metrics import average_precision_score

    known = np.minimum(y.sum(0), (1 - y).sum(0)) >= least
    return np.array([average_precision_score(y[:, i], output[:, i]) if known[i] else np.nan for i in range(y.shape[1])])


def explained(output, y, least=LEAST) -> Float[np.ndarray, "n 1"]:
    """R²: the part of the variance of the rows that is explained. Below 0 it is worse than their mean."""
    error, spread = np.square(y - output[:, 0]), np.square(y - y.mean())
    variance = spread.mean() or np.nan
    return (1 - error / variance + error.mean() / variance * (spread / variance - 1))[:, None]


def rank_correlation(output, y, least=LEAST) -> Float[np.ndarray, " 1"]:
    return spearman(output[:, 0], y)[None]


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the ranks on the last axis, ties at their mean; 0 where all of one are alike."""
    a, b = (rankdata(v, axis=-1) - (v.shape[-1] + 1) / 2 for v in (x, y))
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return (a * b).sum(-1) / np.where(size > 0, size, 1.0)


def joined(values: Float[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " g"]:
    """Values of rows -> of groups, with the same mean, and with the scatter of sums over a group (cluster-robust)."""
    index = np.unique(groups, return_inverse=True)[1]
    mean, count = values.mean(), index.max() + 1
    return mean + count / len(values) * np.bincount(index, values - mean)


def jackknife(measure: Measure, output, y, groups=None) -> Float[np.ndarray, " b"]:
    """A value for each of 20 blocks of rows, or of groups: what the measure loses without it.

    A label that nothing can be said of without a block is as it is with it. None at all, where there is no other.
    """
    whole = measure(output, y)
    index = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = index.max() + 1
    block = np.random.RandomState(0).permutation(count)[index] % BLOCKS
    left = [measure(output[block != b], y[block != b], 1) for b in range(min(BLOCKS, count))]
    left = np.where(np.isnan(left), whole, left)
    known = ~np.isnan(whole)
    if not known.any():
        return np.empty(0)
    left = left[:, known].mean(1)
    return whole[known].mean() + (len(left) - 1) * (left.mean() - left)
