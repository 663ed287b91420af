"""Columns that are within others or made of them: nested fields by a dotted name, labels in several columns."""

from typing import Any

from triptych.training.errors import UserError, nearest

BETWEEN = ","  # of the names of several columns


class NoLabels(UserError):
    """There are no labels where some should be."""


def flattened(table, *names: str | None):
    """The table with nested fields as columns of their own, `report.findings`, if one of the names is of that kind."""
    known = table.column_names
    if any(name not in known and "." in name and name.split(".")[0] in known for name in asked(*names)):
        return table.flatten()
    return table


def has(table, name: str) -> bool:
    """Is there such a column or nested field, or are there all of `a,b`?"""
    known = flattened(table, name).column_names
    return name in known or all(part in known for part in asked(name)[1:] or [name])


def longer_within(table, column: str, rows: int = 20) -> str | None:
    """A nested field whose words are longer than those of a column, by the first rows; None where there is none."""
    head = table.select(range(min(rows, len(table))))
    flat = head.select_columns([c for c, f in head.features.items() if isinstance(f, dict) or c == column]).flatten()
    size = {c: sum(map(len, filter(None, flat[c][:]))) for c, f in flat.features.items() if _words(f)}
    longest = max(size, key=size.get, default=column)
    return longest if longest not in table.column_names and size[longest] > size.get(column, 0) else None


def _words(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def asked(*names: str | None) -> list[str]:
    """The columns that names may mean: each of `a,b` too."""
    given = [name for name in names if name is not None]
    return [*given, *(part.strip() for name in given if BETWEEN in name for part in name.split(BETWEEN))]


def labels_joined(table, label: str | None):
    """The table with the column of labels; of several, `a,b`, one of the names of those that are 1 in a row.

    Of a column of vectors of 0 and 1 (one-hot, multi-hot) the names are places, from 0.
    """
    if label is None:
        return table
    if label in table.column_names:
        return _of_places(table, label)
    columns = [part.strip() for part in label.split(BETWEEN)]
    for column in columns:
        if column not in table.column_names:
            raise NoLabels(
                f"data.label_column {column!r} is not a column{nearest(column, table.column_names)}; "
                f"there are {', '.join(table.column_names)}"
            )
    import datasets

    values = marked({column: table[column][:] for column in columns})
    return table.add_column(label, values, feature=datasets.List(datasets.Value("string")))


def _of_places(table, label: str):
    """The table whose labels are lists of names, where they were vectors of 0 and 1, all of one length."""
    dtype = getattr(getattr(table.features[label], "feature", None), "dtype", None)
    if not isinstance(dtype, str) or not dtype.startswith(("bool", "int", "uint", "float")):
        return table
    if hasattr(table.features[label].feature, "names"):
        return table
    import datasets

    rows = table[label][:]
    wide = {len(row) for row in rows if row is not None}
    if len(wide) != 1 or wide == {1} or any(v not in (0, 1) for row in rows if row for v in row if not nothing(v)):
        return table
    values = marked({str(i): [None if row is None else row[i] for row in rows] for i in range(*wide)})
    feature = datasets.List(datasets.Value("string"))
    return table.remove_columns(label).add_column(label, values, feature=feature)


def marked(columns: dict[str, list[Any]]) -> list[list[str] | None]:
    """Columns of 0 and 1 -> the names of those that are 1; None for a row with nothing in one of them."""
    for column, values in columns.items():
        odd = next((v for v in values if not nothing(v) and v not in (0, 1)), None)
        if odd is not None:
            raise UserError(f"column {column!r} holds {odd!r}: of several columns of labels each is 0 or 1")
    rows = zip(*columns.values(), strict=True)
    return [None if any(map(nothing, row)) else [c for c, v in zip(columns, row, strict=True) if v] for row in rows]


def nothing(value: Any) -> bool:
    return value is None or value != value
