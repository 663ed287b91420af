"""Random views of pictures: where they are cut out, and how their colours are distorted.

A picture is one of Pillow's, of 8 bits a channel, or an array of floats in 0..1 `[c h w]`: of more bits, or of other
channels. Both get the same recipe from the same random numbers.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)  # parts of red, green and blue in grey, as Pillow has them


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
    if isinstance(picture, Tensor):
        colour, size, by = len(picture) == 3, picture.shape[1:], OfArrays
    elif picture.mode == "RGBA":
        alpha = picture.getchannel("A")
        picture = distort(picture.convert("RGB"), strong, random)
        picture.putalpha(alpha)
        return picture
    else:
        colour, size, by = picture.mode == "RGB", picture.size, OfPillow
    if random.random() < strong.jitter:
        for step in random.permutation(4 if colour else 2):
            if step == 0:
                picture = by.brightness(picture, 1 + strong.brightness * random.uniform(-1, 1))
            elif step == 1:
                picture = by.contrast(picture, 1 + strong.contrast * random.uniform(-1, 1))
            elif step == 2:
                picture = by.saturation(picture, 1 + strong.saturation * random.uniform(-1, 1))
            else:
                picture = by.hue(picture, 255 * strong.hue * random.uniform(-1, 1))
    if colour and random.random() < strong.grey:
        picture = by.grey(picture)
    if random.random() < strong.blur:
        picture = by.blur(picture, random.uniform(0.1, 2.0) * min(size) / 224)
    if random.random() < strong.solarize:
        picture = by.solarized(picture)
    return picture


class OfPillow:
    """Distortions of Pillow's pictures. A turn of the hue is in 255ths of the circle, a blur's deviation in pixels."""

    @staticmethod
    def brightness(picture, factor: float):
        from PIL import ImageEnhance

        return ImageEnhance.Brightness(picture).enhance(factor)

    @staticmethod
    def contrast(picture, factor: float):
        from PIL import ImageEnhance

        return ImageEnhance.Contrast(picture).enhance(factor)

    @staticmethod
    def saturation(picture, factor: float):
        from PIL import ImageEnhance

        return ImageEnhance.Color(picture).enhance(factor)

    @staticmethod
    def hue(picture, turn: float):
        from PIL import Image as pillow

        hue, saturation, value = picture.convert("HSV").split()
        hue = pillow.fromarray(np.asarray(hue) + np.uint8(round(turn) % 256))
        return pillow.merge("HSV", (hue, saturation, value)).convert("RGB")

    @staticmethod
    def grey(picture):
        return picture.convert("L").convert("RGB")

    @staticmethod
    def blur(picture, deviation: float):
        from PIL import ImageFilter

        return picture.filter(ImageFilter.GaussianBlur(deviation))

    @staticmethod
    def solarized(picture):
        from PIL import ImageOps

        return ImageOps.solarize(picture)


class OfArrays:
    """The same of arrays in 0..1. Contrast is about the mean grey; of other channels than three, about each mean."""

    @staticmethod
    def brightness(array: Float[Tensor, "c h w"], factor: float):
        return (array * factor).clamp(0, 1)

    @staticmethod
    def contrast(array: Float[Tensor, "c h w"], factor: float):
        means = luma(array) if len(array) == 3 else array
        return torch.lerp(means.mean((1, 2), keepdim=True), array, factor).clamp(0, 1)

    @staticmethod
    def saturation(array: Float[Tensor, "c h w"], factor: float):
        return torch.lerp(luma(array), array, factor).clamp(0, 1)

    @staticmethod
    def hue(array: Float[Tensor, "c h w"], turn: float):
        from torchvision.transforms.v2 import functional as tv

        return tv.adjust_hue(array, max(-0.5, min(turn / 255, 0.5)))

    @staticmethod
    def grey(array: Float[Tensor, "c h w"]):
        return luma(array).expand(3, -1, -1)

    @staticmethod
    def blur(array: Float[Tensor, "c h w"], deviation: float):
        from torchvision.transforms.v2 import functional as tv

        reach = min(math.ceil(3 * deviation), min(array.shape[1:]) - 1)
        return tv.gaussian_blur(array, [2 * reach + 1] * 2, [deviation] * 2) if reach else array

    @staticmethod
    def solarized(array: Float[Tensor, "c h w"]):
        return torch.where(array >= 0.5, 1 - array, array)


def luma(array: Float[Tensor, "3 h w"]) -> Float[Tensor, "1 h w"]:
    return sum(array[i : i + 1] * part for i, part in enumerate(LUMA))


def cut_out(picture, box: tuple[float, float, float, float], extent: tuple[int, int]):
    """The box (left, top, right, bottom) of a picture, resized to that height and width."""
    left, top, right, bottom = box
    height, width = extent
    if isinstance(picture, Tensor):
        picture = picture[:, top:bottom, left:right]
        if picture.shape[1:] == extent:
            return picture
        how = {"mode": "bicubic", "antialias": True, "align_corners": False}
        return F.interpolate(picture[None], extent, **how)[0].clamp(0, 1)
    from PIL import Image as pillow

    if picture.size == (width, height) and box == (0, 0, width, height):
        return picture
    # Reading at a coarser scale first is invisible at 3 times the size, and faster on large pictures.
    gap = 3.0 if right - left > 6 * width else None
    return picture.resize((width, height), pillow.Resampling.BICUBIC, box=box, reducing_gap=gap)


def flipped(picture):
    """Left is right."""
    if isinstance(picture, Tensor):
        return picture.flip(2)
    from PIL import Image as pillow

    return picture.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)


def warped(picture, matrix: tuple[float, float, float, float, float, float]):
    """The value at (a x + b y + c, d x + e y + f) goes to (x, y); beyond the edges is each channel's median."""
    if isinstance(picture, Tensor):
        return warped_array(picture, matrix)
    from PIL import Image as pillow

    values = np.asarray(picture)
    fill = tuple(int(v) for v in np.median(values.reshape(-1, values.shape[2] if values.ndim == 3 else 1), axis=0))
    how = pillow.Transform.AFFINE, matrix, pillow.Resampling.BILINEAR
    return picture.transform(picture.size, *how, fillcolor=fill)


def warped_array(array: Float[Tensor, "c h w"], matrix: tuple[float, ...]) -> Float[Tensor, "c h w"]:
    height, width = array.shape[1:]
    a, b, c, d, e, f = matrix
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    place = torch.stack([(a * x + b * y + c) * (2 / width) - 1, (d * x + e * y + f) * (2 / height) - 1], -1)
    fill = array.flatten(1).median(1).values[:, None, None]
    return F.grid_sample((array - fill)[None], place[None], align_corners=False)[0] + fill
