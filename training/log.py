"""Where figures go: `metrics.jsonl` always, trackers as asked, one progress bar (plain lines without a terminal)."""

import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triptych.training.checkpoint import write_aside
from triptych.training.errors import UserError
from triptych.training.settings import Run

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
        self.trackers: list[Any] = []  # with write, flush, close
        self.began, self.first, self.said = time.perf_counter(), first, 0.0
        if silent:
            return
        file = folder / "metrics.jsonl"
        # A continued run writes again what came after its checkpoint.
        before = [figures for figures in read_metrics(file) if figures["step"] <= first]
        if file.exists():
            write_aside(file, "".join(json.dumps(figures) + "\n" for figures in before))
        self.file = open(file, "a")  # noqa: SIM115
        name = run.run_name or folder.name
        for tracker in run.trackers:
            self.trackers.append(TRACKERS[tracker](folder, name, before))
        self.bar = _bar(steps, first) if sys.stderr.isatty() else None

    def write(self, step: int, figures: dict[str, Any]) -> None:
        if self.silent:
            return
        figures = {"step": step, "time": round(time.time(), 3)} | figures
        self.file.write(json.dumps(figures) + "\n")
        self.file.flush()
        for tracker in self.trackers:
            tracker.write(figures)

    def flush(self) -> None:
        """Before a checkpoint gets its name, all up to it is on the disk: a run that goes on from it says no more."""
        if self.silent:
            return
        self.file.flush()
        os.fsync(self.file.fileno())
        for tracker in self.trackers:
            tracker.flush()

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
        for tracker in self.trackers:
            tracker.close()


class Pace:
    """Samples a second, and the part of the time that was spent waiting for data, since it was started again."""

    def __init__(self, step: int, batch: int):
        self.batch = batch
        self.restart(step)

    def restart(self, step: int) -> None:
        self.since, self.began, self.waited = step, time.perf_counter(), 0.0

    @contextmanager
    def waiting(self):
        asked = time.perf_counter()
        yield
        self.waited += time.perf_counter() - asked

    def __call__(self, step: int) -> tuple[float, float]:
        passed = time.perf_counter() - self.began
        return (step - self.since) * self.batch / passed, self.waited / passed


def _bar(steps: int, first: int):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    bar.add_task("starting", total=steps, completed=first)
    bar.start()
    return bar


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without those that a crash or another program has spoilt."""
    return [figures for figures in read_lines(file) if isinstance(figures.get("step"), int)]


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects in the lines of a file, without lines that are cut off; nothing where there is no file."""
    lines = file.read_bytes().splitlines() if file.exists() else []
    return [found for line in lines if isinstance(found := _parsed(line), dict)]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _finite(figures: dict[str, Any]) -> dict[str, float]:
    left = {k: v for k, v in figures.items() if k not in ("step", "time")}
    return {k: v for k, v in left.items() if isinstance(v, (int, float)) and math.isfinite(v)}


class TensorBoard:
    """Its files follow from `metrics.jsonl`: a continued run writes them anew, so no point is there twice."""

    def __init__(self, folder: Path, name: str, before: list[dict[str, Any]]):
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self.writer = SummaryWriter(str(folder / "tensorboard"))
        for figures in before:
            self.write(figures)

    def write(self, figures: dict[str, Any]) -> None:
        for key, value in _finite(figures).items():
            tag = f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}"
            self.writer.add_scalar(tag, value, figures["step"], walltime=figures.get("time"))

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class RunBased:
    """wandb, and trackio, which has its functions. A continued run is the same run there, too."""

    def __init__(self, package: str, name: str, **options: Any):
        self.tracker = importlib.import_module(package)
        project = os.environ.get(f"{package.upper()}_PROJECT", "triptych")
        self.run = self.tracker.init(project=project, name=name, **options)

    def write(self, figures: dict[str, Any]) -> None:
        self.run.log(_finite(figures), step=figures["step"])

    def flush(self) -> None:
        """They send on their own."""

    def close(self) -> None:
        self.tracker.finish()


def _wandb(folder: Path, name: str, before: list[dict[str, Any]]) -> RunBased:
    file = folder / "wandb_id.txt"
    if not file.exists():
        write_aside(file, os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12])
    return RunBased("wandb", name, dir=str(folder), id=file.read_text().strip(), resume="allow")


def _trackio(folder: Path, name: str, before: list[dict[str, Any]]) -> RunBased:
    # It knows runs by name alone: a new one must not continue another folder's.
    return RunBased("trackio", name, resume="allow" if before else "never")


TRACKERS = {"tensorboard": TensorBoard, "wandb": _wandb, "trackio": _trackio}


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
    try:
        git = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        commit = git.stdout.strip() or None
    except OSError:  # a machine without git
        commit = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git_commit": commit,
        "command": sys.argv,
        "data": data,
    }
