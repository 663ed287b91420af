"""What a modality is: the adapter between a row of data and the tokens that the shared encoder sees.

A *view* of a batch is a plain dict:

    data      [r n *p]  pieces: image patches, filterbank tiles, token ids (before `prepare`: whatever `collate` made)
    position  [r n a]   integer coordinates of each piece; [1 n a] where all rows share them
    seed      [B]       one number a sample, from which all randomness of the objective comes
    segment   [r n]     1 + index in the batch of the sample that a piece belongs to, 0 where nothing is.
                        Only where rows hold several samples or holes.
    samples   [r k]     the segments that live in a row, 0 for none. Only with `segment`.

r rows, n pieces a row, a axes, p values in a piece, B samples.
"""

import os
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from urllib.parse import unquote_to_bytes

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from modalities.positions import Positions


class BadSample(ValueError):
    """A row that cannot be used. The loader replaces it, counts it and writes its reason to `bad_samples.jsonl`."""


def bytes_or_path(cell: Any) -> Any:
    """A cell `{"bytes", "path"}` or a path -> bytes, where they are at hand or in an archive, or else the path."""
    if isinstance(cell, dict):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell["path"]
    if isinstance(cell, str) and cell.startswith("file://"):  # a name that is not UTF-8
        return os.fsdecode(unquote_to_bytes(cell.removeprefix("file://")))
    if isinstance(cell, str) and "://" in cell:
        import fsspec

        with fsspec.open(cell) as file:
            return file.read()
    return cell


@dataclass(frozen=True)
class View:
    """What an objective wants of one view of a sample; each modality translates it.

    Args:
        scale: smallest and largest fraction of the sample that the view keeps.
        size: length of the view's sides relative to the full view's (multi-crop: 96/224).
        strength: `none` is the evaluation view, equal to the exported processor's; `weak` suits masked objectives,
            `strong` those that compare views.
        index: number of the view, hashed into its seed, and for augmentations that differ between views.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    size: float = 1.0
    strength: Literal["none", "weak", "strong"] = "weak"
    index: int = 0


EVALUATION = View(strength="none")


class Modality(nn.Module):
    """Settings and augmentation (usable at once), and the embedding's parameters (after `build`).

    In the workers: `read`, `view`, `collate`. On the device: `prepare`, then, of a `Backbone`, `content`, `place`,
    `join`, `lead`; of an objective, `hideable`, `corrupt`, `head`, `error`. Subclasses name the column feature they
    read (`features`), the file suffixes of folders (`suffixes`), and how many tokens stand for no piece (`leads`).
    """

    # Defaults of objectives' options, by dotted name, where this modality's are other ones.
    defaults: ClassVar[dict[str, Any]] = {}
    leads: ClassVar[int] = 1
    features: ClassVar[tuple[str, ...]] = ()
    suffixes: ClassVar[tuple[str, ...]] = ()

    def samples(self, rows, column: str):
        """The `datasets.Dataset` of samples for one of rows; by default each row is a sample."""
        return rows

    def fit(self, rows, column: str) -> str | None:
        """Take from the training rows what the settings leave open: statistics, a tokenizer. Before `build`.

        Returns what a user should know of it, in a line.
        """

    def save(self, folder: str) -> None:
        """Write the processor or tokenizer, if there is one, as native `transformers` files."""
        processor = self.processor()
        if processor is not None:
            processor.save_pretrained(folder)

    def load(self, folder: str) -> None:
        """Take back what `fit` found from a folder that `save` wrote."""

    def processor(self):
        """The native processor whose output is the evaluation view; None for a modality without a native class."""
        return None

    def read(self, value: Any) -> Any:
        """One cell of the data column -> a decoded sample. Raises `BadSample`."""
        return value

    def view(self, sample: Any, view: View, seed: int) -> dict[str, Any]:
        """One view of a sample, as tensors for `collate`. `seed` is the sample's; the view hashes its index in."""
        raise NotImplementedError

    def describe(self, cell: Any) -> str:
        """What a cell holds, in a few words. Raises `BadSample`."""
        raise NotImplementedError

    def collate(self, samples: list[dict[str, Tensor]], seed: Int[Tensor, "b"]) -> dict[str, Tensor]:
        """Lay out B samples as one view. By default one whole sample a row, all of one shape."""
        return {key: torch.stack([s[key] for s in samples]) for key in samples[0]} | {"seed": seed}

    def prepare(self, view: dict[str, Tensor]) -> dict[str, Tensor]:
        """On the device, without gradient: what `collate` made -> `data [r n *p]` and `position`."""
        return view

    def build(self, width: int) -> None:
        """Make the parameters, for tokens of `width`."""
        raise NotImplementedError

    def expect(self, views: tuple[View, ...]) -> None:
        """Told by an objective, after `build`, of the views that will come: those of other sizes need places."""

    def lead(self) -> Float[Tensor, "l d"]:
        """The tokens at the head of each sample that stand for no piece."""
        raise NotImplementedError

    def content(self, data: Tensor) -> Float[Tensor, "r n d"]:
        raise NotImplementedError

    def place(self, position: Int[Tensor, "r n a"]) -> Float[Tensor, "r n d"]:
        raise NotImplementedError

    def join(self, content: Float[Tensor, "r n d"], place: Float[Tensor, "_ n d"]) -> Float[Tensor, "r n d"]:
        return content + place

    def places(self, width: int) -> nn.Module:
        """Places for a decoder of another width: a module from `position [r n a]` to `[r n width]`."""
        raise NotImplementedError

    def hideable(self, view: dict[str, Tensor]) -> Bool[Tensor, "r n"] | None:
        """Pieces that may be predicted; None for all. Never padding, never special tokens."""
        return None

    def droppable(self, view: dict[str, Tensor]) -> Bool[Tensor, "r n"] | None:
        """Pieces that a dropping objective may leave out; None for all. If not None, the view carries `segment`."""
        return None

    def corrupt(self, data: Tensor, hide: Bool[Tensor, "r n"], seed: Int[Tensor, "r n"]):
        """Data and the pieces whose content `hidden` replaces, of those chosen by `hide`. By default all of them."""
        return data, hide

    def head(self, width: int) -> nn.Module:
        """A module from encoded pieces `[h width]` to guesses that `error` judges."""
        raise NotImplementedError

    def error(self, guess: Tensor, data: Tensor) -> Float[Tensor, "h"]:
        """One error a guess, in float32."""
        raise NotImplementedError


class Grid(Modality):
    """Pieces cut from a regular grid of values, `[channels, height, width]`: pictures and spectrograms.

    Subclasses set `channels`, `extent` (grid of the full view, in values) and `tile` (in values), both (height, width),
    `learned_positions`, and `target`: `normalised` predicts each piece minus its mean over its deviation (MAE),
    `raw` the values themselves, under the squared or, for `absolute`, the absolute error (SimMIM). `variance_floor` is
    added to a piece's variance, so that the noise of flat pieces is not blown up to full size.
    """

    no_decay: ClassVar[tuple[str, ...]] = ("lead_content", "lead_place")
    channels: int
    extent: tuple[int, int]
    tile: tuple[int, int]
    learned_positions: bool
    target: str
    variance_floor: float

    @property
    def grid(self) -> tuple[int, int]:
        return self.extent[0] // self.tile[0], self.extent[1] // self.tile[1]

    @property
    def values(self) -> int:
        """Values in a piece."""
        return self.channels * self.tile[0] * self.tile[1]

    def scaled(self, size: float) -> tuple[int, int]:
        """The grid, in pieces, of a view whose sides are `size` of the full one's."""
        return tuple(max(1, round(g * size)) for g in self.grid)

    def build(self, width: int) -> None:
        self.projection = nn.Linear(self.values, width)
        self.positions = Positions(self.grid, width, self.learned_positions)
        # A lead's place is kept apart from its content, as the native classes do.
        self.lead_content = nn.Parameter(torch.empty(self.leads, width))
        self.lead_place = nn.Parameter(torch.zeros(self.leads, width), requires_grad=self.learned_positions)
        self.hidden = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def expect(self, views: tuple[View, ...]) -> None:
        self.positions.sizes = tuple(sorted({self.scaled(v.size) for v in views} - {self.grid}, reverse=True))

    def reset_parameters(self) -> None:
        """Xavier for the projection, normal (0.02) for leads and the hidden token, as in MAE."""
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        nn.init.normal_(self.lead_content, std=0.02)
        nn.init.zeros_(self.lead_place)
        nn.init.normal_(self.hidden, std=0.02)

    def cut(self, values: Float[Tensor, "r c h w"]) -> dict[str, Tensor]:
        """Cut values into pieces, row by row; a piece's values lie channel, height, width, as a convolution's do."""
        height, width = self.tile
        data = rearrange(values, "r c (y h) (x w) -> r (y x) (c h w)", h=height, w=width)
        size = (values.shape[2] // height, values.shape[3] // width)
        axes = [torch.arange(s, device=values.device) for s in size]
        axes[0] = axes[0] + self.positions.offset(size)
        return {"data": data, "position": torch.cartesian_prod(*axes)[None]}

    def lead(self) -> Float[Tensor, "l d"]:
        return self.lead_content + self.lead_place

    def content(self, data: Float[Tensor, "r n p"]) -> Float[Tensor, "r n d"]:
        return self.projection(data)

    def place(self, position: Int[Tensor, "r n a"]) -> Float[Tensor, "r n d"]:
        return self.positions(position)

    def places(self, width: int) -> nn.Module:
        places = Positions(self.grid, width)
        places.sizes = self.positions.sizes
        return places

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, self.values)

    def error(self, guess: Float[Tensor, "h p"], data: Float[Tensor, "h p"]) -> Float[Tensor, "h"]:
        guess, data = guess.float(), data.float()
        if self.target == "normalised":
            variance, mean = torch.var_mean(data, dim=-1, keepdim=True)  # unbiased, as in MAE
            data = (data - mean) * torch.rsqrt(variance + self.variance_floor)
        if self.target == "absolute":
            return (guess - data).abs().mean(-1)
        return F.mse_loss(guess, data, reduction="none").mean(-1)
