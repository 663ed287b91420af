"""Which pieces to hide: random, in blocks (spans, in one dimension) or all but blocks, by the sample's seed.

Every kind gives each piece a key and hides, of each sample's eligible pieces, an exact number with the lowest keys:
`n - floor(n · (1 - ratio))`, as MAE counts. A key is a hash of the sample's seed and the piece's place, so a mask does
not depend on packing, ranks or device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triptych.modalities.base import Modality
from triptych.modalities.domains import Count, Share
from triptych.modalities.hashing import MASK, mix
from triptych.modalities.view import View


@dataclass(frozen=True)
class Mask:
    """Which pieces an objective hides or drops.

    Args:
        ratio: fraction of each sample's pieces.
        kind: pieces at `random`, in a `block` (a span, in one dimension), or all but blocks (`inverse_block`).
        block: side of a block in pieces.
    """

    ratio: Share = 0.75
    kind: Literal["random", "block", "inverse_block"] = "random"
    block: Count = 3


SALT = 0x3A5C  # keeps masks apart from what else a seed is used for


def random(view: View, block: int) -> Int[Tensor, "r n"]:
    """Keys that are pure noise. Pieces that share a `group` in the view (a word) are hidden together."""
    seed = piece_seed(view)
    if view.group is not None:
        return mix(seed, SALT, view.group)
    return mix(seed, SALT, *view.position.unbind(-1))


def blocks(view: View, block: int) -> Int[Tensor, "r n"]:
    """Keys that hide cubes of side `block`, one after another: squares of a grid, spans of a text.

    Every cube that holds a piece, also those that stick out, has a number by its first corner; a piece has the lowest
    number of the cubes around it. So the lowest keys are those of a random sequence of cubes.
    """
    seed, position, lowest = mix(piece_seed(view), SALT + 1), view.position, None
    for offset in product(range(block), repeat=position.shape[-1]):
        number = mix(seed, *(position[..., axis] - step for axis, step in enumerate(offset)))
        lowest = number if lowest is None else torch.minimum(lowest, number)
    return lowest


def inverse_blocks(view: View, block: int) -> Int[Tensor, "r n"]:
    """Keys that keep cubes of side `block` (data2vec 2.0, Baevski et al. 2023, section 3.3)."""
    return MASK - blocks(view, block)


MASKINGS: dict[str, Callable] = {"random": random, "block": blocks, "inverse_block": inverse_blocks}


def hide(
    view: View, ratio: float, kind: str, block: int, eligible: Bool[Tensor, "r n"] | None = None
) -> Bool[Tensor, "r n"]:
    """True for the pieces to hide. In packed rows each sample with an eligible piece hides at least one."""

    def number(count):
        return hidden_of(count, ratio) if view.segment is None else hidden_of(count, ratio).clamp(min=1)

    chosen = MASKINGS[kind]
    ties = None if chosen is random else random(view, block)  # pieces of one cube come in random order
    return lowest(view, chosen(view, block), number, eligible, ties)


def lowest(
    view: View,
    key: Int[Tensor, "r n"],
    number: Callable,
    eligible: Bool[Tensor, "r n"] | None = None,
    ties: Int[Tensor, "r n"] | None = None,
) -> Bool[Tensor, "r n"]:
    """True for the eligible pieces of each sample that have the lowest keys: `number(n)` of n. Equal keys go by `ties`.

    `number` is given an int where all samples have as many, or else a tensor of counts.
    """
    pieces, segment = view.data.shape[1], view.segment
    if eligible is None and segment is not None:
        eligible = segment > 0
    if eligible is not None:
        key = key + (MASK + 1) * ~eligible
    if segment is not None:
        key = key + (MASK + 1) * 2 * segment
    if ties is None:
        order = key.argsort(dim=1, stable=True)
    else:
        order = ties.argsort(dim=1, stable=True)
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    place = torch.arange(pieces, device=key.device).expand_as(order)
    if segment is None:
        wanted = number(pieces if eligible is None else eligible.sum(1, keepdim=True))
        chosen = torch.empty_like(order).scatter(1, order, place) < wanted
        return chosen if eligible is None else chosen & eligible
    wanted = number(counts(view, eligible))
    sorted_segment = segment.gather(1, order)
    first = torch.ones_like(sorted_segment, dtype=torch.bool)
    first[:, 1:] = sorted_segment[:, 1:] != sorted_segment[:, :-1]
    start = torch.where(first, place, 0).cummax(1).values
    rank = torch.empty_like(order).scatter(1, order, place - start)
    return (rank < wanted[segment]) & eligible


def counts(view: View, eligible: Bool[Tensor, "r n"]) -> Int[Tensor, " s"]:
    """How many eligible pieces each segment has; that of segment 0 comes first."""
    count = torch.zeros(len(view) + 1, dtype=torch.long, device=view.segment.device)
    return count.index_add(0, view.segment.flatten(), eligible.flatten().long())


class Boxes(NamedTuple):
    """Boxes of a view, and its context. Of c boxes: `index` and `valid` `[c r h]`; of the rest: `[r k]`.

    A piece of a box that had to stay in the context, so that a sample is not without any, is not valid.
    """

    index: Int[Tensor, "c r h"]
    valid: Bool[Tensor, "c r h"]
    kept_index: Int[Tensor, "r k"]
    kept_valid: Bool[Tensor, "r k"]


def boxes(
    view: View, share: float, count: int, eligible: Bool[Tensor, "r n"] | None = None, stay: int | None = 0
) -> Boxes:
    """Boxes that may overlap, each of about `share` of a sample's places, and of what lies in none a fixed number.

    A box has the grid's aspect (a span, in one dimension), and lies anywhere. Of a sample's n pieces
    `max(1, n - count · size)` are kept, none of them in a box if that can be: where boxes overlap, some more are left
    out at random. `stay` is as in `split`.
    """
    seed, pieces, packed = mix(piece_seed(view), SALT + 2), view.data.shape[1], view.segment is not None
    if packed:
        assert view.position.shape[-1] == 1, "samples of several lengths have one axis"
        eligible = view.segment > 0 if eligible is None else eligible
        lengths = (counts(view, eligible)[view.segment],)
        sides = (span(lengths[0], share),)
    else:
        lengths, sides = view.grid, sides_of(view.grid, share)
    inside = []
    for box in range(count):
        within = torch.ones_like(view.position[..., 0], dtype=torch.bool)
        for axis, (length, side) in enumerate(zip(lengths, sides, strict=True)):
            room = (length - side).clamp(min=0) if packed else length - side
            corner = mix(seed, box, axis) % (room + 1)
            within = within & (view.position[..., axis] >= corner) & (view.position[..., axis] < corner + side)
        inside.append(within if eligible is None else within & eligible)
    within = torch.stack(inside)

    def number(n):
        if packed:
            return torch.minimum(count * span(n, share), n - 1).clamp(min=0)
        return min(count * math.prod(sides), n - 1)

    hidden = lowest(view, (~within.any(0)).long(), number, eligible, random(view, 1))
    there = view.segment > 0 if packed else torch.ones_like(hidden)
    if packed:
        samples = view.samples.shape[1]
        most = hidden_of(pieces, share) + samples
        left = int(pieces * max(0.0, 1 - count * share)) + samples * (count // 2 + 2 + (stay or 0))
        left = pieces if stay is None else min(pieces, left)
    else:
        most, left = math.prod(sides), pieces - number(pieces)
    index, valid = zip(*(_first(box, min(pieces, most)) for box in within), strict=True)
    index = torch.stack(index)
    valid = torch.stack(valid) & hidden.expand(count, -1, -1).gather(2, index)
    return Boxes(index, valid, *_first(~hidden & there, left))


def sides_of(grid: tuple[int, ...], share: float) -> tuple[int, ...]:
    """Sides of a box of about that share of a grid, in its aspect; an axis of one place counts for none."""
    axes = max(1, sum(length > 1 for length in grid))
    return tuple(max(1, round(length * share ** (1 / axes))) if length > 1 else 1 for length in grid)


def span(length: Int[Tensor, "*s"], share: float) -> Int[Tensor, "*s"]:
    """The same of samples of several lengths, on one axis."""
    return (length * share).round().long().clamp(min=1)


class Dropped(NamedTuple):
    """A view cut in two: `kept` and `dropped`; of the latter, `index [r h]` in the view and which are `valid [r h]`."""

    kept: View
    dropped: View
    index: Tensor
    valid: Tensor


def drop(view: View, mask: Mask, modality: Modality) -> Dropped:
    """Take the pieces that the mask chooses out of a view; of a grid of several, at least one is kept."""
    ratio = sparing(view, mask.ratio)
    hidden = hide(view, ratio, mask.kind, mask.block, modality.droppable(view))
    index, valid, kept_index, kept_valid = split(view, hidden, ratio, modality.stay)
    view = view.replace(secret=modality.secret(view, hidden))
    return Dropped(view.keep(kept_index, kept_valid), view.keep(index, valid), index, valid)


def sparing(view: View, ratio: float) -> float:
    """The ratio, or, where it would leave a grid no piece, one that leaves it one. (A text keeps its last token.)"""
    pieces = view.data.shape[1]
    # Half a piece more, so that no rounding makes it none.
    return min(ratio, 1 - 1.5 / pieces) if view.segment is None and pieces > 1 else ratio


def predictable(view: View, valid: Bool[Tensor, "r h"], modality: Modality) -> Bool[Tensor, "r h"] | None:
    """Of pieces that were taken out, those that count: neither holes nor padding. None for all."""
    target = modality.hideable(view)
    if view.segment is None:
        return target
    return valid if target is None else valid & target


def take(values: Float[Tensor, "r n d"], index: Int[Tensor, "r h"]) -> Float[Tensor, "r h d"]:
    """Values of the pieces at `index`."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def hidden_index(view: View, hidden: Bool[Tensor, "r n"], ratio: float):
    """Index `[r h]` and validity of the pieces that `hide` chose, whatever was eligible, in static numbers a row."""
    pieces = hidden.shape[1]
    spare = view.samples.shape[1] if view.segment is not None else 0  # every sample rounds up once
    return _first(hidden, min(pieces, hidden_of(pieces, ratio) + spare))


def split(view: View, hidden: Bool[Tensor, "r n"], ratio: float, stay: int | None = 0):
    """Index and validity of the hidden pieces, as `hidden_index` gives them, and of all others, `[r k]`.

    `stay` is how many pieces of a sample were not eligible, at most; None for any number, which costs the work of whole
    rows. Of n pieces, s of which stay, `s + floor((n - s) · (1 - ratio))` are kept or fewer: no piece is lost.
    """
    pieces, packed = hidden.shape[1], view.segment is not None
    if stay is None:
        most = pieces
    else:
        samples = view.samples.shape[1] if packed else 1
        most = int(pieces * (1 - ratio) + samples * stay * ratio)
        if packed or stay:
            most = min(pieces, most + 1)  # floors of parts are rounded apart from the floor of the whole
    there = view.segment > 0 if packed else torch.ones_like(hidden)
    return *hidden_index(view, hidden, ratio), *_first(~hidden & there, most)


def _first(wanted: Bool[Tensor, "r n"], count: int):
    """Index of the first `count` places of each row that are True, and then of others, with which they are."""
    index = (~wanted).byte().argsort(dim=1, stable=True)[:, :count]
    return index, wanted.gather(1, index)


def hidden_of(pieces, ratio: float):
    """How many of so many pieces (a number, or a tensor of numbers) are hidden."""
    if isinstance(pieces, Tensor):
        return pieces - (pieces.double() * (1 - ratio)).floor().long()
    return pieces - int(pieces * (1 - ratio))


def piece_seed(view: View) -> Int[Tensor, "r n"]:
    """The seed of each piece's sample, `[r n]` or broadcastable to it."""
    if view.segment is None:
        return view.seed[:, None]
    return torch.cat([view.seed.new_zeros(1), view.seed])[view.segment]
