"""Signals: a run saves and can be started again, however it was launched and whoever was sent the signal."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import support

LONG = 100_000


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return support.write_pictures(tmp_path_factory.mktemp("data") / "pictures", 48)


def options(folder, data, **more) -> list[str]:
    given = {
        "output_dir": folder,
        "data": data,
        "modality.image_size": 8,
        "modality.patch_size": 4,
        "encoder.width": 16,
        "encoder.depth": 1,
        "encoder.heads": 2,
        "objective.decoder.width": 16,
        "objective.decoder.depth": 1,
        "objective.decoder.heads": 2,
        "per_device_train_batch_size": 4,
        "max_steps": LONG,
        "save_steps": 0,
        "logging_steps": 1,
        "eval_steps": 0,
        "data.eval_fraction": 0,
        "report_to": "none",
        "device": "cpu",
    } | {key.replace("__", "."): value for key, value in more.items()}
    return [part for key, value in given.items() for part in (f"--{key}", str(value))]


def begin(launcher: list[str], argv: list[str]) -> subprocess.Popen:
    clean = support.plain_environment()
    clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"
    command = [*launcher, "train.py", *argv]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=support.ROOT, start_new_session=True, env=clean, **pipe)


def wait_for_steps(started: subprocess.Popen, folder: Path, count: int = 3) -> None:
    log, end = folder / "metrics.jsonl", time.monotonic() + 240
    while time.monotonic() < end and started.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= count:
            return
        time.sleep(0.05)
    started.kill()
    raise AssertionError(started.communicate()[0])


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
DEEPSPEED = [str(shutil.which("deepspeed", path=Path(sys.executable).parent)), "--num_gpus", "2", "--master_port"]
# launcher, signal, to the whole group, exit code
WAYS = {
    "alone, TERM": ([sys.executable], signal.SIGTERM, False, 75),
    "alone, USR1, to the group": ([sys.executable], signal.SIGUSR1, True, 75),
    "alone, Ctrl-C": ([sys.executable], signal.SIGINT, True, 130),
    "torchrun, TERM": (TORCHRUN, signal.SIGTERM, False, 1),
    "torchrun, USR1": ([*TORCHRUN, "--signals_to_handle", "SIGTERM,SIGINT,SIGUSR1"], signal.SIGUSR1, False, 1),
    "torchrun, TERM to the group": (TORCHRUN, signal.SIGTERM, True, 1),
    "torchrun, Ctrl-C": (TORCHRUN, signal.SIGINT, True, 1),
    "deepspeed, TERM to the group": ([*DEEPSPEED, "29871"], signal.SIGTERM, True, None),
}
QUICK = ("alone, TERM", "alone, USR1, to the group")


@pytest.mark.fault(
    "SIGTERM, SIGUSR1, Ctrl-C; alone, torchrun, deepspeed",
    "saved at the step's end; 75 if alone, Ctrl-C 130",
    "saved at step N",
)
@pytest.mark.parametrize("way", [pytest.param(w, marks=[] if w in QUICK else [pytest.mark.slow]) for w in WAYS])
def test_a_signal_saves(data, tmp_path, way):
    launcher, number, group, code = WAYS[way]
    run = tmp_path / "run"
    started = begin(launcher, options(run, data))
    wait_for_steps(started, run)
    os.killpg(started.pid, number) if group else os.kill(started.pid, number)
    said, _ = started.communicate(timeout=120)
    assert code is None or started.returncode == code, said
    assert "Traceback" not in said or "torchrun" in way, said  # torchrun's own
    (saved,) = [int(p.name.split("-")[1]) for p in run.glob("checkpoint-*")]
    assert saved > 2 and f"saved at step {saved}" in said, said
    assert support.metrics(run)[-1]["step"] == saved
    assert not (run / ".lock").exists()
    if code == 130:
        assert "the same command continues from the newest checkpoint" in said
    ended = begin(
        [sys.executable],
        options(run, data, max_steps=saved + 2, per_device_train_batch_size=8 if launcher != [sys.executable] else 4),
    )
    said, _ = ended.communicate(timeout=240)
    assert ended.returncode == 0 and f"step {saved} of {saved + 2}" in said, said


@pytest.mark.fault("Ctrl-C before the first step", "code 130, no folder is left", "starts anew: nothing was saved yet")
def test_a_stop_before_the_first_step_says_that_nothing_was_saved(data, tmp_path):
    started = begin([sys.executable], options(tmp_path / "run", data))
    while not (tmp_path / "run" / ".lock").exists() and started.poll() is None:
        time.sleep(0.02)
    os.kill(started.pid, signal.SIGINT)
    said, _ = started.communicate(timeout=120)
    assert started.returncode == 130 and "starts anew: nothing was saved yet" in said, said
    # Gone, but for a signal that came after the settings were written: on a busy machine it may.
    left = {file.name for file in (tmp_path / "run").glob("*")}
    assert not (tmp_path / "run").exists() or "config.yaml" in left and not any("checkpoint" in name for name in left)


def test_a_checkpoint_by_time(data, tmp_path):
    run = tmp_path / "run"
    argv = options(run, data, max_steps=60, save_minutes=1e-6, save_total_limit=100)
    started = begin([sys.executable], argv)
    said, _ = started.communicate(timeout=240)
    assert started.returncode == 0, said
    assert len(list(run.glob("checkpoint-*"))) > 5


def fail(argv: list[str], count: int) -> None:
    """The command line, of a program with a fault in its `count`th step."""
    from triptych import train
    from triptych.training.engine import Engine

    original, calls = Engine.step, []

    def step(self, *rates):
        calls.append(rates)
        assert len(calls) < count, "a fault of ours"
        return original(self, *rates)

    Engine.step = step
    train.main(argv)


def test_a_fault_ends_the_process_and_its_workers(launch, data, tmp_path):
    argv = options(tmp_path / "run", data, save_steps=2, dataloader_num_workers=2)
    failed = launch(fail, 1, argv=argv, count=4)
    assert failed.wait(60) == [1], failed.output()  # -9: it was still there after that time
    assert "AssertionError: a fault of ours" in failed.output()
    assert (tmp_path / "run" / "checkpoint-2").exists() and not (tmp_path / "run" / ".lock").exists()
