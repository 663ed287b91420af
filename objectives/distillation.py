"""Self-distillation: a student predicts what a teacher, its own moving average or itself, makes of another view."""

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone, pooled
from triptych.modalities.domains import Positive, Scale
from triptych.modalities.view import ViewSpec
from triptych.objectives.base import Batch, Objective, Progress
from triptych.objectives.heads import BatchNorm, Head, MLPHead, projector
from triptych.objectives.teacher import Teacher


class BYOL(Objective):
    """Bootstrap your own latent (Grill et al. 2020): predict the teacher's projection of the other view.

    Args:
        half_life: half-life of the teacher's average, in samples (BYOL's 0.99 at batch 4096: 280,000).
        head: sizes of the projector; the predictor has two layers.
        scale: smallest and largest fraction of a sample that a view keeps.
        predictor_rate: factor on the predictor's learning rate.
    """

    cost: ClassVar[str] = "two forwards and two of the teacher, which is a copy of encoder and head; head statistics"
    collapse: ClassVar[str] = "slow: RankMe falls, mean cosine rises to 1; raise `half_life`, or lower the rate"
    choose: ClassVar[str] = "no negatives: sets in which many samples are alike; a slow starter"
    compares_where: ClassVar[str] = "its heads normalise over the batch"

    def __init__(
        self,
        backbone: Backbone,
        half_life: Positive = 5000.0,
        head: Head = Head(4096, 256),
        scale: Scale = (0.08, 1.0),
        predictor_rate: Positive = 1.0,
    ):
        super().__init__(backbone, tuple(ViewSpec(scale=scale, strength="strong", index=i) for i in range(2)))
        if not half_life > 0:
            raise ValueError(f"objective.half_life {half_life} is not above 0; try 5000")
        self.compares = head.norm == "batch"
        self.projector = projector(backbone.pooled_width, head)
        self.predictor = MLPHead(head.out, replace(head, layers=2))
        self.predictor.rate_scale = predictor_rate
        self.teacher = Teacher(backbone, self.projector, half_life=half_life)

    def represent(self, views: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            target = pooled(self.teacher[0], views)
        return {"student": pooled(self.backbone, views), "teacher": target}

    def compare(self, z: dict[str, Tensor]) -> dict[str, Tensor]:
        guess = self.predictor(self.projector(z["student"]))
        with torch.no_grad():
            target = self.teacher[1](z["teacher"])
        loss = byol_loss(guess[0], target[1]) + byol_loss(guess[1], target[0])
        return {"loss": loss, "features": z["student"][0].detach()}

    def after_step(self, extras: list[dict[str, Tensor]], progress: Progress) -> None:
        self.teacher.follow(self.backbone, self.projector, progress=progress)

    def averaged(self) -> Backbone:
        return self.teacher[0]


class SimSiam(Objective):
    """SimSiam (Chen and He 2021): predict the projection of the other view, through which no gradient flows.

    With projections `z` and predictions `p = h(z)`, equation 4: `L = D(p1, sg(z2)) / 2 + D(p2, sg(z1)) / 2`, where D is
    the negative cosine and sg stops the gradient: the only thing that keeps it from collapse, for there are neither
    negatives nor a teacher. Departures: 1 is added, so that the loss is 0 where all is predicted; batches are
    normalised over all ranks, and each view apart; the predictor's rate falls with all others.

    Args:
        head: sizes of the projector, whose output is normalised, too; the predictor has two layers, the hidden one a
            quarter as wide as a projection, but 32 at least: of few, all may be 0, and such a guess has no direction.
        scale: smallest and largest fraction of a sample that a view keeps.
        predictor_rate: factor on the predictor's learning rate. One that is ahead of the encoder is what keeps two
            networks without a teacher apart (BYOL, appendix I: a factor of 10 replaces it).
    """

    cost: ClassVar[str] = "2 forwards of the student a sample; no teacher; gathers 2 sums of the heads' widths a layer"
    collapse: ClassVar[str] = "the loss falls to 0 in a few steps, `feature_deviation` with it; raise `predictor_rate`"
    choose: ClassVar[str] = "where neither negatives nor the memory of a teacher are wanted, and batches are not tiny"
    compares_where: ClassVar[str] = "its heads normalise over the batch"

    def __init__(
        self,
        backbone: Backbone,
        head: Head = Head(2048, 2048, 3),
        scale: Scale = (0.2, 1.0),
        predictor_rate: Positive = 1.0,
    ):
        super().__init__(backbone, tuple(ViewSpec(scale=scale, strength="strong", index=i) for i in range(2)))
        self.compares = head.norm == "batch"
        last = BatchNorm(head.out, affine=False) if self.compares else nn.LayerNorm(head.out, elementwise_affine=False)
        self.projector = nn.Sequential(projector(backbone.pooled_width, head), last)
        self.predictor = MLPHead(head.out, replace(head, layers=2, hidden=max(32, head.out // 4)))
        self.predictor.rate_scale = predictor_rate

    def represent(self, views: Batch) -> dict[str, Tensor]:
        return {"pooled": pooled(self.backbone, views)}

    def compare(self, z: dict[str, Tensor]) -> dict[str, Tensor]:
        projection = self.projector(z["pooled"])
        guess, target = self.predictor(projection), projection.detach()
        loss = (byol_loss(guess[0], target[1]) + byol_loss(guess[1], target[0])) / 4
        return {"loss": loss, "features": z["pooled"][0].detach()}


def byol_loss(guess: Float[Tensor, "b d"], target: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """`2 - 2 cos(guess, target)`, the squared distance of the normalised vectors (BYOL, equation 2), in float32."""
    return 2 - 2 * F.cosine_similarity(guess.float(), target.float(), dim=-1).mean()
