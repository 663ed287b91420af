"""Prototypes: directions that samples are assigned to, Sinkhorn's assignment of a whole batch, and its prediction."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.modalities.precision import product
from triptych.objectives import collectives


class Prototypes(nn.Module):
    """Cosines of vectors and prototypes, in float32.

    The weight is normalised in the forward and never written back, which ZeRO would lose. So its length means nothing,
    and it is not decayed. Adam turns a long one slowly, though: `std` is the deviation of its numbers at first. While
    `moves` is 0 it gets a gradient of zeros, under every ZeRO stage.
    """

    no_decay = ("weight",)
    moves: Float[Tensor, ""]

    def __init__(self, width: int, count: int, std: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        self.register_buffer("moves", torch.ones(()))
        nn.init.normal_(self.weight, std=std)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight * self.moves + self.weight.detach() * (1 - self.moves)
            x, weight = F.normalize(x.float(), dim=-1), F.normalize(weight.float(), dim=-1)
            return product(x.flatten(0, -2), weight.T).unflatten(0, x.shape[:-1])


@torch.no_grad()
def sinkhorn(
    logits: Float[Tensor, "n k"], weight: Float[Tensor, " n"] | None = None, iterations: int = 3
) -> Float[Tensor, "n k"]:
    """Probabilities of k prototypes for each sample, such that those of all ranks use them equally (SwAV, section 3.1).

    From `Q = exp(logits)` it scales, alternately, each prototype's sum over all samples of all ranks to 1/k, and each
    sample's sum to 1/n; the last is then brought to 1. In float32. Ranks may hold different numbers of samples. Those
    of weight 0 count for nothing.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        largest = collectives.gather(logits.amax()[None]).amax()  # the first scaling takes it out again
        made = (logits - largest).exp()
        weight = made.new_ones(len(made)) if weight is None else weight
        for _ in range(iterations):
            used = collectives.total((made * weight[:, None]).sum(0))
            made = made / used.clamp(min=TINY)
            made = made / made.sum(1, keepdim=True).clamp(min=TINY)
        return made


def swapped_loss(
    score: Float[Tensor, "s b k"], target: Float[Tensor, "t b k"], temperature: float
) -> Float[Tensor, ""]:
    """Mean cross-entropy of all views but its own with each of the first t views' targets, in float32."""
    with torch.autocast(score.device.type, enabled=False):
        log = F.log_softmax(score.float() / temperature, dim=-1)
        cross = -product(target.flatten(1), log.flatten(1).T) / score.shape[1]
        others = ~torch.eye(*cross.shape, dtype=torch.bool, device=cross.device)
        return (cross * others).sum() / (len(target) * (len(score) - 1))


@torch.no_grad()
def perplexity(probability: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """How many prototypes are used: the exponential of the entropy of the mean over all ranks, from 1 to k."""
    mean = collectives.total(probability.float().mean(0)) / collectives.ranks()
    return torch.special.entr(mean).sum().exp()


TINY = torch.finfo(torch.float32).tiny
