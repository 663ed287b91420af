"""Modalities by name. The name in a config is the name in this table; nothing else registers anything."""

from modalities.base import EVALUATION, BadSample, Grid, Modality, View
from modalities.image import Image

MODALITIES: dict[str, type[Modality]] = {
    "image": Image,
}

__all__ = ["EVALUATION", "MODALITIES", "BadSample", "Grid", "Image", "Modality", "View"]
