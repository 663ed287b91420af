"""What a run's folder holds, and what is to be said of it in sentences."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from triptych.evaluation import probe_table
from triptych.evaluation.report_page import Line, words
from triptych.training import checkpoint
from triptych.training.errors import UserError
from triptych.training.log import read_lines, read_metrics
from triptych.training.monitor import Monitor


class Run(NamedTuple):
    """What a run's folder holds."""

    folder: Path
    metrics: list[dict[str, Any]]
    config: dict[str, Any]
    environment: dict[str, Any]
    state: dict[str, Any]
    bad: list[dict[str, Any]]
    probed: list[dict[str, Any]]  # what `probe.py` said of it last

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def series(self, name: str) -> Line:
        there = [f for f in self.metrics if isinstance(f.get(name), (int, float))]
        return Line(name.replace("_", " "), [f["step"] for f in there], [f[name] for f in there])

    def last(self, name: str) -> float | None:
        return next((f[name] for f in reversed(self.metrics) if isinstance(f.get(name), (int, float))), None)


def read(folder: str | Path) -> Run:
    """Read a run's folder. Raises `UserError` where it is none."""
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not the folder of a run: it has no config.yaml")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    environment, state, bad = {}, {}, []
    if (file := folder / "environment.json").is_file():
        environment = json.loads(file.read_text())
    if file := next((file for one in checkpoint.folders(folder) if (file := one / "state.json").is_file()), None):
        state = json.loads(file.read_text())
    bad = read_lines(folder / "bad_samples.jsonl")
    probed = probe_table.kept(folder)
    return Run(folder, read_metrics(folder / "metrics.jsonl"), config, environment, state, bad, probed)


def verdict(run: Run) -> list[tuple[str, str]]:
    """What there is to say, in sentences, each `good`, `look` or `bad`."""
    said, state = [], run.state
    if not run.metrics:
        return [("look", "Nothing was logged yet.")]
    last = run.metrics[-1]
    step, steps = last["step"], state.get("steps")
    seconds = sum(
        (now.get("samples", 0) - before) / now["samples_per_second"]
        for before, now in zip([0] + [f.get("samples", 0) for f in run.metrics], run.metrics, strict=False)
        if now.get("samples_per_second")
    )
    spent = f"{last.get('samples', 0):,} samples, {last.get('epoch', 0):.1f} epochs, {clock(seconds)}"
    if steps and step >= steps:
        said.append(("good", f"Finished: {step:,} of {steps:,} steps; {spent}."))
    else:
        said.append(("look", f"Not finished: step {step:,}{f' of {steps:,}' if steps else ''}; {spent}."))
    monitor = Monitor(steps or step)
    if figures := next((f for f in reversed(run.metrics) if "rankme_share" in f), None):
        monitor.last = {k: figures[k] for k in ("feature_deviation", "rankme", "rankme_share", "mean_cosine")}
        kind = "bad" if monitor.collapsed else "look" if monitor.narrow else "good"
        said.append((kind, f"Features: {monitor.verdict()}."))
    for kind in ("linear", "spearman"):
        if (gain := run.last(f"probe_{kind}_gain")) is not None:
            error = 2 * (run.last(f"probe_{kind}_gain_error") or 0.0)
            mark, sure = (
                ("good", "better")
                if gain > error
                else ("bad", "WORSE")
                if -gain > error
                else ("look", "not surely other")
            )
            now = f"{run.last(f'probe_{kind}'):.1f} of 100, {gain:+.1f} ± {error / 2:.1f} points"
            on = private(str(run.config.get("probe_data")), run)
            said.append((mark, f"Judged on {on} ({kind}): {sure} than its start: {now}."))
    if run.probed:
        of = "" if run.probed[0]["step"] == step else f" That is of step {run.probed[0]['step']:,}."
        said += [(kind, text + of) for kind, text in probe_table.verdict(run.probed)]
    losses = [f["loss"] for f in run.metrics if isinstance(f.get("loss"), (int, float))]
    if losses:
        tenth = losses[-max(1, len(losses) // 10) :]
        end, held = sum(tenth) / len(tenth), run.last("eval_loss")
        fell = end < losses[0]
        also = f"; {held:.4g} on samples that were held out" if held is not None else ""
        said.append(
            (
                "good" if fell else "look",
                f"The loss {'fell' if fell else 'did not fall:'} from {losses[0]:.4g} to {end:.4g}{also}.",
            )
        )
    if (wait := run.last("data_wait")) is not None and wait > 0.1:
        said.append(("look", f"The device waits for data {wait:.0%} of the time: more workers, or smaller files."))
    if lost := state.get("step", 0) - state.get("applied", state.get("step", 0)):
        said.append(("look", f"{lost} steps changed nothing, for their gradient was not finite."))
    if run.bad:
        said.append(("look", f"{len(run.bad)} unusable samples were replaced; they are named below."))
    return said


def clock(seconds: float) -> str:
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} of training"


def lead(run: Run) -> str:
    signs = {"good": ("✓", "good"), "look": ("!", "have a look"), "bad": ("✗", "bad")}
    items = (
        f'<li class="{kind}"><b role="img" aria-label="{signs[kind][1]}">{signs[kind][0]}</b>{words(text)}</li>'
        for kind, text in verdict(run)
    )
    c = run.config
    what = f"{c['objective']['name']} on {c['modality']['name']}, data {c['data']['name']}"
    return f'<p>{words(private(what, run))}</p><ul class="verdict">{"".join(items)}</ul>'


def private(text: str, run: Run) -> str:
    """Without the folders that lead to the data, to the program, to where it was started, or to the user's home."""
    here, data = str(Path(__file__).parents[1]), str(run.config["data"]["name"])
    above = os.path.dirname(data.rstrip("/")) if os.path.isabs(data) else ""
    for folder, short in ((above, ""), (here, ""), (os.getcwd(), ""), (os.path.expanduser("~"), "~/")):
        if len(folder) > 1:
            text = text.replace(folder + "/", short)
    return text
