"""The one transformer that all modalities and all families share: sixteen plain arguments say which."""

from dataclasses import dataclass, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from triptych.encoders import packed
from triptych.modalities.domains import Count, Depth, Each, Positive, Width

if TYPE_CHECKING:  # importing it takes half a second
    from torch.nn.attention.flex_attention import BlockMask

    Attend = Bool[Tensor, "r 1 w m"] | BlockMask | packed.Sequences

# width, depth, heads (ViT: Dosovitskiy et al. 2021, table 1; tiny and small: DeiT, Touvron et al. 2021)
PRESETS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
BIASES = ("query", "key", "value", "out", "mlp")
ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu}


@dataclass(frozen=True)
class Architecture:
    """What an encoder is. The defaults are the classic pre-norm trunk: LayerNorm, biases, exact GELU.

    Args:
        width: width of a token; a multiple of `heads`.
        depth: number of blocks.
        heads: attention heads.
        hidden: hidden width of the MLP. Default: four times the width.
        mlp: `plain`, or `gated`: `down(activation(gate(x)) * up(x))` (Shazeer 2020).
        activation: of the MLP: `gelu`, its `gelu_tanh` approximation, or `silu`.
        order: `pre` normalises before attention and MLP, and once at the end; `post` after each sum.
        norm: `layer` (LayerNorm) or `rms` (RMSNorm).
        norm_bias: LayerNorms have a bias.
        eps: epsilon of the norms.
        first_norm: the first block has a norm before attention.
        biases: which of `query`, `key`, `value`, `out` and `mlp` have a bias.
        layer_scale: initial value of a learned scale of each branch (CaiT, Touvron et al. 2021); None has no scale.
        theta: base of the rotary positions' wavelengths (RoPE, Su et al. 2021); None has no rotation.
        local_theta: the same, of blocks with a window. Default: `theta`.
        windows: one number a block: tokens further apart than this do not see each other; 0 sees all. Default: all 0.
    """

    width: Width
    depth: Depth
    heads: Count
    hidden: Width | None = None
    mlp: Literal["plain", "gated"] = "plain"
    activation: Literal["gelu", "gelu_tanh", "silu"] = "gelu"
    order: Literal["pre", "post"] = "pre"
    norm: Literal["layer", "rms"] = "layer"
    norm_bias: bool = True
    eps: Positive = 1e-12
    first_norm: bool = True
    biases: tuple[str, ...] = BIASES
    layer_scale: Positive | None = None
    theta: Positive | None = None
    local_theta: Positive | None = None
    windows: Annotated[tuple[int, ...], Each("[0, inf)")] | None = None

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"encoder: width {self.width} is not a multiple of heads {self.heads}")
        set_ = object.__setattr__  # frozen: only defaults that depend on other fields are filled in
        set_(self, "hidden", 4 * self.width if self.hidden is None else self.hidden)
        set_(self, "biases", tuple(self.biases))
        set_(self, "windows", tuple(self.windows or (0,) * self.depth))
        if unknown := set(self.biases) - set(BIASES):
            raise ValueError(f"encoder.biases {', '.join(sorted(unknown))}: they are of {', '.join(BIASES)}")
        if len(self.windows) != self.depth:
            raise ValueError(f"encoder.windows {list(self.windows)}: give {self.depth} numbers, one a block, 0 for all")
        if self.theta is not None and self.width // self.heads % 2:
            raise ValueError(
                f"encoder.theta: rotary positions want an even width a head, not {self.width // self.heads}"
            )

    def make_norm(self) -> nn.Module:
        return (
            nn.RMSNorm(self.width, self.eps)
            if self.norm == "rms"
            else nn.LayerNorm(self.width, self.eps, bias=self.norm_bias)
        )


# Every field of the architecture, none of which need be given, beside the name of a preset: the options of a run.
EncoderSettings = make_dataclass(
    "EncoderSettings",
    [("name", str, "tiny"), *((f.name, f.type | None, None) for f in fields(Architecture))],
)
EncoderSettings.__doc__ = Architecture.__doc__.replace(
    "    Args:\n",
    "    Args:\n        name: size: `tiny` (192 wide, 12 deep, 3 heads), `small` (384, 12, 6), `base` (768, 12, 12)\n"
    "            or `large` (1024, 24, 16). What is not given below is the preset's, and the family's.\n",
)


class Encoder(nn.Module):
    """A transformer over rows of tokens. It knows no modality, no family and no objective."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        self.blocks = nn.ModuleList(Block(architecture, number) for number in range(architecture.depth))
        self.norm = architecture.make_norm() if architecture.order == "pre" else nn.Identity()
        self.recompute = False  # blocks keep their input alone, and are computed again in the backward pass

    @property
    def width(self) -> int:
        return self.architecture.width

    @property
    def depth(self) -> int:
        return self.architecture.depth

    def forward(
        self,
        tokens: Float[Tensor, "r m d"],
        segment: Int[Tensor, "r m"] | None = None,
        place: Float[Tensor, "r m a"] | None = None,
        every_layer: bool = False,
        wanted: int | None = None,
        samples: int | None = None,
        branches: bool = False,
    ) -> Float[Tensor, "r w d"] | list[Float[Tensor, "r m d"]]:
        """Encode rows. Tokens see those of their own segment only; without `segment`, their whole row.

        `place` holds the coordinates that rotations and windows read, on `a` axes; [1 m a] where all rows share them.
        With `every_layer`, a list: the input, then each block's output, the last of them through the last norm. (The
        native `hidden_states` of several families end before that norm.) With `branches`, a list of what each block's
        MLP gave, before it is added to the tokens. With `wanted`, only that many tokens, the last of each row, come out
        of the last block. No row has more segments than `samples`, holes aside: without that number attention on a GPU
        reckons with one a token.
        """
        made, seen, last = self.architecture, tokens.shape[1], wanted
        sequences = None
        if segment is not None and not any(made.windows) and packed.usable(tokens, made.width // made.heads):
            sequences = packed.sequences(segment, samples or seen)
            tokens, place = sequences.sort(tokens), None if place is None else sequences.sort(place)
            attends, last = {0: sequences}, None  # those that are wanted no longer lie last
        else:
            attends = {window: attention_mask(segment, place, window, seen) for window in set(made.windows)}
        rotations = {theta: rotation(place, made.width // made.heads, theta) for theta in self._thetas()}
        layers = [tokens] if every_layer else []
        for number, (block, window) in enumerate(zip(self.blocks, made.windows, strict=True), 1):
            attend = attends[window]
            if number == self.depth and last and last < seen:
                seen, attend = last, attention_mask(segment, place, window, last)
            given = tokens, attend, rotations.get(self._theta(window)), seen
            if self.recompute and torch.is_grad_enabled():
                tokens, branch = checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens, branch = block(*given)
            if every_layer or branches:
                layers.append(branch if branches else tokens)
        if not branches:
            layers = [*layers[:-1], self.norm(tokens)]
        if sequences is not None:
            layers = [sequences.put_back(x) for x in layers]
            layers[-1] = layers[-1][:, -(wanted or seen) :]
        return layers if every_layer or branches else layers[-1]

    def _theta(self, window: int) -> float | None:
        made = self.architecture
        return made.local_theta or made.theta if window else made.theta

    def _thetas(self) -> set[float]:
        return {self._theta(window) for window in self.architecture.windows} - {None}


def rotation(place: Float[Tensor, "r m a"], head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[r 1 m head_width]` of rotary positions (Su et al. 2021), the axes one after another.

    Each axis has `head_width / 2a` frequencies `theta ** (-2a j / head_width)`; the angles are repeated twice.
    """
    axes = place.shape[-1]
    share = head_width // (2 * axes)
    power = torch.arange(share, device=place.device, dtype=place.dtype) * (-2 * axes / head_width)
    angle = (place[..., None] * theta**power).flatten(-2)
    angle = torch.cat([angle, angle], dim=-1)[:, None]
    return angle.cos(), angle.sin()


def rotate(x: Float[Tensor, "r h m e"], turn: tuple[Tensor, Tensor]) -> Float[Tensor, "r h m e"]:
    """Turn pairs (j, j + e/2) of values by the angles of their token."""
    cosine, sine = turn
    first, second = x.chunk(2, dim=-1)
    return (x * cosine + torch.cat([-second, first], dim=-1) * sine).to(x.dtype)


def attention_mask(segment: Tensor | None, place: Tensor | None, window: int, wanted: int) -> "Attend | None":
    """True where one of the last `wanted` tokens of a row (third axis) may see a token (fourth); None: all see all."""
    attend = None if segment is None else same_segment(segment, wanted)
    if not window:
        return attend
    axis = place[..., 0]
    near = ((axis[:, -wanted:, None] - axis[:, None, :]).abs() <= window)[:, None]
    if attend is not None and not isinstance(attend, Tensor):
        attend = (segment[:, -wanted:, None] == segment[:, None, :])[:, None]
    return near if attend is None else attend & near


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
    """Attention and an MLP, each with its norm, its residual sum and, where there is one, its scale."""

    def __init__(self, made: Architecture, number: int):
        super().__init__()
        self.post = made.order == "post"
        self.norm1 = made.make_norm() if number or made.first_norm else nn.Identity()
        self.attention = Attention(made)
        self.scale1 = nn.Identity() if made.layer_scale is None else Scale(made.width, made.layer_scale)
        self.norm2 = made.make_norm()
        self.mlp = MLP(made) if made.mlp == "plain" else GatedMLP(made)
        self.scale2 = nn.Identity() if made.layer_scale is None else Scale(made.width, made.layer_scale)

    def forward(
        self, x: Float[Tensor, "r m d"], attend: "Attend | None", turn: tuple[Tensor, Tensor] | None, wanted: int
    ) -> tuple[Float[Tensor, "r w d"], Float[Tensor, "r w d"]]:
        """All tokens are seen, and the last `wanted` of a row come out, and beside them what the MLP gave."""
        if self.post:
            x = self.norm1(x[:, -wanted:] + self.scale1(self.attention(x, attend, turn, wanted)))
            branch = self.scale2(self.mlp(x))
            return self.norm2(x + branch), branch
        x = x[:, -wanted:] + self.scale1(self.attention(self.norm1(x), attend, turn, wanted))
        branch = self.scale2(self.mlp(self.norm2(x)))
        return x + branch, branch


class Scale(nn.Module):
    """A learned factor a feature (LayerScale; Touvron et al. 2021)."""

    def __init__(self, width: int, value: float):
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Float[Tensor, "r m d"]) -> Float[Tensor, "r m d"]:
        return x * self.weight


class QKV(nn.Linear):
    """Query, key and value in one matrix. `bias` holds the biases that there are, one after another."""

    def __init__(self, width: int, biased: tuple[bool, bool, bool]):
        super().__init__(width, 3 * width, bias=any(biased))
        self.biased = biased
        if self.bias is not None:
            self.bias = nn.Parameter(torch.zeros(sum(biased) * width))

    def forward(self, x: Float[Tensor, "r m d"]) -> Float[Tensor, "r m e"]:
        if self.bias is None or all(self.biased):
            return super().forward(x)
        given = iter(self.bias.chunk(sum(self.biased)))
        absent = self.bias.new_zeros(self.in_features)
        return F.linear(x, self.weight, torch.cat([next(given) if has else absent for has in self.biased]))


class Attention(nn.Module):
    def __init__(self, made: Architecture):
        super().__init__()
        self.heads = made.heads
        self.qkv = QKV(made.width, tuple(name in made.biases for name in ("query", "key", "value")))
        self.out = nn.Linear(made.width, made.width, bias="out" in made.biases)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for part in self.qkv.weight.chunk(3):  # Xavier's fan is that of one projection, not of the fused three
            nn.init.xavier_uniform_(part)
        nn.init.xavier_uniform_(self.out.weight)
        for bias in (self.qkv.bias, self.out.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(
        self, x: Float[Tensor, "r m d"], attend: "Attend | None", turn: tuple[Tensor, Tensor] | None, wanted: int
    ) -> Float[Tensor, "r w d"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q = q[:, :, -wanted:]
        if turn is not None:
            q, k = rotate(q, tuple(part[:, :, -wanted:] for part in turn)), rotate(k, turn)
        if isinstance(attend, packed.Sequences):
            x = attend.attend(q, k, v)
        elif attend is None or isinstance(attend, Tensor):
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        else:
            from torch.nn.attention.flex_attention import flex_attention

            x = flex_attention(q, k, v, block_mask=attend)
        return self.out(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, made: Architecture):
        super().__init__()
        self.activation = ACTIVATIONS[made.activation]
        self.up = nn.Linear(made.width, made.hidden, bias="mlp" in made.biases)
        self.down = nn.Linear(made.hidden, made.width, bias="mlp" in made.biases)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in self.children():
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "r m d"]) -> Float[Tensor, "r m d"]:
        return self.down(self.activation(self.up(x)))


class GatedMLP(MLP):
    """GLU (Shazeer 2020): one of two projections, activated, is the other's gate."""

    def __init__(self, made: Architecture):
        super().__init__(made)
        self.gate = nn.Linear(made.width, made.hidden, bias="mlp" in made.biases)
        self.reset_parameters()

    def forward(self, x: Float[Tensor, "r m d"]) -> Float[Tensor, "r m d"]:
        return self.down(self.activation(self.gate(x)) * self.up(x))
