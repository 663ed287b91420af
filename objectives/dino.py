"""Self-distillation with prototypes: predict the teacher's assignment of another view, or of what is hidden."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone, pool, pooled
from triptych.modalities.domains import Count, NotNegative, Part, Positive, Scale
from triptych.modalities.hashing import mix
from triptych.modalities.precision import product
from triptych.modalities.view import stack
from triptych.objectives import collectives, masking
from triptych.objectives.base import Batch, Objective, Progress
from triptych.objectives.crops import Crops
from triptych.objectives.heads import Head, projector
from triptych.objectives.masking import Mask
from triptych.objectives.prototypes import Prototypes, perplexity, sinkhorn, swapped_loss
from triptych.objectives.teacher import Teacher

HIDE = 0xD140  # keeps the two large views' masks apart from each other, and from what else a seed is used for


class DINO(Objective):
    """DINO (Caron et al. 2021), with iBOT's masked term (Zhou et al. 2022) and DINOv2's KoLeo (Oquab et al. 2023).

    With a student's and a teacher's cosines s and t of vectors and prototypes, and a centre c (algorithm 1):

        p = softmax((t - c) / teacher temperature),   loss = -sum_k p_k log softmax(s / temperature)_k,

    averaged over the teacher's two large views and the student's other views, small ones too. The centre follows the
    mean of all ranks' t; `sinkhorn` shares prototypes out within the global batch instead. iBOT: the student's large
    views have hidden pieces, and a second head predicts the teacher's assignment of each. KoLeo: minus the logarithm of
    the distance to the nearest vector of another sample, summed over the large views. Departures: heads have norms, and
    ReLU; all large views have hidden pieces, and all of them count alike; weight decay is constant.

    Args:
        prototypes: how many there are.
        temperature: divides the student's cosines.
        teacher_temperature: divides the teacher's, at first and after a linear warm-up.
        warmup: part of the run that the warm-up takes.
        targets: `centred`, or `sinkhorn`, which divides all samples equally among the prototypes.
        centre_momentum: share of the centre that a step keeps.
        frozen: part of the run in which prototypes stand still.
        half_life: half-life of the teacher's average, in samples (0.996 at batch 1024: 177,000).
        ibot: weight of the masked term; 0 leaves it out.
        mask: which pieces of large views are hidden for it.
        koleo: weight of the term that spreads vectors; 0 leaves it out.
        head: sizes of the projector before the prototypes.
        crops: the views.
    """

    cost: ClassVar[str] = (
        "2 forwards of large views and `crops.number` of small ones of the student, 2 of the teacher a sample; a "
        "second encoder; batch times views times prototypes in float32; sums 4 bytes a prototype a step"
    )
    collapse: ClassVar[str] = (
        "to one prototype: `prototypes_used` falls to 1 and the loss to 0; to none: `target_entropy` and the loss stay "
        "at the logarithm of their number"
    )
    choose: ClassVar[str] = "where many small crops make sense and time is long; with `ibot` for the pieces' sake, too"
    compares_where: ClassVar[str] = "targets are `sinkhorn`, `koleo` is above 0, or its heads normalise over the batch"

    def __init__(
        self,
        backbone: Backbone,
        prototypes: Count = 4096,
        temperature: Positive = 0.1,
        teacher_temperature: Scale = (0.04, 0.07),
        warmup: Part = 0.3,
        targets: Literal["centred", "sinkhorn"] = "centred",
        centre_momentum: Part = 0.9,
        frozen: Part = 0.01,
        half_life: Positive = 5000.0,
        ibot: NotNegative = 0.0,
        mask: Mask = Mask(0.3, "block"),
        koleo: NotNegative = 0.0,
        head: Head = Head(2048, 256, 3, "layer"),
        crops: Crops = Crops(),
    ):
        super().__init__(backbone, crops.views())
        self.temperature, self.teacher_temperature, self.warmup = temperature, teacher_temperature, warmup
        self.frozen, self.ibot, self.mask, self.koleo = frozen, ibot, mask, koleo
        self.compares = targets == "sinkhorn" or head.norm == "batch" or koleo > 0
        # One for samples, and one for pieces where they are predicted (DINOv2 has two, too).
        widths = [backbone.pooled_width] + [backbone.width] * (ibot > 0)
        std = head.out**-0.5  # prototypes are about as long as the paper's, so that they turn as fast
        heads = (nn.Sequential(projector(width, head), Prototypes(head.out, prototypes, std)) for width in widths)
        self.heads = nn.ModuleList(heads)
        self.teacher = Teacher(backbone, self.heads, half_life=half_life)
        self.register_buffer("sharpness", torch.full((), teacher_temperature[0]))
        self.centres = None
        if targets == "centred":
            self.centres = nn.ModuleList(Centre(prototypes, centre_momentum) for _ in widths)
            self.extras = ("teacher_sums",)

    def before_step(self, progress: Progress) -> None:
        first, last = self.teacher_temperature
        risen = min(1.0, progress.fraction / self.warmup) if self.warmup else 1.0
        self.sharpness.fill_(first + (last - first) * risen)
        for head in self.heads:
            head[-1].moves.fill_(progress.fraction >= self.frozen)

    def forward(self, views: Batch) -> dict[str, Tensor]:
        modality, identity = self.backbone.modality, views[0].identity
        large = stack([v.replace(seed=mix(v.seed, HIDE, number)) for number, v in enumerate(views[:2])])
        hide = None
        if self.ibot:
            hide = masking.hide(large, self.mask.ratio, self.mask.kind, self.mask.block, modality.hideable(large))
        student = self.backbone.encode(large, hide)
        vectors = pool(student, large, self.backbone.pooling).unflatten(0, (2, -1))
        with torch.no_grad():
            teacher = self.teacher[0].encode(large)
            wanted = pool(teacher, large, self.backbone.pooling).unflatten(0, (2, -1))
        every = torch.cat([vectors, pooled(self.backbone, views[2:])]) if len(views) > 2 else vectors

        target, sums = self.target(0, wanted.flatten(0, 1))
        loss, sums = swapped_loss(self.heads[0](every), target.unflatten(0, (2, -1)), self.temperature), [sums]
        said = {"prototypes_used": perplexity(target), "target_entropy": torch.special.entr(target).sum(-1).mean()}
        if self.ibot:
            index, valid = masking.hidden_index(large, hide, self.mask.ratio)
            known, hidden = (
                large.replace(data=made.pieces).keep(index).data.flatten(0, 1) for made in (teacher, student)
            )
            target, more = self.target(1, known, valid.flatten())
            log = F.log_softmax(self.heads[1](hidden) / self.temperature, dim=-1)
            said["ibot"] = collectives.mean(-(target * log).sum(-1), valid.flatten())
            loss = loss + self.ibot * said["ibot"]
            sums.append(more)
        if self.koleo:
            said["koleo"] = sum(koleo_loss(view, identity) for view in vectors)
            loss = loss + self.koleo * said["koleo"]
        made = {"loss": loss, "features": vectors[0].detach()} | {name: value.detach() for name, value in said.items()}
        return made | ({"teacher_sums": torch.stack(sums)} if self.centres else {})

    @torch.no_grad()
    def target(self, which: int, x: Float[Tensor, "n d"], valid: Tensor | None = None):
        """The teacher's probabilities of prototypes for samples (0) or pieces (1), and what their centre is to see."""
        logits = self.teacher[1][which](x)
        weight = logits.new_ones(len(logits)) if valid is None else valid.to(logits.dtype)
        if self.centres is None:
            return sinkhorn(logits / self.sharpness, weight), None
        centre = self.centres[which]
        return F.softmax((logits - centre.value) / self.sharpness, dim=-1), centre.sums(logits, weight)

    def after_step(self, extras: list[dict[str, Tensor]], progress: Progress) -> None:
        self.teacher.follow(self.backbone, self.heads, progress=progress)
        for number, centre in enumerate(self.centres or ()):
            centre.follow([e["teacher_sums"][number] for e in extras], progress)

    def averaged(self) -> Backbone:
        return self.teacher[0]


class Centre(nn.Module):
    """A moving average of the mean of logits, over the samples of a step on all ranks (DINO, equation 4)."""

    value: Float[Tensor, " k"]

    def __init__(self, count: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(count))

    def sums(self, logits: Float[Tensor, "n k"], weight: Float[Tensor, " n"]) -> Float[Tensor, " k+1"]:
        """A micro-batch's sum of logits, and of how many."""
        return torch.cat([(logits * weight[:, None]).sum(0), weight.sum()[None]])

    def follow(self, sums: list[Float[Tensor, " k+1"]], progress: Progress) -> None:
        whole = collectives.total(torch.stack(sums).sum(0))
        moved = torch.lerp(whole[:-1] / whole[-1].clamp(min=1), self.value, self.momentum)
        applied = torch.as_tensor(progress.applied, device=moved.device)
        self.value.copy_(torch.where(applied & (whole[-1] > 0), moved, self.value))


def koleo_loss(x: Float[Tensor, "b d"], identity: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    """Mean of `-log |x_i - x_j|` over normalised vectors, x_j the nearest of another sample of all ranks, in float32.

    (Sablayrolles et al. 2019, equation 2; DINOv2 looks within a rank only.) Equal samples are no neighbours.
    """
    with torch.autocast(x.device.type, enabled=False):
        unit = F.normalize(x.float(), dim=-1, eps=SMALL)
        everyone, same = collectives.gather(unit), identity[:, None] == collectives.gather(identity)
        with torch.no_grad():
            nearest = product(unit, everyone.T).masked_fill(same, -2).argmax(1)
        return -(F.pairwise_distance(unit, everyone[nearest], eps=SMALL) + SMALL).log().mean()


SMALL = 1e-8
