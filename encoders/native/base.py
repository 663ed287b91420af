"""What a family is: the encoder's arguments, the embedding, a table of names and a processor, for one native class."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from triptych.encoders.backbone import Backbone, Pooling
from triptych.encoders.embeddings import Embedding
from triptych.encoders.encoder import PRESETS, Architecture
from triptych.encoders.native.names import Names, Pair, base_prefix, copy_in, copy_out, leaves
from triptych.encoders.native.start import Start, plain
from triptych.modalities import Modality


class Family:
    """One native class. `export` and `load` are each other's inverse, bit for bit.

    Names are of the native base model (`state_dict()`, not those on disk), without a prefix. A module stands for its
    weight and bias; `{}` is the number of a block. Where several names stand, their values follow each other.
    """

    name: ClassVar[str]  # the `model_type` of its configuration, and its name here
    modality: ClassVar[str]  # by its name in `MODALITIES`
    pooling: ClassVar[Pooling]  # what the native classification head reads
    defaults: ClassVar[dict[str, Any]] = {}  # of the `Architecture`, where they differ from its own
    free: ClassVar[tuple[str, ...]] = ("mean", "std", "target")  # settings of the modality that the user may change
    wholes: ClassVar[tuple[str, ...]] = ()  # types of published models of which this is a part
    config_class: ClassVar[str]
    base_class: ClassVar[str]
    classifier: ClassVar[str | None]  # what `AutoModelFor...Classification` makes of it
    whole: ClassVar[bool] = True  # the base class encodes all pieces
    auto_classes: ClassVar[str]  # for classification, and of the processor, as the model card quotes them
    # Arguments of the `Architecture` that its configuration can say, and those of which it can say these values only.
    said: ClassVar[tuple[str, ...]] = ("width", "depth", "heads", "hidden", "activation", "eps")
    choices: ClassVar[dict[str, tuple]] = {}
    names: ClassVar[dict[str, str]] = {}  # of the configuration's fields, where they are not the usual ones
    trunk: ClassVar[Names]  # of a block
    ends: ClassVar[Names] = {}  # of the encoder beside its blocks, and of the embedding
    optional: ClassVar[tuple[str, ...]] = ("pooler", "mask_token")  # parts of names that a checkpoint may lack

    # From settings to modules.

    def default(self, width: int, depth: int) -> dict[str, Any]:
        """Arguments of the architecture at that size, where they differ from its own defaults."""
        return dict(self.defaults)

    def architecture(self, name: str = "tiny", **given: Any) -> Architecture:
        """An encoder of a preset size; what is given, and not None, goes before the family's defaults."""
        if name not in PRESETS:
            raise ValueError(f"encoder.name {name!r} is not one of {', '.join(PRESETS)}")
        given = {key: value for key, value in given.items() if value is not None}
        size = dict(zip(("width", "depth", "heads"), PRESETS[name], strict=True))
        said = {key: given.pop(key) for key in size if key in given}
        size |= said
        if "heads" not in said and size["width"] % size["heads"]:  # 64 wide, or the next that divides
            size["heads"] = next(n for n in range(max(1, size["width"] // 64), 0, -1) if size["width"] % n == 0)
        default = self.default(size["width"], size["depth"]) | size
        made = Architecture(**default | given)
        usual = Architecture(**default)
        for key in given:
            choices = self.choices.get(key, () if key in self.said else (getattr(usual, key),))
            if choices and (value := getattr(made, key)) not in choices:
                words = " or ".join(str(plain(choice)) for choice in choices)
                raise ValueError(f"encoder.{key} {plain(value)}: the native class {self.base_class} has {words} only")
        self.check(made)
        return made

    def check(self, made: Architecture) -> None:
        """Refuse what the native class cannot express, beside `said` and `choices`."""

    def embedding(self, modality: Modality, made: Architecture) -> Embedding:
        raise NotImplementedError

    # Between ours and native.

    def settings(self, config) -> dict[str, Any]:
        """Fields of the `Architecture` that a native configuration describes."""
        raise NotImplementedError

    def fields(self, backbone: Backbone) -> dict[str, Any]:
        """Fields of the native configuration that say what the backbone is."""
        raise NotImplementedError

    def start(self, path: str, **hub) -> Start:
        """Read a published checkpoint. `hub`: `revision`, `token` and the like."""
        raise NotImplementedError

    def adapted(self, settings: dict[str, Any], given: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """A start's settings of the modality beside those that the user gave, and what that changes, in a line."""
        return settings, None

    def pooling_of(self, config) -> Pooling | None:
        """What a native configuration says of the pooling that its head reads, if anything."""
        return None

    def head_class(self, head: nn.Module) -> str | None:
        """The native class that carries our head beside the base model; None if there is none."""
        return None

    def head_pairs(self, head: nn.Module) -> Iterator[Pair]:
        """Names in our head, and full names in that class."""
        return iter(())

    def fill(self, backbone: Backbone) -> dict[str, Tensor]:
        """Values of tensors of the base model that have no counterpart here, where no checkpoint brought them."""
        return {}

    def outward(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        """Change our tensors, by our names, before they get native names."""

    def inward(self, state: dict[str, Tensor], start: Start, backbone: Backbone) -> None:
        """Change native tensors before they get our names: another size, other channels."""

    def head_outward(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        """Change the tensors of our head before they get native names."""

    def files(self, backbone: Backbone, model: Any) -> dict[str, str]:
        """Text files that an export holds beside the model and its processor, by their names."""
        return {}

    def again(self, backbone: Backbone, model: Any) -> dict[str, Any]:
        """Further native models that an export holds, each with its processor, by their folder in it."""
        return {}

    def pipeline_tag(self, model, backbone: Backbone) -> str | None:
        """A stock pipeline that runs with the exported model, by its name; None if there is none."""
        return "feature-extraction"

    def pairs(self, backbone: Backbone) -> Iterator[Pair]:
        """All names, ours within the backbone."""
        for number in range(backbone.encoder.depth):
            for ours, native in self.trunk.items():
                parts = (ours,) if isinstance(ours, str) else ours
                parts = tuple(f"encoder.blocks.{number}.{part}" for part in parts)
                yield from leaves(parts[0] if len(parts) == 1 else parts, native, number)
        for ours, native in self.ends.items():
            yield from leaves(ours, native)

    def load(self, start: Start, backbone: Backbone) -> None:
        state, prefix = start.model.state_dict(), base_prefix(start.model)
        inner = {k.removeprefix(prefix): v.clone() for k, v in state.items() if k.startswith(prefix)}
        heads = {k: v for k, v in state.items() if not k.startswith(prefix)}
        self.inward(inner, start, backbone)
        ours, used = dict(backbone.named_parameters()), set()
        for mine, theirs in self.pairs(backbone):
            used |= copy_in(ours, inner, mine, theirs)
        kept = {name: tensor for name, tensor in inner.items() if name not in used | start.absent}
        start.native.kept, start.native.heads = start.native.kept | kept, heads
        backbone.native = start.native

    def load_heads(self, start: Start, objective: nn.Module) -> None:
        head = objective.head
        if head is None or self.head_class(head) != type(start.model).__name__:
            return
        ours, state = dict(head.named_parameters()), start.model.state_dict()
        for mine, theirs in self.head_pairs(head):
            copy_in(ours, state, mine, theirs)

    def trained_heads(self, objective: nn.Module) -> dict[str, Tensor]:
        """Of the heads that a checkpoint brought those that were trained along, by their native names."""
        return {}

    def native(self, backbone: Backbone, head: nn.Module | None = None, keep_heads: bool = False):
        """An untrained native model of our sizes. Called where transformers may be imported."""
        import transformers

        brought, config_class = backbone.native, getattr(transformers, self.config_class)
        base = {} if brought is None else dict(brought.config)
        if base.pop("model_type", self.name) != self.name:  # of a family that goes out as this one
            base = {name: value for name, value in base.items() if name in config_class().to_dict()}
        base.pop(POOLING, None)
        fields = self.fields(backbone)
        for name in set(fields) & {"hidden_act", "hidden_activation"}:  # several names of one function
            if ACTIVATIONS.get(base.get(name)) == backbone.encoder.architecture.activation:
                fields.pop(name)
        name = (self.head_class(head) if head is not None else None) or self.base_class
        if keep_heads and brought is not None and brought.heads:
            name = brought.architecture
        if brought is not None and name != brought.architecture:  # its head stays behind, and what it said with it
            base = {field: value for field, value in base.items() if field not in OF_A_CLASSIFIER}
        made = config_class.from_dict(self.without_dropout() | base | fields)
        if backbone.pooling != (self.pooling_of(made) or self.pooling):  # our own commands read it
            setattr(made, POOLING, backbone.pooling)
        return getattr(transformers, name)(made)

    def without_dropout(self) -> dict[str, Any]:
        """None was trained with; a checkpoint's own configuration goes before this."""
        return {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

    def export(self, backbone: Backbone, head: nn.Module | None = None, keep_heads: bool = False):
        """The native model with our weights, and with what a checkpoint brought and we did not train."""
        model = self.native(backbone, head, keep_heads)
        wanted, prefix = model.state_dict(), base_prefix(model)
        tensors = {name: p.detach() for name, p in backbone.named_parameters()}
        self.outward(tensors, backbone)
        brought = backbone.native
        state = self.fill(backbone) | ({} if brought is None else brought.kept)
        state = {prefix + name: tensor for name, tensor in state.items() if prefix + name in wanted}
        for ours, theirs in self.pairs(backbone):
            state |= copy_out(tensors, wanted, ours, tuple(prefix + name for name in theirs))
        if head is not None and self.head_class(head) == type(model).__name__:
            inner = {name: p.detach() for name, p in head.named_parameters()}
            self.head_outward(inner, backbone)
            for ours, theirs in self.head_pairs(head):
                state |= copy_out(inner, wanted, ours, theirs)
        elif keep_heads and brought is not None:
            state |= {name: tensor for name, tensor in brought.heads.items() if name in wanted}
            for name, tensor in brought.heads.items():
                if name in wanted and tensor.shape != wanted[name].shape:
                    raise ValueError(
                        f"--keep_heads: {name} came for {list(tensor.shape)}, the run has {list(wanted[name].shape)} "
                        "since its size or its channels are others; leave --keep_heads out"
                    )
        place = {wanted[name].data_ptr(): name for name in state}
        for name in wanted.keys() - state.keys():  # one tensor under two names: a decoder that is tied to the words
            if (other := place.get(wanted[name].data_ptr())) is not None:
                state[name] = state[other]
        model.load_state_dict(state, strict=True)
        return model.eval()


class Plain(Family):
    """No native class: a modality that brings an embedding of its own can be trained and probed, not exported."""

    pooling = "leads"

    def __init__(self, modality: str):
        self.modality = modality

    def export(self, backbone: Backbone, head: nn.Module | None = None, keep_heads: bool = False):
        raise ValueError(
            f"no native class is known for modality {self.modality!r}: it can be trained and probed, not exported"
        )

    def embedding(self, modality: Modality, made: Architecture) -> Embedding:
        return modality.embedding(modality, made)


def from_pretrained(family: Family, path: str, published: str | None = None, **hub):
    """A checkpoint as the class that it was published as, or as the named one, in float32, never from a pickle.

    It must have all weights of the encoder.
    """
    import transformers

    config = getattr(transformers, family.config_class).from_pretrained(path, **hub)
    if (quantised := getattr(config, "quantization_config", None)) is not None:
        kind = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        raise ValueError(f"init_from {path}: its weights are quantised ({kind}); start from the checkpoint in full")
    published = published or (config.architectures or [family.base_class])[0]
    if not hasattr(transformers, published) or not published.startswith(family.base_class.removesuffix("Model")):
        published = family.base_class
    options = {"output_loading_info": True, "dtype": torch.float32, "use_safetensors": True}
    usual = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its table of a line a tensor; what matters of it is said below
    try:
        model, info = getattr(transformers, published).from_pretrained(path, config=config, **options, **hub)
    finally:
        transformers.logging.set_verbosity(usual)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"init_from {path}: there is an adapter of peft beside it; load it with peft, merge_and_unload() it and "
            "save_pretrained() what that gives"
        )
    prefix = base_prefix(model)
    missing = sorted(
        name.removeprefix(prefix)
        for name in info["missing_keys"]
        if name.startswith(prefix) and not any(part in name for part in family.optional)
    )
    if missing or info["mismatched_keys"]:
        problem = missing or [name for name, *_ in info["mismatched_keys"]]
        raise ValueError(f"init_from {path}: the checkpoint lacks {', '.join(map(str, problem[:5]))}")
    # Of the base model, what the checkpoint has not (its values here are random); in the file, what the class has not.
    model.absent = frozenset(name.removeprefix(prefix) for name in info["missing_keys"])
    model.beyond = set(info["unexpected_keys"])
    return model.eval()


# Fields of a configuration that say what a classifier's outputs are: with a new one, stock `transformers` would choose
# its loss and its labels by them.
OF_A_CLASSIFIER = ("id2label", "label2id", "problem_type")
POOLING = "pooling"  # of the configuration of an export, where it is not the native head's
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


def settings_of(config, hidden: int | None = None, names: dict[str, str] | None = None) -> dict[str, Any]:
    """The architecture's fields as most configurations name them; `names` has other ones by the usual.

    `hidden`: where there is no `intermediate_size`.
    """
    names = names or {}
    activation = getattr(config, names.get("hidden_act", "hidden_act"))
    if activation not in ACTIVATIONS:
        raise ValueError(f"init_from: hidden_act {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    return {
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "hidden": hidden or config.intermediate_size,
        "activation": ACTIVATIONS[activation],
        "eps": getattr(config, names.get("layer_norm_eps", "layer_norm_eps")),
    }


def fields_of(made: Architecture, names: dict[str, str] | None = None) -> dict[str, Any]:
    """The same fields, as those configurations want them."""
    fields = {
        "hidden_size": made.width,
        "num_hidden_layers": made.depth,
        "num_attention_heads": made.heads,
        "intermediate_size": made.hidden,
        "hidden_act": {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu"}[made.activation],
        "layer_norm_eps": made.eps,
    }
    return {(names or {}).get(name, name): value for name, value in fields.items()}
