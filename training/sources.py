"""Sources: a source becomes rows with a column of samples, and perhaps of labels; what is where, `finding` says."""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triptych.modalities import BadSample, Modality
from triptych.modalities.archives import parted
from triptych.modalities.base import recording
from triptych.training.channels import check_count, columns_of, stacked
from triptych.training.errors import UserError, one_line
from triptych.training.fields import flattened, has, labels_joined, longer_within
from triptych.training.files import (
    Source,
    some,
    split_word,
)
from triptych.training.finding import elsewhere, find, head_of
from triptych.training.segments import cut_out, times_of
from triptych.training.settings import Data
from triptych.training.tables import (
    cells_of,
    column_of,
    holds_lines,
    holds_text,
    kind_of,
    label_of,
    name_of_modality,
    say,
    undecoded,
    whole,
)

NO_LABEL = "no label"  # of a row that has none, in words


@dataclass
class Rows:
    """Rows of one split, undecoded, with the columns that hold samples and labels. `root`: where its files lie."""

    table: Any  # datasets.Dataset
    column: str
    label: str | None
    name: str
    modality: Modality
    root: str | None = None
    group: str | None = None  # what `groups_of` reads

    def __len__(self) -> int:
        return len(self.table)

    def select(self, index) -> "Rows":
        return dataclasses.replace(self, table=self.table.select(index))

    def paths(self) -> Iterator[str | None]:
        """The path of each row, if it has one."""
        cells = self.table.select_columns([self.column])
        feature = cells.features[self.column]
        if not (hasattr(feature, "decode") or isinstance(feature, dict) and "path" in feature):  # no files
            return
        for batch in cells.with_format("arrow").iter(10_000):
            yield from batch[self.column].combine_chunks().field("path").to_pylist()

    def recordings(self) -> np.ndarray:
        """By row, the number of the first row of the same recording: its own, but for segments of one file."""
        numbers, first = np.arange(len(self)), {}
        for row, path in enumerate(self.paths()):
            if path is not None and recording(path) != path:
                numbers[row] = first.setdefault(recording(path), row)
        return numbers

    def labels(self) -> np.ndarray:
        """The label of each row, numbers or words as the column has them."""
        if self.label is None:
            raise UserError(
                f"data {self.name} has no class label column: name its column of labels, or other data that has one"
            )
        return np.asarray(self.table[self.label][:])


def rows_of(source: Source, data: Data, modality: Modality, split: str) -> tuple[Rows, str]:
    """Rows of a split, and why it is that column."""
    import datasets

    asked, split = split, split_called(split, list(source.read))
    if split is None:
        known = ", ".join(source.read)
        raise UserError(f"data {source.name} has no split {asked!r}; it has {known}: name one, --data.split")
    try:
        table = source.read[split]()
    except UserError:
        raise
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise UserError(f"data {source.name}: cannot be read: {one_line(error.__cause__ or error)[:300]}") from error
    if not len(table):
        raise UserError(f"data {source.name}, split {split}: no rows")
    table = flattened(undecoded(table), data.column, data.label_column, data.group)
    if parts := columns_of(table, data.column, modality):
        table = stacked(table, parts, data, modality, source, split)
        rows = Rows(table, data.column, None, source.name, modality, source.root, data.group)
        return _labelled(rows, data, source), f"{data.column!r} (as asked, a channel each)"
    column, why = column_of(table, data, modality, source)
    if holds_lines(modality) and data.column is None and (within := longer_within(table, column)):
        raise UserError(
            f"data {source.name}: the samples may be in {column!r} or in the longer {within!r}: name one, --data.column"
        )
    times = times_of(table.column_names) if modality.segments and holds_text(table.features[column]) else None
    if data.segments and not times and not source.marks:
        say(source, "data.segments: no columns of start and end, so that rows are no segments")
    table, more = cells_of(table, column, modality, source, split)
    cut = bool(times) and data.segments is not False
    if cut:
        table, more = cut_out(table, column, times, source), ", segments"
    table = whole(table, column, modality, data, source)
    rows = _labelled(Rows(table, column, None, source.name, modality, source.root, data.group), data, source)
    if (cut or data.segments) and data.group is None:
        if len(np.unique(rows.recordings())) > 1:
            rows.group = "file"  # segments of one recording are on one side
        else:
            say(source, "all segments are of one recording: what is judged is not apart from what is learned from")
    return rows, f"{column!r} ({why}{more})"


def _labelled(rows: Rows, data: Data, source: Source) -> Rows:
    label = data.label_column or label_of(rows.table)
    table = labels_joined(rows.table, label)
    if table is not rows.table and label in rows.table.column_names:
        say(source, f"labels {label!r} are vectors of 0 and 1: a label is its place in them, from 0")
    return dataclasses.replace(rows, table=table, label=label)


def load(data: Data, modality: Modality, split: str | None = None) -> Rows:
    """Rows of `split` (default: `data.split`). Says what is read, and what is not. `UserError` names the way out."""
    source = find(data, modality)
    rows, column = rows_of(source, data, modality, split or data.split)
    check_count(rows.table, rows.column, modality)
    split = split_called(split or data.split, list(source.read))
    labels = f"labels {rows.label!r}" if rows.label else "no labels"
    others = f"; other splits: {', '.join(s for s in source.read if s != split)}" if len(source.read) > 1 else ""
    print_once(f"data: {len(rows):,} rows of {source.name} ({split}), column {column}; {labels}{others}")
    for note in source.notes:
        print_once(f"data: {note}")
    if source.left_out():
        print_once(f"data: left out: {source.left_out()}")
    return rows


def judged(data: Data, modality: Modality) -> Data:
    """Data as a probe reads it: the segments of its recordings, where somebody marked some."""
    if data.segments is None and modality.segments and find(data, modality).marks:
        return dataclasses.replace(data, segments=True)
    return data


def splits_of(data: Data, modality: Modality) -> list[str]:
    """Names of the splits that a source has."""
    return list(find(data, modality).read)


def split_called(word: str, splits: list[str]) -> str | None:
    """The split that a word means: the one of that name, or of another of `datasets`' words for it; None for none."""
    if word in splits:
        return word
    meant = split_word(word)
    return next((split for split in splits if meant and split_word(split) == meant), None)


def known_column(name: str, data: Data, modality: Modality, split: str) -> str | None:
    """The column that a run's data names, where another source has it."""
    if data.column is None:
        return None
    source = find(elsewhere(data, name, modality), modality)
    found = split_called(split, list(source.read))
    return data.column if found is not None and has(source.read[found](), data.column) else None


def like(data: Data, name: str, modality: Modality) -> Data:
    """The training part of another source, read as that one is, with its columns as far as the other has them."""
    if name == data.name:
        return dataclasses.replace(data, split="train")
    given = {c: value for c in ("column", "label_column", "group") if (value := getattr(data, c))}
    other = elsewhere(dataclasses.replace(data, split="train", **dict.fromkeys(given)), name, modality)
    if not given:
        return other
    table = next(iter(find(other, modality).read.values()))()
    return dataclasses.replace(other, **{c: value for c, value in given.items() if has(table, value)})


def show(data: Data, modality: Modality) -> None:
    """Print how a source is read: files, splits, columns, labels, three samples, what is left out."""
    source = find(data, modality)
    rows, column = rows_of(source, data, modality, data.split)
    split = split_called(data.split, list(source.read))

    def line(title: str, text: str) -> None:
        print(f"{title:10} {text}")

    line("source", f"{source.name}, as {name_of_modality(modality)}")
    kinds = Counter(
        os.path.splitext(recording(name))[1].lower() or "no suffix" for names in source.files.values() for name in names
    )
    line("files", ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common()) or "none of its own")
    for other in source.read:
        count = len(rows) if other == split else len(rows_of(source, data, modality, other)[0])
        files = f" ({some(source.files[other])})" if source.files[other] else ""
        line("split", f"{other}: {count:,} rows{files}{', read now' if other == split else ''}")
    line("columns", ", ".join(f"{name} ({kind_of(f)})" for name, f in rows.table.features.items()))
    line("samples", f"column {column}")
    line("labels", _described(rows))
    for note in source.notes:
        line("note", note)
    line("left out", source.left_out() or "nothing")
    table = rows.table.select_columns([rows.column, *([rows.label] if rows.label else [])])  # others stay undecoded
    for i in sorted({0, len(rows) // 2, len(rows) - 1}):
        cell = table[i][rows.column]
        try:
            text = modality.describe(cell)
        except BadSample as error:
            text = f"unusable: {error}"
        where = f"{some([relative(cell['path'], rows.root)])}: " if isinstance(cell, dict) and cell.get("path") else ""
        label = f" [{word(rows, table[i][rows.label])}]" if rows.label else ""
        line("sample", f"{i}: {where}{text}{label}")


def _described(rows: Rows) -> str:
    if rows.label is None:
        return "none: no column called label, no single class label (data.label_column names one)"
    count = Counter(word(rows, v) for v in rows.table[rows.label][:])
    most = ", ".join(f"{name} {n:,}" for name, n in count.most_common(10))
    return f"column {rows.label!r}, {len(count):,} different: {most}{', ...' if len(count) > 10 else ''}"


def word(rows: Rows, value: Any) -> str:
    """A label in words."""
    feature = rows.table.features[rows.label]
    if value is None or hasattr(feature, "names") and value < 0:
        return NO_LABEL
    if isinstance(value, list):
        names = getattr(getattr(feature, "feature", None), "names", None)
        return "|".join(str(names[v] if names else v) for v in value) or "none of them"
    return feature.names[value] if hasattr(feature, "names") else str(value)


def fingerprint(rows: Rows) -> str:
    """The identity of the data, wherever it lies: number of rows, names, and sizes and bytes of a hundred rows."""
    count = len(rows)
    state = hashlib.sha256(f"{count} {rows.column}".encode())
    cells = rows.table.select_columns([rows.column])
    for path in rows.paths():
        state.update(relative(path or "", rows.root).encode() + b"\0")
    for i in sorted({i * (count - 1) // 99 for i in range(100)}):
        cell = cells[i][rows.column]
        parts = cell["channels"].values() if isinstance(cell, dict) and "channels" in cell else [cell]
        for part in parts:
            if isinstance(part, dict):
                part = head_of(part) if part.get("bytes") is None else part["bytes"]
            state.update(part if isinstance(part, bytes) else repr(part).encode("utf-8", "surrogatepass"))
    return state.hexdigest()[:16]


def relative(path: str, root: str | None) -> str:
    """A path, or the address of a member of an archive or of a file, as it is called within the source."""
    if root is None:
        return path
    if found := parted(path):
        member, archive = found
        return f"{member}::{relative(archive, root)}"
    folder = root.rstrip("/") + "/"
    return path.removeprefix(folder).removeprefix(Path(os.path.abspath(root)).as_uri() + "/")


def print_once(text: str) -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        print(text, flush=True)
