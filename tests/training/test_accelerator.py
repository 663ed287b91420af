"""A step on a GPU, without one: shapes and devices are followed, values are not (torch's fake tensors).

What is on another device than the rest is an error there, and so is all that asks for a value: on a GPU the host would
wait for it at every step.
"""

import functools
import sys
import types

import pytest
import support
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from triptych.encoders.native import FAMILIES
from triptych.modalities import MODALITIES
from triptych.objectives import OBJECTIVES, Progress, information
from triptych.training.loader import Samples

GPU = "cuda"
KINDS = ("mae", "masked", "simclr")  # pieces are dropped, pieces are hidden, two views


@functools.cache
def fake() -> FakeTensorMode:
    """One for all tests: tables that the program makes once a device stay in it."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def moved(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)


def move(module: nn.Module) -> None:
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(moved(value), value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = moved(value)


def step(config) -> dict:
    """One step of a tiny configuration but for its backward, for which torch wants a real device; what it returns."""
    modality = config.build_modality()
    rows = support.rows_of(config.modality["name"], modality)
    objective = config.build_objective(modality).train()
    if config.objective["name"] == "frozen_teacher":
        teacher = objective.frozen()
        teacher.to = lambda device: teacher  # `move` has done it; fakes cannot be swapped in place
    batch = Samples(rows.table, rows.column, modality, objective.views, 0, 0).__getitems__([(0, i) for i in range(4)])
    with fake():
        move(objective)
        if config.objective["name"] == "frozen_teacher":
            move(teacher)
        views = [view.replace(**{k: moved(v) for k, v in view.tensors().items()}) for view in batch["views"]]
        with torch.no_grad():
            views = [modality.prepare(view) for view in views]
        progress = Progress(1, 10, 4, moved(torch.tensor(True)))
        objective.before_step(progress)
        out = objective(views)
        with torch.no_grad():
            objective.after_step([{name: out[name] for name in objective.extras}], progress)
    return out


@pytest.fixture(autouse=True)
def capability(request, monkeypatch):
    """Of the GPU. Packed rows take one path from 8 on, and another before."""
    made = types.SimpleNamespace(major=getattr(request, "param", 9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: made)


def check(config) -> None:
    out = step(config)
    assert {name: value.device.type for name, value in out.items()} == dict.fromkeys(out, GPU)
    assert out["loss"].shape == () and out["loss"].dtype == torch.float32


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_cell_stays_on_its_device_and_never_waits(objective, modality, tmp_path):
    check(support.config(modality, objective, tmp_path))


@pytest.mark.parametrize("capability", [7], indirect=True)
@pytest.mark.parametrize("objective", KINDS)
def test_packed_rows_on_older_ones(objective, tmp_path):
    check(support.config("text", objective, tmp_path))


@pytest.mark.parametrize("objective", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_stays_on_its_device_and_never_waits(family, objective, tmp_path):
    modality = FAMILIES[family].modality
    more = {"image": {"channels": 3}}.get(modality, {})
    check(support.config(modality, objective, tmp_path, family=family, modality={"name": modality} | more))


@pytest.mark.parametrize(
    "good, bad, error",
    [
        ("torch.arange(width * count, device=step.device)", "torch.arange(width * count)", RuntimeError),
        ("t = torch.linspace(0, 3, 17, device=z.device)", "t = torch.linspace(0, z.sum().item(), 17, device=z.device)",
         DataDependentOutputException),
    ],
    ids=["another device", "a value is asked for"],
)  # fmt: skip
def test_faults_are_seen(good, bad, error, monkeypatch, tmp_path):
    made = support.planted(information, good, bad)
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setitem(OBJECTIVES, "lejepa", made.LeJEPA)
    with pytest.raises(error):
        step(support.config("image", "lejepa", tmp_path))
