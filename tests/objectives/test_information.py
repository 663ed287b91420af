"""Losses of information: what others compute, what they are known to be, and that planted faults are seen."""

from unittest import mock

import pytest
import support
import torch
import torch.distributed as dist
from torch import nn

from triptych.encoders.native import make
from triptych.modalities import Image, View
from triptych.objectives import OBJECTIVES, Head, Progress, information

BATCH, WIDTH, SLICES = 12, 6, 33
CLASSES = {"barlow_twins": "BarlowTwins", "vicreg": "VICReg", "lejepa": "LeJEPA", "visreg": "VISReg"}
VIEWS = {"barlow_twins": 2, "vicreg": 2, "lejepa": 5, "visreg": 5}


def projections(name: str, batch: int = BATCH) -> torch.Tensor:
    """Views of a batch that have something in common, with features that vary together, of several sizes."""
    random = torch.Generator().manual_seed(0)
    sample = torch.randn(batch, WIDTH, generator=random) @ torch.randn(WIDTH, WIDTH, generator=random)
    views = sample + 0.5 * torch.randn(VIEWS[name], batch, WIDTH, generator=random)
    return 0.5 * views * torch.linspace(0.2, 2, WIDTH) + torch.linspace(-1, 1, WIDTH)


def objective(name: str, module=information, **options):
    torch.manual_seed(0)
    if name in ("lejepa", "visreg"):
        options = {"slices": SLICES} | options
    backbone = make(Image(8, 4, channels=1), width=16, depth=1, heads=1)
    return getattr(module, CLASSES[name])(backbone, head=Head(16, WIDTH), **options)


def loss(name: str, z: torch.Tensor, module=information) -> torch.Tensor:
    """An objective's loss of given projections."""
    made = objective(name, module)
    made.projector = nn.Identity()
    return made.compare({"pooled": z})["loss"]


def lightly_s(name: str, z: torch.Tensor) -> torch.Tensor:
    """The same, by lightly, along the same slices."""
    from lightly import loss as losses

    if name == "barlow_twins":
        return losses.BarlowTwinsLoss(lambda_param=0.0051)(*z)
    if name == "vicreg":
        return losses.VICRegLoss()(*z)
    slices = information.directions(torch.tensor(0), WIDTH, SLICES)
    given = {"global_proj": z[:2], "local_proj": z[2:]}
    if name == "lejepa":
        made = losses.LeJEPALoss(lambda_param=0.05)
        made.sigreg._generate_unit_vectors = lambda *_: slices
        return made(**given)
    with mock.patch("torch.randn", lambda *_, **__: slices):
        return losses.visreg_loss.VISRegLoss(lambda_param=0.9, eps=1e-12)(**given)


# What is planted in objectives/information.py, by the loss whose comparison sees it.
PLANTED = [
    ("barlow_twins", "standardised(torch.stack", "centred(torch.stack"),  # deviations are not divided by
    ("barlow_twins", "(correlation - torch.diag(same))", "correlation"),  # the diagonal is redundancy
    ("vicreg", "collectives.ranks() - 1)", "collectives.ranks())"),  # a biased covariance
    ("vicreg", "torch.relu(1 - torch.sqrt(own + 1e-4))", "(1 - torch.sqrt(own + 1e-4))"),  # no hinge
    ("vicreg", "in centred(pair)", "in pair"),
    ("lejepa", "(1 - self.weight) * invariance", "invariance"),
    ("lejepa", "return samples * 2 *", "return 2 *"),  # the statistic is not of N samples
    ("lejepa", "projections[: self.large].mean(0)", "projections.mean(0)"),
    ("lejepa", "apart * normally, t", "apart, t"),  # no window
    ("visreg", "level = (z - mean)", "level = z"),
    ("visreg", "deviation.detach()", "deviation"),  # the value is right, the gradient is not
    ("visreg", "slices[:, collectives.rank()", "slices[:, 1"),  # a slice is left out
]
# What only several ranks can see.
PLANTED_ON_RANKS = [
    ("barlow_twins", "collectives.total(product(a.T, b))", "product(a.T, b)"),  # each rank its own
    (  # the right value without other ranks' gradients
        "barlow_twins",
        "collectives.total(product(a.T, b))",
        "(product(a.T, b) + (collectives.total(product(a.T, b)) - product(a.T, b)).detach())",
    ),
    ("vicreg", "collectives.total(moments)", "moments"),
    ("vicreg", "(pair[0] - pair[1]).square().mean()", "collectives.ranks() * (pair[0] - pair[1]).square().mean()"),
    ("lejepa", "samples = z.shape[1] * collectives.ranks()", "samples = z.shape[1]"),
    ("lejepa", "collectives.total(torch.stack([angle.cos()", "(torch.stack([angle.cos()"),
    ("lejepa", "normal(mix(step, SLICE), number)", "normal(mix(step, SLICE + collectives.rank()), number)"),
    ("visreg", "sum() * collectives.ranks() / slices", "sum() / slices"),
    ("visreg", "collectives.gather(z.transpose(0, 1).contiguous())", "(z.transpose(0, 1))"),
]


def gradient(name: str, z: torch.Tensor, of=loss, **more) -> tuple[torch.Tensor, torch.Tensor]:
    z = z.clone().requires_grad_()
    value = of(name, z, **more)
    value.backward()
    return value.detach(), z.grad


def compare(name: str, module=information) -> None:
    for batch in (3, BATCH):
        z = projections(name, batch)
        ours, theirs = gradient(name, z, module=module), gradient(name, z, lightly_s)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_it_is_lightly_s_with_gradient(name):
    compare(name)


@pytest.mark.parametrize(("name", "good", "bad"), PLANTED)
def test_a_planted_fault_is_seen(name, good, bad):
    with pytest.raises(AssertionError):
        compare(name, support.planted(information, good, bad))


@pytest.mark.parametrize("name", CLASSES)
def test_it_does_not_see_the_order_of_the_batch(name):
    z = projections(name)
    torch.testing.assert_close(loss(name, z[:, torch.randperm(BATCH)]), loss(name, z))


@pytest.mark.parametrize("name", CLASSES)
def test_half_precision_is_computed_in_float32(name):
    low = projections(name).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(name, low), loss(name, low.float()))


def independent() -> torch.Tensor:
    """Two equal views of features that have deviation 1 and do not vary together (columns of a Hadamard matrix)."""
    two = torch.tensor([[1.0, 1], [1, -1]])
    return torch.kron(two, torch.kron(two, two))[:, 1:].expand(2, -1, -1)


def test_known_values_of_correlation_and_covariance():
    """The optimum of both is independent features; a collapse is what they name it."""
    best = independent()
    for z in (best, best * torch.linspace(0.5, 3, 7) + 1):  # correlations see no lengths
        assert sum(information.barlow_twins_terms(*z)).item() == pytest.approx(0, abs=1e-6)
    assert sum(information.vicreg_terms(*best)).item() == pytest.approx(0, abs=1e-6)
    same = best[..., :1].expand(2, -1, 5)  # all features say the same
    assert information.barlow_twins_terms(*same)[1].item() == pytest.approx(20, rel=1e-4)
    assert information.vicreg_terms(*same)[2].item() == pytest.approx(2 * 4 * (8 / 7) ** 2, rel=1e-5)
    point = torch.ones(2, 8, 5)  # all samples say the same
    assert information.vicreg_terms(*point)[1].item() == pytest.approx(1 - 0.01, abs=1e-6)
    assert information.barlow_twins_terms(*point)[0].item() == pytest.approx(5, abs=1e-6)


def test_known_values_of_sketches():
    """Of a normal distribution both are near 0, of a point and of other distributions they are not."""
    random, slices = torch.Generator().manual_seed(0), information.directions(torch.tensor(7), 3, 64)
    z = torch.randn(2, 4000, 3, generator=random)
    normal, uniform, point = information.epps_pulley(z, slices), (z > 0) * 2.0 - 1, torch.zeros_like(z)
    assert normal.item() < 1.5  # a statistic, whose mean under its hypothesis does not grow with N
    assert information.epps_pulley(uniform, slices).item() > 20 * normal.item()
    t = torch.linspace(-3, 3, 20_001)
    distance = torch.trapezoid((1 - torch.exp(-t.square() / 2)).square() * torch.exp(-t.square() / 2), t)
    assert information.epps_pulley(point, slices).item() == pytest.approx(4000 * distance.item(), rel=2e-3)
    assert sum(information.visreg_terms(z, slices)).item() < 0.01
    center, scale, shape = information.visreg_terms(3 * uniform + 2, slices)
    assert center.item() == pytest.approx(4, rel=0.1) and scale.item() == pytest.approx(4, rel=0.01)
    assert shape.item() == pytest.approx(information.visreg_terms(uniform, slices)[2].item(), rel=1e-4) and shape > 0.02
    exact = torch.distributions.Normal(0.0, 1.0).icdf(torch.arange(1, 100) / 100)[None, :, None]
    assert information.visreg_terms(exact / exact.std(unbiased=False), torch.ones(1, 1))[2].item() < 3e-3


def test_near_a_collapse_the_scale_term_still_pushes_and_sigreg_does_not():
    """VISReg (Wu et al. 2026), figure 2: the nearer samples are, the weaker SIGReg's gradient."""
    z = torch.randn(2, 64, WIDTH, generator=torch.Generator().manual_seed(0))
    slices = information.directions(torch.tensor(0), WIDTH, SLICES)
    norms = {}
    for term in (information.epps_pulley, lambda *x: information.visreg_terms(*x)[1]):
        for size in (1e-3, 1e-2):
            near = (size * z).requires_grad_()
            term(near, slices).backward()
            assert (near.grad * near).sum() < 0  # a step down the gradient makes them longer
            norms.setdefault(term, []).append(near.grad.norm().item())
    sigreg, scale = norms.values()
    assert sigreg[0] / sigreg[1] == pytest.approx(0.1, rel=0.05) and scale[0] / scale[1] == pytest.approx(1, rel=0.05)


def test_slices_are_of_the_step_and_point_everywhere():
    first, again, later = (information.directions(torch.tensor(step), 8, 5000) for step in (3, 3, 4))
    assert torch.equal(first, again) and not torch.allclose(first, later)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(5000))
    torch.testing.assert_close(first @ first.T / 5000, torch.eye(8) / 8, atol=0.01, rtol=0)  # as uniform ones
    assert first.mean(1).abs().max() < 0.02
    made = objective("lejepa")
    z = {"pooled": torch.randn(8, 4, 16)}
    losses = []
    for step in (3, 4, 3):
        made.before_step(Progress(step, 10, 4))
        losses.append(made.compare(z)["loss"].item())
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("name", ["lejepa", "visreg"])
def test_dropped_pieces_are_other_ones_in_each_large_view_and_none_in_small_ones(name):
    made = objective(name, drop=0.5)
    image, number = made.backbone.modality, torch.arange(6)
    values = torch.arange(64.0).view(1, 1, 8, 8).expand(6, -1, -1, -1)
    cut = image.cut(values)
    large = View(**cut, seed=number, identity=number, row=number)
    small = View(**image.cut(values[..., :4, :4]), seed=number, identity=number, row=number)
    kept = [made.thin(large, view).data for view in range(2)]
    assert all(k.shape[1] == 2 for k in kept) and not torch.equal(*kept)
    with mock.patch.object(made, "thin", wraps=made.thin) as thin:
        out = made([large, large, small])
    assert thin.call_count == 2 and out["loss"].isfinite()
    out["loss"].backward()


def on_ranks(values: dict[str, list]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Value and gradient of this rank's share, of each loss and then of each planted fault."""
    from triptych.training import engine

    engine.start(support.config("image", "mae", ".").run)
    share = {k: torch.tensor(z).chunk(dist.get_world_size(), dim=1)[dist.get_rank()] for k, z in values.items()}
    made = [gradient(name, share[name]) for name in CLASSES]
    for name, good, bad in PLANTED_ON_RANKS:
        made.append(gradient(name, share[name], module=support.planted(information, good, bad)))
    return made


def test_two_ranks_are_one_and_planted_faults_are_seen(launch):
    whole = {name: projections(name) for name in CLASSES}
    parts = launch(on_ranks, 2, values={k: z.tolist() for k, z in whole.items()}).results()
    cases = [*CLASSES, *PLANTED_ON_RANKS]
    for case, *ranks in zip(cases, *parts, strict=True):
        name = case if isinstance(case, str) else case[0]
        value, slope = gradient(name, whole[name])
        mean, joined = sum(v for v, _ in ranks) / 2, torch.cat([g for _, g in ranks], dim=1) / 2
        equal = torch.allclose(mean, value, rtol=1e-5) and torch.allclose(joined, slope, atol=1e-6, rtol=1e-5)
        assert equal == (case in CLASSES), case


@pytest.mark.parametrize("name", CLASSES)
def test_it_says_what_it_costs_and_when_to_take_it(name):
    assert all(getattr(OBJECTIVES[name], what) for what in ("cost", "collapse", "choose"))
