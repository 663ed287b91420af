"""A trial: a few steps of the very run, timed before it begins. Nothing is written, and no random state is changed."""

import copy
import math
import os
import resource
import statistics
import time
from typing import NamedTuple

import torch

from triptych.objectives import Objective, Progress
from triptych.training.engine import learning_rate, optimizer, workers
from triptych.training.loader import Division, Order, Samples
from triptych.training.ranks import Team
from triptych.training.settings import Config
from triptych.training.sources import Rows

MOST, SECONDS = 5, 20.0  # steps that are timed, and the time after which no further one is


class Trial(NamedTuple):
    """Seconds of a step, and the most memory that was in use, in bytes: of the device, or of this process on a CPU."""

    seconds: float
    memory: int

    def words(self, device: torch.device) -> str:
        giga = 2**30
        if device.type == "cuda":
            return f"{self.memory / giga:.1f} of {torch.cuda.mem_get_info(device)[1] / giga:.1f} GB of the GPU"
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return f"{self.memory / giga:.1f} of {room / giga:.1f} GB, and that of the processes that read"


def rehearse(
    config: Config, objective: Objective, part: Division, rows: Rows, device: torch.device, team: Team
) -> Trial:
    """Take a copy of the objective through some steps with real samples. All ranks take part."""
    run, on_gpu = config.run, device.type == "cuda"
    devices = [device] if on_gpu else []
    with torch.random.fork_rng(devices=devices):
        made = copy.deepcopy(objective).to(device).train()
        steps = optimizer(run, made)
        batch = run.per_device_train_batch_size * team.count
        order = Order(len(part.table), batch, run.seed)
        bad = config.data.most_bad(len(rows))
        samples = Samples(part.table, rows.column, rows.modality, made.views, run.seed, bad, part.numbers)
        computed, read = [], []
        began, enough = time.perf_counter(), False
        # The first step is not typical: memory is found, tables are made.
        for number, index in enumerate(order.micro_batches(0, MOST + 1, 1, team.rank, team.count)):
            if team.gather(enough)[0]:  # by the first rank's clock
                break
            mark = time.perf_counter()
            views = samples.__getitems__(index)["views"]
            read.append(time.perf_counter() - mark)
            mark = time.perf_counter()
            _step(made, steps, [view.to(device) for view in views], run, Progress(number, 10**6, batch), device)
            if on_gpu:
                torch.cuda.synchronize(device)
            computed.append(time.perf_counter() - mark)
            enough = number >= 1 and time.perf_counter() - began > SECONDS
        used = torch.cuda.max_memory_reserved(device) if on_gpu else _resident()
        del made, steps
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
    compute, reading = (statistics.median(times[1:] or times) for times in (computed, read))
    step = together(compute, reading, workers(run), on_gpu)
    return Trial(step * run.gradient_accumulation_steps, used)


def together(compute: float, reading: float, readers: int, on_gpu: bool) -> float:
    """Seconds of a step whose samples `readers` processes read meanwhile.

    On a CPU reading is not hidden: a reader takes half of a core from one thread that computes, and all others wait.
    """
    reading /= max(1, readers)
    return max(compute, reading) if readers and on_gpu else compute + reading


def _step(made: Objective, steps, views, run, progress: Progress, device: torch.device) -> None:
    """As `Loop._step`, without the engine."""
    made.before_step(progress)
    modality = made.backbone.modality
    with torch.no_grad():
        views = [modality.prepare(view) for view in views]
    with torch.autocast(device.type, torch.bfloat16, enabled=run.bf16 is True):
        out = made(views)
    out["loss"].backward()
    parameters = [p for p in made.parameters() if p.grad is not None]
    torch.nn.utils.clip_grad_norm_(parameters, run.max_grad_norm or math.inf)
    for group in steps.param_groups:
        group["lr"] = learning_rate(run.learning_rate, 1.0, 0, 100) * group["scale"]
    steps.step()
    steps.zero_grad()
    with torch.no_grad():
        made.after_step([{name: out[name] for name in made.extras}], progress)


def _resident() -> int:
    """The most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
