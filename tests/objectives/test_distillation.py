"""BYOL: its formula, and a teacher that follows as it should."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from triptych.encoders.native import make
from triptych.modalities import Image, View
from triptych.objectives import BYOL, Head, Progress
from triptych.objectives.distillation import byol_loss
from triptych.objectives.teacher import Teacher


@pytest.fixture
def objective():
    torch.manual_seed(0)
    made = BYOL(make(Image(8, 4), width=16, depth=2, heads=2), half_life=100, head=Head(24, 12))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def views_of(objective, samples: int = 6):
    image = objective.backbone.modality
    return [View(**image.cut(torch.randn(samples, 3, 8, 8)), seed=torch.arange(samples)) for _ in range(2)]


def formula(objective, views) -> torch.Tensor:
    """Equations 1 and 2 of Grill et al. 2020, view by view, with torch's own batch normalisation."""

    def apply(head, x):
        linear, norm, relu, last = head
        return last(relu(nn.functional.batch_norm(linear(x), None, None, norm.weight, norm.bias, True, eps=norm.eps)))

    loss = 0.0
    for one, other in ((0, 1), (1, 0)):
        online = apply(objective.predictor, apply(objective.projector, objective.backbone(views[one])))
        with torch.no_grad():
            backbone, projector = objective.teacher
            target = apply(projector, backbone(views[other]))
        online, target = (z / z.norm(dim=-1, keepdim=True) for z in (online, target))
        loss = loss + (online - target).square().sum(-1).mean()
    return loss


def test_loss_and_gradient_are_those_of_the_formula(objective):
    views, other = views_of(objective), copy.deepcopy(objective)
    loss, expected = objective(views)["loss"], formula(other, views)
    torch.testing.assert_close(loss, expected, atol=5e-6, rtol=1e-6)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(objective.named_parameters(), other.parameters(), strict=True):
        if name.startswith("teacher.") or not ours.requires_grad:
            assert ours.grad is None and theirs.grad is None
        elif ours.grad is None:
            assert name == "backbone.embedding.hidden"
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=5e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_the_loss_s_range():
    z = torch.randn(5, 7)
    assert byol_loss(z, 2 * z).item() == pytest.approx(0, abs=5e-6)
    assert byol_loss(z, -z).item() == pytest.approx(4, abs=5e-6)
    assert byol_loss(z.bfloat16(), z.bfloat16()).dtype == torch.float32


def test_the_teacher_begins_as_the_student_and_learns_nothing_by_gradient():
    objective = BYOL(make(Image(8, 4), width=16, depth=1, heads=1), head=Head(24, 12))
    for teacher, student in zip(objective.teacher, (objective.backbone, objective.projector), strict=True):
        for (name, kept), current in zip(teacher.named_parameters(), student.parameters(), strict=True):
            assert torch.equal(kept, current) and kept is not current and not kept.requires_grad, name
    objective(views_of(objective))["loss"].backward()
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert objective.averaged() is objective.teacher[0]


def linear(weight: float) -> nn.Linear:
    made = nn.Linear(1, 1)
    nn.init.constant_(made.weight, weight)
    nn.init.constant_(made.bias, -weight)
    return made


def gap_after(samples: int, batch: int, half_life: float, steps_in_all: int = 10**9) -> float:
    """What is left of the distance between teacher and a student that has jumped and stays."""
    teacher, student = Teacher(linear(0.0), half_life=half_life), linear(1.0)
    for step in range(1, samples // batch + 1):
        teacher.follow(student, progress=Progress(step, steps_in_all, batch))
    return 1 - teacher[0].weight.item()


@pytest.mark.parametrize("batch", [8, 64, 256])
def test_the_half_life_is_in_samples_whatever_the_batch(batch):
    assert gap_after(1024, batch, 1024) == pytest.approx(0.5, abs=1e-5)
    assert gap_after(2048, batch, 1024) == pytest.approx(0.25, abs=1e-5)


def test_the_momentum_rises_to_one_along_a_cosine():
    teacher = Teacher(linear(0.0), half_life=100)
    base = 0.5 ** (32 / 100)
    for step in (0, 1, 25, 50, 75, 100):
        expected = 1 - (1 - base) * (np.cos(np.pi * step / 100) + 1) / 2  # BYOL, section 3.3
        assert teacher.momentum(Progress(step, 100, 32)) == pytest.approx(expected, abs=1e-12)
    assert teacher.momentum(Progress(0, 100, 32)) == pytest.approx(base)
    before = teacher[0].weight.item()
    teacher.follow(linear(1.0), progress=Progress(100, 100, 32))
    assert teacher[0].weight.item() == before


def test_many_steps_are_the_average_in_float64(objective):
    names = [n for n, _ in objective.backbone.named_parameters()]
    average = {n: p.detach().double().clone() for n, p in objective.teacher[0].named_parameters()}
    for step in range(1, 101):
        with torch.no_grad():
            for parameter in objective.backbone.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        progress = Progress(step, 400, 2)
        objective.after_step([], progress)
        momentum = objective.teacher.momentum(progress)
        for name, parameter in objective.backbone.named_parameters():
            average[name] = momentum * average[name] + (1 - momentum) * parameter.detach().double()
    kept = dict(objective.teacher[0].named_parameters())
    assert max((kept[n] - average[n]).abs().max().item() for n in names) < 1e-6


def test_buffers_are_copied():
    student = nn.BatchNorm1d(3)
    teacher = Teacher(student, half_life=10)
    student(torch.randn(5, 3))
    teacher.follow(student, progress=Progress(1, 10, 1))
    assert torch.equal(teacher[0].running_mean, student.running_mean) and teacher[0].num_batches_tracked == 1


@pytest.mark.parametrize("half_life", [0.0, -5.0])
def test_a_half_life_that_is_not_positive_is_refused(half_life):
    with pytest.raises(ValueError, match="half_life.*not above 0"):
        BYOL(make(Image(8, 4), width=16, depth=1, heads=1), half_life=half_life)
