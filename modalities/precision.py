"""Full float32 where it matters, whatever a run's precision: in filterbanks and losses, neither autocast nor TF32."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor


def allow_tf32(allowed: bool) -> None:
    """Let a GPU round the factors of float32 products to 10 bits of mantissa, for a multiple of the speed."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def full(device: torch.device) -> Iterator[None]:
    """Within, float32 is float32. What is differentiated later needs `product`, too: gradients are products."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow_tf32(False)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def product(a: Float[Tensor, "*r n k"], b: Float[Tensor, "*r k m"]) -> Float[Tensor, "*r n m"]:
    """`a @ b` in full float32, and so its gradients: for similarities and correlations in losses."""
    a, b = a.float(), b.float()
    return _uncompiled()(a, b) if torch.backends.cuda.matmul.allow_tf32 else a @ b


@cache
def _uncompiled():
    """The compiler cannot follow a switch of precision; to say so imports it, which takes seconds."""
    return torch.compiler.disable(_Product.apply)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        with full(a.device):
            return a @ b

    @staticmethod
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        with full(a.device):
            return gradient @ b.mT, a.mT @ gradient
