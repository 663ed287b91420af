"""Tasks: what a probe learns of labels, which are one of several classes, several labels a row, or a number.

A task has the models of its probes and its measures. Their values are in `measures.py`.
"""

import warnings
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import issparse

from triptych.evaluation import measures

NEIGHBOURS = 20


class Task:
    """What is learned of labels, and how that is measured.

    A probe's output is `[n k]`: a score of each class or label, or the number itself. `by_row` and `by_block` are the
    measures by name, by how they say their error; `decides` is the one that counts where one must.

    Args:
        names: of the classes or labels; of a number, of its column.
    """

    name: ClassVar[str]
    few: ClassVar[str]  # what is counted where labels are few
    none: ClassVar[str]  # what one answers without a look at the row
    decides: ClassVar[str]
    by_row: ClassVar[dict[str, measures.Measure]]
    by_block: ClassVar[dict[str, measures.Measure]] = {}

    def __init__(self, names: list[str]):
        self.names = names

    @property
    def measures(self) -> list[str]:
        """Names, the one that decides first."""
        return sorted([*self.by_row, *self.by_block], key=lambda name: name != self.decides)

    def draw(self, y: np.ndarray, few: int | None, seed: int) -> Int[np.ndarray, " d"]:
        """Numbers of rows to learn from: `few` of them at random, or all."""
        return np.arange(len(y)) if few is None else np.random.RandomState(seed).permutation(len(y))[:few]

    def fit(self, kind: str, x: np.ndarray, y: np.ndarray, test_x: np.ndarray) -> Float[np.ndarray, "n k"]:
        """Output of a probe: `linear`, on standardised features, or `knn`, the 20 nearest by cosine.

        `x` may be a sparse matrix, which is not standardised.
        """
        raise NotImplementedError

    def constant(self, y: np.ndarray) -> Float[np.ndarray, "n k"]:
        """The output that is best where no row is looked at."""
        raise NotImplementedError

    def values(self, measure: str, output: np.ndarray, y: np.ndarray, groups=None) -> Float[np.ndarray, " u"]:
        """Values whose mean is the measure (1 is perfect) and whose scatter says its error: of rows, groups or blocks.

        None at all, where no class or label has rows enough.
        `groups`: a number a row. Rows of one group count as one: what is right of one of them is so of the others.
        """
        if measure in self.by_row:
            values = self.by_row[measure](output, y)
            values = values[:, ~np.isnan(values).any(0)]
            if not values.shape[1]:
                return np.empty(0)
            values = values.mean(1)
            return values if groups is None else measures.joined(values, groups)
        return measures.jackknife(self.by_block[measure], output, y, groups)

    def parts(self, measure: str, output: np.ndarray, y: np.ndarray) -> Float[np.ndarray, " m"]:
        """A measure of each class or label by itself; NaN where there is nothing to say."""
        made = (self.by_row | self.by_block)[measure](output, y)
        return made.mean(0) if measure in self.by_row else made


class Classes(Task):
    """One of several classes a row, by number: logistic regression, and a vote of neighbours."""

    name, few, none, decides = "classes", "labels a class", "largest class", "accuracy"
    by_row = {
        "accuracy": measures.hits,
        "balanced_accuracy": measures.recalls,
        "macro_f1": measures.f1_scores,
        "auroc": measures.class_areas,
    }

    def draw(self, y, few, seed):
        """`few` random rows of each class, or all."""
        return draw(y, few, seed)

    def fit(self, kind, x, y, test_x):
        """Probabilities of classes; below 0 for a class that is not there to learn from.

        scikit-learn's defaults: C = 1 and at most 100 iterations. Untrained features are ill-conditioned: 500
        iterations give them about 2 points more, and trained features less than one.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier

        if kind == "linear":
            model = standardised(LogisticRegression(), x)
        else:
            model = KNeighborsClassifier(min(NEIGHBOURS, x.shape[0]), metric="cosine", weights="distance")
        found = quietly(model.fit, x, y)
        output = np.full((test_x.shape[0], max(len(self.names), int(found.classes_.max()) + 1)), -1.0)
        output[:, found.classes_] = found.predict_proba(test_x)
        return output

    def constant(self, y):
        return np.tile(np.bincount(y, minlength=len(self.names)).astype(float), (len(y), 1))


class Several(Task):
    """Any number of labels a row, as 0 and 1 in columns: logistic regressions, and the mean of neighbours."""

    name, few, none = "several", "labelled rows", "no look at the row"
    decides = "mean_average_precision"
    by_row = {"auroc": measures.areas}
    by_block = {"mean_average_precision": measures.precisions}

    def fit(self, kind, x, y, test_x):
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        if kind == "knn":
            return nearby(x, y, test_x)
        model = standardised(OneVsRestClassifier(LogisticRegression()), x)
        found = quietly(model.fit, x, y if y.shape[1] > 1 else y[:, 0])
        return found.decision_function(test_x).reshape(test_x.shape[0], -1)

    def constant(self, y):
        return np.tile(y.mean(0), (len(y), 1))


class Numbers(Task):
    """A number a row: ridge regression, its penalty found on the rows to learn from, and the mean of neighbours."""

    name, few, none, decides = "regression", "labelled rows", "the mean", "r2"
    by_row = {"r2": measures.explained}
    by_block = {"spearman": measures.rank_correlation}

    def fit(self, kind, x, y, test_x):
        from sklearn.linear_model import RidgeCV

        if kind == "knn":
            return nearby(x, y[:, None], test_x)
        # Of many rows of many words, scikit-learn's way without folds takes minutes.
        model = RidgeCV(np.logspace(-2, 5, 8), cv=5 if issparse(x) and x.shape[0] > 1000 else None)
        return quietly(standardised(model, x).fit, x, y).predict(test_x)[:, None]

    def constant(self, y):
        return np.full((len(y), 1), y.mean())


TASKS = {task.name: task for task in (Classes, Numbers, Several)}


def draw(labels: np.ndarray, per_class: int | None, seed: int) -> np.ndarray:
    """Row numbers of `per_class` random samples of each class (None: of all)."""
    random = np.random.RandomState(seed)
    if per_class is None:
        return np.arange(len(labels))
    return np.concatenate([random.permutation(np.flatnonzero(labels == c))[:per_class] for c in np.unique(labels)])


def standardised(model, x):
    """The model behind a scaler. Sparse values are counts of words, which a scaler would make all equally rare."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return model if issparse(x) else make_pipeline(StandardScaler(), model)


def quietly(fit, x, y):
    """Without what is no fault: iterations that end early, and labels that all rows to learn from have, or none."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples")
        return fit(x, y)


def nearby(x: np.ndarray, y: np.ndarray, test_x: np.ndarray) -> Float[np.ndarray, "n k"]:
    """The mean of the nearest rows' values, weighted by distance."""
    from sklearn.neighbors import KNeighborsRegressor

    model = KNeighborsRegressor(min(NEIGHBOURS, x.shape[0]), metric="cosine", weights="distance")
    return model.fit(x, y.astype(float)).predict(test_x)
