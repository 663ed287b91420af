"""Triptych: pretrain one transformer encoder on images, text or audio. `from triptych import pretrain`.

The folder of the checkout is the package, so that its parts have names of their own beside a user's `train.py`.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`pretrain` is imported when it is asked for: torch takes two seconds."""
    if name == "pretrain":
        from triptych.train import pretrain

        return pretrain
    raise AttributeError(f"module 'triptych' has no attribute {name!r}")
