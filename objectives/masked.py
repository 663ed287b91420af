"""Masked prediction, in its two ways: drop pieces and decode them (MAE), or hide their content (BERT, SimMIM)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from triptych.encoders.backbone import Backbone, pool_pieces
from triptych.encoders.encoder import Architecture, Encoder
from triptych.modalities.base import Modality
from triptych.modalities.domains import Count, Scale
from triptych.modalities.view import View, ViewSpec
from triptych.objectives import collectives, masking
from triptych.objectives.base import Batch, Objective
from triptych.objectives.masking import Mask


@dataclass(frozen=True)
class Decoder:
    """A light decoder.

    Args:
        width: width of its tokens.
        depth: number of blocks.
        heads: attention heads. Default: one for each 64 of width.
    """

    width: Count = 192
    depth: Count = 4
    heads: Count | None = None

    def __post_init__(self):
        if self.width % self.number:
            raise ValueError(f"objective.decoder.width {self.width} is not a multiple of its heads, {self.number}")

    @property
    def number(self) -> int:
        """Attention heads."""
        return self.heads or max(1, self.width // 64)


class MAE(Objective):
    """Masked autoencoder (He et al. 2022): encode the kept pieces only, decode the dropped ones with a light decoder.

    The loss is the modality's error, averaged over the dropped pieces of the global batch. Departures: dropped pieces
    are decoded in the order they were dropped, which changes nothing; on text, a dropped token is predicted by
    cross-entropy.

    Args:
        mask: which pieces are dropped.
        decoder: sizes of the decoder.
        scale: smallest and largest fraction of a sample that its view keeps.
    """

    def __init__(
        self,
        backbone: Backbone,
        mask: Mask = Mask(),
        decoder: Decoder = Decoder(),
        scale: Scale = (0.2, 1.0),
    ):
        super().__init__(backbone, (ViewSpec(scale=scale),))
        self.mask = mask
        trunk = backbone.encoder.architecture
        self.embed = nn.Linear(trunk.width, decoder.width)
        self.hidden = nn.Parameter(torch.empty(decoder.width))
        self.places = backbone.embedding.places(decoder.width)
        self.decoder = Encoder(
            Architecture(
                decoder.width,
                decoder.depth,
                decoder.number,
                hidden=round(trunk.hidden / trunk.width * decoder.width),
                eps=trunk.eps,
            )
        )
        self.predict = backbone.embedding.head(decoder.width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        nn.init.normal_(self.hidden, std=0.02)

    def forward(self, views: Batch) -> dict[str, Tensor]:
        view, modality = views[0], self.backbone.modality
        hide = masking.hide(view, self.mask.ratio, self.mask.kind, self.mask.block, modality.droppable(view))
        dropped_index, dropped_valid, kept_index, kept_valid = masking.split(view, hide, self.mask.ratio, modality.stay)
        view = view.replace(secret=modality.secret(view, hide))
        kept, dropped = view.keep(kept_index, kept_valid), view.keep(dropped_index, dropped_valid)

        encoded = self.backbone.encode(kept)
        guess = self.predict(self.decode(encoded, kept, dropped))

        target = modality.hideable(dropped)
        if dropped.segment is not None:
            target = dropped_valid if target is None else dropped_valid & target
        return {"loss": mean_error(modality, guess, dropped, target), "features": pool_pieces(encoded, kept).detach()}

    def decode(self, encoded, kept: View, dropped: View) -> Tensor:
        """Decoded tokens `[r h d]` of the dropped pieces, from leads, kept pieces and places."""
        leads, pieces = self.embed(encoded.leads.flatten(1, 2)), self.embed(encoded.pieces)
        pieces = pieces + self.places(kept.position, kept.grid)
        holes = (self.hidden + self.places(dropped.position, dropped.grid)).to(pieces.dtype)
        tokens, segment = torch.cat([leads, pieces, holes], dim=1), None
        _, samples, each, _ = encoded.leads.shape
        if kept.segment is not None:
            of_leads = kept.samples.repeat_interleave(each, dim=1)
            segment = torch.cat([of_leads, kept.segment, dropped.segment], dim=1)
        return self.decoder(tokens, segment, wanted=holes.shape[1], samples=samples)


class Masked(Objective):
    """Hide the content of some pieces, keep their places, and predict them from the encoder's own tokens.

    On text this is BERT (Devlin et al. 2019), with its 80/10/10; on grids, with `target: absolute`, SimMIM (Xie et al.
    2022). The head sees the hidden pieces only.

    Args:
        mask: which pieces are hidden.
        scale: smallest and largest fraction of a sample that its view keeps.
    """

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
        chosen = masking.hide(view, self.mask.ratio, self.mask.kind, self.mask.block, modality.hideable(view))
        data, hide = modality.corrupt(view.data, chosen, masking.random(view, self.mask.block))
        encoded = self.backbone.encode(view.replace(data=data), hide)
        index, valid = masking.hidden_index(view, chosen, self.mask.ratio)
        hidden = view.replace(data=encoded.pieces).keep(index).data
        target = view.replace(secret=modality.secret(view, chosen)).keep(index)
        return {
            "loss": mean_error(modality, self.head(hidden), target, valid),
            "features": pool_pieces(encoded, view).detach(),
        }


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
