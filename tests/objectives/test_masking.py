"""Masks: exact numbers, whatever the packing; uniform; blocks are blocks and words are whole."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from triptych.encoders.backbone import Encoded, pool_pieces
from triptych.modalities import View
from triptych.objectives import masking

KINDS = list(masking.MASKINGS)


def grid(samples: int, *extent: int) -> View:
    """A view of whole samples, one a row."""
    torch.manual_seed(0)
    position = torch.cartesian_prod(*(torch.arange(e) for e in extent)).view(1, -1, len(extent))
    data = torch.zeros(samples, position.shape[1])
    return View(data=data, position=position, seed=torch.randint(1 << 32, (samples,)), grid=extent)


def packed(lengths: list[int], row: int) -> View:
    """Samples of those lengths laid into rows of `row` pieces, in another order than the batch's."""
    rows: list[list[int]] = [[]]
    for sample in reversed(range(len(lengths))):
        if sum(lengths[s] for s in rows[-1]) + lengths[sample] > row:
            rows.append([])
        rows[-1].append(sample)
    shape = (len(rows), row)
    segment, position = torch.zeros(shape, dtype=torch.long), torch.zeros(*shape, 1, dtype=torch.long)
    slots = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for r, samples in enumerate(rows):
        at = 0
        for slot, sample in enumerate(samples):
            here = slice(at, at + lengths[sample])
            segment[r, here] = slots[r, slot] = sample + 1
            position[r, here, 0] = torch.arange(lengths[sample])
            at += lengths[sample]
    torch.manual_seed(0)
    seed = torch.randint(1 << 32, (len(lengths),))
    return View(data=segment, position=position, segment=segment, samples=slots, seed=seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.1, 0.15, 0.3, 0.5, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("extent", [(10,), (8, 8), (5, 7)])
def test_numbers_are_exact(extent, ratio, kind):
    view = grid(6, *extent)
    pieces = view.data.shape[1]
    hide = masking.hide(view, ratio, kind, 3)
    assert (hide.sum(1) == pieces - int(pieces * (1 - ratio))).all()
    every = torch.ones_like(hide)
    assert torch.equal(masking.hide(view, ratio, kind, 3, every), hide)
    some = torch.rand(hide.shape) < 0.5
    chosen, count = masking.hide(view, ratio, kind, 3, some), some.sum(1)
    assert not (chosen & ~some).any()
    assert chosen.sum(1).tolist() == [n - int(n * (1 - ratio)) for n in count.tolist()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.75, 0.9])
def test_a_mask_depends_on_the_seed_and_not_on_the_packing(ratio, kind):
    lengths = [7, 12, 1, 10, 10, 3, 16, 2]
    view = packed(lengths, 20)
    hide = masking.hide(view, ratio, kind, 3)
    assert not (hide & (view.segment == 0)).any()
    for i, length in enumerate(lengths):
        alone = grid(1, length).replace(seed=view.seed[i : i + 1])
        assert torch.equal(hide[view.segment == i + 1], masking.hide(alone, ratio, kind, 3)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stay", [0, 1, 3, None])
def test_split_loses_nothing(stay, kind):
    """Whatever may be hidden, in any packing, at any ratio; and the numbers are those of the shapes alone."""
    random = np.random.default_rng(0)
    for _ in range(60):
        ratio, row = (
            random.choice([0.1, 0.25, 0.5, 0.75, 0.9, random.uniform(0.01, 0.99)]),
            int(random.integers(15, 70)),
        )
        view = packed(random.integers(1, 15, 30).tolist(), row)
        eligible = view.segment > 0
        for segment in range(1, 31):
            places = (view.segment == segment).nonzero()
            count = len(places) if stay is None else min(stay, len(places))
            left_out = places[random.permutation(len(places))[: random.integers(count + 1)]]
            eligible[left_out[:, 0], left_out[:, 1]] = False
        hide = masking.hide(view, ratio, kind, 3, eligible)
        index, valid, other, there = masking.split(view, hide, ratio, stay)
        parts = [torch.zeros_like(hide).scatter(1, i, v) for i, v in ((index, valid), (other, there))]
        assert torch.equal(parts[0], hide)
        assert torch.equal(parts[1], ~hide & (view.segment > 0))
        none = masking.split(view, torch.zeros_like(hide), ratio, stay)
        assert [t.shape for t in none] == [t.shape for t in (index, valid, other, there)]


@pytest.mark.parametrize("pieces", [2, 3, 4, 9, 10, 49])
def test_of_a_grid_of_several_pieces_one_is_kept_and_else_as_many_as_the_ratio_says(pieces):
    modality = SimpleNamespace(droppable=lambda view: None, secret=lambda view, hidden: None, stay=0)
    for ratio in (0.1, 0.5, 2 / 3, 0.75, 0.9, 0.99):
        cut = masking.drop(grid(3, pieces), masking.Mask(ratio), modality)
        assert cut.kept.data.shape == (3, max(1, int(pieces * (1 - ratio))))
        assert cut.dropped.data.shape[1] + cut.kept.data.shape[1] == pieces and cut.valid.all()
    nothing = Encoded(torch.ones(3, 1, 1, 4), torch.ones(3, 0, 4))
    assert torch.equal(pool_pieces(nothing, grid(3, 1)), torch.zeros(3, 4))  # not NaN


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.75, 0.9])
def test_whole_rows_are_split_without_holes(ratio):
    view = grid(5, 7, 9)
    index, valid, other, there = masking.split(view, masking.hide(view, ratio, "random", 3), ratio)
    assert valid.all() and there.all()
    assert torch.equal(torch.cat([index, other], 1).sort(1).values, torch.arange(63).expand(5, -1))


@pytest.mark.parametrize("kind", ["block", "inverse_block"])
def test_blocks_of_long_rows_take_no_long_time(kind):
    view, begun = packed([16_000, 300], 20_000), time.monotonic()
    hide = masking.hide(view, 0.5, kind, 3)
    assert hide[view.segment == 1].sum() == 8000 and time.monotonic() - begun < 2


def test_every_place_is_hidden_as_often():
    hide = masking.hide(grid(4000, 6, 6), 0.25, "random", 3).double()
    assert (hide.mean(0) - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5
    assert len(torch.unique(hide, dim=0)) > 3990
    together = torch.corrcoef(hide.T) - torch.eye(36)
    assert (together + 1 / 35).abs().max() < 5 / 4000**0.5  # exact numbers alone correlate places


def in_squares(cells: torch.Tensor, block: int) -> torch.Tensor:
    """Which of the True cells lie in a square (or a span) of True cells; squares may stick out of the grid."""
    dims = cells.ndim - 1
    erode, dilate = (F.max_pool1d, F.max_pool2d)[dims - 1], (F.max_pool1d, F.max_pool2d)[dims - 1]
    padded = F.pad(cells.float(), (block - 1,) * (2 * dims), value=1)[:, None]
    whole = 1 - erode(1 - padded, block, 1)
    return (dilate(F.pad(whole, (block - 1,) * (2 * dims)), block, 1)[:, 0] > 0)[
        (slice(None), *[slice(block - 1, 1 - block)] * dims)
    ] & cells


@pytest.mark.parametrize("kind", ["block", "inverse_block"])
@pytest.mark.parametrize("extent, block", [((14, 14), 3), ((9, 16), 4), ((60,), 5)])
def test_blocks_are_squares_and_spans_but_for_the_last(extent, block, kind):
    view = grid(40, *extent)
    hide = masking.hide(view, 0.4 if kind == "block" else 0.6, kind, block).unflatten(1, extent)
    cells = hide if kind == "block" else ~hide
    rest = (cells & ~in_squares(cells, block)).flatten(1).sum(1)
    assert (rest < block ** len(extent)).all()
    loose = masking.hide(view, 0.4, "random", block).unflatten(1, extent)
    assert in_squares(loose, block).sum() < 0.5 * in_squares(cells, block).sum()


def test_pieces_of_a_group_are_hidden_together():
    view = grid(50, 40)
    words = torch.randint(1, 5, (50, 40)).cumsum(1) // 4
    hide = masking.hide(view.replace(group=words), 0.3, "random", 3)
    assert (hide.sum(1) == 12).all()
    for sample, word in zip(hide, words, strict=True):
        shares = [sample[word == w].double().mean().item() for w in word.unique()]
        assert sum(0 < share < 1 for share in shares) <= 1  # the last one, for the exact number


@pytest.mark.parametrize("share, count", [(0.175, 4), (0.3, 2), (0.5, 3)])
@pytest.mark.parametrize("extent", [(20,), (1, 25), (14, 14), (4, 4), (2, 2), (1, 1)])
def test_boxes_are_boxes_and_the_context_is_beside_them(extent, share, count):
    view = grid(50, *extent)
    made, pieces = masking.boxes(view, share, count), view.data.shape[1]
    axes = max(1, sum(e > 1 for e in extent))
    sides = [max(1, round(e * share ** (1 / axes))) if e > 1 else 1 for e in extent]
    size = int(np.prod(sides))
    assert made.index.shape == (count, 50, size)
    assert made.kept_index.shape == (50, max(1, pieces - count * size)) and made.kept_valid.all()
    for sample in range(50):
        context = set(made.kept_index[sample].tolist())
        for box, valid in zip(made.index[:, sample], made.valid[:, sample], strict=True):
            corner = view.position[0, box].amin(0)
            assert ((view.position[0, box].amax(0) - corner + 1).tolist()) == sides
            assert context.isdisjoint(box[valid].tolist()) and set(box[~valid].tolist()) <= context
    if pieces - count * size >= 1:
        assert made.valid.all()
    corners = view.position[0][made.index.flatten(0, 1)].amin(1)
    for axis, (length, side) in enumerate(zip(extent, sides, strict=True)):
        assert set(corners[:, axis].tolist()) == set(range(length - side + 1))  # anywhere


def test_boxes_do_not_depend_on_the_packing():
    lengths = [7, 12, 1, 10, 10, 3, 16, 2]
    view = packed(lengths, 20)
    made = masking.boxes(view, 0.175, 4)
    assert not made.valid[:, view.segment.gather(1, made.index[0]) == 0].any()
    for i, length in enumerate(lengths):
        alone = grid(1, length).replace(seed=view.seed[i : i + 1], grid=None).one_a_row()
        single = masking.boxes(alone, 0.175, 4)

        def places(view, index, valid, sample):
            found = view.segment.gather(1, index) * valid == sample
            return sorted(view.position[..., 0].expand(index.shape[0], -1).gather(1, index)[found].tolist())

        for box in range(4):
            got = places(view, made.index[box], made.valid[box], i + 1)
            assert got == places(alone, single.index[box], single.valid[box], 1)
            assert got == list(range(got[0], got[-1] + 1)) if length > 6 else True
        kept = places(view, made.kept_index, made.kept_valid, i + 1)
        assert kept == places(alone, single.kept_index, single.kept_valid, 1)
        assert len(kept) == length - max(0, min(4 * max(1, round(length * 0.175)), length - 1))
