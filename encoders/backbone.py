"""Backbone: an embedding, the encoder and a pooling: what is trained, averaged, probed and exported."""

from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from triptych.encoders.embeddings import Embedding
from triptych.encoders.encoder import Encoder
from triptych.modalities.base import Modality
from triptych.modalities.view import View, stack

Pooling = Literal["lead", "leads", "pieces", "lead+pieces", "tokens"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


class Encoded(NamedTuple):
    """What the encoder made of a view: leads `[r k l d]` (k samples a row, l leads a sample) and pieces `[r n d]`."""

    leads: Tensor
    pieces: Tensor


class Backbone(nn.Module):
    """Embeds the pieces of a view, puts the leads before them, encodes, pools.

    Args:
        embedding: from pieces to tokens.
        encoder: the shared transformer.
        pooling: what a sample's vector is: its first `lead`, the mean of its `leads`, of its `pieces`, both the first
            lead and that mean (`lead+pieces`, twice as wide), or the mean of all its `tokens`.
    """

    def __init__(self, embedding: Embedding, encoder: Encoder, pooling: Pooling = "leads"):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
        if pooling in ("lead", "leads", "lead+pieces") and not embedding.leads:
            raise ValueError(f"pooling {pooling!r}: this family has no lead; use pieces")
        self.embedding, self.encoder, self.pooling = embedding, encoder, pooling
        self.native: Any = None  # what a published checkpoint brought beside the weights (`encoders.native.Native`)

    @property
    def modality(self) -> Modality:
        return self.embedding.modality

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.encoder.width

    @property
    def pooled_width(self) -> int:
        """Width of a sample's vector."""
        return self.width * (2 if self.pooling == "lead+pieces" else 1)

    def tokens(self, view: View, hide: Bool[Tensor, "r n"] | None = None, places: Float[Tensor, "r n d"] | None = None):
        """Embedded tokens `[r m d]`, leads first, their segments `[r m]` or None, their coordinates `[r m a]` or None.

        Where `hide` is True the embedding's `hidden` stands in for the content; the place stays. `places` go before
        those of the embedding.
        """
        made = self.encoder.architecture
        return self.embedding(view, hide, made.theta is not None or any(made.windows), places)

    def encode(
        self, view: View, hide: Bool[Tensor, "r n"] | None = None, places: Float[Tensor, "r n d"] | None = None
    ) -> Encoded:
        samples = None if view.samples is None else view.samples.shape[1]
        return self.split(self.encoder(*self.tokens(view, hide, places), samples=samples), view)

    def branches(self, view: View) -> list[Float[Tensor, "r n d"]]:
        """What the MLP of each block gave for the pieces of a view, before it was added to them."""
        samples = None if view.samples is None else view.samples.shape[1]
        layers = self.encoder(*self.tokens(view), samples=samples, branches=True)
        return [self.split(tokens, view).pieces for tokens in layers]

    def layers(self, view: View) -> list[Encoded]:
        """What `encode` gives, of the embedding's output and then of each block's, the last through the last norm."""
        samples = None if view.samples is None else view.samples.shape[1]
        layers = self.encoder(*self.tokens(view), samples=samples, every_layer=True)
        return [self.split(tokens, view) for tokens in layers]

    def split(self, tokens: Float[Tensor, "r m d"], view: View) -> Encoded:
        """Take encoded tokens apart again into leads and pieces."""
        samples = 1 if view.segment is None else view.samples.shape[1]
        leads = samples * self.embedding.leads
        return Encoded(tokens[:, :leads].unflatten(1, (samples, self.embedding.leads)), tokens[:, leads:])

    def forward(
        self, view: View, poolings: tuple[Pooling, ...] | None = None
    ) -> Float[Tensor, "b e"] | list[Float[Tensor, "b e"]]:
        """Each sample's vector, in batch order, by the backbone's pooling; or a list, one for each of `poolings`."""
        encoded = self.encode(view)
        if poolings is None:
            return pool(encoded, view, self.pooling)
        return [pool(encoded, view, pooling) for pooling in poolings]


def pool(encoded: Encoded, view: View, pooling: Pooling) -> Float[Tensor, "b e"]:
    """Each sample's vector, in batch order. A sample without pieces gives zeros."""
    if pooling == "lead":
        return by_sample(encoded.leads[:, :, 0], view)
    if pooling == "leads":
        return by_sample(encoded.leads.mean(2), view)
    if pooling == "pieces":
        return pool_pieces(encoded, view)
    if pooling == "lead+pieces":
        return torch.cat([pool(encoded, view, "lead"), pool_pieces(encoded, view)], dim=-1)
    total, count = sum_by_segment(encoded.pieces, view)
    leads = encoded.leads.shape[2]
    return (total + by_sample(encoded.leads.sum(2), view)) / (count + leads)[:, None]


def pool_pieces(encoded: Encoded, view: View) -> Float[Tensor, "b d"]:
    """Mean of each sample's pieces, in batch order."""
    if view.segment is None:
        return encoded.pieces.mean(1) if encoded.pieces.shape[1] else encoded.pieces.sum(1)
    total, count = sum_by_segment(encoded.pieces, view)
    return total / count.clamp(min=1)[:, None]


def apart(encoded: Encoded, view: View) -> list[Float[Tensor, "n d"]]:
    """The pieces of each sample, in batch order and in their own."""
    if view.segment is None:
        return list(encoded.pieces)
    segment = view.segment.flatten()
    count = segment.bincount(minlength=len(view) + 1).tolist()
    return list(encoded.pieces.flatten(0, 1)[segment.argsort(stable=True)].split(count))[1:]


def pooled(backbone: Backbone, views: list[View]) -> Float[Tensor, "v b e"]:
    """Vectors of several views of one batch. Those of one grid share a forward; none is padded to another's shape."""
    by_grid: dict[tuple[int, ...] | None, list[int]] = {}
    for number, view in enumerate(views):
        by_grid.setdefault(view.grid, []).append(number)
    made: dict[int, Tensor] = {}
    for numbers in by_grid.values():
        parts = backbone(stack([views[n] for n in numbers])).unflatten(0, (len(numbers), -1))
        made |= dict(zip(numbers, parts.unbind(0), strict=True))
    return torch.stack([made[number] for number in range(len(views))])


def by_sample(values: Float[Tensor, "r k d"], view: View) -> Float[Tensor, "b d"]:
    """Values, one a sample of each row, in batch order."""
    if view.segment is None:
        return values[:, 0]
    segment: Int[Tensor, " s"] = view.samples.flatten()
    return values.new_zeros(len(view) + 1, values.shape[-1]).index_add(0, segment, values.flatten(0, 1))[1:]


def sum_by_segment(values: Float[Tensor, "r n d"], view: View):
    """Sums `[B d]` of values over the pieces of each sample, and the pieces' number `[B]`."""
    if view.segment is None:
        return values.sum(1), values.new_full((len(values),), values.shape[1])
    segment, batch = view.segment.flatten(), len(view)
    total = values.new_zeros(batch + 1, values.shape[-1]).index_add(0, segment, values.flatten(0, 1))
    count = values.new_zeros(batch + 1).index_add(0, segment, torch.ones_like(segment, dtype=values.dtype))
    return total[1:], count[1:]
