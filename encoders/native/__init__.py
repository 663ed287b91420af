"""Native `transformers` families: one file each, all listed here."""

from pathlib import Path

from torch import nn

from encoders.native.ast import AST
from encoders.native.base import Family, Start
from encoders.native.roberta import Roberta
from encoders.native.vit import ViT

FAMILIES: tuple[Family, ...] = (ViT(), AST(), Roberta())


def family_of(modality: str) -> Family:
    """The family that a modality, by its name, is exported to."""
    for family in FAMILIES:
        if family.modality == modality:
            return family
    raise ValueError(f"no native class is known for modality {modality!r}: it can be trained and probed, not exported")


def start_from(path: str, modality: str, **hub) -> tuple[Family, Start]:
    """Read a published checkpoint to start from: a hub id or a folder."""
    from transformers import PreTrainedConfig

    if (path.startswith(("/", ".", "~")) or path.count("/") > 1) and not Path(path).is_dir():
        raise ValueError(f"init_from {path}: no such folder")
    try:
        settings, _ = PreTrainedConfig.get_config_dict(path, **hub)
        kind = settings.get("model_type")
        for family in FAMILIES:
            if kind in family.model_types:
                if family.modality != modality:
                    raise ValueError(f"init_from {path} is of modality {family.modality}, the run is of {modality}")
                return family, family.start(path, **hub)
    except OSError as error:  # nothing there, no network, no safetensors
        raise ValueError(f"init_from {path}: {str(error).splitlines()[0]}") from error
    known = ", ".join(t for family in FAMILIES for t in family.model_types)
    raise ValueError(f"init_from {path} is of the family {kind!r}; known are {known}")


def load(family: Family, start: Start, objective: nn.Module) -> None:
    """Put a checkpoint's weights into an objective that was built with its settings."""
    unused = [name for name in family.load(start, objective) if not name.startswith(("decoder.", "lm_head."))]
    if unused:
        raise ValueError(f"init_from: these encoder weights found no use: {', '.join(unused[:5])}")


__all__ = ["FAMILIES", "Family", "Start", "family_of", "load", "start_from"]
