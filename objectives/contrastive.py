"""Contrastive objectives: two views of a sample attract, all other samples of the global batch repel."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone, pooled
from triptych.modalities.domains import Positive, Scale
from triptych.modalities.precision import product
from triptych.modalities.view import ViewSpec
from triptych.objectives import collectives
from triptych.objectives.base import Batch, Objective
from triptych.objectives.heads import Head, MLPHead


class SimCLR(Objective):
    """SimCLR (Chen et al. 2020): NT-Xent between projections of two views, over the global batch.

    Args:
        temperature: divides the cosine similarities.
        head: sizes of the projection head.
        scale: smallest and largest fraction of a sample that a view keeps.
    """

    compares = True

    def __init__(
        self,
        backbone: Backbone,
        temperature: Positive = 0.1,
        head: Head = Head(),
        scale: Scale = (0.08, 1.0),
    ):
        super().__init__(backbone, tuple(ViewSpec(scale=scale, strength="strong", index=i) for i in range(2)))
        if not temperature > 0:
            raise ValueError(f"objective.temperature {temperature} is not above 0; try 0.1")
        self.temperature = temperature
        self.projector = MLPHead(backbone.pooled_width, head)

    def represent(self, views: Batch) -> dict[str, Tensor]:
        return {"pooled": pooled(self.backbone, views), "identity": views[0].identity}

    def compare(self, z: dict[str, Tensor]) -> dict[str, Tensor]:
        first, second = self.projector(z["pooled"]).unbind(0)
        loss = nt_xent_loss(first, second, self.temperature, z["identity"])
        return {"loss": loss, "features": z["pooled"][0].detach()}


def nt_xent_loss(
    z_i: Float[Tensor, "b d"], z_j: Float[Tensor, "b d"], temperature: float, identity: Int[Tensor, " b"] | None = None
) -> Float[Tensor, ""]:
    """Normalised temperature-scaled cross-entropy (SimCLR, algorithm 1), in float32, over the batch of all ranks.

    With `z_{2k-1} = z_i[k]`, `z_{2k} = z_j[k]` and `s` the cosine similarity, the mean over all 2N of

        l(a, b) = -log( exp(s_ab / t) / sum_{c != a} exp(s_ac / t) ),   (a, b) a positive pair.

    Samples with equal `identity` (the same row, or the same text) are not each other's negatives.
    """
    with torch.autocast(z_i.device.type, enabled=False):
        batch = len(z_i)
        pair = F.normalize(torch.stack([z_i, z_j], dim=1).float(), dim=-1)  # [b 2 d]: a sample's views side by side
        everyone = collectives.gather(pair).flatten(0, 1)
        logits = product(pair.flatten(0, 1), everyone.T) / temperature
        row = torch.arange(2 * batch, device=z_i.device) + 2 * batch * collectives.rank()
        positive = row ^ 1
        if identity is None:
            excluded = row[:, None] == torch.arange(len(everyone), device=z_i.device)
        else:
            own, known = (i.repeat_interleave(2) for i in (identity, collectives.gather(identity)))
            excluded = own[:, None] == known
            excluded = excluded.scatter(1, positive[:, None], False)
        return F.cross_entropy(logits.masked_fill(excluded, -torch.inf), positive)
