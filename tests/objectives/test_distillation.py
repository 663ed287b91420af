"""BYOL and SimSiam: their formulas, and a teacher that follows as it should."""

import copy

import numpy as np
import pytest
import torch
from lightly import loss as lightly
from torch import nn

from triptych.encoders.native import make
from triptych.modalities import Image, View
from triptych.objectives import BYOL, Head, Progress, SimSiam, distillation
from triptych.objectives.distillation import byol_loss
from triptych.objectives.heads import BatchNorm
from triptych.objectives.teacher import Teacher
from triptych.training.engine import parameter_groups


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


def simsiam(module=distillation, **options):
    torch.manual_seed(0)
    made = module.SimSiam(make(Image(8, 4), width=16, depth=2, heads=2), **({"head": Head(24, 12, 3)} | options))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def check_simsiam(module=distillation):
    """Loss and gradient of all parameters are those of lightly's loss on torch's batch normalisation."""
    ours = simsiam(module)
    views, theirs = views_of(ours), copy.deepcopy(ours)

    def apply(head, x):
        for part in head:
            if isinstance(part, nn.Sequential):
                x = apply(part, x)
            elif isinstance(part, BatchNorm):
                x = nn.functional.batch_norm(x, None, None, part.weight, part.bias, True, eps=part.eps)
            else:
                x = part(x)
        return x

    projections = [apply(theirs.projector, theirs.backbone(view)) for view in views]
    guesses = [apply(theirs.predictor, z) for z in projections]
    distance = lightly.NegativeCosineSimilarity()
    first, second = distance(guesses[0], projections[1].detach()), distance(guesses[1], projections[0].detach())
    expected = 1 + (first + second) / 2
    loss = ours(views)["loss"]
    torch.testing.assert_close(loss, expected, atol=5e-6, rtol=1e-6)
    loss.backward()
    expected.backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if mine.requires_grad and name != "backbone.embedding.hidden":
            torch.testing.assert_close(mine.grad, other.grad, atol=5e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_simsiam_is_lightly_s_with_gradient():
    check_simsiam()


def check_no_gradient_flows_through_the_other_view(module=distillation):
    """With a predictor that is the identity, the gradient of a view is that towards the other as a constant."""
    ours = simsiam(module)
    ours.projector = ours.predictor = nn.Identity()
    z = torch.randn(2, 6, 16, requires_grad=True)
    ours.compare({"pooled": z})["loss"].backward()
    first, second = (v.detach().clone().requires_grad_() for v in z)
    loss = -nn.functional.cosine_similarity(first, second.detach()).mean() / 2
    loss = loss - nn.functional.cosine_similarity(second, first.detach()).mean() / 2
    loss.backward()
    torch.testing.assert_close(z.grad, torch.stack([first.grad, second.grad]), atol=1e-6, rtol=1e-5)


def test_no_gradient_flows_through_the_other_view():
    check_no_gradient_flows_through_the_other_view()


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_simsiam_s_range_and_order(norm):
    """From 0 to 2, whatever the order of the batch; with normalised layers a sample does not depend on the others."""
    ours = simsiam(head=Head(24, 12, 3, norm))
    z = torch.randn(2, 6, 16)
    loss, order = ours.compare({"pooled": z})["loss"], torch.randperm(6)
    assert 0 <= loss <= 2 and ours.compares == (norm == "batch")
    torch.testing.assert_close(ours.compare({"pooled": z[:, order]})["loss"], loss, atol=1e-6, rtol=1e-5)
    parts = torch.stack([ours.compare({"pooled": z[:, i : i + 2]})["loss"] for i in (0, 2, 4)]).mean()
    assert (loss - parts).abs() < 1e-6 or norm == "batch"
    same = torch.randn(6, 12)
    assert byol_loss(same, same).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("objective", [BYOL, SimSiam])
def test_what_is_predicted_has_a_head(objective):
    with pytest.raises(ValueError, match="objective.head.layers 0"):
        objective(make(Image(8, 4), width=16, depth=1, heads=1), head=Head(layers=0))


@pytest.mark.parametrize("kind", [BYOL, SimSiam])
def test_a_predictor_has_a_rate_of_its_own_and_the_rest_the_run_s(kind):
    made = kind(make(Image(8, 4), width=16, depth=2, heads=2), head=Head(24, 12), predictor_rate=10.0)
    ahead = {id(p) for p in made.predictor.parameters()}
    scales = {id(p): group["scale"] for group in parameter_groups(made, 0.05) for p in group["params"]}
    assert all(scale == (10.0 if number in ahead else 1.0) for number, scale in scales.items()) and ahead <= set(scales)
