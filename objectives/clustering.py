"""Clustering: a view predicts a class of its sample that is made without labels: prototypes, or the sample itself."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone, pooled
from triptych.modalities.domains import Count, Number, Part, Positive, Scale
from triptych.modalities.hashing import mix
from triptych.modalities.precision import product
from triptych.modalities.view import ViewSpec
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
        queue_from: part of the run before the queue takes part: what was made by an encoder that still changes fast
            takes prototypes from the batch.
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
        self.queue_counts = False

    def before_step(self, progress: Progress) -> None:
        self.prototypes.moves.fill_(progress.fraction >= self.frozen)
        self.queue_counts = progress.fraction >= self.queue_from

    def represent(self, views: Batch) -> dict[str, Tensor]:
        sizes = (
            [views[:2], views[2:]] if len(views) > 2 else [views]
        )  # rows of small views are not padded to large ones'
        return {"pooled": torch.cat([pooled(self.backbone, v) for v in sizes]), "identity": views[0].identity}

    def compare(self, z: dict[str, Tensor]) -> dict[str, Tensor]:
        projection = self.projector(z["pooled"])
        score = self.prototypes(projection)
        target = torch.stack([self.assign(score[large].detach(), large) for large in (0, 1)])
        extras = {
            "projections": F.normalize(projection[:2].detach(), dim=-1).transpose(0, 1),
            "identity": z["identity"],
        }
        loss = swapped_loss(score, target, self.temperature)
        used = perplexity(F.softmax(score[0] / self.temperature, dim=-1))
        return {"loss": loss, "prototypes_used": used, "features": z["pooled"][0].detach()} | extras

    @torch.no_grad()
    def assign(self, score: Float[Tensor, "b k"], large: int) -> Float[Tensor, "b k"]:
        """To which prototypes the samples of a large view belong. The queue's are shared out among the ranks."""
        if self.queue is None or not self.queue_counts:
            return sinkhorn(score / self.epsilon, iterations=self.iterations)
        share = slice(collectives.rank(), None, collectives.ranks())
        earlier = self.prototypes(self.queue.values[share, large])
        weight = torch.cat([score.new_ones(len(score)), self.queue.filled()[share]])
        return sinkhorn(torch.cat([score, earlier]) / self.epsilon, weight, self.iterations)[: len(score)]

    def after_step(self, extras: list[dict[str, Tensor]], progress: Progress) -> None:
        if self.queue is not None:
            self.queue.push([e["projections"] for e in extras], [e["identity"] for e in extras], progress)


class DIET(Objective):
    """DIET (Ibrahim, Klindt and Balestriero 2024, arXiv:2406.10743): each sample is a class of its own.

    An augmented view is to be told from all other samples of the data, by cross-entropy with label smoothing. No pairs,
    no projector, no teacher, no statistics of the batch. Departures: logits are cosines over a temperature, where the
    paper's are inner products; past `negatives` samples a part of the classes is drawn.

    A class is right once an epoch, so it takes epochs, not samples: small data, and an `adam_beta2` that remembers an
    epoch's steps (0.999), or AdamW turns the classes that are not in a batch as fast as those that are.

    Args:
        samples: number of classes. Default: the run counts the samples that it trains on.
        temperature: divides the cosines.
        smoothing: part of a label that is spread over all classes.
        negatives: classes that are compared in a step, where there are more samples than that; the others' part of the
            loss is estimated from them.
        scale: smallest and largest fraction of a sample that a view keeps.
    """

    evaluates = False  # a held-out sample has no class
    cost: ClassVar[str] = (
        "one forward a sample, nothing is gathered; a class is a vector: a million, 384 wide, are 1.5 GB, and 6.1 GB "
        "with gradient and moments (ZeRO shares them out); logits are batch × min(samples, negatives)"
    )
    collapse: ClassVar[str] = "the loss stays at the logarithm of the number of samples"
    choose: ClassVar[str] = (
        "a few thousand samples and many epochs; nothing else to choose, and a loss that means something"
    )

    def __init__(
        self,
        backbone: Backbone,
        samples: Count | None = None,
        temperature: Positive = 0.0625,
        smoothing: Part = 0.8,
        negatives: Count = 65536,
        scale: Scale = (0.08, 1.0),
    ):
        super().__init__(backbone, (ViewSpec(scale=scale, strength="strong"),))
        self.samples, self.temperature, self.smoothing, self.negatives = samples, temperature, smoothing, negatives
        self.classes = nn.Parameter(torch.empty(samples or 1, backbone.pooled_width))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        nn.init.normal_(self.classes, std=0.02)

    def before_step(self, progress: Progress) -> None:
        self.step.fill_(progress.step)

    def forward(self, views: Batch) -> dict[str, Tensor]:
        if self.samples is None:
            raise ValueError("objective.samples is not known: give the number of samples that are trained on")
        vectors, drawn = self.backbone(views[0]), None
        if self.samples > self.negatives:
            drawn = mix(self.step, NEGATIVE, torch.arange(self.negatives, device=self.step.device)) % self.samples
        loss = diet_loss(vectors, self.classes, views[0].row, self.temperature, self.smoothing, drawn)
        return {"loss": loss, "features": vectors.detach()}


NEGATIVE = 0xD1E7  # keeps the classes that are drawn apart from what else is hashed


def diet_loss(
    z: Float[Tensor, "b d"],
    classes: Float[Tensor, "s d"],
    row: Int[Tensor, " b"],
    temperature: float,
    smoothing: float,
    drawn: Int[Tensor, " k"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of each sample's own class, in float32.

    With `l_c` the cosine of z and class c over the temperature, y the own class and e the smoothing, the mean of

        log sum_c exp(l_c) - (1 - e) l_y - e mean_c l_c.

    Where classes are drawn (uniformly, with replacement), both sums over the others are their sums over the draw,
    times s / k: unbiased sums, of which the logarithm is nearly so.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(z.float(), dim=-1)
        if drawn is None:
            logits = product(z, F.normalize(classes.float(), dim=-1).T) / temperature
            return F.cross_entropy(logits, row, label_smoothing=smoothing)
        own = (z * F.normalize(classes[row].float(), dim=-1)).sum(-1) / temperature
        others = product(z, F.normalize(classes[drawn].float(), dim=-1).T) / temperature
        share, other = len(classes) / len(drawn), drawn != row[:, None]
        counted = (others + math.log(share)).masked_fill(~other, -torch.inf)
        whole = torch.cat([own[:, None], counted], dim=1).logsumexp(1)
        mean = (own + share * (others * other).sum(1)) / len(classes)
        return (whole - (1 - smoothing) * own - smoothing * mean).mean()
