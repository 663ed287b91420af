"""DINOv2 with registers (Darcet et al. 2024): leads without a place; places are interpolated with antialias."""

from typing import Any

from triptych.encoders.backbone import Backbone
from triptych.encoders.embeddings import GridVariant
from triptych.encoders.native.dinov2 import Dinov2


class Dinov2WithRegisters(Dinov2):
    name = "dinov2_with_registers"
    config_class, base_class = "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"
    classifier = "Dinov2WithRegistersForImageClassification"
    lead_names = ("embeddings.cls_token", "embeddings.register_tokens")
    variant = GridVariant(registers=4, antialias=True)

    def fields(self, backbone: Backbone) -> dict[str, Any]:
        return super().fields(backbone) | {"num_register_tokens": backbone.embedding.variant.registers}
