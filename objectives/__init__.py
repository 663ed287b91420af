"""Objectives by name. The name in a config is the name in this table; nothing else registers anything."""

from objectives.base import Objective, Progress
from objectives.contrastive import SimCLR
from objectives.distillation import BYOL
from objectives.heads import Head
from objectives.masked import MAE, Decoder, Masked
from objectives.masking import Mask

OBJECTIVES: dict[str, type[Objective]] = {
    "mae": MAE,
    "masked": Masked,
    "simclr": SimCLR,
    "byol": BYOL,
}

__all__ = [
    "BYOL",
    "MAE",
    "OBJECTIVES",
    "Decoder",
    "Head",
    "Mask",
    "Masked",
    "Objective",
    "Progress",
    "SimCLR",
]
