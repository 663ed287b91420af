"""Position embeddings over integer coordinates: fixed sin-cos or learned, in any number of axes."""

import math
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


def sincos(extent: tuple[int, ...], width: int) -> Float[Tensor, "n d"]:
    """Fixed sin-cos table of a grid, last axis fastest (Vaswani et al. 2017; in 2-D as in MAE, He et al. 2022).

    The width is shared evenly between the axes, *last axis first*: published MAE weights have that order. An odd rest
    is left zero.
    """
    axes = len(extent)
    share = width // (2 * axes)
    frequency = 1.0 / 10000 ** (np.arange(share) / max(share, 1))
    grid = np.meshgrid(*(np.arange(length) for length in extent), indexing="ij")
    table = np.zeros((math.prod(extent), width))
    for i, axis in enumerate(reversed(grid)):
        angle = axis.reshape(-1, 1) * frequency
        table[:, 2 * i * share : 2 * (i + 1) * share] = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    return torch.from_numpy(table.astype(np.float32))


class Positions(nn.Module):
    """A table of places, looked up by integer coordinates.

    Args:
        extent: length of each axis of the full view, in pieces.
        width: width of a place.
        learned: train the table (it starts as sin-cos) instead of keeping it fixed.

    `sizes` are the grids of further views. They lie below the full grid on the first axis (see `offset`), and their
    places are interpolated bicubically from the full table, as the native classes do it.
    """

    no_decay: ClassVar[tuple[str, ...]] = ("table",)

    def __init__(self, extent: tuple[int, ...], width: int, learned: bool = False):
        super().__init__()
        self.extent: tuple[int, ...] = tuple(extent)
        self.sizes: tuple[tuple[int, ...], ...] = ()
        self.table = nn.Parameter(sincos(extent, width), requires_grad=learned)

    def offset(self, size: tuple[int, ...]) -> int:
        """The first coordinate on axis 0 of the grid of that size."""
        rows = 0
        for known in (self.extent, *self.sizes):
            if known == tuple(size):
                return rows
            rows += known[0]
        raise ValueError(f"no view of {size} pieces was declared; declared: {(self.extent, *self.sizes)}")

    def forward(self, position: Int[Tensor, "r n a"]) -> Float[Tensor, "r n d"]:
        table, span = self.table, max(s[-1] for s in (self.extent, *self.sizes))
        if len(self.extent) == 1:
            return F.embedding(position[..., 0], table)
        if not self.sizes:
            return F.embedding(position[..., 0] * self.extent[1] + position[..., 1], table)
        full = table.view(*self.extent, -1)
        grids = [full] + [
            F.interpolate(full.permute(2, 0, 1)[None], size=s, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
            for s in self.sizes
        ]
        table = torch.cat([F.pad(g, (0, 0, 0, span - g.shape[1])).flatten(0, 1) for g in grids])
        return F.embedding(position[..., 0] * span + position[..., 1], table)
