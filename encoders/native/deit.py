"""DeiT (Touvron et al. 2021): a ViT with a second lead, the distillation token. `DeiTModel`, `DeiTForImage…`."""

from triptych.encoders.embeddings import GridVariant
from triptych.encoders.native.grid import IMAGENET
from triptych.encoders.native.vit import ViT


class DeiT(ViT):
    name = "deit"
    config_class, base_class, classifier = "DeiTConfig", "DeiTModel", "DeiTForImageClassification"
    masked_class = "DeiTForMaskedImageModeling"
    lead_names = ("embeddings.cls_token", "embeddings.distillation_token")
    variant = GridVariant(leads=2)
    usual = IMAGENET | {"resample": "bicubic", "edge": 256 / 224}
