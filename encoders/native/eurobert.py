"""EuroBERT (Boizard et al. 2025): `EuroBertModel`, `EuroBertForMaskedLM`, `EuroBertForSequenceClassification`.

A Llama that sees both ways: RMS norms, rotary positions, gated MLPs, no biases; its head is one untied matrix.
"""

from typing import Any

from triptych.encoders.backbone import Backbone, Pooling
from triptych.encoders.embeddings import TokenVariant
from triptych.encoders.native.nomic_bert import NomicBert
from triptych.encoders.native.start import Start
from triptych.encoders.native.text import TextFamily


class EuroBert(NomicBert):
    name = "eurobert"
    pooling = "tokens"  # its classifier takes the mean of all tokens' answers
    config_class, base_class = "EuroBertConfig", "EuroBertModel"
    classifier, masked_class = "EuroBertForSequenceClassification", "EuroBertForMaskedLM"
    variant = TokenVariant(table=False, types=0, norm=False, head="linear")
    defaults = {"norm": "rms", "eps": 1e-5, "mlp": "gated", "activation": "silu", "biases": (), "theta": 10_000.0}
    names = {"layer_norm_eps": "rms_norm_eps"}
    token_fields = TextFamily.token_fields | {"mask_token_id": "mask"}
    trunk = {
        "norm1": "layers.{}.input_layernorm",
        "attention.qkv": ("layers.{}.self_attn.q_proj", "layers.{}.self_attn.k_proj", "layers.{}.self_attn.v_proj"),
        "attention.out": "layers.{}.self_attn.o_proj",
        "norm2": "layers.{}.post_attention_layernorm",
        "mlp.gate": "layers.{}.mlp.gate_proj",
        "mlp.up": "layers.{}.mlp.up_proj",
        "mlp.down": "layers.{}.mlp.down_proj",
    }
    ends = {"embedding.words.weight": "embed_tokens.weight", "encoder.norm": "norm"}
    head_names = {"weight": "lm_head.weight"}

    def fields(self, backbone: Backbone) -> dict[str, Any]:
        return super().fields(backbone) | {"num_key_value_heads": backbone.encoder.architecture.heads}

    def without_dropout(self) -> dict[str, Any]:
        return {}  # its configuration has none by default

    def start(self, path: str, **hub) -> Start:
        start = super().start(path, **hub)
        config = start.model.config
        if config.num_key_value_heads != config.num_attention_heads or config.attention_bias or config.mlp_bias:
            raise ValueError(
                f"init_from {path}: it has fewer key than query heads, or biases, which are not known here"
            )
        return start

    def pooling_of(self, config) -> Pooling:
        return {"bos": "lead"}.get(config.classifier_pooling, "tokens")
