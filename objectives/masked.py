"""Masked prediction, in its two ways: drop pieces and decode them (MAE), or hide their content (BERT, SimMIM)."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from triptych.encoders.backbone import Backbone, Encoded, pool, pool_pieces
from triptych.modalities.base import Modality
from triptych.modalities.domains import Scale
from triptych.modalities.exhibit import Seen
from triptych.modalities.view import View, ViewSpec
from triptych.objectives import collectives, masking
from triptych.objectives.base import Batch, Objective
from triptych.objectives.decoding import Decoder, Predictor
from triptych.objectives.masking import Mask


class MAE(Objective):
    """Masked autoencoder (He et al. 2022): encode the kept pieces only, decode the dropped ones with a light decoder.

    The loss is the modality's error, averaged over the dropped pieces of the global batch. Departures: dropped pieces
    are decoded in the order they were dropped, which changes nothing; on text, a dropped token is predicted by
    cross-entropy.

    Args:
        mask: which pieces are dropped.
        decoder: sizes of the decoder.
        scale: smallest and largest fraction of a sample that its view keeps.
        bottleneck: the decoder sees leads and places only, so that a lead has to tell of the whole sample, which plain
            MAE hardly asks of it. On text this is TSDAE (Wang et al. 2021) and RetroMAE (Xiao et al. 2022), but for
            their targets: both decode all tokens, where here it is those that were dropped.
    """

    earlier: ClassVar = {"decoder.encoder.": "decoder.", "decoder.": ""}

    cost: ClassVar[str] = "a quarter of a forward at a ratio of 0.75, and a light decoder; nothing is gathered"
    collapse: ClassVar[str] = "does not; a loss that stays at 1 (normalised pieces) has learned nothing"
    choose: ClassVar[str] = "fine-tuning, long inputs, little memory; its frozen features come late"

    def __init__(
        self,
        backbone: Backbone,
        mask: Mask = Mask(),
        decoder: Decoder = Decoder(),
        scale: Scale = (0.2, 1.0),
        bottleneck: bool = False,
    ):
        super().__init__(backbone, (ViewSpec(scale=scale),))
        if bottleneck and not backbone.embedding.leads:
            raise ValueError("objective.bottleneck: this family has no lead to decode from; leave it out")
        self.mask, self.bottleneck = mask, bottleneck
        self.decoder = Predictor(backbone, decoder)
        self.predict = backbone.embedding.head(decoder.width)

    def forward(self, views: Batch) -> dict[str, Tensor]:
        modality = self.backbone.modality
        kept, dropped, _, valid = cut = masking.drop(views[0], self.mask, modality)
        encoded, guess = self.guess(cut)
        target = masking.predictable(dropped, valid, modality)
        features = pool(encoded, kept, "leads" if self.bottleneck else "pieces")
        return {"loss": mean_error(modality, guess, dropped, target), "features": features.detach()}

    def leads_alone(self, encoded: Encoded, kept: View) -> tuple[Encoded, View]:
        """What was encoded, without its pieces."""
        nothing = encoded.pieces.new_zeros(len(encoded.pieces), 0, dtype=torch.long)
        return encoded._replace(pieces=encoded.pieces[:, :0]), kept.keep(nothing)

    def guess(self, cut: masking.Dropped) -> tuple[Encoded, Tensor]:
        encoded = self.backbone.encode(cut.kept)
        known = self.leads_alone(encoded, cut.kept) if self.bottleneck else (encoded, cut.kept)
        return encoded, self.predict(self.decoder(*known, cut.dropped))

    def seen(self, views: Batch) -> list[Seen]:
        cut = masking.drop(views[0], self.mask, self.backbone.modality)
        return [Seen(cut.index, cut.valid, self.guess(cut)[1])]


class Masked(Objective):
    """Hide the content of some pieces, keep their places, and predict them from the encoder's own tokens.

    On text this is BERT (Devlin et al. 2019), with its 80/10/10; on grids, with `target: absolute`, SimMIM (Xie et al.
    2022). The head sees the hidden pieces only.

    Args:
        mask: which pieces are hidden.
        scale: smallest and largest fraction of a sample that its view keeps.
    """

    cost: ClassVar[str] = "one forward of all pieces; nothing is gathered"
    collapse: ClassVar[str] = "does not; a loss that stays at the entropy of single pieces has learned nothing"
    choose: ClassVar[str] = "pieces that are ids, where the native class has a head for them: that goes out, too"

    def __init__(
        self,
        backbone: Backbone,
        mask: Mask = Mask(0.3),
        scale: Scale = (1.0, 1.0),
    ):
        super().__init__(backbone, (ViewSpec(scale=scale),))
        self.mask = mask
        self.head = backbone.embedding.head(backbone.width)

    def forward(self, views: Batch) -> dict[str, Tensor]:
        view, modality = views[0], self.backbone.modality
        chosen, encoded, (index, valid, guess) = self.guess(view)
        target = view.replace(secret=modality.secret(view, chosen)).keep(index)
        return {
            "loss": mean_error(modality, guess, target, valid),
            "features": pool_pieces(encoded, view).detach(),
        }

    def guess(self, view: View) -> tuple[Tensor, Encoded, Seen]:
        """Which pieces were chosen, `[r n]`, what the encoder made of the others, and what is guessed."""
        modality = self.backbone.modality
        chosen = masking.hide(view, self.mask.ratio, self.mask.kind, self.mask.block, modality.hideable(view))
        data, hide = modality.corrupt(view.data, chosen, masking.random(view, self.mask.block))
        encoded = self.backbone.encode(view.replace(data=data), hide)
        index, valid = masking.hidden_index(view, chosen, self.mask.ratio)
        hidden = view.replace(data=encoded.pieces).keep(index).data
        return chosen, encoded, Seen(index, valid, self.head(hidden))

    def seen(self, views: Batch) -> list[Seen]:
        return [self.guess(views[0])[2]]


def mean_error(modality: Modality, guess: Float[Tensor, "r h *g"], target: View, valid: Bool[Tensor, "r h"] | None):
    """The modality's error over valid pieces of the global batch. Values that a visible piece holds too do not count.

    (Tiles that overlap share values: with strides of 10 of 16, at a ratio of 0.75, 40 % of the hidden could be copied.)
    """
    arguments = [guess.flatten(0, 1), target.data.flatten(0, 1)]
    if target.secret is not None:
        arguments.append(target.secret.flatten(0, 1))
        secret = target.secret.any(-1)
        valid = secret if valid is None else valid & secret
    return collectives.mean(modality.error(*arguments), None if valid is None else valid.flatten())
