"""Pictures: decoded from bytes, cropped and augmented in the workers, cut into square patches on the device."""

import io
import math
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.modalities.base import BadSample, Grid, bytes_or_path
from triptych.modalities.domains import Count, Each, NotNegative, Number, Part, Probability, Within
from triptych.modalities.exhibit import Exhibit, Seen
from triptych.modalities.hashing import generator
from triptych.modalities.image_processor import evaluation_view, processor_of
from triptych.modalities.view import View, ViewSpec

LOOKED_AT = 32  # rows from which the range of deep pictures is taken
TURNS = (None, None, *"FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split())
LUMA = (0.299, 0.587, 0.114)  # parts of red, green and blue in grey, as Pillow has them
WHITE = 255  # the background that transparent pixels go over; the exported processor has the same


@dataclass(frozen=True)
class Strong:
    """Strengths and probabilities of the strong augmentation of one view (SimCLR appendix A; BYOL appendix B)."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    solarize: float = 0.0


# One entry a view; the last serves all further ones.
AUGMENTATIONS = {
    "light": (Strong(),),
    "simclr": (Strong(0.8, 0.8, 0.8, 0.2, blur=0.5),),
    "byol": (Strong(0.4, 0.4, 0.2, 0.1, blur=1.0), Strong(0.4, 0.4, 0.2, 0.1, blur=0.1, solarize=0.2)),
}


class Image(Grid):
    """Pictures of any kind that Pillow reads, as patches of a fixed-size grid.

    Args:
        image_size: height and width of the full view in pixels; one number for a square.
        patch_size: side of a patch in pixels; divides `image_size`.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA, alpha kept).
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
        mean: value that is subtracted after scaling to 0..1, for all channels or one for each.
        std: value that is then divided by, for all channels or one for each.
        value_range: values that become black and white, of pictures with more than 8 bits a channel. Default: 0 and the
            largest value of as many bits as some rows use (of floats, the least and largest value of these rows).
        max_pixels: pixels of a picture at most; one with more is not read, for it may be an attack on the memory.
        resample: filter by which the evaluation view is resized.
        edge: side to which the evaluation view is resized, over that of the view; what is more is cut off all around.
        aspect: the evaluation view is resized to `squeeze` all of the picture into the view's aspect, or to `keep` its
            own, and loses its ends.
        rescale: values are brought to 0..1 `after` the evaluation view is resized, or `before`, so that none is
            rounded.
        registers: tokens without a place, of families that have such. Default: what the family is published with.
        table_side: side, in patches, of the table of places, of families that interpolate it for every view.
            Default: the view's.
    """

    features = ("Image",)
    sizes = ("image_size", "patch_size", "channels")
    suffixes = tuple(".jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .jp2 .avif .ico .tga".split())

    def __init__(
        self,
        image_size: Annotated[int | tuple[int, int], Each("[1, inf)")] = 224,
        patch_size: Count = 16,
        channels: Literal[1, 3, 4] = 3,
        positions: Literal["fixed", "learned"] = "fixed",
        target: Literal["normalised", "raw", "absolute"] = "normalised",
        variance_floor: NotNegative = 1e-6,
        flip: Probability = 0.5,
        rotation: Annotated[float, Within("[0, 180]")] = 0.0,
        shift: Part = 0.0,
        zoom: Annotated[float, Within("[0, 9]")] = 0.0,
        shear: Annotated[float, Within("[0, 9]")] = 0.0,
        augmentation: Literal["light", "simclr", "byol"] = "simclr",
        mean: Annotated[float | list[float], Each("(-inf, inf)")] = 0.5,
        std: Annotated[float | list[float], Each("(0, inf)")] = 0.5,
        value_range: Annotated[tuple[float, float], Within("(-inf, inf)")] | None = None,
        max_pixels: Count = 2**30 // 12,
        resample: Literal["bilinear", "bicubic"] = "bilinear",
        edge: Annotated[float, Within("[1, 9]")] = 1.0,
        aspect: Literal["squeeze", "keep"] = "squeeze",
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
        self.channels = channels
        self.learned_positions = positions == "learned"
        self.target, self.variance_floor = target, variance_floor
        self.check_target()
        self.flip = flip
        self.rotation, self.shift, self.zoom, self.shear = rotation, shift, zoom, shear
        self.augmentation = augmentation
        self.mean, self.std = self._each("mean", mean), self._each("std", std)
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ValueError(
                f"modality.value_range {list(value_range)}: give the darkest value first, such as [0, 4095]"
            )
        if max_pixels < 1:
            raise ValueError(f"modality.max_pixels {max_pixels} is below 1; try {2**30 // 12}")
        self.resample, self.edge, self.aspect, self.rescale = resample, edge, aspect, rescale
        self.registers, self.table_side = registers, table_side
        self.published: Any = None  # the native processor that a checkpoint came with
        self.value_range, self.max_pixels = value_range and tuple(value_range), max_pixels

    def _each(self, name: str, value: float | list[float]) -> list[float]:
        """One value for each channel."""
        values = list(value) if isinstance(value, (list, tuple)) else [value] * self.channels
        if len(values) != self.channels or (name == "std" and not all(v > 0 for v in values)):
            above = " above 0" if name == "std" else ""
            raise ValueError(
                f"modality.{name} {value}: give one number{above}, or one for each of {self.channels} channels"
            )
        return values

    def processor(self):
        return processor_of(self)

    def load(self, folder: str) -> None:
        """Sizes are settings; only the pixel statistics are the processor's."""
        from transformers import AutoImageProcessor

        self.published = processor = AutoImageProcessor.from_pretrained(folder)
        if processor.do_normalize:
            self.mean, self.std = (list(each)[: self.channels] for each in (processor.image_mean, processor.image_std))
        if found := getattr(processor, "value_range", None):
            self.value_range = tuple(found)

    def fit(self, rows, column: str) -> str | None:
        """The range of values of deep pictures, one for all, from some rows; says which."""
        if self.value_range is not None:
            return None
        least, most, kinds, looked = math.inf, -math.inf, set(), min(LOOKED_AT, len(rows))
        for i in np.linspace(0, len(rows) - 1, looked).astype(int):
            try:
                with self._open(bytes_or_path(rows[int(i)][column])) as picture:
                    if (kind := depth(picture)) is not None:
                        values = np.asarray(picture)
                        kinds.add(kind)
                        least, most = min(least, float(values.min())), max(most, float(values.max()))
            except Exception:  # the loader will count and name it
                continue
        if not kinds:
            return None
        if len(kinds) > 1:
            raise ValueError(
                f"pictures of {', '.join(sorted(kinds))} in one set, values {least:g} to {most:g}: no range suits them "
                "all; give one, --modality.value_range, or keep to one kind"
            )
        if not math.isfinite(most - least):
            raise ValueError("pictures with values that are not finite: give the range, --modality.value_range")
        self.value_range = fitting(least, most, *kinds)
        black, white = self.value_range
        return (
            f"pictures of {kinds.pop()}, values {least:g} to {most:g} in {looked} rows: {black:g} is black and "
            f"{white:g} white in all of them (modality.value_range)"
        )

    def cell(self, value: Any) -> dict[str, Any]:
        """Also a PIL picture, or an array `[h w]` or `[h w c]`: of bytes, or of one channel of 16 bits or floats."""
        from PIL import Image as pillow

        if isinstance(value, (dict, bytes, bytearray, str, os.PathLike)):
            return super().cell(value)
        picture = value if isinstance(value, pillow.Image) else from_array(np.asarray(value))
        file, known = io.BytesIO(), picture.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
        picture.save(file, "PNG" if known else "TIFF", exif=picture.getexif(), **{"compress_level": 1} if known else {})
        return {"bytes": file.getvalue(), "path": None}

    def read(self, value):
        """`{"bytes", "path"}`, a path or a PIL picture -> a PIL picture: upright, 8 bits a channel, no transparency.

        Of one channel, a coloured picture is still RGB here: views make it grey.
        """
        from PIL import Image as pillow

        try:
            picture = bytes_or_path(value)
            if not isinstance(picture, pillow.Image):
                data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
                small = small_jpeg(data) if self.channels == 3 else None
                if small is not None and small.width * small.height <= self.max_pixels:
                    return small
                picture = data
            with self._open(picture) as opened:
                turn = TURNS[orientation(opened)]
                mode = "RGBA" if self.channels == 4 else "L" if self.channels == 1 and is_grey(opened) else "RGB"
                made = convert(opened, mode, self.value_range)
            return made.transpose(pillow.Transpose[turn]) if turn else made
        except BadSample:
            raise
        except FileNotFoundError as error:
            raise BadSample(f"no such file: {error.filename}") from error
        except pillow.UnidentifiedImageError as error:
            raise BadSample("not a readable picture: of no format that Pillow knows, or damaged at its head") from error
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
            raise BadSample(f"not a readable picture: {error}") from error

    @contextmanager
    def _open(self, source):
        """A decoded picture, or its bytes or path -> the decoded picture. Pillow's own limits give way to ours."""
        from PIL import Image as pillow
        from PIL import PngImagePlugin as png

        limits = pillow.MAX_IMAGE_PIXELS, png.MAX_TEXT_CHUNK, png.MAX_TEXT_MEMORY
        # A good picture may carry a large profile, or the prompt and workflow that it was made with.
        pillow.MAX_IMAGE_PIXELS, png.MAX_TEXT_CHUNK, png.MAX_TEXT_MEMORY = None, 2**26, 2**28
        try:
            if not isinstance(source, pillow.Image):
                source = pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            if source.width * source.height > self.max_pixels:
                raise BadSample(
                    f"{source.width}×{source.height} pixels, more than modality.max_pixels {self.max_pixels}; "
                    "raise that, or shrink the picture"
                )
            source.load()
            yield source
        finally:
            pillow.MAX_IMAGE_PIXELS, png.MAX_TEXT_CHUNK, png.MAX_TEXT_MEMORY = limits

    def describe(self, cell) -> str:
        picture = self.read(cell)
        return f"a picture of {picture.width}×{picture.height}, {picture.mode}"

    def view(self, sample, spec: ViewSpec, seed: int) -> dict[str, Tensor]:
        if spec.strength == "none":
            return {"data": evaluation_view(tensor(sample), self)}
        from PIL import Image as pillow

        if self.channels == 1 and sample.mode != "L":
            sample = sample.convert("L")
        random = generator(seed, spec.index, 1)
        height, width = (g * t for g, t in zip(self.scaled(spec.size), self.tile, strict=True))
        box = crop(sample.height, sample.width, spec.scale, random)
        if (sample.height, sample.width) != (height, width) or box != (0, 0, sample.width, sample.height):
            # Reading at a coarser scale first is invisible at 3 times the size, and faster on large pictures.
            gap = 3.0 if box[2] - box[0] > 6 * width else None
            sample = sample.resize((width, height), pillow.Resampling.BICUBIC, box=box, reducing_gap=gap)
        if self.rotation or self.shift or self.zoom or self.shear:
            sample = self._affine(sample, random)
        if random.random() < self.flip:
            sample = sample.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
        if spec.strength == "strong":
            views = AUGMENTATIONS[self.augmentation]
            sample = distort(sample, views[min(spec.index, len(views) - 1)], random)
        return {"data": tensor(sample)}

    def _affine(self, sample, random):
        from PIL import Image as pillow

        turn, zoom, shear, right, down = random.uniform(-1, 1, 5)
        turn, zoom = math.radians(turn * self.rotation), math.exp(zoom * math.log1p(self.zoom))
        cosine, sine, shear = math.cos(turn) / zoom, math.sin(turn) / zoom, shear * self.shear
        a, b, c, d = cosine, sine + shear * cosine, -sine, cosine - shear * sine
        x, y = sample.width / 2, sample.height / 2
        right, down = x + right * self.shift * sample.width, y + down * self.shift * sample.height
        matrix = (a, b, x - a * right - b * down, c, d, y - c * right - d * down)
        fill = tuple(int(v) for v in np.median(np.asarray(sample).reshape(-1, self.channels), axis=0))
        return sample.transform(
            sample.size, pillow.Transform.AFFINE, matrix, pillow.Resampling.BILINEAR, fillcolor=fill
        )

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

    def exhibit(self, view: View, seen: Seen | None = None) -> list[Exhibit]:
        values = self.assembled(view if view.position is not None else self.prepare(view), seen)
        mean, std = (values.new_tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        colours = (values * std + mean).clamp(0, 1)  # NaN stays
        colours = colours[:, :3] if self.channels >= 3 else colours[:, :1].expand(-1, 3, -1, -1)
        return [Exhibit(picture=one.permute(1, 2, 0).numpy()) for one in colours.cpu()]


def from_array(values: np.ndarray):
    """An array -> a PIL picture of the same values. `ValueError` where there is none."""
    from PIL import Image as pillow

    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    shape = list(values.shape)
    if values.ndim not in (2, 3) or not values.size or values.ndim == 3 and shape[2] not in (2, 3, 4):
        raise ValueError(f"a picture is an array [height width] or [height width channels], this one is {shape}")
    if values.dtype == np.float64 and values.ndim == 2:
        values = values.astype(np.float32)
    if values.dtype != np.uint8 and not (values.ndim == 2 and values.dtype in (np.bool_, np.uint16, np.float32)):
        what = "one channel" if values.ndim == 2 else f"{shape[2]} channels"
        raise ValueError(f"a picture of {what} of {values.dtype}: give uint8, or of one channel uint16 or float32")
    return pillow.fromarray(np.ascontiguousarray(values))


def small_jpeg(data: bytes):
    """Bytes -> a PIL picture where they are a small JPEG without EXIF that can be read at once; None for all others.

    torchvision decodes to the same pixels. On a picture of 32×32 Pillow takes three times as long, to parse headers.
    A later torchvision is to drop its decoders: Pillow reads all then.
    """
    if len(data) > 2**15 or data[:2] != b"\xff\xd8" or b"Exif" in data:
        return None
    from PIL import Image as pillow

    try:
        from torchvision.io import decode_jpeg

        pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except (ImportError, RuntimeError):  # if it is damaged, Pillow says how
        return None
    if pixels.shape[0] == 4:  # CMYK
        return None
    return pillow.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def tensor(picture) -> Tensor:
    """PIL picture -> bytes `[c h w]`."""
    array = np.array(picture)  # a copy: the loader's tensors are written to
    return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))


def orientation(picture) -> int:
    """How the picture is to be turned, 1 to 8, by its EXIF tag. A tag that cannot be read is none."""
    try:
        found = picture.getexif().get(0x0112, 1)
    except Exception:  # whatever a parser stumbles over in somebody's camera
        return 1
    return int(found) if found in range(1, 9) else 1


def is_grey(picture) -> bool:
    return len(picture.getbands()) == 1 and picture.mode != "P" and picture.info.get("transparency") is None


def depth(picture) -> str | None:
    """The kind of a picture of more than 8 bits a channel; None for all others."""
    if picture.mode.startswith("I;16"):
        return "16 bits"
    return {"I": "32 bits", "F": "floats"}.get(picture.mode)


def fitting(least: float, most: float, kind: str) -> tuple[float, float]:
    """The range of a set of deep pictures with such values: a whole number of bits where they are so, else they."""
    if kind == "floats" and 0 <= least <= most <= 1:
        return 0.0, 1.0
    if kind != "floats" and 0 <= least <= most < 2**16:  # of 12 bits in 16, or of 8
        return 0.0, float(next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if most < 2**bits))
    return least, max(most, math.nextafter(least, math.inf))


def convert(picture, mode: str, value_range: tuple[float, float] | None = None):
    """A PIL picture of any mode -> `mode` (`L`, `RGB` or `RGBA`), 8 bits a channel, transparency over white."""
    from PIL import Image as pillow

    if (kind := depth(picture)) is not None:  # Pillow would cut these at 255
        values = np.asarray(picture).astype(np.float64)
        if not np.isfinite(values).all():
            raise BadSample("pixels that are not finite")
        low, high = value_range or ((0.0, 1.0) if kind == "floats" else (0.0, 2.0**16 - 1))
        spare = 0.05 * (high - low)
        if ((values < low - spare) | (values > high + spare)).mean() > 0.01:
            raise BadSample(
                f"values {values.min():g} to {values.max():g}, beyond the range {low:g} to {high:g}: give a wider one, "
                "--modality.value_range"
            )
        picture = pillow.fromarray(np.rint((values - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8))
    if mode != "RGBA" and ("A" in picture.getbands() or picture.info.get("transparency") is not None):
        picture = picture.convert("RGBA")
        picture = pillow.alpha_composite(pillow.new("RGBA", picture.size, (WHITE,) * 4), picture)
    return picture if picture.mode == mode else picture.convert(mode)


def crop(height: int, width: int, scale: tuple[float, float], random) -> tuple[float, float, float, float]:
    """Box (left, top, right, bottom) of a random crop: area in `scale`, aspect 3/4 to 4/3 (Szegedy et al. 2015).

    The distribution is that of `torchvision.transforms.RandomResizedCrop`.
    """
    if tuple(scale) == (1.0, 1.0):
        return 0, 0, width, height
    for _ in range(10):
        area = height * width * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.integers(0, width - w + 1), random.integers(0, height - h + 1)
            return int(left), int(top), int(left) + w, int(top) + h
    # None fits: all of a picture that is within those aspects, or the most of the middle that is.
    w, h = min(width, round(height * 4 / 3)), min(height, round(width / (3 / 4)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def distort(picture, strong: Strong, random):
    """Colour jitter, grey, blur and solarisation, each with its own probability."""
    from PIL import Image as pillow
    from PIL import ImageEnhance, ImageFilter, ImageOps

    if picture.mode == "RGBA":
        alpha = picture.getchannel("A")
        picture = distort(picture.convert("RGB"), strong, random)
        picture.putalpha(alpha)
        return picture
    colour = picture.mode == "RGB"
    if random.random() < strong.jitter:
        for step in random.permutation(4 if colour else 2):
            if step == 0:
                picture = ImageEnhance.Brightness(picture).enhance(1 + strong.brightness * random.uniform(-1, 1))
            elif step == 1:
                picture = ImageEnhance.Contrast(picture).enhance(1 + strong.contrast * random.uniform(-1, 1))
            elif step == 2:
                picture = ImageEnhance.Color(picture).enhance(1 + strong.saturation * random.uniform(-1, 1))
            else:
                hue, saturation, value = picture.convert("HSV").split()
                turn = round(255 * strong.hue * random.uniform(-1, 1))
                hue = pillow.fromarray(np.asarray(hue) + np.uint8(turn % 256))
                picture = pillow.merge("HSV", (hue, saturation, value)).convert("RGB")
    if colour and random.random() < strong.grey:
        picture = picture.convert("L").convert("RGB")
    if random.random() < strong.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0) * min(picture.size) / 224))
    if random.random() < strong.solarize:
        picture = ImageOps.solarize(picture)
    return picture
