"""Embeddings: from the pieces of a view to tokens; what each modality has of parameters, and each family's variant."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.encoders.encoder import ACTIVATIONS, Architecture
from triptych.encoders.positions import Positions
from triptych.modalities import Grid, Modality, Text, View


class Embedding(nn.Module):
    """The trained half of a modality. Content and place are apart, so that hiding and decoding are blind to the kind.

    Args:
        modality: the adapter whose pieces are embedded.
        made: the encoder's arguments.

    `leads` is the number of tokens that stand for no piece; the backbone puts them at the head of each sample.
    `placed` says whether places are added to contents: if not, only rotations and windows know them.
    """

    leads: int = 1
    placed: bool = True
    no_decay: tuple[str, ...] = ()  # own parameters that weight decay spares, beside biases and norms

    def __init__(self, modality: Modality, made: Architecture):
        super().__init__()
        self.modality = modality

    def forward(
        self,
        view: View,
        hide: Bool[Tensor, "r n"] | None = None,
        coordinates: bool = False,
        places: Float[Tensor, "r n d"] | None = None,
    ):
        """Tokens `[r m d]`, leads first, their segments `[r m]` or None, their coordinates `[r m a]` or None.

        Where `hide` is True `hidden` stands in for the content; the place stays. `places` go before the pieces' own.
        """
        content = self.content(view.data)
        if hide is not None:
            content = torch.where(hide[..., None], self.hidden.to(content.dtype), content)
        pieces = self.join(content, self.place(view.position, view.grid) if places is None else places)
        lead = self.lead().to(pieces.dtype)
        samples = 1 if view.segment is None else view.samples.shape[1]
        tokens = torch.cat([lead.repeat(samples, 1).expand(len(pieces), -1, -1), pieces], dim=1)
        segment, place = None, None
        if view.segment is not None:
            segment = torch.cat([view.samples.repeat_interleave(len(lead), dim=1), view.segment], dim=1)
        if coordinates:
            place = self.coordinate(view.position, view.grid)
            place = torch.cat([place.new_zeros(len(place), samples * len(lead), place.shape[-1]), place], dim=1)
        return tokens, segment, place

    def lead(self) -> Float[Tensor, "l d"]:
        """The tokens at the head of each sample that stand for no piece."""
        raise NotImplementedError

    def content(self, data: Tensor) -> Float[Tensor, "r n d"]:
        raise NotImplementedError

    def place(self, position: Int[Tensor, "r n a"], grid: tuple[int, ...] | None) -> Float[Tensor, "r n d"] | None:
        """What is added to the content for its place; None where places are not added."""
        raise NotImplementedError

    def join(self, content: Float[Tensor, "r n d"], place: Float[Tensor, "_ n d"] | None) -> Float[Tensor, "r n d"]:
        return content if place is None else content + place

    def coordinate(self, position: Int[Tensor, "r n a"], grid: tuple[int, ...] | None) -> Float[Tensor, "r n a"]:
        """Coordinates of pieces that rotations and windows read; a lead's are 0."""
        raise NotImplementedError(f"{type(self).__name__} has no coordinates for rotary positions and windows")

    def places(self, width: int) -> nn.Module:
        """Places for a decoder of another width: a module of `position [r n a]` and `grid` to `[r n width]`."""
        raise NotImplementedError

    def head(self, width: int) -> nn.Module:
        """A module from encoded pieces `[h width]` to guesses that the modality's `error` judges."""
        raise NotImplementedError


@dataclass(frozen=True)
class GridVariant:
    """How families differ in the embedding of a grid.

    Args:
        leads: tokens that stand for no piece and have a place of their own (CLS, distillation).
        registers: further leads, without a place (Darcet et al. 2024).
        table: places come from a table; without it, only from rotations.
        lead_places: leads have rows in the table.
        extent: grid of the table, in pieces. Default: the full view's.
        antialias: smooth when a smaller grid is taken from the table.
        anchored: a smaller view lies at the first corner of the full one, instead of being the whole at another scale.
    """

    leads: int = 1
    registers: int = 0
    table: bool = True
    lead_places: bool = True
    extent: tuple[int, int] | None = None
    antialias: bool = False
    anchored: bool = False


class GridEmbedding(Embedding):
    """A linear projection of each piece, a table of places on a grid, learned leads (ViT, Dosovitskiy et al. 2021)."""

    def __init__(self, modality: Grid, made: Architecture, variant: GridVariant = GridVariant()):
        super().__init__(modality, made)
        self.variant, width = variant, made.width
        self.leads, self.placed = variant.leads + variant.registers, variant.table
        self.projection = nn.Linear(modality.values, width)
        if self.leads:
            self.lead_content = nn.Parameter(torch.empty(self.leads, width))
        if variant.table:
            extent = variant.extent or modality.grid
            self.positions = Positions(extent, width, modality.learned_positions, variant.antialias)
        if self.placed_leads:
            # A lead's place is kept apart from its content, as the native classes do.
            zeros = torch.zeros(variant.leads, width)
            self.lead_place = nn.Parameter(zeros, requires_grad=modality.learned_positions)
        self.hidden = nn.Parameter(torch.empty(width))
        self.no_decay = ("lead_content",) * bool(self.leads) + ("lead_place",) * self.placed_leads
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for the projection, normal (0.02) for leads and the hidden token, as in MAE."""
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        if self.leads:
            nn.init.normal_(self.lead_content, std=0.02)
        nn.init.normal_(self.hidden, std=0.02)

    @property
    def placed_leads(self) -> bool:
        return self.variant.table and self.variant.lead_places and self.variant.leads > 0

    def lead(self) -> Float[Tensor, "l d"]:
        if not self.leads:
            return self.hidden.new_zeros(0, len(self.hidden))
        if not self.placed_leads:
            return self.lead_content
        return self.lead_content + F.pad(self.lead_place, (0, 0, 0, self.variant.registers))

    def content(self, data: Float[Tensor, "r n p"]) -> Float[Tensor, "r n d"]:
        return self.projection(data)

    def place(self, position: Int[Tensor, "r n a"], grid: tuple[int, ...] | None) -> Float[Tensor, "r n d"] | None:
        if not self.variant.table:
            return None
        return self.positions(position, None if self.variant.anchored else grid)

    def coordinate(self, position: Int[Tensor, "r n a"], grid: tuple[int, ...] | None) -> Float[Tensor, "r n a"]:
        """(y, x) of each piece's middle: 0 in the middle of the picture, ±π at its edges (DINOv3)."""
        # In float32, as the native class. Filled on the device: a copy from the host would wait for it.
        length = torch.stack([torch.full((), float(n), device=position.device) for n in grid or self.modality.grid])
        middle = 2.0 * ((position.float() + 0.5) / length) - 1.0
        return (2 * math.pi * middle).to(self.hidden.dtype)

    def places(self, width: int) -> nn.Module:
        return Anchored(self.modality.grid, width) if self.variant.anchored else Positions(self.modality.grid, width)

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, self.modality.values)


class Anchored(Positions):
    """Places of which a smaller view takes those of the first corner."""

    def forward(self, position: Int[Tensor, "r n a"], grid: tuple[int, ...] | None = None) -> Float[Tensor, "r n d"]:
        return super().forward(position)


@dataclass(frozen=True)
class TokenVariant:
    """How families differ in the embedding of token ids.

    Args:
        table: places come from a table; without it, only from rotations.
        after_padding: places are counted from the one after the padding's id (RoBERTa), not from 0 (BERT).
        types: rows of a token type table, of which the first is added; 0 has none.
        norm: a norm after the sum.
        head: the masked-LM head: `dense` (`LMHead`, tied to the words) or one untied `linear` matrix.
        head_activation: of a dense head. Default: the encoder's.
        head_bias: its dense layer has a bias.
    """

    table: bool = True
    after_padding: bool = True
    types: int = 1
    norm: bool = True
    head: str = "dense"
    head_activation: str | None = None
    head_bias: bool = True


class TokenEmbedding(Embedding):
    """Word, position and token type tables, and a norm of their sum. The lead is the tokenizer's first token."""

    def __init__(self, modality: Text, made: Architecture, variant: TokenVariant = TokenVariant()):
        super().__init__(modality, made)
        tokenizer = modality.processor()  # refuses where there is none yet
        self.variant, self.made, width = variant, made, made.width
        self.placed = variant.table
        self.first_row = modality.padding + 1 if variant.after_padding else 0  # of a text's first token
        self.words = nn.Embedding(modality.rows, width, padding_idx=modality.padding)
        if variant.table:
            padding = modality.padding if variant.after_padding else None
            self.positions = nn.Embedding(self.first_row + modality.max_positions, width, padding_idx=padding)
            self.no_decay = ("positions.weight",)
        if variant.types:
            self.types = nn.Embedding(modality.token_types or variant.types, width)
        self.norm = made.make_norm() if variant.norm else nn.Identity()
        self.register_buffer("first_id", torch.tensor([[tokenizer.cls_token_id]]), persistent=False)
        self.register_buffer("mask_id", torch.tensor(tokenizer.mask_token_id), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal (0.02), as RoBERTa; the padding's rows are zero and stay so in sums of embeddings."""
        for table in self.children():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=0.02)
                if table.padding_idx is not None:
                    nn.init.zeros_(table.weight[table.padding_idx])

    @property
    def hidden(self) -> Float[Tensor, " d"]:
        return self.words(self.mask_id)

    def lead(self) -> Float[Tensor, "l d"]:
        before = torch.full_like(self.first_id, -1)  # its place is the one before the first piece's
        return self.join(self.content(self.first_id), self.place(before[..., None], None))[0]

    def content(self, data: Int[Tensor, "r n"]) -> Float[Tensor, "r n d"]:
        return self.words(data)

    def place(self, position: Int[Tensor, "r n a"], grid: tuple[int, ...] | None) -> Float[Tensor, "r n d"] | None:
        return self.positions(position[..., 0] + (self.first_row + 1)) if self.variant.table else None

    def join(self, content: Float[Tensor, "r n d"], place: Float[Tensor, "_ n d"] | None) -> Float[Tensor, "r n d"]:
        if self.variant.types:
            content = content + self.types(torch.zeros_like(self.mask_id))
        return self.norm(content if place is None else content + place)

    def coordinate(self, position: Int[Tensor, "r n a"], grid: tuple[int, ...] | None) -> Float[Tensor, "r n a"]:
        return (position + 1).to(self.words.weight.dtype)  # the first token is at 0

    def places(self, width: int) -> nn.Module:
        return Positions((self.modality.max_positions,), width)

    def head(self, width: int) -> nn.Module:
        if self.variant.head == "linear":
            made = nn.Linear(width, self.words.num_embeddings, bias=False)
            nn.init.normal_(made.weight, std=0.02)
            return made
        activation = self.variant.head_activation or self.made.activation
        return LMHead(width, self.words, self.made.make_norm, self.variant.head_bias, activation)


class LMHead(nn.Module):
    """Dense, activation, norm, then the word embedding itself as the last matrix (BERT, Devlin et al. 2019).

    Args:
        width: width of the input.
        words: the embedding whose matrix is the last.
        make_norm: gives a norm of the embedding's width.
        bias: the dense layer has a bias.
        activation: by its name in the encoder.
    """

    def __init__(self, width: int, words: nn.Embedding, make_norm, bias: bool = True, activation: str = "gelu"):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.dense = nn.Linear(width, words.embedding_dim, bias=bias)
        self.norm = make_norm()
        self.weight = words.weight  # the same parameter
        self.bias = nn.Parameter(torch.zeros(words.num_embeddings))
        nn.init.normal_(self.dense.weight, std=0.02)
        if bias:
            nn.init.zeros_(self.dense.bias)

    def forward(self, x: Float[Tensor, "*h w"]) -> Float[Tensor, "*h v"]:
        return F.linear(self.norm(self.activation(self.dense(x))), self.weight, self.bias)
