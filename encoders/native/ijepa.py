"""I-JEPA (Assran et al. 2023): a ViT without any lead. `IJepaModel`, `IJepaForImageClassification`."""

from triptych.encoders.embeddings import GridVariant
from triptych.encoders.native.vit import ViT


class IJepa(ViT):
    name = "ijepa"
    pooling = "pieces"
    config_class, base_class, classifier = "IJepaConfig", "IJepaModel", "IJepaForImageClassification"
    masked_class = None
    lead_names = ()
    variant = GridVariant(leads=0)
