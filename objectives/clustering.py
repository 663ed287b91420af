"""Clustering: a view predicts to which prototypes another view of the sample was assigned."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone, pooled
from triptych.modalities.domains import Count, Number, Part, Positive
from triptych.objectives import collectives
from triptych.objectives.base import Batch, Objective, Progress
from triptych.objectives.crops import Crops
from triptych.objectives.heads import Head, projector
from triptych.objectives.prototypes import Prototypes, perplexity, sinkhorn, swapped_loss
from triptych.objectives.queue import Queue


class SwAV(Objective):
    """SwAV (Caron et al. 2020): views predict to which prototypes another view was assigned; small crops beside large.

    Each large view of the global batch is assigned to prototypes C in equal parts, `q = Sinkhorn(z C / epsilon)`, and
    all other views s of the sample predict it (equation 2, and section 3.3 for the crops):

        loss = mean over large views l, and views s other than l, of -sum_k q_lk log softmax(z_s C / t)_k.

    A queue of earlier projections takes part in the assignment, where batches are smaller than prototypes are many.
    Departures: slots of the queue count as soon as they are filled; batches are normalised over all ranks, and each
    view apart; the prototypes are normalised where they are used.

    Args:
        prototypes: how many there are.
        temperature: divides the cosines of a prediction.
        epsilon: divides those of an assignment: the smaller, the harder it is.
        iterations: of Sinkhorn's algorithm.
        queue: earlier samples to keep; 0 for none. With the batch they had better be as many as prototypes.
        queue_from: part of the run before the queue takes part.
        frozen: part of the run in which prototypes stand still.
        head: sizes of the projector.
        crops: the views.
    """

    extras = ("projections", "identity")
    compares = True
    cost: ClassVar[str] = (
        "2 forwards of large views and `crops.number` of small ones a sample; no teacher; batch and queue times "
        "prototypes in float32; sums 4 bytes a prototype in each of 3 iterations, gathers the queue's projections"
    )
    collapse: ClassVar[str] = (
        "the loss stays at the logarithm of the number of prototypes, or `prototypes_used` (in predictions) falls to a "
        "few: try a smaller `epsilon`"
    )
    choose: ClassVar[str] = "where small crops make sense, and clusters of the data are what is looked for"

    def __init__(
        self,
        backbone: Backbone,
        prototypes: Count = 3000,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.05,
        iterations: Count = 3,
        queue: Number = 0,
        queue_from: Part = 0.1,
        frozen: Part = 0.01,
        head: Head = Head(2048, 128),
        crops: Crops = Crops(scale=(0.05, 0.14), large=(0.14, 1.0)),
    ):
        super().__init__(backbone, crops.views())
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue_from, self.frozen = queue_from, frozen
        self.projector = projector(backbone.pooled_width, head)
        self.prototypes = Prototypes(head.out, prototypes)
        self.queue = Queue(queue, 2, head.out) if queue else None
        self.register_buffer("queue_counts", torch.zeros(()))

    def before_step(self, progress: Progress) -> None:
        self.prototypes.moves.fill_(progress.fraction >= self.frozen)
        self.queue_counts.fill_(progress.fraction >= self.queue_from)

    def represent(self, views: Batch) -> dict[str, Tensor]:
        sizes = (
            [views[:2], views[2:]] if len(views) > 2 else [views]
        )  # rows of small views are not padded to large ones'
        return {"pooled": torch.cat([pooled(self.backbone, v) for v in sizes]), "identity": views[0].identity}

    def compare(self, z: dict[str, Tensor]) -> dict[str, Tensor]:
        projection = self.projector(z["pooled"])
        score = self.prototypes(projection)
        target = torch.stack([self.assign(score[large].detach(), large) for large in (0, 1)])
        extras = {"projections": projection[:2].detach().transpose(0, 1), "identity": z["identity"]}
        loss = swapped_loss(score, target, self.temperature)
        used = perplexity(F.softmax(score[0] / self.temperature, dim=-1))
        return {"loss": loss, "prototypes_used": used, "features": z["pooled"][0].detach()} | extras

    @torch.no_grad()
    def assign(self, score: Float[Tensor, "b k"], large: int) -> Float[Tensor, "b k"]:
        """To which prototypes the samples of a large view belong. The queue's are shared out among the ranks."""
        if self.queue is None:
            return sinkhorn(score / self.epsilon, iterations=self.iterations)
        share = slice(collectives.rank(), None, collectives.ranks())
        earlier = self.prototypes(self.queue.values[share, large])
        weight = torch.cat([score.new_ones(len(score)), self.queue.filled()[share] * self.queue_counts])
        return sinkhorn(torch.cat([score, earlier]) / self.epsilon, weight, self.iterations)[: len(score)]

    def after_step(self, extras: list[dict[str, Tensor]], progress: Progress) -> None:
        if self.queue is not None:
            self.queue.push([e["projections"] for e in extras], [e["identity"] for e in extras], progress)
