"""Distillation from a frozen teacher: any published encoder, of any family and size, that is never trained here."""

import hashlib
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone, pool, pool_pieces
from triptych.encoders.native import teacher_for
from triptych.modalities.base import Modality
from triptych.modalities.domains import Count, Part, Scale
from triptych.modalities.view import View, ViewSpec
from triptych.objectives import collectives, masking
from triptych.objectives.base import Batch, Objective, Progress


class FrozenTeacher(Objective):
    """Match what a frozen teacher makes of the same view: its vector of the sample, or its tokens piece by piece.

    Feature distillation (Hinton et al. 2015, arXiv:1503.02531, of representations instead of classes). With `s` the
    student's vector, mapped linearly to the teacher's width where the two differ, and `t` the teacher's, the loss is
    the mean of `1 - cos(s, t)`. With `hidden`, the student does not see the contents of so many pieces, and, piece by
    piece, only these count: static latents (SALT, Li et al. 2025, arXiv:2509.24317).

    The teacher sees the student's view, resized and normalised its own way. It is read from where it was published, is
    no part of the run's checkpoints, and is neither trained nor partitioned. A run keeps the width and the hash of its
    weights: it goes on with the same teacher or not at all, and is probed and exported without it.

    Args:
        teacher: folder or hub id of a native checkpoint of the run's modality.
        target: the teacher's `pooled` vector, by the pooling that its native head reads, or its `pieces`, which must
            lie on the student's grid.
        hidden: fraction of the pieces whose contents the student does not see.
        size: side of what the teacher sees, for a family that takes several. Default: its own.
        revision: branch, tag or commit of a teacher on the hub.
        width: width of the teacher's vectors. Default: the run reads it from the teacher, and keeps it.
        sha256: hash of the teacher's weights, likewise.
        scale: smallest and largest fraction of a sample that its view keeps.
    """

    cost: ClassVar[str] = (
        "one forward by the teacher, which is often the larger one, and one by the student; the teacher's weights on "
        "every rank, without gradient or moments, not in checkpoints; nothing is gathered"
    )
    collapse: ClassVar[str] = "none that the teacher has not: its vectors are fixed"
    choose: ClassVar[str] = "a good large model of the same kind of data exists, and a small one of one's own is wanted"

    def __init__(
        self,
        backbone: Backbone,
        teacher: str | None = None,
        target: Literal["pooled", "pieces"] = "pooled",
        hidden: Part = 0.0,
        size: Count | None = None,
        revision: str | None = None,
        width: Count | None = None,
        sha256: str | None = None,
        scale: Scale = (0.2, 1.0),
    ):
        super().__init__(backbone, (ViewSpec(scale=scale),))
        if teacher is None:
            raise ValueError("objective.teacher is not given: name a folder or hub id of a published checkpoint")
        self.teacher, self.target, self.hidden, self.sha256 = teacher, target, hidden, sha256
        self.size, self.revision = size, revision
        own = backbone.pooled_width if target == "pooled" else backbone.width
        self.map = nn.Linear(own, width) if width not in (None, own) else nn.Identity()
        self.held: list[Backbone] = []  # a list, so that the teacher is no part of this module

    @classmethod
    def found(cls, modality: Modality, **settings: Any) -> dict[str, Any]:
        if settings.get("teacher") is None or settings.get("width") is not None:
            return {}
        kept = {name: settings.get(name) for name in ("teacher", "revision", "size")}
        teacher = read(modality, settings.get("target", "pooled"), **kept)
        width = teacher.pooled_width if settings.get("target", "pooled") == "pooled" else teacher.width
        return {"width": width, "sha256": digest(teacher)}

    def before_step(self, progress: Progress) -> None:
        self.frozen()

    def frozen(self) -> Backbone:
        """The teacher, read when it is needed first."""
        if not self.held:
            teacher = read(self.backbone.modality, self.target, self.teacher, self.revision, self.size)
            if self.sha256 is not None and digest(teacher) != self.sha256:
                raise ValueError(
                    f"objective.teacher {self.teacher}: its weights are not those that this run began with (SHA-256 "
                    f"{self.sha256[:12]}...); give that teacher, or begin another run in another output_dir"
                )
            self.held.append(teacher)
        return self.held[0]

    def forward(self, views: Batch) -> dict[str, Tensor]:
        view, modality, hide = views[0], self.backbone.modality, None
        if self.hidden:
            hide = masking.hide(view, self.hidden, "random", 1, modality.hideable(view))
        encoded = self.backbone.encode(view, hide)
        if self.target == "pooled":
            guess, valid = self.map(pool(encoded, view, self.backbone.pooling)), None
        else:
            guess, valid = self.map(encoded.pieces), modality.hideable(view) if hide is None else hide
        loss = collectives.mean(distance(guess, self.targets(view)), None if valid is None else valid.flatten())
        return {"loss": loss, "features": pool_pieces(encoded, view).detach()}

    @torch.no_grad()
    def targets(self, view: View) -> Float[Tensor, "*n d"]:
        """The teacher's vectors `[b e]` of the samples, or `[r n d]` of the pieces."""
        teacher = self.frozen().to(view.data.device)
        shown = self.backbone.modality.shown(view, teacher.modality)
        return teacher(shown) if self.target == "pooled" else teacher.encode(shown).pieces


def distance(guess: Float[Tensor, "*n d"], target: Float[Tensor, "*n d"]) -> Float[Tensor, " n"]:
    """`1 - cos`, one a vector, in float32."""
    return (1 - F.cosine_similarity(guess.float(), target.float(), dim=-1)).flatten()


def read(modality: Modality, target: str, teacher: str, revision: str | None, size: int | None) -> Backbone:
    """The teacher, if views of that modality can be shown to it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what a checkpoint has not (a hidden token) is drawn, and hashed with the rest
        made = teacher_for(teacher, modality, revision, size)
    try:
        modality.check_shown(made.modality, target == "pieces")
    except ValueError as error:
        raise ValueError(f"objective.teacher {teacher}: {error}") from None
    return made.requires_grad_(False).eval()


def digest(module: nn.Module) -> str:
    """Hash of all parameters and buffers, by name."""
    state = hashlib.sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()
