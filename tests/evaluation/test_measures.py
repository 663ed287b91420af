"""Measures: equal to scikit-learn's, and their errors to those of many draws of rows."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import metrics

from triptych.evaluation.measures import joined
from triptych.evaluation.probes import measured, outputs, score
from triptych.evaluation.tasks import Classes, Numbers, Several


def classes(random, n: int = 300):
    """Scores of four classes, of which the first has most rows, with ties; no row of the last is judged."""
    y = random.choice(3, n, p=[0.7, 0.2, 0.1])
    return (random.standard_normal((n, 4)) + 1.5 * np.eye(4)[y]).round(1), y


def several(random, n: int = 300):
    """Scores of three labels, the last of which no row has."""
    y = (random.random((n, 3)) < [0.5, 0.1, 0.0]).astype(int)
    return (random.standard_normal((n, 3)) + y).round(1), y


def numbers(random, n: int = 300):
    y = random.standard_normal(n).round(1)
    return (y + random.standard_normal(n))[:, None].round(1), y


def areas(y, output) -> float:
    return np.mean([metrics.roc_auc_score(y == c, output[:, c]) for c in np.unique(y)])


CASES = {
    ("accuracy", Classes): lambda y, o: metrics.accuracy_score(y, o.argmax(1)),
    ("balanced_accuracy", Classes): lambda y, o: np.mean(
        metrics.recall_score(y, o.argmax(1), labels=[0, 1, 2], average=None)
    ),
    ("macro_f1", Classes): lambda y, o: metrics.f1_score(y, o.argmax(1), labels=[0, 1, 2], average="macro"),
    ("auroc", Classes): areas,
    ("mean_average_precision", Several): lambda y, o: metrics.average_precision_score(y[:, :2], o[:, :2]),
    ("auroc", Several): lambda y, o: metrics.roc_auc_score(y[:, :2], o[:, :2]),
    ("r2", Numbers): lambda y, o: metrics.r2_score(y, o[:, 0]),
    ("spearman", Numbers): lambda y, o: spearmanr(y, o[:, 0]).statistic,
}
MAKE = {Classes: classes, Several: several, Numbers: numbers}


@pytest.mark.parametrize(("measure", "kind"), CASES)
def test_a_measure_is_scikit_learn_s_and_its_error_that_of_other_rows(measure, kind):
    task, reference = kind(list("abcd")), CASES[measure, kind]
    random = np.random.default_rng(0)
    found = []
    for _ in range(60):
        output, y = MAKE[kind](random)
        values = task.values(measure, output, y)
        assert values.mean() == pytest.approx(reference(y, output), abs=1e-12)
        found.append(score(values[None]))
    scatter = np.std([each.mean for each in found], ddof=1)
    assert 0.7 < np.mean([each.error for each in found]) / scatter < 1.4


@pytest.mark.parametrize(("measure", "kind"), CASES)
def test_rows_of_a_group_count_as_one(measure, kind):
    """Each row five times over is no more evidence."""
    task, (output, y) = kind(list("abcd")), MAKE[kind](np.random.default_rng(1))
    often = [np.repeat(v, 5, axis=0) for v in (output, y)]
    groups = np.repeat(np.arange(len(y)), 5)
    once, blind, told = (score(task.values(measure, *rows)[None]) for rows in ((output, y), often, (*often, groups)))
    assert told.mean == pytest.approx(once.mean, abs=0.3) and told.error == pytest.approx(once.error, rel=0.05)
    if measure in task.by_row:
        assert blind.error < 0.5 * once.error


def test_groups_of_one_row_change_nothing():
    values = np.random.default_rng(0).standard_normal(50)
    np.testing.assert_allclose(joined(values, np.arange(50)), values, atol=1e-12)


@pytest.mark.parametrize("kind", [Classes, Several, Numbers])
def test_probes_learn_what_is_there_and_nothing_of_noise(kind):
    random = np.random.default_rng(0)
    _, y = MAKE[kind](random, 400)
    task = kind(list("abcd"))
    told = np.eye(4)[y] if kind is Classes else y.reshape(400, -1)
    x = {"told": np.concatenate([2 * told, 0.5 * random.standard_normal((400, 4))], 1)}
    x["noise"] = random.standard_normal(x["told"].shape)
    for probe in ("linear", "knn"):
        for few in (None, 60):
            made = {
                name: measured(task, outputs(task, probe, v[:200], y[:200], v[200:], few, 3), y[200:])
                for name, v in x.items()
            }
            for measure in task.measures:
                assert score(made["told"][measure], made["noise"][measure]).sure, (probe, few, measure)
            none = task.values(task.decides, task.constant(y[200:]), y[200:])
            assert not score(made["noise"][task.decides], np.tile(none, (3, 1))).sure


def test_of_a_handful_of_rows_no_macro_measure_is_taken():
    """Right on the one row of a class, always: without the rule that would be a recall without error."""
    y = np.array([0] * 10 + [1] * 10 + [2])
    task, output = Classes(list("abc")), np.eye(3)[y]
    output[0] = [0, 1, 0]
    assert task.values("balanced_accuracy", output, y).mean() == pytest.approx((0.9 + 1) / 2)
    assert measured(task, [output[-3:]], y[-3:]).keys() == {"accuracy"}
    marks = np.eye(3, dtype=int)[y]
    assert np.isnan(Several(list("abc")).parts("mean_average_precision", output, marks)).tolist() == [
        False,
        False,
        True,
    ]


def test_where_nothing_can_be_said_there_is_no_value_and_of_one_group_no_error():
    marks = np.eye(40, 2, dtype=int)
    for measure in Several(["a", "b"]).measures:
        assert not len(Several(["a", "b"]).values(measure, marks, marks))
    task, (output, y) = Classes(list("abc")), classes(np.random.default_rng(0))
    one, two = (score(task.values("accuracy", output, y, np.arange(len(y)) % n)[None]) for n in (1, 2))
    assert one.error == np.inf and not one.sure and 0 < two.error < np.inf


def test_an_answer_without_a_look_is_worth_what_is_known():
    _, y = classes(np.random.default_rng(0))
    task = Classes(list("abcd"))
    value = lambda name: task.values(name, task.constant(y), y).mean()  # noqa: E731
    assert value("accuracy") == np.mean(y == 0) and value("auroc") == 0.5
    assert value("balanced_accuracy") == pytest.approx(1 / 3)
    _, marks = several(np.random.default_rng(0))
    task = Several(list("abc"))
    found = task.values("mean_average_precision", task.constant(marks), marks).mean()
    assert found == pytest.approx(marks[:, :2].mean(), abs=1e-12)
    assert np.isnan(task.parts("auroc", task.constant(marks), marks)[2])
