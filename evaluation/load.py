"""A finished run's objective, from its newest whole checkpoint."""

from pathlib import Path

import torch

from triptych.encoders.backbone import Backbone
from triptych.encoders.native import Native
from triptych.training import checkpoint
from triptych.training.command_line import load_yaml, read
from triptych.training.continuing import merged
from triptych.training.errors import UserError, one_line
from triptych.training.settings import Config


def from_run(folder: str | Path) -> tuple[Config, object, Path]:
    """Configuration, objective with its trained weights, and the checkpoint they came from.

    `folder` is a run's, or one checkpoint's.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run")
    if (found := checkpoint.whole(folder)) is None:
        raise UserError(f"{folder} holds no whole checkpoint; train first: python train.py --output_dir {folder} ...")
    config = read(load_yaml(found / "config.yaml"))
    modality = config.build_modality()
    modality.load(str(found / "modality"))
    objective = config.build_objective(modality)
    objective.backbone.native = Native.load(found / "native")
    weights, held = merged(load_file(found / "model.safetensors")), dict(objective.named_parameters())
    held |= dict(objective.named_buffers())
    if (names := checkpoint.names(objective, weights)) is None:
        raise UserError(f"{found}: its tensors are not those of objective {config.objective['name']}")
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(weights[names[name]])
    return config, objective.eval(), found


def backbone_of(objective, weights: str = "student") -> Backbone:
    """The student's backbone or the teacher's."""
    if weights == "student":
        return objective.backbone
    teacher = objective.averaged()
    if teacher is None:
        raise UserError("weights teacher: this objective has none; use student")
    return teacher


def published(config: Config, checkpoint: Path) -> Backbone | None:
    """The encoder as a run that has `init_from` began with it; None, and a line, where that cannot be read any more."""
    from safetensors.torch import load_file

    from triptych.training import starts

    modality = config.build_modality()
    modality.load(str(checkpoint / "modality"))
    if (kept := checkpoint.parent / starts.KEPT).is_file():
        backbone = config.build_objective(modality).backbone
        backbone.load_state_dict(load_file(kept))
        return backbone
    try:
        start = starts.find(config.run.init_from, config.modality["name"], config.run.init_revision)
        objective = config.build_objective(modality, start)
    except ValueError as error:
        print(f"not beside the published start, which cannot be read: {one_line(error)}")
        return None
    return objective.backbone
