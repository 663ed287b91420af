"""Pretext tasks: targets that the input itself gives, of places and of contents, without a teacher."""

import math
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone, pool_pieces
from triptych.modalities.domains import Count, Part, Scale
from triptych.modalities.precision import product
from triptych.modalities.view import ViewSpec
from triptych.objectives import collectives, masking
from triptych.objectives.base import Batch, Objective
from triptych.objectives.masking import Mask, take


class Position(Objective):
    """Position prediction, as in DropPos (Wang et al. 2023, arXiv:2309.03576): some pieces lose their places, and the
    encoder has to say where each belongs.

    A learned vector stands for every place that is left out. With `q_i` a linear map of such a piece's token, and `P_j`
    the fixed sin-cos vectors of the places that its sample lost, the loss is the cross-entropy

        mean over pieces i of -log softmax_j( q_i . P_j / sqrt(d) )_i.

    Departures: the softmax is over the sample's lost places, not over all there are, so that it serves samples of any
    length and chance is known; tokens come straight from the encoder, not from a decoder; no smoothing by distance.
    Padding has no place worth telling, and of a sample that lost one place only there is nothing to tell: neither
    counts.

    Args:
        mask: which pieces lose their places.
        dropped: fraction of the pieces that are not seen at all (DropPos has 0.75).
        scale: smallest and largest fraction of a sample that its view keeps.
    """

    cost: ClassVar[str] = "one forward of the pieces that are not dropped; no second encoder; nothing is gathered"
    collapse: ClassVar[str] = "the loss stays at the mean of log(lost places), which is chance"
    choose: ClassVar[str] = "order carries meaning, contents are hard to predict, and the family has a table of places"

    def __init__(
        self,
        backbone: Backbone,
        mask: Mask = Mask(0.75),
        dropped: Part = 0.0,
        scale: Scale = (0.2, 1.0),
    ):
        super().__init__(backbone, (ViewSpec(scale=scale),))
        made = backbone.encoder.architecture
        if not backbone.embedding.placed or made.theta is not None or any(made.windows):
            raise ValueError(
                "objective position: this family has no table of places, or tells places by rotations and windows too, "
                "so none can be left out; choose a family with a table, or another objective"
            )
        self.mask, self.dropped = mask, dropped
        self.nowhere = nn.Parameter(torch.empty(backbone.width))
        self.places = backbone.embedding.places(backbone.width)
        self.predict = nn.Linear(backbone.width, backbone.width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.nowhere, std=0.02)
        nn.init.xavier_uniform_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)

    def forward(self, views: Batch) -> dict[str, Tensor]:
        view, modality, embedding = views[0], self.backbone.modality, self.backbone.embedding
        if self.dropped:
            view = masking.drop(view, Mask(self.dropped), modality).kept
        eligible = modality.hideable(view)
        if view.segment is not None:
            eligible = masking.predictable(view, view.segment > 0, modality)
        lost = masking.hide(view, self.mask.ratio, self.mask.kind, self.mask.block, eligible)
        places = embedding.place(view.position, view.grid)
        encoded = self.backbone.encode(view, places=torch.where(lost[..., None], self.nowhere.to(places.dtype), places))
        index, valid = masking.hidden_index(view, lost, self.mask.ratio)
        where, guess = view.keep(index, valid), self.predict(take(encoded.pieces, index))
        with torch.autocast(guess.device.type, enabled=False):
            candidates = self.places(where.position, where.grid).float()
            scores = product(guess, candidates.mT) / math.sqrt(candidates.shape[-1])
            error, more = place_error(scores, valid, where.segment)
        loss = collectives.mean(error.flatten(), (valid & more).flatten())
        return {"loss": loss, "features": pool_pieces(encoded, view).detach()}


def place_error(
    scores: Float[Tensor, "r h h"], valid: Bool[Tensor, "r h"], segment: Int[Tensor, "r h"] | None
) -> tuple[Float[Tensor, "r h"], Bool[Tensor, "r h"]]:
    """Cross-entropy of each piece with its own place among those of its sample, and whether there are others."""
    same = valid[:, None, :] & valid[:, :, None]
    if segment is not None:
        same = same & (segment[:, None, :] == segment[:, :, None])
    others = same.sum(-1) > 1
    own = torch.arange(scores.shape[-1], device=scores.device)
    same = same | (own[:, None] == own)  # a hole has itself, so that no row is empty
    logits = scores.masked_fill(~same, -torch.inf).flatten(0, 1)
    return F.cross_entropy(logits, own.repeat(len(scores)), reduction="none").view_as(valid), others


class Codes(Objective):
    """Random-projection codes, BEST-RQ (Chiu et al. 2022, arXiv:2202.01855): hide pieces, and predict the codes of what
    they held.

    With `x` the numbers that a piece holds, LN(x) these minus their mean over their deviation, a random matrix `A` and
    random unit vectors `c_k`, neither of which is ever trained, the target of a hidden piece is (section 3.1)

        argmax_k cos(c_k, A LN(x)),

    the nearest of normalised vectors; a linear softmax on the encoder's own tokens predicts it.

    Departures: hidden pieces are replaced by the embedding's hidden token, not by noise; a piece is one target, where
    the paper stacks four frames; LN is of a piece, where the paper normalises each value over the data set.

    `code_use`, beside the loss, is exp(entropy) of the codes of a global batch over their number. Few codes in use make
    an easy, poor task.

    Args:
        mask: which pieces are hidden.
        codes: entries of the codebook.
        code_width: width of an entry, to which pieces are projected.
        scale: smallest and largest fraction of a sample that its view keeps.
    """

    cost: ClassVar[str] = (
        "one forward of all pieces and a random projection of the hidden ones, no second encoder; a histogram of the "
        "codes is summed over ranks, 4 bytes each"
    )
    collapse: ClassVar[str] = "not of the encoder, but of the targets: `code_use` of a few per cent or less"
    choose: ClassVar[str] = "contents are continuous and noisy, and neither a teacher nor augmentation is wanted"

    def __init__(
        self,
        backbone: Backbone,
        mask: Mask = Mask(0.6),
        codes: Count = 8192,
        code_width: Count = 16,
        scale: Scale = (0.2, 1.0),
    ):
        super().__init__(backbone, (ViewSpec(scale=scale),))
        self.mask = mask
        self.register_buffer("projection", nn.init.normal_(torch.empty(backbone.modality.values, code_width)))
        self.register_buffer("codebook", F.normalize(nn.init.normal_(torch.empty(codes, code_width)), dim=-1))
        self.predict = nn.Linear(backbone.width, codes)

    def forward(self, views: Batch) -> dict[str, Tensor]:
        view, modality = views[0], self.backbone.modality
        hidden = masking.hide(view, self.mask.ratio, self.mask.kind, self.mask.block, modality.hideable(view))
        index, valid = masking.hidden_index(view, hidden, self.mask.ratio)
        code = self.code_of(take(modality.numbers(view), index))
        encoded = self.backbone.encode(view, hidden)
        guess = self.predict(take(encoded.pieces, index)).float()
        error = F.cross_entropy(guess.flatten(0, 1), code.flatten(), reduction="none")
        loss = collectives.mean(error, valid.flatten())
        return {"loss": loss, "code_use": self.use(code, valid), "features": pool_pieces(encoded, view).detach()}

    @torch.no_grad()
    def code_of(self, numbers: Float[Tensor, "r h p"]) -> Int[Tensor, "r h"]:
        """The code of what each piece holds."""
        shape = numbers.shape[:2]
        numbers = F.layer_norm(numbers.float(), numbers.shape[-1:]).flatten(0, 1)
        nearness = product(product(numbers, self.projection), self.codebook.T)  # the length of one side is no matter
        return nearness.argmax(-1).view(shape)

    @torch.no_grad()
    def use(self, code: Int[Tensor, "r h"], valid: Bool[Tensor, "r h"]) -> Float[Tensor, ""]:
        """exp(entropy) of the codes of the global batch over the size of the codebook."""
        count = torch.zeros(len(self.codebook), device=code.device)
        count = count.index_add(0, code.flatten(), valid.flatten().float())
        count = collectives.total(count)
        return torch.special.entr(count / count.sum().clamp(min=1)).sum().exp() / len(count)
