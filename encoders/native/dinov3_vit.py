"""DINOv3 (Siméoni et al. 2025): rotary positions on two axes, registers, no table. `DINOv3ViTModel`; no classifier.

The native class in `train()` rescales its coordinates at random, which is an augmentation of its own recipe, not ours.
"""

from typing import Any

from triptych.encoders.backbone import Backbone
from triptych.encoders.embeddings import GridVariant
from triptych.encoders.encoder import Architecture
from triptych.encoders.native.base import fields_of, settings_of
from triptych.encoders.native.dinov2 import BLOCK
from triptych.encoders.native.grid import IMAGENET, ImageFamily, within

FLAGS = {"query": "query_bias", "key": "key_bias", "value": "value_bias", "out": "proj_bias", "mlp": "mlp_bias"}


class DINOv3ViT(ImageFamily):
    name = "dinov3_vit"
    pooling = "lead"
    config_class, base_class, classifier = "DINOv3ViTConfig", "DINOv3ViTModel", None
    auto_classes = "AutoModel, AutoImageProcessor"
    defaults = {"eps": 1e-5, "layer_scale": 1.0, "theta": 100.0, "biases": ("query", "value", "out", "mlp")}
    said, choices = (*ImageFamily.said, "mlp", "layer_scale", "theta"), {}
    projection = "embeddings.patch_embeddings"
    lead_names = ("embeddings.cls_token", "embeddings.register_tokens")
    trunk = within("model.layer.{}.", BLOCK)
    ends = {"encoder.norm": "norm"}
    variant = GridVariant(registers=4, table=False)
    usual = IMAGENET | {"rescale": "before"}

    def check(self, made: Architecture) -> None:
        for name in ("layer_scale", "theta"):
            if getattr(made, name) is None:
                raise ValueError(f"encoder.{name}: the native class {self.base_class} has one")
        if made.width // made.heads % 4:
            raise ValueError(
                f"encoder.heads {made.heads}: rotations on two axes want a multiple of 4 a head, not "
                f"{made.width // made.heads}"
            )

    def settings(self, config) -> dict[str, Any]:
        return settings_of(config) | {
            "biases": tuple(name for name, flag in FLAGS.items() if getattr(config, flag)),
            "layer_scale": config.layerscale_value,
            "theta": config.rope_theta,
            "mlp": "gated" if config.use_gated_mlp else "plain",
        }

    def of_architecture(self, made: Architecture) -> dict[str, Any]:
        return fields_of(made) | {
            **{flag: name in made.biases for name, flag in FLAGS.items()},
            "layerscale_value": made.layer_scale,
            "rope_theta": made.theta,
            "use_gated_mlp": made.mlp == "gated",
        }

    def fields(self, backbone: Backbone) -> dict[str, Any]:
        return super().fields(backbone) | {"num_register_tokens": backbone.embedding.variant.registers}
