"""Of a model card: how files with more than 8 bits or other channels become the arrays that the processor takes."""

import re
from collections.abc import Sequence

from triptych.modalities.image_file import UNKNOWN
from triptych.modalities.image_processor import white_of

COLOUR = """    elif path.endswith((".tif", ".tiff")) and is_deep(page := tifffile.TiffFile(path).pages[0]):
        values = page.asarray()
        values = np.moveaxis(values, 0, 2) if page.axes[0] == "S" else values
"""
IS_WIDE = """def is_wide(found):  # Pillow has 8 bits of colours
    return len(found) > 1 and found.dtype == torch.uint16


"""
IS_DEEP = f"""def is_deep(page):  # Pillow has 8 bits of each band, and at most four
    deep = page.bitspersample > 8 or 0 in page.extrasamples or page.samplesperpixel > 4
    return page.samplesperpixel > 1 and deep or str(page.dtype) in "{" ".join(UNKNOWN)}".split()


"""
PNG = """    elif path.endswith(".png") and is_wide(found := decode_image(path, "UNCHANGED")):
        values = np.moveaxis(found.numpy(), 0, 2)
"""
OF_ALPHA = {
    False: """        if values.shape[2] in (2, 4):  # over white
            alpha = values[..., -1:] / 65535
            values = np.rint(values[..., :-1] * alpha + 65535 * (1 - alpha)).astype(np.uint16)
""",
    True: "        values = values[..., [0, 0, 0, 1]] if values.shape[2] == 2 else values\n",
}
OVER_WHITE = """        if picture.mode[0] not in "IF":  # 8 bits
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture).convert("{mode}")
"""
WITH_ALPHA = """        picture = picture if picture.mode[0] in "IF" else picture.convert("RGBA")
"""
OF_CHANNELS = {
    1: "    share = np.tensordot((0.299, 0.587, 0.114), share, 1)[None] if len(share) == 3 else share\n",
    3: "    share = np.repeat(share, 3, 0) if len(share) == 1 else share\n",
    4: """    share = np.repeat(share, 3, 0) if len(share) == 1 else share
    share = np.concatenate([share, np.ones_like(share[:1])]) if len(share) == 3 else share
""",
}
SNIPPET = """import numpy as np
import torch
{imports}from transformers import AutoModel, {{processor}}

folder = "{{folder}}"  # of these files, or their name on the hub
processor, model = {{processor}}.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype="float32")


{is_deep}def read(path):
    # An array [channels, height, width]: 0 is black, {white} white. A pipeline would make 8 bits of it.
    path, inverted = str(path), False
    if path.endswith(".npy"):
        values = np.load(path)
    elif path.endswith(".dcm"):  # pip install pydicom
        import pydicom
        from pydicom.pixels import apply_modality_lut, pixel_array

        data = pydicom.dcmread(path)
        values = apply_modality_lut(pixel_array(data{index}), data)
        values = values if (values % 1).any() else values.astype(values.dtype if values.dtype == np.uint8 else np.int32)
        inverted = data.PhotometricInterpretation == "MONOCHROME1"
{deep}    else:
{pillow}    if values.ndim == 2:
        values = values[None]
    elif values.shape[2] == {channels} or len(values) != {channels} and values.shape[2] <= len(values):
        values = np.moveaxis(values, 2, 0)
    if values.dtype == np.uint8:
        share = values / 255
    else:
        low, high = {bounds}
        share = ((values.astype(float) - low) / (high - low)).clip(0, 1)
    share = 1 - share if inverted else share
{of_channels}    return {times}share.astype(np.float32)


def features(values):
    inputs = processor(values, input_data_format="channels_first", return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    return {{pooled}}[0]


print(features({white} * np.random.rand({whole}, 240, 320)).shape)  # of yours: features({example})
"""


def snippet(image, columns: Sequence[str] = ()) -> str:
    """Code of a card, yet without folder, processor and pooling, which are the same for all.

    `columns`: where each of them holds one channel, a file is read as one.
    """
    channels, ranges = 1 if columns else image.channels, image.ranges
    files = ", ".join(f'read("{re.sub(r"[^0-9A-Za-z_.-]", "_", name)}.png")' for name in columns)
    imports = "from PIL import Image, ImageOps\n"
    if image.pages == "channels":
        imports = "from PIL import Image, ImageSequence\n"
        pillow = "        frames = ImageSequence.Iterator(Image.open(path))\n"
        pillow += "        values = np.stack([np.asarray(frame) for frame in frames])\n"
    else:
        pillow = "        picture = ImageOps.exif_transpose(Image.open(path))\n"
        pillow += WITH_ALPHA if channels == 4 else OVER_WHITE.format(mode="L" if channels == 1 else "RGB")
        pillow += "        values = np.asarray(picture)\n"
    deep = COLOUR + (PNG + OF_ALPHA[channels == 4] if channels in (1, 3, 4) else "")
    imports = "import tifffile\n" + imports
    imports += "from torchvision.io import decode_image\n" if PNG in deep else ""
    if image.percentiles is not None:
        bounds = "np.percentile(values, ({:g}, {:g}))".format(*image.percentiles)
    else:
        integers, floats = (f"({low:.15g}, {high:.15g})" for low, high in (ranges["integers"], ranges["floats"]))
        bounds = f'{floats} if values.dtype.kind == "f" else {integers}'
    white = f"{white_of(*(getattr(image, name) for name in ('value_range', 'float_range', 'percentiles'))):.15g}"
    return SNIPPET.format(
        imports=imports,
        is_deep=IS_DEEP + (IS_WIDE if PNG in deep else ""),
        deep=deep,
        pillow=pillow,
        channels=channels,
        bounds=bounds,
        white=white,
        times=f"{white} * " if white != "1" else "",
        index="" if image.pages == "channels" else ", index=0",
        of_channels="" if columns else OF_CHANNELS.get(channels, ""),
        whole=image.channels,
        example=f"np.concatenate([{files}])" if columns else 'read("scan.png")',
    )


def arrays_facts(image, columns: Sequence[str] = ()) -> dict[str, str]:
    """What a user must know of the input."""
    facts = {"Channels": f"{image.channels}"} if image.channels not in (1, 3) else {}
    if columns:
        facts["Channels"] = f"{', '.join(columns)}, in this order, each in a file of its own"
    if image.percentiles is not None:
        facts["More than 8 bits a channel"] = (
            "percentiles {:g} and {:g} of each picture are its black and white".format(*image.percentiles)
        )
    else:
        said = [
            f"{low:.15g} is black and {high:.15g} white in pictures of {kind}"
            for kind, (low, high) in image.ranges.items()
        ]
        facts["More than 8 bits a channel"] = f"{'; '.join(said)}; what is beyond is clipped, and 8 bits are 0 to 255"
    facts["Arrays, no pipeline"] = (
        "the processor takes arrays, as the lines below read them. A stock pipeline opens a file as 8 bits, and few "
        "levels of it are left"
    )
    return facts
