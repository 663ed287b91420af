"""What the optimizer is told: what is decayed, how fast each parameter learns and when, where gradients are clipped."""

import dataclasses
import math
import os
from typing import ClassVar

import pytest
import support
import torch
import yaml
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from triptych import train
from triptych.modalities import MODALITIES, View
from triptych.objectives import OBJECTIVES, Progress
from triptych.objectives.prototypes import Prototypes
from triptych.training import engine
from triptych.training.engine import learning_rate, optimizer, parameter_groups, settings, warmup_of
from triptych.training.errors import UserError

STAGES = (0, 1, 2, 3)


def names_by_decay(module: nn.Module) -> dict[float, set[str]]:
    names = {id(p): name for name, p in module.named_parameters()}
    found: dict[float, set[str]] = {}
    for group in parameter_groups(module, 0.05):  # a predictor's have a rate of their own
        found.setdefault(group["weight_decay"], set()).update(names[id(p)] for p in group["params"])
    return found


def built(modality: str, objective: str, **settings):
    config = support.config(modality, objective, "unused", modality=settings)
    made = config.build_modality()
    made.fit(support.table_of(modality), modality)
    return config.build_objective(made)


@pytest.mark.parametrize(("modality", "objective"), [(m, o) for m in MODALITIES for o in OBJECTIVES])
def test_matrices_are_decayed_and_nothing_else(modality, objective):
    learned = {"positions": "learned"} if modality != "text" else {}
    module = built(modality, objective, **learned)
    by_decay = names_by_decay(module)
    assert by_decay.keys() == {0.0, 0.05}
    assert by_decay[0.0] | by_decay[0.05] == {n for n, p in module.named_parameters() if p.requires_grad}
    assert not by_decay[0.0] & by_decay[0.05]
    parts = dict(module.named_parameters())
    assert all(parts[name].ndim == 2 for name in by_decay[0.05])
    # Of the matrices, those that stand for places and leads are free, the decoder's places where they are learned, and
    # prototypes, which are normalised.
    owner = {name: module.get_submodule(name.rpartition(".")[0]) for name in by_decay[0.0] if parts[name].ndim == 2}
    free = {name for name, part in owner.items() if not isinstance(part, Prototypes)}
    grid = {"positions.table", "embedding.lead_content", "embedding.lead_place"}
    assert {".".join(name.split(".")[-2:]) for name in free} == ({"positions.weight"} if modality == "text" else grid)


def test_the_declaration_decides_and_not_the_name():
    class Part(nn.Module):
        no_decay: ClassVar = ("places", "inner.weight")

        def __init__(self):
            super().__init__()
            self.places, self.lead = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
            self.inner, self.position_head = nn.Linear(2, 2), nn.Linear(2, 2)

    whole = nn.ModuleDict({"a": Part(), "b": Part()})
    whole["b"].tied = whole["a"].position_head.weight
    assert names_by_decay(whole)[0.05] == {
        f"{part}.{name}" for part in "ab" for name in ("lead", "position_head.weight")
    }
    whole["a"].no_decay = ("misspelt",)
    with pytest.raises(AttributeError, match="misspelt"):
        parameter_groups(whole, 0.05)


def test_factors_of_the_rate_multiply():
    whole = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2, bias=False)))
    assert {g["scale"] for g in parameter_groups(whole, 0.1)} == {1.0}
    whole[1].rate_scale, whole[1][0].rate_scale = 0.5, 0.2
    whole.rate_scale = 0.25
    groups = parameter_groups(whole, 0.1)
    found = {(g["weight_decay"], g["scale"]): [tuple(p.shape) for p in g["params"]] for g in groups}
    assert found == {(0.1, 0.25): [(2, 2)], (0.0, 0.25): [(2,)], (0.1, 0.025): [(2, 2)]}


def test_the_optimizer_has_the_run_s_numbers():
    numbers = {"weight_decay": 0.3, "adam_beta1": 0.8, "adam_beta2": 0.7, "adam_epsilon": 1e-5}
    run = support.config("image", "mae", "unused", **numbers).run
    made = optimizer(run, nn.Linear(2, 2))
    assert isinstance(made, torch.optim.AdamW)
    assert sorted(g["weight_decay"] for g in made.param_groups) == [0.0, 0.3]
    assert all((g["betas"], g["eps"]) == ((0.8, 0.7), 1e-5) for g in made.param_groups)
    made = optimizer(dataclasses.replace(run, optim="sgd"), nn.Linear(2, 2))
    assert isinstance(made, torch.optim.SGD) and made.param_groups[0]["momentum"] == 0.8


@pytest.mark.parametrize("warmup, first", [(10, 10), (0.05, 10), (0.0451, 10), (0, 0), (1, 1)])
def test_the_rate_rises_in_a_line_and_falls_in_a_cosine(warmup, first):
    run, steps = support.config("image", "mae", "unused", warmup_steps=warmup).run, 200
    rates = [learning_rate(3.0, warmup_of(run, steps), step, steps) for step in range(steps + 1)]
    assert rates[:first] == pytest.approx([3.0 * (i + 1) / first for i in range(first)])
    assert rates[first] == 3.0 == max(rates)
    for step in range(first, steps + 1):
        share = (step - first) / (steps - first)
        assert rates[step] == pytest.approx(1.5 * (1 + math.cos(math.pi * share)), abs=1e-12)
    assert learning_rate(3.0, 1.5, 1, steps) == 3.0  # of steps and a half, the last is at the peak, not beyond it
    assert rates[(first + steps) // 2] == pytest.approx(1.5, abs=0.03) and rates[steps] == 0


class Slope(nn.Module):
    """Two parameters whose gradients are known: 3 and 4 at every place, times the scale of the input."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

    def forward(self, x):
        return {"loss": x.mean() * (3 * self.first.weight.sum() + 4 * self.second.weight.sum())}


def clipped_steps(folder: str) -> dict:
    """By stage and by scale of the gradient: norm as reported, and how far the two weights moved at rate 0.1."""
    from triptych.training import engine as engines

    made = {}
    for stage in STAGES:
        options = {"optim": "sgd", "adam_beta1": 0.0, "weight_decay": 0.0, "max_grad_norm": 2.0}
        run = support.config("image", "mae", folder, deepspeed={"zero_optimization": {"stage": stage}}, **options).run
        device = engines.start(run)
        module = Slope()
        module.second.rate_scale = 0.5
        engine = engines.Engine(module, run, device)
        for size in (1.0, 0.1):
            before = support.weights(engine)
            engine.backward(engine.forward(torch.full((2,), size))["loss"])
            applied, norm = engine.step(0.1)
            after = support.weights(engine)
            moved = [(before[f"{n}.weight"] - after[f"{n}.weight"]).item() for n in ("first", "second")]
            made[f"{stage} {size}"] = [bool(applied), float(norm), *moved]
    return made


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_is_clipped_by_the_global_norm_and_scaled_by_group(launch, tmp_path, ranks):
    for result in launch(clipped_steps, ranks, folder=str(tmp_path)).results():
        for stage in STAGES:
            # A gradient of (3, 4) has norm 5 and is clipped to 2; one of (0.3, 0.4) is left alone.
            for size, slope in ((1.0, (1.2, 1.6)), (0.1, (0.3, 0.4))):
                applied, norm, first, second = result[f"{stage} {size}"]
                assert applied and norm == pytest.approx(5 * size, rel=1e-5), stage
                assert first == pytest.approx(0.1 * slope[0], rel=1e-4), stage
                assert second == pytest.approx(0.5 * 0.1 * slope[1], rel=1e-4), stage


def rates_of_a_loop(folder: str) -> list:
    from triptych.training import engine
    from triptych.training.loop import Loop
    from triptych.training.monitor import Monitor

    made = []
    for base in (None, 0.64):
        options = {"learning_rate": 0.01, "base_learning_rate": base, "max_steps": 8, "warmup_steps": 4}
        config = support.config("image", "mae", folder, gradient_accumulation_steps=2, weight_decay=0.07, **options)
        device = engine.start(config.run)
        modality = config.build_modality()
        loop = Loop(config, config.build_objective(modality), support.rows_of("image", modality), device)
        batches = loop.order.micro_batches(0, 3, 2, 0, 1)
        feed, monitor = iter(loop._loader(loop.table, batches, 0, 0)), Monitor(8)
        rates = [loop._step([next(feed), next(feed)], monitor)[1] for _ in range(3)]
        groups = loop.engine.base_optimizer.param_groups
        made.append([loop.peak, rates, [g["lr"] for g in groups], sorted({g["weight_decay"] for g in groups})])
    return made


def test_a_loop_steps_at_its_rate(launch, tmp_path):
    """`base_learning_rate` is for 256 samples; a step has 4 samples twice."""
    (made,) = launch(rates_of_a_loop, 1, folder=str(tmp_path)).results()
    for (peak, rates, last, decays), expected in zip(made, (0.01, 0.64 * 8 / 256), strict=True):
        assert peak == pytest.approx(expected)
        assert rates == pytest.approx([expected * i / 4 for i in (1, 2, 3)])
        assert last == pytest.approx([rates[-1]] * len(last))
        assert decays == [0.0, 0.07]


def linear_at_zero3(folder: str) -> list:
    """Losses under bf16 of three steps at ZeRO-0 and 3, with biases that are not 0, and whether torch is as it was."""
    from triptych.training import engine as engines

    linear, losses = nn.functional.linear, []
    for stage in (0, 3):
        options = {"bf16": True, "deepspeed": {"zero_optimization": {"stage": stage}}}
        run = support.config("image", "mae", folder, **options).run
        device = engines.start(run)
        torch.manual_seed(0)
        module = built("image", "mae")
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
        engine = engines.Engine(module, run, device)
        view = View(data=torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8), seed=torch.arange(4))
        for _ in range(3):
            out = engine.forward([module.backbone.modality.prepare(view)])
            engine.backward(out["loss"])
            engine.step(1e-3)
            losses.append(out["loss"].item())
    return [losses[:3], losses[3:], nn.functional.linear is linear]


def test_linear_layers_are_torch_s_own_at_zero3(launch, tmp_path):
    """In a fresh process, since DeepSpeed would replace `torch.nn.functional.linear` for good."""
    (made,) = launch(linear_at_zero3, 1, folder=str(tmp_path)).results()
    plain, cut, untouched = made
    assert untouched
    assert cut == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize(
    ("deepspeed", "options", "says"),
    [
        ({"stage": 3, "memory_efficient_linear": True}, {}, "memory_efficient_linear: it replaces"),
        ({"stage": 3}, {"compile": True}, "compile and ZeRO-3: .* use ZeRO-0 to 2"),
    ],
)
def test_what_zero3_cannot_do_is_refused(deepspeed, options, says):
    run = support.config("image", "mae", "unused", deepspeed={"zero_optimization": deepspeed}, **options).run
    with pytest.raises(UserError, match=says):
        settings(run, 1)


def agreed(steps: int) -> list:
    import torch.distributed as dist

    from triptych.training import engine as engines

    engines.start(support.config("image", "mae", "unused").run)
    agree, rank = engines.Agreement(), dist.get_rank()
    # The second rank alone gets a signal, at step 1; its clock is ahead.
    seen = [agree(rank == 1 and step == 1, step + 0.5 * rank) for step in range(steps)]
    return [*seen, agree.last()]


def test_ranks_agree_a_step_late(launch):
    for seen in launch(agreed, 2, steps=4).results():
        assert seen == [[0, 0], [0, 0.5], [1, 1.5], [0, 2.5], [0, 3.5]]
    (alone,) = launch(agreed, 1, steps=3).results()
    assert alone == [[0, 0], [0, 1], [0, 2], None]


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: numbers that are read, and shapes that depend on values."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_unsafe_index") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if by_mask or name in WAITS or str(func) == "aten.repeat_interleave.Tensor":
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal"}


def waits(folder: str, cells: list) -> list:
    """By cell and stage, what three steps between two logs wait for."""
    from triptych.training import engine as engines
    from triptych.training.loop import Loop
    from triptych.training.monitor import Monitor

    made = []
    for modality, objective, stages in cells:
        for stage in stages:
            options = {"deepspeed": {"zero_optimization": {"stage": stage}}, "max_steps": 8}
            config = support.config(modality, objective, folder, **options)
            device = engines.start(config.run)
            built = config.build_modality()
            rows = support.rows_of(modality, built)
            loop = Loop(config, config.build_objective(built), rows, device)
            micro = loop.order.micro_batches(0, 6, 1, loop.engine.rank, loop.engine.ranks)
            feed = iter(loop._loader(loop.table, micro, 0, 0))
            monitor = Monitor(8)
            for _ in range(3):  # in the first ones, DeepSpeed compares its plan of ZeRO-3 between ranks
                loop._step([next(feed)], monitor)
            with Waits() as counted:
                for batch in feed:
                    loop._step([batch], monitor)
            made.append([modality, objective, stage, counted.seen])
    return made


CELLS = [(m, o) for m in MODALITIES for o in OBJECTIVES]
OF_DEEPSPEED = {1: 3, 2: 3, 3: 1}  # a step, with two groups of parameters; docs/gpu.md states them


def test_the_host_does_not_wait_in_a_step(launch, tmp_path):
    cells = [(m, o, [0]) for m, o in CELLS] + [("image", "mae", [1, 2, 3])]
    (made,) = launch(waits, 1, folder=str(tmp_path), cells=cells).results()
    for modality, objective, stage, seen in made:
        if stage == 0:
            assert not seen, (modality, objective, seen)
        else:
            assert len(seen) == 3 * OF_DEEPSPEED[stage], (stage, seen)


def steps_left_out(folder: str) -> list:
    """Weights and moments after a first step that is not finite and two that are, and after these two alone."""
    from triptych.training import engine as engines

    made = []
    for optim in ("adamw_torch", "sgd"):
        for values in ((math.nan, 1.0, 0.1), (math.inf, 1.0, 0.1), (1.0, 0.1)):
            run = support.config("image", "mae", folder, optim=optim, max_grad_norm=2.0).run
            device = engines.start(run)
            engine = engines.Engine(Slope(), run, device)
            applied = []
            with torch.no_grad():
                for parameter in engine.trainable:
                    parameter.fill_(1.0)
            for value in values:
                engine.backward(engine.forward(torch.full((2,), value))["loss"])
                applied.append(bool(engine.step(0.1)[0]))
            weights, moments = engine.tensors(1)
            made.append([applied, weights, moments])
    return made


def test_a_step_that_is_not_finite_leaves_no_trace(launch, tmp_path):
    (made,) = launch(steps_left_out, 1, folder=str(tmp_path)).results()
    for first in (0, 3):
        *broken, plain = made[first : first + 3]
        for applied, *tensors in broken:
            assert applied == [False, True, True] and plain[0] == [True, True]
            for ours, expected in zip(tensors, plain[1:], strict=True):
                assert ours.keys() == expected.keys() and ours
                assert all(torch.equal(ours[name], expected[name]) for name in ours)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_the_optimizer_does_not_move_stays_when_the_step_was_left_out(objective):
    module = built("image", objective)
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter += 0.01 * (number + 1)
    number = torch.arange(4)
    view = View(data=torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8), seed=number, row=number)
    views = [module.backbone.modality.prepare(view.replace(identity=number)) for _ in module.views]
    out = module(views)
    extras = [{name: out[name] for name in module.extras}]
    before = {k: v.clone() for k, v in (*module.named_parameters(), *module.named_buffers())}
    with torch.no_grad():
        module.after_step(extras, Progress(1, 10, 4, torch.tensor(False)))
    assert all(torch.equal(v, before[k]) for k, v in (*module.named_parameters(), *module.named_buffers()))


def gathered(rows: int) -> list:
    import torch.distributed as dist

    from triptych.objectives import collectives
    from triptych.training import engine as engines

    engines.start(support.config("image", "mae", "unused").run)
    rank = dist.get_rank()
    x = (torch.arange(rows * 3.0).view(rows, 3) + 100 * rank).requires_grad_()
    whole = collectives.gather(x)
    weight = torch.arange(whole.numel()).view_as(whole) * (rank + 1.0)
    (whole * weight).sum().backward()
    return [whole.detach(), x.grad]


def test_a_gathered_tensor_s_gradient_is_the_sum_over_ranks_of_its_own_rows(launch):
    results = launch(gathered, 2, rows=4).results()
    asked = 3 * torch.arange(24.0).view(8, 3)  # by both ranks together
    for rank, (whole, gradient) in enumerate(results):
        torch.testing.assert_close(whole, torch.cat([torch.arange(12.0).view(4, 3) + 100 * r for r in range(2)]))
        torch.testing.assert_close(gradient, asked[4 * rank : 4 * rank + 4])


def test_auto_is_resolved_by_the_device(monkeypatch):
    run = support.config("image", "mae", "unused").run
    assert (run.bf16, run.tf32) == ("auto", "auto")
    assert engine.resolve(run).type == "cpu" and (run.bf16, run.tf32) == (False, False)
    with pytest.raises(UserError, match="tf32: a CPU has none"):
        engine.resolve(dataclasses.replace(run, tf32=True))
    for able in (True, False):
        monkeypatch.setattr(engine, "pick_device", lambda run: torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        for given, made in (("auto", able), (True, True), (False, False)):
            run = dataclasses.replace(run, bf16=given, tf32=given)
            engine.resolve(run)
            assert (run.bf16, run.tf32) == (made, made)


@pytest.mark.parametrize(
    ("cores", "said", "expected"),
    [(1, {}, 1), (4, {}, 3), (64, {}, 8), (64, {"LOCAL_WORLD_SIZE": "16"}, 3), (8, {"LOCAL_SIZE": "4"}, 1)],
)
def test_workers_follow_the_cores(monkeypatch, cores, said, expected):
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
    run = support.config("image", "mae", "unused", dataloader_num_workers="auto").run
    assert engine.workers(run) == expected
    assert engine.workers(dataclasses.replace(run, dataloader_num_workers=0)) == 0


def slow_run(folder: str, data: str) -> None:
    import time

    from triptych import train
    from triptych.modalities import Image

    read = Image.read
    Image.read = lambda self, cell: (time.sleep(0.02), read(self, cell))[1]
    options = {"max_steps": 12, "logging_steps": 2, "dataloader_num_workers": 1, "bf16": "auto"}
    train.pretrain(support.config("image", "mae", folder, data={"name": data}, **options))


def test_a_run_says_what_it_runs_on_and_what_it_waits_for(launch, pictures, tmp_path):
    ran = launch(slow_run, 1, folder=str(tmp_path / "run"), data=str(pictures))
    ran.results()
    said = ran.output()
    runs_on = f"CPU, {os.environ['TRIPTYCH_TEST_THREADS']} thread(s) a rank, float32; a step is 4"
    first = next(line for line in said.splitlines() if line.startswith(runs_on))
    assert "samples × 1 micro-batch(es) × 1 rank(s)" in first and "GB a rank" in first
    assert first.endswith("; the time to come is said after 3 steps")
    assert said.count(" to come, at ") == 1 and said.count("data_wait ") == 1
    assert said.index(first) < said.index(" to come, at ")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["bf16"] is False and config["tf32"] is False, "stored as resolved"
    # Another precision is another computation.
    again = support.config("image", "mae", tmp_path / "run", data={"name": str(pictures)}, bf16=True)
    with pytest.raises(UserError, match=r"other settings \(.*bf16"):
        train.pretrain(again)


def checkpointed(folder: str) -> list:
    """By stage, losses of three steps and the weights after them, with and without recomputed blocks."""
    from triptych.training import engine as engines
    from triptych.training.loop import Loop
    from triptych.training.monitor import Monitor

    made = []
    for stage in STAGES:
        for recompute in (False, True):
            options = {"deepspeed": {"zero_optimization": {"stage": stage}}, "max_steps": 4, "warmup_steps": 0}
            options["gradient_checkpointing"] = recompute
            config = support.config("text", "byol", folder, **options)
            device = engines.start(config.run)
            modality = config.build_modality()
            rows = support.rows_of("text", modality)
            loop = Loop(config, config.build_objective(modality), rows, device)
            micro = loop.order.micro_batches(0, 3, 1, loop.engine.rank, loop.engine.ranks)
            losses = [loop._step([batch], Monitor(4))[0].item() for batch in loop._loader(loop.table, micro, 0, 0)]
            calls = []
            mlp = loop.objective.backbone.encoder.blocks[0].mlp
            hook = mlp.register_forward_pre_hook(lambda *_, c=calls: c.append(0))
            batch = next(iter(loop._loader(loop.table, loop.order.micro_batches(3, 4, 1, 0, 1), 0, 0)))
            loop._step([batch], Monitor(4))
            hook.remove()
            made.append([losses, loop.engine.tensors(4)[0], len(calls)])
    return made


def test_recomputed_blocks_have_the_same_gradients_under_every_stage(launch, tmp_path):
    (made,) = launch(checkpointed, 1, folder=str(tmp_path)).results()
    for stage in STAGES:
        (plain, weights, once), (losses, ours, twice) = made[2 * stage : 2 * stage + 2]
        assert losses == plain and twice == 2 * once, stage
        assert all(torch.equal(ours[name], weights[name]) for name in weights), stage
