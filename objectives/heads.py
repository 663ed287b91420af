"""Projection heads, and the normalisation over the global batch that they may use."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from objectives import collectives


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
            x = x.float()
            count = x.shape[-2] * collectives.ranks()
            x = x - collectives.total(x.sum(-2, keepdim=True)) / count
            variance = collectives.total(x.square().sum(-2, keepdim=True)) / count
            return x * torch.rsqrt(variance + self.eps) * self.weight + self.bias


NORMS = {"batch": BatchNorm, "layer": nn.LayerNorm}


class MLPHead(nn.Sequential):
    """Linear, norm, ReLU, as often as asked, then Linear.

    Args:
        width: width of the input.
        hidden: width of the hidden layers.
        out: width of the output.
        layers: number of linear layers.
        norm: `batch` normalises over the global batch, `layer` over each sample's features.
    """

    def __init__(self, width: int, hidden: int, out: int, layers: int = 2, norm: Literal["batch", "layer"] = "batch"):
        modules: list[nn.Module] = []
        for _ in range(layers - 1):
            modules += [nn.Linear(width, hidden, bias=False), NORMS[norm](hidden), nn.ReLU()]
            width = hidden
        super().__init__(*modules, nn.Linear(width, out))
        for module in self:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
