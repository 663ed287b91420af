"""The one transformer that all modalities share: the classic pre-norm trunk (LayerNorm, biases, exact GELU)."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from modalities.domains import Count, Positive

if TYPE_CHECKING:  # importing it takes half a second
    from torch.nn.attention.flex_attention import BlockMask

    Attend = Bool[Tensor, "r 1 w m"] | BlockMask

# width, depth, heads (ViT: Dosovitskiy et al. 2021, table 1; tiny and small: DeiT, Touvron et al. 2021)
PRESETS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


class Encoder(nn.Module):
    """A transformer over rows of tokens. It knows no modality, no family and no objective.

    Args:
        width: width of a token; a multiple of `heads`.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP relative to `width`.
        eps: epsilon of the LayerNorms.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: float = 4.0, eps: float = 1e-12):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.width, self.depth, self.heads, self.mlp_ratio, self.eps = width, depth, heads, mlp_ratio, eps
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps)

    @classmethod
    def preset(
        cls,
        name: str = "tiny",
        width: Count | None = None,
        depth: Count | None = None,
        heads: Count | None = None,
        mlp_ratio: Positive = 4.0,
        eps: Positive = 1e-12,
    ) -> "Encoder":
        """An encoder of a preset size, any part of which may be overridden.

        Args:
            name: `tiny` (192 wide, 12 deep, 3 heads), `small` (384, 12, 6), `base` (768, 12, 12) or `large`
                (1024, 24, 16).
            width: width of a token; a multiple of `heads`. Default: the preset's.
            depth: number of blocks. Default: the preset's.
            heads: attention heads. Default: the preset's.
            mlp_ratio: hidden width of the MLP relative to `width`.
            eps: epsilon of the LayerNorms.
        """
        if name not in PRESETS:
            raise ValueError(f"encoder.name {name!r} is not one of {', '.join(PRESETS)}")
        size = (given or usual for given, usual in zip((width, depth, heads), PRESETS[name], strict=True))
        return cls(*size, mlp_ratio, eps)

    def forward(
        self,
        tokens: Float[Tensor, "r m d"],
        segment: Int[Tensor, "r m"] | None = None,
        every_layer: bool = False,
        wanted: int | None = None,
    ) -> Float[Tensor, "r w d"] | list[Float[Tensor, "r m d"]]:
        """Encode rows. Tokens see those of their own segment only; without `segment`, their whole row.

        With `every_layer`, a list as the native classes' `hidden_states`: the input, then each block's output, the last
        of them normalised. With `wanted`, only that many tokens, the last of each row, come out of the last block.
        """
        seen = tokens.shape[1]
        attend = None if segment is None else same_segment(segment, seen)
        layers = [tokens]
        for number, block in enumerate(self.blocks, 1):
            if number == self.depth and wanted and wanted < seen:
                seen, attend = wanted, None if segment is None else same_segment(segment, wanted)
            tokens = block(tokens, attend, seen)
            layers.append(tokens)
        tokens = self.norm(tokens)
        return [*layers[:-1], tokens] if every_layer else tokens


def same_segment(segment: Int[Tensor, "r m"], wanted: int) -> "Attend":
    """True where one of the last `wanted` tokens of a row (third axis) may see a token (fourth).

    Holes see each other, so that no row is empty. Compiled for a GPU it is a mask of FlexAttention, which leaves out
    the blocks that no two tokens share: it pays for long rows, and only compiled.
    """
    if torch.compiler.is_compiling() and _flexible(segment):
        from torch.nn.attention.flex_attention import create_block_mask

        (rows, tokens), before = segment.shape, segment.shape[1] - wanted

        def same(row, head, query, key):
            return segment[row, query + before] == segment[row, key]

        return create_block_mask(same, rows, None, wanted, tokens, segment.device)
    return (segment[:, -wanted:, None] == segment[:, None, :])[:, None]


def _flexible(segment: Tensor) -> bool:
    return segment.is_cuda


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, round(width * mlp_ratio))

    def forward(self, x: Float[Tensor, "r m d"], attend: "Attend | None", wanted: int) -> Float[Tensor, "r w d"]:
        """All tokens are seen, and the last `wanted` of a row come out."""
        x = x[:, -wanted:] + self.attention(self.norm1(x), attend, wanted)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for part in self.qkv.weight.chunk(3):  # Xavier's fan is that of one projection, not of the fused three
            nn.init.xavier_uniform_(part)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Float[Tensor, "r m d"], attend: "Attend | None", wanted: int) -> Float[Tensor, "r w d"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q = q[:, :, -wanted:]
        if attend is None or isinstance(attend, Tensor):
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        else:
            from torch.nn.attention.flex_attention import flex_attention

            x = flex_attention(q, k, v, block_mask=attend)
        return self.out(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.up, self.down):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "r m d"]) -> Float[Tensor, "r m d"]:
        return self.down(F.gelu(self.up(x)))
