"""An order of samples that is a pure function of seed, epoch and step, and batches that depend on nothing else."""

import datasets
import numpy as np
import pytest
import support
import torch

from triptych.modalities import Audio, Image, ViewSpec
from triptych.training.errors import UserError
from triptych.training.loader import Order, Samples, held_out, loader
from triptych.training.settings import Data
from triptych.training.sources import load

CPU = torch.device("cpu")
PITCHES = range(300, 4000, 300)


def joined(order: Order, first: int, last: int, micro: int, ranks: int) -> list[list[tuple[int, int]]]:
    """Global micro-batches of steps, from what each rank is given."""
    parts = [list(order.micro_batches(first, last, micro, rank, ranks)) for rank in range(ranks)]
    return [sum(together, []) for together in zip(*parts, strict=True)]


def test_order_is_that_of_one_rank_on_any_number_of_ranks():
    def order():
        return Order(100, 24, 5)

    whole = joined(order(), 0, 9, 1, 1)
    for ranks in (1, 2, 3, 4):
        for micro in (1, 2):
            parts = joined(order(), 0, 9, micro, ranks)
            steps = [sum(parts[i : i + micro], []) for i in range(0, len(parts), micro)]
            assert steps == whole, (ranks, micro)


def test_order_can_start_anywhere():
    whole = joined(Order(100, 24, 5), 0, 12, 2, 2)
    for first in (1, 3, 4, 5, 11):  # an epoch is four steps
        assert joined(Order(100, 24, 5), first, 12, 2, 2) == whole[2 * first :]


def test_an_epoch_has_each_sample_once():
    order = Order(96, 24, 5)
    epochs = [[i for s in range(4 * e, 4 * e + 4) for i in order.step(s)[1]] for e in range(3)]
    assert all(sorted(e) == list(range(96)) for e in epochs)
    assert epochs[0] != epochs[1] and epochs[0] != [int(i) for s in range(4) for i in Order(96, 24, 6).step(s)[1]]
    with pytest.raises(UserError, match="10 samples to train on, fewer than a step's batch of 24"):
        Order(10, 24, 5)


def test_views_do_not_depend_on_workers_or_ranks(pictures):
    rows = load(Data(name=str(pictures)), Image(8, 4))
    views = (ViewSpec(scale=(0.2, 1.0)), ViewSpec(scale=(0.2, 1.0), strength="strong", index=1))
    samples = Samples(rows.table, rows.column, rows.modality, views, 3, 10)

    def batches(ranks, workers):
        made = []
        for rank in range(ranks):
            order = Order(len(rows), 12, 3).micro_batches(0, 6, 1, rank, ranks)
            made.append(list(loader(samples, order, workers, CPU)))
        return [[torch.cat([p["views"][v].data for p in parts]) for v in (0, 1)] for parts in zip(*made, strict=True)]

    one = batches(1, 0)
    for ranks, workers in ((1, 1), (1, 3), (2, 0), (3, 2)):
        for a, b in zip(one, batches(ranks, workers), strict=True):
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    # The same row in another epoch gives other views.
    first, second = (samples.__getitems__([(epoch, 0)])["views"][0].data for epoch in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_mixed_in_does_not_depend_on_the_batch_or_the_ranks(damaged):
    """Another clip of the data, by the sample's seed; one that cannot be read is passed over."""
    cells = [{"bytes": support.encoded(support.tone(0.1, pitch=p)), "path": None} for p in PITCHES]
    if damaged:
        cells[5] = {"bytes": b"hello", "path": None}
    table = datasets.Dataset.from_list([{"audio": c} for c in cells])
    modality = Audio(seconds=0.1, tile=(128, 2), mixup=0.4, mean=0.0, std=1.0)
    specs = (ViewSpec(), *(ViewSpec(strength="strong", index=i) for i in (1, 2)))
    samples = Samples(table, "audio", modality, specs, 3, 10)
    whole = samples.__getitems__([(0, i) for i in range(12)])["views"]
    for size in (1, 3, 4):
        parts = [samples.__getitems__([(0, i) for i in range(at, at + size)])["views"] for at in range(0, 12, size)]
        for number, view in enumerate(whole):
            assert torch.equal(torch.cat([part[number].data for part in parts]), view.data)
    unmixed = Samples(table, "audio", Audio(0.1, tile=(128, 2), mean=0.0, std=1.0), specs, 3, 10)
    plain = unmixed.__getitems__([(0, i) for i in range(12)])["views"]
    assert [torch.equal(a.data, b.data) for a, b in zip(whole, plain, strict=True)] == [True, False, False]


def test_held_out_rows_are_a_function_of_their_number():
    training, evaluation = held_out(10_000, 0.01)
    assert sorted([*training, *evaluation]) == list(range(10_000))
    assert 60 < len(evaluation) < 140
    more = held_out(20_000, 0.01)[1]
    assert set(evaluation) == {i for i in more if i < 10_000}
    assert set(evaluation) < set(held_out(10_000, 0.05)[1])
    assert len(held_out(1000, 0.0)[1]) == 0


def test_replacements_come_in_a_fixed_order_and_are_told_apart(pictures):
    names = sorted(p.name for p in pictures.iterdir())
    for bad in (3, 7):
        (pictures / names[bad]).write_bytes(b"none")
    rows = load(Data(name=str(pictures)), Image(8, 4))
    samples = Samples(rows.table, rows.column, rows.modality, (ViewSpec(),), 3, 10, numbers=np.arange(48) + 100)
    batch = [(0, 2), (0, 3), (0, 7), (0, 8)]
    made = samples.__getitems__(batch)
    assert set(made["bad"]) == {103, 107}
    used = made["views"][0].row.tolist()
    assert made["views"][0].identity.tolist() == [row + 100 for row in used]
    assert used[0] == 2 and used[3] == 8 and not {3, 7} & set(used)
    assert samples.__getitems__(batch)["views"][0].row.tolist() == used
    assert len(made["views"][0].data) == 4
