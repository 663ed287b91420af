"""NT-Xent: the value of SimCLR's algorithm 1, its limits, and whom it spares."""

import math

import numpy as np
import pytest
import torch

from triptych.encoders.native import make
from triptych.modalities import Image, View
from triptych.objectives import Head, SimCLR
from triptych.objectives.contrastive import nt_xent_loss

TEMPERATURES = [0.05, 0.1, 0.5, 1.0]


def algorithm_1(z_i: np.ndarray, z_j: np.ndarray, temperature: float) -> float:
    """SimCLR (Chen et al. 2020), algorithm 1, line by line, counting from 0."""
    n = len(z_i)
    z = np.empty((2 * n, z_i.shape[1]))
    for k in range(n):
        z[2 * k], z[2 * k + 1] = z_i[k], z_j[k]
    s = np.empty((2 * n, 2 * n))
    for i in range(2 * n):
        for j in range(2 * n):
            s[i, j] = z[i] @ z[j] / (np.linalg.norm(z[i]) * np.linalg.norm(z[j]))

    def loss(i: int, j: int) -> float:
        denominator = sum(math.exp(s[i, k] / temperature) for k in range(2 * n) if k != i)
        return -math.log(math.exp(s[i, j] / temperature) / denominator)

    return sum(loss(2 * k, 2 * k + 1) + loss(2 * k + 1, 2 * k) for k in range(n)) / (2 * n)


def pair(batch: int = 12, width: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z_i = torch.randn(batch, width, generator=generator)
    return z_i, z_i + torch.randn(batch, width, generator=generator)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("batch", [2, 3, 12])
def test_it_is_algorithm_1(batch, temperature):
    z_i, z_j = pair(batch)
    expected = algorithm_1(z_i.numpy().astype(np.float64), z_j.numpy().astype(np.float64), temperature)
    for identity in (None, torch.arange(batch) + 7):
        assert nt_xent_loss(z_i, z_j, temperature, identity).item() == pytest.approx(expected, abs=5e-6, rel=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_it_is_lightly_s_with_gradient(temperature):
    loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature=temperature)
    ours = [z.requires_grad_() for z in pair()]
    theirs = [z.detach().clone().requires_grad_() for z in ours]
    mine, other = nt_xent_loss(*ours, temperature), loss(*theirs)
    torch.testing.assert_close(mine, other, atol=5e-6, rtol=1e-6)
    mine.backward()
    other.backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_known_values(temperature):
    same = torch.ones(8, 5)
    assert nt_xent_loss(same, same, temperature).item() == pytest.approx(math.log(15), abs=5e-6)
    apart = torch.eye(8)  # the best of orthogonal samples: 14 negatives at cosine 0
    expected = math.log1p(14 * math.exp(-1 / temperature))
    assert nt_xent_loss(apart, apart, temperature).item() == pytest.approx(expected, abs=5e-6)


def test_it_is_symmetric_and_blind_to_lengths_turns_and_order():
    z_i, z_j = pair()
    loss = nt_xent_loss(z_i, z_j, 0.2)
    turn, order = torch.linalg.qr(torch.randn(16, 16)).Q, torch.randperm(12)
    lengths = torch.rand(12, 1) + 0.1
    for other in ((z_j, z_i), (z_i * lengths, z_j * 3), (z_i @ turn, z_j @ turn), (z_i[order], z_j[order])):
        torch.testing.assert_close(nt_xent_loss(*other, 0.2), loss, atol=1e-5, rtol=1e-5)


def test_equal_samples_do_not_repel():
    """With a sample drawn twice, each view loses the twin's views as negatives, and its own view stays the positive."""
    z_i, z_j = pair(4)
    z_i, z_j = torch.cat([z_i, z_i[:1]]), torch.cat([z_j, z_j[:1] + 0.3])
    identity = torch.tensor([5, 6, 7, 8, 5])
    z = torch.nn.functional.normalize(torch.stack([z_i, z_j], 1).flatten(0, 1), dim=-1)
    logits, own = z @ z.T / 0.2, identity.repeat_interleave(2)
    losses = []
    for i in range(10):
        others = [k for k in range(10) if own[k] != own[i]] + [i ^ 1]
        losses.append(logits[i, others].logsumexp(0) - logits[i, i ^ 1])
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(nt_xent_loss(z_i, z_j, 0.2, identity), expected, atol=5e-6, rtol=1e-6)
    assert nt_xent_loss(z_i, z_j, 0.2) > expected


def test_half_precision_is_computed_in_float32():
    low = [z.bfloat16() for z in pair()]
    expected = nt_xent_loss(*(z.float() for z in low), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent_loss(*low, 0.1)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)


def test_a_batch_in_parts_is_the_batch():
    """`represent` is sample by sample, so parts may be represented apart and compared together."""
    torch.manual_seed(0)
    objective = SimCLR(make(Image(8, 4), width=16, depth=1, heads=1), head=Head(16, 8))
    image = objective.backbone.modality
    number = torch.arange(6)
    views = [View(**image.cut(torch.randn(6, 3, 8, 8)), seed=number, identity=number) for _ in range(2)]
    whole = objective(views)["loss"]
    parts = [
        objective.represent([v.replace(data=v.data[at], seed=v.seed[at], identity=v.identity[at]) for v in views])
        for at in (slice(0, 4), slice(4, 6))
    ]
    joined = {
        "pooled": torch.cat([p["pooled"] for p in parts], 1),
        "identity": torch.cat([p["identity"] for p in parts]),
    }
    torch.testing.assert_close(objective.compare(joined)["loss"], whole, atol=5e-6, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -0.1])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature.*not above 0"):
        SimCLR(make(Image(8, 4), width=16, depth=1, heads=1), temperature=temperature)
