"""NT-Xent: the value of SimCLR's algorithm 1, its limits, and whom it spares. MoCo: whose keys are negatives."""

import math

import numpy as np
import pytest
import torch
from lightly import loss as lightly
from simulated import check_ranks_are_one

from triptych.encoders.native import make
from triptych.modalities import Image, View
from triptych.objectives import Head, Progress, SimCLR, contrastive
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
    loss = lightly.NTXentLoss(temperature=temperature)
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


# MoCo


def moco(module=contrastive, **options):
    torch.manual_seed(0)
    options = {"head": Head(24, 12, 3, "layer"), "half_life": 20.0} | options
    made = module.MoCo(make(Image(8, 4), width=16, depth=1, heads=1), **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def batch(objective, first: int = 0, samples: int = 6) -> list[View]:
    """Two views; the last sample is the first one again."""
    image, number = objective.backbone.modality, torch.arange(first, first + samples)
    identity = torch.cat([number[:-1], number[:1]])
    random = torch.Generator().manual_seed(first)
    data = [image.cut(torch.randn(samples, 3, 8, 8, generator=random)) for _ in range(2)]
    return [View(**made, seed=number, identity=identity) for made in data]


def check_moco_is_lightly_s_with_gradient(module=contrastive):
    """The loss of queries, their keys and a full queue."""
    loss = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(20, 8))
    random = torch.Generator().manual_seed(0)
    query, key, bank = (torch.randn(n, 8, generator=random) for n in (6, 6, 20))
    key, bank = (torch.nn.functional.normalize(x, dim=-1) for x in (key, bank))
    loss.memory_bank.bank, loss.memory_bank.bank_ptr = bank.clone(), torch.zeros(1, dtype=torch.long)
    ours, theirs = query.clone().requires_grad_(), query.clone().requires_grad_()
    mine = module.info_nce_loss(ours, key, bank, torch.zeros(6, 20, dtype=torch.bool), 0.2)
    other = loss(theirs, key)
    torch.testing.assert_close(mine, other, atol=5e-6, rtol=1e-6)
    mine.backward()
    other.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=5e-6, rtol=1e-5)


def test_moco_is_lightly_s_with_gradient():
    check_moco_is_lightly_s_with_gradient()


def check_moco_s_negatives(module=contrastive, queue: int = 20, predictor: int = 0):
    """Written out, query by query: the batch's keys of the other view and the filled slots, without equal samples'."""
    ours = moco(module, queue=queue, predictor=predictor)
    for step in range(2):  # 12 keys a step: of 20 slots, 8 are empty at the second
        views = batch(ours, 3 * step)
        out = ours(views)
        with torch.no_grad():
            query = torch.stack([ours.predictor(ours.projector(ours.backbone(v))) for v in views]).double()
            key = torch.stack([ours.teacher[1](ours.teacher[0](v)) for v in views]).double()
        query, key = (x / x.norm(dim=-1, keepdim=True) for x in (query, key))
        identity, losses = views[0].identity.tolist(), []
        for view in range(2):
            for i in range(6):
                near = (query[view, i] @ key[1 - view, i] / 0.2).exp()
                far = [key[1 - view, j] for j in range(6) if identity[j] != identity[i]]
                if queue:
                    known = zip(ours.queue.values, ours.queue.identity.tolist(), strict=True)
                    far += [k.double() for k, name in list(known)[: ours.queue.taken] if name != identity[i]]
                rest = sum((query[view, i] @ k / 0.2).exp() for k in far)
                losses.append(-(near / (near + rest)).log())
        expected = torch.stack(losses).mean()
        assert out["loss"].item() == pytest.approx(expected.item(), abs=1e-5)
        ours.after_step([{name: out[name] for name in ours.extras}], Progress(step + 1, 10, 6))
        if queue:
            assert ours.queue.taken == 12 * (step + 1)
            latest = ours.queue.values[torch.arange(12 * step, 12 * step + 12) % queue].double()
            torch.testing.assert_close(latest, key.transpose(0, 1).flatten(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("queue", "predictor"), [(20, 0), (0, 2), (13, 2)])
def test_moco_s_negatives(queue, predictor):
    check_moco_s_negatives(contrastive, queue, predictor)


def test_moco_without_a_queue_is_version_3_with_gradient():
    """Algorithm 1 of the paper: logits of all pairs, labels on the diagonal. (Here without its factor 2 t.)"""
    ours = moco()
    views = [v.replace(identity=torch.arange(6)) for v in batch(ours)]
    other = moco()
    query = [other.predictor(other.projector(other.backbone(v))) for v in views]
    with torch.no_grad():
        key = [other.teacher[1](other.teacher[0](v)) for v in views]
    unit = torch.nn.functional.normalize
    expected = sum(
        torch.nn.functional.cross_entropy(unit(query[a], dim=1) @ unit(key[1 - a], dim=1).T / 0.2, torch.arange(6))
        for a in (0, 1)
    )
    loss = ours(views)["loss"]
    torch.testing.assert_close(2 * loss, expected, atol=1e-5, rtol=1e-5)
    (2 * loss).backward()
    expected.backward()
    for (name, mine), theirs in zip(ours.named_parameters(), other.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def check_moco_on_ranks(module=contrastive):
    ours = moco(module, queue=20, head=Head(24, 12, 3))
    check_ranks_are_one(ours, [batch(ours, 0, 8), batch(ours, 8, 8)], Progress(1, 10, 16))


def test_moco_on_two_ranks_with_accumulation_is_one():
    check_moco_on_ranks()


def test_moco_does_not_depend_on_the_order_and_an_evaluation_moves_nothing():
    ours = moco(queue=20)
    views, order = batch(ours), torch.randperm(6)
    out = ours(views)
    ours.after_step([{name: out[name] for name in ours.extras}], Progress(1, 10, 6))
    before = {name: buffer.clone() for name, buffer in ours.named_buffers()}
    ours.eval()
    other = [v.replace(data=v.data[order], identity=v.identity[order]) for v in views]
    torch.testing.assert_close(ours(other)["loss"], ours(views)["loss"], atol=1e-6, rtol=1e-6)
    assert all(torch.equal(buffer, before[name]) for name, buffer in ours.named_buffers())
