"""What the optimizer is told: what is decayed, how fast each parameter learns and when, where gradients are clipped."""

import dataclasses
import math
from typing import ClassVar

import pytest
import support
import torch
from torch import nn

from modalities import MODALITIES
from objectives import OBJECTIVES
from training.engine import learning_rate, optimizer, parameter_groups

STAGES = (0, 1, 2, 3)


def names_by_decay(module: nn.Module) -> dict[float, set[str]]:
    names = {id(p): name for name, p in module.named_parameters()}
    return {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in parameter_groups(module, 0.05)}


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
    # Of the matrices, those that stand for places and leads are free, and the decoder's places where they are learned.
    free = {name for name in by_decay[0.0] if parts[name].ndim == 2}
    grid = {"positions.table", "modality.lead_content", "modality.lead_place"}
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
    rates = [learning_rate(run, 3.0, step, steps) for step in range(steps + 1)]
    assert rates[:first] == pytest.approx([3.0 * (i + 1) / first for i in range(first)])
    assert rates[first] == 3.0 == max(rates)
    for step in range(first, steps + 1):
        share = (step - first) / (steps - first)
        assert rates[step] == pytest.approx(1.5 * (1 + math.cos(math.pi * share)), abs=1e-12)
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
    from training import engine as engines

    made = {}
    for stage in STAGES:
        options = {"optim": "sgd", "adam_beta1": 0.0, "weight_decay": 0.0, "max_grad_norm": 2.0}
        run = support.config("image", "mae", folder, deepspeed={"zero_optimization": {"stage": stage}}, **options).run
        device = engines.start(run)
        module = Slope()
        module.second.rate_scale = 0.5
        engine = engines.Engine(module, run, device)
        for size in (1.0, 0.1):
            before = engine.tensors()[0]
            engine.backward(engine.forward(torch.full((2,), size))["loss"])
            applied, norm = engine.step(0.1)
            after = engine.tensors()[0]
            moved = [(before[f"{n}.weight"] - after[f"{n}.weight"]).item() for n in ("first", "second")]
            made[f"{stage} {size}"] = [applied, float(norm), *moved]
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
    from training import engine
    from training.loop import Loop
    from training.monitor import Monitor

    made = []
    for base in (None, 0.64):
        options = {"learning_rate": 0.01, "base_learning_rate": base, "max_steps": 8, "warmup_steps": 4}
        config = support.config("image", "mae", folder, gradient_accumulation_steps=2, weight_decay=0.07, **options)
        device = engine.start(config.run)
        modality = config.build_modality()
        loop = Loop(config, config.build_objective(modality), support.rows_of("image", modality), device)
        batches = loop.order.micro_batches(0, 3, 2, 0, 1)
        feed, monitor = iter(loop._loader(loop.table, batches, 0, 0)), Monitor(8)
        rates = [loop._step([next(feed), next(feed)], monitor)[2] for _ in range(3)]
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
