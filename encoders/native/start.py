"""What a published checkpoint brings: settings before anything is built, weights, and what goes out again."""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from triptych.encoders.backbone import Backbone, Pooling

if TYPE_CHECKING:  # it imports this
    from triptych.encoders.native.base import Family


@dataclass
class Native:
    """What a published checkpoint brought that is not trained here, and goes out again as it came in.

    Args:
        config: fields of the native configuration.
        kept: tensors of the base model that have no counterpart here (a pooler), by their names in it.
        heads: tensors of its heads, by their names in the published class.
        architecture: name of that class.
        files: further text files of its folder, by their names in it.
    """

    config: dict[str, Any]
    kept: dict[str, Tensor] = field(default_factory=dict, repr=False)
    heads: dict[str, Tensor] = field(default_factory=dict, repr=False)
    architecture: str | None = None
    files: dict[str, str] = field(default_factory=dict, repr=False)

    def __deepcopy__(self, memo) -> "Native":
        return self  # a teacher's backbone shares it

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config | {"architectures": [self.architecture]}, indent=1))
        (folder / "files.json").write_text(json.dumps(self.files, indent=1))
        parts = {"kept": self.kept, "heads": self.heads}
        tensors = {f"{part}/{name}": t.contiguous().clone() for part, ts in parts.items() for name, t in ts.items()}
        save_file(tensors, folder / "kept.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "Native | None":
        from safetensors.torch import load_file

        if not (folder / "config.json").is_file():
            return None
        config = json.loads((folder / "config.json").read_text())
        (architecture,) = config.pop("architectures")
        parts: dict[str, dict[str, Tensor]] = {"kept": {}, "heads": {}}
        for name, tensor in load_file(folder / "kept.safetensors").items():
            part, _, name = name.partition("/")
            parts[part][name] = tensor
        # Earlier versions kept no files.
        files = json.loads(file.read_text()) if (file := folder / "files.json").is_file() else {}
        return cls(config, architecture=architecture, files=files, **parts)


@dataclass
class Start:
    """What a published checkpoint says before anything is built: settings by our arguments' names, and its weights.

    Args:
        family: what it is.
        modality: settings of the modality.
        encoder: fields of the `Architecture`.
        objective: settings of the objective that it was trained with; one with other arguments ignores them.
        trained_by: name of that objective, where others have arguments of those names too.
        pooling: what the checkpoint itself says about it, if anything.
        native: its configuration; `load` adds the tensors that are kept.
        model: the native model.
        processor: its processor or tokenizer, if it has one.
        absent: tensors of the base model that the checkpoint has not: their values are random, and not kept.
        own: settings of the modality that its own features are made with, and a run on other data may not want.
    """

    family: "Family" = field(repr=False)
    modality: dict[str, Any]
    encoder: dict[str, Any]
    native: Native = field(repr=False)
    model: Any = field(repr=False)
    objective: dict[str, Any] = field(default_factory=dict)
    trained_by: str | None = None
    pooling: Pooling | None = None
    processor: Any = field(default=None, repr=False)
    absent: frozenset[str] = field(default=frozenset(), repr=False)
    own: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return in_words(self)

    @property
    def free(self) -> tuple[str, ...]:
        """Settings of the modality of which the user may have others."""
        return self.family.free

    def adapted(self, given: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """The modality's settings beside those that the user gave, and what that changes, in a line."""
        return self.family.adapted(self.modality, given)

    def load(self, backbone: Backbone) -> None:
        """Put the weights into a backbone that was built with these settings. Before an objective is made of it."""
        self.family.load(self, backbone)

    def load_heads(self, objective: nn.Module) -> None:
        """Put the weights of heads and decoders into an objective that has such."""
        self.family.load_heads(self, objective)


def in_words(start) -> str:
    """What a start says before anything is built, in a line: its family, its pooling, its settings."""
    said = start.modality | start.encoder | start.objective
    pooling = f", pooled by {start.pooling}" if start.pooling else ""
    return f"{start.family.name}{pooling}; " + ", ".join(f"{name} {plain(value)}" for name, value in said.items())


def native_of(model) -> Native:
    """The configuration that a published model brought. Its own version and type are written anew at export."""
    config = copy.deepcopy(model.config).to_dict()
    # `auto_map` names code that is never run here, nor does it go along: the native class has no need of it.
    for name in ("transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path", "auto_map"):
        config.pop(name, None)
    return Native(config, architecture=type(model).__name__)


def plain(value: Any) -> Any:
    """As YAML has it."""
    return list(value) if isinstance(value, tuple) else value
