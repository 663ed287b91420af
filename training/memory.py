"""Data in memory: arrays, paths and tables of `datasets`, which a run reads as it reads any other source."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from triptych.modalities import Modality
from triptych.training.errors import UserError, one_line
from triptych.training.tables import holds_lines, name_of_modality, plain

NAME = "(in memory)"  # what it is called where others have a path; the first of several at a time
HELD: dict[str, dict[str, Any]] = {}  # tables by split, by that name
AT_ONCE = 1000  # values that become a table together: Arrow's columns of bytes end at 2 GiB


@contextmanager
def held(data: Any, modality: Modality) -> Iterator[str]:
    """Within, `finding.find` knows the data by the name that this gives. A word or a path is its own name."""
    if isinstance(data, (str, os.PathLike)):
        yield name_of(data)
        return
    made = tables(data, modality)
    name = NAME if NAME not in HELD else f"{NAME}, {len(HELD) + 1}"
    HELD[name] = made
    try:
        yield name
    finally:
        del HELD[name]


def name_of(data: Any) -> str:
    """What data is called in a configuration: by its path or name, if it has one."""
    return os.fspath(data) if isinstance(data, (str, os.PathLike)) else NAME


def tables(data: Any, modality: Modality) -> dict[str, Any]:
    """The `datasets.Dataset` of each split.

    Args:
        data: a `Dataset` or a `DatasetDict`; values that the modality takes (`Modality.cell`), one a sample; or a
            dictionary of columns, or a frame (pandas, polars, Arrow), of which the one named after the modality holds
            the samples.
        modality: says what a value may be.
    """
    import datasets

    datasets.disable_progress_bars()
    if isinstance(data, (datasets.IterableDataset, datasets.IterableDatasetDict)):
        raise UserError("data that streams has no order to return to: give a Dataset; load it without streaming")
    if isinstance(data, datasets.Dataset):
        return {"train": data}
    if isinstance(data, Mapping):
        if data and all(isinstance(part, datasets.Dataset) for part in data.values()):
            return dict(data)
        return {"train": _columns(data, modality)}
    if hasattr(data, "columns"):  # of a frame; as values in a row, those of pandas are the names of its columns
        names = getattr(data, "column_names", data.columns)  # Arrow's `columns` are the values
        return {"train": _columns({name: _plain(data[name]) for name in names}, modality)}
    return {"train": _columns({name_of_modality(modality): data}, modality)}


def _plain(column: Any) -> list[Any]:
    """A column of a frame (pandas, polars, Arrow); what is missing in it is None."""
    values = column.to_pylist() if hasattr(column, "to_pylist") else list(column)
    return [None if type(v).__name__ in ("NAType", "NaTType") or isinstance(v, float) and v != v else v for v in values]


def _columns(data: Mapping[str, Any], modality: Modality):
    import datasets

    name = name_of_modality(modality)
    if name not in data:
        raise UserError(f"data: a dictionary of columns has its samples in {name!r}; there are {', '.join(data)}")
    values = data[name]
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
        raise UserError(f"data: a {type(values).__name__} where samples should be: give a list of them")
    if not (cells := [_cell(modality, value, i) for i, value in enumerate(values)]):
        raise UserError("data: there are no samples in it")
    if holds_lines(modality):
        made = datasets.Dataset.from_dict({name: cells}, features=datasets.Features({name: datasets.Value("string")}))
    elif not hasattr(datasets, modality.features[0]):  # plain values, of which nothing is decoded
        made = datasets.Dataset.from_dict({name: cells})
    else:
        kind = getattr(datasets, modality.features[0])(decode=False)
        features = datasets.Features({name: plain()})
        parts = [cells[start : start + AT_ONCE] for start in range(0, len(cells), AT_ONCE)]
        made = datasets.concatenate_datasets([datasets.Dataset.from_dict({name: p}, features=features) for p in parts])
        made = made.cast_column(name, kind)
    others = {key: _plain(column) for key, column in data.items() if key != name}
    beside = [made]
    for key, column in others.items():
        if len(column) != len(cells):
            raise UserError(f"data: {len(column)} values in {key!r}, {len(cells)} in {name!r}: give one a sample")
        try:
            beside.append(datasets.Dataset.from_dict({key: column}))
        except (ValueError, TypeError) as error:  # Arrow's are among them
            raise UserError(f"data: {key!r} is no column of values of one kind: {one_line(error)}") from error
    return datasets.concatenate_datasets(beside, axis=1) if others else made


def _cell(modality: Modality, value: Any, number: int) -> Any:
    try:
        return modality.cell(value)
    except (ValueError, OSError, TypeError, RuntimeError) as error:  # the last two are torch's
        raise UserError(f"data: sample {number}: {one_line(error)}") from error
