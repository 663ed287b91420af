"""Heads: normalisation as torch's, views apart, float32 under autocast."""

import pytest
import torch
from torch import nn

from triptych.objectives.heads import BatchNorm, Head, MLPHead


def norms(affine: bool = True):
    torch.manual_seed(0)
    ours, theirs = BatchNorm(6, affine), nn.BatchNorm1d(6).train()
    if affine:
        with torch.no_grad():
            for a, b in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
                b.copy_(a.copy_(torch.randn(6)))
    return ours, theirs


@pytest.mark.parametrize("affine", [True, False])
def test_it_normalises_as_torch_does_with_gradient(affine):
    ours, theirs = norms(affine)
    x = (3 + 2 * torch.randn(9, 6)).requires_grad_()
    other = x.detach().clone().requires_grad_()
    weight = torch.randn(9, 6)
    mine, its = ours(x), theirs(other)
    torch.testing.assert_close(mine, its, atol=5e-6, rtol=1e-5)
    (mine * weight).sum().backward()
    (its * weight).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, atol=5e-6, rtol=1e-4)
    if affine:
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, atol=1e-5, rtol=1e-5)
    assert not list(ours.buffers()) and ours.weight.requires_grad == affine


def test_views_are_normalised_apart():
    ours, _ = norms()
    views = torch.stack([torch.randn(9, 6), 5 + torch.randn(9, 6)])
    torch.testing.assert_close(ours(views), torch.stack([ours(v) for v in views]))


def test_a_large_mean_does_not_spoil_the_variance():
    ours, _ = norms(False)
    x = torch.randn(64, 6)
    torch.testing.assert_close(ours(x + 1000), ours(x), atol=2e-3, rtol=2e-3)


def test_statistics_are_float32_under_autocast():
    ours, theirs = norms()
    x = torch.randn(9, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        made = ours(x)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, theirs(x.float()), atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_head_has_the_layers_asked_for(layers, norm):
    head = MLPHead(8, Head(16, 4, layers, norm))
    linear = [m for m in head if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in linear] == [(16, 8), (16, 16), (4, 16)][: layers - 1] + [
        (4, 16 if layers > 1 else 8)
    ]
    assert all(m.bias is None for m in linear[:-1]) and linear[-1].bias is not None
    kind = BatchNorm if norm == "batch" else nn.LayerNorm
    assert sum(isinstance(m, kind) for m in head) == layers - 1
    assert head(torch.randn(2, 5, 8)).shape == (2, 5, 4)
