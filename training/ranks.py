"""Ranks: how processes become ranks, and how what the first one decides reaches the others."""

import base64
import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from triptych.training.errors import Told, UserError, explain

Made = TypeVar("Made")
# The first rank may train a tokenizer for an hour, while a group's own time-out is 10 or 30 minutes. A rank that dies
# closes its connections, so nobody waits for the dead.
PATIENCE = timedelta(days=7)
# By launcher: number of ranks, rank, rank on this machine, ranks on this machine, and what names the job.
LAUNCHERS = {
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", None, ("SLURM_JOB_ID", "SLURM_STEP_ID")),
    "mpirun": (
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
    ),
    "mpiexec": ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", ("PMI_ID", "HYDI_CONTROL_FD")),
}
TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def announce(environ: MutableMapping[str, str]) -> None:
    """Give the processes of srun and mpirun the variables that torchrun and deepspeed set.

    Raises:
        UserError: if a launcher announces several processes and it cannot be known where they meet.
    """
    if "RANK" in environ:
        missing = [name for name in TORCH if name not in environ and name != "LOCAL_RANK"]
        if missing:
            raise UserError(
                f"RANK is set, but {', '.join(missing)} not: start with torchrun --nproc_per_node N train.py ..., or "
                "unset RANK"
            )
        environ.setdefault("LOCAL_RANK", "0")
        return
    for launcher, (size, rank, local, locals_, job) in LAUNCHERS.items():
        count = environ.get(size, "1")
        # An allocation's own shell (sbatch) has SLURM_NTASKS, but no step: it is one process.
        if not count.isdigit() or int(count) < 2 or rank not in environ:
            continue
        address = environ.get("MASTER_ADDR") or _meeting_place(environ, count, locals_)
        name = " ".join(environ[key] for key in job if key in environ)
        if not address or not (name or "MASTER_PORT" in environ) or local not in environ:
            raise UserError(
                f"{launcher} started {count} processes that cannot find each other, and each would train alone: set "
                f"MASTER_ADDR (the first machine's name) and MASTER_PORT in all of them, or let {launcher} start one "
                "process a machine: torchrun --nnodes N --nproc_per_node M --rdzv_backend c10d "
                "--rdzv_endpoint HOST:PORT train.py ..."
            )
        port = environ.get("MASTER_PORT") or str(20_000 + zlib.crc32(name.encode()) % 20_000)
        values = (environ[rank], count, environ[local], address, port)
        environ.update(zip(TORCH, values, strict=True))
        return


def _meeting_place(environ: Mapping[str, str], count: str, locals_: str | None) -> str | None:
    """The first machine of the job, or None where the launcher does not say."""
    if locals_ is not None:
        return "127.0.0.1" if environ.get(locals_) == count else None
    if environ.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    # "node[03-07,9],other" -> node03
    head, _, rest = environ.get("SLURM_STEP_NODELIST", "").partition("[")
    if not rest:
        return head.split(",")[0] or None
    if "," in head:
        return head.split(",")[0]
    return head + rest.split("]")[0].split(",")[0].split("-")[0]


class Team:
    """All ranks of a run, for plain data and waiting. Of one process, itself alone; then nothing costs anything."""

    def __init__(self):
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group(backend="gloo", timeout=PATIENCE) if self.count > 1 else None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Plain data of all ranks. It travels as JSON: the objects of `torch.distributed` are pickles."""
        if self.group is None:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.count)]
        self._wait(dist.all_gather(lengths, torch.tensor([len(text)]), self.group, async_op=True))
        longest = max(map(int, lengths))
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.count)]
        text = torch.nn.functional.pad(text, (0, longest - len(text)))
        self._wait(dist.all_gather(parts, text, self.group, async_op=True))
        return [json.loads(part[: int(n)].numpy().tobytes()) for part, n in zip(parts, lengths, strict=True)]

    def first(self, decide: Callable[[], Made]) -> Made:
        """What the first rank decides, as plain data, on all ranks. A refusal of its is everyone's, and said once."""
        made = self.each(decide if self.is_first else lambda: None)
        return self.gather(made if self.is_first else None)[0] if self.group is not None else made

    def each(self, work: Callable[[], Made], turns: bool = False) -> Made:
        """Every rank's own work. What one cannot do is refused by all, and said by one.

        In `turns` the first rank goes first, then one rank of each other machine, then the rest: what one has made and
        cached, the others find.
        """
        mine = 0 if self.is_first or not turns else 1 if os.environ.get("LOCAL_RANK") == "0" else 2
        made, error = None, None
        for turn in range(3 if turns and self.group is not None else 1):
            if turn == mine:
                try:
                    made = work()
                except Exception as raised:
                    if self.group is None:
                        raise
                    error = raised
            failed = self.gather(None if error is None else explain(error) or f"{type(error).__name__}: {error}")
            speaker = next((rank for rank, text in enumerate(failed) if text is not None), None)
            if speaker is None:
                continue
            if error is not None and (self.is_first or explain(error) is None):
                raise error
            # The first rank says it, for it is the one that is heard.
            raise UserError(f"rank {speaker}: {failed[speaker]}") if self.is_first else Told(failed[speaker])
        return made

    def refuse(self, text: str) -> None:
        """What all ranks find alike is said by the first."""
        raise (UserError if self.is_first else Told)(text)

    def agree(self, facts: dict[str, Any], way: str) -> None:
        """Refuse, with the way out, if a rank has other facts than the first."""
        everyone = self.gather(facts)

        def compare():
            for rank, theirs in enumerate(everyone):
                for name in facts:
                    if theirs.get(name) != everyone[0].get(name):
                        raise UserError(
                            f"rank {rank} has another {name} than rank 0 ({theirs.get(name)} against "
                            f"{everyone[0].get(name)}); {way}"
                        )

        self.first(compare)

    def files(self, write: Callable[[str], None]) -> tempfile.TemporaryDirectory:
        """A temporary folder on each rank with the small files that `write(folder)` makes on the first."""

        def pack() -> dict[str, str]:
            write(folder.name)
            found = [p for p in Path(folder.name).rglob("*") if p.is_file()]
            return {str(p.relative_to(folder.name)): base64.b64encode(p.read_bytes()).decode() for p in found}

        folder = tempfile.TemporaryDirectory()
        for name, content in self.first(pack).items():
            file = Path(folder.name) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(base64.b64decode(content))
        return folder

    @staticmethod
    def _wait(work: dist.Work) -> None:
        while not work.is_completed():  # in short sleeps, between which a signal is heard
            time.sleep(0.005)
        work.wait()
