"""What families of text share: tables of words, places and types, a masked-LM head, a tokenizer, a pooling."""

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from triptych.encoders.backbone import Backbone, Pooling
from triptych.encoders.embeddings import LMHead, TokenEmbedding, TokenVariant
from triptych.encoders.encoder import Architecture
from triptych.encoders.native.base import Family, fields_of, from_pretrained, settings_of
from triptych.encoders.native.names import Names, Pair, base_prefix, copy_in, leaves
from triptych.encoders.native.start import Start, native_of
from triptych.modalities import Text
from triptych.modalities.tokenizer import SENTENCES

POOLED = "1_Pooling/config.json"
# What `sentence-transformers` writes beside a model: how its modules follow each other, and what each is.
INNER = "0_Transformer"  # its base model, where that cannot be the export's own
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
# Its words for our poolings, and the older ones for these. A text has one lead.
MODES = {"lead": "cls", "leads": "cls", "tokens": "mean"}
FLAGS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
PROMPTS = "config_sentence_transformers.json"
SENTENCE_FILES = ("modules.json", SENTENCES, PROMPTS, POOLED)


class TextFamily(Family):
    """Subclasses name the `variant` of the embedding, and further arguments of the encoder that can be `said`."""

    modality = "text"
    pooling = "lead"
    auto_classes = "AutoModelForSequenceClassification, AutoTokenizer"
    masked_class: ClassVar[str]
    variant: ClassVar[TokenVariant]
    head_names: ClassVar[Names]  # of the masked-LM head, full ones
    # The pooler's matrix is what the native classifier reads, and of a masked-LM export it would be lost.
    pooler: ClassVar[bool] = False
    # Fields of the configuration that name a token, by the modality's words for it.
    token_fields: ClassVar[dict[str, str]] = {
        "pad_token_id": "padding",
        "bos_token_id": "first",
        "eos_token_id": "last",
    }
    tables: ClassVar[Names] = {
        "embedding.words.weight": "embeddings.word_embeddings.weight",
        "embedding.positions.weight": "embeddings.position_embeddings.weight",
        "embedding.types.weight": "embeddings.token_type_embeddings.weight",
        "embedding.norm": "embeddings.LayerNorm",
    }

    def embedding(self, modality: Text, made: Architecture) -> TokenEmbedding:
        return TokenEmbedding(modality, made, self.variant)

    def pipeline_tag(self, model, backbone: Backbone) -> str:
        return "fill-mask" if type(model).__name__ == self.masked_class else "feature-extraction"

    def settings(self, config) -> dict[str, Any]:
        return settings_of(config, names=self.names)

    def fields(self, backbone: Backbone) -> dict[str, Any]:
        text, embedding = backbone.modality, backbone.embedding
        made = fields_of(backbone.encoder.architecture, self.names)
        made["vocab_size"] = embedding.words.num_embeddings
        if backbone.native is not None and "tie_word_embeddings" in backbone.native.config:
            made["tie_word_embeddings"] = self.variant.head == "dense"
        places = embedding.positions.num_embeddings if self.variant.table else text.max_positions
        made["max_position_embeddings"] = places
        if self.variant.types:
            made["type_vocab_size"] = embedding.types.num_embeddings
        if backbone.native is None:  # a checkpoint's own are of the tokenizer that came with it
            made |= {name: getattr(text, role) for name, role in self.token_fields.items()}
        return made

    def fill(self, backbone: Backbone) -> dict[str, Tensor]:
        # An identity before the native tanh, so that pooler_output is not a random projection of the CLS.
        width = backbone.width
        return {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}

    def native(self, backbone: Backbone, head: nn.Module | None = None, keep_heads: bool = False):
        """With a masked-LM head too the pooler goes along, if one was brought, or if the classifier would miss it."""
        import transformers

        model = super().native(backbone, head, keep_heads)
        brought = backbone.native
        wanted = self.pooler if brought is None else any("pooler" in name for name in brought.kept)
        if wanted and type(model).__name__ == self.masked_class:
            setattr(model, model.base_model_prefix, getattr(transformers, self.base_class)(model.config))
            model.tie_weights()
        return model

    # Heads.

    def head_class(self, head: nn.Module) -> str | None:
        kind = LMHead if self.variant.head == "dense" else nn.Linear
        return self.masked_class if isinstance(head, kind) else None

    def head_pairs(self, head: nn.Module) -> Iterator[Pair]:
        for ours, native in self.head_names.items():
            yield from leaves(ours, native)

    def load_heads(self, start: Start, objective: nn.Module) -> None:
        """Into an objective that predicts tokens; a sentence encoder has no such head, and then it starts fresh."""
        head, state = objective.head, start.model.state_dict()
        if head is None or self.head_class(head) is None:
            return
        pairs = list(self.head_pairs(head))
        if not any(name in state for _, theirs in pairs for name in theirs):
            print("init_from: there is no masked-LM head, so the head starts fresh", flush=True)
            return
        ours = dict(head.named_parameters())
        for mine, theirs in pairs:
            copy_in(ours, state, mine, theirs)

    # From a checkpoint.

    def places(self, config) -> int:
        """Places of the checkpoint's table that a text can have."""
        if config.pad_token_id is None and self.variant.table and self.variant.after_padding:
            raise ValueError("init_from: its config.json has no pad_token_id, from which its positions are counted")
        rows = config.pad_token_id + 1 if self.variant.table and self.variant.after_padding else 0
        return config.max_position_embeddings - rows

    def start(self, path: str, **hub) -> Start:
        model = from_pretrained(self, path, **hub)
        config, tied = model.config, self.variant.head == "dense"
        if getattr(config, "is_decoder", False):
            raise ValueError(f"init_from {path}: it is a decoder (is_decoder), whose tokens see those before them only")
        if type(model).__name__ == self.masked_class and bool(config.tie_word_embeddings) != tied:
            raise ValueError(
                f"init_from {path}: tie_word_embeddings is not {tied}, as it is in this family's head here"
            )
        settings = {"tokenizer": path, "vocab_size": config.vocab_size, "max_positions": self.places(config)}
        if "revision" in hub:
            settings["tokenizer_revision"] = hub["revision"]
        if self.variant.types:
            settings["token_types"] = config.type_vocab_size
        native = native_of(model)
        if any(".pooler." in name for name in model.beyond):  # the file has one, the class has not
            base = from_pretrained(self, path, self.base_class, **hub)
            native.kept = {name: value for name, value in base.state_dict().items() if name.startswith("pooler.")}
        native.files = sentence_files(path, **hub)
        pooling = sentence_pooling(path, native.files) or self.pooling_of(config)
        window = json.loads(native.files.get(SENTENCES, "{}")).get("max_seq_length")
        own = {"max_length": min(window, settings["max_positions"])} if window else {}
        return Start(
            self, settings, self.settings(config), native, model, pooling=pooling, absent=model.absent, own=own
        )

    def inward(self, state: dict[str, Tensor], start: Start, backbone: Backbone) -> None:
        padding = start.model.config.pad_token_id
        if self.variant.after_padding and self.variant.table and backbone.modality.padding != padding:
            raise ValueError(
                f"init_from: the tokenizer's pad token is {backbone.modality.padding}, the model's {padding}; "
                "positions are counted from it"
            )

    def load(self, start: Start, backbone: Backbone) -> None:
        super().load(start, backbone)
        if base_prefix(start.model) and self.variant.head == "dense":  # tied to the words, which are not kept twice
            words = start.model.get_input_embeddings().weight
            start.native.heads = {
                name: tensor
                for name, tensor in start.native.heads.items()
                if tensor.shape != words.shape or not torch.equal(tensor, words)
            }

    # What `sentence-transformers` reads.

    def files(self, backbone: Backbone, model: Any) -> dict[str, str]:
        """Its files as they came, or new ones, with the pooling and the window that the run had."""
        brought, window = {} if backbone.native is None else backbone.native.files, backbone.modality.max_length
        its = json.loads(brought.get(SENTENCES, '{"do_lower_case": false}'))
        files = dict(brought)
        if its.get("max_seq_length") != window:
            files[SENTENCES] = json.dumps(its | {"max_seq_length": window}, indent=2)
            if SENTENCES in brought:
                was = its.get("max_seq_length")
                print(f"{SENTENCES}: windows of {window} tokens, as the run's, not {was} (--modality.max_length {was})")
        if (mode := MODES.get(backbone.pooling)) is None:
            print(f"{POOLED} has no word for pooling {backbone.pooling}: sentence-transformers' files stay behind")
            return {SENTENCES: files[SENTENCES]}  # which a start from this reads
        settings = json.loads(brought.get(POOLED, json.dumps({"word_embedding_dimension": backbone.width})))
        if POOLED not in brought or sentence_pooling("", files) != backbone.pooling:
            flags = [name for name in settings if name.startswith("pooling_mode_")]
            if "pooling_mode" in settings:
                settings["pooling_mode"] = mode
            else:  # the older words, which every version reads
                flags += FLAGS.values()
            settings |= {name: name == FLAGS[mode] for name in flags}
            files[POOLED] = json.dumps(settings, indent=2)
        modules = json.loads(brought.get("modules.json", json.dumps(MODULES)))
        inner = INNER if self.again(backbone, model) else ""
        changed = [m | {"path": inner} if m["type"].endswith(".Transformer") else m for m in modules]
        if "modules.json" not in brought or changed != modules:
            files["modules.json"] = json.dumps(changed, indent=2)
        return files | ({f"{inner}/{SENTENCES}": files[SENTENCES]} if inner else {})

    def again(self, backbone: Backbone, model: Any) -> dict[str, Any]:
        """The base model, where the export has a head: `sentence-transformers` would warn that it is not used."""
        if backbone.pooling not in MODES or type(model).__name__ == self.base_class:
            return {}
        return {INNER: self.export(backbone)}


def sentence_files(path: str, **hub) -> dict[str, str]:
    """The files of `sentence-transformers`, by name; none where its modules hold weights that are not trained here."""
    from transformers.utils import cached_file

    found = {}
    for name in SENTENCE_FILES:
        file = cached_file(
            path,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **hub,
        )
        if file is not None:
            with open(file, encoding="utf-8") as opened:
                found[name] = opened.read()
            try:
                json.loads(found[name])
            except ValueError as error:
                raise ValueError(f"init_from {path}: its {name} cannot be read: {error}") from error
    kinds = {module["type"].rsplit(".", 1)[-1] for module in json.loads(found.get("modules.json", "[]"))}
    if prompt := json.loads(found.get(PROMPTS, "{}")).get("default_prompt_name"):
        print(f"init_from {path}: sentence-transformers puts its prompt {prompt!r} before every text; here none is put")
        found[PROMPTS] = json.dumps(json.loads(found[PROMPTS]) | {"default_prompt_name": None}, indent=2)
    if beyond := kinds - {"Transformer", "Pooling", "Normalize"}:
        print(f"init_from {path}: its module {', '.join(sorted(beyond))} is not trained, so modules.json stays behind")
        return {POOLED: found[POOLED]} if POOLED in found else {}
    return found


def sentence_pooling(path: str, files: dict[str, str]) -> Pooling | None:
    """The pooling that `1_Pooling` names, by our word for it."""
    if POOLED not in files:
        return None
    settings = json.loads(files[POOLED])
    modes = {name.removeprefix("pooling_mode_"): value for name, value in settings.items()}
    said = [name for name, value in modes.items() if value is True and name in POOLING_FLAGS]
    newer = settings.get("pooling_mode", [])  # one or several
    said += newer if isinstance(newer, list) else [newer]
    known = {"cls_token": "lead", "cls": "lead", "mean_tokens": "tokens", "mean": "tokens"}
    if len(said) == 1 and said[0] in known:
        return known[said[0]]
    print(f"init_from {path}: pooling {', '.join(map(str, said)) or 'unknown'} of {POOLED} is none of ours", flush=True)
    return None


POOLING_FLAGS = (
    "cls_token",
    "mean_tokens",
    "max_tokens",
    "mean_sqrt_len_tokens",
    "weightedmean_tokens",
    "lasttoken",
)


class RobertaHead:
    """The masked-LM head of the RoBERTas; the decoder's matrix is the words'."""

    head_names = {"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "bias": "lm_head.bias"}


def theta_of(rope: dict[str, Any], where: str) -> float:
    """The base of plain rotary positions; scaled ones are refused."""
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1) not in (1, None):
        raise ValueError(f"init_from: {where} has rotary positions of another kind than the default: {rope}")
    return rope["rope_theta"]
