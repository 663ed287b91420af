"""What a family is: the encoder's settings, a table of names and a processor, for one native `transformers` class."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from encoders.backbone import Backbone


@dataclass
class Start:
    """What a published checkpoint says before anything is built: settings of the modality and of the encoder.

    And of the objective that it was trained with, by our arguments' names; an objective with other ones ignores them.
    """

    modality: dict[str, Any]
    encoder: dict[str, Any]
    model: Any = field(repr=False)
    objective: dict[str, Any] = field(default_factory=dict)


class Family:
    """One native class. `state` and `load` are each other's inverse, bit for bit.

    Subclasses say which modality (its name in `MODALITIES`) and `model_type`s of a config they serve, and the names of
    the trunk: `block`, of a block's parts without `.weight` or `.bias`, `{}` being its number, with the three native
    names of the fused qkv; and `norm`, of the last LayerNorm.
    """

    modality: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    block: ClassVar[dict[str, str | tuple[str, str, str]]]
    norm: ClassVar[str]
    auto_classes: ClassVar[str]  # for classification, and of the processor, as the model card quotes them

    def pipeline_tag(self, model) -> str:
        """The hub's name for what the exported model does as it is."""
        return "feature-extraction"

    def native(self, backbone: Backbone, head: nn.Module | None):
        """An untrained native model of our sizes. Called where transformers may be imported."""
        raise NotImplementedError

    def state(self, backbone: Backbone, head: nn.Module | None) -> dict[str, Tensor]:
        """All tensors of `native`'s model by their native names."""
        raise NotImplementedError

    def start(self, path: str, **hub) -> Start:
        """Read a published checkpoint. `hub`: `revision`, `token` and the like."""
        raise NotImplementedError

    def load(self, start: Start, objective: nn.Module) -> list[str]:
        """Put a checkpoint's tensors into an objective's backbone; returns native names that found no use."""
        raise NotImplementedError

    def export(self, backbone: Backbone, head: nn.Module | None):
        """The native model with our weights."""
        model = self.native(backbone, head)
        model.load_state_dict(self.state(backbone, head), strict=True)
        return model.eval()

    def trunk(self, encoder: nn.Module, prefix: str = "") -> dict[str, Tensor]:
        """The encoder's tensors by native names."""
        state = {}
        for kind in ("weight", "bias"):
            state[f"{prefix}{self.norm}.{kind}"] = getattr(encoder.norm, kind)
            for i, block in enumerate(encoder.blocks):
                for ours, native in self.block.items():
                    tensor = getattr(block.get_submodule(ours), kind)
                    names = (native,) if isinstance(native, str) else native
                    for name, part in zip(names, tensor.chunk(len(names)), strict=True):
                        state[f"{prefix}{name.format(i)}.{kind}"] = part
        return state

    def load_trunk(self, state: dict[str, Tensor], encoder: nn.Module, prefix: str = "") -> None:
        """Take the encoder's tensors out of `state`."""
        with torch.no_grad():
            for kind in ("weight", "bias"):
                getattr(encoder.norm, kind).copy_(state.pop(f"{prefix}{self.norm}.{kind}"))
                for i, block in enumerate(encoder.blocks):
                    for ours, native in self.block.items():
                        names = (native,) if isinstance(native, str) else native
                        parts = [state.pop(f"{prefix}{name.format(i)}.{kind}") for name in names]
                        getattr(block.get_submodule(ours), kind).copy_(torch.cat(parts))


def from_pretrained(model_class, path: str, **hub):
    """Load a native checkpoint, in float32, never from a pickle; an encoder weight that it lacks is an error."""
    options = {"output_loading_info": True, "dtype": torch.float32, "use_safetensors": True}
    model, info = model_class.from_pretrained(path, **options, **hub)
    missing = sorted(k for k in info["missing_keys"] if "pooler" not in k)
    if missing or info["mismatched_keys"]:
        problem = missing or [m[0] for m in info["mismatched_keys"]]
        raise ValueError(f"init_from {path}: the checkpoint lacks {', '.join(map(str, problem[:5]))}")
    return model.eval()


def trunk_settings(config) -> dict[str, Any]:
    """The encoder's settings as the configs of the pre-norm families give them; refuses what the trunk is not."""
    if config.hidden_act != "gelu":
        raise ValueError(f"init_from: hidden_act {config.hidden_act!r} is not gelu, which is what the encoder has")
    if not getattr(config, "qkv_bias", True):
        raise ValueError("init_from: qkv_bias false: the encoder has biases")
    return {
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "eps": config.layer_norm_eps,
    }


def config_settings(backbone: Backbone) -> dict[str, Any]:
    """The same settings, as those configs want them. No dropout: none was trained with."""
    encoder = backbone.encoder
    return {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.blocks[0].mlp.up.out_features,
        "layer_norm_eps": encoder.eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
