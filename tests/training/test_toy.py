"""An objective and a modality that the packages do not know: they train, resume and export as the shipped ones do."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import support
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.encoders import Backbone, Embedding, pooled
from triptych.encoders.positions import Positions
from triptych.modalities import BadSample, Modality, View, ViewSpec
from triptych.modalities.hashing import generator
from triptych.objectives import OBJECTIVES, Objective, collectives
from triptych.objectives.heads import Head, MLPHead
from triptych.objectives.teacher import Teacher
from triptych.training import checkpoint


class Queued(Objective):
    """A momentum-contrast toy: the teacher's view of a sample, against a queue of earlier ones.

    Args:
        temperature: divides the similarities.
        length: earlier samples in the queue.
        half_life: of the teacher, in samples.
    """

    extras = ("keys",)

    def __init__(self, backbone: Backbone, temperature: float = 0.2, length: int = 32, half_life: float = 50.0):
        super().__init__(backbone, tuple(ViewSpec(scale=(0.5, 1.0), strength="strong", index=i) for i in range(2)))
        self.temperature = temperature
        self.projector = MLPHead(backbone.width, Head(16, 8, norm="layer"))
        self.teacher = Teacher(backbone, self.projector, half_life=half_life)
        self.register_buffer("queue", F.normalize(torch.randn(length, 8), dim=-1))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def represent(self, views):
        with torch.no_grad():
            keys = self.teacher[1](pooled(self.teacher[0], views))
        vectors = pooled(self.backbone, views)
        return {"queries": self.projector(vectors).float(), "keys": keys.float(), "pooled": vectors}

    def compare(self, z):
        queries, keys = F.normalize(z["queries"], dim=-1), F.normalize(z["keys"], dim=-1)
        loss = 0.0
        for a, b in ((0, 1), (1, 0)):
            near = (queries[a] * keys[b]).sum(-1, keepdim=True)
            logits = torch.cat([near, queries[a] @ self.queue.T], dim=1) / self.temperature
            loss = loss + F.cross_entropy(logits, torch.zeros(len(near), dtype=torch.long))
        near = near.mean().detach()
        return {"loss": loss, "near": near, "keys": collectives.gather(keys[0]), "features": z["pooled"][0].detach()}

    def after_step(self, extras, progress):
        self.teacher.follow(self.backbone, self.projector, progress=progress)
        for keys in (e["keys"] for e in extras):
            self.queue.copy_(torch.cat([keys, self.queue])[: len(self.queue)])
            self.filled += len(keys)

    def averaged(self):
        return self.teacher[0]


class SeriesEmbedding(Embedding):
    def __init__(self, modality, made):
        super().__init__(modality, made)
        self.project, self.positions = nn.Linear(modality.piece, made.width), Positions((modality.length,), made.width)
        self.lead_content, self.hidden = (nn.Parameter(0.02 * torch.randn(s)) for s in ((1, made.width), (made.width,)))

    def lead(self):
        return self.lead_content

    def content(self, data):
        return self.project(data)

    def place(self, position, grid):
        return self.positions(position)

    def places(self, width: int):
        return Positions((self.modality.length,), width)

    def head(self, width: int):
        return nn.Linear(width, self.modality.piece)


class Series(Modality):
    """Sequences of numbers of any length, two samples a row.

    Args:
        piece: numbers in a piece.
        length: pieces of the longest view.
    """

    features, embedding = ("float32", "float64"), SeriesEmbedding

    def __init__(self, piece: int = 3, length: int = 8):
        self.piece, self.length, self.scale = piece, length, 1.0

    def fit(self, rows, column):
        self.scale = max(abs(v) for cell in rows[:][column] for v in cell)

    def save(self, folder):
        (Path(folder) / "scale.json").write_text(json.dumps(self.scale))

    def load(self, folder):
        self.scale = json.loads((Path(folder) / "scale.json").read_text())

    def read(self, value):
        if len(value) < 2 * self.piece:
            raise BadSample(f"{len(value)} numbers, fewer than two pieces")
        return torch.tensor(value)[: self.length * self.piece]

    def view(self, sample, spec: ViewSpec, seed: int):
        count = len(sample) // self.piece
        if spec.strength != "none":
            random = generator(seed, spec.index)
            count = max(2, round(count * random.uniform(*spec.scale)))
        return {"data": sample[: count * self.piece].view(count, self.piece)}

    def collate(self, samples, seed: Int[Tensor, " b"]):
        rows = [range(i, min(i + 2, len(samples))) for i in range(0, len(samples), 2)]
        room = max(sum(len(samples[i]["data"]) for i in row) for row in rows)
        made = {
            "data": torch.zeros(len(rows), room, self.piece),
            "position": torch.zeros(len(rows), room, 1, dtype=torch.long),
            "segment": torch.zeros(len(rows), room, dtype=torch.long),
            "samples": torch.zeros(len(rows), 2, dtype=torch.long),
        }
        for r, row in enumerate(rows):
            start = 0
            for slot, i in enumerate(row):
                data = samples[i]["data"]
                here = slice(start, start + len(data))
                made["data"][r, here], made["segment"][r, here] = data, i + 1
                made["position"][r, here, 0] = torch.arange(len(data))
                made["samples"][r, slot] = i + 1
                start += len(data)
        return View(seed=seed, **made)

    def prepare(self, view):
        return view.replace(data=view.data / self.scale)

    @property
    def values(self) -> int:
        return self.piece

    def numbers(self, view):
        return view.data

    def error(self, guess: Float[Tensor, "h p"], data: Float[Tensor, "h p"]):
        return (guess.float() - data.float()).square().mean(-1)


def register() -> None:
    from triptych.modalities import MODALITIES

    MODALITIES["series"], OBJECTIVES["queued"] = Series, Queued


def command(folder, data, modality: str, objective: str, ranks: int, **more) -> list[str]:
    options = {
        "output_dir": folder,
        "data": data,
        "modality": modality,
        "objective": objective,
        "encoder.width": 32,
        "encoder.depth": 1,
        "encoder.heads": 2,
        "per_device_train_batch_size": 8 // ranks,
        "max_steps": 5,
        "logging_steps": 1,
        "save_steps": 2,
        "data.eval_fraction": 0.2,
        "report_to": "none",
        "device": "cpu",
    } | {key.replace("__", "."): value for key, value in more.items()}
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def run(argv: list[str], kill_at: int = 0) -> None:
    from triptych import train
    from triptych.training.engine import Engine

    register()
    original, calls = Engine.step, []

    def step(self, *rates):
        calls.append(rates)
        if len(calls) == kill_at:
            folder = Path(argv[argv.index("--output_dir") + 1])
            while not list(folder.glob("checkpoint-*")):  # it is written on a thread
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *rates)

    Engine.step = step
    train.main(argv)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Data of every modality, the toy's among them: one parquet file each."""
    import datasets
    import numpy as np

    from triptych.modalities import MODALITIES

    folder, random = tmp_path_factory.mktemp("sources"), np.random.default_rng(0)
    for name in MODALITIES:
        values, kind = support.cells(name)
        feature = datasets.Value("string") if kind == "string" else getattr(datasets, kind)(decode=False)
        table = datasets.Dataset.from_list([{name: v} for v in values]).cast(datasets.Features({name: feature}))
        table.to_parquet(folder / f"{name}.parquet")
    series = [random.standard_normal(random.integers(6, 24)).tolist() for _ in range(38)] + [[1.0], []]
    datasets.Dataset.from_dict({"values": series}).to_parquet(folder / "series.parquet")
    return folder


def every_cell(folder: str, sources: str, share: int) -> list[str]:
    """Five steps of each shipped objective on the toy modality, and of the toy objective on each modality."""
    from triptych import train
    from triptych.modalities import MODALITIES

    register()
    # Of a modality without a native class there is no published teacher.
    cells = [("series", o) for o in OBJECTIVES if o != "frozen_teacher"] + [
        (m, "queued") for m in MODALITIES if m != "series"
    ]
    for modality, objective in cells:
        more = {f"modality.{key}": value for key, value in support.TINY.get(modality, {}).items()}
        where = f"{folder}/{modality}-{objective}"
        train.main(command(where, f"{sources}/{modality}.parquet", modality, objective, share, **more))
    return [f"{m}-{o}" for m, o in cells]


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_toy_runs_with_all_that_is_shipped(launch, sources, tmp_path, ranks):
    given = {"folder": str(tmp_path), "sources": str(sources), "share": ranks}
    for name in launch(every_cell, ranks, **given).results(900)[0]:  # a dozen and a half of runs
        lines = support.metrics(tmp_path / name)
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
        assert all(torch.tensor(line["loss"]).isfinite() for line in lines), name
        assert all("near" in line and "keys" not in line for line in lines) or not name.endswith("queued")
        evaluates = {**OBJECTIVES, "queued": Queued}[name.partition("-")[2]].evaluates
        assert ("eval_loss" in lines[-1]) == evaluates, name
        assert checkpoint.newest(tmp_path / name).name == "checkpoint-5"
    bad = (tmp_path / "series-queued" / "bad_samples.jsonl").read_text().splitlines()
    assert {json.loads(line)["row"] for line in bad} <= {38, 39}


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_resumed(launch, sources, tmp_path, ranks):
    argv = [
        command(tmp_path / name, sources / "series.parquet", "series", "queued", ranks) for name in ("whole", "killed")
    ]
    launch(run, ranks, argv=argv[0]).results()
    assert -signal.SIGKILL in launch(run, ranks, argv=argv[1], kill_at=4).wait()
    launch(run, ranks, argv=argv[1]).results()
    ended = [tmp_path / name / "checkpoint-5" for name in ("whole", "killed")]
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (ended[0] / file).read_bytes() == (ended[1] / file).read_bytes()
    losses = [[line["loss"] for line in support.metrics(tmp_path / name)] for name in ("whole", "killed")]
    assert losses[0] == losses[1]
    queue = checkpoint.read(ended[0])[0]
    assert queue["filled"] == 40 and queue["queue"].norm(dim=-1).allclose(torch.ones(32))


def continued(argv: list[str]) -> tuple[dict, dict]:
    """Continue a run to its end; returns all tensors as they were right after the checkpoint was read."""
    from triptych import train
    from triptych.training.loop import Loop

    register()
    held, original = {}, Loop._resume

    def resumed(self, origin):
        original(self, origin)
        held["weights"], held["moments"] = self.engine.tensors(self.applied)  # a matter of all ranks

    Loop._resume = resumed
    train.main(argv)
    return held["weights"], held["moments"]


@pytest.mark.parametrize("optim", ["sgd", pytest.param("adamw_torch", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("first", "then"), [((3, 2), (0, 1)), ((0, 1), (3, 2)), ((1, 2), (2, 2)), ((2, 2), (0, 1))])
def test_other_stage_and_other_ranks(launch, sources, tmp_path, first, then, optim):
    """(ZeRO stage, ranks) of the killed run and of the one that continues it."""

    def argv(folder, stage, ranks):
        zero = support.ROOT / f"configs/deepspeed/zero{stage}.json"
        more = {"deepspeed": zero, "optim": optim, "learning_rate": 1e-2 if optim == "sgd" else 1e-4, "save_steps": 3}
        return command(tmp_path / folder, sources / "series.parquet", "series", "queued", ranks, **more)

    launch(run, 1, argv=argv("whole", 0, 1)).results()
    assert -signal.SIGKILL in launch(run, first[1], argv=argv("moved", *first), kill_at=5).wait()
    weights, moments, state = checkpoint.read(tmp_path / "moved" / "checkpoint-3")
    assert state["step"] == 3 and weights["filled"] == 24
    assert not torch.equal(weights["teacher.0.encoder.norm.weight"], weights["backbone.encoder.norm.weight"])
    held = launch(continued, then[1], argv=argv("moved", *then)).results()[0]
    for wanted, found in zip((weights, moments), held, strict=True):
        assert wanted.keys() == found.keys() and wanted
        assert all(torch.equal(wanted[k], found[k]) for k in wanted)
    ended = [checkpoint.read(tmp_path / name / "checkpoint-5")[0] for name in ("whole", "moved")]
    far = 1e-5 if optim == "sgd" else 1e-3  # AdamW turns the rounding noise of a gradient of zero into full steps
    for name, value in ended[0].items():
        torch.testing.assert_close(ended[1][name].float(), value.float(), atol=far, rtol=0, msg=name)
    losses = [[line["loss"] for line in support.metrics(tmp_path / name)] for name in ("whole", "moved")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def exported(run: str, to: str, weights: str) -> str:
    from triptych import export

    register()
    try:
        export.main([run, "--to", to, "--weights", weights])
    except SystemExit as refused:
        return refused.code
    return ""


def test_export(launch, sources, tmp_path):
    from transformers import AutoModel

    launch(run, 1, argv=command(tmp_path / "series", sources / "series.parquet", "series", "queued", 1)).results()
    (said,) = launch(exported, 1, run=str(tmp_path / "series"), to=str(tmp_path / "to"), weights="student").results()
    assert "no native class is known for modality 'series'" in said and "\n" not in said
    assert not (tmp_path / "to").exists()

    tiny = {f"modality.{key}": value for key, value in support.TINY["image"].items()}
    launch(run, 1, argv=command(tmp_path / "image", sources / "image.parquet", "image", "queued", 1, **tiny)).results()
    weights = checkpoint.read(tmp_path / "image" / "checkpoint-5")[0]
    for kind, prefix in (("student", "backbone"), ("teacher", "teacher.0")):
        to = str(tmp_path / kind)
        assert launch(exported, 1, run=str(tmp_path / "image"), to=to, weights=kind).results() == [""]
        model = AutoModel.from_pretrained(to)
        assert torch.equal(model.layernorm.weight, weights[f"{prefix}.encoder.norm.weight"])
