"""Backbone: a modality and the encoder, what is trained, averaged, probed and exported; and what acts on views."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from encoders.encoder import Encoder
from modalities.base import Modality


class Encoded(NamedTuple):
    """What the encoder made of a view: leads `[r k l d]` (k samples a row, l leads a sample) and pieces `[r n d]`."""

    leads: Tensor
    pieces: Tensor


class Backbone(nn.Module):
    """Embeds the pieces of a view, puts the leads before them, encodes.

    Args:
        modality: the adapter; its parameters are made here.
        encoder: the shared transformer.
    """

    def __init__(self, modality: Modality, encoder: Encoder):
        super().__init__()
        modality.build(encoder.width)
        self.modality = modality
        self.encoder = encoder

    @property
    def width(self) -> int:
        return self.encoder.width

    def tokens(self, view: dict[str, Tensor], hide: Bool[Tensor, "r n"] | None = None):
        """Embedded tokens `[r m d]`, leads first, and their segments `[r m]` or None.

        Where `hide` is True the modality's `hidden` stands in for the content; the place stays.
        """
        content = self.modality.content(view["data"])
        if hide is not None:
            content = torch.where(hide[..., None], self.modality.hidden.to(content.dtype), content)
        pieces = self.modality.join(content, self.modality.place(view["position"]))
        return prepend(self.modality.lead(), pieces, view)

    def encode(self, view: dict[str, Tensor], hide: Bool[Tensor, "r n"] | None = None) -> Encoded:
        tokens, segment = self.tokens(view, hide)
        return self.split(self.encoder(tokens, segment), view)

    def split(self, tokens: Float[Tensor, "r m d"], view: dict[str, Tensor]) -> Encoded:
        """Take encoded tokens apart again into leads and pieces."""
        leads = tokens.shape[1] - view["data"].shape[1]
        return Encoded(tokens[:, :leads].unflatten(1, (-1, self.modality.leads)), tokens[:, leads:])

    def forward(self, view: dict[str, Tensor]) -> Float[Tensor, "b d"]:
        """The native pooling, in batch order: the mean of each sample's leads (of one lead, itself)."""
        return pool_leads(self.encode(view), view)


def prepend(lead: Float[Tensor, "l d"], pieces: Float[Tensor, "r n d"], view: dict[str, Tensor]):
    """Put `lead` once per sample at the head of each row; returns tokens and segments (or None)."""
    if "segment" not in view:
        lead = lead.expand(len(pieces), -1, -1).to(pieces.dtype)
        return torch.cat([lead, pieces], dim=1), None
    samples = view["samples"]
    leads = lead.repeat(samples.shape[1], 1).expand(len(pieces), -1, -1).to(pieces.dtype)
    segment = torch.cat([samples.repeat_interleave(len(lead), dim=1), view["segment"]], dim=1)
    return torch.cat([leads, pieces], dim=1), segment


def pool_leads(encoded: Encoded, view: dict[str, Tensor]) -> Float[Tensor, "b d"]:
    """Mean of each sample's leads, in batch order."""
    pooled = encoded.leads.mean(2)
    if "segment" not in view:
        return pooled[:, 0]
    return to_batch_order(pooled.flatten(0, 1), view["samples"].flatten(), len(view["seed"]))


def pool_pieces(encoded: Encoded, view: dict[str, Tensor]) -> Float[Tensor, "b d"]:
    """Mean of each sample's pieces, in batch order. A sample without pieces gives zeros."""
    if "segment" not in view:
        return encoded.pieces.mean(1)
    total, count = sum_by_segment(encoded.pieces, view)
    return total / count.clamp(min=1)[:, None]


def sum_by_segment(values: Float[Tensor, "r n d"], view: dict[str, Tensor]):
    """Sums `[B d]` of values over the pieces of each sample, and the pieces' number `[B]`."""
    segment, batch = view["segment"].flatten(), len(view["seed"])
    total = values.new_zeros(batch + 1, values.shape[-1]).index_add(0, segment, values.flatten(0, 1))
    count = values.new_zeros(batch + 1).index_add(0, segment, torch.ones_like(segment, dtype=values.dtype))
    return total[1:], count[1:]


def to_batch_order(values: Float[Tensor, "s d"], segment: Int[Tensor, "s"], batch: int) -> Float[Tensor, "b d"]:
    """Put values, one a segment, where the batch has their samples; segment 0 is dropped."""
    return values.new_zeros(batch + 1, values.shape[-1]).index_add(0, segment, values)[1:]


def keep(
    view: dict[str, Tensor], index: Int[Tensor, "r c"], valid: Bool[Tensor, "r c"] | None = None
) -> dict[str, Tensor]:
    """A view with only the pieces at `index`; where `valid` is False there is a hole (segment 0)."""
    data = view["data"]
    wide = index.view(*index.shape, *[1] * (data.ndim - 2))
    position = view["position"].expand(len(index), -1, -1)
    kept = view | {
        "data": data.gather(1, wide.expand(-1, -1, *data.shape[2:])),
        "position": position.gather(1, index[..., None].expand(-1, -1, position.shape[-1])),
    }
    if "segment" in view:
        kept["segment"] = view["segment"].gather(1, index)
        if valid is not None:
            kept["segment"] = kept["segment"] * valid
    return kept


def stack(views: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Several views of one batch as one, for a single forward; pooled vectors come back view after view.

    Rows of different lengths, and packed rows, are padded with holes; segments of the v-th view are shifted by v · B.
    """
    batch, position = len(views[0]["seed"]), [v["position"].expand(len(v["data"]), -1, -1) for v in views]
    whole = {"seed": torch.cat([v["seed"] for v in views])}
    if len({v["data"].shape[1] for v in views}) == 1 and not any("segment" in v for v in views):
        return whole | {"data": torch.cat([v["data"] for v in views]), "position": torch.cat(position)}
    views = [v if "segment" in v else v | one_a_row(v) for v in views]
    longest, slots = max(v["data"].shape[1] for v in views), max(v["samples"].shape[1] for v in views)

    def rows(tensors, length):
        return torch.cat([pad(t, length) for t in tensors])

    def shifted(key):
        return [v[key] + i * batch * (v[key] > 0) for i, v in enumerate(views)]

    return whole | {
        "data": rows([v["data"] for v in views], longest),
        "position": rows(position, longest),
        "segment": rows(shifted("segment"), longest),
        "samples": rows(shifted("samples"), slots),
    }


def one_a_row(view: dict[str, Tensor]) -> dict[str, Tensor]:
    """`segment` and `samples` of a view that holds one whole sample a row."""
    samples = torch.arange(1, len(view["data"]) + 1, device=view["data"].device)[:, None]
    return {"samples": samples, "segment": samples.expand(-1, view["data"].shape[1])}


def pad(tensor: Tensor, length: int) -> Tensor:
    """Lengthen axis 1 to `length` with zeros."""
    more = length - tensor.shape[1]
    return torch.cat([tensor, tensor.new_zeros(len(tensor), more, *tensor.shape[2:])], dim=1) if more else tensor
