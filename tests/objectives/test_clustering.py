"""SwAV: its loss beside lightly's, and a queue that takes part when its time has come."""

import copy

import pytest
import torch
from lightly import loss as lightly
from simulated import check_ranks_are_one

from triptych.encoders.native import make
from triptych.modalities import Image, View
from triptych.objectives import Crops, Head, Progress, clustering
from triptych.objectives.prototypes import sinkhorn

STEPS = 10


def swav(module=clustering, **options):
    torch.manual_seed(0)
    options = {"prototypes": 9, "head": Head(24, 12), "crops": Crops(number=2, size=0.5), "frozen": 0.0} | options
    made = module.SwAV(make(Image(16, 4), width=16, depth=1, heads=1), **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def batch(objective, first: int = 0, samples: int = 6) -> list[View]:
    image, number = objective.backbone.modality, torch.arange(first, first + samples)
    random = torch.Generator().manual_seed(first)
    sides = [16, 16] + [8] * (len(objective.views) - 2)
    data = [image.cut(torch.randn(samples, 3, side, side, generator=random)) for side in sides]
    return [View(**made, seed=number, identity=number) for made in data]


def step(objective, views, number: int):
    objective.before_step(Progress(number, STEPS, 6))
    out = objective(views)
    with torch.no_grad():
        objective.after_step([{name: out[name] for name in objective.extras}], Progress(number + 1, STEPS, 6))
    return out["loss"]


def check_swav_is_lightly_s(module=clustering):
    """With a queue that has just been filled: loss and gradient of all parameters."""
    criterion = lightly.SwaVLoss(0.1)
    ours = swav(module, queue=12, queue_from=0.0)
    for number in (0, 1):
        step(ours, batch(ours, 6 * number), number)
    other, views = copy.deepcopy(ours), batch(ours, 12)
    scores = [
        torch.nn.functional.cosine_similarity(z[:, None], other.prototypes.weight, dim=-1)
        for z in other.projector(torch.stack([other.backbone(view) for view in views]))
    ]
    queue = torch.nn.functional.cosine_similarity(other.queue.values[:, :, None], other.prototypes.weight, dim=-1)
    expected = criterion(scores[:2], scores[2:], list(queue.unbind(1)))[0]
    ours.before_step(Progress(2, STEPS, 6))
    loss = ours(views)["loss"]
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    for (name, mine), theirs in zip(ours.named_parameters(), other.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_swav_is_lightly_s_with_gradient():
    check_swav_is_lightly_s()


def check_a_queue_takes_part_when_it_is_time(module=clustering):
    """Before `queue_from` the loss is as without one; later, slots that hold nothing yet still count for nothing."""
    ours, without = swav(module, queue=20, queue_from=0.15), swav(module)
    for number in range(2):
        views = batch(ours, 6 * number)
        assert torch.equal(step(ours, views, number), step(without, views, number))
    views = batch(ours, 12)
    projection = ours.projector(torch.stack([ours.backbone(view) for view in views]))
    score = ours.prototypes(torch.cat([projection[0], ours.queue.values[:12, 0]]))  # 8 of 20 slots are empty
    expected = sinkhorn(score / 0.05)[:6]
    ours.before_step(Progress(2, STEPS, 6))
    torch.testing.assert_close(ours.assign(score[:6], 0), expected, atol=1e-5, rtol=1e-5)
    assert step(ours, views, 2) != step(without, views, 2)


def test_a_queue_takes_part_when_it_is_time():
    check_a_queue_takes_part_when_it_is_time()


def check_swav_on_ranks(module=clustering, queue: int = 21):
    ours = swav(module, queue=queue, queue_from=0.0)
    check_ranks_are_one(ours, [batch(ours, 0), batch(ours, 6)], Progress(1, STEPS, 12))


@pytest.mark.parametrize("queue", [0, 1, 21])
def test_swav_on_two_ranks_with_accumulation_is_one(queue):
    check_swav_on_ranks(clustering, queue)


def check_prototypes_move_late(module=clustering):
    ours, views = swav(module, frozen=0.2), batch(swav())
    for number, moves in ((0, False), (1, False), (2, True)):
        ours.zero_grad()
        step(ours, views, number).backward()
        assert (ours.prototypes.weight.grad.abs().max() > 0) == moves


def test_prototypes_move_late():
    check_prototypes_move_late()


def test_the_order_of_the_batch_means_nothing_nor_does_that_of_small_views():
    ours = swav(queue=20, queue_from=0.0)
    step(ours, batch(ours, 6), 1)
    views, order = batch(ours), torch.randperm(6)
    loss = ours(views)["loss"]
    for other in ([v.replace(data=v.data[order]) for v in views], [*views[:2], views[3], views[2]]):
        torch.testing.assert_close(ours(other)["loss"], loss, atol=1e-5, rtol=1e-5)
