"""DINOv2 (Oquab et al. 2024): layer scale, and a table of places that every view is interpolated from.

`Dinov2Model`, `Dinov2ForImageClassification`. The giant has a gated MLP, whose hidden width the native class rounds.
"""

from typing import Any

from triptych.encoders.encoder import BIASES, Architecture
from triptych.encoders.native.base import fields_of, settings_of
from triptych.encoders.native.grid import IMAGENET, ImageFamily, within

# Blocks of DINOv2 and DINOv3; a plain MLP has no gate, and other names in the two.
BLOCK = {
    "norm1": "norm1",
    "attention.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attention.out": "attention.o_proj",
    "scale1.weight": "layer_scale1.lambda1",
    "norm2": "norm2",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": ("mlp.fc1", "mlp.up_proj"),
    "mlp.down": ("mlp.fc2", "mlp.down_proj"),
    "scale2.weight": "layer_scale2.lambda1",
}


class Dinov2(ImageFamily):
    name = "dinov2"
    pooling = "lead+pieces"
    config_class, base_class, classifier = "Dinov2Config", "Dinov2Model", "Dinov2ForImageClassification"
    defaults = {"eps": 1e-6, "layer_scale": 1.0}
    said = (*ImageFamily.said, "mlp", "layer_scale")
    trunk = within("encoder.layer.{}.", BLOCK)
    ends = {"encoder.norm": "layernorm"}
    interpolated = True
    usual = IMAGENET | {"resample": "bicubic", "edge": 256 / 224, "aspect": "crop"}

    def check(self, made: Architecture) -> None:
        if made.layer_scale is None:
            raise ValueError(f"encoder.layer_scale: the native class {self.base_class} has one")
        self.ratio(made)

    def ratio(self, made: Architecture) -> int:
        """The native configuration's whole `mlp_ratio`, which is all that it says of the hidden width."""
        gated = made.mlp == "gated"
        possible = {hidden(made.width, ratio, gated): ratio for ratio in range(1, 17)}
        if made.hidden not in possible or gated and made.activation != "silu":
            choices = f"{', '.join(map(str, list(possible)[:6]))} …"
            raise ValueError(
                f"encoder.hidden {made.hidden}, {made.mlp}, {made.activation}: the native class {self.base_class} has, "
                f"of width {made.width}, {choices}{' with silu' if gated else ''}"
            )
        return possible[made.hidden]

    def settings(self, config) -> dict[str, Any]:
        gated = config.use_swiglu_ffn
        return settings_of(config, hidden(config.hidden_size, config.mlp_ratio, gated)) | {
            "biases": BIASES if config.qkv_bias else ("out", "mlp"),
            "layer_scale": config.layerscale_value,
            **({"mlp": "gated", "activation": "silu"} if gated else {}),
        }

    def of_architecture(self, made: Architecture) -> dict[str, Any]:
        fields = fields_of(made)
        del fields["intermediate_size"]
        if made.mlp == "gated":  # silu whatever it says
            del fields["hidden_act"]
        return fields | {
            "qkv_bias": "query" in made.biases,
            "mlp_ratio": self.ratio(made),
            "use_swiglu_ffn": made.mlp == "gated",
            "layerscale_value": made.layer_scale,
        }


def hidden(width: int, ratio: int, gated: bool) -> int:
    return (int(width * ratio * 2 / 3) + 7) // 8 * 8 if gated else width * ratio
