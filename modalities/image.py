"""Pictures: decoded from bytes, cropped and augmented in the workers, cut into square patches on the device."""

import io
import math
import os
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.modalities.base import Grid
from triptych.modalities.domains import Count, Each, NotNegative, Number, Part, Probability, Within
from triptych.modalities.exhibit import Exhibit, Seen
from triptych.modalities.hashing import generator
from triptych.modalities.image_file import (
    AT,
    DICOM,
    TURNS,
    Pages,
    as_pillow,
    content,
    convert,
    from_array,
    is_grey,
    is_plain,
    may_have_pages,
    of_eight_bits,
    opened,
    orientation,
    pages_of,
    read_raw,
    small_jpeg,
)
from triptych.modalities.image_levels import OPTION, WHOLE, Levels, Looked, levels
from triptych.modalities.image_processor import evaluation_view, padded, processor_of
from triptych.modalities.image_values import NoReader, readable
from triptych.modalities.image_views import AUGMENTATIONS, LUMA, crop, cut_out, distort, flipped, warped
from triptych.modalities.sizes import colours, look_at_pictures, picture_sizes
from triptych.modalities.survey import Survey, spread
from triptych.modalities.view import View, ViewSpec

HEADS, HEAD = 512, 2**16  # rows of which so many bytes are read, to find deep pictures among others
LOOKED_AT = 64  # rows from which the range of deep pictures is taken


class Image(Grid):
    """Pictures of any kind that Pillow reads, DICOM, and arrays in .npy, as patches of a fixed-size grid.

    Pictures of 8 bits in grey, RGB or RGBA are bytes up to the device. In a set with more bits or other channels all
    are arrays of floats in 0..1, those of 8 bits by 255; the exported processor then takes arrays, and no pipeline.

    Args:
        image_size: height and width of the full view in pixels; one number for a square.
        patch_size: side of a patch in pixels; divides `image_size`.
        channels: 1 (grey), 3 (RGB), 4 (RGBA, alpha kept), or what arrays, TIFF and DICOM have.
        pages: of a file with several pages or frames the `first`, or all of them as `channels`.
        positions: `fixed` sin-cos or `learned` (from sin-cos on).
        target: what masked objectives predict: each patch `normalised` by its mean and deviation (MAE), the `raw`
            values (squared error), or the raw values under the `absolute` error (SimMIM).
        variance_floor: added to a patch's variance before a `normalised` target is divided by its deviation (values are
            in units of `std`). MAE has 1e-6; 1e-2 does not blow up the noise of flat patches.
        flip: probability of a left-right flip in weak and strong views.
        rotation: largest turn of weak and strong views, in degrees.
        shift: largest shift of weak and strong views, as a fraction of the side.
        zoom: largest relative change of scale of weak and strong views.
        shear: largest shear of weak and strong views, as a slope.
        augmentation: colours of strong views: `light` (jitter and grey, for small pictures), `simclr` or `byol`
            (the latter differs between the two views).
        mean: value that is subtracted after scaling to 0..1, for all channels or one for each. Default: 0.5; of sets
            with more than 8 bits or other channels that of some rows.
        std: value that is then divided by, for all channels or one for each. Default: likewise.
        value_range: values that become black and white, of pictures with more than 8 bits a channel; those beyond are
            clipped, and counted. Default: 0 and the largest value of as many bits as some rows use, or -1024 and 3071
            (Hounsfield units) if their least value is air.
        float_range: the same of pictures of floats. Default: `value_range` if that is given, else 0 and 1 if some rows
            lie there, else as of integers.
        percentiles: instead, percentiles of each such picture's own values that become its black and white.
        max_pixels: pixels of a picture at most; one with more is not read, for it may be an attack on the memory.
        resample: filter by which the evaluation view is resized.
        edge: side to which the evaluation view is resized, over that of the view; what is more is cut off all around.
        aspect: the evaluation view is resized to `squeeze` all of the picture into the view's aspect, or keeps its own:
            `crop` loses its ends, and `pad` lies on black, in training, too. (`keep` is what earlier runs call `crop`.)
        rescale: values are brought to 0..1 `after` the evaluation view is resized, or `before`, so that none is
            rounded.
        registers: tokens without a place, of families that have such. Default: what the family is published with.
        table_side: side, in patches, of the table of places, of families that interpolate it for every view.
            Default: the view's.
    """

    features = ("Image",)
    stacks = True
    sizes = ("image_size", "patch_size", "channels")
    marks = ((AT, DICOM),)  # archives of hospitals give no suffix
    suffixes = tuple(
        ".jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .jp2 .avif .ico .tga .npy .dcm .dicom".split()
    )

    def __init__(
        self,
        image_size: Annotated[int | tuple[int, int], Each("[1, inf)")] = 224,
        patch_size: Count = 16,
        channels: Count = 3,
        pages: Pages = "first",
        positions: Literal["fixed", "learned"] = "fixed",
        target: Literal["normalised", "raw", "absolute"] = "normalised",
        variance_floor: NotNegative = 1e-6,
        flip: Probability = 0.5,
        rotation: Annotated[float, Within("[0, 180]")] = 0.0,
        shift: Part = 0.0,
        zoom: Annotated[float, Within("[0, 9]")] = 0.0,
        shear: Annotated[float, Within("[0, 9]")] = 0.0,
        augmentation: Literal["light", "simclr", "byol"] = "simclr",
        mean: Annotated[float | list[float], Each("(-inf, inf)")] | None = None,
        std: Annotated[float | list[float], Each("(0, inf)")] | None = None,
        value_range: Annotated[tuple[float, float], Within("(-inf, inf)")] | None = None,
        float_range: Annotated[tuple[float, float], Within("(-inf, inf)")] | None = None,
        percentiles: Annotated[tuple[float, float], Within("[0, 100]")] | None = None,
        max_pixels: Count = 2**30 // 12,
        resample: Literal["bilinear", "bicubic"] = "bilinear",
        edge: Annotated[float, Within("[1, 9]")] = 1.0,
        aspect: Literal["squeeze", "crop", "pad", "keep"] = "squeeze",
        rescale: Literal["after", "before"] = "after",
        registers: Number | None = None,
        table_side: Count | None = None,
    ):
        self.extent = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if patch_size < 1 or any(side < 1 or side % patch_size for side in self.extent):
            size = "×".join(map(str, self.extent))
            nearest = "×".join(str(max(1, round(s / max(patch_size, 1))) * max(patch_size, 1)) for s in self.extent)
            raise ValueError(
                f"modality.image_size {size} is not a multiple of modality.patch_size {patch_size}; "
                f"nearest that is: {nearest}"
            )
        self.tile = self.stride = (patch_size, patch_size)
        self.channels, self.pages = channels, pages
        self.learned_positions = positions == "learned"
        self.target, self.variance_floor = target, variance_floor
        self.check_target()
        self.flip = flip
        self.rotation, self.shift, self.zoom, self.shear = rotation, shift, zoom, shear
        self.augmentation = augmentation
        self.left_open = mean is None, std is None
        self.mean, self.std = (
            self._each(name, 0.5 if value is None else value) for name, value in (("mean", mean), ("std", std))
        )
        bounds = {"value_range": value_range, "float_range": float_range, "percentiles": percentiles}
        for (name, pair), such in zip(bounds.items(), ("0, 4095", "0, 1", "1, 99"), strict=True):
            if pair is not None and not pair[0] < pair[1]:
                raise ValueError(f"modality.{name} {list(pair)}: give the darkest value first, such as [{such}]")
        if percentiles is not None and (value_range or float_range):
            raise ValueError("modality.percentiles are of each picture, and a range is of all: leave one of them out")
        if max_pixels < 1:
            raise ValueError(f"modality.max_pixels {max_pixels} is below 1; try {2**30 // 12}")
        self.resample, self.edge, self.rescale = resample, edge, rescale
        self.aspect = "crop" if aspect == "keep" else aspect
        self.registers, self.table_side = registers, table_side
        self.published: Any = None  # the native processor that a checkpoint came with
        self.value_range, self.float_range = value_range and tuple(value_range), float_range and tuple(float_range)
        self.float_range = self.float_range or self.value_range
        self.percentiles, self.max_pixels = percentiles and tuple(percentiles), max_pixels

    def _each(self, name: str, value: float | list[float]) -> list[float]:
        """One value for each channel."""
        values = list(value) if isinstance(value, (list, tuple)) else [value] * self.channels
        if len(values) != self.channels or (name == "std" and not all(v > 0 for v in values)):
            above = " above 0" if name == "std" else ""
            raise ValueError(
                f"modality.{name} {value}: give one number{above}, or one for each of {self.channels} channels"
            )
        return values

    @property
    def arrays(self) -> bool:
        """Whether samples are arrays of floats in 0..1, not pictures of bytes."""
        odd = self.channels not in (1, 3, 4) or self.pages == "channels"
        return odd or any(found is not None for found in (self.value_range, self.float_range, self.percentiles))

    @property
    def native_channels(self) -> int:
        """Stock pipelines hand over RGB whatever the file is: an encoder of grey bytes goes out with three channels."""
        return 3 if self.channels == 1 and not self.arrays else self.channels

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """What becomes black and white, by the kind of a picture of more than 8 bits."""
        known = {"integers": self.value_range, "floats": self.float_range}
        return WHOLE | {kind: found for kind, found in known.items() if found is not None}

    @property
    def ranges_known(self) -> dict[str, tuple[float, float]]:
        """The settings of ranges, without what is not known; floats have one where integers have."""
        if self.value_range is not None:
            return {"value_range": self.value_range, "float_range": self.ranges["floats"]}
        return {} if self.float_range is None else {"float_range": self.float_range}

    def processor(self):
        return processor_of(self)

    def load(self, folder: str) -> None:
        """Sizes are settings; the statistics of values are the processor's, where the settings give none."""
        from transformers import AutoImageProcessor

        self.published = processor = AutoImageProcessor.from_pretrained(folder)
        for name, is_open in zip(("mean", "std"), self.left_open, strict=True):
            if processor.do_normalize and is_open:
                setattr(self, name, list(getattr(processor, f"image_{name}"))[: self.channels])
        for name in OPTION.values():
            if (found := getattr(processor, name, None)) and getattr(self, name) is None:
                setattr(self, name, tuple(found))

    def fit(self, rows, column: str) -> str | None:
        """Of sets with more than 8 bits, or other channels: one range for all, mean and deviation; says which.

        Also says where files have pages that are not read.
        """
        said = self._fit_levels(rows, column), self._left_out(rows, column)
        return "; ".join(filter(None, said)) or None

    def _left_out(self, rows, column: str) -> str | None:
        """Pages and frames behind the first, in words."""
        if self.pages == "channels":
            return None
        looked_at = [rows[i][column] for i in spread(len(rows), LOOKED_AT)]
        found = [
            self._tried(pages_of, cell) for cell in looked_at if self._tried(may_have_pages, cell, AT + len(DICOM))
        ]
        several = [count for count in found if count and count > 1]
        if not several:
            return None
        span = f"{min(several)}" if min(several) == max(several) else f"{min(several)} to {max(several)}"
        return (
            f"{len(several)} of {len(looked_at)} files have {span} pages or frames, of which the first is the picture: "
            "--modality.pages channels takes all as its channels"
        )

    def _fit_levels(self, rows, column: str) -> str | None:
        def is_deep(i: int) -> bool:
            return self._tried(of_eight_bits, rows[i][column], HEAD) is False

        looked_at = spread(len(rows), LOOKED_AT)
        if not self.arrays and not any(map(is_deep, looked_at)):  # there are none, or few among others
            few = [i for i in spread(len(rows), HEADS) if is_deep(i)]
            if not few:
                return None
            looked_at += few[:LOOKED_AT]
        looked = Looked()
        for i in looked_at:
            if (raw := self._tried(self._raw, rows[i][column])) is not None:
                looked.add(raw)
        said = []
        for kind in looked.deep:
            given = getattr(self, OPTION[kind]) is not None
            if not given and self.percentiles is None:
                setattr(self, OPTION[kind], looked.range(kind))
            said.append(looked.describe(kind, self.ranges[kind], given, self.percentiles))
        if not self.arrays:
            return None
        if said and "bytes" in looked.count:
            said.append(f"{looked.count['bytes']} of 8 bits: 0 is black and 255 white")
        if any(self.left_open) and (found := looked.statistics(self.channels, self.ranges, self.percentiles)):
            was = self.mean, self.std
            self.mean, self.std = (
                new if open_ else old for new, old, open_ in zip(found, was, self.left_open, strict=True)
            )
            values = (", ".join(f"{value:.3g}" for value in each) for each in (self.mean, self.std))
            said.append("mean {}, deviation {} of 0 to 1 (modality.mean, modality.std)".format(*values))
        return f"of {sum(looked.count.values())} pictures looked at, " + "; ".join(said) if said else None

    @staticmethod
    def _tried(look, cell: Any, most: int = -1):
        """What is made of a cell's file, or its first bytes; None if it cannot be read: the loader will name it."""
        try:
            return look(*content(cell, most))
        except NoReader as error:
            raise ValueError(str(error)) from error
        except Exception:
            return None

    def _raw(self, source: Any, name: str):
        return read_raw(source, name, self.channels, self.pages, self.max_pixels)

    def survey(self, rows, column: str) -> Survey | None:
        return look_at_pictures(rows, column, self._raw)

    def sized(self, survey: Survey, pieces: float, given: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
        return picture_sizes(survey.measures, pieces, given)

    def trained(self) -> str:
        (height, width), side = self.extent, self.tile[0]
        span = f", values {self.value_range[0]:g} to {self.value_range[1]:g}" if self.value_range else ""
        pieces = f"{math.prod(self.grid)} pieces of {side}×{side}"
        return f"{width}×{height} px, {colours(self.channels)}{span}, {pieces}"

    def cell(self, value: Any) -> dict[str, Any]:
        """Also a PIL picture, or an array `[h w]`, `[h w c]` or `[c h w]` of integers or floats."""
        from PIL import Image as pillow

        if isinstance(value, (dict, bytes, bytearray, str, os.PathLike)):
            return super().cell(value)
        if not isinstance(value, pillow.Image):
            values = np.asarray(value)
            if values.ndim == 2 and values.shape[1] in (3, 4) and len(values) > 4:
                shape = "x".join(map(str, values.shape))
                raise ValueError(f"an array of {shape}: a row of one picture? Give a list of pictures")
            return {"bytes": from_array(values, self.channels), "path": None}
        file, known = io.BytesIO(), value.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
        value.save(file, "PNG" if known else "TIFF", exif=value.getexif(), **{"compress_level": 1} if known else {})
        return {"bytes": file.getvalue(), "path": None}

    def read(self, value):
        """`{"bytes", "path"}`, a path or a PIL picture -> a PIL picture: upright, 8 bits a channel, no transparency.

        Of one channel, a coloured picture is still RGB here: views make it grey. Where there is more than that in the
        set, `Levels` of it.
        """
        with readable():
            source, name = content(value)
            if not self.arrays and is_plain(source, name):
                return self._eight_bits(source)
            made = levels(self._raw(source, name), self.channels, self.ranges, self.percentiles)
            return made if self.arrays else as_pillow(made)

    def _eight_bits(self, source: Any):
        """Bytes of a file that Pillow reads, or a PIL picture -> a PIL picture."""
        from PIL import Image as pillow

        if self.channels == 3 and isinstance(source, bytes):
            small = small_jpeg(source)
            if small is not None and small.width * small.height <= self.max_pixels:
                return small
        with opened(source, self.max_pixels) as picture:
            turn = TURNS[orientation(picture)]
            mode = "RGBA" if self.channels == 4 else "L" if self.channels == 1 and is_grey(picture) else "RGB"
            made = convert(picture, mode, self.ranges)
        return made.transpose(pillow.Transpose[turn]) if turn else made

    def describe(self, cell) -> str:
        with readable():
            raw = self._raw(*content(cell))
        if self.arrays or raw.kind == "bytes":
            found = self.read(cell)
            if not isinstance(found, Levels):
                return f"a picture of {found.width}×{found.height}, {found.mode}"
        else:  # its range is not known yet
            levels(raw, self.channels, {}, (0, 100))
        (count, height, width), least, most = raw.values.shape, raw.values.min(), raw.values.max()
        plural = "s" if count > 1 else ""
        return f"a picture of {width}×{height}, {count} channel{plural} of {raw.values.dtype}, {least:g} to {most:g}"

    def beyond(self, sample) -> float:
        return sample.beyond if isinstance(sample, Levels) else 0.0

    def view(self, sample, spec: ViewSpec, seed: int) -> dict[str, Tensor]:
        values = sample.values if isinstance(sample, Levels) else None
        if spec.strength == "none":
            return {"data": evaluation_view(tensor(sample) if values is None else values, self)}
        if values is None and self.channels == 1 and sample.mode != "L":
            sample = sample.convert("L")
        made = sample if values is None else values
        if self.aspect == "pad":
            made = padded(made, self.extent)
        random = generator(seed, spec.index, 1)
        extent = tuple(g * t for g, t in zip(self.scaled(spec.size), self.tile, strict=True))
        size = (made.height, made.width) if values is None else made.shape[1:]
        made = cut_out(made, crop(*size, spec.scale, random), extent)
        if self.rotation or self.shift or self.zoom or self.shear:
            made = self._affine(made, random)
        if random.random() < self.flip:
            made = flipped(made)
        if spec.strength == "strong":
            views = AUGMENTATIONS[self.augmentation]
            made = distort(made, views[min(spec.index, len(views) - 1)], random)
        return {"data": tensor(made) if values is None else made.contiguous()}

    def _affine(self, sample, random):
        width, height = (sample.shape[2], sample.shape[1]) if isinstance(sample, Tensor) else sample.size
        turn, zoom, shear, right, down = random.uniform(-1, 1, 5)
        turn, zoom = math.radians(turn * self.rotation), math.exp(zoom * math.log1p(self.zoom))
        cosine, sine, shear = math.cos(turn) / zoom, math.sin(turn) / zoom, shear * self.shear
        a, b, c, d = cosine, sine + shear * cosine, -sine, cosine - shear * sine
        x, y = width / 2, height / 2
        right, down = x + right * self.shift * width, y + down * self.shift * height
        return warped(sample, (a, b, x - a * right - b * down, c, d, y - c * right - d * down))

    @torch.no_grad()
    def prepare(self, view: View) -> View:
        """Bytes `[B c h w]`, or floats in 0..1 -> patches. The order of operations is the native processor's."""
        full = 1.0 if view.data.is_floating_point() else 1 / (1 / 255)
        values = view.data.float()
        mean, std = (self._filled(each, values) * full for each in (self.mean, self.std))
        if self.channels == 1 and values.shape[1] == 3:  # an evaluation view; the export makes grey last, too
            values = sum(values[:, i : i + 1] * part for i, part in enumerate(LUMA))
        return view.replace(**self.cut(values.sub(mean).div_(std)))

    @staticmethod
    def _filled(each: list[float], like: Tensor) -> Tensor:
        """One value for each channel. Filled on the device: a copy from the host would wait for it."""
        return torch.stack([torch.full((1, 1), value, device=like.device) for value in each])

    @torch.no_grad()
    def shown(self, view: View, other: "Image") -> View:
        """Resized with bilinear weights that are smooth where it shrinks; channels as `other` has them."""
        values = self.uncut(view).float()
        values = values * self._filled(self.std, values) + self._filled(self.mean, values)
        if values.shape[1] != other.channels:
            luma = sum(values[:, i : i + 1] * part for i, part in enumerate(LUMA)) if values.shape[1] > 1 else values
            values = luma.expand(-1, other.channels, -1, -1) if 1 in (self.channels, other.channels) else values[:, :3]
        # A smaller view of the student's is as much smaller for the other.
        size = tuple(max(1, round(o * g / f)) for o, g, f in zip(other.grid, view.grid, self.grid, strict=True))
        size = tuple(n * t for n, t in zip(size, other.tile, strict=True))
        if values.shape[2:] != size:
            values = F.interpolate(values, size=size, mode="bilinear", antialias=True)
        return other.prepare(View(data=values, seed=view.seed))

    def check_shown(self, other: "Image", pieces: bool) -> None:
        super().check_shown(other, pieces)
        if other.channels == 4 and self.channels != 4:
            raise ValueError("it sees transparency, which the student does not: give modality.channels 4")
        if self.channels != other.channels and not {self.channels, other.channels} <= {1, 3, 4}:
            raise ValueError(f"it sees {other.channels} channels, the student {self.channels}: these are no colours")

    def exhibit(self, view: View, seen: Seen | None = None) -> list[Exhibit]:
        values = self.assembled(view if view.position is not None else self.prepare(view), seen)
        mean, std = (values.new_tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        colours = values * std + mean
        if self.arrays:  # few of many levels may be in use
            low, high = (mean - 3 * std).clamp(min=0), (mean + 3 * std).clamp(max=1)
            colours = (colours - low) / (high - low)
        colours = colours.clamp(0, 1)  # NaN stays
        colours = colours[:, :3] if self.channels >= 3 else colours[:, :1].expand(-1, 3, -1, -1)
        return [Exhibit(picture=one.permute(1, 2, 0).numpy()) for one in colours.cpu()]


def tensor(picture) -> Tensor:
    """PIL picture -> bytes `[c h w]`."""
    array = np.array(picture)  # a copy: the loader's tensors are written to
    return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))
