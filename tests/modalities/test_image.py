"""Pictures of every kind: what Pillow stumbles over, deep ones by one range, and small JPEGs without Pillow."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image as pillow
from PIL import PngImagePlugin as png

from triptych.modalities import BadSample, Image
from triptych.modalities.image_file import small_jpeg


def jpeg(mode="RGB", size=(33, 47), **how) -> bytes:
    random = np.random.default_rng(0)
    coarse = pillow.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size, 3)
    noisy = np.asarray(coarse) + random.integers(-9, 9, (size[1], size[0], 3))
    file = io.BytesIO()
    pillow.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode).save(file, "JPEG", **how)
    return file.getvalue()


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 1), (7, 160)])
@pytest.mark.parametrize("quality", [20, 75, 95])
@pytest.mark.parametrize("how", [{"mode": "L"}, {"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
def test_the_pixels_are_pillow_s(how, quality, size):
    data = jpeg(size=size, quality=quality, **how)
    assert small_jpeg(data) is not None
    read = Image(8, 4).read({"bytes": data, "path": "a.jpg"})
    assert read.mode == "RGB" and read.size == size
    assert np.array_equal(read, pillow.open(io.BytesIO(data)).convert("RGB"))


def test_what_needs_pillow_is_left_to_it():
    turned = pillow.Exif()
    turned[0x0112] = 6
    for data in (jpeg("CMYK"), jpeg(exif=turned), jpeg(size=(400, 400), quality=100), jpeg()[:-40], b"\xff\xd8", b""):
        assert small_jpeg(data) is None
    assert Image(8, 4).read({"bytes": jpeg(exif=turned), "path": None}).size == (47, 33)
    with pytest.raises(BadSample, match="not a readable picture: .*truncated"):
        Image(8, 4).read({"bytes": jpeg()[:-40], "path": None})


def test_files_and_archives_are_read_too(tmp_path):
    data = jpeg()
    (tmp_path / "a.jpg").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inner/a.jpg", data)
    for path in (tmp_path / "a.jpg", f"zip://inner/a.jpg::{tmp_path}/a.zip"):
        read = Image(8, 4).read({"bytes": None, "path": str(path)})
        assert np.array_equal(read, pillow.open(io.BytesIO(data)))
    with pytest.raises(BadSample, match="no such file: .*b.jpg"):
        Image(8, 4).read(str(tmp_path / "b.jpg"))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def made_png(*before: bytes, after: bytes = b"") -> bytes:
    """20 wide and 10 high, with chunks before and after the pixels."""
    raw = b"".join(b"\0" + b"\x0a" * 60 for _ in range(10))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 10, 8, 2, 0, 0, 0))
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", head, *before, chunk(b"IDAT", zlib.compress(raw)), after, chunk(b"IEND", b""))
    )


def tags(*entries: bytes) -> bytes:
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0"


TURNED = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)


@pytest.mark.parametrize(
    ("exif", "size"),
    [
        (b"garbage!", (20, 10)),
        (b"", (20, 10)),
        (tags(TURNED), (10, 20)),
        (tags(struct.pack("<HHI4s", 0x0112, 2, 4, b"abc\0")), (20, 10)),
        (tags(struct.pack("<HHIHH", 0x0112, 3, 1, 99, 0)), (20, 10)),
        (tags(struct.pack("<HHIHH", 0x0112, 3, 2, 6, 6)), (10, 20)),
        # Values that cannot be written again, which a library that turns a picture would do.
        (tags(TURNED, struct.pack("<HHII", 0x011A, 5, 1, 9_999)), (10, 20)),
        (tags(TURNED, struct.pack("<HHII", 0x9204, 10, 3, 8)), (10, 20)),
        (tags(TURNED, struct.pack("<HHII", 0x8769, 4, 1, 4)), (10, 20)),
    ],
)
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_bad_tag_does_not_drop_a_picture(kind, exif, size):
    if kind == "png":
        data = made_png(chunk(b"eXIf", exif))
    else:
        data = jpeg(size=(20, 10), exif=b"Exif\0\0" + exif)
    assert Image(8, 4).read({"bytes": data, "path": None}).size == size


def test_pictures_with_large_or_broken_extras_are_read():
    text, many = png.PngInfo(), png.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    for i in range(80):
        many.add_text(f"{i}", "x" * 900_000, zip=True)
    limits = pillow.MAX_IMAGE_PIXELS, png.MAX_TEXT_CHUNK, png.MAX_TEXT_MEMORY
    for how in ({"pnginfo": text}, {"pnginfo": many}, {"icc_profile": b"x" * 3_000_000}):
        file = io.BytesIO()
        pillow.new("RGB", (20, 10)).save(file, "PNG", **how)
        assert Image(8, 4).read({"bytes": file.getvalue(), "path": None}).size == (20, 10)
    assert limits == (pillow.MAX_IMAGE_PIXELS, png.MAX_TEXT_CHUNK, png.MAX_TEXT_MEMORY)
    assert Image(8, 4).read({"bytes": made_png(chunk(b"iCCP", b"x\0\0none")), "path": None}).size == (20, 10)


def frame(number: int, width: int = 20, height: int = 10) -> bytes:
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, 0, 0, 1, 10, 0, 0))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "I;16"])
@pytest.mark.filterwarnings("ignore:Invalid APNG")
def test_animated_pictures_are_their_first_frame(mode):
    frames = [pillow.new("RGB", (20, 10), (v,) * 3) for v in (255, 0, 90)]
    frames = [f.convert("L").convert(mode) if mode == "I;16" else f.convert(mode) for f in frames]
    for kind, how in (("PNG", {}), ("PNG", {"default_image": True}), ("GIF", {}), ("WEBP", {"lossless": True})):
        if kind != "PNG" and mode == "I;16":
            continue
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:], **how)
        seen = np.asarray(Image(8, 4).read({"bytes": file.getvalue(), "path": None}))
        assert seen.shape == (10, 20, 3) and (seen == (1 if mode == "I;16" else 255)).all(), (kind, how)
    pixels = zlib.compress(b"".join(b"\0" + b"\x55" * 60 for _ in range(10)))
    more = frame(1) + chunk(b"fdAT", struct.pack(">I", 2) + pixels)
    for count, after in ((0, b""), (2, more), (9, more), (2, more[:-20])):  # an animation may be broken
        data = made_png(chunk(b"acTL", struct.pack(">II", count, 0)), frame(0), after=after)
        assert Image(8, 4).read({"bytes": data, "path": None}).size == (20, 10), count


def test_a_picture_that_is_too_large_names_the_setting():
    file = io.BytesIO()
    pillow.new("1", (12_000, 8_000)).save(file, "PNG")
    for most, size in ((None, "12000×8000"), (95_999_999, "12000×8000")):
        with pytest.raises(BadSample, match=f"{size} pixels, more than modality.max_pixels .*raise"):
            Image(8, 4, **({"max_pixels": most} if most else {})).read({"bytes": file.getvalue(), "path": None})
    with pytest.raises(BadSample, match="modality.max_pixels 100"):
        Image(8, 4, max_pixels=100).read({"bytes": jpeg(), "path": None})
    file = io.BytesIO()
    pillow.new("1", (19_000, 10_000)).save(file, "PNG")  # more than twice Pillow's own limit
    assert Image(8, 4, channels=1, max_pixels=2 * 10**8).read({"bytes": file.getvalue(), "path": None}).width == 19_000


def deep(values: np.ndarray) -> dict:
    file = io.BytesIO()
    pillow.fromarray(values).save(file, "TIFF")
    return {"bytes": file.getvalue(), "path": None}


RAMP = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (4, 1))


@pytest.mark.parametrize(
    ("values", "bounds"),
    [
        (RAMP, (0, 1)),
        (RAMP * 0.5, (0, 1)),
        (RAMP * 1.001, (0, 1.001)),
        (RAMP * 4095, (0, 4095)),
        (RAMP * 3 - 1, (-1, 2)),
        (RAMP * 3000, (0, 4095)),
        ((RAMP * 3000 - 100).astype(np.int32), (-100, 2900)),
        ((RAMP * 3000 - 1000).astype(np.int32), (-1024, 3071)),
        ((RAMP * 4000 - 2000).astype(np.int16), (-1024, 3071)),
        ((RAMP * 255).astype(np.int32), (0, 255)),
        ((RAMP * 4095).astype(np.uint16), (0, 4095)),
        ((RAMP * 3000).astype(np.uint16), (0, 4095)),
        ((RAMP * 65535).astype(np.uint16), (0, 65535)),
    ],
)
def test_deep_pictures_have_one_range_and_it_is_said(values, bounds, tmp_path):
    modality = Image(8, 4, channels=1)
    rows = [
        {"image": deep(values * 0 + values.min())},
        {"image": {"bytes": b"none", "path": None}},
        {"image": deep(values)},
    ]
    note = modality.fit(rows, "image")
    name, kind = ("float_range", "floats") if values.dtype == np.float32 else ("value_range", "integers")
    assert getattr(modality, name) == pytest.approx(bounds, rel=1e-6) and f"modality.{name}" in note
    low, high = bounds
    wanted = ((values.astype(float) - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(modality.read(rows[2]["image"]).values[0], wanted, atol=1e-6)
    modality.save(str(tmp_path))  # and the run that continues, and the probe, have the same
    again = Image(8, 4, channels=1)
    again.load(str(tmp_path))
    assert again.ranges == modality.ranges and (again.mean, again.std) == (modality.mean, modality.std)
    both = [wanted, wanted * 0 + wanted.min()] if values.min() >= low else [wanted]  # what is beyond is bad
    assert modality.mean == pytest.approx([np.mean(both)], abs=0.01)
    # The user's word goes before.
    own = Image(8, 4, channels=1, value_range=(low, low + 2 * (high - low)))
    assert "modality.value_range" in own.fit(rows, "image") or kind == "floats"
    inner = (values >= low) & (values <= high)
    np.testing.assert_allclose(own.read(rows[2]["image"]).values[0].numpy()[inner], wanted[inner] / 2, atol=1e-6)


def test_a_picture_beyond_the_range_is_bad():
    modality = Image(8, 4, value_range=(0, 4095))
    with pytest.raises(
        BadSample, match="values 0 to 65535, beyond the range 0 to 4095: give a wider one, --modality.value"
    ):
        modality.read(deep((RAMP * 65535).astype(np.uint16)))
    hot = (RAMP * 4095).astype(np.uint16)
    hot[0, 0] = 65535  # one pixel is no other range
    read = modality.read(deep(hot))
    assert read.values.max() == 1 and modality.beyond(read) == 1 / hot.size
    with pytest.raises(BadSample, match="values 0 to 100, beyond the range 0 to 1"):  # not one of the rows looked at
        Image(8, 4).read(deep(RAMP * 100))
    with pytest.raises(BadSample, match="not finite"):
        Image(8, 4).read(deep(RAMP * np.nan))
    assert Image(8, 4).fit([{"image": {"bytes": jpeg(), "path": None}}], "image") is None
    with pytest.raises(ValueError, match="value_range .*darkest value first"):
        Image(8, 4, value_range=(1, 0))
