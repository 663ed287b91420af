"""ModernBERT (Warner et al. 2024): `ModernBertModel`, `ModernBertForMaskedLM`, `ModernBertForSequenceClassification`.

Pre-norm without biases, gated MLPs, rotary positions of two bases; two blocks of three see `local_attention // 2`
tokens to either side. The first block has no norm before attention, since the embedding has one.
"""

from typing import Any

from triptych.encoders.backbone import Backbone, Pooling
from triptych.encoders.embeddings import TokenVariant
from triptych.encoders.encoder import BIASES, Architecture
from triptych.encoders.native.start import Start
from triptych.encoders.native.text import TextFamily, theta_of

KINDS = {True: "sliding_attention", False: "full_attention"}


class ModernBert(TextFamily):
    name = "modernbert"
    config_class, base_class = "ModernBertConfig", "ModernBertModel"
    classifier, masked_class = "ModernBertForSequenceClassification", "ModernBertForMaskedLM"
    variant = TokenVariant(table=False, types=0, head_activation="gelu", head_bias=False)
    said = (*TextFamily.said, "norm_bias", "biases", "theta", "local_theta", "windows")
    choices = {"biases": ((), ("mlp",), BIASES[:4], BIASES)}
    names = {"hidden_act": "hidden_activation", "layer_norm_eps": "norm_eps"}
    token_fields = TextFamily.token_fields | {"cls_token_id": "first", "sep_token_id": "last"}
    trunk = {
        "norm1": "layers.{}.attn_norm",
        "attention.qkv": "layers.{}.attn.Wqkv",
        "attention.out": "layers.{}.attn.Wo",
        "norm2": "layers.{}.mlp_norm",
        ("mlp.gate", "mlp.up"): "layers.{}.mlp.Wi",  # the half that is activated comes first
        "mlp.down": "layers.{}.mlp.Wo",
    }
    ends = {
        "embedding.words.weight": "embeddings.tok_embeddings.weight",
        "embedding.norm": "embeddings.norm",
        "encoder.norm": "final_norm",
    }
    head_names = {"dense": "head.dense", "norm": "head.norm", "bias": "decoder.bias"}

    def default(self, width: int, depth: int) -> dict[str, Any]:
        return {
            "hidden": width * 3 // 2,
            "mlp": "gated",
            "norm_bias": False,
            "eps": 1e-5,
            "first_norm": False,
            "biases": (),
            "theta": 160_000.0,
            "local_theta": 10_000.0,
            "windows": tuple(64 if number % 3 else 0 for number in range(depth)),
        }

    def check(self, made: Architecture) -> None:
        if len(set(made.windows) - {0}) > 1:
            raise ValueError(
                f"encoder.windows {list(made.windows)}: the native class {self.base_class} has windows of one width "
                "only, and 0"
            )

    def settings(self, config) -> dict[str, Any]:
        rope = config.rope_parameters
        biases = ("query", "key", "value", "out") if config.attention_bias else ()
        return super().settings(config) | {
            "norm_bias": config.norm_bias,
            "biases": (*biases, "mlp") if config.mlp_bias else biases,
            "theta": theta_of(rope[KINDS[False]], KINDS[False]),
            "local_theta": theta_of(rope[KINDS[True]], KINDS[True]),
            "windows": tuple(config.sliding_window if kind == KINDS[True] else 0 for kind in config.layer_types),
        }

    def fields(self, backbone: Backbone) -> dict[str, Any]:
        made = backbone.encoder.architecture
        widths = set(made.windows) - {0}
        thetas = {KINDS[False]: made.theta, KINDS[True]: made.local_theta or made.theta}
        fields = super().fields(backbone) | {
            "norm_bias": made.norm_bias,
            "attention_bias": "query" in made.biases,
            "mlp_bias": "mlp" in made.biases,
            "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
            "layer_types": [KINDS[window > 0] for window in made.windows],
        }
        if widths:
            fields["local_attention"] = 2 * widths.pop()
        if backbone.native is None:
            fields["classifier_pooling"] = "mean" if backbone.pooling == "tokens" else "cls"
        return fields

    def without_dropout(self) -> dict[str, Any]:
        return {}  # its configuration has none by default

    def start(self, path: str, **hub) -> Start:
        start = super().start(path, **hub)
        config = start.model.config
        if config.classifier_bias or config.classifier_activation != "gelu" or not config.decoder_bias:
            raise ValueError(
                f"init_from {path}: its head has biases or an activation that ModernBERT's published have not"
            )
        return start

    def pooling_of(self, config) -> Pooling:
        return {"cls": "lead", "mean": "tokens"}[config.classifier_pooling]
