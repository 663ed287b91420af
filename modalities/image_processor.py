"""Native image processors: what our evaluation view does of what they do, and the way back.

A processor resizes, cuts out the middle, brings bytes to 0..1 and normalises. All four are settings of `Image`.
"""

import math
from typing import Any

from torch import Tensor

RESAMPLE = {2: "bilinear", 3: "bicubic"}  # as Pillow numbers them
# The native processors differ in this order alone, which is in their code and in no setting.
KINDS = {"after": "ViTImageProcessor", "before": "DINOv3ViTImageProcessor"}


def settings_from(processor, where: str) -> dict[str, Any]:
    """Settings of `Image` by which its evaluation view is the processor's output."""
    size, crop = processor.size or {}, (processor.crop_size if processor.do_center_crop else None)
    edge = size.get("shortest_edge")
    resized = (size.get("height"), size.get("width"))
    odd = {
        "do_resize": not processor.do_resize,
        "do_rescale": not processor.do_rescale or not math.isclose(processor.rescale_factor, 1 / 255),
        "do_pad": bool(getattr(processor, "do_pad", False)),
        "size": edge is None and None in resized or bool(size.get("longest_edge")),
        "crop_size": edge is not None and crop is None,
        "resample": int(processor.resample) not in RESAMPLE,
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
            "resample": RESAMPLE[int(processor.resample)],
            "edge": ratio,
            "aspect": "keep" if edge else "squeeze",
            "rescale": rescaled(processor),
            "mean": list(processor.image_mean) if processor.do_normalize else 0.0,
            "std": list(processor.image_std) if processor.do_normalize else 1.0,
        }
    if any(odd.values()):
        name = next(name for name, found in odd.items() if found)
        raise ValueError(
            f"{where}: its {type(processor).__name__} has {name} {getattr(processor, name)}, which the evaluation view "
            "cannot do; start from a copy without preprocessor_config.json"
        )
    return settings


def processor_of(image):
    """The native processor whose output is the evaluation view: the one that came along, or a new one; our sizes."""
    import transformers

    made = image.published
    if made is None or rescaled(made) != image.rescale:
        made = getattr(transformers, KINDS[image.rescale])()
    # Stock pipelines hand over RGB whatever the file is: a grey encoder goes out with three channels.
    repeat = 3 if image.channels == 1 else 1
    (height, width), resized = image.extent, resized_extent(image)
    size = {"height": resized[0], "width": resized[1]}
    changes = {
        "size": {"shortest_edge": resized[0]} if image.aspect == "keep" else size,
        "image_mean": image.mean * repeat,
        "image_std": image.std * repeat,
        "do_convert_rgb": image.channels != 4,  # without it a grey picture crashes the processor
        "resample": next(number for number, name in RESAMPLE.items() if name == image.resample),
    }
    if image.aspect == "keep" or resized != image.extent or made.do_center_crop:
        changes |= {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    if (image.mean, image.std) != ([0.0] * image.channels, [1.0] * image.channels):
        changes["do_normalize"] = True
    if image.value_range is not None:  # for whoever makes 8 bits of more as it was done here
        changes["value_range"] = list(image.value_range)
    settings = {name: value for name, value in made.to_dict().items() if name != "image_processor_type"}
    return type(made)(**settings | changes)


def rescaled(processor) -> str:
    """Whether the processor brings bytes to 0..1 before it resizes, or after."""
    return "before" if type(processor).__name__.startswith(KINDS["before"]) else "after"


def resized_extent(image) -> tuple[int, int]:
    """Height and width to which the evaluation view resizes, before the middle is cut out."""
    height, width = (max(image.extent),) * 2 if image.aspect == "keep" else image.extent
    return round(image.edge * height), round(image.edge * width)


def evaluation_view(data: Tensor, image) -> Tensor:
    """A whole picture's bytes `[c h w]` as the processor has them before it normalises; floats if it rescales first."""
    from torchvision.transforms.v2 import functional as tv

    if image.rescale == "before":
        data = data * (1 / 255)
    size, (height, width) = resized_extent(image), data.shape[-2:]
    if image.aspect == "keep":  # the shorter side is given, the other goes along
        edge, other = size[0], int(size[0] * max(height, width) / min(height, width))
        size = (other, edge) if width <= height else (edge, other)
    data = tv.resize(data, list(size), tv.InterpolationMode(image.resample), antialias=True)
    top, left = ((have - want) // 2 for have, want in zip(size, image.extent, strict=True))
    data = data[:, top : top + image.extent[0], left : left + image.extent[1]]
    return data.expand(3, -1, -1) if image.channels == 1 else data
