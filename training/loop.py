"""The training loop: batches in order, steps, evaluation, checkpoints; the same on one process and on many."""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from triptych.encoders import Backbone
from triptych.modalities.hashing import mix
from triptych.objectives import Objective, Progress
from triptych.training import checkpoint, starts
from triptych.training.bad_samples import BadSamples, Clipped
from triptych.training.continuing import Preserving
from triptych.training.engine import Agreement, Engine, global_batch, learning_rate, ranks_here, warmup_of, workers
from triptych.training.errors import UserError
from triptych.training.loader import Division, Order, Samples, divided_once, loader, reading
from triptych.training.log import Log, Pace, environment
from triptych.training.monitor import Monitor
from triptych.training.ranks import Team
from triptych.training.run_folder import RunFolder
from triptych.training.settings import Config
from triptych.training.signals import Signals
from triptych.training.sources import Rows, fingerprint, print_once

TIMED = 3  # steps after which it is said how long the rest takes; the first of them is not typical
EVAL_SEED = 0xE7A1  # the held-out part has the same views and masks every time


def head_steps(config: Config, steps: int) -> int:
    """Steps in which the encoder stands still. A recipe's are a tenth of a short run; more than the run is refused."""
    wanted = config.run.head_steps
    if config.origin.get("head_steps") == "recipe" and wanted > (most := max(1, steps // 10)):
        print_once(f"head_steps {most} instead of the recipe's {wanted}: the encoder is to move within {steps} steps")
        return most
    if wanted >= steps > 0:
        raise UserError(f"head_steps {wanted} of {steps} steps: the encoder would never move; give fewer of them")
    return wanted


def total_steps(config: Config, order: Order) -> int:
    if config.run.max_steps > 0:
        return config.run.max_steps
    return max(1, math.ceil(config.run.num_train_epochs * order.steps_an_epoch))


class Loop:
    """One run. `train` runs it to its end, from the checkpoint `origin` if there is one (`checkpoint.origin`).

    `probe` judges the encoder (`evaluation.online`); `begun` is the encoder as it began, where the loss needs it;
    `report` makes a page of what is in the folder (`evaluation.report`).
    """

    def __init__(
        self,
        config: Config,
        objective: Objective,
        rows: Rows,
        device: torch.device,
        team: Team | None = None,
        origin: dict[str, Any] | None = None,
        folder: RunFolder | None = None,
        signals: Signals | None = None,
        probe: Callable | None = None,
        begun: Backbone | None = None,
        divided: tuple[Division, Division] | None = None,
        report: Any = None,
    ):
        run = self.run = config.run
        self.config, self.rows, self.device, self.origin = config, rows, device, origin
        self.team, self.held, self.signals = team or Team(), folder, signals or Signals()
        self.modality, self.probe, self.report = objective.backbone.modality, probe, report
        self.folder = Path(run.output_dir)

        divided = divided or divided_once(rows, config.data.eval_fraction, self.team)
        (self.table, self.numbers), (self.eval_table, self.eval_numbers) = divided
        self.recordings = rows.recordings()
        limit = config.data.most_bad(len(rows))
        self.bad, self.clipped = BadSamples(self.folder, limit, self.team), Clipped(self.team)
        self.batch = global_batch(run, self.team.count)
        self.order = Order(len(self.table), self.batch, run.seed)
        self.steps = total_steps(config, self.order)
        self.warmup, self.head_steps = warmup_of(run, self.steps), head_steps(config, self.steps)
        # A run that continues an encoder is short, and may harm it: it is looked at ten times.
        usual = run.init_from and "eval_steps" not in config.given
        self.eval_steps = max(1, self.steps // 10) if usual else run.eval_steps
        base = run.base_learning_rate
        self.peak = run.learning_rate if base is None else base * self.batch / 256
        self.fingerprint = fingerprint(rows)
        self.team.agree({"data": self.fingerprint, "samples": len(self.table)}, "give all ranks the same data")
        self.compares = objective.compares
        if self.compares and run.per_device_train_batch_size * self.team.count < 2:
            self.team.refuse(
                f"objective {config.objective['name']} compares samples, so per_device_train_batch_size 1 on one rank "
                "leaves nothing to learn from; give at least 2 (gradient_accumulation_steps does not add to it)"
            )
        if origin is not None:
            self.team.first(lambda: self._check(origin))
        around = Preserving(objective, begun.to(device), run.preserve) if begun is not None else None
        self.engine = Engine(objective, run, device, around)
        self.objective, self.begun = objective, begun
        self.begun_digest = origin and origin["state"].get("start")
        self.monitor = Monitor(self.steps, self.team.count)
        self.step = self.applied = self.failed = self.saved = 0
        self.scalars: dict[str, torch.Tensor] = {}  # the objective's own, of the latest step
        self.unjudged: list[tuple[torch.Tensor, torch.Tensor]] = []  # (applied, norm) of steps that were not read yet
        self.saved_at = time.monotonic()
        self.writer = checkpoint.Writer()

    def _loader(self, table, batches, seed: int, workers: int):
        numbers = self.recordings[self.eval_numbers if table is self.eval_table else self.numbers]
        samples = Samples(table, self.rows.column, self.modality, self.objective.views, seed, self.bad.limit, numbers)
        return loader(samples, batches, workers, self.device)

    def _prepare(self, views) -> list[dict[str, torch.Tensor]]:
        with torch.no_grad():
            return [self.modality.prepare(view.to(self.device, non_blocking=True)) for view in views]

    def train(self) -> dict[str, Any]:
        """Train to the last step; returns the last figures."""
        run = self.run
        if self.origin is not None:
            self._resume(self.origin)
        if self.step >= self.steps:
            if self.team.is_first:
                print(f"{self.folder} is finished: {self.step} steps; nothing to do")
            return {}
        if self.team.count > 1:
            way = "give all ranks the same files, on a shared disk or copied to all machines"
            self.team.agree({"weights": self.engine.digest(), "step": self.step}, way)
        self.team.first(self._open)
        figures: dict[str, Any] = {}
        self.log = Log(self.folder, run, self.steps, self.step, silent=not self.team.is_first)
        self.log.say(self._opening())
        timed = f"; the time to come is said after {TIMED} steps" if self.steps - self.step >= TIMED else ""
        self.log.say(self.engine.describe() + timed)
        batches = self.order.micro_batches(
            self.step, self.steps, run.gradient_accumulation_steps, self.team.rank, self.team.count
        )
        self.objective.train()
        agree, pace = Agreement(), Pace(self.step, self.batch)
        begun, second, advised = self.step, time.perf_counter(), False
        with (
            closing(self.log),
            closing(self.writer),
            reading(self._loader(self.table, batches, run.seed, workers(run))) as feed,
            ThreadPoolExecutor(1) as ahead,
        ):
            # A step's batches are taken over from the workers while the step before is computed.
            coming = ahead.submit(take, feed, run.gradient_accumulation_steps)
            self.signals.loop()
            if self.probe is not None and not self.probe.start:
                self.log.write(self.step, self._probed())  # before the first step: the start
            while self.step < self.steps:
                try:
                    with pace.waiting():
                        micro = coming.result()
                    coming = ahead.submit(take, feed, run.gradient_accumulation_steps)
                except UserError as error:  # a worker's comes with its traceback
                    raise UserError(str(error).rpartition("UserError: ")[2]) from None
                for part in micro:
                    self.bad.new |= part["bad"]
                    self.clipped.new |= part["beyond"]
                if self.team.count == 1 or self.step % run.logging_steps == 0:
                    self.bad.share()
                    if line := self.clipped.share():
                        self.log.say(line)
                loss, rate = self._step(micro, self.monitor)
                better = False
                if self.step == begun + TIMED:
                    self.log.say(self._to_come((time.perf_counter() - second) / (TIMED - 1)))
                elif self.step == begun + 1:
                    second = time.perf_counter()
                last = self.step == self.steps
                evaluating = last or self.eval_steps and self.step % self.eval_steps == 0
                if self.step % run.logging_steps == 0 or evaluating:
                    speed, wait = pace(self.step)
                    figures = {
                        "epoch": self.step / self.order.steps_an_epoch,
                        "loss": self.engine.mean(loss),
                        "learning_rate": rate,
                        "grad_norm": self._judge(),
                        "samples": self.step * self.batch,
                        "samples_per_second": speed,
                        "data_wait": wait,
                    } | {name: self.engine.mean(value) for name, value in self.scalars.items()}
                    if self.monitor.due(self.step, run.logging_steps):
                        features = self.engine.gather(self.monitor.features())
                        figures |= self.monitor.figures(self.step, features) if self.team.is_first else {}
                    if evaluating:
                        figures |= self.evaluate()
                        if self.probe is not None:
                            figures |= self._probed()
                            better = run.keep == "best" and self.team.first(self.probe.improved)
                    self.log.write(self.step, figures)
                    self.log.progress(self.step, figures["loss"], rate, speed)
                    if alarm := self.monitor.alarm():
                        self.log.say(alarm)
                    if figures["data_wait"] > 0.1 and pace.since > begun and not advised:
                        advised = True
                        self.log.say(self._advice(figures["data_wait"]))
                    pace.restart(self.step)
                stop, due = agree(self.signals.caught is not None, self._is_due())
                if last or stop or due or better or run.save_steps and self.step % run.save_steps == 0:
                    self.save()
                if stop and not last:
                    self._stop(agree)
            agree.last()
            self.team.first(self.writer.wait)
            self.log.say(f"verdict: {self.monitor.verdict()}")
            judged = [] if self.probe is None else self.probe.verdict(run.keep == "best")
            for line in judged:
                self.log.say(line)
            self.log.say(f"{self.folder}: {self.steps:,} steps done, {len(self.bad)} unusable samples replaced")
            if self.clipped.known:
                self.log.say(self.clipped.summary())
            if self.report is not None and (found := self.team.first(lambda: self.report.finish(self.step))):
                self.log.say(found)
            self.log.say(f"next: python probe.py {self.folder}; python export.py {self.folder} --to exported")
        return self.team.gather(figures | {"verdict": self.monitor.verdict(), "probe_verdict": judged})[0]

    def _opening(self) -> str:
        run = self.run
        rate_note = f"= {run.base_learning_rate} × {self.batch} / 256 " if run.base_learning_rate else ""
        samples = len(self.table) + len(self.eval_table)
        cut = f"; {len(self.rows):,} rows were cut into these" if samples != len(self.rows) else ""
        if empty := len(self.rows) - len(np.union1d(self.numbers, self.eval_numbers)):
            cut += f", {empty:,} of them hold nothing"
        return (
            f"{self.steps:,} steps of {self.batch} samples on {self.team.count} rank(s), ZeRO-{self.engine.stage}; "
            f"learning rate {self.peak:.3g} {rate_note}; {len(self.table):,} samples to train on, "
            f"{len(self.eval_table):,} held out{cut}"
        )

    def _is_due(self) -> bool:
        """Is it time for a checkpoint? By the clock of the first rank."""
        minutes = self.run.save_minutes
        return self.team.is_first and 0 < minutes * 60 <= time.monotonic() - self.saved_at

    def _stop(self, agree: Agreement) -> None:
        agree.last()
        self.team.first(self.writer.wait)
        name = self.signals.caught.name if self.signals.caught else "a signal to another rank"
        self.log.say(f"{name}: saved at step {self.step} of {self.steps}; the same command continues from there")
        self.signals.caught = self.signals.caught or signal.SIGTERM
        self.signals.stop()

    def _step(self, micro, monitor: Monitor) -> tuple[torch.Tensor, float]:
        """One optimizer step; returns (loss of this rank, learning rate). At stage 0 the host waits for nothing."""
        rate, first = learning_rate(self.peak, self.warmup, self.step, self.steps), self.head_steps
        trunk_rate = None  # as the heads'
        if first:
            late = self.step - first
            trunk_rate = 0.0 if late < 0 else learning_rate(self.peak, self.warmup, late, max(1, self.steps - first))
        self.objective.before_step(self._progress())
        loss, extras = torch.zeros((), device=self.device), []
        self.scalars = {}
        for number, batch in enumerate(micro):
            # Whatever draws from torch's own generator (a dropout, say) is the same after a resume.
            torch.manual_seed(mix(self.run.seed, self.step, number, self.engine.rank))
            out = self.engine.forward(self._prepare(batch["views"]))
            self.engine.backward(out["loss"])
            loss += out["loss"].detach() / len(micro)
            extras.append({name: out[name] for name in self.objective.extras})
            for name, value in out.items():  # what an objective says of itself
                if name != "loss" and name not in self.objective.extras and value.ndim == 0:
                    self.scalars[name] = self.scalars.get(name, 0) + value.detach() / len(micro)
            if "features" in out:
                monitor.see(out["features"])
            applied, norm = self.engine.step(rate, trunk_rate)
        self.step += 1
        self.unjudged.append((applied, norm))
        with torch.no_grad():
            self.objective.after_step(extras, Progress(self.step, self.steps, self.batch, applied))
        return loss, rate

    def _to_come(self, seconds: float) -> str:
        """How long the rest takes, after the first steps; evaluations and checkpoints come on top."""
        memory, left = self.engine.memory(), round(seconds * (self.steps - self.step))
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        return f"{clock} to come, at {seconds:.3g} s a step as of the first ones{memory}"

    def _advice(self, waited: float) -> str:
        """What to do when the loader is slower than the device."""
        now, cores = workers(self.run), len(os.sched_getaffinity(0)) // ranks_here()
        more = f"--dataloader_num_workers {cores} (now {now})" if now < cores else "more cores"
        return (
            f"data_wait {waited:.0%}: the device waits for samples that long; try {more}, smaller files (pictures near "
            "the size that is trained on, sound at 16 kHz) or a faster disk"
        )

    def _judge(self) -> float:
        """Read from the device which of the latest steps were applied, and count; returns the last gradient norm.

        Two in a row that were not stop the run.
        """
        latest, self.unjudged = self.unjudged, []
        read = torch.stack([torch.stack([applied.float(), norm.float()]) for applied, norm in latest]).tolist()
        for step, (applied, norm) in enumerate(read, self.step - len(read) + 1):
            if applied:
                self.applied, self.failed = self.applied + 1, 0
                continue
            self.failed += 1
            self.log.say(f"step {step}: the gradient is not finite ({norm}); no weight was changed")
            if self.failed == 2:
                self.writer.wait()  # the newest may still be on its way to the disk
                last = checkpoint.folders(self.folder)
                self.team.refuse(
                    f"steps {step - 1} and {step} were not finite, so training stops; "
                    f"last good checkpoint: {last[0] if last else 'none'}; look at the data, or start in another "
                    "output_dir with a lower learning_rate"
                )
        return norm

    def _probed(self) -> dict[str, float]:
        """Figures of the encoder on what it is not trained on. All ranks make the features, alike."""
        figures = self.probe(self.objective.backbone, self.step)
        self.objective.train()
        return figures

    def _progress(self) -> Progress:
        return Progress(self.step, self.steps, self.batch)

    def evaluate(self) -> dict[str, float]:
        """Mean loss on the held-out part, with the same views and masks every time."""
        size = min(self.run.per_device_train_batch_size, len(self.eval_table) // self.engine.ranks)
        if not size or not self.objective.evaluates or self.compares and size * self.engine.ranks < 2:
            return {}  # of one sample alone there is nothing to compare
        whole = len(self.eval_table) // (size * self.engine.ranks)
        share = range(self.engine.rank, whole * self.engine.ranks, self.engine.ranks)
        batches = [[(0, i) for i in range(b * size, (b + 1) * size)] for b in share]
        self.objective.eval()
        self.objective.before_step(self._progress())
        losses = []
        with torch.no_grad():
            # A few batches are read sooner than a process is started.
            count = min(workers(self.run), len(batches) // 8)
            with reading(self._loader(self.eval_table, batches, EVAL_SEED, count)) as feed:
                for batch in feed:
                    losses.append(self.engine.forward(self._prepare(batch["views"]))["loss"].float())
                    self.bad.new |= batch["bad"]
                    self.clipped.new |= batch["beyond"]
        self.objective.train()
        return {"eval_loss": self.engine.mean(torch.stack(losses).mean())}

    def _open(self) -> None:
        """Write what a run's folder has from the start. On the first rank."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = yaml.safe_dump(self.config.stored(), sort_keys=False)
        data = {"name": str(self.config.data.name), "rows": len(self.rows), "fingerprint": self.fingerprint}
        # The configuration first: a folder with other files but without it is taken for somebody else's.
        checkpoint.write_aside(self.folder / "config.yaml", config)
        checkpoint.write_aside(self.folder / "environment.json", json.dumps(environment(data), indent=1))
        self.bad.rewrite()
        if self.begun is not None and self.origin is None:
            self.begun_digest = starts.keep(self.begun, self.folder)

    def save(self) -> None:
        """Copy everything to the memory of the first rank, which writes it on a thread. Once a step."""
        if self.saved == self.step:
            return
        if self.unjudged:
            self._judge()
        self.bad.share()
        self.clipped.share()
        self.team.first(self.writer.wait)  # a failure to write the one before is everyone's
        weights, moments = self.engine.tensors(self.applied)
        features = self.engine.gather(self.monitor.features()) if self.monitor.recent else None
        self.saved, self.saved_at = self.step, time.monotonic()
        if not self.team.is_first:
            return
        if self.held is not None and not self.held.mine():
            raise UserError(f"output_dir {self.folder} was taken over by another process, so this one stops")
        state = {
            "step": self.step,
            "applied": self.applied,
            "failed": self.failed,
            "steps": self.steps,
            "warmup": self.warmup,
            "head_steps": self.head_steps,
            "batch": self.batch,
            "data": self.fingerprint,
            "bad": self.bad.state(),
            "clipped": self.clipped.state(),
            "monitor": self.monitor.state(),
            "probe": self.probe and self.probe.state(),
            "start": self.begun_digest,
        }
        self.log.flush()
        kept = {} if features is None else {"features": features.cpu()}
        kept |= self.probe.tensors() if self.probe else {}
        self.writer(self._write, self.step, weights, moments, state, kept)

    def _write(self, step: int, weights, moments, state, features) -> None:
        what = weights, moments, state, self.config.stored(), self.modality, self.objective.backbone.native, features
        checkpoint.write(self.folder, step, *what)
        best = state["probe"] and state["probe"]["best_step"] if self.run.keep == "best" else None
        if best is not None:
            checkpoint.write_aside(self.folder / checkpoint.BEST, json.dumps(best))
        checkpoint.prune(self.folder, self.run.save_total_limit, step, best)
        if self.report is not None:
            self.report(step)

    def _check(self, origin: dict[str, Any]) -> None:
        """May this run go on from there? On the first rank, before anything is built."""
        folder, state, run = origin["folder"], origin["state"], self.run
        anew = f"start another run from its weights: --init_from {self.folder} and another output_dir"
        if state["data"] != self.fingerprint:
            raise UserError(
                f"data {self.rows.name} is not what {folder} was trained on (fingerprint {self.fingerprint}, "
                f"was {state['data']}): its rows are others, more or fewer; give the same data, or {anew}"
            )
        ranks = self.team.count
        if state["batch"] != self.batch:
            share, rest = divmod(state["batch"], ranks)
            way = f"set per_device_train_batch_size × gradient_accumulation_steps to {share}"
            raise UserError(
                f"{folder} was trained with {state['batch']} samples a step, now it would be {self.batch}; "
                + (way if not rest else f"{ranks} ranks do not divide that")
            )
        compared, now = state["batch"] // origin["accumulation"], run.per_device_train_batch_size * ranks
        if self.compares and compared != now:
            share, rest = divmod(compared, ranks)
            way = f"set per_device_train_batch_size to {share}" if not rest else f"{ranks} ranks do not divide that"
            raise UserError(
                f"{folder} was trained on {compared} samples (per device × ranks) that objective "
                f"{self.config.objective['name']} compares with each other, now it would be {now}, which is another "
                f"loss; {way}, or {anew}"
            )
        if self.steps < state["step"]:
            option = "max_steps" if run.max_steps > 0 else "num_train_epochs"
            raise UserError(
                f"{option} {getattr(run, option)} makes {self.steps} steps, but {folder} has {state['step']} already; "
                f"give at least as many, or {anew}"
            )

    def _resume(self, origin: dict[str, Any]) -> None:
        state, folder = origin["state"], Path(origin["folder"])
        if self.engine.stage:
            micro = next(self.order.micro_batches(0, 1, 1, self.team.rank, self.team.count))
            micro = micro[: self.run.per_device_train_batch_size]
            batch = next(iter(self._loader(self.table, [micro], self.run.seed, 0)))
            self.engine.dry_step(self._prepare(batch["views"]))
        weights, moments = (
            checkpoint.Shared(folder / name, self.team, self.device)
            for name in ("model.safetensors", "optimizer.safetensors")
        )
        self.engine.load(weights, moments, state["applied"])
        self.step, self.applied, self.failed = state["step"], state["applied"], state["failed"]
        self.saved = self.step
        self.warmup = state.get("warmup", warmup_of(self.run, state["steps"]))
        self.head_steps = state.get("head_steps", self.run.head_steps)
        self.bad.load(state["bad"])
        if "clipped" in state:  # not in those of earlier versions
            self.clipped.load(state["clipped"])
        kept: Mapping[str, torch.Tensor] = {}
        if "monitor" in state:  # not in those of earlier versions
            kept = checkpoint.Shared(folder / "monitor.safetensors", self.team, self.device)
            ranks = self.team.rank, self.team.count
            self.monitor.load(state["monitor"], kept["features"] if "features" in kept else None, *ranks)
        shown = {name: kept[name] for name in kept if name != "features"}
        if self.probe is not None and not self.probe.load(state.get("probe"), shown):
            print_once(f"{folder} does not hold what the start showed to the online probe: nothing is compared with it")
            self.probe = None
        if not self.team.is_first:
            return
        print(f"continuing from {folder}: step {self.step} of {self.steps}", flush=True)
        if self.steps != state["steps"] and self.step < self.steps:
            rate = learning_rate(self.peak, self.warmup, self.step, self.steps)
            print(
                f"{self.steps} steps instead of {state['steps']}: the learning rate follows the new length, with "
                f"{self.warmup:g} steps of warm-up as before; now {rate:.3g}",
                flush=True,
            )


def take(feed, count: int) -> list:
    return list(islice(feed, count))
