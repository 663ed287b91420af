"""A light decoder with places: from encoded pieces to tokens of others of the same sample (MAE, He et al. 2022)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from triptych.encoders.backbone import Backbone, Encoded
from triptych.encoders.encoder import Architecture, Encoder
from triptych.modalities.domains import Count, Depth, Width
from triptych.modalities.view import View


@dataclass(frozen=True)
class Decoder:
    """A light decoder.

    Args:
        width: width of its tokens.
        depth: number of blocks.
        heads: attention heads. Default: one for each 64 of width.
    """

    width: Width = 192
    depth: Depth = 4
    heads: Count | None = None

    def __post_init__(self):
        if self.width % self.number:
            raise ValueError(f"objective.decoder.width {self.width} is not a multiple of its heads, {self.number}")

    @property
    def number(self) -> int:
        """Attention heads."""
        return self.heads or max(1, self.width // 64)


class Predictor(nn.Module):
    """Tokens of pieces that the encoder did not see, from those that it saw, and from the places of both.

    Every wanted piece enters as one learned token, `hidden`, plus its place; all tokens of a sample see each other.

    Args:
        backbone: what encodes; its embedding gives the places.
        decoder: sizes.
    """

    def __init__(self, backbone: Backbone, decoder: Decoder):
        super().__init__()
        trunk = backbone.encoder.architecture
        self.embed = nn.Linear(trunk.width, decoder.width)
        self.hidden = nn.Parameter(torch.empty(decoder.width))
        self.places = backbone.embedding.places(decoder.width)
        self.encoder = Encoder(
            Architecture(
                decoder.width,
                decoder.depth,
                decoder.number,
                hidden=round(trunk.hidden / trunk.width * decoder.width),
                eps=trunk.eps,
            )
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        nn.init.normal_(self.hidden, std=0.02)

    def forward(self, encoded: Encoded, kept: View, wanted: View) -> Float[Tensor, "r h w"]:
        """Tokens of the `wanted` pieces, from leads and pieces that the encoder made of the `kept` ones."""
        leads, pieces = self.embed(encoded.leads.flatten(1, 2)), self.embed(encoded.pieces)
        pieces = pieces + self.places(kept.position, kept.grid)
        holes = (self.hidden + self.places(wanted.position, wanted.grid)).to(pieces.dtype)
        tokens, segment = torch.cat([leads, pieces, holes], dim=1), None
        _, samples, each, _ = encoded.leads.shape
        if kept.segment is not None:
            of_leads = kept.samples.repeat_interleave(each, dim=1)
            segment = torch.cat([of_leads, kept.segment, wanted.segment], dim=1)
        return self.encoder(tokens, segment, wanted=holes.shape[1], samples=samples)
