"""The checkpoint: a folder of safetensors and JSON, independent of the number of ranks and of the ZeRO stage.

    checkpoint-500/
        model.safetensors      all parameters and buffers of the objective (teacher, queue, ...) in float32, by name
        optimizer.safetensors  moments, as `moment/name`
        state.json             step, data position, counts
        config.yaml            the run's configuration
        modality/              processor or tokenizer
        native/                what a published checkpoint brought that is not trained
        manifest.json          size and SHA-256 of each of these

It is written aside, synced, and renamed last, so that a folder of that name is whole unless the disk damaged it; then
it is refused by name and the one before is used. Nothing is pickled.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from training.settings import plain

PREFIX = "checkpoint-"
NEEDED = ("model.safetensors", "optimizer.safetensors", "state.json", "config.yaml")


def write(
    run_folder: Path, step: int, weights, moments, state: dict[str, Any], config: dict[str, Any], modality, native=None
) -> Path:
    """Save one checkpoint; returns its folder."""
    from safetensors.torch import save_file

    aside = run_folder / f".{PREFIX}{step}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "modality").mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, aside / "model.safetensors")
    save_file({k: v.contiguous() for k, v in moments.items()}, aside / "optimizer.safetensors")
    (aside / "state.json").write_text(json.dumps(state, indent=1))
    (aside / "config.yaml").write_text(yaml.safe_dump(plain(config), sort_keys=False))
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


def prune(run_folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what a kill left half-written."""
    for folder in folders(run_folder)[keep:]:
        shutil.rmtree(folder, ignore_errors=True)
    for partial in run_folder.glob(f".{PREFIX}*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def folders(run_folder: Path) -> list[Path]:
    """Checkpoints, newest first, whole or not."""
    found = [p for p in run_folder.glob(f"{PREFIX}*") if p.is_dir() and p.name[len(PREFIX) :].isdigit()]
    return sorted(found, key=lambda p: -int(p.name[len(PREFIX) :]))


def newest(run_folder: Path, say=print) -> Path | None:
    """The newest whole checkpoint; damaged ones are named."""
    for folder in folders(run_folder):
        fault = damage(folder)
        if fault is None:
            return folder
        say(f"{folder} is damaged ({fault}); looking for the one before")
    return None


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


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights, moments and state of a whole checkpoint."""
    from safetensors.torch import load_file

    state = json.loads((folder / "state.json").read_text())
    return load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors"), state


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
