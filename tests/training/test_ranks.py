"""Two gloo ranks are one process with the joined batch, for every cell of the tables and every ZeRO stage."""

import copy
import dataclasses
import itertools
from functools import cache
from pathlib import Path

import pytest
import support
import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call

from triptych.modalities import MODALITIES
from triptych.objectives import OBJECTIVES, Progress
from triptych.objectives.contrastive import nt_xent_loss
from triptych.objectives.teacher import Teacher
from triptych.training.engine import learning_rate, optimizer, warmup_of

STAGES = (0, 1, 2, 3)
# Each objective on one modality, in turns; what remains of the tables is of the slow half.
QUICK = set(zip(itertools.cycle(MODALITIES), OBJECTIVES, strict=False))
CELLS = [
    pytest.param(m, o, marks=[] if (m, o) in QUICK else [pytest.mark.slow]) for o in OBJECTIVES for m in MODALITIES
]


@cache
def plain_config(modality: str, objective: str, folder: str):
    """Read once a process: reading takes as long as a few steps."""
    return support.config(modality, objective, Path(folder) / "run")


def make_loop(modality: str, objective: str, folder, micro_batch: int, stage: int, **options):
    """A `Loop` on tiny data, whose micro-batch is `micro_batch` samples of all ranks together."""
    from triptych.training import engine
    from triptych.training.loop import Loop

    config = copy.deepcopy(plain_config(modality, objective, str(folder)))
    device = engine.start(config.run)
    options["per_device_train_batch_size"] = micro_batch // dist.get_world_size()
    options["deepspeed"] = {"zero_optimization": {"stage": stage}}
    config.run = dataclasses.replace(config.run, **options)
    made = config.build_modality()
    rows = support.rows_of(modality, made)
    objective = config.build_objective(made)
    untrained = copy.deepcopy(objective)
    loop = Loop(config, objective, rows, device)
    loop.untrained = untrained
    return loop


def run_steps(loop, steps: int) -> tuple[list[float], list[dict[str, torch.Tensor]]]:
    """Losses of the joined batch, and each step's full gradients as the optimizer gets them."""
    from deepspeed.utils import safe_get_full_grad

    from triptych.training.monitor import Monitor

    gradients, engine, accumulation = [], loop.engine, loop.run.gradient_accumulation_steps
    original = engine.step

    def step(rate, trunk_rate=None):
        if engine.engine.is_gradient_accumulation_boundary():
            found = {}
            for name, p in engine.module.named_parameters():
                if p.requires_grad:
                    full = safe_get_full_grad(p) if engine.stage else p.grad
                    found[name] = torch.zeros(p.shape) if full is None else full.clone()
            gradients.append(found)
        return original(rate, trunk_rate)

    engine.step = step
    batches = loop.order.micro_batches(0, steps, accumulation, engine.rank, engine.ranks)
    feed, monitor, losses = iter(loop._loader(loop.table, batches, loop.run.seed, 0)), Monitor(steps), []
    for _ in range(steps):
        loss, _ = loop._step([next(feed) for _ in range(accumulation)], monitor)
        losses.append(engine.mean(loss))
    return losses, gradients


def train_cell(modality: str, objective: str, folder: str, stages) -> dict:
    """Some steps of SGD at each stage, with and without accumulation, and of AdamW, beside torch's own."""
    made = {}
    sgd = {"optim": "sgd", "learning_rate": 2e-3, "warmup_steps": 0.0, "max_grad_norm": 0.0, "weight_decay": 0.0}
    for stage in stages:
        for accumulation, steps in ((1, 5), (2, 3)):
            options = sgd | {"max_steps": steps, "gradient_accumulation_steps": accumulation}
            loop = make_loop(modality, objective, folder, 8, stage, **options)
            losses, gradients = run_steps(loop, steps)
            made[f"{stage} {accumulation}"] = {
                "losses": losses,
                "gradients": gradients[0],
                "weights": support.weights(loop.engine),
            }
        loop = make_loop(modality, objective, folder, 8, stage, max_steps=3, learning_rate=1e-3, weight_decay=0.5)
        losses, gradients = run_steps(loop, 3)
        before = {name: p.detach().clone() for name, p in loop.untrained.named_parameters()}
        ours, theirs = support.weights(loop.engine), replayed(loop, gradients)
        made[f"{stage} adamw"] = {
            "losses": losses,
            "moved": max((ours[name] - before[name]).abs().max().item() for name in theirs),
            "apart": max((ours[name] - theirs[name]).abs().max().item() for name in theirs),
        }
    return made


def replayed(loop, gradients: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What torch's AdamW makes of the first weights by those gradients, in one process and without an engine."""
    run, module = loop.run, loop.untrained
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    adamw = optimizer(run, module)
    for step, gradient in enumerate(gradients):
        for name, parameter in parameters.items():
            parameter.grad = gradient[name].clone()
        nn.utils.clip_grad_norm_(parameters.values(), run.max_grad_norm)
        for group in adamw.param_groups:
            rate = learning_rate(run.learning_rate, warmup_of(run, run.max_steps), step, run.max_steps)
            group["lr"] = group["scale"] * rate
        adamw.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


@pytest.fixture(scope="module")
def cell(launch, tmp_path_factory):
    """Results of one process and of several ranks, by cell."""

    @cache
    def get(modality: str, objective: str, ranks: int = 2, stages=STAGES):
        folder = str(tmp_path_factory.mktemp("runs"))
        given = {"modality": modality, "objective": objective, "folder": folder}
        alone, many = launch(train_cell, 1, stages=(0,), **given), launch(train_cell, ranks, stages=stages, **given)
        return alone.results()[0], many.results(600)

    return get


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("modality", "objective"), CELLS)
def test_two_ranks_are_one(cell, modality, objective, stage):
    """What is compared does not amplify rounding: losses, gradients, and weights that SGD moved in proportion to them.

    AdamW moves a weight by the *sign* of a gradient that is nothing but rounding, and in a few steps a loss is another.
    So it is compared with torch's own on the same gradients, which the lines before have found right. Bounds are ten
    times what any processor has shown (docs/tolerances.md).
    """
    alone, pair = cell(modality, objective)
    check_steps(alone, pair, stage)
    for adamw in (alone["0 adamw"], *(rank[f"{stage} adamw"] for rank in pair)):
        assert adamw["moved"] > 1e-3 and adamw["apart"] == pytest.approx(0, abs=2e-6)
        assert adamw["losses"][:2] == pytest.approx(alone["0 adamw"]["losses"][:2], rel=1e-4, abs=1e-4)


def check_steps(alone: dict, ranks: list[dict], stage: int) -> None:
    """Losses, gradients and weights after SGD, of one process and of several ranks."""
    for accumulation in (1, 2):
        one = alone[f"0 {accumulation}"]
        for other in (rank[f"{stage} {accumulation}"] for rank in ranks):
            assert other["losses"][0] == pytest.approx(one["losses"][0], rel=1e-5, abs=1e-5)
            assert other["losses"] == pytest.approx(one["losses"], rel=1e-4, abs=1e-4)
            assert distance(other["gradients"], one["gradients"]) == pytest.approx(0, abs=3e-5)
            assert other["weights"].keys() == one["weights"].keys()
            apart = {k: (other["weights"][k].float() - v.float()).abs().max().item() for k, v in one["weights"].items()}
            worst = max(apart, key=lambda name: apart[name] / bound_of(name))
            assert apart[worst] == pytest.approx(0, abs=bound_of(worst)), worst


def bound_of(name: str) -> float:
    """Of the distance of weights or buffers. A queue holds outputs of batch norm: small deviations amplify rounding."""
    return 2e-4 if name.endswith("queue.values") else 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modality", "objective"), [("image", "vicreg"), ("text", "moco"), ("audio", "dino"), ("image", "barlow_twins")]
)
def test_four_ranks_are_one(cell, modality, objective):
    """What gathers, where a rank has two samples: a factor that two ranks hide (W/2, W - 1) shows here."""
    alone, four = cell(modality, objective, 4, (0, 3))
    for stage in (0, 3):
        check_steps(alone, four, stage)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Relative to the norm of all of `b`."""
    assert a.keys() == b.keys()
    x, y = (torch.cat([t[k].double().flatten() for k in sorted(t)]) for t in (a, b))
    assert y.norm() > 0
    return ((x - y).norm() / y.norm()).item()


def autocast_gradients(folder: str, stages) -> dict[int, tuple[float, bool]]:
    """By stage: how far the engine's reduced gradients are from the float32 mean of the ranks' own, and their type."""
    made = {}
    for stage in stages:
        loop = make_loop("image", "mae", folder, 8, stage, bf16=True, max_steps=1)
        reference = loop.untrained
        batches = loop.order.micro_batches(0, 1, 1, loop.engine.rank, loop.engine.ranks)
        batch = next(iter(loop._loader(loop.table, batches, loop.run.seed, 0)))
        with torch.autocast("cpu", torch.bfloat16):
            reference(loop._prepare(batch["views"]))["loss"].backward()
        mean = {name: p.grad.clone() for name, p in reference.named_parameters() if p.grad is not None}
        for gradient in mean.values():
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        _, (reduced,) = run_steps(loop, 1)
        reduced = {name: reduced[name] for name in mean}
        made[stage] = (distance(reduced, mean), all(g.dtype == torch.float32 for g in reduced.values()))
    return made


def test_gradients_under_autocast_are_reduced_in_float32(launch, tmp_path):
    for result in launch(autocast_gradients, 2, folder=str(tmp_path), stages=STAGES).results():
        for stage, (far, float32) in result.items():
            assert float32, stage
            assert far == pytest.approx(0, abs=1e-5), stage  # rounded to bfloat16 they would be 1e-3 off


RESUMED = (("audio", "byol"), ("image", "moco"), ("image", "dino"), ("text", "swav"))
RESUMED += (("text", "codes"), ("image", "data2vec"), ("audio", "frozen_teacher"))


def go_on(folder: str, stage: int, file: str | None = None) -> dict[str, list]:
    """By objective: what a checkpoint after three steps holds, and all that there is after three more.

    From those checkpoints in `file`, only the second half is run.
    """
    from triptych.training.monitor import Monitor

    made, kept = {}, torch.load(file, weights_only=True) if file else {}
    for modality, objective in RESUMED:
        more = {"optim": "sgd", "learning_rate": 2e-3, "warmup_steps": 0.0, "max_grad_norm": 0.0, "max_steps": 6}
        loop = make_loop(modality, objective, folder, 8, stage, **more)
        saved = kept.get(objective)
        for first in (0, 3)[saved is not None :]:
            if first and objective in kept:
                loop.engine.load(*saved, first)
                loop.step = loop.applied = first
            elif first:
                saved = loop.engine.tensors(first)
            micro = loop.order.micro_batches(first, first + 3, 1, loop.engine.rank, loop.engine.ranks)
            feed = iter(loop._loader(loop.table, micro, loop.run.seed, 0))
            for batch in feed:
                loop._step([batch], Monitor(6))
        made[objective] = [list(saved), support.weights(loop.engine)]
    return made


@pytest.mark.slow
def test_what_ranks_saved_goes_on_on_one(launch, tmp_path):
    """Two ranks at ZeRO-3, then one at ZeRO-0, with teacher, queue, centre, prototypes, codebook: two all the time."""
    pair = launch(go_on, 2, folder=str(tmp_path), stage=3).results(600)[0]
    torch.save({objective: saved for objective, (saved, _) in pair.items()}, tmp_path / "kept.pt")
    alone = launch(go_on, 1, folder=str(tmp_path), stage=0, file=str(tmp_path / "kept.pt")).results(600)[0]
    for objective, (saved, ended) in pair.items():
        resumed = alone[objective][1]
        assert resumed.keys() == ended.keys() == saved[0].keys()
        for name, value in ended.items():
            torch.testing.assert_close(resumed[name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    moved = {"moco": "queue.values", "swav": "queue.values", "dino": "centres.0.value"}
    for objective, name in moved.items():
        (weights, _), ended = pair[objective]
        assert weights[name].abs().max() > 0 and not torch.equal(weights[name], ended[name])
    (weights, _), ended = pair["codes"]
    assert torch.equal(weights["codebook"], ended["codebook"]) and weights["projection"].abs().max() > 0
    assert not any("held" in name for name in pair["frozen_teacher"][1])  # the teacher is read anew
    assert pair["moco"][1]["queue.taken"] == 6 * 8 * 2 and pair["swav"][1]["queue.taken"] == 6 * 8


class Student(nn.Module):
    """Small and large parameters, and a buffer that the optimizer does not know."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 400), nn.Linear(400, 8)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1 if self.training else 0
        return self.second(torch.tanh(self.first(x))) + 0.01 * self.count


class Follower(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = Student()
        self.teacher = Teacher(self.student, half_life=60.0)

    def forward(self, x):
        with torch.no_grad():
            target = self.teacher[0](x)
        return {"loss": (self.student(x) - target.roll(1, 0)).square().mean(), "target": target}


def follow(folder: str, stages, accumulation: int) -> dict[int, float]:
    """By stage: the largest difference of the teacher's forward from a reference average's, over 100 steps."""
    from triptych.training import engine as engines

    made = {}
    for stage in stages:
        options = {"deepspeed": {"zero_optimization": {"stage": stage}}, "gradient_accumulation_steps": accumulation}
        run = support.config("image", "mae", folder, adam_beta1=0.5, weight_decay=0.0, **options).run
        device = engines.start(run)
        torch.manual_seed(0)
        module = Follower().train()
        module.teacher.eval()
        reference = copy.deepcopy(module.teacher[0]).double().eval()
        engine, worst = engines.Engine(module, run, device), 0.0
        for step in range(1, 101):
            for micro in range(accumulation):
                random = torch.Generator().manual_seed(1000 * step + 10 * micro + engine.rank)
                x = torch.randn(4, 8, generator=random)
                out = engine.forward(x)
                worst = max(worst, (out["target"].double() - reference(x.double())).abs().max().item())
                engine.backward(out["loss"])
                applied, _ = engine.step(3e-2)
            assert applied
            progress = Progress(step, 100, 8 * accumulation)
            module.teacher.follow(module.student, progress=progress)
            weight = 1 - module.teacher.momentum(progress)
            full = support.weights(engine)
            with torch.no_grad():
                for name, value in reference.named_parameters():
                    value.lerp_(full[f"student.{name}"].double(), weight)
            reference.count.copy_(full["student.count"])
        made[stage] = worst
    return made


@pytest.mark.parametrize("accumulation", [1, 2])
def test_teacher_is_the_average_of_its_student(launch, tmp_path, accumulation):
    for result in launch(follow, 2, folder=str(tmp_path), stages=STAGES, accumulation=accumulation).results():
        assert max(result.values()) == pytest.approx(0, abs=5e-6), result


def contrast(values: list, identity: list) -> tuple:
    """Loss and gradient of this rank's share."""
    from triptych.training import engine

    engine.start(support.config("image", "mae", ".").run)
    share = slice(dist.get_rank() * len(values[0]) // dist.get_world_size(), None)
    length = len(values[0]) // dist.get_world_size()
    pair = [torch.tensor(v)[share][:length].requires_grad_() for v in values]
    loss = nt_xent_loss(*pair, 0.2, torch.tensor(identity)[share][:length])
    loss.backward()
    return loss.item(), torch.stack([p.grad for p in pair])


def test_nt_xent_gathers_values_and_gradients(launch):
    values, identity = (
        torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0)),
        [0, 1, 2, 3, 0, 5, 6, 7, 8, 1, 0, 6],
    )
    whole, gradient = launch(contrast, 1, values=values.tolist(), identity=identity).results()[0]
    parts = launch(contrast, 2, values=values.tolist(), identity=identity).results()
    assert sum(loss for loss, _ in parts) / 2 == pytest.approx(whole, abs=1e-5)
    torch.testing.assert_close(torch.cat([g for _, g in parts], dim=1) / 2, gradient, atol=1e-7, rtol=1e-5)


def test_teacher_has_its_half_life():
    """After one half-life of samples the teacher is halfway between where it was and where the student is."""
    student = nn.Linear(3, 2)
    teacher = Teacher(student, half_life=8.0)
    start = {k: v.clone() for k, v in teacher[0].named_parameters()}
    with torch.no_grad():
        student.weight += 1.0
    teacher.follow(student, progress=Progress(1, 10**9, 8))  # one half-life
    x = torch.randn(4, 3)
    middle = {k: (start[k] + dict(student.named_parameters())[k]) / 2 for k in start}
    torch.testing.assert_close(teacher[0](x), functional_call(student, middle, x))
