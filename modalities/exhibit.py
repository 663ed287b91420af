"""What people are shown of a view: a picture, a sound, or words; as it is, without what was hidden, or as guessed."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from triptych.modalities.view import View


class Seen(NamedTuple):
    """What an objective hid of a view, and what it says of that.

    `index [r h]`: hidden pieces, with repetitions; `valid [r h]`: which of these count. `guess [r h *g]`: what is
    guessed of each, as the modality's `error` takes it. None: nothing was hidden, or nothing is guessed of its content.
    """

    index: Int[Tensor, "r h"] | None = None
    valid: Bool[Tensor, "r h"] | None = None
    guess: Tensor | None = None

    def hidden(self, view: View) -> Bool[Tensor, "r n"]:
        """True for the pieces of a view that were hidden."""
        hidden = torch.zeros(view.data.shape[:2], dtype=torch.long, device=view.data.device)
        return hidden if self.index is None else hidden.scatter_add(1, self.index, self.valid.long()) > 0


class Word(NamedTuple):
    """A run of text; of a hidden one, what was guessed."""

    text: str
    hidden: bool = False
    guess: str | None = None


@dataclass(frozen=True)
class Exhibit:
    """One sample for people to look at.

    Args:
        picture: `[h w 3]` colours, or `[h w]` a quantity, in 0 to 1; NaN where hidden.
        sound: its wave, and samples a second.
        words: its text.
    """

    picture: np.ndarray | None = None
    sound: tuple[np.ndarray, int] | None = None
    words: tuple[Word, ...] | None = None
