"""What families of text share: tables of words, places and types, a tied masked-LM head, a tokenizer."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from encoders.backbone import Backbone
from encoders.embeddings import LMHead, TokenEmbedding, TokenVariant
from encoders.encoder import Architecture
from encoders.native.base import (
    Family,
    Pair,
    Start,
    base_prefix,
    fields_of,
    from_pretrained,
    leaves,
    native_of,
    require,
    settings_of,
)
from modalities import Text


class TextFamily(Family):
    """Subclasses say the `variant` of the embedding, and which arguments of the encoder the native class has fixed."""

    modality = "text"
    auto_classes = "AutoModelForSequenceClassification, AutoTokenizer"
    masked_class: ClassVar[str]
    variant: ClassVar[TokenVariant]
    fixed: ClassVar[dict[str, Any]]
    tables: ClassVar[dict[str, str]] = {
        "embedding.words.weight": "embeddings.word_embeddings.weight",
        "embedding.positions.weight": "embeddings.position_embeddings.weight",
        "embedding.types.weight": "embeddings.token_type_embeddings.weight",
        "embedding.norm": "embeddings.LayerNorm",
    }

    def embedding(self, modality: Text, made: Architecture) -> TokenEmbedding:
        return TokenEmbedding(modality, made, self.variant)

    def pipeline_tag(self, model) -> str:
        return "fill-mask" if type(model).__name__ == self.masked_class else "feature-extraction"

    def settings(self, config) -> dict[str, Any]:
        return settings_of(config)

    def fields(self, backbone: Backbone) -> dict[str, Any]:
        require(backbone, self.base_class, **self.fixed)
        text, embedding = backbone.modality, backbone.embedding
        made = fields_of(backbone.encoder.architecture) | {
            "vocab_size": embedding.words.num_embeddings,
            "pad_token_id": text.padding,
            "bos_token_id": text.first,
            "eos_token_id": text.last,
        }
        if self.variant.table:
            made["max_position_embeddings"] = embedding.positions.num_embeddings
        if self.variant.types:
            made["type_vocab_size"] = embedding.types.num_embeddings
        return made

    def fill(self, backbone: Backbone) -> dict[str, Tensor]:
        # An identity before the native tanh, so that pooler_output is not a random projection of the CLS.
        width = backbone.width
        return {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}

    def head_class(self, head: nn.Module) -> str | None:
        return self.masked_class if isinstance(head, LMHead) else None

    def places(self, config) -> int:
        """Places of the checkpoint's table that a text can have."""
        return config.max_position_embeddings - (config.pad_token_id + 1 if self.variant.after_padding else 0)

    def start(self, path: str, **hub) -> Start:
        model = from_pretrained(self, path, **hub)
        config = model.config
        if not config.tie_word_embeddings:
            raise ValueError(f"init_from {path}: tie_word_embeddings false: the head is tied here")
        settings = {"tokenizer": path, "vocab_size": config.vocab_size, "max_positions": self.places(config)}
        if self.variant.types:
            settings["token_types"] = config.type_vocab_size
        return Start(self, settings, self.settings(config), native_of(model), model)

    def inward(self, state: dict[str, Tensor], start: Start, backbone: Backbone) -> None:
        padding = start.model.config.pad_token_id
        if self.variant.after_padding and backbone.modality.padding != padding:
            raise ValueError(
                f"init_from: the tokenizer's pad token is {backbone.modality.padding}, the model's {padding}; "
                "positions are counted from it"
            )

    def load(self, start: Start, backbone: Backbone) -> None:
        super().load(start, backbone)
        prefix = base_prefix(start.model)
        if prefix:  # tied to the words, which are not kept a second time
            words = start.model.get_input_embeddings().weight
            start.native.heads = {
                name: tensor
                for name, tensor in start.native.heads.items()
                if tensor.shape != words.shape or not torch.equal(tensor, words)
            }


class RobertaHead:
    """The masked-LM head of the RoBERTas; the decoder's matrix is the words'."""

    def head_pairs(self, head: nn.Module) -> Iterator[Pair]:
        yield from leaves("dense", "lm_head.dense")
        yield from leaves("norm", "lm_head.layer_norm")
        yield ("weight",), ("lm_head.decoder.weight",)
        yield ("bias",), ("lm_head.bias",)
        yield ("bias",), ("lm_head.decoder.bias",)
