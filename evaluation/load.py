"""Encoders to look at: a run's, from its newest whole checkpoint, or a published one."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from triptych.encoders.backbone import Backbone
from triptych.encoders.native import Native, make, start_from
from triptych.modalities import MODALITIES, Modality
from triptych.modalities.domains import build
from triptych.training import checkpoint
from triptych.training.command_line import load_yaml, modality_of, read
from triptych.training.continuing import merged
from triptych.training.errors import UserError, one_line
from triptych.training.settings import Config, Data


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


class Opened(NamedTuple):
    """An encoder on its way: its modality, whether that was fitted to data, and what builds the backbone after that.

    `data` is what a run was trained on.
    """

    modality: Modality
    fitted: bool
    build: Callable[[], Backbone]
    data: Data | None = None


def opened(source: str | Path, weights: str = "student", revision: str | None = None) -> Opened:
    """A run's encoder, by its folder or a checkpoint's, or a published one: an export, another folder, or a hub id."""
    folder = Path(source).expanduser()
    if revision is not None and folder.is_dir():
        raise UserError(f"revision {revision}: {source} is a folder, which has no revisions; leave it out")
    if folder.is_dir() and not (folder / "config.json").is_file():
        config, objective, _ = from_run(folder)
        backbone = backbone_of(objective, weights)
        return Opened(backbone.modality, True, lambda: backbone, config.data)
    if weights != "student":
        raise UserError(f"weights {weights}: {source} is no run, and has one encoder; leave it out")
    name = str(folder) if folder.exists() else str(source)
    try:
        kind = modality_of(name, revision)
        start = start_from(name, kind or next(iter(MODALITIES)), revision)
        settings = start.modality | start.own
        modality = build(MODALITIES[kind], {key: v for key, v in settings.items() if v is not None}, "modality.")
    except ValueError as error:
        raise UserError(one_line(error).replace("init_from ", "", 1)) from error

    def loaded() -> Backbone:
        backbone = make(modality, start.family.name, start.pooling, **start.encoder)
        start.load(backbone)
        return backbone.eval()

    return Opened(modality, False, loaded)


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
