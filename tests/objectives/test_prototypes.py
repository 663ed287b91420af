"""Prototypes, Sinkhorn's assignment and its swapped prediction, beside lightly's."""

import pytest
import torch
from lightly.loss import swav_loss as lightly
from simulated import on_ranks

from triptych.objectives import prototypes
from triptych.objectives.prototypes import Prototypes, sinkhorn, swapped_loss


def logits(samples: int = 12, count: int = 7) -> torch.Tensor:
    return torch.randn(samples, count, generator=torch.Generator().manual_seed(0)).clamp(-1, 1) / 0.05


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("shape", [(12, 7), (3, 20), (1, 4)])
def test_sinkhorn_is_lightly_s(shape, iterations):
    expected = lightly.sinkhorn(logits(*shape), iterations, epsilon=1.0)
    torch.testing.assert_close(sinkhorn(logits(*shape), iterations=iterations), expected, atol=1e-5, rtol=1e-5)


def test_its_limit_uses_all_prototypes_equally_and_its_sums_are_probabilities():
    made = sinkhorn(logits() / 5, iterations=200)
    torch.testing.assert_close(made.sum(1), torch.ones(12))
    torch.testing.assert_close(made.sum(0), torch.full((7,), 12 / 7), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sinkhorn(torch.zeros(6, 3)), torch.full((6, 3), 1 / 3))
    far = sinkhorn(torch.tensor([[1e4, 0.0], [0.0, 1e4]]))  # nothing overflows
    torch.testing.assert_close(far, torch.eye(2))
    low = logits().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinkhorn(low), sinkhorn(low.float())) and sinkhorn(low).dtype == torch.float32


def check_sinkhorn_on_ranks(module=prototypes):
    """Ranks that hold different numbers of samples assign them as one process does."""
    whole = sinkhorn(logits())
    parts = on_ranks(2, lambda rank: module.sinkhorn(logits()[:5] if rank == 0 else logits()[5:]))
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=1e-5)


def test_sinkhorn_on_ranks():
    check_sinkhorn_on_ranks()


def check_samples_of_weight_0_count_for_nothing(module=prototypes):
    weight = torch.tensor([1.0] * 8 + [0.0] * 4)
    torch.testing.assert_close(module.sinkhorn(logits(), weight)[:8], sinkhorn(logits()[:8]), atol=1e-6, rtol=1e-5)


def test_samples_of_weight_0_count_for_nothing():
    check_samples_of_weight_0_count_for_nothing()


def check_swapped_loss(module=prototypes):
    """Two large views and three small ones, with gradient."""
    random = torch.Generator().manual_seed(1)
    score = torch.randn(5, 6, 7, generator=random).clamp(-1, 1)
    ours, theirs = score.clone().requires_grad_(), score.clone().requires_grad_()
    target = torch.stack([sinkhorn(ours[i].detach() / 0.05) for i in (0, 1)])
    loss = module.swapped_loss(ours, target, 0.1)
    expected = lightly.SwaVLoss(0.1)(list(theirs[:2]), list(theirs[2:]))[0]
    torch.testing.assert_close(loss, expected, atol=5e-6, rtol=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)


def test_swapped_loss_is_lightly_s_with_gradient():
    check_swapped_loss()


def test_its_known_values():
    sure = torch.nn.functional.one_hot(torch.arange(4)).float()
    assert swapped_loss(torch.zeros(3, 4, 4), sure.expand(2, 4, 4), 0.1).item() == pytest.approx(
        torch.tensor(4.0).log()
    )
    assert swapped_loss(sure.expand(3, 4, 4), sure.expand(2, 4, 4), 0.01).item() == pytest.approx(0, abs=1e-6)


def check_lengths_mean_nothing(module=prototypes):
    torch.manual_seed(0)
    made, x = module.Prototypes(5, 3), torch.randn(2, 4, 5)
    before = made(x)
    cosine = torch.nn.functional.cosine_similarity(x[:, :, None], made.weight, dim=-1)
    torch.testing.assert_close(before, cosine, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        made.weight *= torch.rand(3, 1) + 0.5
    torch.testing.assert_close(made(3 * x), before, atol=1e-6, rtol=1e-5)


def test_lengths_mean_nothing():
    check_lengths_mean_nothing()


def check_what_stands_still_stands_still(module=prototypes):
    """Under AdamW with decay: its gradient is 0, and the gradient of what it is compared with is as it was."""
    torch.manual_seed(0)
    made, x = module.Prototypes(5, 3), torch.randn(4, 5, requires_grad=True)
    made(x).square().sum().backward()
    free, x.grad = x.grad, None
    assert made.weight.grad.abs().max() > 0.01
    made.zero_grad()
    made.moves.fill_(0.0)
    made(x).square().sum().backward()
    assert torch.equal(made.weight.grad, torch.zeros(3, 5)) and torch.equal(x.grad, free)


def test_what_stands_still_stands_still():
    check_what_stands_still_stands_still()
    assert Prototypes.no_decay == ("weight",)


def check_perplexity_on_ranks(module=prototypes):
    """Of all ranks together: 1 where all samples use one prototype, their number where all are used equally."""
    one, each = torch.eye(4)[[0, 0]], torch.eye(4)
    assert module.perplexity(one).item() == pytest.approx(1) and module.perplexity(each).item() == pytest.approx(4)
    parts = on_ranks(2, lambda rank: module.perplexity(each[2 * rank : 2 * rank + 2]).item())
    assert parts == pytest.approx([4, 4])


def test_perplexity_on_ranks():
    check_perplexity_on_ranks()
