"""A survey: what some rows of a data set measure, before anything is chosen for it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Survey:
    """What some rows of a data set measure.

    Args:
        rows: rows of the whole data set.
        native: what the samples are, in words.
        amount: how much an epoch is, in words; empty where the number of samples says it.
        measures: the modality's own figures, which its `sized` reads.
    """

    rows: int
    native: str
    amount: str
    measures: dict[str, float]


def spread(count: int, most: int) -> list[int]:
    """Up to `most` row numbers, evenly over all."""
    return np.linspace(0, count - 1, min(most, count)).astype(int).tolist()


FEW = 1000


def few(rows: int, samples: float) -> bool:
    """Whether little can be learned from them alone. Windows of one recording are alike: the geometric mean counts."""
    return rows * samples < FEW**2
