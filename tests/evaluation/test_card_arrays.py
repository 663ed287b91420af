"""Cards of encoders of arrays: their lines and the stock processor make our pixels of every kind of file."""

import numpy as np
import pytest
import support
import tifffile
import torch
from PIL import Image as pillow
from transformers import AutoImageProcessor

from triptych.evaluation.card_arrays import snippet
from triptych.modalities import EVALUATION, BadSample, Image


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    deep = random.integers(0, 5000, (20, 30)).astype(np.uint16)
    turned = pillow.Exif()
    turned[0x0112] = 6
    for mode, bands in (("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4), ("CMYK", 4)):
        pixels = random.integers(0, 256, (20, 30, bands), dtype=np.uint8)
        pillow.fromarray(pixels[..., 0] if bands == 1 else pixels, mode).save(folder / f"{mode}.tif")
    pillow.open(folder / "RGB.tif").quantize(16).save(folder / "palette.png", transparency=3)
    pillow.fromarray(deep).save(folder / "deep.png", exif=turned)
    pillow.fromarray(deep.astype(np.int32)).save(folder / "deep.tif")
    pillow.fromarray(random.uniform(-0.1, 1.1, (20, 30)).astype(np.float32)).save(folder / "floats.tif")
    pages = [pillow.fromarray(deep + i) for i in range(5)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    np.save(folder / "bytes.npy", (deep // 20).astype(np.uint8))
    np.save(folder / "one.npy", deep[..., None].astype(np.int64))
    for count in (3, 5):
        values = random.integers(0, 5000, (count, 20, 30)).astype(np.uint16)
        np.save(folder / f"first{count}.npy", values)
        np.save(folder / f"last{count}.npy", np.moveaxis(values, 0, 2) / 5000)
        how = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(folder / f"last{count}.tif", np.moveaxis(values, 0, 2), **how)
        tifffile.imwrite(folder / f"first{count}.tif", values, photometric="minisblack", planarconfig="separate")
    colours = support.deep_png(random.integers(0, 2**16, (20, 30, 3)))
    (folder / "colours.png").write_bytes(colours)
    (folder / "alpha.png").write_bytes(support.deep_png(random.integers(0, 2**16, (20, 30, 2))))
    tifffile.imwrite(folder / "wide.tif", deep.astype(np.uint32))
    (folder / "white.dcm").write_bytes(support.dicom(deep % 4096, "MONOCHROME1"))
    (folder / "ct.dcm").write_bytes(support.dicom(deep.astype(int) - 2000, bits=16, RescaleIntercept=-24))
    (folder / "small.dcm").write_bytes(support.dicom(deep // 20, "MONOCHROME1", bits=8))
    (folder / "frames.dcm").write_bytes(support.dicom(np.stack([deep % 4096] * 5), RescaleSlope=0.5))
    return folder


@pytest.mark.parametrize(
    "settings, least",
    [
        ({"channels": 1, "value_range": (0, 4095), "float_range": (0, 1)}, 18),
        ({"channels": 1, "value_range": (-1024, 3071), "aspect": "pad", "rescale": "before"}, 18),
        ({"channels": 1, "percentiles": (1, 99), "resample": "bicubic", "edge": 1.25}, 18),
        ({"channels": 3, "float_range": (0, 1), "aspect": "crop", "mean": [0.2, 0.3, 0.4]}, 18),
        ({"channels": 4, "value_range": (0, 4095), "float_range": (0, 1)}, 18),
        ({"channels": 5, "value_range": (0, 4095), "float_range": (0, 1)}, 4),
        ({"channels": 5, "value_range": (0, 4095), "float_range": (0, 2047), "pages": "channels"}, 4),
    ],
)
def test_the_lines_of_a_card_and_the_stock_processor_make_our_pixels(settings, least, files, tmp_path):
    image = Image((24, 32), 8, **settings)
    image.save(str(tmp_path))
    code = snippet(image).format(processor="AutoImageProcessor", folder=tmp_path, pooled="hidden[:, 0]")
    scope: dict = {}
    exec(code.replace('AutoModel.from_pretrained(folder, dtype="float32")', "None").partition("def features")[0], scope)
    processor, equal = AutoImageProcessor.from_pretrained(tmp_path), []
    for file in sorted(files.iterdir()):
        try:
            sample = image.read(str(file))
        except BadSample as error:
            said = ("channels, where modality.channels is", "beyond the range", "unknown raw mode", "no format that")
            assert any(words in str(error) for words in said), (file, error)
            continue
        view = image.prepare(image.collate([image.view(sample, EVALUATION, 0)], torch.zeros(1, dtype=torch.long)))
        theirs = processor(scope["read"](file), input_data_format="channels_first", return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(theirs, image.uncut(view), atol=2e-6, rtol=1e-5, msg=lambda m, f=file: f"{f}: {m}")
        equal.append(file.name)
    assert len(equal) >= least, equal
