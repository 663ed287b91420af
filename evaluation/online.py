"""Online probe: is the encoder better than its start? Judged while it trains, on what training never sees.

Three kinds of data judge. Labelled rows (`Labels`): linear probe and nearest neighbours. Pairs with scores (`Pairs`):
Spearman's correlation of cosines with them. None at all (`Unlabelled`): figures of the features themselves, which do
not say whether an encoder is better, only that it has become another one.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone
from triptych.evaluation.features import Features, extract
from triptych.evaluation.labels import Labelled, splits, unfit
from triptych.evaluation.measures import WORDS, spearman
from triptych.evaluation.probes import Score, measured, outputs, score
from triptych.evaluation.tasks import Classes
from triptych.modalities import Modality, ViewSpec
from triptych.training.continuing import distance
from triptych.training.errors import UserError, one_line
from triptych.training.finding import find
from triptych.training.loader import Samples
from triptych.training.monitor import collapse_figures
from triptych.training.settings import Config, Data
from triptych.training.sources import Rows, like, load, print_once, split_called

PER_CLASS, FEW_ROWS, DRAWS, MOST = 10, 100, 5, 2000
WINDOWS = 2  # of a long row, at least, by which it is judged
LEAST = 20  # rows to judge on; of fewer, half of which are printed, nothing can be said
GROUPS = 4  # likewise, of groups: so that each half has two, which differ
RESAMPLES = 200
SEEN = 256  # samples of which the features' own figures are made
BATCH = 64  # of these; without gradients many fit
PAIR = ("sentence1", "sentence2", "score")  # columns of pairs, as sets of sentence similarity have them
CHOOSE, SHOW = slice(0, None, 2), slice(1, None, 2)  # rows that choose a checkpoint, and those of printed figures

Seen = dict[str, np.ndarray]


class Labels:
    """Labelled rows: a linear probe of ten labels a class (of other labels, of a hundred rows), and k-NN of all.

    Args:
        name: of the data.
        rows: to learn from and to be judged on, with their labels.
    """

    first: ClassVar[str] = "linear"  # what chooses and gives the verdict

    def __init__(self, name: str, rows: Labelled):
        self.name, self.rows, task = name, rows, rows.task
        self.few = PER_CLASS if isinstance(task, Classes) else FEW_ROWS
        what = "" if isinstance(task, Classes) else f"{WORDS[task.decides]} × 100 of "
        self.measure = f"{what}{self.few} {task.few}, linear, paired over {DRAWS} draws"

    def see(self, backbone: Backbone, device: torch.device) -> Seen:
        """What the measure that decides is made of, by probe, `[draws u]`: of classes, 1 for rows that are right."""
        learn, judge, task, y, test_y, groups = self.rows
        x, t = (self._features(backbone, rows, device) for rows in (learn, judge))
        groups = groups if groups is None else groups[t.row]
        finite = all(np.isfinite(f.x["native"]).all() for f in (x, t))
        # Of an encoder that broke, nothing is right.
        where = [f.x["native"] if finite else np.zeros_like(f.x["native"]) for f in (x, t)]
        made = {}
        for kind, few, draws in (("linear", self.few, DRAWS), ("knn", None, 1)):
            found = outputs(task, kind, where[0], y[x.row], where[1], few, draws)
            made[kind] = measured(task, found, test_y[t.row], groups, [task.decides])[task.decides] * finite
        return made

    def _features(self, backbone: Backbone, rows: Rows, device: torch.device) -> Features:
        found = extract(backbone, rows, device=device, most=MOST)
        if not len(found.row):
            why = next(iter(found.bad.values()), ("", "they are blank"))[1]
            raise UserError(f"{self.name}: none of {len(rows):,} rows to judge by can be used: {why}")
        return found

    def value(self, seen: np.ndarray, rows: slice, start: np.ndarray | None = None) -> Score:
        """The measure on some of the rows, or by how much it is above the start's."""
        return score(seen[:, rows], None if start is None else start[:, rows])


class Pairs:
    """Pairs of samples with a score of how alike they are: Spearman's correlation of it with their vectors' cosine.

    In per cent, as sentence similarity (STS) is reported. There is nothing to learn from labels.

    Args:
        name: of the data.
        sides: the first and the second of each pair.
        scores: how alike they are said to be.
    """

    measure: ClassVar[str] = "Spearman × 100, paired"
    first: ClassVar[str] = "spearman"

    def __init__(self, name: str, sides: tuple[Rows, Rows], scores: np.ndarray):
        self.name, self.sides, self.scores = name, sides, scores

    def see(self, backbone: Backbone, device: torch.device) -> Seen:
        """Cosine and score of each pair, `[2 n]`."""
        one, other = (extract(backbone, rows, device=device) for rows in self.sides)
        both = np.intersect1d(one.row, other.row)
        a, b = (torch.from_numpy(f.x["native"][np.searchsorted(f.row, both)]) for f in (one, other))
        cosine = F.cosine_similarity(a, b, dim=-1).nan_to_num(0, 0, 0)
        return {"spearman": np.stack([cosine.double().numpy(), self.scores[both]])}

    def value(self, seen: np.ndarray, rows: slice, start: np.ndarray | None = None) -> Score:
        """The correlation on some of the pairs, or by how much it is above the start's; its error by the bootstrap."""
        (mine, said), before = seen[:, rows], None if start is None else start[0, rows]

        def of(index: np.ndarray) -> np.ndarray:
            found = spearman(mine[index], said[index])
            return found if before is None else found - spearman(before[index], said[index])

        every = np.arange(len(said))
        again = of(np.random.RandomState(0).choice(every, (RESAMPLES, len(said))))
        return Score(100 * float(of(every)), None, 100 * float(again.std(ddof=1)))


class Unlabelled:
    """The features' own figures: directions (RankMe), how alike two views of a sample are, distance from the start.

    Args:
        batches: two strong views of some samples, in batches, as they are collated.
        modality: their adapter.
    """

    def __init__(self, batches: list[list], modality: Modality):
        self.batches, self.modality = batches, modality

    def see(self, backbone: Backbone, device: torch.device) -> Seen:
        """Vectors of the first and of the second view, `[2 n d]`."""
        with torch.no_grad():
            made = [[backbone(self.modality.prepare(v.to(device))).float() for v in views] for views in self.batches]
        return {"views": torch.stack([torch.cat(one) for one in zip(*made, strict=True)]).cpu().numpy()}

    def figures(self, seen: Seen, start: Seen) -> dict[str, float]:
        one, two = (torch.from_numpy(x) for x in seen["views"])
        if not (one.isfinite().all() and two.isfinite().all()):
            return {}
        own = collapse_figures(one)
        return {
            "own_rankme": own["rankme"],
            "own_view_cosine": F.cosine_similarity(one, two, dim=-1).mean().item(),
            "own_mean_cosine": own["mean_cosine"],
            "own_start_distance": distance(one, torch.from_numpy(start["views"][0])).item(),
        }


class OnlineProbe:
    """Judges a running encoder beside its start, which is what it sees first.

    Every rank makes all features, so that all run equally many forwards; nothing here draws from torch's own generator
    or leaves the encoder in another mode. Half of the test rows decide which checkpoint is kept (`CHOOSE`), the others
    are for the figures that are printed: no figure is of rows that it was chosen by.

    Args:
        device: where the encoder runs.
        judge: what judges whether it is better.
        keep: what judges whether something else was lost.
        own: for the features' own figures, where there is no judge.
    """

    def __init__(
        self,
        device: torch.device,
        judge: Labels | Pairs | None = None,
        keep: Labels | Pairs | None = None,
        own: Unlabelled | None = None,
    ):
        named = {"probe": judge, "keep": keep, "own": own}
        self.device, self.parts = device, {name: part for name, part in named.items() if part is not None}
        self.start: dict[str, Seen] = {}
        self.last: dict[str, Seen] = {}
        self.best: float | None = None
        self.best_step: int | None = None
        self.best_gain: Score | None = None
        self.step = 0

    def __call__(self, backbone: Backbone, step: int) -> dict[str, float]:
        """Figures of the encoder now. The first call is of the start."""
        with evaluating(backbone):
            self.last = {name: part.see(backbone, self.device) for name, part in self.parts.items()}
        self.start, self.step = self.start or self.last, step
        figures: dict[str, float] = {}
        for name, part in self.parts.items():
            seen, start = self.last[name], self.start[name]
            if any(seen[kind].shape != start[kind].shape for kind in seen):
                raise UserError(f"{part.name} is not what the start was judged on; give the same data")
            if isinstance(part, Unlabelled):
                figures |= part.figures(seen, start)
                continue
            for kind in seen:
                figures[f"{name}_{kind}"] = part.value(seen[kind], SHOW).mean
                gain = part.value(seen[kind], SHOW, start[kind])
                figures |= {f"{name}_{kind}_gain": gain.mean, f"{name}_{kind}_gain_error": gain.error}
        if "probe" in self.parts:
            figures["probe_selection"] = self._value("probe", CHOOSE, gain=False).mean
        return figures

    def _value(self, name: str, rows: slice, gain: bool = True) -> Score:
        part = self.parts[name]
        return part.value(self.last[name][part.first], rows, self.start[name][part.first] if gain else None)

    def improved(self) -> bool:
        """Is the latest encoder the best so far, by the rows that choose? One that has lost what was to be kept is
        none."""
        value = self._value("probe", CHOOSE, gain=False).mean
        if self.best is not None and value <= self.best:
            return False
        if "keep" in self.parts and lost(self._value("keep", CHOOSE)):
            return False
        self.best, self.best_step, self.best_gain = value, self.step, self._value("probe", SHOW)
        return True

    def verdict(self, best: bool = False) -> list[str]:
        """In words, of the latest encoder; `best`: of the best one too. ± is one standard error, and sure are two."""
        said = []
        if "probe" in self.parts:
            part, gain = self.parts["probe"], self._value("probe", SHOW)
            words = f"{shown(gain)} ({part.measure})"
            if gain.sure:
                said.append(f"on {part.name}: better than the start by {words}")
            elif lost(gain):
                said.append(f"on {part.name}: WORSE than the start: {words}: use the start")
            else:
                said.append(f"on {part.name}: no difference from the start that it can show: {words}: use the start")
            if best and self.best_step is None:
                said.append("no checkpoint was kept as the best: each had lost on what was to be kept")
            elif best and self.best_step != self.step:
                said.append(
                    f"the best checkpoint by the probe is that of step {self.best_step}: {shown(self.best_gain)}"
                )
        if "keep" in self.parts:
            part, gain = self.parts["keep"], self._value("keep", SHOW)
            what = "LOST" if lost(gain) else "better, too" if gain.sure else "no loss that it can show"
            said.append(f"on {part.name}, to be kept: {what}: {shown(gain)} ({part.measure})")
        if "own" in self.parts:
            said.append(self._without_labels())
        return said

    def _without_labels(self) -> str:
        part: Any = self.parts["own"]
        now, then = (part.figures(of["own"], self.start["own"]) for of in (self.last, self.start))
        if not now:
            return "the features are not finite: the encoder is broken, use the start"
        fewer = "fewer than half of the start's directions are left, it is probably WORSE; " * (
            now["own_rankme"] < then["own_rankme"] / 2
        )
        return (
            f"{fewer}without labels nothing says whether the encoder is better than its start. Its features have a "
            f"RankMe of {now['own_rankme']:.1f} (start {then['own_rankme']:.1f}); two views of a sample have a cosine "
            f"of {now['own_view_cosine']:.2f} ({then['own_view_cosine']:.2f}), two samples of "
            f"{now['own_mean_cosine']:.2f} ({then['own_mean_cosine']:.2f}); vectors are "
            f"{now['own_start_distance']:.3f} from the start's, of at most 4. To know: --probe_data, or probe.py "
            "with labels"
        )

    def state(self) -> dict[str, Any]:
        """What a resume needs, beside `tensors`: the best so far."""
        gain = None if self.best_gain is None else list(self.best_gain)
        return {"best": self.best, "best_step": self.best_step, "best_gain": gain}

    def tensors(self) -> dict[str, Tensor]:
        """What the start showed, by name."""
        return {f"{name}/{k}": torch.from_numpy(x) for name, seen in self.start.items() for k, x in seen.items()}

    def load(self, state: dict[str, Any] | None, tensors: dict[str, Tensor]) -> bool:
        """Take back what a checkpoint kept; False for one that does not hold what the start showed."""
        for name, value in tensors.items():
            part, _, kind = name.partition("/")
            self.start.setdefault(part, {})[kind] = value.cpu().numpy()
        if state is None or self.start.keys() != self.parts.keys():
            return False
        self.best, self.best_step = state["best"], state["best_step"]
        self.best_gain = None if state["best_gain"] is None else Score(*state["best_gain"])
        return True


def lost(gain: Score) -> bool:
    return -gain.mean > 2 * gain.error


def shown(gain: Score) -> str:
    return f"{gain.mean:+.1f} ± {gain.error:.1f}"


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


def watch(config: Config, objective, rows: Rows, device: torch.device) -> OnlineProbe | None:
    """An online probe on the data that a run names; None where there is nothing to compare.

    A run that continues an encoder and names none gets the features' own figures, of some of the rows that it trains
    on.
    """
    run, modality = config.run, objective.backbone.modality
    try:
        judge = judge_of("probe_data", run.probe_data, config.data, modality)
    except UserError as error:
        if config.origin.get("probe_data") != "chosen":
            raise
        judge = None  # the data's own labels, which nobody has asked to judge
        print_once(f"its labels do not judge the encoder: {one_line(error)}")
    keep = judge_of("probe_keep", run.probe_keep, config.data, modality)
    own = Unlabelled(list(two_views(objective, rows)), modality) if run.init_from and judge is None else None
    return OnlineProbe(device, judge, keep, own) if judge or keep or own else None


def judge_of(option: str, name: str | None, data: Data, modality: Modality) -> Labels | Pairs | None:
    """What judges on data of that name: pairs, if it has their columns, or labels.

    It is read as the training data is, as far as it has those columns.
    """
    if name is None:
        return None
    source = like(data, name, modality)
    if (made := pairs_of(option, source, modality)) is None:
        found = splits(source, modality, "train", None, MOST)
        counts = [
            few(rows, f"{option} {name}, {to}") for rows, to in ((found.learn, "to learn"), (found.judge, "to judge"))
        ]
        made = Labels(name, found.first(*counts))
    count = len(made.rows.judge) if isinstance(made, Labels) else len(made.scores)
    if count < LEAST:
        raise UserError(f"{option} {name}: {count} rows to judge on say nothing; give at least {LEAST}")
    if isinstance(made, Labels):
        rows = made.rows
        if why := unfit(rows.task, rows.y, rows.test_y):
            raise UserError(f"{option} {name}: {why}; give other labels, or leave {option} out")
        if rows.groups is not None and (groups := len(np.unique(rows.groups))) < GROUPS:
            raise UserError(
                f"{option} {name}: {groups} groups to judge on say nothing; give at least {GROUPS}: they are a "
                f"fifth of all where there is no test split. Or leave {option} out, and judge by probe.py afterwards"
            )
    return made


def few(rows: Rows, what: str) -> int:
    """How many of the rows judge: all, if they are at most `MOST` samples in all. What is left out is said.

    An evaluation may not take forever. Of long texts and sounds more are judged, by fewer of their windows: what a
    verdict can be sure of grows with the rows.
    """
    table = rows.modality.samples(rows.table, rows.column)
    if "source_row" not in table.column_names or len(table) <= MOST:
        return len(rows)
    count = min(len(rows), MOST // WINDOWS)
    print(f"{what}: {count:,} of {len(rows):,} long rows, by at most {MOST // count} windows of each")
    return count


def pairs_of(option: str, source: Data, modality: Modality) -> Pairs | None:
    """Pairs with scores, of the test split or what there is; None if the data has no such columns."""
    read = find(source, modality).read
    split = next(s for word in ("test", "validation", "train", *read) if (s := split_called(word, list(read))))
    if not set(PAIR) <= set(read[split]().column_names):
        return None
    rows = load(dataclasses.replace(source, column=PAIR[0]), modality, split)
    values = rows.table[PAIR[2]][:]
    if not all(value is None or isinstance(value, int | float) for value in values):
        raise UserError(f"{option} {source.name}: column {PAIR[2]!r} holds no numbers")
    scores = np.array([math.nan if value is None else value for value in values], dtype=float)
    good = np.flatnonzero(np.isfinite(scores))
    if len(good) < len(scores):
        print(f"{option} {source.name}: {len(scores) - len(good):,} of {len(scores):,} pairs have no score: left out")
    good = np.random.RandomState(0).permutation(good)[:MOST]
    if len(np.unique(scores[good])) < 2:
        raise UserError(f"{option} {source.name}: all scores are alike: there is nothing to correlate with")
    rows = rows.select(good)
    return Pairs(source.name, (rows, dataclasses.replace(rows, column=PAIR[1])), scores[good])


def two_views(objective, rows: Rows) -> Iterator[list]:
    """Two strong views of some samples, in batches: always the same ones."""
    modality = objective.backbone.modality
    index = np.random.RandomState(0).permutation(len(rows))[:SEEN]
    table = modality.samples(rows.table.select(index), rows.column)
    specs = tuple(ViewSpec(scale=objective.views[0].scale, strength="strong", index=i) for i in range(2))
    samples = Samples(table, rows.column, modality, specs, 0, len(table))
    for at in range(0, min(SEEN, len(table)), BATCH):
        yield samples.__getitems__([(0, i) for i in range(at, min(at + BATCH, SEEN, len(table)))])["views"]
