"""Picture files: what Pillow reads, DICOM, and arrays in .npy, with as many bits and channels as they have."""

import io
import os
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from triptych.modalities.archives import parted
from triptych.modalities.base import BadSample, bytes_or_path
from triptych.modalities.image_dicom import Pages, frames_of, of_dicom
from triptych.modalities.image_levels import Levels, Range, Raw, levels
from triptych.modalities.image_values import check_size, plain_values, readable

WHITE = 255  # the background that transparent pixels go over; the exported processor has the same
# How Pillow names what an EXIF tag of 1 to 8 asks for.
TURNS = (None, None, *"FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split())
NUMPY, PNG, TIFF = b"\x93NUMPY", b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
UNKNOWN = "int8 uint32 int64 uint64 float16 float64".split()  # of TIFF; Pillow refuses these, or reads others
DICOM, AT = b"DICM", 128  # the mark of a DICOM file, and where it stands


class Channels(dict):
    """Cells by the name of their column, each a channel of one picture."""


def read_raw(source: Any, name: str, channels: int, pages: Pages, max_pixels: int) -> Raw:
    """Bytes of a file of that name, or a PIL picture -> its values, upright. Raises `BadSample` or what decoders do.

    Of channels that are apart, each is read as a picture of one channel.
    """
    if isinstance(source, Channels):
        return of_channels(source, max_pixels)
    if is_plain(source, name):
        return of_pillow(source, channels, pages, max_pixels)
    if is_banded(source):
        return Raw(page_of(source, max_pixels))
    if source.startswith(NUMPY):
        made = of_array(np.load(io.BytesIO(source)), channels)
        check_size(made.values.shape[2], made.values.shape[1], max_pixels)
        return made
    return of_dicom(source, pages, max_pixels)


def is_plain(source: Any, name: str) -> bool:
    """Whether Pillow is to read it."""
    if isinstance(source, Channels):
        return False
    if not isinstance(source, bytes):
        return True
    # Before files had heads, their name alone said that they are DICOM.
    dicom = source[AT : AT + 4] == DICOM or os.path.splitext(name)[1].lower() in (".dcm", ".dicom")
    return not dicom and not source.startswith(NUMPY) and not is_banded(source)


def of_eight_bits(source: Any, name: str) -> bool:
    """Whether a file is surely one of 8 bits in at most four channels, by its head alone."""
    if not is_plain(source, name) or isinstance(source, bytes) and (source.startswith(TIFF) or is_deep_png(source)):
        return False
    with without_limits():
        return depth(as_picture(source)) is None


def may_have_pages(source: Any, name: str) -> bool:
    """Whether it is a TIFF or DICOM, by its head alone."""
    return isinstance(source, bytes) and (source.startswith(TIFF) or not is_plain(source[: AT + len(DICOM)], name))


def pages_of(source: Any, name: str) -> int:
    """How many pages a TIFF has, or frames a DICOM file; 1 of all others, whose further frames are no channels."""
    if not isinstance(source, bytes):
        return 1
    if source.startswith(TIFF):
        import tifffile

        with tifffile.TiffFile(io.BytesIO(source)) as file:
            return len(file.pages)
    return 1 if is_plain(source, name) or source.startswith(NUMPY) else frames_of(source)


def is_deep_png(source: bytes) -> bool:
    """Whether it is a PNG of 16 bits in RGB, RGBA or grey with alpha, of which Pillow gives 8."""
    return source.startswith(PNG) and source[24] == 16 and source[25] in (2, 4, 6)


def content(value: Any, most: int = -1) -> tuple[Any, str]:
    """A cell -> the bytes of its file (the first `most`, where they are read), or a PIL picture, and a name."""
    if isinstance(value, dict) and "channels" in value:
        return Channels(value["channels"]), str(value["path"])
    found = bytes_or_path(value)
    if isinstance(found, bytes):
        name = str(value.get("path") if isinstance(value, dict) else value) if value is not found else ""
        return found, (parted(name) or (name,))[0]
    if isinstance(found, (str, os.PathLike)):
        with open(found, "rb") as file:
            return file.read(most), str(found)
    return found, ""


# Channels that are apart.


def of_channels(parts: Channels, max_pixels: int) -> Raw:
    """A picture of a channel a file, in the order of the columns. They have one size, and one kind of values."""
    made: dict[str, Raw] = {}
    for name, cell in parts.items():
        with readable(f"{name}: "):
            if cell["bytes"] is None and cell["path"] is None:
                raise BadSample("nothing there")
            made[name] = read_raw(*content(cell), 1, "first", max_pixels)
            if len(made[name].values) != 1:
                raise BadSample(f"{len(made[name].values)} channels, where each column is one")
    for what, look in (
        ("sizes", lambda raw: "×".join(map(str, raw.values.shape[:0:-1]))),
        ("kinds of values", lambda raw: f"{'inverted ' * raw.inverted}{raw.kind}"),
    ):
        found = {name: look(raw) for name, raw in made.items()}
        if len(set(found.values())) > 1:
            raise BadSample(f"channels of several {what}: {', '.join(f'{n} {v}' for n, v in found.items())}")
    return Raw(np.concatenate([raw.values for raw in made.values()]), next(iter(made.values())).inverted)


# Arrays.


def of_array(values: np.ndarray, channels: int) -> Raw:
    """`[h w]`, `[h w c]` or `[c h w]`: the axis of channels is the one that is of the right length, or the shorter."""
    shape = list(values.shape)
    if values.ndim == 2:
        values = values[None]
    elif values.ndim == 3:
        first, last = shape[0], shape[2]
        is_last = last == channels or first != channels and last <= first
        values = np.moveaxis(values, 2, 0) if is_last else values
    if values.ndim != 3 or not values.size:
        raise BadSample(f"a picture is an array [height width] or [height width channels], this one is {shape}")
    return Raw(plain_values(values))


def from_array(values: np.ndarray, channels: int) -> bytes:
    """An array in memory -> the bytes of a file of the same values. `ValueError` where there is none."""
    made = io.BytesIO()
    raw = of_array(values, channels).values
    if raw.dtype == np.uint8 and len(raw) in (1, 3, 4):
        from PIL import Image as pillow

        pixels = np.ascontiguousarray(raw[0] if len(raw) == 1 else np.moveaxis(raw, 0, 2))
        pillow.fromarray(pixels).save(made, "PNG", compress_level=1)
    else:
        np.save(made, raw, allow_pickle=False)
    return made.getvalue()


# Pillow.


def of_pillow(source: Any, channels: int, pages: Pages, max_pixels: int) -> Raw:
    """Of several pages the first, or, as `channels`, all; also colours of more than Pillow can tell (`deeper`)."""
    if (values := deeper(source, channels, max_pixels)) is not None:
        return Raw(values)
    with opened(source, max_pixels) as picture:
        turn = orientation(picture)
        if pages == "channels" and getattr(picture, "n_frames", 1) > 1:
            return Raw(turned(stacked(picture, max_pixels), turn))
        if depth(picture) is None:
            picture = convert(picture, {1: "L", 4: "RGBA"}.get(channels, "RGB"))
        return Raw(turned(planes(picture), turn))


def planes(picture) -> np.ndarray:
    values = np.asarray(picture)
    return plain_values(values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0))


def stacked(picture, max_pixels: int) -> np.ndarray:
    """All pages, one after another."""
    check_size(picture.width, picture.height, max_pixels, picture.n_frames)
    made = []
    for number in range(picture.n_frames):
        picture.seek(number)
        page = picture if depth(picture) or picture.mode in ("L", "RGB", "RGBA") else convert(picture, "L")
        made.append(planes(page))
        if made[-1].shape[1:] != made[0].shape[1:]:
            raise BadSample("pages of several sizes, which cannot be channels")
    return np.concatenate(made)


def deeper(source: Any, channels: int, max_pixels: int) -> np.ndarray | None:
    """Colours of a PNG of more than the 8 bits that Pillow gives of each, `[c h w]`."""
    if not isinstance(source, bytes) or not is_deep_png(source):
        return None
    from torchvision.io import ImageReadMode, decode_png

    check_size(*(int.from_bytes(source[at : at + 4], "big") for at in (16, 20)), max_pixels)
    values = decode_png(torch.frombuffer(bytearray(source), dtype=torch.uint8), ImageReadMode.UNCHANGED).numpy()
    if len(values) in (2, 4) and channels != 4:  # over white, as of 8 bits
        alpha = values[-1:] / 65535
        return np.rint(values[:-1] * alpha + 65535 * (1 - alpha)).astype(np.uint16)
    return values[[0, 0, 0, 1]] if len(values) == 2 else values


def is_banded(source: bytes) -> bool:
    """Whether it is a TIFF with more bands, or more bits of each, than Pillow tells apart, or of numbers it has not."""
    if not source.startswith(TIFF):
        return False
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(source)) as file:
            page = file.pages[0]
    except Exception:  # Pillow says how it is damaged
        return False
    deep = page.bitspersample > 8 or 0 in page.extrasamples or page.samplesperpixel > 4
    return page.samplesperpixel > 1 and deep or str(page.dtype) in UNKNOWN


def page_of(source: bytes, max_pixels: int) -> np.ndarray:
    """The first page of a TIFF `[c h w]`, by tifffile."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(source)) as file:
        page = file.pages[0]
        check_size(page.imagewidth, page.imagelength, max_pixels)
        values = page.asarray()
    values = values[..., None] if values.ndim == 2 else values
    return plain_values(values if page.axes[0] == "S" else np.moveaxis(values, 2, 0))


@contextmanager
def opened(source: Any, max_pixels: int):
    """A PIL picture, or the bytes of its file -> the decoded picture."""
    with without_limits():
        picture = as_picture(source)
        check_size(picture.width, picture.height, max_pixels)
        picture.load()
        yield picture


def as_picture(source: Any):
    from PIL import Image as pillow

    return source if isinstance(source, pillow.Image) else pillow.open(io.BytesIO(source))


@contextmanager
def without_limits():
    """Within, Pillow's own limits give way to ours."""
    from PIL import Image as pillow
    from PIL import PngImagePlugin as png

    limits = pillow.MAX_IMAGE_PIXELS, png.MAX_TEXT_CHUNK, png.MAX_TEXT_MEMORY
    # A good picture may carry a large profile, or the prompt and workflow that it was made with.
    pillow.MAX_IMAGE_PIXELS, png.MAX_TEXT_CHUNK, png.MAX_TEXT_MEMORY = None, 2**26, 2**28
    try:
        yield
    finally:
        pillow.MAX_IMAGE_PIXELS, png.MAX_TEXT_CHUNK, png.MAX_TEXT_MEMORY = limits


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
    """The kind of a picture of more than 8 bits in one channel; None for all others."""
    return {"I": "integers", "F": "floats"}.get(picture.mode[0])


def convert(picture, mode: str, ranges: dict[str, Range] | None = None):
    """A PIL picture of any mode -> `mode` (`L`, `RGB` or `RGBA`), 8 bits a channel, transparency over white."""
    from PIL import Image as pillow

    if depth(picture) is not None:  # Pillow would cut these at 255
        picture = as_pillow(levels(Raw(planes(picture)), 1, ranges))
    if mode != "RGBA" and ("A" in picture.getbands() or picture.info.get("transparency") is not None):
        picture = picture.convert("RGBA")
        picture = pillow.alpha_composite(pillow.new("RGBA", picture.size, (WHITE,) * 4), picture)
    return picture if picture.mode == mode else picture.convert(mode)


def as_pillow(made: Levels):
    """Of 8 bits, `L`, `RGB` or `RGBA`."""
    from PIL import Image as pillow

    pixels = np.rint(made.values.numpy() * 255).astype(np.uint8)
    return pillow.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, 2)))


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """`[c h w]` as an EXIF tag of 1 to 8 asks for."""
    if orientation >= 5:
        values = values.swapaxes(1, 2)
    if orientation in (2, 3, 6, 7):
        values = values[:, :, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)
