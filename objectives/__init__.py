"""Objectives by name. The name in a config is the name in this table; nothing else registers anything."""

from triptych.objectives.base import Objective, Progress
from triptych.objectives.contrastive import SimCLR
from triptych.objectives.crops import Crops
from triptych.objectives.decoding import Decoder, Predictor
from triptych.objectives.distillation import BYOL
from triptych.objectives.heads import Head
from triptych.objectives.information import BarlowTwins, LeJEPA, VICReg, VISReg
from triptych.objectives.latent import Data2Vec
from triptych.objectives.masked import MAE, Masked
from triptych.objectives.masking import Mask

OBJECTIVES: dict[str, type[Objective]] = {
    "mae": MAE,
    "masked": Masked,
    "simclr": SimCLR,
    "byol": BYOL,
    "data2vec": Data2Vec,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "lejepa": LeJEPA,
    "visreg": VISReg,
}

__all__ = [
    "BYOL",
    "MAE",
    "OBJECTIVES",
    "BarlowTwins",
    "Crops",
    "Data2Vec",
    "Decoder",
    "Head",
    "LeJEPA",
    "Mask",
    "Masked",
    "Objective",
    "Predictor",
    "Progress",
    "SimCLR",
    "VICReg",
    "VISReg",
]
