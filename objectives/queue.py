"""A queue of what was made of earlier samples, the same on every rank, under every ZeRO stage."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from triptych.objectives import collectives
from triptych.objectives.base import Progress


class Queue(nn.Module):
    """The latest of some values, of any number; where it is full, the oldest give way.

    Buffers, so that checkpoints hold them: `values [k *v]`, the `identity [k]` of the samples that they are of, and how
    many were `taken` in all. It moves once a step that was applied, with the values of all ranks, in an order that does
    not depend on their number.
    """

    values: Tensor
    identity: Int[Tensor, " k"]
    taken: Int[Tensor, ""]

    def __init__(self, length: int, *shape: int):
        super().__init__()
        self.register_buffer("values", torch.zeros(length, *shape))
        self.register_buffer("identity", torch.zeros(length, dtype=torch.long))
        self.register_buffer("taken", torch.zeros((), dtype=torch.long))

    def filled(self) -> Bool[Tensor, " k"]:
        """False for slots that hold nothing yet."""
        return torch.arange(len(self.values), device=self.values.device) < self.taken

    @torch.no_grad()
    def push(self, values: list[Tensor], identity: list[Tensor], progress: Progress) -> None:
        """Take in a step's values `[b *v]` and their identities `[b]`, one tensor a micro-batch of this rank."""
        fresh, known = (self.everyone(parts)[-len(self.values) :] for parts in (values, identity))
        skipped = len(values) * collectives.ranks() * len(values[0]) - len(fresh)  # more than there is room for
        applied = torch.as_tensor(progress.applied, device=fresh.device)
        slot = torch.arange(len(fresh), device=fresh.device) + self.taken + skipped
        slot = slot % len(self.values)
        self.values[slot] = torch.where(applied, fresh.to(self.values.dtype), self.values[slot])
        self.identity[slot] = torch.where(applied, known, self.identity[slot])
        self.taken += applied * (len(fresh) + skipped)

    @staticmethod
    def everyone(parts: list[Tensor]) -> Tensor:
        """Micro-batch after micro-batch, and of each rank after rank."""
        joined = collectives.gather(torch.stack(parts))
        return joined.unflatten(0, (collectives.ranks(), len(parts))).transpose(0, 1).flatten(0, 2)
