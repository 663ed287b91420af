"""Nomic BERT (Nussbaum et al. 2024): `NomicBertModel`, `NomicBertForMaskedLM`, `NomicBertForSequenceClassification`.

BERT's post-norm with rotary positions, gated MLPs, and biases in the norms and heads only.
"""

from typing import Any

from triptych.encoders.backbone import Backbone
from triptych.encoders.embeddings import TokenVariant
from triptych.encoders.native.start import Start
from triptych.encoders.native.text import TextFamily, theta_of


class NomicBert(TextFamily):
    name = "nomic_bert"
    config_class, base_class = "NomicBertConfig", "NomicBertModel"
    classifier, masked_class = "NomicBertForSequenceClassification", "NomicBertForMaskedLM"
    variant = TokenVariant(table=False, types=2)
    defaults = {"order": "post", "mlp": "gated", "activation": "silu", "biases": (), "theta": 1000.0}
    said = (*TextFamily.said, "theta")
    trunk = {
        "attention.qkv": ("layers.{}.self_attn.q_proj", "layers.{}.self_attn.k_proj", "layers.{}.self_attn.v_proj"),
        "attention.out": "layers.{}.self_attn.o_proj",
        "norm1": "layers.{}.post_attention_layernorm",
        "mlp.gate": "layers.{}.mlp.gate_proj",
        "mlp.up": "layers.{}.mlp.up_proj",
        "mlp.down": "layers.{}.mlp.down_proj",
        "norm2": "layers.{}.post_mlp_layernorm",
    }
    ends = TextFamily.tables
    head_names = {
        "dense": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.layer_norm",
        "bias": "cls.predictions.bias",
    }

    def settings(self, config) -> dict[str, Any]:
        return super().settings(config) | {"theta": theta_of(config.rope_parameters, "its configuration")}

    def fields(self, backbone: Backbone) -> dict[str, Any]:
        made = backbone.encoder.architecture
        rope = {"rope_type": "default", "rope_theta": made.theta}
        return super().fields(backbone) | {"rope_parameters": rope, "head_dim": made.width // made.heads}

    def start(self, path: str, **hub) -> Start:
        start = super().start(path, **hub)
        config = start.model.config
        if config.head_dim * config.num_attention_heads != config.hidden_size:
            raise ValueError(f"init_from {path}: head_dim {config.head_dim} is not its width / its heads")
        return start
