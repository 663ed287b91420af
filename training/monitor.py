"""Is it learning, or collapsing? Figures of the features that objectives return, and a verdict in words."""

from collections import deque
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

KEPT = 512  # samples whose features are looked at together
LOOKS = 200  # times that a run is looked at, at most; a look takes a processor some hundredths of a second
DEVIATION, RANK = 0.02, 2.0  # below either, features are as good as one point or one line
# What probes said of the runs of docs/benchmarks.md, 128 wide: with a RankMe of 9 and more each gained 3 points or more
# over the untrained encoder, with 5.8 and 6.6 it gained 1.4 and lost 2.2. Untrained encoders have 9 to 65, and mean
# cosines of 0.72 to 0.96.
NARROW, ALIKE = 8.0, 0.99


def collapse_figures(features: Float[Tensor, "n d"]) -> dict[str, float]:
    """Four views of the same question, in float32.

    `feature_deviation`: mean deviation of the normalised features relative to 1/sqrt(d), which is that of a uniform
    sphere (SimSiam, Chen and He 2021, section 4.1). `rankme`: exp of the entropy of the singular values (Garrido et al.
    2023, equation 1). `rankme_share`: its share of the largest possible. `mean_cosine`: mean cosine of two samples.
    """
    features = features.float()
    n, d = features.shape
    unit = F.normalize(features, dim=-1)
    # Of the smaller of the two matrices of products: about half the time of `svdvals` in float64.
    wide = features.double() if n < d else features.double().T
    values = torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).sqrt()
    p = values / values.sum().clamp(min=1e-30) + 1e-12
    rank = torch.exp(-(p * p.log()).sum()).item()
    cosine = (unit.sum(0).square().sum() - n) / max(1, n * (n - 1))
    return {
        "feature_deviation": (unit.std(0, unbiased=False).mean() * d**0.5).item(),
        "rankme": rank,
        "rankme_share": rank / min(n, d),
        "mean_cosine": cosine.item(),
    }


class Monitor:
    """Keeps the latest features; raises an alarm when figures stay at collapse past the start of the run.

    Every rank keeps its own, on its device. To look, they are gathered, and one rank makes figures of them.
    """

    def __init__(self, steps: int, ranks: int = 1):
        self.steps, self.kept, self.low, self.alarmed = steps, KEPT // ranks, 0, False
        self.recent: deque[Tensor] = deque()
        self.last: dict[str, float] = {}

    def see(self, features: Float[Tensor, "b d"]) -> None:
        self.recent.append(features)
        while sum(map(len, self.recent)) - len(self.recent[0]) >= self.kept:
            self.recent.popleft()

    def due(self, step: int, interval: int) -> bool:
        """Whether to look at a line of the log; lines are `interval` steps apart. A function of the step alone."""
        if not self.recent:
            return False
        every = max(1, self.steps // LOOKS)
        return step == self.steps or step // every > (step - interval) // every

    def features(self) -> Float[Tensor, "n d"]:
        """The latest of this rank."""
        return torch.cat(list(self.recent)).float()

    def figures(self, step: int, features: Float[Tensor, "n d"]) -> dict[str, float]:
        """Figures of the features of all ranks. After `alarm` returned a text once, it stays silent."""
        features = features.cpu()
        if not features.isfinite().all():
            return {}
        self.last = collapse_figures(features)
        self.low = self.low + 1 if self.collapsed and step > 0.05 * self.steps else 0
        return self.last

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, beside the features of all ranks."""
        return {"low": self.low, "alarmed": self.alarmed, "last": self.last, "lengths": list(map(len, self.recent))}

    def load(self, state: dict[str, Any], features: Tensor | None, rank: int, ranks: int) -> None:
        """Take back what a checkpoint kept; of other numbers of ranks, this rank's share of each batch."""
        self.low, self.alarmed, self.last = state["low"], state["alarmed"], state["last"]
        self.recent.clear()
        if features is None:
            return
        before = len(features) // sum(state["lengths"])
        by_rank = [part.split(state["lengths"]) for part in features.chunk(before)]
        for batch in (torch.cat(parts) for parts in zip(*by_rank, strict=True)):
            if len(batch) % ranks == 0:
                self.see(batch.chunk(ranks)[rank])

    @property
    def collapsed(self) -> bool:
        return bool(self.last) and (self.last["feature_deviation"] < DEVIATION or self.last["rankme"] < RANK)

    @property
    def narrow(self) -> bool:
        """Not collapsed, but of so few directions, or all so alike, that runs like it had learned next to nothing."""
        if not self.last:
            return False
        possible = self.last["rankme"] / self.last["rankme_share"]
        return self.last["rankme"] < min(NARROW, possible / 16) or self.last["mean_cosine"] > ALIKE

    def alarm(self) -> str | None:
        if self.low < 2 or self.alarmed:
            return None
        self.alarmed = True
        return f"ALARM: the features are collapsing ({self._words()}); the README says what to do, under Collapse"

    def verdict(self) -> str:
        if not self.last:
            return "no features were seen"
        if self.collapsed:
            return f"COLLAPSED: all samples look alike to the encoder ({self._words()})"
        if self.narrow:
            return f"NARROW: the features have few directions, so probe before you train on ({self._words()})"
        return f"not collapsed ({self._words()})"

    def _words(self) -> str:
        f = self.last
        return (
            f"deviation {f['feature_deviation']:.3f} of 1, RankMe {f['rankme']:.1f} "
            f"({f['rankme_share']:.0%} of the possible), mean cosine {f['mean_cosine']:.2f}"
        )
