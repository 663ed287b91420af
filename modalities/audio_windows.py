"""Recordings cut into windows: every second of a recording is in one of its windows, each of which is decoded alone."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

import numpy as np

from triptych.modalities.audio_file import Clip
from triptych.modalities.base import BadSample, Grid, NoSamples, bytes_or_path, span_of

THREADS, READ = 8, 64  # that look into files, which is mostly waiting; rows that they are given at once


def windows_of(length: int, window: int, hop: int | None = None) -> list[int]:
    """Where the windows of a sound begin: `hop` (default: a window) apart, the last moved back to end where it ends.

    All in samples. The model card has the same line.
    """
    return [*range(0, length - window, hop or window), max(0, length - window)]


class Windows:
    """A table of windows of recordings: the rows' columns, `source_row`, and in a cell also where the window begins.

    Nothing of the rows is copied, where a `datasets.Dataset` would copy whole recordings for each of their windows.

    Args:
        rows: the `datasets.Dataset`.
        column: that of the recordings.
        source: `[n]` the row of each window.
        start: `[n]` its first sample.
    """

    def __init__(self, rows, column: str, source: np.ndarray, start: np.ndarray):
        self.rows, self.column, self.source, self.start = rows, column, source, start

    @classmethod
    def of(cls, rows, column: str, starts: list[list[int]]) -> "Windows":
        source = np.repeat(np.arange(len(starts)), [len(some) for some in starts])
        return cls(rows, column, source, np.fromiter(chain.from_iterable(starts), np.int64, len(source)))

    @property
    def column_names(self) -> list[str]:
        return [*self.rows.column_names, "source_row"]

    def select_columns(self, names: list[str]) -> "Windows":
        known = [name for name in names if name != "source_row"]
        return Windows(self.rows.select_columns(known), self.column, self.source, self.start)

    def select(self, index) -> "Windows":
        return Windows(self.rows, self.column, self.source[index], self.start[index])

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Any) -> Any:
        """As `datasets` has it: a row, columns of several rows, or a column."""
        if isinstance(key, str):
            return self.source if key == "source_row" else self[:][key]
        index = np.arange(*key.indices(len(self))) if isinstance(key, slice) else np.asarray(key, dtype=np.int64)
        rows, back = np.unique(self.source[index], return_inverse=True)  # a long recording is fetched once
        others = [name for name in self.rows.column_names if name != self.column]
        found = self.rows.select_columns(others)[rows.tolist()] if others else {}
        found = {self.column: cells_of(self.rows, self.column, rows.tolist())} | found
        made = {name: [values[i] for i in back.ravel()] for name, values in found.items()}
        starts = self.start[index].ravel().tolist()
        made[self.column] = [c and c | {"start": s} for c, s in zip(made[self.column], starts, strict=True)]
        made["source_row"] = self.source[index].ravel().tolist()
        return made if index.ndim else {name: values[0] for name, values in made.items()}


class Recordings(Grid):
    """What is the same for all sounds: rows that are longer than a window are cut into windows.

    Subclasses set `window`, `hop` and `rate` (samples), and `silence` (dB, or None).
    """

    window: int
    hop: int
    rate: int
    silence: float | None

    def read(self, value) -> Clip:
        """`{"bytes", "path"}` or a path -> a clip. No more than one window of it is decoded, now or later.

        A path may name a segment (`base.segment`). With `start` in the cell, as `samples` makes them, the clip is one
        window.
        """
        return self._clip(value, self.window)

    def spread(self, length: int, most: int) -> list[int]:
        """Where some windows of a recording begin, in its middle and evenly around it."""
        count = min(most, len(windows_of(length, self.window)))
        return [max(0, length - self.window) * (number + 1) // (count + 1) for number in range(count)]

    def starts(self, rows, column: str) -> tuple[list[list[int]], str | None]:
        lengths = self._lengths(rows, column)
        every = [windows_of(length, self.window, self.hop) for length in lengths]
        kept = every if self.silence is None else list(over(rows, column, self._audible, every))
        count, left = sum(map(len, every)), sum(map(len, every)) - sum(map(len, kept))
        if count == len(rows) and not left:
            return kept, None
        hours = sum(lengths) / self.rate / 3600
        silent = f", {left:,} of which are silent and left out" if self.silence is not None else ""
        return kept, f"{hours:.3g} hours of sound in {count:,} windows of {self.window / self.rate:.4g} s{silent}"

    def samples(self, rows, column: str, starts: list[list[int]] | None = None):
        """Windows of the rows (`Windows`), or the rows themselves where none is longer than a window.

        Without `starts` windows follow each other, and none is left out.
        """
        if starts is None:
            starts = [windows_of(length, self.window) for length in self._lengths(rows, column)]
        if all(some == [0] for some in starts):
            return rows
        if not any(starts):
            raise NoSamples(f"column {column!r}: none of {len(rows)} rows has any sound (modality.silence)")
        return Windows.of(rows, column, starts)

    def _lengths(self, rows, column: str) -> list[int]:
        """Samples that the header of each row promises."""
        return list(over(rows, column, self._length))

    def _length(self, cell: Any) -> int:
        try:
            return self._clip(cell, 0).length
        except BadSample:  # said when it is its turn
            return 0

    def _audible(self, cell: Any, starts: list[int]) -> list[int]:
        try:
            return audible(self.read(cell), starts, self.window, self.silence)
        except BadSample:
            return starts

    def _clip(self, cell: Any, window: int) -> Clip:
        start = cell.get("start") if isinstance(cell, dict) else None
        return Clip(bytes_or_path(cell), window, self.rate, span_of(cell), start)


def cells_of(rows, column: str, index: list[int]) -> list[dict[str, Any] | None]:
    """Cells of some rows. Bytes stay in the table, as buffers: of a long recording only what is decoded is read."""
    if not index:
        return []
    made = []
    for chunk in rows.select_columns([column]).with_format("arrow")[index][column].chunks:
        held, paths = chunk.field("bytes"), chunk.field("path").to_pylist()
        valid = chunk.is_valid().to_pylist()
        made += [{"bytes": held_at(held, i), "path": paths[i]} if valid[i] else None for i in range(len(chunk))]
    return made


def held_at(array, i: int):
    """A value of an array of bytes, as a buffer that is a part of it; None where there is none."""
    import pyarrow as pa

    if not array.is_valid()[i].as_py():
        return None
    if not (pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type)):
        return array[i].as_py()
    _, offsets, data = array.buffers()
    kind = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    begin, end = np.frombuffer(offsets, kind)[array.offset + i :][:2].tolist()
    return data.slice(begin, end - begin)


def over(rows, column: str, work: Callable, *beside: Iterable) -> Iterator[Any]:
    """What `work` makes of each cell, and of what stands beside it, in their order."""
    more = [iter(values) for values in beside]
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(rows), READ):
            cells = cells_of(rows, column, list(range(start, min(start + READ, len(rows)))))
            yield from pool.map(work, cells, *(list(islice(values, len(cells))) for values in more))


def audible(recording: Clip, starts: list[int], window: int, below: float) -> list[int]:
    """Of the windows of a recording those whose level (RMS) is at most `below` dB under the loudest's, and not zero."""
    level = [float(np.square(w, dtype=np.float64).mean()) for w in recording.windows(starts, window)]
    least = max(level) * 10 ** (-below / 10)
    return [start for start, power in zip(starts, level, strict=True) if power > 0 and power >= least]
