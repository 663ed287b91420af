"""Masked prediction, in its two ways: drop pieces and decode them (MAE), or hide their content (BERT, SimMIM)."""

from typing import Literal

import torch
from torch import Tensor, nn

from encoders.backbone import Backbone, pool_pieces
from encoders.encoder import Architecture, Encoder
from modalities.domains import Count, Scale, Share
from modalities.view import View, ViewSpec
from objectives import collectives, masking
from objectives.base import Batch, Objective


def check_ratio(ratio: float) -> float:
    if not 0 < ratio < 1:
        raise ValueError(f"objective.mask_ratio {ratio} is not between 0 and 1, both excluded; try 0.75")
    return ratio


class MAE(Objective):
    """Masked autoencoder (He et al. 2022): encode the kept pieces only, decode the dropped ones with a light decoder.

    The loss is the modality's error, averaged over the dropped pieces of the global batch. Departures: dropped pieces
    are decoded in the order they were dropped, which changes nothing; on text, a dropped token is predicted by
    cross-entropy.

    Args:
        mask_ratio: fraction of each sample's pieces that is dropped.
        decoder_width: width of the decoder's tokens.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder. Default: one for each 64 of width.
        masking: drop pieces at `random`, in a `block`, or all but blocks (`inverse_block`).
        block: side of a block in pieces.
        scale: smallest and largest fraction of a sample that its view keeps.
    """

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: Share = 0.75,
        decoder_width: Count = 192,
        decoder_depth: Count = 4,
        decoder_heads: Count | None = None,
        masking: Literal["random", "block", "inverse_block"] = "random",
        block: Count = 3,
        scale: Scale = (0.2, 1.0),
    ):
        super().__init__(backbone, (ViewSpec(scale=scale),))
        self.mask_ratio, self.masking, self.block = check_ratio(mask_ratio), masking, block
        trunk = backbone.encoder.architecture
        self.embed = nn.Linear(trunk.width, decoder_width)
        self.hidden = nn.Parameter(torch.empty(decoder_width))
        self.places = backbone.embedding.places(decoder_width)
        self.decoder = Encoder(
            Architecture(
                decoder_width,
                decoder_depth,
                decoder_heads or max(1, decoder_width // 64),
                hidden=round(trunk.hidden / trunk.width * decoder_width),
                eps=trunk.eps,
            )
        )
        self.predict = backbone.embedding.head(decoder_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        nn.init.normal_(self.hidden, std=0.02)

    def forward(self, views: Batch) -> dict[str, Tensor]:
        view, modality = views[0], self.backbone.modality
        hide = masking.hide(view, self.mask_ratio, self.masking, self.block, modality.droppable(view))
        dropped_index, dropped_valid, kept_index, kept_valid = masking.split(view, hide, self.mask_ratio)
        kept, dropped = view.keep(kept_index, kept_valid), view.keep(dropped_index, dropped_valid)

        encoded = self.backbone.encode(kept)
        guess = self.predict(self.decode(encoded, kept, dropped))

        error = modality.error(guess.flatten(0, 1), dropped.data.flatten(0, 1))
        target = modality.hideable(dropped)
        if dropped.segment is not None:
            target = dropped_valid if target is None else dropped_valid & target
        loss = collectives.mean(error, None if target is None else target.flatten())
        return {"loss": loss, "features": pool_pieces(encoded, kept).detach()}

    def decode(self, encoded, kept: View, dropped: View) -> Tensor:
        """Decoded tokens `[r h d]` of the dropped pieces, from leads, kept pieces and places."""
        leads, pieces = self.embed(encoded.leads.flatten(1, 2)), self.embed(encoded.pieces)
        pieces = pieces + self.places(kept.position, kept.grid)
        holes = (self.hidden + self.places(dropped.position, dropped.grid)).to(pieces.dtype)
        tokens, segment = torch.cat([leads, pieces, holes], dim=1), None
        if kept.segment is not None:
            samples = kept.samples.repeat_interleave(encoded.leads.shape[2], dim=1)
            segment = torch.cat([samples, kept.segment, dropped.segment], dim=1)
        return self.decoder(tokens, segment, wanted=holes.shape[1])


class Masked(Objective):
    """Hide the content of some pieces, keep their places, and predict them from the encoder's own tokens.

    On text this is BERT (Devlin et al. 2019), with its 80/10/10; on grids, with `target: absolute`, SimMIM (Xie et al.
    2022). The head sees the hidden pieces only.

    Args:
        mask_ratio: fraction of each sample's pieces that is hidden.
        masking: hide pieces at `random`, in a `block` (a span of text), or all but blocks (`inverse_block`).
        block: side of a block in pieces.
        scale: smallest and largest fraction of a sample that its view keeps.
    """

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: Share = 0.3,
        masking: Literal["random", "block", "inverse_block"] = "random",
        block: Count = 3,
        scale: Scale = (1.0, 1.0),
    ):
        super().__init__(backbone, (ViewSpec(scale=scale),))
        self.mask_ratio, self.masking, self.block = check_ratio(mask_ratio), masking, block
        self.head = backbone.embedding.head(backbone.width)

    def forward(self, views: Batch) -> dict[str, Tensor]:
        view, modality = views[0], self.backbone.modality
        chosen = masking.hide(view, self.mask_ratio, self.masking, self.block, modality.hideable(view))
        data, hide = modality.corrupt(view.data, chosen, masking.random(view, self.block))
        encoded = self.backbone.encode(view.replace(data=data), hide)
        index, valid, _, _ = masking.split(view, chosen, self.mask_ratio)
        hidden, target = view.replace(data=encoded.pieces).keep(index).data, view.keep(index).data
        error = modality.error(self.head(hidden.flatten(0, 1)), target.flatten(0, 1))
        return {
            "loss": collectives.mean(error, valid.flatten()),
            "features": pool_pieces(encoded, view).detach(),
        }
