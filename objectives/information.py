"""Information maximisation: views of a sample agree, and over the batch each feature tells something of its own."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone, pooled
from triptych.modalities.domains import Count, NotNegative, Part, Positive, Scale, Share
from triptych.modalities.hashing import mix, normal
from triptych.modalities.precision import product
from triptych.modalities.view import View, ViewSpec
from triptych.objectives import collectives, masking
from triptych.objectives.base import Batch, Objective, Progress
from triptych.objectives.crops import Crops
from triptych.objectives.heads import Head, MLPHead, centred, standardised


class Pair(Objective):
    """What Barlow Twins and VICReg share: two views, one projector, a loss of the whole batch."""

    compares = True

    def __init__(self, backbone: Backbone, head: Head, scale: Scale):
        super().__init__(backbone, tuple(ViewSpec(scale=scale, strength="strong", index=i) for i in range(2)))
        self.projector = MLPHead(backbone.pooled_width, head)

    def represent(self, views: Batch) -> dict[str, Tensor]:
        return {"pooled": pooled(self.backbone, views)}


class BarlowTwins(Pair):
    """Barlow Twins (Zbontar et al. 2021): the correlation of two views' projections is to be the identity.

    Correlations are of the global batch, on any number of ranks. The authors' code sums them over ranks in place, which
    autograd does not see, so its gradients are divided by the number of ranks, and its learning rates hold that factor.

    Args:
        redundancy: weight of the correlations between different features (the paper's lambda).
        head: sizes of the projector, three layers in the paper, of 8192 each; the wider the better, it says.
        scale: smallest and largest fraction of a sample that a view keeps.
    """

    cost: ClassVar[str] = (
        "two forwards a sample, no teacher; a step sums a square matrix as wide as the projections over ranks "
        "(17 MB at 2048, 268 MB at 8192)"
    )
    collapse: ClassVar[str] = (
        "all features of a projection say the same: `redundancy` stays near the width squared, RankMe falls"
    )
    choose: ClassVar[str] = "small batches, no teacher, one weight to choose; wants wide projections"

    def __init__(
        self,
        backbone: Backbone,
        redundancy: Positive = 0.0051,
        head: Head = Head(2048, 2048, 3),
        scale: Scale = (0.08, 1.0),
    ):
        super().__init__(backbone, head, scale)
        self.redundancy = redundancy

    def compare(self, z: dict[str, Tensor]) -> dict[str, Tensor]:
        invariance, redundancy = barlow_twins_terms(*self.projector(z["pooled"]).unbind(0))
        return {
            "loss": invariance + self.redundancy * redundancy,
            "invariance": invariance.detach(),
            "redundancy": redundancy.detach(),
            "features": z["pooled"][0].detach(),
        }


def barlow_twins_terms(
    z_i: Float[Tensor, "b d"], z_j: Float[Tensor, "b d"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Invariance and redundancy (Barlow Twins, equation 1), in float32, over the batch of all ranks.

    With each feature of each view standardised over the N samples, as a batch norm does, `C = z_i.T z_j / N`:

        invariance = sum_k (C_kk - 1)^2,   redundancy = sum_k sum_{l != k} C_kl^2.
    """
    with torch.autocast(z_i.device.type, enabled=False):
        a, b = standardised(torch.stack([z_i, z_j]).float())
        correlation = collectives.total(product(a.T, b)) / (len(a) * collectives.ranks())
        same = correlation.diagonal()
        return (same - 1).square().sum(), (correlation - torch.diag(same)).square().sum()


class VICReg(Pair):
    """VICReg (Bardes et al. 2022): views agree, each feature has a deviation, different ones do not vary together.

    As in the authors' code: the squared distance of two views is divided by the width, too, and the variance term is
    the mean over both views, where the paper's equation 6 sums them. Variances and covariances are of the global batch.

    Args:
        invariance: weight of the squared distance between two views.
        variance: weight of what a feature's deviation lacks to 1.
        covariance: weight of the squared covariances between different features.
        head: sizes of the projector, three layers in the paper, of 8192 each.
        scale: smallest and largest fraction of a sample that a view keeps.
    """

    cost: ClassVar[str] = (
        "two forwards a sample, no teacher; a step sums two square matrices as wide as the projections over ranks "
        "(34 MB at 2048, 537 MB at 8192)"
    )
    collapse: ClassVar[str] = "all samples look alike: `variance` stays near 1; few directions: `covariance` stays high"
    choose: ClassVar[str] = "no negatives, no teacher, and three weights that say what is wrong; a slow starter"

    def __init__(
        self,
        backbone: Backbone,
        invariance: NotNegative = 25.0,
        variance: NotNegative = 25.0,
        covariance: NotNegative = 1.0,
        head: Head = Head(2048, 2048, 3),
        scale: Scale = (0.08, 1.0),
    ):
        super().__init__(backbone, head, scale)
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}

    def compare(self, z: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = dict(zip(self.weights, vicreg_terms(*self.projector(z["pooled"]).unbind(0)), strict=True))
        loss = sum(weight * terms[name] for name, weight in self.weights.items())
        shown = {name: term.detach() for name, term in terms.items()}
        return {"loss": loss, **shown, "features": z["pooled"][0].detach()}


def vicreg_terms(
    z_i: Float[Tensor, "b d"], z_j: Float[Tensor, "b d"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Invariance, variance and covariance (VICReg, equations 1 to 5), in float32, over the batch of all ranks.

    With `C(z)` the unbiased covariance matrix of N projections, d wide:

        invariance = mean (z_i - z_j)^2
        variance = mean over both views and all k of max(0, 1 - sqrt(C_kk + 1e-4))
        covariance = sum over both views of sum_k sum_{l != k} C_kl^2 / d
    """
    with torch.autocast(z_i.device.type, enabled=False):
        pair = torch.stack([z_i, z_j]).float()
        invariance = (pair[0] - pair[1]).square().mean()  # this rank's part
        moments = torch.stack([product(z.T, z) for z in centred(pair)])
        covariance = collectives.total(moments) / (len(z_i) * collectives.ranks() - 1)
        own = covariance.diagonal(dim1=1, dim2=2)
        lacking = torch.relu(1 - torch.sqrt(own + 1e-4)).mean()
        return invariance, lacking, (covariance - torch.diag_embed(own)).square().sum() / z_i.shape[1]


class Sketch(Objective):
    """What LeJEPA and VISReg share: crops of a sample meet at the mean of its large ones, and the projections of each
    crop's batch are to be normally distributed along random directions ("slices").

    The slices are drawn from the number of the step, so that all ranks look along the same ones. Each view is a batch
    of its own, to the regulariser and to the projector's batch norms.
    """

    compares = True
    large: ClassVar[int] = 2  # of the crops, the first

    def __init__(self, backbone: Backbone, weight: float, slices: int, head: Head, crops: Crops, drop: float):
        super().__init__(backbone, crops.views())
        self.weight, self.slices, self.width, self.drop = weight, slices, head.out, drop
        self.projector = MLPHead(backbone.pooled_width, head)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def before_step(self, progress: Progress) -> None:
        self.step.fill_(progress.step)

    def represent(self, views: Batch) -> dict[str, Tensor]:
        if self.drop:
            thinned = [self.thin(view, number) for number, view in enumerate(views[: self.large])]
            views = thinned + views[self.large :]
        return {"pooled": pooled(self.backbone, views)}

    def thin(self, view: View, number: int) -> View:
        """A view without a part of its pieces, which another view of the sample may keep."""
        modality = self.backbone.modality
        seeded, drop = view.replace(seed=mix(view.seed, DROP, number)), masking.sparing(view, self.drop)
        hide = masking.hide(seeded, drop, "random", 1, modality.droppable(view))
        _, _, index, valid = masking.split(view, hide, drop, modality.stay)
        return view.keep(index, valid)

    def compare(self, z: dict[str, Tensor]) -> dict[str, Tensor]:
        projections = self.projector(z["pooled"])
        with torch.autocast(projections.device.type, enabled=False):
            projections = projections.float()
            invariance = (projections - projections[: self.large].mean(0)).square().mean()  # this rank's part
            terms = self.regularise(projections, directions(self.step, projections.shape[-1], self.slices))
            loss = (1 - self.weight) * invariance + self.weight * sum(terms.values())
        shown = {name: term.detach() for name, term in {"invariance": invariance, **terms}.items()}
        return {"loss": loss, **shown, "features": z["pooled"][0].detach()}

    def regularise(self, z: Float[Tensor, "v b d"], slices: Float[Tensor, "d k"]) -> dict[str, Float[Tensor, ""]]:
        """Terms by name, whose sum is 0 for a normal distribution."""
        raise NotImplementedError


SLICE, DROP = 0x51CE, 0xD60B  # keep slices, and the pieces that are left out, apart from what else is hashed


def directions(step: Int[Tensor, ""], width: int, count: int) -> Float[Tensor, "d k"]:
    """Unit vectors, uniform on the sphere, as columns: a hash of the step's number, the same on every rank."""
    number = torch.arange(width * count, device=step.device).view(width, count)
    return F.normalize(normal(mix(step, SLICE), number), dim=0)


class LeJEPA(Sketch):
    """LeJEPA (Balestriero and LeCun 2025): `(1 - weight) · invariance + weight · SIGReg`, over all crops.

    SIGReg is the statistic of Epps and Pulley, of each view's batch of all ranks along each slice. Departures: slices
    are hashed from the step, where the paper seeds a generator by it; the projector's batch norms see one view at a
    time.

    Args:
        weight: share of SIGReg in the loss (the paper's lambda, 0.02 to 0.05).
        slices: random directions a step.
        head: sizes of the projector.
        crops: large and small views of a sample.
        drop: fraction of a large view's pieces that is left out before the encoder, to save time; 0 in the paper.
    """

    cost: ClassVar[str] = (
        "one forward a crop, no teacher; a step sums 2 × 17 figures a slice and view over ranks (1.1 MB at 8 views and "
        "1024 slices); memory: 17 × slices floats a crop"
    )
    collapse: ClassVar[str] = "all samples look alike: `sketch` stays near its start while `invariance` is 0"
    choose: ClassVar[str] = "one weight, no teacher, no schedule; where crops of a sample still show what it is"

    def __init__(
        self,
        backbone: Backbone,
        weight: Share = 0.05,
        slices: Count = 1024,
        head: Head = Head(2048, 64, 3),
        crops: Crops = Crops(),
        drop: Part = 0.0,
    ):
        super().__init__(backbone, weight, slices, head, crops, drop)

    def regularise(self, z: Float[Tensor, "v b d"], slices: Float[Tensor, "d k"]) -> dict[str, Float[Tensor, ""]]:
        return {"sketch": epps_pulley(z, slices)}


def epps_pulley(z: Float[Tensor, "v b d"], slices: Float[Tensor, "d k"]) -> Float[Tensor, ""]:
    """SIGReg (LeJEPA, algorithm 1): how far projections are from standard normal, in mean over views and slices.

    Of each view's N samples on all ranks, `x = a.T z` along slice a:

        N · integral over t from -3 to 3 of |mean_n exp(i t x_n) - exp(-t^2 / 2)|^2 exp(-t^2 / 2)

    by the trapezoidal rule; the integrand is even, so that 17 knots from 0 to 3 serve.
    """
    samples = z.shape[1] * collectives.ranks()
    t = torch.linspace(0, 3, 17, device=z.device)
    normally = torch.exp(-t.square() / 2)
    angle = product(z.flatten(0, 1), slices).unflatten(0, z.shape[:2])[..., None] * t  # [v b k t]
    real, imaginary = collectives.total(torch.stack([angle.cos().sum(1), angle.sin().sum(1)])) / samples
    apart = (real - normally).square() + imaginary.square()
    return samples * 2 * torch.trapezoid(apart * normally, t, dim=-1).mean()


class VISReg(Sketch):
    """VISReg (Wu et al. 2026, arXiv:2606.02572): `(1 - weight) · invariance + weight · (centre + scale + shape)`.

    Shape is a sliced Wasserstein distance to the normal distribution, of projections whose deviation is taken off
    without gradient, so that it says nothing of scale: unlike SIGReg's, the gradient does not vanish in a collapse. The
    three terms have equal weights, as in the paper. Departure: the paper draws slices of its own on every rank; here
    the ranks share out one set, so that their number does not change the loss.

    Args:
        weight: share of the three terms in the loss (0.9 in the paper; 0.6 for small data).
        slices: random directions a step.
        head: sizes of the projector.
        crops: large and small views of a sample. (The paper has four large ones, of 0.3 to 1, and six small ones.)
        drop: fraction of a large view's pieces that is left out before the encoder, to save time; 0 in the paper.
    """

    cost: ClassVar[str] = (
        "one forward a crop, no teacher; a step gathers the projections of all views (4 MB at 8 views, 512 samples and "
        "256 features), of which a rank sorts its share of the slices"
    )
    collapse: ClassVar[str] = (
        "all samples look alike: `scale` near 1; few directions: `shape` stays high. Of N samples a step, shape pulls "
        "those together whose deviation is below about 5 / N: small batches want a head whose outputs differ"
    )
    choose: ClassVar[str] = (
        "as LeJEPA, and its scale is held by a term of its own; first of 28 in stable-pretraining's table"
    )

    def __init__(
        self,
        backbone: Backbone,
        weight: Share = 0.9,
        slices: Count = 4096,
        head: Head = Head(2048, 256, 3),
        crops: Crops = Crops(),
        drop: Part = 0.0,
    ):
        super().__init__(backbone, weight, slices, head, crops, drop)

    def regularise(self, z: Float[Tensor, "v b d"], slices: Float[Tensor, "d k"]) -> dict[str, Float[Tensor, ""]]:
        return dict(zip(("center", "scale", "shape"), visreg_terms(z, slices), strict=True))


def visreg_terms(
    z: Float[Tensor, "v b d"], slices: Float[Tensor, "d k"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Centre, scale and shape (VISReg, equations 6, 1 and 5), in mean over views, of the batch of all ranks.

    With `m` and `s` each feature's mean and (biased) deviation over N samples, and `q_i` the standard normal quantile
    of `i / (N + 1)`:

        centre = mean m^2,   scale = mean (s - 1)^2
        shape = mean over slices a and i of (i-th smallest of a.T (z - m) / s  -  q_i)^2,   s without gradient.

    A rank's shape is its part: of W ranks, each looks along every W-th slice.
    """
    z = collectives.gather(z.transpose(0, 1).contiguous()).transpose(0, 1)
    views, samples = z.shape[:2]
    mean = z.mean(1, keepdim=True)
    deviation = ((z - mean).norm(dim=1, keepdim=True) / math.sqrt(samples)).clamp(min=1e-6)
    level = (z - mean) / deviation.detach()
    own = slices[:, collectives.rank() :: collectives.ranks()]
    found = product(level.flatten(0, 1), own).unflatten(0, (views, samples)).sort(dim=1).values
    rank = torch.arange(1, samples + 1, device=z.device) / (samples + 1)
    quantile = math.sqrt(2) * torch.erfinv(2 * rank - 1)
    shape = (found - quantile[:, None]).square().mean((0, 1)).sum() * collectives.ranks() / slices.shape[1]
    return mean.square().mean(), (deviation - 1).square().mean(), shape
