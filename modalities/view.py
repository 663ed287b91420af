"""What an objective asks for (`ViewSpec`), and what it gets (`View`): a batch of samples as rows of pieces."""

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from triptych.modalities.hashing import mix

REPEAT = 0x4E9E  # keeps the seeds of a view's repetitions apart from what else a seed is used for


@dataclass(frozen=True)
class ViewSpec:
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


EVALUATION = ViewSpec(strength="none")

# Which field is of what; all others (`grid`) are of the view as a whole.
OF_PIECES = ("data", "position", "segment", "group", "ordinary", "secret")
OF_ROWS = ("samples",)
OF_SAMPLES = ("seed", "identity", "row", "valid_frames", "warp")


@dataclass
class View:
    """One view of a batch of B samples, laid out in r rows of n pieces; a piece has p values, and a place on a axes.

    Args:
        data: `[r n *p]` pieces: image patches, filterbank tiles, token ids. Before `prepare`, whatever `collate` made.
        seed: `[B]` one number a sample, from which all randomness of the objective comes.
        position: `[r n a]` integer coordinates of each piece; `[1 n a]` where all rows share them.
        grid: length of each axis of the whole view, in pieces, before any was dropped; None where samples differ.
        segment: `[r n]` 1 + index in the batch of the sample that a piece belongs to, 0 where nothing is. Only where
            rows hold several samples or holes.
        samples: `[r k]` the segments that live in a row, 0 for none. Only with `segment`.
        identity: `[B]` samples of equal identity are not each other's negatives.
        row: `[B]` number of each sample among those that are trained on.
        group: `[r n]` pieces of one number (a word) are hidden together.
        ordinary: `[r n]` True for pieces that may be hidden and predicted; None for all.
        secret: `[r n p]` where pieces overlap, True for values that no visible piece holds; None for all.
        valid_frames: `[B]` frames of a sound that are not padding.
        warp: `[B 6]` what is still to be done to a sound on the device.
    """

    data: Tensor
    seed: Int[Tensor, " b"]
    position: Int[Tensor, "r n a"] | None = None
    grid: tuple[int, ...] | None = None
    segment: Int[Tensor, "r n"] | None = None
    samples: Int[Tensor, "r k"] | None = None
    identity: Int[Tensor, " b"] | None = None
    row: Int[Tensor, " b"] | None = None
    group: Int[Tensor, "r n"] | None = None
    ordinary: Bool[Tensor, "r n"] | None = None
    secret: Bool[Tensor, "r n p"] | None = None
    valid_frames: Int[Tensor, " b"] | None = None
    warp: Tensor | None = None

    def __len__(self) -> int:
        """Samples."""
        return len(self.seed)

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}

    def replace(self, **changes) -> "View":
        return replace(self, **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "View":
        return self.replace(**{k: v.to(device, non_blocking=non_blocking) for k, v in self.tensors().items()})

    def pin_memory(self) -> "View":
        """Called by the loader where a GPU is used."""
        return self.replace(**{k: v.pin_memory() for k, v in self.tensors().items()})

    def keep(self, index: Int[Tensor, "r c"], valid: Bool[Tensor, "r c"] | None = None) -> "View":
        """A view with only the pieces at `index`; where `valid` is False there is a hole (segment 0)."""
        kept = {}
        for name in OF_PIECES:
            if (values := getattr(self, name)) is not None:
                values = values.expand(len(index), *values.shape[1:])
                wide = index.view(*index.shape, *[1] * (values.ndim - 2))
                kept[name] = values.gather(1, wide.expand(-1, -1, *values.shape[2:]))
        if "segment" in kept and valid is not None:
            kept["segment"] = kept["segment"] * valid
        return self.replace(**kept)

    def one_a_row(self) -> "View":
        """The same view with `segment` and `samples`, which a view of one whole sample a row may leave out."""
        if self.segment is not None:
            return self
        samples = torch.arange(1, len(self.data) + 1, device=self.data.device)[:, None]
        return self.replace(samples=samples, segment=samples.expand(-1, self.data.shape[1]))

    def repeat(self, count: int) -> "View":
        """The same samples `count` times, one after another, each time with other seeds: several masks of a sample."""
        return stack([self.replace(seed=mix(self.seed, REPEAT, number)) for number in range(count)])


def stack(views: list[View]) -> View:
    """Several views of one shape as one, for a single forward; pooled vectors come back view after view.

    Packed rows of different lengths are padded with holes; segments of the v-th view are shifted by the samples of
    those before it. Views of several grids are run one forward a shape (`encoders.backbone.pooled`).
    """
    first = views[0]
    if any(v.grid != first.grid for v in views):
        raise ValueError(f"views of several grids ({[v.grid for v in views]}) are run one forward a shape")
    if any(v.segment is not None for v in views) or len({v.data.shape[1] for v in views}) > 1:
        views = [v.one_a_row() for v in views]
    before = 0
    shifted = []
    for view in views:
        if view.segment is not None:
            lift = {name: getattr(view, name) + before * (getattr(view, name) > 0) for name in ("segment", "samples")}
            view = view.replace(**lift)
        before += len(view)
        shifted.append(view)
    joined = {}
    for name in (*OF_PIECES, *OF_ROWS, *OF_SAMPLES):
        parts = [getattr(v, name) for v in shifted]
        if parts[0] is None:
            continue
        if name in OF_PIECES:
            parts = [p.expand(len(v.data), *p.shape[1:]) for p, v in zip(parts, shifted, strict=True)]
        if name not in OF_SAMPLES:
            longest = max(p.shape[1] for p in parts)
            parts = [pad(p, longest) for p in parts]
        joined[name] = torch.cat(parts)
    return first.replace(**joined)


def pad(tensor: Tensor, length: int) -> Tensor:
    """Lengthen axis 1 to `length` with zeros."""
    more = length - tensor.shape[1]
    return torch.cat([tensor, tensor.new_zeros(len(tensor), more, *tensor.shape[2:])], dim=1) if more else tensor
