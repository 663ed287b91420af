"""DINO: its loss and centre, iBOT's masked term and KoLeo, beside lightly's."""

import copy

import pytest
import support
import torch
from lightly import loss as lightly
from simulated import check_ranks_are_one
from torch.nn import functional as F

from triptych.encoders.backbone import pool
from triptych.encoders.native import make
from triptych.modalities import Image, Text, View
from triptych.modalities.hashing import mix
from triptych.modalities.view import stack
from triptych.objectives import Crops, Head, Mask, Progress, dino, masking
from triptych.objectives.prototypes import sinkhorn

STEPS, COUNT = 10, 9


def made(module=dino, **options):
    torch.manual_seed(0)
    settings = {"prototypes": COUNT, "head": Head(24, 12, 3, "layer"), "crops": Crops(number=2, size=0.5)}
    settings |= {"frozen": 0.0, "half_life": 20.0}
    objective = module.DINO(make(Image(16, 4), width=16, depth=1, heads=1), **(settings | options))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for centre in objective.centres or ():
            centre.value.normal_(std=0.1)
    return objective


def batch(objective, first: int = 0, samples: int = 6) -> list[View]:
    image, number = objective.backbone.modality, torch.arange(first, first + samples)
    random = torch.Generator().manual_seed(first)
    sides = [16, 16] + [8] * (len(objective.views) - 2)
    data = [image.cut(torch.randn(samples, 3, side, side, generator=random)) for side in sides]
    return [View(**cut, seed=number, identity=number) for cut in data]


def after(objective, outs: list[dict], progress: Progress) -> None:
    with torch.no_grad():
        objective.after_step([{name: out[name] for name in objective.extras} for out in outs], progress)


def close_gradients(ours, theirs) -> None:
    seen = 0
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
            seen += 1
    assert seen > 10


def check_dino_is_lightly_s(module=dino, number: int = 2):
    """Loss, gradient of all parameters and the centre afterwards; the temperature of the warm-up's middle."""
    ours = made(module, crops=Crops(number=number, size=0.5), warmup=0.4)
    theirs, views, progress = copy.deepcopy(ours), batch(ours), Progress(2, STEPS, 6)
    loss = lightly.DINOLoss(COUNT, teacher_temp=0.055, student_temp=0.1, center_momentum=0.9)
    loss.center.copy_(theirs.centres[0].value)
    student = [theirs.heads[0](theirs.backbone(view)) for view in views]
    with torch.no_grad():
        teacher = [theirs.teacher[1][0](theirs.teacher[0](view)) for view in views[:2]]
    expected = loss(teacher, student)
    ours.before_step(progress)
    out = ours(views)
    torch.testing.assert_close(out["loss"], expected, atol=1e-5, rtol=1e-5)
    out["loss"].backward()
    expected.backward()
    close_gradients(ours, theirs)
    assert all(p.grad is None for p in ours.teacher.parameters())
    after(ours, [out], progress)
    torch.testing.assert_close(ours.centres[0].value, loss.center.flatten(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("number", [0, 2])
def test_dino_is_lightly_s_with_gradient(number):
    check_dino_is_lightly_s(dino, number)


def check_ibot_is_lightly_s(module=dino):
    """Loss, gradient and the pieces' centre: the two terms are added, the student does not see what is hidden."""
    ours = made(module, ibot=0.7, mask=Mask(0.5, "random"))
    theirs, views, progress = copy.deepcopy(ours), batch(ours), Progress(0, STEPS, 6)
    patch = lightly.IBOTPatchLoss(COUNT, teacher_temp=0.04, student_temp=0.1, center_momentum=0.9)
    both = lightly.DINOLoss(COUNT, teacher_temp=0.04, student_temp=0.1, center_momentum=0.9)
    patch.center.center.copy_(theirs.centres[1].value)
    both.center.copy_(theirs.centres[0].value)
    large = stack([v.replace(seed=mix(v.seed, dino.HIDE, i)) for i, v in enumerate(views[:2])])
    hide = masking.hide(large, 0.5, "random", 3)
    assert (hide[:6] != hide[6:]).any() and (hide.sum(1) == 8).all()
    encoded = theirs.backbone.encode(large, hide)
    vectors = list(pool(encoded, large, theirs.backbone.pooling).chunk(2))
    student = [theirs.heads[0](v) for v in (*vectors, *map(theirs.backbone, views[2:]))]
    with torch.no_grad():
        known = theirs.teacher[0].encode(large)
        teacher = theirs.teacher[1][0](pool(known, large, theirs.backbone.pooling)).chunk(2)
        pieces = theirs.teacher[1][1](known.pieces[hide])
    expected = both(list(teacher), student)
    expected = expected + 0.7 * patch(pieces, theirs.heads[1](encoded.pieces[hide]), hide.unflatten(1, (4, 4)))
    ours.before_step(progress)
    out = ours(views)
    torch.testing.assert_close(out["loss"], expected, atol=1e-5, rtol=1e-5)
    out["loss"].backward()
    expected.backward()
    close_gradients(ours, theirs)
    after(ours, [out], progress)
    torch.testing.assert_close(ours.centres[1].value, patch.center.value.flatten(), atol=1e-6, rtol=1e-5)


def test_ibot_is_lightly_s_with_gradient():
    check_ibot_is_lightly_s()


def check_koleo_is_lightly_s(module=dino):
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss, expected = module.koleo_loss(ours, torch.arange(8)), lightly.KoLeoLoss()(theirs)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)
    twice = torch.cat([x, x[:1]]), torch.tensor([*range(8), 0])  # a sample that is there twice is not its own neighbour
    assert module.koleo_loss(*twice) < 2


def test_koleo_is_lightly_s_with_gradient():
    check_koleo_is_lightly_s()
    plain, spread = made(), made(koleo=0.5)
    views = batch(plain)
    terms = sum(dino.koleo_loss(plain.backbone(v), v.identity) for v in views[:2])
    torch.testing.assert_close(spread(views)["loss"], plain(views)["loss"] + 0.5 * terms, atol=1e-5, rtol=1e-5)
    assert spread.compares and not plain.compares


def check_the_schedule(module=dino):
    """The teacher's temperature rises to the end of the warm-up; prototypes stand still at first, pieces' too."""
    ours = made(module, warmup=0.4, frozen=0.2, ibot=1.0)
    for step, sharpness, moves in (
        (0, 0.04, False),
        (1, 0.0475, False),
        (2, 0.055, True),
        (4, 0.07, True),
        (9, 0.07, True),
    ):
        ours.before_step(Progress(step, STEPS, 6))
        ours.before_step(Progress(step, STEPS, 6))  # evaluations call it, too
        assert ours.sharpness.item() == pytest.approx(sharpness, abs=1e-6)
        ours.zero_grad()
        ours(batch(ours))["loss"].backward()
        assert all((head[-1].weight.grad.abs().max() > 0) == moves for head in ours.heads)
    assert made(warmup=0.0).before_step(Progress(0, STEPS, 6)) is None


def test_the_schedule():
    check_the_schedule()


def check_sinkhorn_takes_the_centre_s_place(module=dino):
    """Over both large views together, as in DINOv2."""
    ours = made(module, targets="sinkhorn")
    views = batch(ours)
    with torch.no_grad():
        known = torch.cat([ours.teacher[1][0](ours.teacher[0](view)) for view in views[:2]])
        target = sinkhorn(known / 0.04).chunk(2)
        student = [F.log_softmax(ours.heads[0](ours.backbone(view)) / 0.1, dim=1) for view in views]
    pairs = [(t, s) for t in range(2) for s in range(4) if s != t]
    expected = -sum((target[t] * student[s]).sum(1).mean() for t, s in pairs) / len(pairs)
    torch.testing.assert_close(ours(views)["loss"], expected, atol=1e-5, rtol=1e-5)
    assert ours.compares and not ours.extras and ours.centres is None


def test_sinkhorn_takes_the_centre_s_place():
    check_sinkhorn_takes_the_centre_s_place()


KINDS = {
    "centred": {"ibot": 1.0},
    "sinkhorn": {"targets": "sinkhorn", "ibot": 1.0, "head": Head(24, 12, 3)},
    "koleo": {"koleo": 0.1},
}


def check_dino_on_ranks(module=dino, kind: str = "centred"):
    ours = made(module, **KINDS[kind])
    check_ranks_are_one(ours, [batch(ours, 0), batch(ours, 6)], Progress(1, STEPS, 12))


@pytest.mark.parametrize("kind", KINDS)
def test_dino_on_two_ranks_with_accumulation_is_one(kind):
    check_dino_on_ranks(dino, kind)


def test_a_step_that_was_not_applied_moves_nothing():
    ours = made(ibot=1.0)
    out, before = ours(batch(ours)), {k: v.clone() for k, v in ours.state_dict().items()}
    after(ours, [out], Progress(1, STEPS, 6, torch.tensor(False)))
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    after(ours, [out], Progress(1, STEPS, 6, torch.tensor(True)))
    assert not torch.equal(ours.centres[1].value, before["centres.1.value"])


def test_a_sample_does_not_depend_on_the_others_unless_it_is_said_to():
    ours = made(ibot=1.0)
    views, parts = batch(ours), []
    for at in (slice(0, 2), slice(2, 6)):
        part = [v.replace(data=v.data[at], seed=v.seed[at], identity=v.identity[at]) for v in views]
        parts.append(ours(part)["loss"] * (at.stop - at.start) / 6)
    torch.testing.assert_close(sum(parts), ours(views)["loss"], atol=1e-5, rtol=1e-5)
    assert not ours.compares


def test_the_layout_of_rows_means_nothing():
    """Texts in rows of other lengths: the same pieces are hidden, and the same loss is made of them."""
    text = Text(vocab_size=300, max_length=24, augmentation="span")
    text.fit(support.table_of("text"), "text")
    torch.manual_seed(0)
    settings = {"prototypes": COUNT, "head": Head(24, 12, 3, "layer"), "crops": Crops(number=2, size=0.5)}
    ours = dino.DINO(
        make(text, width=16, depth=1, heads=1), ibot=1.0, koleo=0.1, mask=Mask(0.4, "block", 2), **settings
    )
    samples, seed, said = [text.read(t) for t in support.sentences(6)], torch.arange(6), []
    for length in (None, 60):
        text.row_length = length
        views = [text.collate([text.view(s, spec, i) for i, s in enumerate(samples)], seed) for spec in ours.views]
        said.append(ours([text.prepare(view) for view in views]))
    assert said[0]["ibot"] > 0.1
    for name in ("loss", "ibot", "koleo", "teacher_sums"):
        torch.testing.assert_close(said[1][name], said[0][name], atol=1e-4, rtol=1e-4)
    ours.zero_grad()
    said[1]["loss"].backward()
    assert ours.heads[1][-1].weight.grad.abs().max() > 0
