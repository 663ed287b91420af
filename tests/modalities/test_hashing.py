"""Numbers by hashing have the distributions that they claim."""

import torch

from triptych.modalities.hashing import normal


def test_normal_numbers_have_the_moments_of_a_normal_distribution():
    x = normal(torch.tensor(5), torch.arange(200_000)).double()
    moments = torch.stack([x.mean(), x.square().mean(), x.pow(3).mean(), x.pow(4).mean()])
    torch.testing.assert_close(moments, torch.tensor([0.0, 1, 0, 3]).double(), atol=0.05, rtol=0)
    assert x.isfinite().all() and torch.equal(x, normal(torch.tensor(5), torch.arange(200_000)).double())
