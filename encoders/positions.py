"""Position embeddings over integer coordinates: fixed sin-cos or learned, in any number of axes."""

import math

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
    """A table of places on a grid, looked up by integer coordinates.

    Args:
        extent: length of each axis of the table, in pieces.
        width: width of a place.
        learned: train the table (it starts as sin-cos) instead of keeping it fixed.
        antialias: smooth before a smaller grid is taken from the table.

    The places of a view with another grid are interpolated bicubically from the table, as the native classes do it.
    """

    no_decay = ("table",)

    def __init__(self, extent: tuple[int, ...], width: int, learned: bool = False, antialias: bool = False):
        super().__init__()
        self.extent: tuple[int, ...] = tuple(extent)
        self.antialias = antialias
        self.table = nn.Parameter(sincos(extent, width), requires_grad=learned)

    def forward(self, position: Int[Tensor, "r n a"], grid: tuple[int, ...] | None = None) -> Float[Tensor, "r n d"]:
        """Places at `position` on `grid`; without one, on the table's own."""
        if len(self.extent) == 1:
            return F.embedding(position[..., 0], self.table)
        grid = self.extent if grid is None else tuple(grid)
        table = self.table if grid == self.extent else resample(self.table, self.extent, grid, self.antialias)
        return F.embedding(position[..., 0] * grid[1] + position[..., 1], table)


def resample(
    table: Float[Tensor, "n d"], extent: tuple[int, int], grid: tuple[int, int], antialias: bool = False
) -> Float[Tensor, "m d"]:
    """The places of another grid, bicubic, in float32, as the native classes have it."""
    full = table.unflatten(0, extent).permute(2, 0, 1)[None].float()
    made = F.interpolate(full, size=grid, mode="bicubic", align_corners=False, antialias=antialias)
    return made[0].flatten(1).T.to(table.dtype)
