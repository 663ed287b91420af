"""Probes of frozen features: a linear one and nearest neighbours, over draws of labels, and what they are worth.

Two encoders are compared on the same rows, with the same draws of labels.
"""

import math
from typing import NamedTuple

import numpy as np

from triptych.evaluation.tasks import Classes, Task, draw

PROBES = ("linear", "knn")

__all__ = ["PROBES", "Score", "draw", "linear", "measured", "outputs", "over_draws", "score"]


def linear(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> np.ndarray:
    """Test rows that a logistic regression on standardised features gets right."""
    return Classes([]).fit("linear", x, y, test_x).argmax(1) == test_y


def over_draws(probe, x, y, test_x, test_y, per_class: int | None, draws: int) -> np.ndarray:
    """Hits `[draws n]` of a probe on n test rows: True where it is right. The same draws for the same labels."""
    index = [draw(y, per_class, seed) for seed in range(draws)]
    return np.stack([probe(x[i], y[i], test_x, test_y) for i in index])


def outputs(task: Task, kind: str, x, y, test_x, few: int | None, draws: int) -> list[np.ndarray]:
    """Outputs `[n k]` of a probe on n test rows, one a draw. The same draws for the same labels."""
    index = [task.draw(y, few, seed) for seed in range(draws)]
    return [task.fit(kind, x[i], y[i], test_x) for i in index]


def measured(task: Task, made: list[np.ndarray], y, groups=None, names: list[str] | None = None) -> dict:
    """By measure that can be taken of the rows, values `[draws u]` of outputs, whose mean is the measure."""
    names = task.measures if names is None else names
    found = {name: np.stack([task.values(name, output, y, groups) for output in made]) for name in names}
    return {name: values for name, values in found.items() if values.shape[1]}


class Score(NamedTuple):
    """A measure or a difference of two, in per cent.

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


def score(values: np.ndarray, other: np.ndarray | None = None) -> Score:
    """The mean of values, or by how much it is above that of `other` ones, of the same rows and draws (paired).

    Values are hits, or what a measure is made of (`Task.values`): each row's, group's or block's.
    """
    values = 100 * values.astype(float)
    if other is not None:
        values = values - 100 * other.astype(float)
    draws, rows = values.mean(1), values.mean(0)
    deviation = float(draws.std(ddof=1)) if len(draws) > 1 else None
    variance = rows.var(ddof=1) / len(rows) if len(rows) > 1 else math.inf  # of one group nobody knows another's
    if deviation is not None:
        variance += deviation**2 / len(draws)
    return Score(float(values.mean()), deviation, math.sqrt(variance))
