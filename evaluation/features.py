"""Frozen features of rows, from their evaluation views: vectors by pooling, or each piece's, of one layer or of all."""

import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from triptych.encoders.backbone import Backbone, Pooling, apart, pool
from triptych.modalities import EVALUATION, BadSample, View
from triptych.training.bad_samples import clipped_line
from triptych.training.loader import as_it_is, name_of
from triptych.training.sources import Rows, relative

POOLINGS = ("native", "mean")
PLAIN = "plain"  # what stands beside them where no encoder was asked
READ = 32  # rows that are taken from the table at once

Bad = dict[int, tuple[str, str]]  # (name, reason) by row


class Features(NamedTuple):
    """Vectors `[n d]` by pooling, the number of each one's row, and what was wrong with rows that have none."""

    x: dict[str, np.ndarray]
    row: np.ndarray
    bad: Bad


@torch.no_grad()
def extract(
    backbone: Backbone,
    rows: Rows,
    batch: int = 250,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    plain: bool = False,
    most: int | None = None,
) -> Features:
    """Features by pooling: `native` is what the native head reads, `mean` that of all pieces (`Modality.average`).

    A row that is several samples, as long texts and sounds are, gets the mean of all of them.
    `workers`: see `views`. `plain`: also what the modality has without an encoder, if anything, as `plain`.
    `most`: samples in all, about; where there are more, each row is that many fewer, evenly spread over it.
    """
    total: dict[str, np.ndarray] = {}
    count, bad = np.zeros(len(rows)), {}
    for view, row, _ in views(backbone, rows, bad, batch, workers, device, most):
        np.add.at(count, row, 1)
        pooled = backbone(view, (backbone.pooling, backbone.modality.average))
        made = dict(zip(POOLINGS, pooled, strict=True))
        if plain and (values := backbone.modality.plain(view)) is not None:
            made[PLAIN] = values
        for pooling, vectors in made.items():
            vectors = vectors.double().cpu().numpy()
            sums = total.setdefault(pooling, np.zeros((len(rows), vectors.shape[1])))
            np.add.at(sums, row, vectors)
    count[list(bad)] = 0  # a file that breaks off in its middle is left out whole
    good = np.flatnonzero(count)
    x = {pooling: (sums[good] / count[good, None]).astype(np.float32) for pooling, sums in total.items()}
    return Features(x, good, bad)


@torch.no_grad()
def vectors(
    backbone: Backbone,
    rows: Rows,
    pooling: Pooling | None = None,
    every_layer: bool = False,
    batch: int = 64,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    seen: Callable[[int], None] = lambda row: None,
) -> tuple[dict[int, np.ndarray], Bad]:
    """By row: vectors `[l d]` by a pooling, or, without one, those of all pieces, `[l n d]`; and the rows without.

    There is one layer, the last, or all: the embedding and each block. A row of several samples has the mean of their
    vectors, as `extract` has it, or all of their pieces, one sample after another. `seen` is told rows that are begun.
    """
    parts: dict[int, list[tuple[int, np.ndarray]]] = {}
    total, count, bad = {}, np.zeros(len(rows), dtype=np.int64), {}
    for view, row, sample in views(backbone, rows, bad, batch, workers, device):
        layers = backbone.layers(view) if every_layer else [backbone.encode(view)]
        if pooling is None:
            made = zip(*(apart(layer, view) for layer in layers), strict=True)
            for i, number, pieces in zip(row.tolist(), sample, made, strict=True):
                parts.setdefault(i, []).append((number, torch.stack(pieces).float().cpu().numpy()))
        else:
            made = torch.stack([pool(layer, view, pooling) for layer in layers], 1).double().cpu().numpy()
            for i, vector in zip(row.tolist(), made, strict=True):
                total[i] = total.get(i, 0) + vector
                count[i] += 1
        seen(int(row.max()) + 1)
    if pooling is None:
        # Several workers' samples come mixed; those of one sample in their order.
        ordered = {i: sorted(some, key=lambda part: part[0]) for i, some in parts.items()}
        found = {i: np.concatenate([pieces for _, pieces in some], axis=1) for i, some in ordered.items()}
    else:
        found = {i: (vector / count[i]).astype(np.float32) for i, vector in total.items()}
    return {i: found[i] for i in sorted(found) if i not in bad}, bad


def views(
    backbone: Backbone,
    rows: Rows,
    bad: Bad,
    batch: int,
    workers: int | None,
    device: torch.device | str,
    most: int | None = None,
) -> Iterator[tuple[View, np.ndarray, np.ndarray]]:
    """Evaluation views of all samples, on the device; the row and the number of each. Unusable rows go into `bad`.

    `workers`: processes that read. Default: none on a CPU, which they would share; else one a core, and at most 8.
    `most`: see `extract`.
    """
    backbone, device = backbone.to(device).eval(), torch.device(device)
    modality = backbone.modality
    if workers is None:
        workers = 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
    table = modality.samples(rows.table, rows.column)
    owner = np.asarray(table["source_row"]) if "source_row" in table.column_names else np.arange(len(table))
    if most is not None and len(table) > most:
        kept = spread_over(owner, max(1, most // len(rows)))
        table, owner = table.select(kept), owner[kept]
    feed = DataLoader(
        EvaluationViews(table, rows.column, modality, batch),
        batch_size=None,
        collate_fn=as_it_is,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        pin_memory=device.type == "cuda",
    )
    beyond: dict[int, tuple[str, float]] = {}
    for made in feed:
        beyond |= {int(owner[i]): (relative(name, rows.root), share) for i, (name, share) in made["beyond"].items()}
        bad |= {int(owner[i]): why for i, why in made["bad"].items()}
        if "view" in made:
            yield modality.prepare(made["view"].to(device)), owner[made["sample"]], made["sample"]
    if beyond:
        say_once(clipped_line(beyond.values()))


def spread_over(owner: np.ndarray, most: int) -> np.ndarray:
    """The numbers of at most so many samples of each row, evenly spread over it; `owner [n]` is ascending."""
    _, first, count = np.unique(owner, return_index=True, return_counts=True)
    kept = np.minimum(count, most)
    place = np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)  # 0, 1, ... within each row
    of, out_of = np.repeat(count, kept), np.repeat(kept, kept)
    return np.repeat(first, kept) + (2 * place + 1) * of // (2 * out_of)


@cache
def say_once(text: str) -> None:
    """Features of the same rows are taken many times in a run."""
    print(text, flush=True)


class EvaluationViews(IterableDataset):
    """Evaluation views of a table's samples, in batches."""

    def __init__(self, table, column: str, modality, batch: int):
        self.table, self.column, self.modality, self.batch = table, column, modality, batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        made, sample, bad, self.beyond = [], [], {}, {}
        for start in range(first * READ, len(self.table), step * READ):
            for i, cell in enumerate(self.table[start : start + READ][self.column], start):
                try:
                    read = self.modality.read(cell)
                    if share := self.modality.beyond(read):
                        self.beyond[i] = name_of(cell), share
                    made.append(self.modality.view(read, EVALUATION, 0))
                    sample.append(i)
                except BadSample as error:
                    bad[i] = name_of(cell), str(error)
                if len(made) == self.batch:
                    yield self._batch(made, sample, bad)
                    made, sample, bad = [], [], {}
        yield self._batch(made, sample, bad)

    def _batch(self, made: list[dict], sample: list[int], bad: dict) -> dict[str, Any]:
        beyond, self.beyond = self.beyond, {}
        if not made:
            return {"bad": bad, "beyond": beyond}
        view = self.modality.collate(made, torch.zeros(len(made), dtype=torch.long))
        return {"view": view, "sample": np.asarray(sample), "bad": bad, "beyond": beyond}
