"""What a run leaves to look at: `report.html`, one self-contained page, and `curves.png`.

    python -m triptych.evaluation.report runs/a            # writes runs/a/report.html anew
    python -m triptych.evaluation.report runs/a runs/b     # both side by side, in compare.html

A run calls it at every save, in a process of its own: what goes wrong there is one line, and training goes on.
"""

import argparse
import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from triptych.evaluation.report_page import (
    OKABE_ITO,
    Figure,
    Line,
    Section,
    drawn,
    grid,
    in_legend,
    lines,
    logarithmic,
    page,
    style,
    table,
    words,
)
from triptych.evaluation.report_probe import probe_section
from triptych.evaluation.report_run import Run, lead, private, read
from triptych.training import checkpoint, own
from triptych.training.errors import one_line
from triptych.training.settings import flatten

PAGE, CURVES, COMPARED, PICTURES = "report.html", "curves.png", "compare.html", "tensorboard_pictures"
WAIT = 120  # seconds that the end of a run waits for its page
OFTEN = 30  # a page is made at a save only if that many times its own making has passed since the last one
MOST_BAD = 50  # unusable samples that are named on the page; the file has all
# Figures of metrics.jsonl that have panels of their own, in the order of the page: title, names, unit, whether a
# logarithmic axis may help.
TRAINING = (
    ("loss", ("loss", "eval_loss"), "", True),
    ("learning rate", ("learning_rate",), "", False),
    ("gradient norm, before clipping", ("grad_norm",), "", True),
    ("samples a second", ("samples_per_second",), "", False),
    ("share of the time that waits for data", ("data_wait",), "", False),
)
FEATURES = (
    ("RankMe: how many directions features use", ("rankme",), "", False),
    ("deviation of features: 1 is a uniform sphere, 0 a point", ("feature_deviation",), "", False),
    ("mean cosine of two samples: 1 is all alike", ("mean_cosine",), "", False),
)
PROBE = (
    ("on what it never trained on, of 100", ("probe_linear", "probe_knn", "probe_spearman"), "", False),
    ("gain over its start, points", ("probe_linear_gain", "probe_knn_gain", "probe_spearman_gain"), "", False),
)
NOT_OWN = {"step", "time", "epoch", "samples", "rankme_share", "probe_selection"}


def panels(runs: list[Run], wanted) -> list[tuple[str, list[Line], str, bool]]:
    """Panels that have something to show: title, lines, unit, log. Of several runs, a line bears the run's name."""
    made = []
    for title, names, unit, log in wanted:
        found = []
        for number, run in enumerate(runs):
            for dash, name in enumerate(names):
                if len((line := run.series(name)).x):
                    if len(runs) > 1:
                        line = Line(f"{run.name}, {line.name}" if dash else run.name, line.x, line.y, number, dash)
                    found.append(line)
        if found:
            made.append((title, found, unit, log))
    return made


def own_scalars(runs: list[Run]) -> list[tuple]:
    """Panels of what objectives say of themselves."""
    known = NOT_OWN | {name for part in (TRAINING, FEATURES, PROBE) for _, names, _, _ in part for name in names}
    names = {name for run in runs for f in run.metrics for name, value in f.items() if isinstance(value, (int, float))}
    own = sorted(name for name in names - known if not name.endswith("_gain_error"))
    return [(name.replace("_", " "), (name,), "", False) for name in own]


def figures(runs: list[Run], wanted) -> list[Figure]:
    return [
        drawn(title, lambda axes, found=found, unit=unit, log=log: lines(axes, found, unit, log))
        for title, found, unit, log in panels(runs, wanted)
    ]


def png(runs: list[Run], file: Path) -> None:
    """All curves in one picture, on white."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    wanted = panels(runs, TRAINING + FEATURES + PROBE)
    if not wanted:
        return
    with rc_context(style()):
        canvas = Canvas(figsize=(12, 2.7 * -(-len(wanted) // 3)), layout="constrained", facecolor="white")
        for number, (title, found, unit, log) in enumerate(wanted, 1):
            axes = canvas.add_subplot(-(-len(wanted) // 3), 3, number)
            axes.set_title(title, fontsize=9)
            lines(axes, found, unit, log)
        aside = file.with_name(f".{file.name}.partial")
        canvas.savefig(aside, format="png", dpi=110, facecolor="white")
    os.replace(aside, file)


def spectrum(runs: list[Run]) -> Figure | None:
    """Singular values of the latest features of training, as their checkpoint has them."""
    import torch
    from safetensors.torch import load_file

    found = []
    for run in runs:
        for folder in checkpoint.folders(run.folder)[:1]:
            if not (file := folder / "monitor.safetensors").is_file():
                continue
            features = load_file(file).get("features")
            if features is not None and features.isfinite().all():
                values = torch.linalg.svdvals(features.double())
                found.append(
                    Line(run.name, range(1, len(values) + 1), (values / values.max().clamp(min=1e-30)).tolist())
                )
    if not found:
        return None

    def draw(axes):
        for number, line in enumerate(found):
            axes.plot(
                line.x,
                [max(v, 1e-6) for v in line.y],
                color=OKABE_ITO[number % len(OKABE_ITO)],
                lw=1.4,
                label=in_legend(line.name),
            )
        logarithmic(axes)
        axes.set_xlabel("direction")
        if len(found) > 1:
            axes.legend(fontsize=8)
        return [
            (x, max(y, 1e-6), f"{line.name}: direction {x} of {len(line.x)}, {y:.3g}")
            for line in found
            for x, y in zip(line.x, line.y, strict=True)
        ]

    return drawn("spectrum of the features: singular values, the largest is 1", draw)


def curves(runs: list[Run]) -> list[Section]:
    made = [Section("Training", grid(figures(runs, TRAINING)))]
    features = figures(runs, FEATURES)
    if (found := spectrum(runs)) is not None:
        features.append(found)
    if features:
        note = "Of the vectors that the objective made of the latest samples. A steep fall to nothing is a collapse."
        made.append(Section("Features", grid(features), note))
    if own := figures(runs, own_scalars(runs)):
        made.append(Section("What the objective says of itself", grid(own)))
    if probe := figures(runs, PROBE):
        made.append(Section("Judged on labels", grid(probe), "The start is the same encoder before the first step."))
    named = [(run, run.name if len(runs) > 1 else "") for run in runs if run.probed]
    return made + [probe_section(run, name) for run, name in named]


def facts(run: Run, read_as: str = "") -> list[Section]:
    """Data, what was left out and was bad, environment, settings."""
    data, c = run.environment.get("data", {}), run.config
    rows = [
        ("data", private(str(c["data"]["name"]), run)),
        ("rows", f"{data.get('rows', 0):,}"),
        ("fingerprint", data.get("fingerprint", "")),
    ]
    body = table(rows)
    if read_as:
        body += f"<h3>How it was read, and what was left out</h3><pre>{words(private(read_as, run))}</pre>"
    if run.bad:
        named = [
            (private(str(b.get("source")), run), b.get("row"), private(str(b.get("reason")), run))
            for b in run.bad[:MOST_BAD]
        ]
        body += f"<h3>Unusable samples, replaced by others: {len(run.bad)}</h3>" + table(
            named, ("sample", "row", "reason")
        )
        if len(run.bad) > MOST_BAD:
            body += f"<p class=note>{len(run.bad) - MOST_BAD} more in bad_samples.jsonl</p>"
    else:
        body += "<p>No sample was unusable.</p>"
    env = run.environment
    versions = ", ".join(f"{k} {v}" for k, v in env.get("packages", {}).items() if v)
    rows = [("python", env.get("python")), ("platform", env.get("platform")), ("packages", versions)]
    rows += [("commit", env.get("git_commit")), ("command", private(" ".join(map(str, env.get("command", []))), run))]
    settings = private(yaml.safe_dump({k: v for k, v in c.items() if k != "origin"}, sort_keys=False), run)
    shown = f"<details><summary>All settings</summary><pre>{words(settings)}</pre></details>"
    return [Section("Data", body), Section("Environment", table([r for r in rows if r[1]]) + shown)]


def write(folder: str | Path) -> Path:
    """Make `report.html` and `curves.png` of a run, from its folder alone; returns the page.

    The curves are there first: what the objective saw takes the encoder and the data, which may be gone.
    """
    run = read(folder)
    png([run], run.folder / CURVES)
    file, parts = run.folder / PAGE, curves([run])
    checkpoint.write_aside(file, page(run.name, lead(run), parts + facts(run)))
    if run.state:
        more, read_as = of_samples(run)
        checkpoint.write_aside(file, page(run.name, lead(run), parts + more + facts(run, read_as)))
    return file


def of_samples(run: Run) -> tuple[list[Section], str]:
    """What takes the encoder and the data, and how the data was read."""
    from triptych.evaluation import report_samples
    from triptych.evaluation.load import from_run
    from triptych.training.sources import load

    said = io.StringIO()
    try:
        config, objective, _ = from_run(run.folder)
        with contextlib.redirect_stdout(said):
            rows = load(config.data, objective.backbone.modality)
        # Beside the curves' folder: a continued run writes that one anew, and what was seen before would be gone.
        board = run.folder / PICTURES if "tensorboard" in config.run.trackers else None
        made = report_samples.sections(objective, rows, config.data.eval_fraction, board, run.state["step"])
    except Exception as error:  # the data has moved, say; the curves are worth having
        why = f"<p>could not be made: {words(private(one_line(error), run))}</p>"
        made = [Section("What the objective saw", why)]
    return made, said.getvalue()


def compare(folders: list[str], to: Path) -> Path:
    """Several runs in one page."""
    runs = [read(folder) for folder in folders]
    flat = [flatten({k: v for k, v in run.config.items() if k != "origin"}) for run in runs]
    keys = sorted({key for f in flat for key in f} - {"output_dir"})
    differ = [
        (key, *(private(str(f.get(key, "")), run)[:80] for f, run in zip(flat, runs, strict=True)))
        for key in keys
        if len({str(f.get(key)) for f in flat}) > 1
    ]
    wanted = [
        "loss",
        "eval_loss",
        "rankme",
        "feature_deviation",
        "mean_cosine",
        "probe_linear",
        "probe_linear_gain",
        "samples_per_second",
        "samples",
    ]
    last = [
        (
            name.replace("_", " "),
            *("" if (v := run.last(name)) is None else f"{v:,.0f}" if v >= 1e4 else f"{v:.4g}" for run in runs),
        )
        for name in wanted
        if any(run.last(name) is not None for run in runs)
    ]
    names = tuple(run.name for run in runs)
    sections = [Section("The last figures", table(last, ("", *names))), *curves(runs)]
    sections.append(
        Section("In what their settings differ", table(differ, ("", *names)) if differ else "<p>In nothing.</p>")
    )
    said = "".join(f"<h3>{words(run.name)}</h3>{lead(run)}" for run in runs)
    checkpoint.write_aside(to, page(" and ".join(names), said, sections))
    return to


class Report:
    """Makes the page of a run while it trains, in another process; called by the first rank alone. Never raises."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.process: subprocess.Popen | None = None
        self.began = 0.0  # by the clock of the disk's times
        self.made: int | None = None

    def __call__(self, step: int) -> None:
        """Begin a page of the checkpoint that has just been written, if there is none under way and it is time."""
        with one_line_only(self.folder):
            if not self._busy() and time.time() - self.began >= OFTEN * self._took():
                self._start(step)

    def finish(self, step: int) -> str | None:
        """Wait for the page of the last step; returns what to say, if it is there."""
        with one_line_only(self.folder):
            if self.made != step:
                self._start(step)
            self._wait()
            if self.process is not None and self.process.returncode in (0, None):
                still = "" if self.process.returncode == 0 else ", which is still being made"
                return f"look: {self.folder / PAGE}{still}"
        return None

    def _busy(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _took(self) -> float:
        """Seconds that the last page took."""
        page = self.folder / PAGE
        return max(0.0, page.stat().st_mtime - self.began) if self.began and page.exists() else 0.0

    def _start(self, step: int) -> None:
        if self._busy():  # with an older checkpoint
            self.process.kill()
            self.process.wait()
        self.began, self.made = time.time(), step
        command = [sys.executable, "-m", "triptych.evaluation.report", str(self.folder), "--background", *own.options()]
        self.process = subprocess.Popen(
            command, env=apart(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def _wait(self) -> None:
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(WAIT)


def reporting(config) -> Report | None:
    """What makes the page of such a run; None where that is off, by its option or for all by TRIPTYCH_REPORT=0."""
    wanted = config.run.report and os.environ.get("TRIPTYCH_REPORT") != "0"
    return Report(Path(config.run.output_dir)) if wanted else None


def apart() -> dict[str, str]:
    """Environment of the process that makes a page: no rank of anything, no GPU, one core, no network."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if k not in launcher and not k.startswith("TORCHELASTIC")}
    return kept | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }


@contextlib.contextmanager
def one_line_only(folder: Path):
    try:
        yield
    except Exception as error:  # a page is never worth a run
        print(f"{folder / PAGE} could not be made: {one_line(error)}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="triptych.evaluation.report", description="A page to look at, of runs.")
    parser.add_argument("runs", nargs="+", help="folders of runs; several are put side by side")
    parser.add_argument("--to", help=f"file to write. Default: {PAGE} in the run's folder, {COMPARED} for several")
    parser.add_argument("--background", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(own.taken(sys.argv[1:] if argv is None else argv))
    if given.background:
        os.nice(19)
        signal.alarm(600)  # nobody may be left to wait for it
    try:
        if len(given.runs) > 1:
            print(compare(given.runs, Path(given.to or COMPARED)))
        else:
            print(write(given.runs[0]))
    except Exception as error:
        print(f"{Path(given.runs[0]) / PAGE} could not be made: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
