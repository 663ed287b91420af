"""RoBERTa with pre-LayerNorm: `RobertaPreLayerNormModel`, `...ForMaskedLM`, `...ForSequenceClassification`."""

from triptych.encoders.embeddings import TokenVariant
from triptych.encoders.native.text import RobertaHead, TextFamily


class RobertaPreLayerNorm(RobertaHead, TextFamily):
    name = "roberta-prelayernorm"
    config_class, base_class = "RobertaPreLayerNormConfig", "RobertaPreLayerNormModel"
    classifier, masked_class = "RobertaPreLayerNormForSequenceClassification", "RobertaPreLayerNormForMaskedLM"
    variant = TokenVariant(head_activation="gelu")
    trunk = {
        "norm1": "encoder.layer.{}.attention.LayerNorm",
        "attention.qkv": (
            "encoder.layer.{}.attention.self.query",
            "encoder.layer.{}.attention.self.key",
            "encoder.layer.{}.attention.self.value",
        ),
        "attention.out": "encoder.layer.{}.attention.output.dense",
        "norm2": "encoder.layer.{}.intermediate.LayerNorm",
        "mlp.up": "encoder.layer.{}.intermediate.dense",
        "mlp.down": "encoder.layer.{}.output.dense",
    }
    ends = TextFamily.tables | {"encoder.norm": "LayerNorm"}
