"""Objectives by name. The name in a config is the name in this table; nothing else registers anything."""

from triptych.objectives.base import Objective, Progress
from triptych.objectives.clustering import DIET, SwAV
from triptych.objectives.contrastive import MoCo, SimCLR
from triptych.objectives.crops import Crops
from triptych.objectives.decoding import Decoder, Predictor
from triptych.objectives.dino import DINO
from triptych.objectives.distillation import BYOL, SimSiam
from triptych.objectives.frozen import FrozenTeacher
from triptych.objectives.heads import Head
from triptych.objectives.information import BarlowTwins, LeJEPA, VICReg, VISReg
from triptych.objectives.latent import IJEPA, Data2Vec
from triptych.objectives.masked import MAE, Masked
from triptych.objectives.masking import Mask
from triptych.objectives.pretext import Codes, Position

OBJECTIVES: dict[str, type[Objective]] = {
    "mae": MAE,
    "masked": Masked,
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "data2vec": Data2Vec,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "lejepa": LeJEPA,
    "visreg": VISReg,
    "simsiam": SimSiam,
    "dino": DINO,
    "swav": SwAV,
    "ijepa": IJEPA,
    "position": Position,
    "codes": Codes,
    "diet": DIET,
    "frozen_teacher": FrozenTeacher,
}

__all__ = [
    "BYOL",
    "DIET",
    "DINO",
    "IJEPA",
    "MAE",
    "OBJECTIVES",
    "BarlowTwins",
    "Codes",
    "Crops",
    "Data2Vec",
    "Decoder",
    "FrozenTeacher",
    "Head",
    "LeJEPA",
    "Mask",
    "Masked",
    "MoCo",
    "Objective",
    "Position",
    "Predictor",
    "Progress",
    "SimCLR",
    "SimSiam",
    "SwAV",
    "VICReg",
    "VISReg",
]
