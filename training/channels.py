"""Pictures whose channels lie in several columns, `red,nir`: one cell of each row, with a file a channel."""

import dataclasses
from typing import Any

from triptych.modalities import Modality
from triptych.training.errors import UserError
from triptych.training.fields import asked
from triptych.training.files import Source
from triptych.training.settings import Data
from triptych.training.tables import cells_of, column_of, plain


def columns_of(table, column: str | None, modality: Modality) -> list[str]:
    """The columns that `red,nir` names; none, where that is one column, or the modality has no channels."""
    if column is None or column in table.column_names or not modality.stacks:
        return []
    return asked(column)[1:]


def stacked(table, columns: list[str], data: Data, modality: Modality, source: Source, split: str):
    """The table with a column of `{"bytes": None, "path", "channels": {name: cell}}`, called as asked, for those.

    `path` is that of the first. Nothing is copied: files that lie in the table stay there.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.compute as pc

    for column in columns:
        one = dataclasses.replace(data, column=column)
        column_of(table, one, modality, source)  # refuses what is none
        if hasattr(table.features[column], "feature"):
            raise UserError(f"data.column {column!r} holds lists: of several columns each is one channel")
        table, _ = cells_of(table, column, modality, source, split)
    if table._indices is not None:
        table = table.flatten_indices()
    others = [c for c in table.column_names if c not in columns]
    whole = table.data.table.select([*others, *columns])

    def joined(batch):
        cells = [[pc.struct_field(batch.column(c), field) for field in ("bytes", "path")] for c in columns]
        parts = [pa.StructArray.from_arrays(cell, ["bytes", "path"]) for cell in cells]
        made = [pa.nulls(len(batch), cells[0][0].type), cells[0][1], pa.StructArray.from_arrays(parts, columns)]
        cell = pa.StructArray.from_arrays(made, ["bytes", "path", "channels"])
        return pa.Table.from_arrays([*(batch.column(c) for c in others), cell], [*others, data.column])

    made = pa.concat_tables([joined(batch) for batch in whole.to_batches()])
    kept: dict[str, Any] = {c: table.features[c] for c in others}
    features = datasets.Features(kept | {data.column: plain() | {"channels": {c: plain() for c in columns}}})
    info = datasets.DatasetInfo(features=features)
    return datasets.Dataset(
        made, info=info, fingerprint=datasets.fingerprint.Hasher.hash([table._fingerprint, columns])
    )


def count_of(table, column: str) -> int:
    """How many columns became one, or 1."""
    feature = table.features[column]
    return len(feature["channels"]) if isinstance(feature, dict) and "channels" in feature else 1


def check_count(table, column: str, modality: Modality) -> None:
    """Refuse columns that are not as many as the modality has channels."""
    count = count_of(table, column)
    if count > 1 and count != modality.channels:
        raise UserError(
            f"data.column {column} names {count} columns, each a channel, and modality.channels is "
            f"{modality.channels}: give --modality.channels {count}"
        )
