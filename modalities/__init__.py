"""Modalities by name. The name in a config is the name in this table; nothing else registers anything."""

from modalities.audio import Audio
from modalities.base import EVALUATION, BadSample, Grid, Modality, View
from modalities.image import Image
from modalities.text import Text

MODALITIES: dict[str, type[Modality]] = {
    "image": Image,
    "audio": Audio,
    "text": Text,
}

__all__ = ["EVALUATION", "MODALITIES", "Audio", "BadSample", "Grid", "Image", "Modality", "Text", "View"]
