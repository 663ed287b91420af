"""Modalities by name. The name in a config is the name in this table; nothing else registers anything."""

from triptych.modalities.audio import Audio
from triptych.modalities.base import BadSample, Grid, Modality
from triptych.modalities.image import Image
from triptych.modalities.text import Text
from triptych.modalities.view import EVALUATION, View, ViewSpec, stack

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
