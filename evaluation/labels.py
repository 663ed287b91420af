"""Labels of rows: which rows have any, what task they make, and which rows are learned from and which judged."""

import math
from collections import Counter
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from triptych.evaluation.measures import LEAST
from triptych.evaluation.tasks import Classes, Numbers, Several, Task
from triptych.training.errors import UserError
from triptych.training.fields import NoLabels
from triptych.training.groups import group_of, groups_of, suspected
from triptych.training.metadata import likeness
from triptych.training.sources import Rows, judged, load, split_called, splits_of

FEW = 20  # classes that need no second look
FOLDS = 5  # one of so many parts is held out to judge
FEW_GROUPS = 4  # that judge; the standard error of so few is itself hardly known
BETWEEN = "|"  # what stands between the labels of a row in one word


class Labelled(NamedTuple):
    """Rows to learn from and to judge, their task, and the labels of both: numbers of classes, columns, or numbers.

    `groups`: a number a row to judge, or None where each is one of its own.
    """

    learn: Rows
    judge: Rows
    task: Task
    y: np.ndarray
    test_y: np.ndarray
    groups: np.ndarray | None

    def first(self, learn: int, judge: int) -> "Labelled":
        """The first so many rows of each."""
        groups = None if self.groups is None else self.groups[:judge]
        rows = self.learn.select(range(learn)), self.judge.select(range(judge))
        return Labelled(*rows, self.task, self.y[:learn], self.test_y[:judge], groups)


def labelled(rows: Rows, split: str) -> tuple[Rows, list[Any]]:
    """The rows that have a label, and it: a word, a number, or the names of several; of a class label its name.

    No label: None, NaN or infinity, a blank word, and of a class label a negative number, as is the custom of
    `datasets`; of several columns, nothing in any. Such rows are counted and left out. An empty list is a row with none
    of the labels.
    """
    if rows.label is None:
        raise NoLabels(
            f"data {rows.name} has no column called label and no single class label: name its column of labels with "
            f"--label_column (there are {', '.join(c for c in rows.table.column_names if c != rows.column)})"
            if len(rows.table.column_names) > 1
            else f"data {rows.name} has no labels: name data that has, with --data"
        )
    feature = rows.table.features[rows.label]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    values = [_value(v, names, rows.label) for v in rows.table[rows.label][:]]
    found = [i for i, v in enumerate(values) if v is not None]
    if not found:
        raise NoLabels(f"data {rows.name}, split {split}: no row has a label in column {rows.label!r}")
    if len(found) < len(values):
        lost = len(values) - len(found)
        print(f"{split}: {lost:,} of {len(values):,} rows have no label in column {rows.label!r}: left out")
    labels = [values[i] for i in found]
    alike: dict[str, set[str]] = {}
    for name in {part for v in labels if not isinstance(v, (int, float)) for part in _names(v)}:
        alike.setdefault(likeness(name), set()).add(name)
    if twice := next((sorted(names) for names in alike.values() if len(names) > 1), None):
        print(f"{split}: labels {twice[0]!r} and {twice[1]!r} count as two: write them in one way if they are one")
    return rows.select(found) if len(found) < len(values) else rows, labels


def _value(value: Any, names: list[str] | None, column: str) -> Any:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, (list, tuple)):
        found = [_value(item, names, column) for item in value]
        return tuple(dict.fromkeys(str(item) for item in found if item is not None))
    if names is not None:
        return names[value] if value >= 0 else None
    if isinstance(value, str):
        return value.strip()  # of tables made by hand
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float | Decimal):  # databases write decimals
        value = value if isinstance(value, int) else float(value)
        if not math.isfinite(value):
            return None
        return int(value) if float(value).is_integer() else value
    kind = "fields of several values" if isinstance(value, dict) else f"{type(value).__name__} values"
    way = "name one of them, as column.field" if isinstance(value, dict) else "labels are words, numbers or lists"
    raise UserError(f"column {column!r} holds {kind}: {way}")


def task_of(values: list[list[Any]], column: str, asked: str | None = None) -> tuple[Task, list[np.ndarray]]:
    """The task of labels, and the labels of several splits as it has them: together, since one may lack a class.

    Lists, words with `|` between, and several columns are several labels a row. Numbers are classes if they are whole
    and few or count from 0 or 1 without a gap; else they are a quantity. `asked` is one of `TASKS`.

    Raises `UserError` where the labels are not of that task: a name of each row, one class only, words and numbers.
    """
    from sklearn.preprocessing import MultiLabelBinarizer

    every = [v for split in values for v in split]
    kind = kind_of(every, column)
    task = asked or task_by(every, kind)
    if task == "regression" and kind != "numbers" or task == "classes" and kind == "lists":
        raise UserError(f"task {task}: column {column!r} holds {kind}; leave --task out")
    if len(set(every)) == 1:
        raise UserError(f"column {column!r} holds one label only ({every[0]!r}): there is nothing to tell apart")
    if task == "regression":
        return Numbers([column]), [np.array(split, dtype=float) for split in values]
    if task == "several":
        sets = [[_names(v) for v in split] for split in values]
        names = sorted({name for split in sets for row in split for name in row})
        _no_names(Counter(name for split in sets for row in split for name in row), kind, column)
        binarizer = MultiLabelBinarizer(classes=names)
        return Several(names), [binarizer.fit_transform(split) for split in sets]
    _no_names(Counter(every), kind, column)
    classes = sorted(set(every))
    code = {v: i for i, v in enumerate(classes)}
    return Classes([str(c) for c in classes]), [np.array([code[v] for v in split]) for split in values]


def kind_of(values: list[Any], column: str) -> str:
    """What labels are: `lists`, `words` or `numbers`."""
    kinds = {"lists" if isinstance(v, tuple) else "words" if isinstance(v, str) else "numbers" for v in values}
    if len(kinds) > 1:
        raise UserError(
            f"column {column!r} holds {' and '.join(sorted(kinds))} as labels: write all of them in one way"
        )
    (kind,) = kinds
    return kind


def task_by(values: list[Any], kind: str) -> str:
    """The task that labels of that kind look like, by its name."""
    if kind == "numbers":
        return "regression" if quantity(values) else "classes"
    return "several" if kind == "lists" or any(BETWEEN in v for v in values) else "classes"


def quantity(values: list[float]) -> bool:
    """Are these numbers more likely a quantity than numbers of classes?"""
    different = set(values)
    if any(isinstance(v, float) for v in different):
        return True
    first = min(different)
    return len(different) > FEW and not (first in (0, 1) and different == set(range(first, first + len(different))))


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, tuple):
        return value
    return tuple(dict.fromkeys(part.strip() for part in str(value).split(BETWEEN) if part.strip()))


def _no_names(every: Counter, kind: str, column: str) -> None:
    """Refuse what is no label but a name of each row."""
    total = every.total()
    if len(every) > FEW and len(every) > total / 2:
        way = "not labels" if kind != "numbers" else "not labels; if they are a quantity, --task regression"
        raise UserError(
            f"column {column!r} holds {len(every)} different {kind} in {total} rows: a name of each row, {way}"
        )


def unfit(task: Task, y: np.ndarray, test_y: np.ndarray) -> str | None:
    """Why nothing can be learned from these labels, or judged by them; None where both can."""
    for what, values in (("to learn from", y), ("to judge", test_y)):
        if (values == values[0]).all():
            return f"all rows {what} have the same labels"
    if not len(task.values(task.decides, task.constant(test_y), test_y)):
        return f"there is no label that {LEAST} rows to judge have, and {LEAST} have not"
    return None


def hold_out(y: np.ndarray, most: int, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and to judge: a fifth of each class (of other labels, of all rows) is held out.

    Of a class of two rows or more it is at least one. With groups, no group is on both sides.
    """
    random = np.random.RandomState(0)
    if groups is not None:
        parts = _apart(y, groups)
    else:
        learn, judge = [], []
        for c in np.unique(y) if _classes(y) else [None]:
            rows = random.permutation(np.arange(len(y)) if c is None else np.flatnonzero(y == c))
            cut = max(1, len(rows) // FOLDS) if len(rows) > 1 else 0
            judge.append(rows[:cut])
            learn.append(rows[cut:])
        parts = np.concatenate(learn), np.concatenate(judge)
    return tuple(random.permutation(part)[:most] for part in parts)


def _apart(y: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A fifth of the groups: of 100 draws the one whose labels are most like those of all rows."""
    from sklearn.model_selection import GroupShuffleSplit

    marks = (y[:, None] == np.unique(y)) if _classes(y) else y.reshape(len(y), -1)
    scale = marks.std(0) + 1e-12
    share = 1 / min(FOLDS, len(np.unique(groups)))
    draws = GroupShuffleSplit(100, test_size=share, random_state=0).split(groups, groups=groups)

    def unlike(parts) -> float:
        return float(np.abs((marks[parts[1]].mean(0) - marks.mean(0)) / scale).sum())

    return min(draws, key=unlike)


def _classes(y: np.ndarray) -> bool:
    return y.ndim == 1 and y.dtype.kind in "iu"


def splits(
    source,
    modality,
    train_split: str,
    test_split: str | None,
    most: int,
    task: str | None = None,
) -> Labelled:
    """Labelled rows to learn from and to judge, at most so many, apart by the groups that the source names."""
    source = judged(source, modality)
    there = splits_of(source, modality)
    train = load(source, modality, train_split)
    if note := suspected(train):
        print(note)
    learn = split_called(train_split, there)
    train, words = labelled(train, learn)
    wanted = [test_split] if test_split else ["test", "validation"]
    tried = [s for s in dict.fromkeys(split_called(w, there) for w in wanted) if s]
    if test_split and not tried:
        raise UserError(f"data {source.name} has no split {test_split!r}; it has {', '.join(there)}")
    if test_split and tried[0] == learn:
        raise UserError(f"test_split {test_split} is the split that the probe learns from; name another, or none")
    groups = groups_of(train, learn)
    for split in tried:
        if split == learn:
            continue
        try:
            test, test_words = labelled(load(source, modality, split), split)
        except NoLabels:
            if test_split:
                raise
            print(f"split {split}: no row has a label in column {train.label!r}: not judged on")
            continue
        if groups is not None:
            train, words, groups = _without(train, words, groups, test, split)
        random = np.random.RandomState(0)
        pick, test_pick = (random.permutation(len(rows))[:most] for rows in (train, test))
        break
    else:
        if groups is not None and len(np.unique(groups)) < 2:
            raise UserError(
                f"group {group_of(train)}: all rows of {learn} are of one ({groups[0]}): nothing can be held out"
            )
        y = task_of([words], train.label, task)[1][0]
        pick, test_pick = hold_out(y, most, groups)
        test, test_words = train, words
        how = "at random" if not _classes(y) else "by class"
        how = how if groups is None else f"by {group_of(train)}"
        print(f"no other split with labels: of {learn}, {len(test_pick):,} rows are held out to judge, {how}")
    # By all rows: in a part of them numbers of classes may have gaps, as numbers that are a quantity do.
    every = [*words, *test_words]
    task = task or task_by(every, kind_of(every, train.label))
    chosen = [[w[i] for i in p] for w, p in ((words, pick), (test_words, test_pick))]
    found, (y, test_y) = task_of(chosen, train.label, task)
    test = test.select(test_pick)
    known = groups_of(test, "to judge")
    numbers = None if known is None else np.unique(known, return_inverse=True)[1]
    if numbers is not None and not numbers.any():
        print(f"all {len(test):,} rows to judge are of one {group_of(test)}: no difference is sure of another")
    elif numbers is not None and (count := int(numbers.max()) + 1) < FEW_GROUPS:
        print(f"only {count} groups ({group_of(test)}) judge: what is called sure may be so of these alone")
    return Labelled(train.select(pick), test, found, y, test_y, numbers)


def _without(train: Rows, words: list, groups: np.ndarray, test: Rows, split: str):
    """Rows to learn from, without those of groups that are judged."""
    shared = np.isin(groups, groups_of(test, split))
    if shared.all():
        raise UserError(f"group {train.group}: every one of the rows to learn from is also in {split}")
    if shared.any():
        print(f"{shared.sum():,} rows to learn from are of a {group_of(train)} that is in {split}, too: left out")
    keep = np.flatnonzero(~shared)
    return train.select(keep), [words[i] for i in keep], groups[keep]
