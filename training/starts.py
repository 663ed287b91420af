"""What a run may start from: a published checkpoint, or another run of ours; and what of it a run keeps."""

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych.encoders import Backbone
from triptych.encoders.native import Family, Native, Start, family_of, in_words, start_from
from triptych.encoders.native.grid import each
from triptych.modalities import MODALITIES
from triptych.modalities.domains import arguments
from triptych.training import checkpoint
from triptych.training.command_line import load_yaml, read
from triptych.training.continuing import merged
from triptych.training.errors import UserError
from triptych.training.ranks import Team

CONVOLVED = ("channels", "mean", "std")  # what the first convolution of a picture is made for


@dataclass
class RunStart:
    """A run of ours as a start: of another data set, with another objective, or for longer. Like `native.Start`."""

    family: Family
    modality: dict[str, Any]
    encoder: dict[str, Any]
    pooling: str | None
    folder: Path = field(repr=False)  # the checkpoint; what its modality was fitted to is taken from there
    objective: dict[str, Any] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    brought: tuple[str, ...] = ()
    trained_by: str | None = None

    def __str__(self) -> str:
        return f"{self.folder}, {in_words(self)}"

    def adapted(self, given: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """The modality's settings; nothing is changed at load. What the run brings is not to be given as another."""
        for name in self.brought:
            if given.get(name) not in (None, self.modality.get(name)):
                raise UserError(
                    f"modality.{name} {given[name]} was given, but init_from {self.folder} brings its own; leave "
                    f"modality.{name} out"
                )
        # Into a published start these are folded, into its first convolution.
        for name in CONVOLVED if "channels" in self.family.free else ():
            value, its, count = given.get(name), self.modality.get(name), self.modality.get("channels")
            if value is not None and (its is None or each(value, count) != each(its, count)):
                raise UserError(
                    f"modality.{name} {value} was given, but init_from {self.folder} was trained with its own; leave "
                    f"modality.{name} out, or export that run and start from the export, whose first convolution is "
                    "folded for it"
                )
        return self.modality, None

    def load(self, backbone: Backbone) -> None:
        """Put the run's encoder into a backbone of the same sizes."""
        from safetensors.torch import load_file

        weights = merged(load_file(self.folder / "model.safetensors"))
        mine = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if name not in mine or mine[name].shape != parameter.shape:
                    raise UserError(
                        f"init_from {self.folder}: its {name} does not fit; leave the sizes to that run, or export it "
                        "and start from the export"
                    )
                parameter.copy_(mine[name])
        backbone.native = Native.load(self.folder / "native")

    def load_heads(self, objective: nn.Module) -> None:
        """Heads start afresh: they are of another objective, or of other data."""


def find(source: str, modality: str, revision: str | None = None) -> Start | RunStart:
    """The start that `init_from` names."""
    folder = Path(source)
    if revision is not None and folder.is_dir():
        raise UserError(f"init_revision {revision}: {source} is a folder, which has no revisions; leave it out")
    if not (folder / "config.yaml").is_file():
        return start_from(source, modality, revision)
    if (found := checkpoint.whole(folder)) is None:
        raise UserError(f"init_from {source}: that run has no whole checkpoint")
    config = read(load_yaml(found / "config.yaml"))
    if config.modality["name"] != modality:
        raise UserError(f"init_from {source} is of modality {config.modality['name']}, the run is of {modality}")
    settings = {k: v for k, v in config.modality.items() if k != "name" and v is not None}
    # Sizes are the run's; how a view is augmented, and what is predicted, may be another.
    return RunStart(
        family_of(modality, config.run.family),
        settings,
        {k: v for k, v in config.encoder.items() if k != "name" and v is not None},
        config.run.pooling,
        found,
        free=tuple(name for name, *_ in arguments(MODALITIES[modality])),
        brought=MODALITIES[modality].brought,
    )


def stored(source: str) -> str:
    """The start's name as a run keeps it: a folder's is a path, also when the folder is gone, and never a hub id."""
    return f"./{source}" if os.path.isdir(source) and not source.startswith(("/", "~", ".")) else source


KEPT = "start.safetensors"  # in the folder of a run that needs its start all along


def keep(start: Backbone, folder: Path) -> str:
    """Write the start's weights into a run's folder, which must not need its source again; returns their SHA-256."""
    from safetensors.torch import save_file

    aside = folder / f".{KEPT}.partial"
    save_file({name: value.to("cpu", copy=True).contiguous() for name, value in start.state_dict().items()}, aside)
    checkpoint.sync(aside)
    os.replace(aside, folder / KEPT)
    checkpoint.sync(folder)
    return checkpoint.digest(folder / KEPT)


def recover(backbone: Backbone, folder: Path, wanted: str | None, team: Team, device: torch.device) -> Backbone:
    """The start that `keep` wrote, as a copy of a backbone of the same sizes. All ranks take part, the first one reads.

    `wanted`: its SHA-256.
    """
    file = folder / KEPT

    def check() -> None:
        if not file.is_file() or checkpoint.digest(file) != wanted:
            raise UserError(
                f"{file} is {'damaged' if file.is_file() else 'missing'}, and --preserve needs it: put it back from a "
                f"copy, or start another run from the weights: --init_from {folder} and another output_dir"
            )

    team.first(check)
    start, weights = copy.deepcopy(backbone).to(device), checkpoint.Shared(file, team, device)
    with torch.no_grad():
        for name, value in start.state_dict().items():
            value.copy_(weights[name])
    return start
