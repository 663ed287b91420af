"""The DeepSpeed engine: one path from a laptop's CPU to a cluster; a single process is a world of one."""

import contextlib
import ctypes
import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from triptych.encoders import Encoder
from triptych.modalities.precision import allow_tf32
from triptych.training import checkpoint
from triptych.training.errors import UserError
from triptych.training.settings import CONFIGS, Run, shipped

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
MOMENTS = {"adamw_torch": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


def start(run: Run) -> torch.device:
    """Join the process group that a launcher announced, or make a world of one."""
    device = resolve(run)
    allow_tf32(run.tf32)
    if device.type == "cpu":
        keep_memory()
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    backend, alone = "nccl" if device.type == "cuda" else "gloo", "RANK" not in os.environ
    if alone:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it even then
        if device.type == "cuda" and torch.cuda.device_count() > 1:
            count = torch.cuda.device_count()
            print(f"{count} GPUs are visible, 1 is used; for all: torchrun --nproc_per_node {count} train.py ...")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # No op is probed, with a compiler and its complaints, or built. On a CPU shm_comm would be, at the first start: no
    # compiler, no start, and a kill during the build leaves a lock on which the next start hangs.
    deepspeed.ops.__compatible_ops__ = {}
    if alone and not dist.is_initialized():
        # No port, which another process could take, and nothing in the environment that a later one would find.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(backend, auto_mpi_discovery=False)
    return device


def keep_memory() -> None:
    """Tell glibc to keep freed memory: mapping every large tensor anew, as it does by default, costs a few per cent.

    oneDNN then keeps no operations by their shapes: packed texts have new shapes at each step, and what it kept between
    them left gaps in memory, 2 GB after 800 steps. To make an operation anew costs nothing that could be measured.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "0")  # read when its first operation is made
    with contextlib.suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
            libc.mallopt(option, value)


def pick_device(run: Run) -> torch.device:
    found = torch.cuda.is_available()
    if run.device == "cuda" and not found:
        raise UserError("device cuda: no GPU is visible; use --device cpu, or mend the driver or CUDA_VISIBLE_DEVICES")
    if run.device == "cpu" or not found:
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cuda", torch.cuda.current_device())


def resolve(run: Run) -> torch.device:
    """Put what this machine has in the place of `auto`, so that the run's configuration says it."""
    device = pick_device(run)
    rounds = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)  # and TF32, likewise
    if run.bf16 == "auto":
        run.bf16 = rounds
    if run.tf32 == "auto":
        run.tf32 = rounds
    if run.tf32 and device.type == "cpu":
        raise UserError("tf32: a CPU has none; leave it out, or use --device cuda")
    return device


def workers(run: Run) -> int:
    """Loader processes of this rank: with `auto`, its share of the cores less the one that trains."""
    if run.dataloader_num_workers != "auto":
        return run.dataloader_num_workers
    cores = len(os.sched_getaffinity(0)) // ranks_here()
    return min(max(cores - 1, 1), 8)


def ranks_here() -> int:
    """Ranks on this machine, as torchrun, deepspeed or neither says."""
    said = (os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"))
    return int(next((number for number in said if number), 1))


def settings(run: Run, ranks: int) -> dict[str, Any]:
    """DeepSpeed's configuration: what the user gave, with ours filled in. Clashes are errors."""
    given = run.deepspeed
    if isinstance(given, str):
        file = Path(given) if Path(given).is_file() else shipped(given, ".json", CONFIGS / "deepspeed")
        if file is None:
            raise UserError(f"deepspeed {given}: no such file; shipped are zero0 to zero3, by these names")
        try:
            given = json.loads(file.read_text())
        except ValueError as error:  # of JSON, or of bytes that are no text
            raise UserError(f"deepspeed {run.deepspeed}: not JSON: {error}") from None
    if not isinstance(given or {}, dict):
        raise UserError(f"deepspeed {run.deepspeed}: holds no settings (a JSON object)")
    given = json.loads(json.dumps(given or {}))
    ours = dict(zip(BATCH_KEYS, (global_batch(run, ranks), run.per_device_train_batch_size, 0), strict=True))
    ours["gradient_accumulation_steps"] = run.gradient_accumulation_steps
    option = {BATCH_KEYS[1]: "per_device_train_batch_size", BATCH_KEYS[2]: "gradient_accumulation_steps"}
    for key, value in ours.items():
        if given.get(key, "auto") not in ("auto", value):
            way = f"set {option[key]}" if key in option else f"per device × accumulation × {ranks} ranks make {value}"
            raise UserError(f"deepspeed {key} {given[key]} clashes with our {value}; leave it out or {way}")
    for key, way in {
        "optimizer": "--optim",
        "scheduler": "--warmup_steps",
        "bf16": "--bf16, which autocasts and keeps parameters and teachers in float32",
        "fp16": "--bf16",
        "gradient_clipping": "--max_grad_norm",
        "torch_autocast": "--bf16",
    }.items():
        value = given.pop(key, "auto")
        if value != "auto" and not (isinstance(value, dict) and value.get("enabled", True) in (False, "auto")):
            raise UserError(f"deepspeed {key}: is set by {way}; leave it out of the DeepSpeed settings")
    given.setdefault("timers", {"throughput": {"enabled": False}})  # it waits for the device twice a step
    asked = given.get("zero_optimization", {})
    if not isinstance(asked, dict) or asked.get("stage", 0) not in (0, 1, 2, 3, "auto"):
        raise UserError(f"deepspeed zero_optimization {asked}: give an object whose stage is 0, 1, 2 or 3")
    given["zero_optimization"] = zero = {k: v for k, v in asked.items() if v != "auto"}
    stage = zero.setdefault("stage", 0)
    if stage == 3:
        if run.compile:
            raise UserError("compile and ZeRO-3: the compiler cannot read parameters that are cut; use ZeRO-0 to 2")
        # Persistent parameters stay stale in a teacher's forward.
        zero["stage3_param_persistence_threshold"] = 0
        if zero.get("memory_efficient_linear"):
            raise UserError(
                "deepspeed memory_efficient_linear: it replaces torch's linear layers in the whole process and rounds "
                "otherwise; leave it out of the DeepSpeed settings"
            )
        zero["memory_efficient_linear"] = False  # with it, bfloat16 at ZeRO-3 is not that of the other stages
    if stage:
        zero.setdefault("reduce_bucket_size", 50_000_000)
        zero.setdefault("allgather_bucket_size", 50_000_000)
    return (
        given
        | ours
        | {
            "gradient_clipping": run.max_grad_norm if stage else 0.0,  # stage 0: `Engine.step` clips
            # Without the empty list, gradients would be reduced in bfloat16.
            "torch_autocast": {"enabled": run.bf16 is True, "dtype": "bfloat16", "lower_precision_safe_modules": []},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**62,
        }
    )


def global_batch(run: Run, ranks: int) -> int:
    return run.per_device_train_batch_size * run.gradient_accumulation_steps * ranks


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters by decay and by `scale`, which `Engine.step` multiplies the learning rate with.

    Modules say both. `no_decay` names parameters of theirs that are not decayed, such as positions and leads; biases
    and norms, whatever has fewer than two axes, never are. `rate_scale` is a factor on all that lies within the module;
    factors of nested modules multiply. What lies in a module that `waits` stands still while heads learn alone, and has
    its own rate later; parameters that a module says are `like_heads` (a fresh mask token) are trained as those are.
    """
    exempt = {id(part.get_parameter(name)) for part in module.modules() for name in getattr(part, "no_decay", ())}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}

    def collect(part: nn.Module, scale: float, waits: bool) -> None:
        scale *= getattr(part, "rate_scale", 1.0)
        waits = waits or getattr(part, "waits", False)
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))  # a tied one belongs where it is met first
                decay = 0.0 if parameter.ndim < 2 or id(parameter) in exempt else weight_decay
                alone = name in getattr(part, "like_heads", ())
                key = (decay, 1.0, False) if alone else (decay, scale, waits)
                groups.setdefault(key, []).append(parameter)
        for child in part.children():
            collect(child, scale, waits)

    seen: set[int] = set()
    collect(module, 1.0, False)
    return [
        {"params": group, "weight_decay": decay, "scale": scale, "waits": waits}
        for (decay, scale, waits), group in groups.items()
    ]


def optimizer(run: Run, module: nn.Module) -> torch.optim.Optimizer:
    groups = parameter_groups(module, run.weight_decay)
    if run.optim == "sgd":
        made = torch.optim.SGD(groups, lr=0.0, momentum=run.adam_beta1, fused=True)
        if run.adam_beta1:  # a first step that is left out would leave them as memory was found
            for parameter in (p for group in groups for p in group["params"]):
                made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return made
    betas = (run.adam_beta1, run.adam_beta2)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=run.adam_epsilon, fused=True)


def warmup_of(run: Run, steps: int) -> float:
    """Steps of warm-up in a run of so many."""
    return run.warmup_steps if run.warmup_steps >= 1 else math.ceil(run.warmup_steps * steps)


def learning_rate(peak: float, warmup: float, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to 0."""
    if step < warmup:
        return peak * min(1.0, (step + 1) / warmup)
    return peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


class Engine:
    """DeepSpeed's engine with what it lacks: a finiteness test at stage 0, and gradient norms at every stage."""

    def __init__(self, module: nn.Module, run: Run, device: torch.device, around: nn.Module | None = None):
        """`around`: a module that holds this one and whose forward is the step's; it has no parameters of its own."""
        import deepspeed

        self.run, self.device, self.ranks, self.rank = run, device, dist.get_world_size(), dist.get_rank()
        resolve(run)
        config = settings(run, self.ranks)
        self.stage = config["zero_optimization"]["stage"]
        module = module.to(device)
        for part in module.modules():
            if isinstance(part, Encoder):
                part.recompute = run.gradient_checkpointing
        if run.compile:
            module.compile()  # shapes that vary (packed text) become dynamic at the second one
        self.trainable = [p for p in module.parameters() if p.requires_grad]
        self.engine, *_ = deepspeed.initialize(model=around or module, optimizer=optimizer(run, module), config=config)
        # One process has nobody to reduce with: flattening its gradients and copying them back would be for nothing.
        self.engine.enable_backward_allreduce = self.ranks > 1 or self.stage > 0
        self.module = module

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        return self.engine.optimizer.optimizer if self.stage else self.engine.optimizer

    def describe(self) -> str:
        """Device, precision, batch and memory, in a line."""
        run, device, giga = self.run, self.device, 2**30
        name, memory = f"CPU, {torch.get_num_threads()} thread(s) a rank", ""
        if device.type == "cuda":
            name, (free, room) = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)
            memory = f"; {free / giga:.1f} of {room / giga:.1f} GB of the GPU are free"
        size = sum(getattr(p, "ds_numel", p.numel()) for p in self.module.parameters())
        learned = sum(getattr(p, "ds_numel", p.numel()) for p in self.trainable)
        # Weights, gradients and moments are cut at stages from 3, 2 and 1 on.
        weights, gradients, moments = (self.ranks if self.stage >= least else 1 for least in (3, 2, 1))
        held = 4 * (size / weights + learned / gradients + len(self.moments) * learned / moments)
        precision = "bfloat16 by autocast" if run.bf16 else "TF32" if run.tf32 else "float32"
        return (
            f"{name}, {precision}{', compiled' if run.compile else ''}; a step is {run.per_device_train_batch_size} "
            f"samples × {run.gradient_accumulation_steps} micro-batch(es) × {self.ranks} rank(s); {size / 1e6:.1f} M "
            f"parameters, with gradients and moments {held / giga:.2f} GB a rank, before activations{memory}"
        )

    def memory(self) -> str:
        """The most that was in use until now, on a GPU."""
        if self.device.type == "cpu":
            return ""
        torch.cuda.synchronize(self.device)
        used, whole = torch.cuda.max_memory_reserved(self.device), torch.cuda.mem_get_info(self.device)[1]
        return f"; {used / 2**30:.1f} of {whole / 2**30:.1f} GB of the GPU are used"

    def forward(self, views) -> dict[str, Any]:
        return self.engine(views)

    def backward(self, loss: torch.Tensor) -> None:
        # A loss that is not finite makes the gradient so, on all ranks: then `step` changes no weight.
        self.engine.backward(loss * torch.where(loss.detach().isfinite(), 1.0, math.nan))

    def step(self, rate: float, trunk_rate: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply one micro-batch's turn of a step; at the boundary, the step. Returns (applied, gradient norm).

        Both are on the device, for at stage 0 nobody waits for it: the optimizer itself leaves out a step whose
        gradient is not finite. Where no step was due, False and NaN.
        """
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()
            return self._scalar(False), self._scalar(math.nan)
        for group in self.base_optimizer.param_groups:
            waits = group["waits"] and trunk_rate is not None
            group["lr"] = (trunk_rate if waits else rate) * group["scale"]
        if self.stage:
            self.engine.step()
            applied, norm = self.engine.was_step_applied(), self.engine.get_global_grad_norm()
            if not applied or norm is None:
                norm = math.nan
            return self._scalar(applied), norm if isinstance(norm, torch.Tensor) else self._scalar(norm)
        for parameter in self.trainable:
            if parameter.grad is None:  # unused in this step; a reduction makes it 0 too
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.trainable])
        applied, optimizer = norm.isfinite(), self.base_optimizer
        # Fused optimizers read both on the device: whether to step at all, and what to divide gradients by.
        optimizer.found_inf = (~applied).float()
        optimizer.grad_scale = None
        if self.run.max_grad_norm > 0:
            optimizer.grad_scale = ((norm + 1e-6) / self.run.max_grad_norm).clamp(min=1)
        self.engine.step()
        return applied, norm

    def _scalar(self, value: float) -> torch.Tensor:
        return torch.full((), value, device=self.device)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Values of all ranks, joined on the first axis."""
        whole = values.new_empty(self.ranks, *values.shape)
        dist.all_gather(list(whole.unbind()), values.contiguous())
        return whole.flatten(0, 1)

    def mean(self, value: torch.Tensor) -> float:
        value = value.detach().float().clone()
        dist.all_reduce(value)
        return value.item() / self.ranks

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the optimizer's state that is of the size of a parameter."""
        return () if self.run.optim == "sgd" and not self.run.adam_beta1 else MOMENTS[self.run.optim]

    def _link_moments(self) -> None:
        """At stages 1 and 2 DeepSpeed links moments to parameters after the first step of the *first* group, when the
        other groups have none yet, and never again."""
        if self.stage in (1, 2):
            from deepspeed.utils import lazy_init_hp_params_optimizer_state

            zero = self.engine.optimizer
            for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
                lazy_init_hp_params_optimizer_state(parameters, flat, self.base_optimizer.state)

    # What a checkpoint holds: full float32 tensors by name, whatever the stage and the number of ranks.

    def tensors(self, applied: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Parameters with buffers, and optimizer moments by `moment/name`; on the CPU of the first rank. All take part.

        Before the first applied step there are no moments.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        weights, moments = {}, {}

        def keep(store: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
            if self.rank == 0:
                store[name] = value.detach().to("cpu", copy=True)

        if applied:
            self._link_moments()
        for name, parameter in self.module.named_parameters():
            if self.stage and parameter.requires_grad:
                keep(weights, name, safe_get_full_fp32_param(parameter))
            else:
                with self.whole(parameter):
                    keep(weights, name, parameter)
            if not parameter.requires_grad or not applied:
                continue
            for moment in self.moments:
                if self.stage:
                    value = safe_get_full_optimizer_state(parameter, moment)
                else:
                    value = self.base_optimizer.state.get(parameter, {}).get(moment)
                if value is not None:  # at stage 3 the parameter's own shape is that of nothing
                    keep(moments, f"{moment}/{name}", value.view(getattr(parameter, "ds_shape", parameter.shape)))
        for name, buffer in self.module.named_buffers():
            keep(weights, name, buffer)
        return weights, moments

    def digest(self) -> str:
        """A hash of all parameters and buffers, which must be the same on every rank. All ranks take part."""
        state = hashlib.sha256()
        for name, tensor in chain(self.module.named_parameters(), self.module.named_buffers()):
            whole = self.whole(tensor) if isinstance(tensor, nn.Parameter) else nullcontext()
            with whole:
                content = tensor.detach().to("cpu", copy=True).contiguous().flatten().view(torch.uint8)
            state.update(name.encode())
            state.update(content.numpy())
        return state.hexdigest()

    def load(self, weights: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor], applied: int) -> None:
        """Take back what `tensors` gave. At stages 1 to 3, moments must exist: see `dry_step`. All ranks take part."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._link_moments()
        expected = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        if (names := checkpoint.names(self.module, weights)) is None:
            odd = sorted(expected.keys() ^ weights.keys())
            raise UserError(f"the checkpoint's tensors are not this objective's: {', '.join(odd[:3])} ...")
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                value = weights[names[name]].to(self.device)
                with self.whole(parameter, modify=True):
                    parameter.copy_(value)
                if not parameter.requires_grad:
                    continue
                if self.stage:
                    safe_set_full_fp32_param(parameter, value)
                for moment in self.moments:
                    if f"{moment}/{names[name]}" in moments:
                        held = moments[f"{moment}/{names[name]}"].to(self.device)
                    elif self.stage:  # those of the dry step
                        held = torch.zeros_like(value)
                    else:
                        continue
                    if self.stage:
                        safe_set_full_optimizer_state(parameter, held, moment)
                    else:
                        self.base_optimizer.state[parameter][moment] = held
                if not self.stage and f"exp_avg/{names[name]}" in moments:
                    self.base_optimizer.state[parameter]["step"] = torch.tensor(float(applied), device=self.device)
            for name, buffer in self.module.named_buffers():
                buffer.copy_(weights[names[name]])
            for state in self.base_optimizer.state.values():
                if "step" in state:
                    state["step"].fill_(applied)

    def dry_step(self, views) -> None:
        """A step with learning rate 0, so that the ZeRO optimizer's moments exist; `load` overwrites them."""
        for _ in range(self.run.gradient_accumulation_steps):
            self.backward(self.forward(views)["loss"])
            self.step(0.0)

    def whole(self, parameter: nn.Parameter, modify: bool = False):
        """Within, the parameter is whole on this rank, also under ZeRO-3."""
        if self.stage < 3:
            return nullcontext()
        from deepspeed.runtime.zero import GatheredParameters

        return GatheredParameters([parameter], modifier_rank=0 if modify else None)


class Agreement:
    """What all ranks must see alike, without waiting for it: of each of some numbers the largest, a step late.

    A clock that has run out, a signal that one rank was sent: `asked = agree(signalled, seconds)`. Every rank calls it
    at the end of every step. The reduction runs beside the next step, between hosts, so no device waits either.
    """

    def __init__(self):
        self.group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None
        self.pending: tuple[dist.Work, torch.Tensor] | None = None

    def __call__(self, *values: float) -> list[float]:
        """Hand in this step's numbers; returns what was handed in a step ago, at first zeros (of one rank: these)."""
        if self.group is None:
            return list(map(float, values))
        agreed = self.last() or [0.0] * len(values)
        largest = torch.tensor(values, dtype=torch.float64)
        self.pending = dist.all_reduce(largest, dist.ReduceOp.MAX, self.group, async_op=True), largest
        return agreed

    def last(self) -> list[float] | None:
        """What was handed in last, once all ranks have; to be called at the end, so that nobody leaves too early."""
        if self.pending is None:
            return None
        (work, largest), self.pending = self.pending, None
        work.wait()
        return largest.tolist()
