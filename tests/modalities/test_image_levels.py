"""Levels: what a deep picture has reaches the model, in views as in evaluation, and one recipe serves both kinds."""

import io
import sys

import numpy as np
import pytest
import support
import tifffile
import torch
from PIL import Image as pillow
from transformers import AutoImageProcessor

from triptych.modalities import EVALUATION, BadSample, Image, ViewSpec
from triptych.modalities.hashing import generator
from triptych.modalities.image_file import of_eight_bits, read_raw
from triptych.modalities.image_levels import Looked, Raw
from triptych.modalities.image_views import AUGMENTATIONS, Strong, distort, warped


def cell(values: np.ndarray) -> dict:
    file = io.BytesIO()
    pillow.fromarray(values).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def seen(image: Image, sample) -> torch.Tensor:
    made = [image.view(sample, EVALUATION, 0)]
    return image.uncut(image.prepare(image.collate(made, torch.zeros(1, dtype=torch.long))))


# A tenth of 12 bits, as soft tissue has it: 8 bits leave 19 levels of it.
FAINT = np.linspace(1000, 1299, 64 * 64).astype(np.uint16).reshape(64, 64)


def test_the_levels_of_a_picture_of_12_bits_reach_the_model(tmp_path):
    image = Image(64, 16, channels=1)
    rows = [{"image": cell(FAINT)}, {"image": cell((FAINT % 2 * 3000).astype(np.uint16))}]
    assert "0 is black and 4095 white in all" in image.fit(rows, "image")
    assert len(seen(image, image.read(rows[0]["image"])).unique()) == 300
    for which in (image, Image(64, 16)):
        assert which.describe(rows[0]["image"]) == "a picture of 64×64, 1 channel of uint16, 1000 to 1299"
    view = image.view(image.read(rows[0]["image"]), ViewSpec(), 3)["data"]
    assert len(view.unique()) == 300
    image.save(str(tmp_path))
    stock = AutoImageProcessor.from_pretrained(tmp_path)
    assert stock.rescale_factor == 1 / 4095 and not stock.do_convert_rgb
    theirs = stock(FAINT.astype(np.float32)[None], input_data_format="channels_first", return_tensors="pt")
    torch.testing.assert_close(theirs["pixel_values"], seen(image, image.read(rows[0]["image"])), atol=1e-6, rtol=1e-5)
    assert len(np.unique(theirs["pixel_values"])) == 300


def test_8_bits_stay_0_to_255_in_a_mixed_set_and_alone_are_bytes():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    alone, mixed = Image(16, 4, channels=1), Image(16, 4, channels=1)
    assert alone.fit([{"image": cell(ramp)}], "image") is None and alone.mean == [0.5]
    assert alone.view(alone.read(cell(ramp)), ViewSpec(), 0)["data"].dtype == torch.uint8
    note = mixed.fit([{"image": cell(ramp)}, {"image": cell(FAINT)}], "image")
    assert "1 of 8 bits: 0 is black and 255 white" in note and "999" not in note
    np.testing.assert_array_equal(mixed.read(cell(ramp)).values[0], ramp / np.float32(255))


def test_one_deep_picture_among_hundreds_is_found(tmp_path):
    """Or it would be read as 0 to 65535, nearly black, without a word."""
    ramp, rows = np.arange(256, dtype=np.uint8).reshape(16, 16), []
    for i in range(400):
        pillow.fromarray(FAINT if i == 211 else ramp).save(tmp_path / f"{i}.png")
        rows.append({"image": str(tmp_path / f"{i}.png")})
    mixed = Image(16, 4, channels=1)
    assert "1 of integers of more than 8 bits, 1000 to 1299" in mixed.fit(rows, "image")
    assert mixed.value_range == (0, 4095)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_pillow_would_cut_is_read_whole_or_refused(channels):
    """Colours of 16 bits lose half of them in Pillow, grey with alpha too; of bands it takes some; -1 becomes 255."""
    image, grey = Image(16, 4, channels=channels), np.tile(FAINT[:16, :16, None], 3)
    most = int(grey.max())
    with_alpha = np.dstack([grey[..., 0], grey[..., 0] * 0 + 65535])
    for made in (support.deep_png(grey), support.deep_png(with_alpha), tiff(grey), tiff(FAINT[:16, :16].astype("u4"))):
        found = read_raw(made, "", channels, "first", 10**6)
        assert not of_eight_bits(made, "") and (found.values.max(), found.kind) == (most, "integers")
        fresh = Image(16, 4, channels=channels)
        assert f"1000 to {most}" in fresh.fit([{"image": {"bytes": made, "path": None}}], "image")
    bands = np.tile(np.arange(16, dtype=np.uint8)[:, None, None], (1, 16, 5))
    with pytest.raises(BadSample, match=f"5 channels, where modality.channels is {channels}"):
        image.read({"bytes": tiff(bands, photometric="rgb", extrasamples=(0, 0)), "path": None})
    assert read_raw(tiff(np.full((4, 4), -1, np.int8)), "", channels, "first", 99).values.min() == -1
    file = io.BytesIO()
    np.save(file, np.ones((10, 10)))
    with pytest.raises(BadSample, match="10×10 pixels, more than modality.max_pixels 99"):
        read_raw(file.getvalue(), "", channels, "first", 99)


def tiff(values: np.ndarray, **how) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **({"photometric": "rgb"} if values.ndim == 3 else {}) | how)
    return file.getvalue()


def test_rows_of_8_bits_are_not_decoded_to_be_looked_at(monkeypatch):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    monkeypatch.setattr(Image, "_raw", None)
    for made in (ramp, np.stack([ramp] * 3, 2), np.stack([ramp] * 4, 2)):
        assert Image(16, 4).fit([{"image": cell(made)}, {"image": {"bytes": b"none", "path": None}}], "image") is None


def test_what_the_range_leaves_unseen_is_said():
    text = [{"image": cell(np.where(np.arange(4096).reshape(64, 64) < 2, 65535, FAINT).astype(np.uint16))}]
    image = Image(64, 16, channels=1)
    assert "999 of 1,000 values are at most 1298" in image.fit(text, "image") and image.value_range == (0, 65535)
    own = Image(64, 16, channels=1, value_range=(0, 4095))
    assert "0.00049 of their values are beyond, and clipped" in own.fit(text, "image")
    with pytest.raises(ValueError, match="percentiles are of each picture"):
        Image(64, 16, channels=1, value_range=(0, 1), percentiles=(1, 99))


def test_percentiles_are_of_each_picture():
    image = Image(64, 16, channels=1, percentiles=(0, 100))
    assert "percentiles 0 and 100" in image.fit([{"image": cell(FAINT)}], "image")
    for values in (FAINT, FAINT * 3):
        read = image.read(cell(values)).values
        assert (read.min(), read.max()) == (0, 1) and not image.beyond(image.read(cell(values)))
    assert image.read(cell(FAINT * 0 + 7)).values.max() == 0


def test_each_channel_has_its_mean_and_deviation(tmp_path):
    random = np.random.default_rng(0)
    values = np.stack([random.normal(m, s, (64, 64)) for m, s in ((500, 50), (2000, 400), (100, 0))], 2).clip(0, 4000)
    five = np.concatenate([values, values[..., :2]], 2).astype(np.uint16)
    image = Image(64, 16, channels=5)
    image.fit([{"image": image.cell(five)}], "image")
    assert image.mean == pytest.approx(np.array([500, 2000, 100, 500, 2000]) / 4095, abs=0.002)
    assert image.std == pytest.approx([*np.array([50, 400]) / 4095, 1, *np.array([50, 400]) / 4095], abs=0.002)
    given = Image(64, 16, channels=5, mean=0.5)
    given.fit([{"image": image.cell(five)}], "image")
    assert given.mean == [0.5] * 5 and given.std == image.std
    made = [image.view(image.read(image.cell(five)), EVALUATION, 0)]
    values_seen = image.exhibit(image.collate(made, torch.zeros(1, dtype=torch.long)))[0].picture
    assert values_seen.shape == (64, 64, 3) and 0.3 < values_seen[..., 0].mean() < 0.7  # not nearly black
    with pytest.raises(ValueError, match="it sees 3 channels, the student 5"):
        image.check_shown(Image(64, 16), False)
    with pytest.raises(BadSample, match="3 channels, where modality.channels is 5"):
        image.read(image.cell(values.astype(np.uint16)))


# Views.


@pytest.mark.parametrize("aspect", ["squeeze", "pad"])
def test_a_view_of_an_array_is_that_of_a_picture(aspect):
    """The same seed crops, turns and flips both alike; what differs is the filters' rounding."""
    yy, xx = np.mgrid[:90, :60]
    smooth = (127 + 60 * np.sin(yy / 14) + 60 * np.cos(xx / 11)).astype(np.uint8)
    how = {"rotation": 20.0, "shift": 0.1, "zoom": 0.2, "aspect": aspect}
    bytes_, array = Image(32, 8, channels=1, **how), Image(32, 8, channels=1, value_range=(0, 4095), **how)
    for seed in range(8):
        spec = ViewSpec(scale=(0.4, 1.0))
        ours = array.view(array.read(cell(smooth)), spec, seed)["data"]
        theirs = bytes_.view(bytes_.read(cell(smooth)), spec, seed)["data"] / 255
        assert ours.shape == theirs.shape and (ours - theirs)[:, 4:-4, 4:-4].abs().median() < 0.01, seed
        assert (ours - theirs).abs().mean() < 0.03


@pytest.mark.parametrize("recipe", AUGMENTATIONS)
def test_an_array_is_distorted_as_a_picture_is(recipe):
    random = np.random.default_rng(0)
    blocks = np.kron(random.integers(40, 200, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    array = torch.from_numpy(blocks.transpose(2, 0, 1) / np.float32(255))
    for strong in AUGMENTATIONS[recipe]:
        for seed in range(12):
            theirs = np.asarray(distort(pillow.fromarray(blocks), strong, generator(seed, 5)))
            ours = distort(array, strong, generator(seed, 5)).numpy().transpose(1, 2, 0)
            assert np.abs(ours * 255 - theirs).mean() < 4, seed


def test_an_array_of_five_channels_keeps_its_colours_apart():
    five = torch.rand(5, 16, 16)
    strong = Strong(0.4, 0.4, 0.4, 0.1, jitter=1, grey=1, blur=1, solarize=1)
    made = distort(five, strong, generator(0, 5))
    assert made.shape == five.shape and 0 <= made.min() and made.max() <= 1
    assert warped(five, (1, 0, 0, 0, 1, 0)).sub(five).abs().max() < 1e-5


# DICOM.


def test_dicom_is_read_by_slope_and_photometric_interpretation():
    values = np.arange(4096).reshape(64, 64)
    image = Image(64, 16, channels=1, value_range=(0, 4095))

    def read(*a, **k):
        return image.read({"bytes": support.dicom(*a, **k), "path": None}).values[0].numpy() * 4095

    np.testing.assert_allclose(read(values), values, atol=1e-3)
    np.testing.assert_allclose(read(values, "MONOCHROME1"), 4095 - values, atol=1e-3)
    np.testing.assert_allclose(read(values // 2, RescaleSlope=2, RescaleIntercept=1), values // 2 * 2 + 1, atol=1e-3)
    half = image.read({"bytes": support.dicom(np.stack([values] * 3), RescaleSlope=0.5), "path": None})
    assert half.values.shape == (1, 64, 64) and half.beyond == 0
    ct = Image(64, 16, channels=1)
    note = ct.fit([{"image": {"bytes": support.dicom(values, RescaleIntercept=-1024), "path": None}}], "image")
    assert ct.value_range == (-1024, 3071) and "-1024 is black and 3071 white" in note
    grey = Image(64, 16, channels=1)
    small = {"bytes": support.dicom(values % 256, "MONOCHROME1", bits=8), "path": None}
    assert grey.fit([{"image": small}], "image") is None
    np.testing.assert_array_equal(grey.read(small), 255 - values % 256)
    volume = Image(64, 16, channels=3, pages="channels", value_range=(0, 4095))
    assert volume.read({"bytes": support.dicom(np.stack([values] * 3)), "path": None}).values.shape == (3, 64, 64)


def test_pages_that_are_not_read_are_said(tmp_path):
    """Six bands that a program wrote as pages were trained as one grey picture, without a word."""
    deep = np.arange(6 * 64, dtype=np.uint16).reshape(6, 8, 8)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="minisblack")
    tifffile.imwrite(tmp_path / "bytes.tif", deep[:2].astype(np.uint8), photometric="minisblack")
    (tmp_path / "frames.dcm").write_bytes(support.dicom(deep[:3].astype(int)))
    files = {name: {"bytes": None, "path": str(tmp_path / name)} for name in ("deep.tif", "bytes.tif", "frames.dcm")}
    for names, said in (
        (["deep.tif"], "1 of 1 files have 6 pages or frames, of which the first is the picture"),
        (["bytes.tif"], "1 of 1 files have 2 pages"),
        (["frames.dcm"], "1 of 1 files have 3 pages or frames"),
        (list(files), "3 of 3 files have 2 to 6 pages or frames"),
    ):
        assert said in Image(8, 4, channels=1).fit([{"image": files[name]} for name in names], "image")
    whole = Image(8, 4, channels=6, pages="channels").fit([{"image": files["deep.tif"]}], "image")
    assert "pages" not in whole
    assert Image(8, 4, channels=1).fit([{"image": cell(deep[0].astype(np.uint8))}], "image") is None


def test_dicom_without_pydicom_and_dicom_without_a_picture_are_one_line(monkeypatch):
    image, found = Image(64, 16, channels=1), support.dicom(np.zeros((8, 8), int), PatientName="Doe^Jane")
    cut = found[: found.index(b"\xe0\x7f\x10\x00") + 4]
    with pytest.raises(BadSample, match=r"^DICOM (without a picture|that cannot be read \(\w+\))$"):
        image.read({"bytes": cut, "path": "Doe.dcm"})
    with pytest.raises(BadSample, match=r"^DICOM that cannot be read \(\w+\)$|^DICOM without a picture$"):
        image.read({"bytes": b"Doe^Jane", "path": "a.dcm"})
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match="^DICOM, which pydicom reads: pip install pydicom$"):
        image.fit([{"image": {"bytes": found, "path": None}}], "image")


def test_a_value_far_from_all_others_is_pointed_at():
    random, looked = np.random.default_rng(0), Looked()
    values = random.integers(0, 3000, (1, 40, 40)).astype(np.int16)
    values[:, :9] = -9999  # where a satellite saw nothing
    looked.add(Raw(values))
    said = looked.describe("integers", looked.range("integers"), False, None)
    least, most = values[values > -9999].min(), values.max()
    assert f"-9999 is far from all other values, {least} to {most}: if it marks what is missing, give" in said
    assert said.endswith(f"--modality.value_range {least},{most}")
    for some, marked in (
        ([0, 3000, 3500, 4000], True),
        ([-2000, -1000, 0, 900, 1500], False),
        ([0, 4095, 4095], False),
    ):
        looked = Looked()
        looked.add(Raw(np.array(some, np.int16).reshape(1, 1, -1)))
        assert (looked.marker("integers") is not None) == marked, some
