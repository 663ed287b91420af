"""Frozen features of rows, from their evaluation views, by both poolings."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from triptych.encoders.backbone import Backbone
from triptych.modalities import BadSample
from triptych.training.loader import as_it_is, name_of
from triptych.training.sources import Rows

POOLINGS = ("native", "mean")
READ = 32  # rows that are taken from the table at once


class Features(NamedTuple):
    """Vectors `[n d]` by pooling, the number of each one's row, and what was wrong with rows that have none."""

    x: dict[str, np.ndarray]
    row: np.ndarray
    bad: dict[int, tuple[str, str]]  # (name, reason)


@torch.no_grad()
def extract(
    backbone: Backbone,
    rows: Rows,
    batch: int = 250,
    workers: int | None = None,
    device: torch.device | str = "cpu",
) -> Features:
    """Features by pooling: `native` is what the native head reads, `mean` that of all pieces.

    A row that is several samples (a long text) or longer than the window (a long sound) gets the mean of all of them.
    `workers`: processes that read. Default: none on a CPU, which they would share; else one a core, and at most 8.
    """
    backbone, device = backbone.to(device).eval(), torch.device(device)
    modality = backbone.modality
    if workers is None:
        workers = 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
    table = modality.samples(rows.table, rows.column)
    owner = np.asarray(table["source_row"]) if "source_row" in table.column_names else np.arange(len(table))
    feed = DataLoader(
        Parts(table, rows.column, modality, batch),
        batch_size=None,
        collate_fn=as_it_is,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        pin_memory=device.type == "cuda",
    )
    total: dict[str, np.ndarray] = {}
    count, bad = np.zeros(len(rows)), {}
    for made in feed:
        bad |= {int(owner[i]): why for i, why in made["bad"].items()}
        if "view" not in made:
            continue
        view = modality.prepare(made["view"].to(device))
        row = owner[made["sample"]]
        np.add.at(count, row, 1)
        pooled = backbone(view, (backbone.pooling, "pieces"))
        for pooling, vectors in zip(POOLINGS, pooled, strict=True):
            vectors = vectors.double().cpu().numpy()
            sums = total.setdefault(pooling, np.zeros((len(rows), vectors.shape[1])))
            np.add.at(sums, row, vectors)
    count[list(bad)] = 0  # a file that breaks off in its middle is left out whole
    good = np.flatnonzero(count)
    x = {pooling: (sums[good] / count[good, None]).astype(np.float32) for pooling, sums in total.items()}
    return Features(x, good, bad)


class Parts(IterableDataset):
    """Evaluation views of a table's samples, in batches that do not grow with the length of a sample."""

    def __init__(self, table, column: str, modality, batch: int):
        self.table, self.column, self.modality, self.batch = table, column, modality, batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        made, sample, bad = [], [], {}
        for start in range(first * READ, len(self.table), step * READ):
            for i, cell in enumerate(self.table[start : start + READ][self.column], start):
                try:
                    for part in self.modality.parts(self.modality.read(cell)):
                        made.append(part)
                        sample.append(i)
                        if len(made) == self.batch:
                            yield self._batch(made, sample, bad)
                            made, sample, bad = [], [], {}
                except BadSample as error:
                    bad[i] = name_of(cell), str(error)
        yield self._batch(made, sample, bad)

    def _batch(self, made: list[dict], sample: list[int], bad: dict) -> dict[str, Any]:
        if not made:
            return {"bad": bad}
        view = self.modality.collate(made, torch.zeros(len(made), dtype=torch.long))
        return {"view": view, "sample": np.asarray(sample), "bad": bad}
