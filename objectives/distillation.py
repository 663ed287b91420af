"""Self-distillation: a student predicts what a teacher, its own moving average, makes of another view."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone, pooled
from triptych.modalities.domains import Positive, Scale
from triptych.modalities.view import ViewSpec
from triptych.objectives.base import Batch, Objective, Progress
from triptych.objectives.heads import Head, MLPHead
from triptych.objectives.teacher import Teacher


class BYOL(Objective):
    """Bootstrap your own latent (Grill et al. 2020): predict the teacher's projection of the other view.

    Args:
        half_life: half-life of the teacher's average, in samples (BYOL's 0.99 at batch 4096: 280,000).
        head: sizes of the projector; the predictor has two layers.
        scale: smallest and largest fraction of a sample that a view keeps.
    """

    def __init__(
        self,
        backbone: Backbone,
        half_life: Positive = 5000.0,
        head: Head = Head(4096, 256),
        scale: Scale = (0.08, 1.0),
    ):
        super().__init__(backbone, tuple(ViewSpec(scale=scale, strength="strong", index=i) for i in range(2)))
        if not half_life > 0:
            raise ValueError(f"objective.half_life {half_life} is not above 0; try 5000")
        self.compares = head.norm == "batch"
        if head.layers < 1:
            raise ValueError("objective.head.layers 0 is not in [1, inf); try 2: what is predicted is a projection")
        self.projector = MLPHead(backbone.pooled_width, head)
        self.predictor = MLPHead(head.out, replace(head, layers=2))
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


def byol_loss(guess: Float[Tensor, "b d"], target: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """`2 - 2 cos(guess, target)`, the squared distance of the normalised vectors (BYOL, equation 2), in float32."""
    return 2 - 2 * F.cosine_similarity(guess.float(), target.float(), dim=-1).mean()
