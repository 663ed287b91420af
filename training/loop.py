"""The training loop: batches in order, steps, evaluation, checkpoints; the same on one process and on many."""

import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml

from modalities.hashing import mix
from objectives import Objective, Progress
from training import checkpoint
from training.engine import Engine, global_batch, learning_rate, ranks_here, workers
from training.errors import UserError
from training.loader import Order, Samples, held_out, loader
from training.log import Log, environment
from training.monitor import Monitor
from training.settings import Config, differences
from training.sources import Rows, fingerprint, print_once

TIMED = 3  # steps after which it is said how long the rest takes; the first of them is not typical
EVAL_SEED = 0xE7A1  # the held-out part has the same views and masks every time


def open_folder(config: Config) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint to continue from. Refuses a folder of anything else; makes none yet."""
    folder = Path(config.run.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir {folder} is a file; choose a folder")
    if not folder.exists() or all(f.name.endswith(".partial") for f in folder.iterdir()):
        return folder, None
    if not (folder / "config.yaml").is_file():
        raise UserError(f"output_dir {folder} holds other files; choose an empty or a new one")
    old = yaml.safe_load((folder / "config.yaml").read_text())
    changed = differences(old, config.stored())
    before, now = str(old.get("data", {}).get("name")), str(config.data.name)
    if before != now and not changed:
        print_once(f"data {now} takes the place of {before}: the run continues if the content is the same")
    if changed:
        way = (
            "or give the same settings to continue it"
            if checkpoint.folders(folder)
            else "or delete it: it has no checkpoint yet"
        )
        raise UserError(
            f"output_dir {folder} holds a run with other settings ({', '.join(changed)}); choose another folder, {way}"
        )
    return folder, checkpoint.newest(folder, print if int(os.environ.get("RANK", 0)) == 0 else lambda _: None)


def total_steps(config: Config, order: Order) -> int:
    if config.run.max_steps > 0:
        return config.run.max_steps
    return max(1, math.ceil(config.run.num_train_epochs * order.steps_an_epoch))


class Loop:
    """One run. `train` runs it to its end, from the newest checkpoint if there is one."""

    def __init__(
        self, config: Config, objective: Objective, rows: Rows, device: torch.device, start: Path | None = None
    ):
        run = self.run = config.run
        self.config, self.rows, self.device = config, rows, device
        self.modality = objective.backbone.modality
        ranks = dist.get_world_size()
        self.folder, self.start = Path(run.output_dir), start

        training, evaluation = held_out(len(rows), config.data.eval_fraction)
        (self.table, self.numbers), (self.eval_table, self.eval_numbers) = map(self._samples, (training, evaluation))
        limit = config.data.max_bad if config.data.max_bad is not None else max(10, len(rows) // 100)
        self.max_bad = limit
        self.batch = global_batch(run, ranks)
        self.order = Order(len(self.table), self.batch, run.seed)
        self.steps = total_steps(config, self.order)
        base = run.base_learning_rate
        self.peak = run.learning_rate if base is None else base * self.batch / 256
        self.fingerprint = fingerprint(rows)
        self.engine = Engine(objective, run, device)
        self.objective = objective
        self.step = self.applied = self.failed = 0
        self.unjudged: list[tuple[torch.Tensor, torch.Tensor]] = []  # (applied, norm) of steps that were not read yet
        self.bad: dict[int, tuple[str, str]] = {}  # known to all ranks
        self.new: dict[int, tuple[str, str]] = {}  # found on this rank since

    def _samples(self, index):
        """Samples of those rows, and the number of each sample's row in the data."""
        table = self.modality.samples(self.rows.table.select(index), self.rows.column) if len(index) else []
        if not len(table):
            return table, index
        numbers = index[np.asarray(table["source_row"])] if "source_row" in table.column_names else index
        return table.select_columns([self.rows.column]), numbers

    @property
    def first_rank(self) -> bool:
        return self.engine.rank == 0

    def _loader(self, table, batches, seed: int, workers: int):
        numbers = self.eval_numbers if table is self.eval_table else self.numbers
        samples = Samples(table, self.rows.column, self.modality, self.objective.views, seed, self.max_bad, numbers)
        return loader(samples, batches, workers, self.device)

    def _prepare(self, views) -> list[dict[str, torch.Tensor]]:
        with torch.no_grad():
            return [self.modality.prepare(view.to(self.device, non_blocking=True)) for view in views]

    def train(self) -> dict[str, Any]:
        """Train to the last step; returns the last figures."""
        run = self.run
        if self.start is not None:
            self._resume(self.start)
        if self.step >= self.steps:
            if self.first_rank:
                print(f"{self.folder} is finished: {self.step} steps; nothing to do")
            return {}
        self._open()
        monitor, figures = Monitor(self.steps, self.engine.ranks), {}
        self.log = Log(self.folder, run, self.steps, self.step, silent=not self.first_rank)
        rate_note = f"= {run.base_learning_rate} × {self.batch} / 256 " if run.base_learning_rate else ""
        samples = len(self.table) + len(self.eval_table)
        cut = f"; {len(self.rows):,} rows were cut into these" if samples != len(self.rows) else ""
        if empty := len(self.rows) - len(np.union1d(self.numbers, self.eval_numbers)):
            cut += f", {empty:,} of them hold nothing"
        self.log.say(
            f"{self.steps:,} steps of {self.batch} samples on {self.engine.ranks} rank(s), ZeRO-{self.engine.stage}; "
            f"learning rate {self.peak:.3g} {rate_note}; {len(self.table):,} samples to train on, "
            f"{len(self.eval_table):,} held out{cut}"
        )
        self.log.say(self.engine.describe())
        batches = self.order.micro_batches(
            self.step, self.steps, run.gradient_accumulation_steps, self.engine.rank, self.engine.ranks
        )
        feed = iter(self._loader(self.table, batches, run.seed, workers(run)))
        self.objective.train()
        # A step's batches are taken over from the workers while the step before is computed.
        ahead = ThreadPoolExecutor(1)
        coming = ahead.submit(take, feed, run.gradient_accumulation_steps)
        clock, waited, since = time.perf_counter(), 0.0, self.step
        begun, second, advised = self.step, clock, False
        try:
            while self.step < self.steps:
                asked = time.perf_counter()
                try:
                    micro = coming.result()
                    coming = ahead.submit(take, feed, run.gradient_accumulation_steps)
                except UserError as error:  # a worker's comes with its traceback
                    raise UserError(str(error).rpartition("UserError: ")[2]) from None
                waited += time.perf_counter() - asked
                for part in micro:
                    self.new |= part["bad"]
                if self.engine.ranks == 1 or self.step % run.logging_steps == 0:
                    self._note_bad()
                loss, rate = self._step(micro, monitor)
                if self.step == begun + TIMED:
                    self.log.say(self._to_come((time.perf_counter() - second) / (TIMED - 1)))
                elif self.step == begun + 1:
                    second = time.perf_counter()
                last = self.step == self.steps
                evaluating = last or run.eval_steps and self.step % run.eval_steps == 0
                if self.step % run.logging_steps == 0 or evaluating:
                    now = time.perf_counter()
                    speed = (self.step - since) * self.batch / (now - clock)
                    figures = {
                        "epoch": self.step / self.order.steps_an_epoch,
                        "loss": self.engine.mean(loss),
                        "learning_rate": rate,
                        "grad_norm": self._judge(),
                        "samples": self.step * self.batch,
                        "samples_per_second": speed,
                        "data_wait": waited / (now - clock),
                    }
                    if monitor.due(self.step, run.logging_steps):
                        features = self.engine.gather(monitor.features())
                        figures |= monitor.figures(self.step, features) if self.first_rank else {}
                    if evaluating:
                        figures |= self.evaluate()
                    self.log.write(self.step, figures)
                    self.log.progress(self.step, figures["loss"], rate, speed)
                    if alarm := monitor.alarm():
                        self.log.say(alarm)
                    if figures["data_wait"] > 0.1 and since > begun and not advised:
                        advised = True
                        self.log.say(self._advice(figures["data_wait"]))
                    clock, waited, since = time.perf_counter(), 0.0, self.step
                if self.step == self.steps or run.save_steps and self.step % run.save_steps == 0:
                    self.save()
            self.log.say(f"verdict: {monitor.verdict()}")
            self.log.say(f"{self.folder}: {self.steps:,} steps done, {len(self.bad)} unusable samples replaced")
            self.log.say(f"next: python probe.py {self.folder}; python export.py {self.folder} --to exported")
        finally:
            ahead.shutdown()
            self.log.close()
        return self.engine.share(figures | {"verdict": monitor.verdict()})[0]

    def _step(self, micro, monitor: Monitor) -> tuple[torch.Tensor, float]:
        """One optimizer step; returns (loss of this rank, learning rate). At stage 0 the host waits for nothing."""
        rate = learning_rate(self.run, self.peak, self.step, self.steps)
        loss, extras = torch.zeros((), device=self.device), []
        for number, batch in enumerate(micro):
            # Whatever draws from torch's own generator (a dropout, say) is the same after a resume.
            torch.manual_seed(mix(self.run.seed, self.step, number, self.engine.rank))
            out = self.engine.forward(self._prepare(batch["views"]))
            self.engine.backward(out["loss"])
            loss += out["loss"].detach() / len(micro)
            extras.append({name: out[name] for name in self.objective.extras})
            if "features" in out:
                monitor.see(out["features"])
            applied, norm = self.engine.step(rate)
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
                last = checkpoint.folders(self.folder)
                raise UserError(
                    f"steps {step - 1} and {step} were not finite, so training stops; "
                    f"last good checkpoint: {last[0] if last else 'none'}; look at the data, or start in another "
                    "output_dir with a lower learning_rate"
                )
        return norm

    def evaluate(self) -> dict[str, float]:
        """Mean loss on the held-out part, with the same views and masks every time."""
        size = min(self.run.per_device_train_batch_size, len(self.eval_table) // self.engine.ranks)
        if not size:
            return {}
        whole = len(self.eval_table) // (size * self.engine.ranks)
        share = range(self.engine.rank, whole * self.engine.ranks, self.engine.ranks)
        batches = [[(0, i) for i in range(b * size, (b + 1) * size)] for b in share]
        self.objective.eval()
        losses = []
        with torch.no_grad():
            # A few batches are read sooner than a process is started.
            for batch in self._loader(self.eval_table, batches, EVAL_SEED, min(workers(self.run), len(batches) // 8)):
                losses.append(self.engine.forward(self._prepare(batch["views"]))["loss"].float())
                self.new |= batch["bad"]
        self.objective.train()
        return {"eval_loss": self.engine.mean(torch.stack(losses).mean())}

    def _note_bad(self) -> None:
        """Make what each rank found known to all, and write it down. All ranks take part."""
        found = list(self.new.items())
        if self.engine.ranks > 1:
            found = [item for part in self.engine.share(found) for item in part]
        found = {row: tuple(why) for row, why in found if row not in self.bad}
        self.bad, self.new = self.bad | found, {}
        if found and self.first_rank:
            with open(self.folder / "bad_samples.jsonl", "a") as file:
                file.write(bad_lines(found))
        if len(self.bad) > self.max_bad:
            row, (name, reason) = next(iter(self.bad.items()))
            raise UserError(
                f"more than {self.max_bad} unusable samples (data.max_bad), such as {name}: {reason}; "
                f"all are named in {self.folder / 'bad_samples.jsonl'}"
            )

    def _open(self) -> None:
        if self.first_rank:
            self.folder.mkdir(parents=True, exist_ok=True)
            config = yaml.safe_dump(self.config.stored(), sort_keys=False)
            data = {"name": str(self.config.data.name), "rows": len(self.rows), "fingerprint": self.fingerprint}
            # The configuration first: a folder with other files but without it is taken for somebody else's.
            checkpoint.write_aside(self.folder / "config.yaml", config)
            checkpoint.write_aside(self.folder / "environment.json", json.dumps(environment(data), indent=1))
            if self.bad or (self.folder / "bad_samples.jsonl").exists():  # without what came after the checkpoint
                checkpoint.write_aside(self.folder / "bad_samples.jsonl", bad_lines(self.bad))
        dist.barrier()

    def save(self) -> None:
        if self.unjudged:
            self._judge()
        self._note_bad()
        weights, moments = self.engine.tensors()
        if self.first_rank:
            state = {
                "step": self.step,
                "applied": self.applied,
                "failed": self.failed,
                "steps": self.steps,
                "batch": self.batch,
                "data": self.fingerprint,
                "bad": {str(row): why for row, why in self.bad.items()},
            }
            checkpoint.write(
                self.folder,
                self.step,
                weights,
                moments,
                state,
                self.config.stored(),
                self.modality,
                self.objective.backbone.native,
            )
            checkpoint.prune(self.folder, self.run.save_total_limit)
        dist.barrier()

    def _resume(self, folder: Path) -> None:
        weights, moments, state = checkpoint.read(folder)
        if state["data"] != self.fingerprint:
            raise UserError(
                f"data {self.rows.name} is not what {folder} was trained on (fingerprint {self.fingerprint}, "
                f"was {state['data']}); give the same data, or another output_dir"
            )
        if state["batch"] != self.batch:
            share, rest = divmod(state["batch"], self.engine.ranks)
            way = f"set per_device_train_batch_size × gradient_accumulation_steps to {share}"
            raise UserError(
                f"{folder} was trained with {state['batch']} samples a step, now it would be {self.batch}; "
                + (way if not rest else f"{self.engine.ranks} ranks do not divide that")
            )
        if self.engine.stage:
            micro = next(self.order.micro_batches(0, 1, 1, self.engine.rank, self.engine.ranks))
            micro = micro[: self.run.per_device_train_batch_size]
            batch = next(iter(self._loader(self.table, [micro], self.run.seed, 0)))
            self.engine.dry_step(self._prepare(batch["views"]))
        self.engine.load(weights, moments, state["applied"])
        self.step, self.applied, self.failed = state["step"], state["applied"], state["failed"]
        self.bad = {int(row): tuple(why) for row, why in state["bad"].items()}
        if self.first_rank:
            print(f"continuing from {folder}: step {self.step} of {self.steps}")


def take(feed, count: int) -> list:
    return list(islice(feed, count))


def bad_lines(bad: dict[int, tuple[str, str]]) -> str:
    rows = ({"source": name, "row": row, "reason": reason} for row, (name, reason) in bad.items())
    return "".join(json.dumps(row) + "\n" for row in rows)
