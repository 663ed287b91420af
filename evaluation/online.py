"""Online probe: is the encoder better than its start? Judged while it trains, on labels that training never sees."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from triptych.encoders.backbone import Backbone
from triptych.evaluation.features import extract
from triptych.evaluation.labels import number, splits
from triptych.evaluation.probes import Score, linear, neighbours, over_draws, score
from triptych.modalities import Modality
from triptych.training.errors import UserError
from triptych.training.settings import Data
from triptych.training.sources import Rows

PER_CLASS, DRAWS, MOST = 10, 5, 2000


class OnlineProbe:
    """k-NN and linear probe of a running encoder, paired with the same of its start.

    Every rank makes all features, so that all run equally many forwards; nothing here draws from torch's own generator
    or leaves the encoder in another mode. Half of the test rows decide which checkpoint is kept (`selection`), the
    others are for the figures that are printed: no figure is of rows that it was chosen by.

    Args:
        learn: labelled rows to learn from.
        judge: labelled rows to be judged on.
        labels: the class of each of them.
        device: where the encoder runs.
    """

    def __init__(self, learn: Rows, judge: Rows, labels: tuple[np.ndarray, np.ndarray], device: torch.device):
        self.learn, self.judge, self.labels, self.device = learn, judge, labels, device
        self.start: dict[str, np.ndarray] = {}  # hits of the start, by probe
        self.last: dict[str, np.ndarray] = {}
        self.best, self.best_step, self.latest = -np.inf, None, (-np.inf, 0)

    def __call__(self, backbone: Backbone, step: int) -> dict[str, float]:
        """Figures of the encoder now. The first call is of the start."""
        hits = self.hits(backbone)
        if not self.start:
            self.start = hits
        figures = {}
        for kind, found in hits.items():
            figures[f"probe_{kind}"] = score(found[:, 1::2]).mean
            figures[f"probe_{kind}_gain"] = score(found[:, 1::2], self.start[kind][:, 1::2]).mean
        figures["probe_selection"] = score(hits["linear"][:, ::2]).mean
        self.last, self.latest = hits, (figures["probe_selection"], step)
        return figures

    def improved(self) -> bool:
        """Is the latest encoder the best one so far, by the rows that choose?"""
        value, step = self.latest
        if value <= self.best:
            return False
        self.best, self.best_step = value, step
        return True

    def hits(self, backbone: Backbone) -> dict[str, np.ndarray]:
        """True for the test rows that each probe gets right, `[draws n]`."""
        with evaluating(backbone):
            x, t = (extract(backbone, rows, device=self.device) for rows in (self.learn, self.judge))
        y, test_y = self.labels[0][x.row], self.labels[1][t.row]
        few = over_draws(linear, x.x["native"], y, t.x["native"], test_y, PER_CLASS, DRAWS)
        return {"linear": few, "knn": over_draws(neighbours, x.x["native"], y, t.x["native"], test_y, None, 1)}

    def against_start(self) -> Score:
        """By how much the latest encoder is above its start: linear, few labels, the rows that chose nothing."""
        return score(self.last["linear"][:, 1::2], self.start["linear"][:, 1::2])

    def verdict(self) -> str:
        """In words, with the margin of two standard errors that `Score.sure` has."""
        gain = self.against_start()
        words = f"{gain.mean:+.1f} ± {gain.error:.1f} ({PER_CLASS} labels a class, linear, paired over {DRAWS} draws)"
        if gain.sure:
            return f"better than the start by {words}"
        if -gain.mean > 2 * gain.error:
            return f"WORSE than the start: {words}"
        return f"no difference from the start that these labels can show ({words}): use the start"

    def state(self) -> dict[str, Any]:
        """What a resume needs: the start's hits, and the best so far."""
        best = None if self.best_step is None else float(self.best)
        return {
            "best": best,
            "best_step": self.best_step,
            "start": {k: h.astype(int).tolist() for k, h in self.start.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        if state["best"] is not None:
            self.best, self.best_step = state["best"], state["best_step"]
        self.start = {kind: np.asarray(hits, dtype=bool) for kind, hits in state["start"].items()}


@contextlib.contextmanager
def evaluating(backbone: Backbone) -> Iterator[None]:
    """Within, the encoder is in evaluation mode; torch's random state is as it was afterwards."""
    training = backbone.training
    with torch.random.fork_rng(devices=[]):
        backbone.eval()
        try:
            yield
        finally:
            backbone.train(training)


def watch(config, modality: Modality, device: torch.device) -> OnlineProbe:
    """An online probe on the labelled data that a run names."""
    source = Data(name=config.run.probe_data)
    learn, judge, words = splits(source, modality, "train", None, MOST)
    classes, labels = number(words, learn.label)
    if len(classes) < 2:
        raise UserError(f"probe_data {source.name}: one class only")
    return OnlineProbe(learn, judge, tuple(labels), device)
