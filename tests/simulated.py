"""Ranks as threads of one process: `collectives` exchange live tensors, so that a test sees what each rank computes.

One backward of the mean of the ranks' losses gives the gradient that averaging on real ranks does; that the real
collectives do so is held by tests/training/test_ranks.py.
"""

import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from triptych.objectives import collectives


def on_ranks(count: int, function: Callable[[int], Any]) -> list:
    """What `function(rank)` returns on each of so many simulated ranks."""
    local, barrier, box, made, failed = threading.local(), threading.Barrier(count), [None] * count, [None] * count, []

    def exchange(x):
        box[local.rank] = x
        barrier.wait(60)
        got = list(box)
        barrier.wait(60)
        return got

    def run(rank: int) -> None:
        local.rank = rank
        try:
            made[rank] = function(rank)
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    fakes = {
        "ranks": lambda: count,
        "rank": lambda: local.rank,
        "gather": lambda x: torch.cat(exchange(x)),
        "total": lambda x: torch.stack(exchange(x)).sum(0),
    }
    real = {name: getattr(collectives, name) for name in fakes}
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    try:
        for name, fake in fakes.items():
            setattr(collectives, name, fake)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for name, function in real.items():
            setattr(collectives, name, function)
    if failed:
        raise next((e for e in failed if not isinstance(e, threading.BrokenBarrierError)), failed[0])
    return made


def share(views: list, rank: int, count: int) -> list:
    """A rank's samples of views that have one sample a row."""
    each = len(views[0]) // count
    at = slice(rank * each, (rank + 1) * each)
    per_sample = ("data", "seed", "identity", "row")
    return [
        v.replace(**{name: getattr(v, name)[at] for name in per_sample if getattr(v, name) is not None}) for v in views
    ]


def check_ranks_are_one(objective, batches: list[list], progress, count: int = 2) -> None:
    """Loss, gradient and, after a step, what the optimizer does not move are those of one rank with the joined batch.

    Each of `batches` is the views of a micro-batch: all of them make a step, which is made twice.
    """
    whole, parts = copy.deepcopy(objective), [copy.deepcopy(objective) for _ in range(count)]
    for step in range(2):
        at = progress._replace(step=progress.step + step)
        for module in (whole, *parts):
            module.zero_grad()
            module.before_step(at)
        alone = [whole(views) for views in batches]
        sum(out["loss"] for out in alone).backward()
        made = on_ranks(count, partial(forward, parts, batches))
        (sum(out["loss"] for outs in made for out in outs) / count).backward()
        for i, out in enumerate(alone):
            mean = torch.stack([outs[i]["loss"] for outs in made]).mean()
            torch.testing.assert_close(mean, out["loss"], atol=1e-5, rtol=1e-5)
        for name, parameter in whole.named_parameters():
            if parameter.grad is not None:
                total = sum(dict(part.named_parameters())[name].grad for part in parts)
                torch.testing.assert_close(total, parameter.grad, atol=1e-5, rtol=1e-4, msg=partial(named, name))
        after(whole, alone, at)
        on_ranks(count, partial(follow, parts, made, at))
        for part in parts:
            for (name, buffer), other in zip(whole.named_buffers(), part.buffers(), strict=True):
                torch.testing.assert_close(other, buffer, atol=1e-6, rtol=1e-5, msg=partial(named, name))


def forward(parts: list, batches: list[list], rank: int) -> list[dict]:
    return [parts[rank](share(views, rank, len(parts))) for views in batches]


def follow(parts: list, made: list[list[dict]], at, rank: int) -> None:
    after(parts[rank], made[rank], at)


def after(module, outs: list[dict], at) -> None:
    with torch.no_grad():
        module.after_step([{name: out[name] for name in module.extras} for out in outs], at)


def named(name: str, said: str) -> str:
    return f"{name}: {said}"
