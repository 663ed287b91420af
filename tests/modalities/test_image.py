"""Reading small JPEGs without Pillow gives what Pillow gives."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image as pillow

from modalities import BadSample, Image
from modalities.image import small_jpeg


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
