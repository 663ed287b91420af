"""Runs that were never trained: a checkpoint of random weights, for tests of what reads one."""

from pathlib import Path
from typing import Any

import support
import torch

from triptych.training import checkpoint


def finished(
    modality: str, objective: str, folder: Path, settings: dict[str, Any] | None = None, noise: int = 0, **options
):
    """Write a run; returns its configuration and its objective, in evaluation mode.

    `settings` are the modality's, `noise` is the seed of what is added to the weights.
    """
    options |= {f"modality.{name}": value for name, value in (settings or {}).items()}
    config = support.config(modality, objective, folder, **options)
    adapter = config.build_modality()
    support.rows_of(modality, adapter)
    made = config.build_objective(adapter)
    torch.manual_seed(noise)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    weights = dict(made.named_parameters()) | dict(made.named_buffers())
    weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write(folder, 1, weights, {}, {"step": 1}, config.to_dict(), adapter)
    return config, made.eval()
