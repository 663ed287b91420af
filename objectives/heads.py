"""Projection heads, and the normalisation over the global batch that they may use."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from triptych.modalities.domains import Number, Width
from triptych.objectives import collectives


class BatchNorm(nn.Module):
    """Normalises each feature over the samples of all ranks, in float32 (Ioffe and Szegedy 2015).

    Over the second to last axis: views, on axes before it, are normalised apart. There are no running statistics, since
    heads are thrown away after training.
    """

    def __init__(self, width: int, affine: bool = True, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width), requires_grad=affine)
        self.bias = nn.Parameter(torch.zeros(width), requires_grad=affine)

    def forward(self, x: Float[Tensor, "*v b d"]) -> Float[Tensor, "*v b d"]:
        with torch.autocast(x.device.type, enabled=False):
            return standardised(x.float(), self.eps) * self.weight + self.bias


def centred(x: Float[Tensor, "*v b d"]) -> Float[Tensor, "*v b d"]:
    """Each feature minus its mean over the samples of all ranks; views, on axes before, apart."""
    return x - collectives.total(x.sum(-2, keepdim=True)) / (x.shape[-2] * collectives.ranks())


def standardised(x: Float[Tensor, "*v b d"], eps: float = 1e-5) -> Float[Tensor, "*v b d"]:
    """Each feature centred, and over its (biased) deviation among the samples of all ranks."""
    x = centred(x)
    variance = collectives.total(x.square().sum(-2, keepdim=True)) / (x.shape[-2] * collectives.ranks())
    return x * torch.rsqrt(variance + eps)


NORMS = {"batch": BatchNorm, "layer": nn.LayerNorm}


@dataclass(frozen=True)
class Head:
    """A projection head.

    Args:
        hidden: width of the hidden layers.
        out: width of a projection.
        layers: number of linear layers; 0 has no head: the encoder's vectors themselves are compared.
        norm: `batch` normalises over the global batch, `layer` over each sample's features.
    """

    hidden: Width = 2048
    out: Width = 128
    layers: Number = 2
    norm: Literal["batch", "layer"] = "batch"


class MLPHead(nn.Sequential):
    """Linear, norm, ReLU, as often as asked, then Linear.

    Args:
        width: width of the input.
        head: the other sizes, and the normalisation.
    """

    def __init__(self, width: int, head: Head):
        modules: list[nn.Module] = []
        for _ in range(head.layers - 1):
            modules += [nn.Linear(width, head.hidden, bias=False), NORMS[head.norm](head.hidden), nn.ReLU()]
            width = head.hidden
        super().__init__(*modules, *([nn.Linear(width, head.out)] if head.layers else []))
        for module in self:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def projector(width: int, head: Head) -> MLPHead:
    """The head of an objective that cannot do without one."""
    if head.layers < 1:
        raise ValueError("objective.head.layers 0 is not in [1, inf); try 2: what is predicted is a projection")
    return MLPHead(width, head)
