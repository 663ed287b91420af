"""Native image processors: what our evaluation view does of what they do, and the way back.

A processor resizes, cuts out the middle, brings bytes to 0..1 and normalises. All four are settings of `Image`. Of
pictures with more bits or other channels it is given arrays, in which 0 is black and `white_of` white.
"""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

RESAMPLE = {2: "bilinear", 3: "bicubic"}  # as Pillow numbers them
# What `Image` has of values beyond 8 bits, which goes along for whoever reads files as it was done here.
KEPT = ("value_range", "float_range", "percentiles", "pages")
# The native processors differ in this order alone, which is in their code and in no setting.
KINDS = {"after": "ViTImageProcessor", "before": "DINOv3ViTImageProcessor"}


def settings_from(processor, where: str) -> dict[str, Any]:
    """Settings of `Image` by which its evaluation view is the processor's output."""
    size, crop = processor.size or {}, (processor.crop_size if processor.do_center_crop else None)
    edge, most = size.get("shortest_edge"), (size.get("max_height"), size.get("max_width"))
    resized = most if None not in most else (size.get("height"), size.get("width"))
    white = white_of(*(getattr(processor, name, None) for name in KEPT[:3]))
    if bool(getattr(processor, "do_convert_rgb", True)):  # earlier versions made 8 bits of all
        white = 255.0
    odd = {
        "do_resize": not processor.do_resize,
        "do_rescale": not processor.do_rescale or not math.isclose(processor.rescale_factor, 1 / white),
        "do_pad": bool(getattr(processor, "do_pad", False)),
        "size": edge is None and None in resized or bool(size.get("longest_edge")),
        "crop_size": crop is None and (edge is not None or resized == most),
        "resample": processor.resample not in RESAMPLE,
    }
    settings: dict[str, Any] = {}
    if not any(odd.values()):
        extent = (crop["height"], crop["width"]) if crop else resized
        before = (edge, edge) if edge else resized
        side = (max(extent),) * 2 if edge else extent
        ratio = before[0] / side[0]
        odd["size"] = ratio < 1 or [round(ratio * s) for s in side] != list(before)
        settings = {
            "image_size": extent[0] if extent[0] == extent[1] else extent,
            "resample": RESAMPLE[processor.resample],
            "edge": ratio,
            "aspect": "crop" if edge else "pad" if resized == most else "squeeze",
            "rescale": rescaled(processor),
            "mean": one_or_each(processor.image_mean) if processor.do_normalize else 0.0,
            "std": one_or_each(processor.image_std) if processor.do_normalize else 1.0,
        }
    if any(odd.values()):
        name = next(name for name, found in odd.items() if found)
        raise ValueError(
            f"{where}: its {type(processor).__name__} has {name} {getattr(processor, name)}, which the evaluation view "
            "cannot do; start from a copy without preprocessor_config.json"
        )
    if white == 255 and not follows(processor, settings):
        raise ValueError(
            f"{where}: its {type(processor).__name__} does more to a picture than its settings of size, crop and "
            "normalisation say, which the evaluation view cannot do; start from a copy without preprocessor_config.json"
        )
    return settings


def follows(processor, settings: dict[str, Any]) -> bool:
    """Whether the processor makes of a smooth picture what those settings say, but for rounding.

    Some kinds swap colours, enlarge by a factor of their own or normalise twice, each by code or a setting of its own.
    """
    sides = settings["image_size"]
    height, width = (sides, sides) if isinstance(sides, int) else sides
    count = len(settings["mean"]) if isinstance(settings["mean"], list) else 3
    mean, std = (torch.as_tensor(settings[name]).expand(count)[:, None, None] for name in ("mean", "std"))
    down, across = (torch.linspace(0, 1, n) for n in (height + height // 2, 2 * width))
    slopes = [across.expand(len(down), -1), down[:, None].expand(-1, len(across)), (across * down[:, None]) * 0.5]
    picture = (torch.stack([slopes[channel % 3] for channel in range(count)]) * 255).to(torch.uint8)
    image = SimpleNamespace(**settings, extent=(height, width), native_channels=count)
    ours = evaluation_view(picture, image)
    ours = ours if ours.is_floating_point() else ours / 255
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    return theirs.shape == ours.shape and bool(((theirs * std + mean - ours).abs() < 3 / 255).all())


def one_or_each(values: float | Sequence[float]) -> float | list[float]:
    """One number for all channels, or one for each."""
    several = list(values) if isinstance(values, (list, tuple)) else [values]
    return several if len(several) > 1 else several[0]


def processor_of(image):
    """The native processor whose output is the evaluation view: the one that came along, or a new one; our sizes."""
    import transformers

    made = image.published
    if made is None or rescaled(made) != image.rescale:
        made = getattr(transformers, KINDS[image.rescale])()
    repeat = image.native_channels // image.channels
    (height, width), resized = image.extent, resized_extent(image)
    size = {
        "squeeze": {"height": resized[0], "width": resized[1]},
        "crop": {"shortest_edge": resized[0]},
        "pad": {"max_height": resized[0], "max_width": resized[1]},
    }
    changes = {
        "size": size[image.aspect],
        "image_mean": image.mean * repeat,
        "image_std": image.std * repeat,
        # Without it a grey picture crashes the processor; of an array it takes more than 8 bits.
        "do_convert_rgb": image.channels != 4 and not image.arrays,
        "resample": next(number for number, name in RESAMPLE.items() if name == image.resample),
    }
    if image.aspect != "squeeze" or resized != image.extent or made.do_center_crop:
        changes |= {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    if (image.mean, image.std) != ([0.0] * image.channels, [1.0] * image.channels):
        changes["do_normalize"] = True
    if image.arrays:
        kept = {"percentiles": image.percentiles, "pages": image.pages} | image.ranges_known
        changes |= {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}
        changes |= {"do_rescale": True, "rescale_factor": 1 / white_of(*(kept.get(name) for name in KEPT[:3]))}
    settings = {name: value for name, value in made.to_dict().items() if name != "image_processor_type"}
    return type(made)(**settings | changes)


def rescaled(processor) -> str:
    """Whether the processor brings bytes to 0..1 before it resizes, or after."""
    return "before" if type(processor).__name__.startswith(KINDS["before"]) else "after"


def resized_extent(image) -> tuple[int, int]:
    """Height and width to which the evaluation view resizes, before the middle is cut out."""
    height, width = (max(image.extent),) * 2 if image.aspect == "crop" else image.extent
    return round(image.edge * height), round(image.edge * width)


def white_of(value_range, float_range, percentiles) -> float:
    """White in the arrays that the processor is given, where 0 is black: values keep their unit, where there is one."""
    if percentiles is not None:
        return 1.0
    low, high = value_range or float_range or (0.0, 255.0)
    return high - low


def evaluation_view(data: Tensor, image) -> Tensor:
    """A whole picture `[c h w]` as the processor has it before it normalises: bytes, or floats if it rescales first.

    An array in 0..1 stays one.
    """
    from torchvision.transforms.v2 import functional as tv

    if image.rescale == "before" and not data.is_floating_point():
        data = data * (1 / 255)
    size, (height, width) = resized_extent(image), data.shape[-2:]
    if image.aspect == "crop":  # the shorter side is given, the other goes along
        edge, other = size[0], int(size[0] * max(height, width) / min(height, width))
        size = (other, edge) if width <= height else (edge, other)
    elif image.aspect == "pad":  # as transformers' get_image_size_for_max_height_width, but not to nothing
        scale = min(size[0] / height, size[1] / width)
        size = max(1, int(height * scale)), max(1, int(width * scale))
    data = tv.resize(data, list(size), tv.InterpolationMode(image.resample), antialias=True)
    data = centred(data, image.extent)
    return data.expand(image.native_channels, -1, -1)


def centred(data: Tensor, extent: tuple[int, int]) -> Tensor:
    """The middle of `[c h w]`, on black where it is smaller, as transformers' `center_crop` has it."""
    height, width = data.shape[-2:]
    down, right = max(0, extent[0] - height), max(0, extent[1] - width)
    if down or right:
        data = F.pad(data, (right // 2, (right + 1) // 2, down // 2, (down + 1) // 2))
    top, left = ((have - want) // 2 for have, want in zip(data.shape[-2:], extent, strict=True))
    return data[:, top : top + extent[0], left : left + extent[1]]


def padded(picture, extent: tuple[int, int]):
    """A whole picture in the middle of black of that aspect: an array `[c h w]`, or one of Pillow's."""
    is_array = isinstance(picture, Tensor)
    height, width = picture.shape[1:] if is_array else (picture.height, picture.width)
    wide = max(width, round(height * extent[1] / extent[0]))
    high = max(height, round(width * extent[0] / extent[1]))
    if is_array:
        return centred(picture, (high, wide))
    from PIL import Image as pillow

    made = pillow.new(picture.mode, (wide, high))
    made.paste(picture, ((wide - width) // 2, (high - height) // 2))
    return made
