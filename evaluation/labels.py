"""Labels of rows: which rows have one, what the classes are, and what is no class at all."""

import math
from collections import Counter
from typing import Any

import numpy as np

from triptych.training.errors import UserError, one_line
from triptych.training.sources import Rows, judged, load, split_called, splits_of

FEW = 20  # classes that need no second look
KINDS = {
    "list": "lists: several labels a row are not probed; give one a row",
    "dict": "fields of several values; give the name of a column of words or numbers",
}


def labelled(rows: Rows, split: str) -> tuple[Rows, list[Any]]:
    """The rows that have a label, and it: words as they are, numbers, of a class label the class's name.

    No label: None, NaN, a blank word, and of a class label a negative number, as is the custom of `datasets`. Such rows
    are counted and left out.
    """
    if rows.label is None:
        raise UserError(
            f"data {rows.name} has no column called label and no single class label: name its column of labels with "
            f"--label_column (there are {', '.join(c for c in rows.table.column_names if c != rows.column)})"
            if len(rows.table.column_names) > 1
            else f"data {rows.name} has no labels: name data that has, with --data"
        )
    feature = rows.table.features[rows.label]
    names = getattr(feature, "names", None)
    values = [_value(v, names, rows.label) for v in rows.table[rows.label][:]]
    found = [i for i, v in enumerate(values) if v is not None]
    if not found:
        raise UserError(f"data {rows.name}, split {split}: no row has a label in column {rows.label!r}")
    if len(found) < len(values):
        lost = len(values) - len(found)
        print(f"{split}: {lost:,} of {len(values):,} rows have no label in column {rows.label!r}: left out")
    return rows.select(found) if len(found) < len(values) else rows, [values[i] for i in found]


def _value(value: Any, names: list[str] | None, column: str) -> Any:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if names is not None:
        return names[value] if value >= 0 else None
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        if math.isnan(value):
            return None
        return int(value) if float(value).is_integer() else value
    kind = type(value).__name__
    raise UserError(f"column {column!r} holds {KINDS.get(kind, f'{kind} values, which are no classes')}")


def number(values: list[list[Any]], column: str) -> tuple[list[str], list[np.ndarray]]:
    """Classes by name, and the class numbers of several splits: numbered together, since one may lack a class.

    Raises `UserError` where the labels are no classes: a score, a name of each row, one class only.
    """
    every = Counter(v for split in values for v in split)
    kinds = {"words" if isinstance(v, str) else "numbers" for v in every}
    if len(kinds) > 1:
        raise UserError(f"column {column!r} holds words and numbers as labels: write all of them in one way")
    (kind,) = kinds
    if len(every) == 1:
        raise UserError(
            f"column {column!r} holds one class only ({next(iter(every))!r}): there is nothing to tell apart"
        )
    total = every.total()
    if len(every) > FEW and (any(isinstance(v, float) for v in every) or len(every) > total / 2):
        what = "a name of each row" if kind == "words" else "a score"
        raise UserError(f"column {column!r} holds {len(every)} different {kind} in {total} rows: {what}, not classes")
    classes = sorted(every)
    code = {v: i for i, v in enumerate(classes)}
    return [str(c) for c in classes], [np.array([code[v] for v in split]) for split in values]


def hold_out(y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and to judge: of each class a fifth is held out, and at least one where there are two."""
    random, learn, judge = np.random.RandomState(0), [], []
    for c in np.unique(y):
        rows = random.permutation(np.flatnonzero(y == c))
        cut = max(1, len(rows) // 5) if len(rows) > 1 else 0
        judge.append(rows[:cut])
        learn.append(rows[cut:])
    return tuple(random.permutation(np.concatenate(part))[:most] for part in (learn, judge))


def splits(source, modality, train_split: str, test_split: str | None, most: int):
    """Labelled rows to learn from and to judge, at most so many, and the labels of both."""
    source = judged(source, modality)
    there = splits_of(source, modality)
    train = load(source, modality, train_split)
    learn = split_called(train_split, there)
    train, words = labelled(train, learn)
    wanted = [test_split] if test_split else ["test", "validation"]
    tried = [s for s in dict.fromkeys(split_called(w, there) for w in wanted) if s]
    if test_split and not tried:
        raise UserError(f"data {source.name} has no split {test_split!r}; it has {', '.join(there)}")
    if test_split and tried[0] == learn:
        raise UserError(f"test_split {test_split} is the split that the probe learns from; name another, or none")
    for split in tried:
        if split == learn:
            continue
        try:
            test, test_words = labelled(load(source, modality, split), split)
        except UserError as error:
            if test_split or "no row has a label" not in str(error):
                raise
            print(f"{one_line(error)}: not judged on")
            continue
        random = np.random.RandomState(0)
        pick, test_pick = (random.permutation(len(rows))[:most] for rows in (train, test))
        break
    else:
        pick, test_pick = hold_out(number([words], train.label)[1][0], most)
        test, test_words = train, words
        print(f"no other split with labels: of {learn}, {len(test_pick):,} rows are held out to judge, by class")
    chosen = [[w[i] for i in p] for w, p in ((words, pick), (test_words, test_pick))]
    return train.select(pick), test.select(test_pick), chosen
