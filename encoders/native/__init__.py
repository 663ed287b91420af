"""Native `transformers` families: one file each, all listed here by the `model_type` of their configuration."""

import difflib
from pathlib import Path
from typing import Any

from triptych.encoders.backbone import POOLINGS, Backbone, Pooling
from triptych.encoders.encoder import Encoder
from triptych.encoders.native.ast import AST
from triptych.encoders.native.base import POOLING, Family, Plain
from triptych.encoders.native.bert import Bert
from triptych.encoders.native.deit import DeiT
from triptych.encoders.native.dinov2 import Dinov2
from triptych.encoders.native.dinov2_with_registers import Dinov2WithRegisters
from triptych.encoders.native.dinov3_vit import DINOv3ViT
from triptych.encoders.native.eurobert import EuroBert
from triptych.encoders.native.ijepa import IJepa
from triptych.encoders.native.modernbert import ModernBert
from triptych.encoders.native.nomic_bert import NomicBert
from triptych.encoders.native.roberta import Roberta, XLMRoberta
from triptych.encoders.native.roberta_prelayernorm import RobertaPreLayerNorm
from triptych.encoders.native.siglip_vision_model import SiglipVisionModel
from triptych.encoders.native.start import Native, Start, in_words
from triptych.encoders.native.text import POOLED
from triptych.encoders.native.vit import ViT, ViTMAE
from triptych.modalities import MODALITIES, Modality, Text

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        ViT(),
        ViTMAE(),
        DeiT(),
        IJepa(),
        Dinov2(),
        Dinov2WithRegisters(),
        DINOv3ViT(),
        SiglipVisionModel(),
        AST(),
        RobertaPreLayerNorm(),
        Bert(),
        Roberta(),
        XLMRoberta(),
        ModernBert(),
        NomicBert(),
        EuroBert(),
    )
}
# What a modality is trained as where nothing else is said.
DEFAULTS = {"image": "vit", "audio": "audio-spectrogram-transformer", "text": "roberta-prelayernorm"}
# A published encoder of each that little data may start from.
PUBLISHED = {
    "image": "facebook/dinov2-small",
    "audio": "MIT/ast-finetuned-audioset-10-10-0.4593",
    "text": "sentence-transformers/all-MiniLM-L6-v2",
}


def family_of(modality: str, name: str | None = None) -> Family:
    """The family of that name, or the modality's default (`Plain` where it has none). A misfit is a `ValueError`."""
    name = name or DEFAULTS.get(modality)
    if name is None:
        return Plain(modality)
    if name not in FAMILIES:
        raise ValueError(f"family {name!r} is not one of {known(modality)}{nearest(name)}")
    if FAMILIES[name].modality != modality:
        raise ValueError(
            f"family {name} is of modality {FAMILIES[name].modality}, the run is of {modality}; "
            f"there are {known(modality)}"
        )
    return FAMILIES[name]


def make(modality: Modality, family: str | None = None, pooling: Pooling | None = None, **encoder: Any) -> Backbone:
    """A backbone for a modality: of the named family or of the modality's default, with that pooling or the family's.

    `encoder` holds a preset's `name` and fields of the `Architecture`. A modality without native classes brings its own
    embedding.
    """
    kind = next((name for name, cls in MODALITIES.items() if cls is type(modality)), "")
    of = family_of(kind, family)
    made = of.architecture(**encoder)
    trunk = Encoder(made)
    return Backbone(of.embedding(modality, made), trunk, pooling or of.pooling)


def teacher_for(path: str, modality: Modality, revision: str | None = None, size: int | None = None) -> Backbone:
    """A published checkpoint as it is, with a modality of its own, for the samples of another of the same kind.

    `size` is the side of what it sees, in pixels, for a family of pictures that takes several.
    """
    kind = next((name for name, cls in MODALITIES.items() if cls is type(modality)), "")
    try:
        start = start_from(path, kind, revision)
        settings = dict(start.modality)
        if size is not None:
            if "image_size" not in settings:
                raise ValueError(f"{path} has one size only; leave objective.size out")
            settings = start.adapted({"image_size": size})[0] | {"image_size": size}
        own = MODALITIES[kind](**settings)
        if isinstance(own, Text):
            own.fit(None, "")
        backbone = make(own, start.family.name, start.pooling, **start.encoder)
        start.load(backbone)
    except ValueError as error:
        raise ValueError(f"objective.teacher: {str(error).removeprefix('init_from ')}") from error
    return backbone


def known_as(kind: str | None) -> Family | None:
    """The family that a published model of that `model_type` is started as; None if there is none."""
    return next((f for f in FAMILIES.values() if kind == f.name or kind in f.wholes), None)


def known(modality: str) -> str:
    """Names of a modality's families."""
    return ", ".join(name for name, family in FAMILIES.items() if family.modality == modality)


def nearest(name: str) -> str:
    found = difflib.get_close_matches(str(name), FAMILIES, 1, 0.5)
    return f"; nearest: {found[0]}" if found else ""


def left_behind(start: Start) -> str:
    """Parts of a checkpoint that are neither trained nor kept: another tower, a head of another class."""
    beyond = [name for name in start.model.beyond if not any(name.endswith(kept) for kept in start.native.kept)]
    return ", ".join(sorted({name.split(".")[0] for name in beyond}))


def pooling_kept(settings: dict[str, Any]) -> Pooling | None:
    """The pooling of the run that was exported with this configuration, where it was not the native head's."""
    return found if (found := settings.get(POOLING)) in POOLINGS else None


def start_from(path: str, modality: str, revision: str | None = None) -> Start:
    """Read a published checkpoint to start from: a hub id, and a revision of it, or a folder."""
    from transformers import PreTrainedConfig

    hub = {} if revision is None else {"revision": revision}
    if (path.startswith(("/", ".", "~")) or path.count("/") > 1) and not Path(path).is_dir():
        raise ValueError(f"init_from {path}: no such folder")
    if revision is not None and Path(path).is_dir():
        raise ValueError(f"init_from {path} is a folder, which has no revisions; leave {revision} out")
    try:
        settings, _ = PreTrainedConfig.get_config_dict(path, **hub)
        kind = settings.get("model_type")
        family = known_as(kind)
        if family is not None:
            if family.modality != modality:
                raise ValueError(f"init_from {path} is of modality {family.modality}, the run is of {modality}")
            start = family.start(path, **hub)
            if POOLED not in start.native.files:
                start.pooling = pooling_kept(settings) or start.pooling
            if left := left_behind(start):
                known_by = start.native.architecture
                print(f"init_from {path}: {left} of the file have no place in a {known_by}, and stay behind")
            return start
    except OSError as error:  # nothing there, no network, no safetensors
        said = str(error).splitlines()[0]
        way = "; pickles (.bin) are not read: load it with transformers where you trust it, and save_pretrained it"
        raise ValueError(f"init_from {path}: {said}{way * ('safetensors' in said)}") from error
    what = f"is of the family {kind!r}" if kind else "has no model_type in its config.json (timm and others have none)"
    raise ValueError(
        f"init_from {path} {what}; known are {', '.join(FAMILIES)}{nearest(kind) if kind else ''}; "
        "train one of these from nothing, or start from a checkpoint of one"
    )


__all__ = [
    "DEFAULTS",
    "FAMILIES",
    "Family",
    "Native",
    "Start",
    "family_of",
    "in_words",
    "known",
    "known_as",
    "make",
    "start_from",
    "teacher_for",
]
