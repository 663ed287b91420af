"""Latent prediction: from a part of a sample, predict what a teacher that sees all of it makes of the rest."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone, Encoded, by_sample, pool_pieces
from triptych.modalities.domains import Count, NotNegative, Positive, Scale, Share
from triptych.modalities.exhibit import Seen
from triptych.modalities.view import View, ViewSpec, stack
from triptych.objectives import collectives, masking
from triptych.objectives.base import Batch, Objective, Progress
from triptych.objectives.decoding import Decoder, Predictor
from triptych.objectives.masking import Mask, predictable, take
from triptych.objectives.teacher import Teacher


class Data2Vec(Objective):
    """data2vec 2.0 (Baevski et al. 2023, arXiv:2212.07525): the student encodes what a mask leaves, several masks a
    sample, and a light decoder predicts the teacher's targets at the dropped pieces; the teacher runs once a sample.

    With `a_l` what the MLP of block l gave before its residual sum (section 3.1), the target of piece t is

        y_t = LN( mean over the top `layers` of IN(a_l)_t ),   loss = mean over t of |guess_t - y_t|^2 / d,

    where IN normalises each feature over the pieces of a sample, and LN the features of a piece. Beside it the first
    lead predicts a target of the whole sample (EAT, Chen et al. 2024, equation 2; data2vec 2.0's loss of CLS).

    Departures: the decoder is a transformer with places, not convolutions, so that it serves any number of axes and
    packed rows; hidden pieces enter it as one learned token, not as noise. The target of the whole sample is LN of the
    mean over pieces and layers *before* IN, which would make that mean zero.

    Args:
        mask: which pieces are dropped.
        masks: masks of each sample that share one pass of the teacher.
        layers: top blocks whose outputs are averaged. Default: all of them.
        lead: weight of the loss of the lead (EAT has 1, data2vec 2.0 on pictures 0.01); 0 has none. A family without
            leads has none either.
        half_life: half-life of the teacher's average, in samples.
        decoder: sizes of the decoder.
        scale: smallest and largest fraction of a sample that its view keeps.
    """

    cost: ClassVar[str] = (
        "one forward of all pieces by the teacher, and `masks` of those that are kept, each with a light decoder; a "
        "second copy of the encoder; nothing is gathered"
    )
    collapse: ClassVar[str] = "the loss falls to nothing while RankMe and the features' deviation do too"
    choose: ClassVar[str] = "pieces mean little by themselves; several masks pay for the teacher"

    def __init__(
        self,
        backbone: Backbone,
        mask: Mask = Mask(0.8, "inverse_block", 3),
        masks: Count = 4,
        layers: Count | None = None,
        lead: NotNegative = 1.0,
        half_life: Positive = 5000.0,
        decoder: Decoder = Decoder(),
        scale: Scale = (0.2, 1.0),
    ):
        super().__init__(backbone, (ViewSpec(scale=scale),))
        depth = backbone.encoder.depth
        if layers is not None and layers > depth:
            raise ValueError(f"objective.layers {layers}: the encoder has {depth} blocks; give at most as many")
        self.mask, self.masks, self.layers = mask, masks, layers or depth
        self.lead = lead if backbone.embedding.leads else 0.0
        self.predictor = Predictor(backbone, decoder)
        self.predict = nn.Linear(decoder.width, backbone.width)
        self.predict_whole = nn.Linear(backbone.width, backbone.width) if self.lead else None
        self.teacher = Teacher(backbone, half_life=half_life)

    def forward(self, views: Batch) -> dict[str, Tensor]:
        view, modality = views[0], self.backbone.modality
        target, whole = self.targets(view)
        once, view = view, view.repeat(self.masks)
        kept, dropped, index, valid = masking.drop(view, self.mask, modality)
        encoded = self.backbone.encode(kept)
        guess = self.predict(self.predictor(encoded, kept, dropped))
        target = take(target.repeat(self.masks, 1, 1), index)
        loss = mean_square(guess, target, predictable(dropped, valid, modality))
        if self.lead:
            lead = self.predict_whole(by_sample(encoded.leads[:, :, 0], kept))
            loss = loss + self.lead * mean_square(lead, whole.repeat(self.masks, 1))
        return {"loss": loss, "features": pool_pieces(encoded, kept)[: len(once)].detach()}

    @torch.no_grad()
    def targets(self, view: View) -> tuple[Float[Tensor, "r n d"], Float[Tensor, "b d"]]:
        """Of each piece, and of each sample as a whole."""
        layers = self.teacher[0].branches(view)[-self.layers :]
        with torch.autocast(view.data.device.type, enabled=False):
            used = counted(view, self.backbone.modality.hideable(view))
            whole = mean_of(sum(x.float() for x in layers) / len(layers), view, used)[1:]
            target = sum(normalised(x.float(), view, used) for x in layers) / len(layers)
            return F.layer_norm(target, target.shape[-1:]), F.layer_norm(whole, whole.shape[-1:])

    def after_step(self, extras: list[dict[str, Tensor]], progress: Progress) -> None:
        self.teacher.follow(self.backbone, progress=progress)

    def seen(self, views: Batch) -> list[Seen]:
        """The first of the masks."""
        cut = masking.drop(views[0].repeat(1), self.mask, self.backbone.modality)
        return [Seen(cut.index, cut.valid)]

    def averaged(self) -> Backbone:
        return self.teacher[0]


class IJEPA(Objective):
    """I-JEPA (Assran et al. 2023, arXiv:2301.08243): from a context, predict a teacher's tokens of target blocks.

    The teacher encodes all pieces, the student those of the context, in which no target lies. For each block B apart, a
    predictor is given the context and the places of the block (section 3, equation 1), and the loss is

        mean over the blocks' pieces t of smooth_l1(guess_t, LN(teacher_t)).

    Departures: blocks have the grid's aspect and one size, so that shapes are the same for all batches and ranks, and
    are spans in one dimension; the context is all that is outside of the blocks, of which as many pieces are kept as if
    the blocks did not overlap (the paper cuts every context to the shortest of its batch). A sample of one piece has no
    target.

    Args:
        blocks: target blocks of a sample.
        share: fraction of a sample's places that a block takes (the paper: 0.15 to 0.2).
        half_life: half-life of the teacher's average, in samples.
        decoder: sizes of the predictor.
        scale: smallest and largest fraction of a sample that its view keeps.
    """

    cost: ClassVar[str] = (
        "one forward of all pieces by the teacher, one of the context, and `blocks` of the light predictor; a second "
        "copy of the encoder; nothing is gathered"
    )
    collapse: ClassVar[str] = "the loss falls to nothing while RankMe and the features' deviation do too"
    choose: ClassVar[str] = "what is wanted is content rather than detail, and no augmentation is known that keeps it"

    def __init__(
        self,
        backbone: Backbone,
        blocks: Count = 4,
        share: Share = 0.175,
        half_life: Positive = 5000.0,
        decoder: Decoder = Decoder(),
        scale: Scale = (0.3, 1.0),
    ):
        super().__init__(backbone, (ViewSpec(scale=scale),))
        self.blocks, self.share = blocks, share
        self.predictor = Predictor(backbone, decoder)
        self.predict = nn.Linear(decoder.width, backbone.width)
        self.teacher = Teacher(backbone, half_life=half_life)

    def forward(self, views: Batch) -> dict[str, Tensor]:
        view, modality = views[0], self.backbone.modality
        made = masking.boxes(view, self.share, self.blocks, modality.droppable(view), modality.stay)
        kept = view.keep(made.kept_index, made.kept_valid)
        encoded = self.backbone.encode(kept)
        wanted = stack([view.keep(*block) for block in zip(made.index, made.valid, strict=True)])
        # One forward for all blocks; each sees the context and itself.
        often = Encoded(encoded.leads.repeat(self.blocks, 1, 1, 1), encoded.pieces.repeat(self.blocks, 1, 1))
        guess = self.predict(self.predictor(often, stack([kept] * self.blocks), wanted))
        target = take(self.targets(view).repeat(self.blocks, 1, 1), made.index.flatten(0, 1))
        hideable, valid = modality.hideable(wanted), made.valid.flatten(0, 1)
        error = F.smooth_l1_loss(guess.float(), target, reduction="none").mean(-1)
        loss = collectives.mean(error.flatten(), (valid if hideable is None else valid & hideable).flatten())
        return {"loss": loss, "features": pool_pieces(encoded, kept).detach()}

    @torch.no_grad()
    def targets(self, view: View) -> Float[Tensor, "r n d"]:
        """The teacher's tokens of all pieces, each normalised over its features."""
        pieces = self.teacher[0].encode(view).pieces
        with torch.autocast(pieces.device.type, enabled=False):
            return F.layer_norm(pieces.float(), pieces.shape[-1:])

    def after_step(self, extras: list[dict[str, Tensor]], progress: Progress) -> None:
        self.teacher.follow(self.backbone, progress=progress)

    def seen(self, views: Batch) -> list[Seen]:
        """All that the context lacks: the blocks, and what was left out beside them."""
        view, modality = views[0], self.backbone.modality
        made = masking.boxes(view, self.share, self.blocks, modality.droppable(view), modality.stay)
        context = Seen(made.kept_index, made.kept_valid).hidden(view)
        index = torch.arange(context.shape[1], device=context.device).expand_as(context)
        return [Seen(index, ~context)]

    def averaged(self) -> Backbone:
        return self.teacher[0]


def mean_square(
    guess: Float[Tensor, "*n d"], target: Float[Tensor, "*n d"], valid: Bool[Tensor, "*n"] | None = None
) -> Float[Tensor, ""]:
    """Mean over features, and over valid vectors of the global batch, of the squared difference, in float32."""
    error = (guess.float() - target).square().mean(-1)
    return collectives.mean(error.flatten(), None if valid is None else valid.flatten())


def counted(view: View, hideable: Bool[Tensor, "r n"] | None) -> Tensor:
    """Segment `[r n]` of each piece that counts, 0 for holes and for padding."""
    segment = view.one_a_row().segment
    return segment if hideable is None else segment * hideable


def mean_of(values: Float[Tensor, "r n d"], view: View, segment: Tensor) -> Float[Tensor, "s d"]:
    """Means over the pieces of each segment; that of segment 0 comes first."""
    total = values.new_zeros(len(view) + 1, values.shape[-1]).index_add(0, segment.flatten(), values.flatten(0, 1))
    count = values.new_zeros(len(view) + 1).index_add(0, segment.flatten(), values.new_ones(segment.numel()))
    return total / count.clamp(min=1)[:, None]


def normalised(values: Float[Tensor, "r n d"], view: View, segment: Tensor, eps: float = 1e-5):
    """Each feature minus its mean over the pieces of a segment, over its deviation there (Ulyanov et al. 2016)."""
    values = values - mean_of(values, view, segment)[segment]
    return values * torch.rsqrt(mean_of(values.square(), view, segment)[segment] + eps)
