"""SigLIP's vision tower (Zhai et al. 2023): no lead, tanh-GELU. `SiglipVisionModel`, also out of a whole `siglip`.

Its head, an attention that pools, is not trained here and goes out as it came in.
"""

from typing import Any

from torch import Tensor

from triptych.encoders.backbone import Backbone
from triptych.encoders.embeddings import GridVariant
from triptych.encoders.encoder import Architecture
from triptych.encoders.native.base import Family, fields_of
from triptych.encoders.native.grid import ImageFamily, within


class SiglipVisionModel(ImageFamily):
    name = "siglip_vision_model"
    wholes = ("siglip",)
    pooling = "pieces"
    config_class, base_class, classifier = "SiglipVisionConfig", "SiglipVisionModel", None
    auto_classes = "AutoModel, AutoImageProcessor"
    defaults = {"eps": 1e-6, "activation": "gelu_tanh"}
    said, choices = Family.said, {}
    projection, table, lead_names = "embeddings.patch_embedding", "embeddings.position_embedding.weight", ()
    trunk = within(
        "encoder.layers.{}.",
        {
            "norm1": "layer_norm1",
            "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attention.out": "self_attn.out_proj",
            "norm2": "layer_norm2",
            "mlp.up": "mlp.fc1",
            "mlp.down": "mlp.fc2",
        },
    )
    ends = {"encoder.norm": "post_layernorm"}
    variant = GridVariant(leads=0)
    square = True
    usual = {"resample": "bicubic"}

    def of_architecture(self, made: Architecture) -> dict[str, Any]:
        return fields_of(made)

    def fields(self, backbone: Backbone) -> dict[str, Any]:
        headed = backbone.native is not None and "head.probe" in backbone.native.kept
        return super().fields(backbone) | {"vision_use_head": headed}

    def fill(self, backbone: Backbone) -> dict[str, Tensor]:
        return {}
