"""Modalities by name. The name in a config is the name in this table; nothing else registers anything."""

from modalities.audio import Audio
from modalities.base import BadSample, Grid, Modality
from modalities.image import Image
from modalities.text import Text
from modalities.view import EVALUATION, View, ViewSpec, stack

MODALITIES: dict[str, type[Modality]] = {
    "image": Image,
    "audio": Audio,
    "text": Text,
}

__all__ = [
    "EVALUATION",
    "MODALITIES",
    "Audio",
    "BadSample",
    "Grid",
    "Image",
    "Modality",
    "Text",
    "View",
    "ViewSpec",
    "stack",
]
