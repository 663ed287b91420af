"""Random kills: a run that is killed and started again ends where an undisturbed one does, bit for bit.

    python benchmarks/kills.py --count 100 --folder runs/kills

Each is one run on one or two ranks that SIGKILL or SIGTERM meets at a random moment, while it starts, steps or saves,
and sometimes once more while it goes on. Weights, moments, metrics (clocks aside) and TensorBoard are compared.
A line a kill goes to `kills.jsonl`; the same command goes on after the last.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from jsonargparse import auto_cli
from pages import lines_of

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
os.environ.setdefault("TRIPTYCH_TEST_THREADS", "1")

import support  # noqa: E402

STEPS, CLOCKS = 24, ("time", "samples_per_second", "data_wait")


def train(argv: list[str]) -> None:
    from triptych import train

    train.main(argv)


def command(folder: Path, data: Path, ranks: int) -> list[str]:
    options = {"output_dir": folder, "data": data, "objective": "byol", "modality.image_size": 8}
    options |= {"modality.patch_size": 4, "encoder.width": 32, "encoder.depth": 1, "encoder.heads": 2}
    options |= {"objective.head.hidden": 32, "objective.head.out": 16, "per_device_train_batch_size": 8 // ranks}
    options |= {"max_steps": STEPS, "save_steps": 3, "logging_steps": 1, "eval_steps": 4, "data.eval_fraction": 0.2}
    options |= {"report_to": "tensorboard", "report": "false", "device": "cpu"}
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def outcome(folder: Path) -> tuple:
    """Weights, moments, log and TensorBoard's points at the end."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    points: dict[str, list] = {}
    for file in sorted((folder / "tensorboard").glob("events*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if not value.tag.endswith(CLOCKS):
                    points.setdefault(value.tag, []).append((event.step, value.SerializeToString()))
    last = folder / f"checkpoint-{STEPS}"
    log = [{k: v for k, v in line.items() if k not in CLOCKS} for line in support.metrics(folder)]
    files = [(last / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]
    return *files, log, points


def start(folder: Path, ranks: int, argv: list[str]) -> support.Ranks:
    folder.mkdir(parents=True, exist_ok=True)
    return support.Ranks(train, ranks, folder, {"argv": argv})


def kill(folder: Path, data: Path, number: int, undisturbed: dict[int, tuple], seconds: dict[int, float]) -> dict:
    """One run with one or two kills; what happened, and what differs from the undisturbed one."""
    draw = random.Random(number)
    ranks, run, said = draw.choice((1, 1, 2)), folder / "run", []
    shutil.rmtree(folder, ignore_errors=True)
    for _ in range(draw.choice((1, 1, 2))):
        name, moment = draw.choice(("SIGKILL", "SIGTERM")), draw.uniform(0, seconds[ranks])
        started = start(folder / "said", ranks, command(run, data, ranks))
        time.sleep(moment)
        alive = [p for p in started.processes if p.exitcode is None]
        for process in alive:
            os.kill(process.pid, getattr(signal, name))
        codes = started.wait(120)
        there = sorted(int(p.name[11:]) for p in run.glob("checkpoint-*"))
        said.append({"signal": name, "after": round(moment, 2), "met": len(alive), "codes": codes, "saved": there})
    start(folder / "said", ranks, command(run, data, ranks)).results()
    pairs = zip(("weights", "moments", "metrics", "tensorboard"), outcome(run), undisturbed[ranks], strict=True)
    return {"number": number, "ranks": ranks, "kills": said, "differs": [n for n, a, b in pairs if a != b]}


def kills(folder: Path, count: int) -> list[dict]:
    """`count` of them, those that are already in `kills.jsonl` among them."""
    data, file = support.write_pictures(folder / "pictures", 48), folder / "kills.jsonl"
    undisturbed, seconds = {}, {}
    for ranks in (1, 2):
        run = folder / f"undisturbed{ranks}"
        shutil.rmtree(run, ignore_errors=True)
        for _ in range(1 if undisturbed else 2):  # the first start also loads the libraries
            shutil.rmtree(run, ignore_errors=True)
            began = time.monotonic()
            start(run, ranks, command(run / "run", data, ranks)).results()
            seconds[ranks] = time.monotonic() - began
        undisturbed[ranks] = outcome(run / "run")
    done = lines_of(file)
    for number in range(len(done), count):
        done.append(kill(folder / "killed", data, number, undisturbed, seconds))
        with open(file, "a") as opened:
            opened.write(json.dumps(done[-1]) + "\n")
    return done


def main(count: int = 100, folder: str = "runs/kills"):
    """Kill runs and print how many ended as undisturbed ones.

    Args:
        count: runs that are killed.
        folder: where runs and `kills.jsonl` lie.
    """
    done = kills(Path(folder).absolute(), count)
    sent = [k["signal"] for d in done for k in d["kills"] if any(k["codes"])]  # the process ended by it
    equal = sum(not d["differs"] for d in done)
    print(f"{equal} of {len(done)} runs ended as undisturbed ones; {sum(d['ranks'] == 2 for d in done)} on two ranks;")
    print(f"{sent.count('SIGKILL')} SIGKILL, {sent.count('SIGTERM')} SIGTERM ended a run early")
    sys.exit(equal < len(done))


if __name__ == "__main__":
    auto_cli(main)
