"""Differentiable collectives. Nothing else calls `torch.distributed` inside a loss.

Convention: every rank's loss is a part whose *mean* over ranks is the loss of the joined batch, and the engine averages
gradients. Then the gradient of a gathered or summed tensor is the sum over ranks of what each rank asks of it, and
nothing is averaged twice.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gather(x: Tensor) -> Tensor:
    """Concatenate `x` of all ranks along the first axis, in rank order. All ranks give the same shape."""
    return x if ranks() == 1 else _Gather.apply(x)


def total(x: Tensor) -> Tensor:
    """Sum `x` over all ranks."""
    return x if ranks() == 1 else _Total.apply(x)


def mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """A rank's part of the weighted mean of all ranks' values: the mean over ranks of what this returns is that mean.

    Kept as (sum, count) until the last division, so that ranks with fewer values count less. Nothing at all gives 0.
    It is the mean of one micro-batch of all ranks: under accumulation micro-batches count equally, however many values
    they have.
    """
    if weight is None:
        return values.mean()  # as many values on every rank
    weight = weight.to(values.dtype)
    count = total(weight.sum().detach())
    return (values * weight).sum() * ranks() / count.clamp(min=1)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        whole = x.new_empty(ranks(), *x.shape)
        dist.all_gather(list(whole.unbind()), x.contiguous())
        return whole.flatten(0, 1)

    @staticmethod
    def backward(ctx, gradient):
        parts = list(gradient.contiguous().unflatten(0, (ranks(), -1)).unbind())
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts)  # a rank gets the sum for its own rows, and nothing else
        return own


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient
