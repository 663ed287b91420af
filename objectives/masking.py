"""Which pieces to hide: random, in blocks (spans, in one dimension) or all but blocks, by the sample's seed.

Every kind gives each piece a key and hides, of each sample's eligible pieces, an exact number with the lowest keys:
`n - floor(n · (1 - ratio))`, as MAE counts. A key is a hash of the sample's seed and the piece's place, so a mask does
not depend on packing, ranks or device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from modalities.domains import Count, Share
from modalities.hashing import mix, uniform
from modalities.view import View


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
HIGH = 1 << 33  # above any 32-bit noise


def random(view: View, block: int) -> Int[Tensor, "r n"]:
    """Keys that are pure noise. Pieces that share a `group` in the view (a word) are hidden together."""
    seed = piece_seed(view)
    if view.group is not None:
        return mix(seed, SALT, view.group)
    return mix(seed, SALT, *view.position.unbind(-1))


def blocks(view: View, block: int) -> Int[Tensor, "r n"]:
    """Keys that hide cubes of side `block` first: squares of a grid, spans of a text."""
    return _first_cover(view, block) * HIGH + random(view, block)


def inverse_blocks(view: View, block: int) -> Int[Tensor, "r n"]:
    """Keys that keep cubes of side `block` (data2vec 2.0, Baevski et al. 2023, section 3.3)."""
    return (_cubes(view, block) - _first_cover(view, block)) * HIGH + random(view, block)


MASKINGS: dict[str, Callable] = {"random": random, "block": blocks, "inverse_block": inverse_blocks}


def hide(
    view: View, ratio: float, kind: str, block: int, eligible: Bool[Tensor, "r n"] | None = None
) -> Bool[Tensor, "r n"]:
    """True for the pieces to hide. In packed rows each sample with an eligible piece hides at least one."""
    key = MASKINGS[kind](view, block)
    pieces, top = key.shape[1], HIGH * (_cubes(view, block) + 1)
    if eligible is None and view.segment is not None:
        eligible = view.segment > 0
    if eligible is not None:
        key = key + top * ~eligible
    if view.segment is None:
        rank = key.argsort(dim=1, stable=True).argsort(dim=1)
        count = torch.full_like(key[:, :1], pieces) if eligible is None else eligible.sum(1, keepdim=True)
        hidden = (
            count - (count.double() * (1 - ratio)).floor().long() if eligible is not None else _hidden(pieces, ratio)
        )
        chosen = rank < hidden
        return chosen if eligible is None else chosen & eligible
    segment = view.segment
    count = torch.zeros(len(view) + 1, dtype=torch.long, device=key.device)
    count = count.index_add(0, segment.flatten(), eligible.flatten().long())
    hidden = (count - (count.double() * (1 - ratio)).floor().long()).clamp(min=1)
    order = (key + segment * (2 * top)).argsort(dim=1, stable=True)  # by sample, then by key
    sorted_segment = segment.gather(1, order)
    place = torch.arange(pieces, device=key.device).expand_as(order)
    first = torch.ones_like(sorted_segment, dtype=torch.bool)
    first[:, 1:] = sorted_segment[:, 1:] != sorted_segment[:, :-1]
    start = torch.where(first, place, 0).cummax(1).values
    rank = torch.empty_like(order).scatter(1, order, place - start)
    return (rank < hidden[segment]) & eligible


def split(view: View, hidden: Bool[Tensor, "r n"], ratio: float):
    """Indices of the hidden pieces and of the others, each with its validity, in static numbers a row.

    Returns (hidden index [r h], valid [r h], other index [r n-h or more], valid).
    """
    pieces = hidden.shape[1]
    spare = view.samples.shape[1] if view.segment is not None else 0  # every sample rounds up once
    high = min(pieces, _hidden(pieces, ratio) + spare)
    # Never less than this is kept; packed samples may each keep one that cannot be hidden, and rows may hold holes.
    low = min(pieces, pieces - _hidden(pieces, ratio) + spare) if view.segment is not None else pieces - high
    there = view.segment > 0 if view.segment is not None else torch.ones_like(hidden)
    chosen, others = hidden & there, ~hidden & there
    chosen_index = (~chosen).byte().argsort(dim=1, stable=True)[:, :high]
    other_index = (~others).byte().argsort(dim=1, stable=True)[:, :low]
    return chosen_index, chosen.gather(1, chosen_index), other_index, others.gather(1, other_index)


def piece_seed(view: View) -> Int[Tensor, "r n"]:
    """The seed of each piece's sample, `[r n]` or broadcastable to it."""
    if view.segment is None:
        return view.seed[:, None]
    return torch.cat([view.seed.new_zeros(1), view.seed])[view.segment]


def _hidden(pieces: int, ratio: float) -> int:
    return pieces - int(pieces * (1 - ratio))


def _cubes(view: View, block: int) -> int:
    """How many random cubes surely suffice to cover most of a row."""
    return 1 + math.ceil(3 * view.data.shape[1] / block ** view.position.shape[-1])


def _first_cover(view: View, block: int) -> Int[Tensor, "r n"]:
    """Number of the first of a sequence of random cubes that covers each piece; the number of cubes, if none does."""
    position, cubes = view.position.expand(len(view.data), -1, -1), _cubes(view, block)
    if view.segment is not None:
        segment = view.segment.flatten()
        shape = (len(view) + 1, position.shape[-1])
        index = segment[:, None].expand(-1, shape[1])
        flat, empty = position.flatten(0, 1), position.new_zeros(shape)
        low = empty.scatter_reduce(0, index, flat, "amin", include_self=False)[view.segment]
        high = empty.scatter_reduce(0, index, flat, "amax", include_self=False)[view.segment]
    else:
        low, high = position.amin(1, keepdim=True), position.amax(1, keepdim=True)
    number = torch.arange(cubes, device=position.device)
    inside = torch.ones(1, dtype=torch.bool, device=position.device)
    for axis in range(position.shape[-1]):
        draw = uniform(piece_seed(view)[..., None], SALT + 1 + axis, number)  # [r n j], the same for a sample
        reach = (high - low)[..., axis, None] + block
        corner = low[..., axis, None] + 1 - block + (draw * reach).long()
        here = position[..., axis, None]
        inside = inside & (corner <= here) & (here < corner + block)
    return torch.where(inside, number, cubes).amin(-1)
