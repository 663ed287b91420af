"""Triptych: pretrain one transformer encoder on images, text or audio. `from triptych import pretrain, embed`.

The folder of the checkout is the package, so that its parts have names of their own beside a user's `train.py`.
"""

import sys
import types
from typing import Any


class Package(types.ModuleType):
    """`pretrain` and `embed` are imported when they are asked for: torch takes two seconds.

    `embed` is the function also when the module of that name was imported before, which Python puts into its place.
    """

    @property
    def pretrain(self) -> Any:
        from triptych.train import pretrain

        return pretrain

    @property
    def embed(self) -> Any:
        from triptych.embed import embed

        return embed

    @embed.setter
    def embed(self, module: types.ModuleType) -> None:
        """What the import of the module would set."""


sys.modules[__name__].__class__ = Package
