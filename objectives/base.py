"""What an objective is: one module with everything that is trained for its sake, from views to a loss."""

from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from triptych.encoders.backbone import Backbone
from triptych.modalities.base import Modality
from triptych.modalities.exhibit import Seen
from triptych.modalities.view import View, ViewSpec

Batch = list[View]  # one a view that the objective asked for


class Progress(NamedTuple):
    """Where training is: steps taken so far, steps in all, samples in a (global) step.

    `applied` (0-dim, on the device) is False where the last step's gradient was not finite and no weight was changed.
    """

    step: int
    steps: int
    batch: int
    applied: Tensor | bool = True

    @property
    def fraction(self) -> float:
        return min(1.0, self.step / max(1, self.steps))


class Objective(nn.Module):
    """Holds the backbone and what is trained for its sake: heads, decoder, teacher, prototypes, queue.

    `forward(views)` returns `{"loss": scalar, ...}`. Of the rest, all detached, what `extras` names goes to
    `after_step`, `features [B d]` go to the collapse monitor, and other scalars to `metrics.jsonl` under their own
    names. The loss of a rank is such that the mean over ranks is the loss of the joined batch, and so are the
    gradients.

    An objective whose loss is of the whole batch is two methods: `represent`, sample by sample, and `compare`, with all
    that mixes samples (normalisation over the batch, collectives). Forward is their composition; that split is what
    lets a batch be larger than memory. Others override `forward`.

    `views` is what it wants of each sample. Subclasses' constructors take the backbone first; their further arguments
    are the objective's configuration. An argument `samples` is the number of samples that are trained on: a run counts
    them in its data and stores the number, so that the objective is built again without the data.
    """

    # In a line each, for docs/objectives.md: forwards, memory and what is gathered; its collapse and which figure shows
    # it; when to take it.
    cost: ClassVar[str] = ""
    collapse: ClassVar[str] = ""
    choose: ClassVar[str] = ""
    extras: ClassVar[tuple[str, ...]] = ()
    # Beginnings of names of tensors, and what these were in checkpoints of earlier versions.
    earlier: ClassVar[dict[str, str]] = {}
    # True if a sample's loss depends on the others of its global micro-batch, so that accumulation changes the loss.
    compares: bool = False
    compares_where: ClassVar[str] = ""  # the settings that make it so, in words, of an objective that has such
    # False if the loss says nothing of samples that are not trained on; there is no `eval_loss` then.
    evaluates: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, views: tuple[ViewSpec, ...]):
        super().__init__()
        self.backbone = backbone
        self.views = views
        self.head: nn.Module | None = None  # on the encoder's own pieces; the native class carries it, if it can

    @classmethod
    def found(cls, modality: Modality, **settings: Any) -> dict[str, Any]:
        """Settings that the user left open and that are found out before anything is built; a run stores them."""
        return {}

    def represent(self, views: Batch) -> dict[str, Tensor]:
        """Sample by sample: views -> tensors whose first axis, or second after the views', is the batch."""
        raise NotImplementedError

    def compare(self, z: dict[str, Tensor]) -> dict[str, Any]:
        """Of the whole batch: representations -> `{"loss": ..., ...}`."""
        raise NotImplementedError

    def forward(self, views: Batch) -> dict[str, Any]:
        return self.compare(self.represent(views))

    def before_step(self, progress: Progress) -> None:
        """Set what depends on how far training is: temperatures, a frozen layer. Called before a step's forwards, and
        before those of an evaluation."""

    def after_step(self, extras: list[dict[str, Tensor]], progress: Progress) -> None:
        """Move what the optimizer does not: teacher, centre, queue.

        Called after every step, with the extras that forward returned, one a micro-batch. Where `progress.applied` is
        False nothing may move: by `torch.where` or a factor, since to ask would make the host wait for the device.
        """

    def seen(self, views: Batch) -> list[Seen]:
        """For people to look at: what is hidden of each view, and what is guessed there. By default nothing is.

        It is of one process alone, apart from training, so nothing in it may ask other ranks.
        """
        return [Seen() for _ in views]

    def averaged(self) -> Backbone | None:
        """The teacher's backbone, where there is one that may be exported instead of the student's."""
        return None
