"""RoBERTa with pre-LayerNorm: `RobertaPreLayerNormModel`, `...ForMaskedLM`, `...ForSequenceClassification`."""

import torch
from torch import Tensor, nn

from encoders.backbone import Backbone
from encoders.native.base import Family, Start, config_settings, from_pretrained, trunk_settings

EMBEDDINGS = {"words": "word_embeddings", "positions": "position_embeddings", "types": "token_type_embeddings"}


class Roberta(Family):
    modality = "text"
    model_types = ("roberta-prelayernorm",)
    block = {
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
    norm = "LayerNorm"
    auto_classes = "AutoModelForSequenceClassification, AutoTokenizer"

    def pipeline_tag(self, model) -> str:
        return "fill-mask" if type(model).__name__.endswith("MaskedLM") else "feature-extraction"

    def native(self, backbone: Backbone, head: nn.Module | None):
        from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM, RobertaPreLayerNormModel

        text = backbone.modality
        if text.eps != backbone.encoder.eps:
            raise ValueError(
                f"modality.eps {text.eps} and encoder.eps {backbone.encoder.eps} differ: the native class has but one"
            )
        config = RobertaPreLayerNormConfig(
            **config_settings(backbone),
            vocab_size=text.words.num_embeddings,
            max_position_embeddings=text.positions.num_embeddings,
            type_vocab_size=text.types.num_embeddings,
            pad_token_id=text.padding,
            bos_token_id=text.first,
            eos_token_id=text.last,
        )
        return RobertaPreLayerNormModel(config) if head is None else RobertaPreLayerNormForMaskedLM(config)

    def state(self, backbone: Backbone, head: nn.Module | None) -> dict[str, Tensor]:
        text, width = backbone.modality, backbone.width
        prefix = "" if head is None else "roberta_prelayernorm."
        state = self.trunk(backbone.encoder, prefix)
        for ours, native in EMBEDDINGS.items():
            state[f"{prefix}embeddings.{native}.weight"] = getattr(text, ours).weight
        for kind in ("weight", "bias"):
            state[f"{prefix}embeddings.LayerNorm.{kind}"] = getattr(text.norm, kind)
        if head is None:
            # An identity before the native tanh, so that pooler_output is not a random projection of the CLS.
            return state | {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
        return state | {
            "lm_head.dense.weight": head.dense.weight,
            "lm_head.dense.bias": head.dense.bias,
            "lm_head.layer_norm.weight": head.norm.weight,
            "lm_head.layer_norm.bias": head.norm.bias,
            "lm_head.decoder.weight": text.words.weight,
            "lm_head.decoder.bias": head.bias,
            "lm_head.bias": head.bias,
        }

    def start(self, path: str, **hub) -> Start:
        from transformers import AutoConfig, RobertaPreLayerNormForMaskedLM, RobertaPreLayerNormModel

        config = AutoConfig.from_pretrained(path, **hub)
        masked = any("MaskedLM" in name for name in config.architectures or ())
        model = from_pretrained(RobertaPreLayerNormForMaskedLM if masked else RobertaPreLayerNormModel, path, **hub)
        if not config.tie_word_embeddings:
            raise ValueError(f"init_from {path}: tie_word_embeddings false: the head is tied here")
        places = config.max_position_embeddings - config.pad_token_id - 1
        settings = {
            "tokenizer": path,
            "vocab_size": config.vocab_size,
            "max_positions": places,
            "token_types": config.type_vocab_size,
            "eps": config.layer_norm_eps,
        }
        return Start(settings, trunk_settings(config), model)

    def load(self, start: Start, objective: nn.Module) -> list[str]:
        backbone = objective.backbone
        text, state, config = backbone.modality, dict(start.model.state_dict()), start.model.config
        if text.padding != config.pad_token_id:
            raise ValueError(
                f"init_from: the tokenizer's pad token is {text.padding}, the model's {config.pad_token_id}; "
                "positions are counted from it"
            )
        prefix = "roberta_prelayernorm." if "lm_head.bias" in state else ""
        self.load_trunk(state, backbone.encoder, prefix)
        with torch.no_grad():
            for ours, native in EMBEDDINGS.items():
                # A tokenizer of more tokens than the model has (some were added) keeps fresh rows for the rest.
                table = state.pop(f"{prefix}embeddings.{native}.weight")
                getattr(text, ours).weight[: len(table)].copy_(table)
            for kind in ("weight", "bias"):
                getattr(text.norm, kind).copy_(state.pop(f"{prefix}embeddings.LayerNorm.{kind}"))
            head = objective.head
            if "lm_head.bias" in state and head is not None:
                for kind in ("weight", "bias"):
                    getattr(head.dense, kind).copy_(state.pop(f"lm_head.dense.{kind}"))
                    getattr(head.norm, kind).copy_(state.pop(f"lm_head.layer_norm.{kind}"))
                bias = state.pop("lm_head.bias")
                head.bias[: len(bias)].copy_(bias)
                del state["lm_head.decoder.weight"], state["lm_head.decoder.bias"]  # tied to what was just loaded
        return [k for k in state if "pooler" not in k]
