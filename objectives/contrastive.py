"""Contrastive objectives: two views of a sample attract, all other samples of the global batch repel."""

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone, pooled
from triptych.modalities.domains import Number, Positive, Scale
from triptych.modalities.precision import product
from triptych.modalities.view import ViewSpec
from triptych.objectives import collectives
from triptych.objectives.base import Batch, Objective, Progress
from triptych.objectives.heads import Head, MLPHead, projector
from triptych.objectives.queue import Queue
from triptych.objectives.teacher import Teacher


class SimCLR(Objective):
    """SimCLR (Chen et al. 2020): NT-Xent between projections of two views, over the global batch.

    Args:
        temperature: divides the cosine similarities.
        head: sizes of the projection head.
        scale: smallest and largest fraction of a sample that a view keeps.
    """

    cost: ClassVar[str] = (
        "two forwards; gathers the projections, 8 · B · W · d bytes; 2B × 2BW similarities on each rank"
    )
    collapse: ClassVar[str] = "held off by the negatives; a loss near 0 says that the views are trivially alike"
    choose: ClassVar[str] = "the first to try: fast, no teacher, frozen features at once; wants other samples beside"

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


class MoCo(Objective):
    """Momentum contrast: find the teacher's key of the other view among those of other samples.

    Version 3 (Chen, Xie and He 2021, algorithm 1): a predictor, no queue. Version 2 (Chen, Fan, Girshick and He 2020):
    `queue` keys of earlier samples are negatives, too, and `predictor` is 0. With queries q and keys k, normalised,

        loss = -log( exp(q k+ / t) / (exp(q k+ / t) + sum_k- exp(q k- / t)) ),   k+ the key of the sample's other view,

    and the mean over both views. Departures: the batch's other keys are negatives beside a queue, too, since an empty
    one has none; keys of the same row, or of an equal sample, are none; batches are normalised over all ranks, where
    version 2 shuffles; version 3's constant factor of 2 t is left out, and no layer is frozen.

    Args:
        temperature: divides the cosine similarities.
        queue: keys of earlier samples to keep, two a sample; 0 for none.
        predictor: linear layers of the predictor; 0 for none.
        half_life: half-life of the teacher's average, in samples (0.99 at batch 4096: 280,000).
        head: sizes of the projector.
        scale: smallest and largest fraction of a sample that a view keeps.
    """

    extras = ("keys", "identity")
    compares = True
    cost: ClassVar[str] = (
        "2 forwards of the student and 2 of the teacher a sample; a second encoder and the queue (4 bytes a value); "
        "gathers the batch's keys: 8 · batch · out bytes"
    )
    collapse: ClassVar[str] = "the loss stays at the logarithm of the number of keys, and `feature_deviation` falls"
    choose: ClassVar[str] = "where batches are too small for SimCLR: with a queue, negatives are not the batch's alone"

    def __init__(
        self,
        backbone: Backbone,
        temperature: Positive = 0.2,
        queue: Number = 0,
        predictor: Number = 2,
        half_life: Positive = 5000.0,
        head: Head = Head(4096, 256, 3),
        scale: Scale = (0.08, 1.0),
    ):
        super().__init__(backbone, tuple(ViewSpec(scale=scale, strength="strong", index=i) for i in range(2)))
        self.temperature = temperature
        self.projector = projector(backbone.pooled_width, head)
        self.predictor = MLPHead(head.out, replace(head, layers=predictor))
        self.teacher = Teacher(backbone, self.projector, half_life=half_life)
        self.queue = Queue(queue, head.out) if queue else None

    def represent(self, views: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            target = pooled(self.teacher[0], views)
        return {"student": pooled(self.backbone, views), "teacher": target, "identity": views[0].identity}

    def compare(self, z: dict[str, Tensor]) -> dict[str, Tensor]:
        query = self.predictor(self.projector(z["student"]))
        with torch.no_grad():
            key = F.normalize(self.teacher[1](z["teacher"]).float(), dim=-1)
        identity = z["identity"]
        loss = sum(self.contrast(query[a], key[1 - a], identity) for a in (0, 1)) / 2
        extras = {"keys": key.transpose(0, 1), "identity": identity}
        return {"loss": loss, "features": z["student"][0].detach()} | extras

    def contrast(self, query: Float[Tensor, "b d"], key: Float[Tensor, "b d"], identity: Int[Tensor, " b"]) -> Tensor:
        """The loss of one view's queries, against the batch's keys of the other and those of the queue."""
        others, same = collectives.gather(key), identity[:, None] == collectives.gather(identity)
        if self.queue is not None:
            others = torch.cat([others, self.queue.values])
            same = torch.cat([same, (identity[:, None] == self.queue.identity) | ~self.queue.filled()], dim=1)
        return info_nce_loss(query, key, others, same, self.temperature)

    def after_step(self, extras: list[dict[str, Tensor]], progress: Progress) -> None:
        self.teacher.follow(self.backbone, self.projector, progress=progress)
        if self.queue is not None:
            keys = [e["keys"].flatten(0, 1) for e in extras]
            self.queue.push(keys, [e["identity"].repeat_interleave(2) for e in extras], progress)

    def averaged(self) -> Backbone:
        return self.teacher[0]


def info_nce_loss(
    query: Float[Tensor, "b d"],
    key: Float[Tensor, "b d"],
    others: Float[Tensor, "n d"],
    excluded: Bool[Tensor, "b n"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of each query's own key among others that are not excluded (MoCo, He et al. 2020, equation 1)."""
    with torch.autocast(query.device.type, enabled=False):
        query = F.normalize(query.float(), dim=-1)
        own = (query * key).sum(-1, keepdim=True)
        logits = torch.cat([own, product(query, others.T).masked_fill(excluded, -torch.inf)], dim=1) / temperature
        return (logits.logsumexp(1) - logits[:, 0]).mean()


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
