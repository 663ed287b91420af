"""The checkpoint: a folder of safetensors and JSON, independent of the number of ranks and of the ZeRO stage.

    checkpoint-500/
        model.safetensors      all parameters and buffers of the objective (teacher, queue, ...) in float32, by name
        optimizer.safetensors  moments, as `moment/name`
        monitor.safetensors    the latest features, of which the figures of collapse are made, and what the start showed
        state.json             step, data position, counts
        config.yaml            the run's configuration
        modality/              processor or tokenizer
        native/                what a published checkpoint brought that is not trained
        manifest.json          size and SHA-256 of each of these

It is written aside, synced, and renamed last, so that a folder of that name is whole unless the disk damaged it; then
it is refused by name and the one before is used. Only the first rank writes and reads it. Nothing is pickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn

from triptych.training.errors import RUST, UserError, one_line
from triptych.training.ranks import Team

PREFIX = "checkpoint-"
BEST = "best.json"  # in the run's folder: the step of the best checkpoint, where one was asked for
NEEDED = ("model.safetensors", "optimizer.safetensors", "state.json", "config.yaml")


class Writer:
    """Writes checkpoints on a thread, one at a time, while training goes on."""

    def __init__(self):
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future | None = None

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> None:
        self.wait()
        self.pending = self.thread.submit(work, *arguments)

    def wait(self) -> None:
        """Until all is written; raises what went wrong."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        self.thread.shutdown()


def write(
    run_folder: Path,
    step: int,
    weights,
    moments,
    state: dict[str, Any],
    config: dict[str, Any],
    modality,
    native=None,
    features: dict[str, Tensor] | None = None,
) -> Path:
    """Save one checkpoint; returns its folder.

    Raises:
        UserError: if the disk is full, say; nothing half-written stays.
    """
    from safetensors import SafetensorError

    try:
        return _write(run_folder, step, weights, moments, state, config, modality, native, features or {})
    except Exception as error:
        if not (isinstance(error, (OSError, SafetensorError)) or RUST.search(str(error))):
            raise
        shutil.rmtree(run_folder / f".{PREFIX}{step}.partial", ignore_errors=True)
        last = [f.name for f in folders(run_folder) if f.name != f"{PREFIX}{step}"][:1]
        raise UserError(
            f"{run_folder / PREFIX}{step} cannot be written ({one_line(error)}); make room or mend the disk, and the "
            f"same command continues from {last[0] if last else 'the start'}"
        ) from error


def _write(run_folder: Path, step: int, weights, moments, state, config, modality, native, features) -> Path:
    from safetensors.torch import save_file

    aside = run_folder / f".{PREFIX}{step}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "modality").mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, aside / "model.safetensors")
    save_file({k: v.contiguous() for k, v in moments.items()}, aside / "optimizer.safetensors")
    save_file({k: v.contiguous() for k, v in features.items()}, aside / "monitor.safetensors")
    (aside / "state.json").write_text(json.dumps(state, indent=1))
    (aside / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    modality.save(str(aside / "modality"))
    if native is not None:
        native.save(aside / "native")
    files = sorted(p for p in aside.rglob("*") if p.is_file())
    manifest = {str(p.relative_to(aside)): {"size": p.stat().st_size, "sha256": digest(p)} for p in files}
    (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for file in [*files, aside / "manifest.json", *(p for p in aside.iterdir() if p.is_dir()), aside]:
        sync(file)
    folder = run_folder / f"{PREFIX}{step}"
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(aside, folder)
    sync(run_folder)
    return folder


def prune(run_folder: Path, keep: int, written: int, spared: int | None = None) -> None:
    """Delete all but `keep` checkpoints, the one just written and those before it, and what a kill left half-written.

    Those of higher numbers are damaged, since the run came here from an earlier one. `spared`: the step of one more
    that is kept, the best by a probe.
    """
    earlier = [folder for folder in folders(run_folder) if number(folder) < written and number(folder) != spared]
    later = [folder for folder in folders(run_folder) if number(folder) > written]
    for folder in earlier[keep - 1 :] + later:
        shutil.rmtree(folder, ignore_errors=True)
    for partial in run_folder.glob(f".{PREFIX}*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def folders(run_folder: Path) -> list[Path]:
    """Checkpoints, newest first, whole or not."""
    found = [p for p in run_folder.glob(f"{PREFIX}*") if p.is_dir() and p.name[len(PREFIX) :].isdigit()]
    return sorted(found, key=number, reverse=True)


def number(folder: Path) -> int:
    return int(folder.name[len(PREFIX) :])


def newest(run_folder: Path, say=print) -> Path | None:
    """The newest whole checkpoint; damaged ones are named. None if there is none at all.

    Raises:
        UserError: if all are damaged.
    """
    faults = []
    for folder in folders(run_folder):
        fault = damage(folder)
        if fault is None:
            return folder
        faults.append(f"{folder.name}: {fault}")
        say(f"{folder} is damaged ({fault}); looking for the one before")
    if faults:
        raise UserError(
            f"{run_folder}: all checkpoints are damaged ({'; '.join(faults)}); put one back from a copy, or start "
            "again in another output_dir"
        )
    return None


def whole(folder: Path, say=print) -> Path | None:
    """The whole checkpoint that a folder stands for: itself, or of a run the best by its own probe, else the newest.

    None if the folder is neither.

    Raises:
        UserError: if what it stands for is damaged.
    """
    if (folder / "state.json").is_file():
        if fault := damage(folder):
            raise UserError(f"{folder} is damaged ({fault}); take another checkpoint of that run")
        return folder
    if (found := best(folder)) is not None:
        say(f"{found}: the best by the run's own probe (keep best)")
        return found
    return newest(folder, say)


def best(run_folder: Path) -> Path | None:
    """The best checkpoint by the run's own probe, if it kept one and it is whole."""
    file = run_folder / BEST
    if not file.is_file():
        return None
    folder = run_folder / f"{PREFIX}{json.loads(file.read_text())}"
    return folder if damage(folder) is None else None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return "manifest.json is missing or unreadable"
    for name in (*NEEDED, *expected):
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        size, sha256 = expected.get(name, (None, None))
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
        if digest(file) != sha256:
            return f"{name} has another SHA-256"
    return None


def origin(folder: Path) -> dict[str, Any]:
    """Where a run continues: the checkpoint's state, and the micro-batches a step of its configuration."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return {
        "folder": str(folder),
        "state": json.loads((folder / "state.json").read_text()),
        "accumulation": config["gradient_accumulation_steps"],
    }


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights, moments and state of a whole checkpoint."""
    from safetensors.torch import load_file

    state = json.loads((folder / "state.json").read_text())
    return load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors"), state


def names(module: nn.Module, stored: Iterable[str]) -> dict[str, str] | None:
    """What each parameter and buffer of an objective is called in a checkpoint, which may be of an earlier version.

    None if the checkpoint's tensors are not this objective's.
    """
    stored, earlier = set(stored), getattr(module, "earlier", {})
    made = {}
    for name in chain(dict(module.named_parameters()), dict(module.named_buffers())):
        made[name] = name
        if name not in stored and (new := next(filter(name.startswith, earlier), None)) is not None:
            made[name] = earlier[new] + name.removeprefix(new)
    return made if set(made.values()) == stored else None


class Shared(Mapping):
    """Tensors of a checkpoint, which the first rank reads and all get, one at a time.

    Asking for one is a matter of all ranks, in one order; its file need be nowhere else.
    """

    def __init__(self, file: Path, team: Team, device: torch.device):
        from safetensors import safe_open

        self.team, self.device = team, device
        self.file = safe_open(file, "pt") if team.is_first else None

        def table() -> dict[str, Any]:
            found = {name: self.file.get_slice(name) for name in self.file.keys()}  # noqa: SIM118
            return {name: [part.get_shape(), part.get_dtype()] for name, part in found.items()}

        self.table = team.first(table)

    def __getitem__(self, name: str) -> Tensor:
        value = self.file.get_tensor(name) if self.file is not None else None
        if self.team.count == 1:
            return value.clone()  # not a part of the file, which may be deleted
        shape, dtype = self.table[name]
        if value is None:
            value = torch.empty(shape, dtype=DTYPES[dtype], device=self.device)
        value = value.to(self.device).contiguous()
        dist.broadcast(value.view(torch.uint8) if value.dtype == torch.bool else value, 0)
        return value

    def __contains__(self, name: object) -> bool:  # without asking for it
        return name in self.table

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)


# By safetensors' names.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
DTYPES |= {"BOOL": torch.bool}


def write_aside(file: Path, text: str) -> None:
    """Write a small file such that it is there whole or not at all."""
    aside = file.with_name(f".{file.name}.partial")
    aside.write_text(text)
    sync(aside)
    os.replace(aside, file)


def digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
