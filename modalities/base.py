"""What a modality is: the adapter between a row of data and the pieces that an embedding sees. It has no parameters."""

import math
import os
import re
from functools import partial
from typing import Any, ClassVar
from urllib.parse import unquote_to_bytes

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from triptych.modalities import archives
from triptych.modalities.exhibit import Exhibit, Seen
from triptych.modalities.survey import Survey
from triptych.modalities.view import View, ViewSpec


class BadSample(ValueError):
    """A row that cannot be used. The loader replaces it, counts it and writes its reason to `bad_samples.jsonl`."""


class NoSamples(ValueError):
    """Rows of which none gives a sample."""


PLAIN_VALUES = 1024  # values of a picture that is compared without an encoder: 32 × 32 of grey, 18 × 18 of colours
Span = tuple[float, float]  # seconds of a recording: where it begins and ends
SPAN = re.compile(r"#t=([0-9.e+-]+),([0-9.e+-]+)$")


def segment(path: str, span: Span) -> str:
    """The name of some seconds of a recording: `a.wav#t=1.5,4.0`, as the W3C's Media Fragments URI 1.0 has it."""
    start, end = map(float, span)
    return f"{path}#t={start},{end}"


def recording(path: str) -> str:
    """The recording that a path names, or of which it names a segment."""
    return SPAN.sub("", path)


def span_of(cell: Any) -> Span | None:
    """Seconds that a cell `{"bytes", "path"}` or a path names; None for all of it."""
    path = cell.get("path") if isinstance(cell, dict) else cell
    found = SPAN.search(path) if isinstance(path, str) else None
    return (float(found[1]), float(found[2])) if found else None


def bytes_or_path(cell: Any) -> Any:
    """A cell `{"bytes", "path"}` or a path -> bytes, where they are at hand or in an archive, or else the path."""
    if isinstance(cell, dict):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell["path"]
    if isinstance(cell, str):
        cell = recording(cell)
    if isinstance(cell, str) and cell.startswith("file://"):  # a name that is not UTF-8
        return os.fsdecode(unquote_to_bytes(cell.removeprefix("file://")))
    if isinstance(cell, str) and archives.parted(cell):
        return archives.content(cell)
    if isinstance(cell, str) and "://" in cell:
        import fsspec

        with fsspec.open(cell) as file:
            return file.read()
    return cell


class Modality:
    """Settings, and what becomes of a sample before it is embedded. A plain object: what is trained is elsewhere.

    In the workers: `read`, `view`, `collate`. On the device: `prepare`; then, for masked objectives, `hideable`,
    `droppable`, `corrupt`, `error` and `numbers`. Subclasses name the column feature they read (`features`), the file
    suffixes of folders (`suffixes`), and which settings are measures of the data (`sizes`, first that of a view): all
    others go with a recipe. The embedding that goes with it is its family's (`encoders.native`); a modality without a
    native family names the class of its own (`embedding`). Of a sample, `stay` pieces at most are not `droppable`; None
    for any number. `average` is the pooling that people call the mean of a sample.
    """

    sizes: ClassVar[tuple[str, ...]] = ()
    brought: ClassVar[tuple[str, ...]] = ()  # settings that do nothing where `load` brings what they would make
    features: ClassVar[tuple[str, ...]] = ()
    segments: ClassVar[bool] = False  # a row may be some seconds of a file
    stacks: ClassVar[bool] = False  # a sample may lie in several columns, each one of its `channels`
    suffixes: ClassVar[tuple[str, ...]] = ()
    marks: ClassVar[tuple[tuple[int, bytes], ...]] = ()  # of files of other names: bytes, and where they stand
    embedding: ClassVar[type | None] = None
    stay: ClassVar[int | None] = 0
    average: ClassVar[str] = "pieces"

    def __deepcopy__(self, memo) -> "Modality":
        """A teacher's embedding shares it: after `fit` nothing in it changes."""
        return self

    def starts(self, rows, column: str) -> tuple[list[list[int]] | None, str | None]:
        """Where the windows of each row begin that training sees, as plain data, and a line about them for the user.

        For modalities that must look into every row to find out: the ranks of a run share what one of them found.
        None: `samples` finds out.
        """
        return None, None

    def samples(self, rows, column: str, starts: list[list[int]] | None = None):
        """The table of samples for a `datasets.Dataset` of rows; by default each row is a sample.

        Rows that are cut into windows have a `source_row`, the row's index. `starts`: those of training, by row.
        """
        return rows

    def fit(self, rows, column: str) -> str | None:
        """Take from the training rows what the settings leave open: statistics, a tokenizer.

        Returns what a user should know of it, in a line.
        """

    def survey(self, rows, column: str) -> Survey | None:
        """What some rows measure, by their headers, from which `sized` takes sizes; None where nothing can be told."""
        return None

    def sized(self, survey: Survey, pieces: float, given: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
        """Settings, of those that are not `given`, that suit such data, at most so many pieces a sample (about).

        `usual` are the sizes of the objective's shipped recipe. `objective.scale` says which part of a sample a view
        keeps, of objectives that compare views.
        """
        return {}

    def pieces_of(self, survey: Survey) -> float:
        """How many pieces a sample has, on average."""
        raise NotImplementedError

    def samples_of(self, survey: Survey) -> float:
        """How many samples an epoch has, about."""
        return survey.rows

    def trained(self) -> str:
        """What is made of a sample, in words."""
        return ""

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

    def cell(self, value: Any) -> Any:
        """A value in memory, such as an array -> a cell that `read` takes. `ValueError` for what it cannot be.

        By default a file: its path, its bytes, or a dictionary `{"bytes", "path"}`.
        """
        if isinstance(value, dict) and {"bytes", "path"} & value.keys():
            return {"bytes": value.get("bytes"), "path": value.get("path")}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": bytes(value), "path": None}
        if isinstance(value, (str, os.PathLike)):
            path = os.fspath(value)
            return {"bytes": None, "path": path if "://" in path else os.path.abspath(os.path.expanduser(path))}
        raise ValueError(f"a {type(value).__name__} is no path, no bytes and no dictionary of these")

    def read(self, value: Any) -> Any:
        """One cell of the data column -> a decoded sample. Raises `BadSample`."""
        return value

    def view(self, sample: Any, spec: ViewSpec, seed: int) -> dict[str, Tensor]:
        """One view of a sample, as tensors for `collate`. `seed` is the sample's; the view hashes its index in."""
        raise NotImplementedError

    def mixes(self, spec: ViewSpec) -> bool:
        """Whether such a view takes in something of another sample; the loader then reads one, by the sample's seed."""
        return False

    def mix_in(self, made: dict[str, Tensor], other: Any, spec: ViewSpec, seed: int) -> dict[str, Tensor]:
        """What `view` made, with something of the other sample, as `read` gave it. Raises `BadSample` for the other."""
        raise NotImplementedError

    def beyond(self, sample: Any) -> float:
        """Which share of a sample's values the settings clip; `fit` and the loader say so."""
        return 0.0

    def describe(self, cell: Any) -> str:
        """What a cell holds, in a few words. Raises `BadSample`."""
        raise NotImplementedError

    def collate(self, samples: list[dict[str, Tensor]], seed: Int[Tensor, " b"]) -> View:
        """Lay out B samples as one view. By default one whole sample a row, all of one shape."""
        return View(seed=seed, **{key: torch.stack([s[key] for s in samples]) for key in samples[0]})

    def prepare(self, view: View) -> View:
        """On the device, without gradient: what `collate` made -> pieces with their places."""
        return view

    def hideable(self, view: View) -> Bool[Tensor, "r n"] | None:
        """Pieces that may be predicted; None for all. Never padding, never special tokens."""
        return view.ordinary

    def droppable(self, view: View) -> Bool[Tensor, "r n"] | None:
        """Pieces that a dropping objective may leave out; None for all. If not None, the view carries `segment`."""
        return None

    def corrupt(self, data: Tensor, hide: Bool[Tensor, "r n"], seed: Int[Tensor, "r n"]):
        """Data and the pieces whose content `hidden` replaces, of those chosen by `hide`. By default all of them."""
        return data, hide

    def secret(self, view: View, hide: Bool[Tensor, "r n"]) -> Bool[Tensor, "r n p"] | None:
        """Where pieces overlap, the values that no visible piece holds; None where pieces share none.

        What is not secret could be copied, so errors do not count it; `error` gets it as a third argument.
        """
        return None

    def error(self, guess: Tensor, data: Tensor) -> Float[Tensor, " h"]:
        """One error a guess, in float32."""
        raise NotImplementedError

    def exhibit(self, view: View, seen: Seen | None = None) -> list[Exhibit]:
        """Each sample of a view, in batch order, for people to look at: as it is, or without what was hidden, or with
        what was guessed there. The view is as `collate` made it, or, with `seen`, as `prepare` did. By default nothing.
        """
        return [Exhibit()] * len(view)

    @property
    def values(self) -> int:
        """How many numbers `numbers` gives of a piece."""
        raise NotImplementedError

    def numbers(self, view: View) -> Float[Tensor, "r n p"]:
        """What a piece holds, as numbers that no training changes: for targets that are made of the input alone."""
        raise NotImplementedError

    def plain(self, view: View) -> Float[Tensor, "b v"] | None:
        """What a sample is without any encoder, as a few numbers, of a prepared evaluation view: for the probe to
        compare. None: nothing is compared, or texts, whose words the probe counts.
        """
        return None

    def shown(self, view: View, other: "Modality") -> View:
        """A view as another modality of this kind has it: of its size, normalised and cut into pieces its way."""
        raise NotImplementedError

    def check_shown(self, other: "Modality", pieces: bool) -> None:
        """Raise a `ValueError` if that cannot be, or if with `pieces` those of the two are not the same."""


class Grid(Modality):
    """Pieces cut from a regular grid of values, `[channels, height, width]`: pictures and spectrograms.

    Subclasses set `channels`, `extent` (grid of the full view, in values), `tile` and `stride` (in values), all three
    (height, width), `learned_positions`, and `target`: `normalised` predicts each piece minus its mean over its
    deviation (MAE), `raw` the values themselves, under the squared or, for `absolute`, the absolute error (SimMIM).
    `variance_floor` is added to a piece's variance, so that the noise of flat pieces is not blown up to full size.
    """

    channels: int
    extent: tuple[int, int]
    tile: tuple[int, int]
    stride: tuple[int, int]
    learned_positions: bool
    rising: ClassVar[bool] = False  # the first row of the grid is drawn at the bottom
    target: str
    variance_floor: float

    @property
    def grid(self) -> tuple[int, int]:
        return self.pieces(self.extent)

    def pieces_of(self, survey: Survey) -> float:
        return float(self.grid[0] * self.grid[1])

    def pieces(self, extent: tuple[int, int]) -> tuple[int, int]:
        """Grid, in pieces, of so many values."""
        return tuple((e - t) // s + 1 for e, t, s in zip(extent, self.tile, self.stride, strict=True))

    @property
    def values(self) -> int:
        """Values in a piece."""
        return self.channels * self.tile[0] * self.tile[1]

    def numbers(self, view: View) -> Float[Tensor, "r n p"]:
        return view.data

    def plain(self, view: View) -> Float[Tensor, "b v"]:
        """The values themselves, shrunk by means of areas to about `PLAIN_VALUES` of them."""
        values = self.uncut(view).float()
        share = min(1.0, math.sqrt(PLAIN_VALUES / values[0].numel()))
        return F.adaptive_avg_pool2d(values, [max(1, round(side * share)) for side in values.shape[2:]]).flatten(1)

    def uncut(self, view: View, weight: Float[Tensor, "r n p"] | None = None) -> Float[Tensor, "r c h w"]:
        """The values that pieces were cut from; of values that several pieces hold, their mean, by `weight`."""
        extent = tuple((n - 1) * s + t for n, s, t in zip(view.grid, self.stride, self.tile, strict=True))
        fold = partial(F.fold, output_size=extent, kernel_size=self.tile, stride=self.stride)
        weight = torch.ones_like(view.data) if weight is None else weight
        return fold((view.data * weight).mT) / fold(weight.mT)

    def check_shown(self, other: "Grid", pieces: bool) -> None:
        if pieces and other.grid != self.grid:
            mine, its = ("×".join(map(str, grid)) for grid in (self.grid, other.grid))
            raise ValueError(
                f"its pieces lie on a grid of {its}, the student's on {mine}; give sizes that make them alike "
                "(objective.size), or choose objective.target pooled"
            )

    def check_target(self) -> None:
        """A piece of one value has no deviation to be normalised by."""
        if self.target == "normalised" and self.values == 1:
            raise ValueError(
                "modality.target normalised: a piece of one value is always 0; choose raw, or a larger piece"
            )

    def scaled(self, size: float) -> tuple[int, int]:
        """The grid, in pieces, of a view whose sides are `size` of the full one's."""
        return tuple(max(1, round(g * size)) for g in self.grid)

    def cut(self, values: Float[Tensor, "r c h w"]) -> dict[str, Any]:
        """`data`, `position` and `grid` of values: cut row by row; a piece's values lie channel, height, width."""
        (height, width), grid = self.tile, self.pieces(values.shape[2:])
        if self.stride == self.tile:
            data = rearrange(values, "r c (y h) (x w) -> r (y x) (c h w)", h=height, w=width)
        else:
            tiles = values.unfold(2, height, self.stride[0]).unfold(3, width, self.stride[1])
            data = rearrange(tiles, "r c y x h w -> r (y x) (c h w)")
        axes = (torch.arange(length, device=values.device) for length in grid)
        return {"data": data, "position": torch.cartesian_prod(*axes)[None], "grid": grid}

    def assembled(self, view: View, seen: Seen | None) -> Float[Tensor, "b c h w"]:
        """Values of a prepared view; NaN for those that only hidden pieces hold, or what was guessed of them."""
        data = view.data.float()
        weight = torch.ones_like(data)
        if seen is not None and seen.index is not None:
            hidden = seen.hidden(view)
            weight = weight * ~hidden[..., None]
            data = data.masked_fill(hidden[..., None], 0)
            if seen.guess is not None:
                row, at = seen.valid.nonzero(as_tuple=True)
                piece = seen.index[row, at]
                data[row, piece] = self.as_values(seen.guess[row, at].float(), view.data[row, piece].float())
                # Where pieces overlap, what a visible one holds is known, and goes before what is guessed.
                weight[row, piece] = 1e-6
        return self.uncut(view.replace(data=data), weight)

    def as_values(self, guess: Float[Tensor, "h p"], data: Float[Tensor, "h p"]) -> Float[Tensor, "h p"]:
        """What `error` compares -> values of pieces; a normalised guess gets its own piece's mean and deviation."""
        if self.target != "normalised":
            return guess
        variance, mean = torch.var_mean(data, dim=-1, keepdim=True)
        return guess * (variance + self.variance_floor).sqrt() + mean

    def secret(self, view: View, hide: Bool[Tensor, "r n"]) -> Bool[Tensor, "r n p"] | None:
        if all(s >= t for s, t in zip(self.stride, self.tile, strict=True)):
            return None
        visible = (~hide).unflatten(1, view.grid)[:, None].to(torch.float32)
        shown = F.conv_transpose2d(visible, visible.new_ones(1, 1, *self.tile), stride=self.stride)
        return (self.cut(shown)["data"] == 0).repeat(1, 1, self.channels)

    def error(
        self,
        guess: Float[Tensor, "h p"],
        data: Float[Tensor, "h p"],
        secret: Bool[Tensor, "h p"] | None = None,
    ) -> Float[Tensor, " h"]:
        guess, data = guess.float(), data.float()
        if self.target == "normalised":
            variance, mean = torch.var_mean(data, dim=-1, keepdim=True)  # unbiased, as in MAE
            data = (data - mean) * torch.rsqrt(variance + self.variance_floor)
        error = (guess - data).abs() if self.target == "absolute" else (guess - data).square()
        if secret is None:
            return error.mean(-1)
        return (error * secret).sum(-1) / secret.sum(-1).clamp(min=1)
