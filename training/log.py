"""Where figures go: `metrics.jsonl` always, trackers as asked, one progress bar (plain lines without a terminal)."""

import importlib.metadata
import importlib.util
import json
import math
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from training.checkpoint import write_aside
from training.errors import UserError
from training.settings import Run

PACKAGES = (
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "datasets",
    "deepspeed",
    "numpy",
    "pillow",
    "soundfile",
)


class Log:
    """Writes figures of steps; on ranks other than the first, and with `silent`, it does nothing."""

    def __init__(self, folder: Path, run: Run, steps: int, first: int, silent: bool = False):
        self.folder, self.steps, self.silent = folder, steps, silent
        self.trackers: list[Any] = []
        self.began, self.first, self.said = time.perf_counter(), first, 0.0
        if silent:
            return
        file = folder / "metrics.jsonl"
        if file.exists():  # a continued run writes again what came after its checkpoint
            lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
            write_aside(file, "".join(line for line in lines if json.loads(line)["step"] <= first))
        self.file = open(file, "a")  # noqa: SIM115
        name = run.run_name or folder.name
        for tracker in run.trackers:
            self.trackers.append(TRACKERS[tracker](folder, name))
        self.bar = _bar(steps, first) if sys.stderr.isatty() else None

    def write(self, step: int, figures: dict[str, Any]) -> None:
        if self.silent:
            return
        self.file.write(json.dumps({"step": step} | figures) + "\n")
        self.file.flush()
        for track in self.trackers:
            track(step, {k: v for k, v in figures.items() if isinstance(v, (int, float)) and math.isfinite(v)})

    def progress(self, step: int, loss: float, rate: float, speed: float) -> None:
        """Move the bar; without a terminal, print a line every ten seconds."""
        if self.silent:
            return
        if self.bar is not None:
            text = f"loss {loss:.4f}  lr {rate:.2e}  {speed:,.0f} samples/s"
            self.bar.update(0, completed=step, description=text)
            return
        now = time.perf_counter()
        if now - self.said < 10 and step < self.steps:
            return
        self.said = now
        left = (now - self.began) / max(1, step - self.first) * (self.steps - step)
        print(
            f"step {step}/{self.steps}  loss {loss:.4f}  lr {rate:.2e}  {speed:,.0f} samples/s  "
            f"{int(left // 60)}:{int(left % 60):02d} left",
            flush=True,
        )

    def say(self, text: str) -> None:
        if self.silent:
            return
        if self.bar is not None:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self.silent:
            return
        if self.bar is not None:
            self.bar.stop()
        self.file.close()
        for track in self.trackers:
            track(None, {})


def _bar(steps: int, first: int):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    bar.add_task("starting", total=steps, completed=first)
    bar.start()
    return bar


def _tensorboard(folder: Path, name: str):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def track(step, figures):
        for key, value in figures.items():
            writer.add_scalar(f"train/{key}" if not key.startswith("eval_") else f"eval/{key[5:]}", value, step)
        if step is None:
            writer.close()

    return track


def _run_based(package: str):
    def make(folder: Path, name: str):
        tracker = importlib.import_module(package)
        run = tracker.init(project="triptych", name=name, **({"dir": str(folder)} if package == "wandb" else {}))

        def track(step, figures):
            if step is None:
                tracker.finish()
            else:
                run.log(figures, step=step)

        return track

    return make


TRACKERS = {"tensorboard": _tensorboard, "wandb": _run_based("wandb"), "trackio": _run_based("trackio")}


def check(run: Run) -> None:
    """Refuse a tracker that is not installed, before anything is built."""
    for tracker in run.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(f"report_to {tracker}: it is not installed; pip install {tracker}, or report_to none")


def environment(data: dict[str, Any]) -> dict[str, Any]:
    """Versions, git commit, machine and data: what someone needs to reproduce a figure."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    root = Path(__file__).parents[1]
    git = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git_commit": git.stdout.strip() or None,
        "command": sys.argv,
        "data": data,
    }
