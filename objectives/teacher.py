"""A teacher: a copy of some modules that follows them as a moving average, in float32, under every ZeRO stage."""

import copy
import math

import torch
from torch import nn

from triptych.objectives.base import Progress


class Teacher(nn.ModuleList):
    """Copies of `students`, without gradient. Make it in the objective's constructor, before anything is partitioned.

    The average is over steps that were applied, and its half-life is a number of samples, so that neither the
    batch size nor gradient accumulation changes it: momentum `m = 0.5 ** (batch / half_life)`, raised to 1 along a
    cosine over the run (BYOL, Grill et al. 2020, section 3.3).
    """

    def __init__(self, *students: nn.Module, half_life: float):
        super().__init__(copy.deepcopy(student) for student in students)
        self.requires_grad_(False)
        self.half_life = half_life

    def momentum(self, progress: Progress) -> float:
        base = 0.5 ** (progress.batch / self.half_life)
        return 1 - (1 - base) * (1 + math.cos(math.pi * progress.fraction)) / 2

    @torch.no_grad()
    def follow(self, *students: nn.Module, progress: Progress) -> None:
        """Move by one step towards the students; buffers are copied."""
        applied = torch.as_tensor(progress.applied)
        weight = applied * (1 - self.momentum(progress))  # 0: the teacher stays, bit for bit
        for teacher, student in zip(self, students, strict=True):
            pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
            torch._foreach_lerp_([local(t) for t, _ in pairs], [local(s) for _, s in pairs], [weight] * len(pairs))
            for kept, current in zip(teacher.buffers(), student.buffers(), strict=True):
                kept.copy_(torch.where(applied, current, kept))


def local(parameter: nn.Parameter) -> torch.Tensor:
    """What this rank holds of a parameter: its shard under ZeRO-3, where teacher and student are cut alike."""
    return parameter.ds_tensor.data if hasattr(parameter, "ds_tensor") else parameter.data
