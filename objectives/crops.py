"""Multi-crop: two large views of a sample and several small ones, which cost little (SwAV, Caron et al. 2020)."""

from dataclasses import dataclass

from triptych.modalities.domains import Fraction, Number, Scale
from triptych.modalities.view import ViewSpec


@dataclass(frozen=True)
class Crops:
    """Two large views of a sample, and small ones beside them.

    A small view of a picture is a smaller picture of a smaller part, one of a sound a shorter window, one of a text
    fewer words. (The sizes are DINO's: 96 of 224 pixels.)

    Args:
        number: small views of a sample; 0 for the two large ones alone.
        size: length of a small view's sides, relative to a large one's.
        scale: smallest and largest fraction of a sample that a small view keeps.
        large: smallest and largest fraction of a sample that a large view keeps.
    """

    number: Number = 6
    size: Fraction = 0.43
    scale: Scale = (0.05, 0.4)
    large: Scale = (0.4, 1.0)

    def views(self) -> tuple[ViewSpec, ...]:
        """The large views, which are the first two, then the small ones."""
        sizes = [(self.large, 1.0)] * 2 + [(self.scale, self.size)] * self.number
        return tuple(
            ViewSpec(scale=scale, size=size, strength="strong", index=index)
            for index, (scale, size) in enumerate(sizes)
        )
