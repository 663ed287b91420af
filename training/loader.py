"""The loader: which rows are trained on, in an order that is a pure function of (seed, epoch, step), and batches."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from triptych.modalities import BadSample, Modality, ViewSpec
from triptych.modalities.hashing import mix, uniform
from triptych.training.errors import UserError
from triptych.training.groups import groups_of
from triptych.training.ranks import Team
from triptych.training.signals import deaf
from triptych.training.sources import Rows, print_once

HELD = 0x0E7A
DRAWN = 10_000  # samples that are drawn to replace one
OTHER, MIXED = 0x07E4, 100  # keeps the other sample apart from what else a seed is used for; how many are tried


def held_out(count: int, fraction: float, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on and to hold out. A row's lot depends on its number alone, or on its group's name."""
    if groups is None:
        lot = uniform(HELD, torch.arange(count)).numpy() < fraction
    else:
        names, index = np.unique(groups, return_inverse=True)
        hashes = [int.from_bytes(hashlib.blake2b(n.encode(), digest_size=7).digest(), "little") for n in names]
        lot = (uniform(HELD, torch.tensor(hashes)).numpy() < fraction)[index]
    return np.flatnonzero(~lot), np.flatnonzero(lot)


class Division(NamedTuple):
    """The samples that are trained on, or those that are held out, and the number of each one's row in the data."""

    table: Any  # datasets.Dataset
    numbers: np.ndarray


def divided_once(rows: Rows, fraction: float, team: Team) -> tuple[Division, Division]:
    """Samples to train on and to hold out. What that takes to know is found by the first rank; others are told.

    Documents are cut by the first rank, too; others find that cached.
    """
    starts, note = team.first(lambda: rows.modality.starts(rows.table, rows.column))
    if note:
        print_once(f"data: {note}")
    parts = team.each(lambda: held_out(len(rows), fraction, groups_of(rows, "to train on")))
    return team.each(lambda: tuple(division(rows, index, starts) for index in parts), turns=True)


def division(rows: Rows, index: np.ndarray, starts: list[list[int]] | None = None) -> Division:
    """Samples of some rows. `starts`: those of all rows' windows (`Modality.starts`)."""
    some = None if starts is None else [starts[i] for i in index]
    table = rows.modality.samples(rows.table.select(index), rows.column, some) if len(index) else []
    if not len(table):
        return Division(table, index)
    numbers = index[np.asarray(table["source_row"])] if "source_row" in table.column_names else index
    return Division(table.select_columns([rows.column]), numbers)


class Order:
    """Which sample is where: the global batch of every step, for any number of ranks and workers.

    An epoch is a permutation by (seed, epoch); its last, partial batch is left out. A step's samples are cut into
    micro-batches first and into ranks then, so that a micro-batch of all ranks is that of one.
    """

    def __init__(self, samples: int, batch: int, seed: int):
        self.samples, self.batch, self.seed = samples, batch, seed
        self.steps_an_epoch = samples // batch
        if not self.steps_an_epoch:
            raise UserError(
                f"{samples} samples to train on, fewer than a step's batch of {batch}; lower "
                "per_device_train_batch_size or gradient_accumulation_steps"
            )
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def step(self, step: int) -> tuple[int, np.ndarray]:
        """Epoch and sample numbers of a step."""
        epoch, start = divmod(step, self.steps_an_epoch)
        if epoch != self._epoch:
            random = np.random.Generator(np.random.PCG64(mix(self.seed, 0x0DE4, epoch)))
            self._epoch, self._permutation = epoch, random.permutation(self.samples)
        return epoch, self._permutation[start * self.batch : (start + 1) * self.batch]

    def micro_batches(
        self, first: int, last: int, micro: int, rank: int, ranks: int
    ) -> Iterator[list[tuple[int, int]]]:
        """(epoch, sample) of this rank's micro-batches, for steps from `first` to before `last`."""
        for step in range(first, last):
            epoch, samples = self.step(step)
            for part in samples.reshape(micro, ranks, -1):
                yield [(epoch, int(i)) for i in part[rank]]


class Samples(Dataset):
    """Reads, augments and collates whole micro-batches, in a worker. Unusable samples are replaced and named."""

    def __init__(
        self, table, column: str, modality: Modality, views: tuple[ViewSpec, ...], seed: int, max_bad: int, numbers=None
    ):
        self.table, self.column, self.modality = table, column, modality
        self.views, self.seed, self.max_bad = views, seed, max_bad
        # Of each sample's row in the data, or of the first row of its recording.
        self.numbers = np.arange(len(table)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, batch: list[tuple[int, int]]) -> dict[str, Any]:
        cells = self.table[[i for _, i in batch]][self.column]
        made, bad, used, beyond = [], {}, [], {}
        for (epoch, row), cell in zip(batch, cells, strict=True):
            row, cell, (views, share) = self._usable(row, cell, mix(self.seed, epoch + 1, row), bad)
            made.append(views)
            used.append(row)
            if share:
                beyond[int(self.numbers[row])] = (name_of(cell), share)
        seeds = torch.tensor([mix(self.seed, epoch + 1, row) for epoch, row in batch])
        row = torch.tensor(used)
        views = [self.modality.collate([m[v] for m in made], seeds) for v in range(len(self.views))]
        # Windows of one recording are not each other's negatives.
        recording = torch.from_numpy(self.numbers)[row]
        views = [v.replace(row=row, identity=recording if v.identity is None else v.identity) for v in views]
        return {"views": views, "bad": bad, "beyond": beyond}

    def _usable(self, row: int, cell: Any, seed: int, bad: dict[int, tuple[str, str]]):
        """The sample, or the one in its place, and what `_views` makes of it. Unusable ones go into `bad`."""
        lost: set[int] = set()  # recordings that it was not to be had from; a broken one has many windows
        for attempt in range(1, DRAWN):
            number = int(self.numbers[row])
            try:
                if number not in lost:
                    return row, cell, self._views(cell, seed)
            except BadSample as error:
                bad[number] = (name_of(cell), str(error))
                lost.add(number)
            if len(lost) > self.max_bad + 10:
                break
            row = mix(row, attempt) % len(self.table)
            cell = self.table[row][self.column]
        raise UserError(f"no usable sample in {attempt} tries; the last: {bad.popitem()[1]}")

    def _views(self, cell: Any, seed: int) -> tuple[list[dict[str, Tensor]], float]:
        """The views of a sample, and which share of its values was clipped."""
        sample = self.modality.read(cell)
        made = [self.modality.view(sample, spec, seed) for spec in self.views]
        mixed = [
            self._mixed(one, spec, seed) if self.modality.mixes(spec) else one
            for one, spec in zip(made, self.views, strict=True)
        ]
        return mixed, self.modality.beyond(sample)

    def _mixed(self, made: dict[str, Tensor], spec: ViewSpec, seed: int) -> dict[str, Tensor]:
        """With another sample of the data mixed in: which one is by the seed alone, on any ranks."""
        for attempt in range(MIXED):
            other = self.table[mix(seed, OTHER, spec.index, attempt) % len(self.table)][self.column]
            with suppress(BadSample):  # named when it is its own turn
                return self.modality.mix_in(made, self.modality.read(other), spec, seed)
        raise UserError(f"none of {MIXED} samples can be mixed in; the last: {name_of(other)}")


def name_of(cell: Any) -> str:
    """A name for a cell that people can find again."""
    return str(cell.get("path")) if isinstance(cell, dict) else str(cell)[:80]


def as_it_is(batch):
    return batch


def loader(samples: Samples, batches, workers: int, device: torch.device) -> DataLoader:
    """Micro-batches in the order of `batches`, from `workers` processes."""
    return DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=as_it_is,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # what ZeRO-3 hangs on a module cannot be sent
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
        persistent_workers=False,
    )


@contextmanager
def reading(batches: DataLoader) -> Iterator[Iterator[dict[str, Any]]]:
    """Within, a loader's workers are at work, deaf to the signals that ask the run to stop: it still needs them then.

    So they are deaf to the end of their process, too, which would wait for them for ever: they are told to end.
    """
    with deaf():
        feed = iter(batches)
    try:
        yield feed
    finally:
        if batches.num_workers:
            feed._shutdown_workers()
