"""Levels: the values of pictures with more than 8 bits a channel, or of other channels, as floats in 0..1.

Pictures of 8 bits are 0..255 everywhere. Wider integers and floats have one range each for a whole set, so that the
same value looks the same in every picture.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from triptych.modalities.base import BadSample
from triptych.modalities.image_views import LUMA

Range = tuple[float, float]
BITS = (8, 10, 12, 14, 16)  # that a set of integers may have
HOUNSFIELD = (-1024.0, 3071.0)  # the range of 12 bits of a CT
AIR = (-4096.0, -900.0)  # where the least value of a CT lies: air is -1000, what is outside of the bore is less
OPTION = {"integers": "value_range", "floats": "float_range"}  # by the kind of a picture
WHOLE = {"integers": (0.0, 2.0**16 - 1), "floats": (0.0, 1.0)}  # where no row says more
KEPT = 2**16  # values a channel of a picture from which mean and deviation are taken
MUCH = 0.5  # share of values beyond the range from which on nothing is left of a picture


class Raw(NamedTuple):
    """Values `[c h w]` of a picture as its file has them. `inverted`: the least one is white."""

    values: np.ndarray
    inverted: bool = False

    @property
    def kind(self) -> str:
        """`bytes`, `integers` of more than 8 bits, or `floats`."""
        return (
            {"u": "integers", "i": "integers", "f": "floats"}[self.values.dtype.kind] if not self.is_bytes else "bytes"
        )

    @property
    def is_bytes(self) -> bool:
        return self.values.dtype == np.uint8


class Levels(NamedTuple):
    """A picture as floats in 0..1 `[c h w]`, and which share of its values was beyond the range, and clipped."""

    values: Tensor
    beyond: float = 0.0


def levels(raw: Raw, channels: int, ranges: dict[str, Range], percentiles: Range | None = None) -> Levels:
    """A picture's values by the range of their kind, or by percentiles of its own. Raises `BadSample`."""
    values, beyond = raw.values, 0.0
    if raw.is_bytes:
        share = values.astype(np.float32) / np.float32(255)
    else:
        if raw.kind == "floats" and not np.isfinite(values).all():
            raise BadSample("pixels that are not finite: put a number where nothing was measured")
        if percentiles is not None:
            low, high = np.percentile(values, percentiles)
            high = max(high, math.nextafter(low, math.inf))
        else:
            low, high = ranges[raw.kind]
            least, most = values.min(), values.max()
            beyond = float(((values < low) | (values > high)).mean()) if least < low or most > high else 0.0
        if beyond > MUCH:
            raise BadSample(
                f"values {least:g} to {most:g}, beyond the range {low:g} to {high:g}: give a wider one, "
                f"--modality.{OPTION[raw.kind]}"
            )
        wide = np.float32 if values.dtype in (np.uint16, np.int16, np.float32) else np.float64  # that holds them
        share = values.astype(wide)
        share -= low
        share *= 1 / (high - low)
        share = share.clip(0, 1, out=share).astype(np.float32, copy=False)
    share = 1 - share if raw.inverted else share
    return Levels(torch.from_numpy(np.ascontiguousarray(as_channels(share, channels))), beyond)


def as_channels(share: np.ndarray, channels: int) -> np.ndarray:
    """Grey for colours, equal colours for grey, opaque alpha for none; what has other channels is refused."""
    have = len(share)
    if have == channels:
        return share
    if have == 3 and channels == 1:
        return sum(share[i : i + 1] * np.float32(part) for i, part in enumerate(LUMA))
    if have == 1 and channels in (3, 4):
        share = np.repeat(share, 3, 0)
    if len(share) == channels:
        return share
    if len(share) == 3 and channels == 4:
        return np.concatenate([share, np.ones_like(share[:1])])
    raise BadSample(f"{have} channels, where modality.channels is {channels}")


def fitting(least: float, most: float, bulk: float, kind: str) -> Range:
    """The range of a set with such values, of which nearly all are at most `bulk`."""
    if kind == "floats" and 0 <= least <= most <= 1:
        return WHOLE["floats"]
    if 0 <= least <= most < 2**16 and (kind == "integers" or most > 255):  # of 12 bits in 16, or of 8
        return 0.0, float(next(2**bits - 1 for bits in BITS if most < 2**bits))
    if AIR[0] <= least <= AIR[1] and bulk <= HOUNSFIELD[1]:
        return HOUNSFIELD
    return least, max(most, math.nextafter(least, math.inf))


@dataclass
class Looked:
    """What some pictures of a set hold: how many of each kind, their values, and a part of the values themselves."""

    count: dict[str, int] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    some: list[Raw] = field(default_factory=list)

    def add(self, raw: Raw) -> None:
        kind, values = raw.kind, raw.values
        if not values.size or kind == "floats" and not np.isfinite(values).all():
            return  # the loader will count and name it
        self.count[kind] = self.count.get(kind, 0) + 1
        self.least[kind] = min(self.least.get(kind, math.inf), float(values.min()))
        self.most[kind] = max(self.most.get(kind, -math.inf), float(values.max()))
        step = max(1, math.isqrt(values[0].size // KEPT))
        self.some.append(Raw(values[:, ::step, ::step].copy(), raw.inverted))

    @property
    def deep(self) -> list[str]:
        """Kinds of more than 8 bits."""
        return [kind for kind in WHOLE if kind in self.count]

    def describe(self, kind: str, chosen: Range, given: bool, percentiles: Range | None) -> str:
        """How many there are, their values, and what is done with them, in words."""
        what = "integers of more than 8 bits" if kind == "integers" else "floats"
        said = f"{self.count[kind]} of {what}, {self.least[kind]:g} to {self.most[kind]:g}: "
        if percentiles is not None:
            return said + "percentiles {:g} and {:g} of each are its black and white".format(*percentiles)
        low, high = chosen
        said += f"{low:g} is black and {high:g} white in all (modality.{OPTION[kind]})"
        if given and (beyond := self.beyond(kind, low, high)):
            return f"{said}; {beyond:.2g} of their values are beyond, and clipped"
        bulk = self.bulk(kind)
        if not given and low < bulk < low + (high - low) / 4:
            return f"{said}; 999 of 1,000 values are at most {bulk:g}; narrow the range if more is a marker"
        if not given and (found := self.marker(kind)) is not None:
            return (
                f"{said}; {found[0]:g} is far from all other values, {found[1]:g} to {found[2]:g}: if it marks what is "
                f"missing, give --modality.{OPTION[kind]} {found[1]:g},{found[2]:g}"
            )
        return said

    def bulk(self, kind: str) -> float:
        """What 999 of 1,000 values are at most."""
        return float(np.quantile(np.concatenate([raw.values.ravel() for raw in self.some if raw.kind == kind]), 0.999))

    def marker(self, kind: str) -> tuple[float, float, float] | None:
        """The least or the largest value, if it is farther from all others than they are apart; and their ends."""
        values = np.concatenate([raw.values.ravel() for raw in self.some if raw.kind == kind])
        for extreme in (values.min(), values.max()):
            others = values[values != extreme]
            if not len(others):
                return None
            low, high = float(others.min()), float(others.max())
            if high > low and max(low - float(extreme), float(extreme) - high) > high - low:
                return float(extreme), low, high
        return None

    def range(self, kind: str) -> Range:
        return fitting(self.least[kind], self.most[kind], self.bulk(kind), kind)

    def beyond(self, kind: str, low: float, high: float) -> float:
        """Which share of the values is beyond a range."""
        values = np.concatenate([raw.values.ravel() for raw in self.some if raw.kind == kind])
        return float(((values < low) | (values > high)).mean())

    def statistics(self, channels: int, ranges: dict[str, Range], percentiles: Range | None):
        """Mean and deviation of each channel over the pictures, all of which count alike."""
        total, squares, count = np.zeros(channels), np.zeros(channels), 0
        for values in self._levels(channels, ranges, percentiles):
            total, squares, count = total + values.mean((1, 2)), squares + np.square(values).mean((1, 2)), count + 1
        if not count:
            return None
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
        # A channel that is the same everywhere is not blown up.
        return mean.tolist(), np.where(deviation < 1e-4, 1.0, deviation).tolist()

    def _levels(self, channels: int, ranges: dict[str, Range], percentiles: Range | None) -> Iterator[np.ndarray]:
        for raw in self.some:
            try:
                yield levels(raw, channels, ranges, percentiles).values.double().numpy()
            except BadSample:  # it will be named when it is read
                continue
