"""Recordings cut into windows: every second of a recording is in one of its windows, each of which is decoded alone."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

import numpy as np

from triptych.modalities.audio_file import Clip

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

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Any) -> Any:
        """As `datasets` has it: a row, columns of several rows, or a column."""
        if isinstance(key, str):
            return self.source if key == "source_row" else self[:][key]
        index = np.arange(len(self))[key]
        rows, back = np.unique(self.source[index], return_inverse=True)  # a long recording is fetched once
        found = self.rows[rows.tolist()]
        made = {name: [values[i] for i in back.ravel()] for name, values in found.items()}
        starts = self.start[index].ravel().tolist()
        made[self.column] = [c and c | {"start": s} for c, s in zip(made[self.column], starts, strict=True)]
        made["source_row"] = self.source[index].ravel().tolist()
        return made if index.ndim else {name: values[0] for name, values in made.items()}


def over(rows, column: str, work: Callable, *beside: Iterable) -> Iterator[Any]:
    """What `work` makes of each cell, and of what stands beside it, in their order."""
    more = [iter(values) for values in beside]
    with ThreadPoolExecutor(THREADS) as pool:
        for batch in rows.select_columns([column]).iter(READ):
            cells = batch[column]
            yield from pool.map(work, cells, *(list(islice(values, len(cells))) for values in more))


def audible(recording: Clip, starts: list[int], window: int, below: float) -> list[int]:
    """Of the windows of a recording those whose level (RMS) is at most `below` dB under the loudest's, and not zero."""
    level = [float(np.square(w, dtype=np.float64).mean()) for w in recording.windows(starts, window)]
    least = max(level) * 10 ** (-below / 10)
    return [start for start, power in zip(starts, level, strict=True) if power > 0 and power >= least]
