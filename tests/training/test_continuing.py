"""Continuing an encoder: what stands still, what moves how slowly, where a run may start from, and who judges it."""

import copy
import json
import re
import shutil
import sys

import datasets
import numpy as np
import pytest
import support
import torch
import yaml
from safetensors.torch import load_file
from scipy.stats import spearmanr

from triptych.evaluation import online
from triptych.evaluation.features import extract
from triptych.evaluation.labels import Labelled
from triptych.evaluation.load import from_run, published
from triptych.evaluation.online import Labels, OnlineProbe, Pairs, Unlabelled, judge_of, spearman, two_views
from triptych.evaluation.tasks import Classes
from triptych.modalities import View
from triptych.training import checkpoint
from triptych.training.builtin import builtin
from triptych.training.command_line import read
from triptych.training.continuing import Preserving, distance, merged, restrain
from triptych.training.engine import parameter_groups
from triptych.training.errors import UserError
from triptych.training.settings import Data
from triptych.training.sources import Rows
from triptych.training.starts import KEPT, find

TINY = {"modality.image_size": 8, "modality.patch_size": 4, "encoder.width": 32, "encoder.depth": 3, "encoder.heads": 2}
SHORT = {"per_device_train_batch_size": 8, "report_to": "none", "dataloader_num_workers": 0, "device": "cpu"}
SHORT |= {"data.eval_fraction": 0}
SIMCLR = {"objective": {"name": "simclr", "head": {"hidden": 16, "out": 8}}}


def objective_of(**options):
    config = read({"data": "digits", "output_dir": "run"} | TINY | SHORT | SIMCLR | options)
    made = config.build_objective(config.build_modality())
    return made, restrain(made, config.run), config


def test_the_last_blocks_are_trained_and_the_hidden_token():
    made, said, _ = objective_of(train_last=1, objective="masked", **{"objective.mask.ratio": 0.5})
    trained = {name for name, p in made.backbone.named_parameters() if p.requires_grad}
    assert trained == {"embedding.hidden"} | {
        name for name, _ in made.backbone.named_parameters() if name.startswith(("encoder.blocks.2.", "encoder.norm."))
    }
    assert "the last 1 of 3 blocks" in said
    with pytest.raises(UserError, match="train_last 4: the encoder has 3 blocks"):
        objective_of(train_last=4)


@pytest.mark.parametrize("family", ["vit", "dinov3_vit"])  # with all biases, and without the key's
def test_adapters_add_up_to_one_matrix(family):
    """Untrained they change nothing; trained, the merged encoder is the adapted one, by peft's own sum bit for bit."""
    plain, _, config = objective_of(family=family)
    made, said, _ = objective_of(family=family, lora_rank=2, train_last=2)
    trained = {name for name, p in made.named_parameters() if p.requires_grad}
    assert {name.split(".lora_")[0] for name in trained if "backbone.encoder" in name} == {
        f"backbone.encoder.blocks.{n}.{part}"
        for n in (1, 2)
        for part, of in plain.backbone.encoder.blocks[0].named_modules()
        if isinstance(of, torch.nn.Linear)
    }
    assert trained >= {"backbone.embedding.hidden", "projector.0.weight"}
    assert not any("projection" in name or "norm" in name for name in trained if "backbone" in name)
    assert "the last 2 of 3 blocks are adapted by matrices of rank 2" in said
    made.backbone.double(), plain.backbone.double()
    data, number = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), torch.arange(4)
    view = plain.backbone.modality.prepare(View(data=data, seed=number, identity=number))
    view = view.replace(data=view.data.double())
    assert torch.equal(made.backbone(view), plain.backbone(view))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted, before = made.backbone(view), plain.backbone(view)
    weights = merged(made.state_dict())
    assert weights.keys() == plain.state_dict().keys()
    plain.load_state_dict(weights)
    assert not torch.allclose(adapted, before, atol=1e-3)
    torch.testing.assert_close(plain.backbone(view), adapted, atol=1e-12, rtol=0)
    for name, layer in made.named_modules():
        if hasattr(layer, "base_layer"):
            layer.merge()
            assert torch.equal(layer.base_layer.weight, weights[f"{name}.weight"])


def test_adapters_are_refused_where_they_cannot_be(monkeypatch):
    with pytest.raises(UserError, match="lora_rank 2: this objective's teacher is an average"):
        objective_of(objective="byol", lora_rank=2)
    with pytest.raises(UserError, match="no block is left to adapt"):
        objective_of(lora_rank=2, train_last=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="peft is not installed; pip install peft"):
        objective_of(lora_rank=2)


def test_frozen_blocks_keep_no_graph():
    made, _, _ = objective_of(train_last=1)
    outs = []
    for block in made.backbone.encoder.blocks:
        block.register_forward_hook(lambda _, __, out: outs.append(out[0].requires_grad))
    image = made.backbone.modality
    data = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    number = torch.arange(4)
    views = [image.prepare(View(data=data, seed=number, identity=number)) for _ in range(2)]
    made(views)["loss"].backward()
    assert outs == [False, False, True]


def test_rates_by_layer_and_by_part():
    made, _, config = objective_of(layer_decay=0.5, trunk_scale=0.1, head_steps=5)
    groups = parameter_groups(made, config.run.weight_decay)
    scale = {id(p): (g["scale"], g["waits"]) for g in groups for p in g["params"]}
    parts = dict(made.named_parameters())
    expected = {
        "backbone.embedding.projection.weight": (0.1 * 0.5**4, True),
        "backbone.encoder.blocks.0.mlp.up.weight": (0.1 * 0.5**3, True),
        "backbone.encoder.blocks.2.mlp.up.weight": (0.1 * 0.5, True),
        "backbone.encoder.norm.weight": (0.1, True),
        "backbone.embedding.hidden": (1.0, False),
        "projector.0.weight": (1.0, False),
    }
    for name, (rate, waits) in expected.items():
        assert scale[id(parts[name])] == (pytest.approx(rate), waits), name


def test_what_preserves_the_start_is_added_to_any_loss():
    """Weight times the mean squared distance of unit vectors, of the whole first view; the start gets no gradient."""
    for objective in ("mae", "simclr"):
        made, _, _ = objective_of(objective=objective)
        start = copy.deepcopy(made.backbone)
        with torch.no_grad():
            for parameter in made.backbone.encoder.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        data, number = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), torch.arange(4)
        views = [made.backbone.modality.prepare(View(data=data, seed=number, identity=number))] * len(made.views)
        plain, whole = made(views)["loss"], Preserving(made, start, 3.0)
        x, s = (torch.nn.functional.normalize(encoder(views[0])) for encoder in (made.backbone, start))
        away = (x - s).square().sum(1).mean()
        assert away > 1e-3
        out = whole(views)
        loss = out["loss"]
        torch.testing.assert_close(loss, plain + 3 * away)
        torch.testing.assert_close(out["start_distance"], away)
        loss.backward()
        assert all(p.grad is None for p in start.parameters())
        assert {n for n, _ in whole.named_parameters()} == {f"objective.{n}" for n, _ in made.named_parameters()}
    with pytest.raises(UserError, match="preserve 1: there is no start to keep to; give --init_from"):
        read({"data": "digits", "preserve": 1.0})


def run(**options) -> None:
    from triptych import train

    train.pretrain(SHORT | SIMCLR | options)


def test_the_trunk_stands_still_until_the_head_has_learned(launch, tmp_path):
    options = {"data": "digits", "output_dir": str(tmp_path / "run"), "max_steps": 6, "save_steps": 2, "head_steps": 2}
    launch(run, 1, **TINY, **options, save_total_limit=9, warmup_steps=0).results()
    weights = [load_file(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors") for step in (2, 4)]
    config = read(yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()))
    start = dict(config.build_objective(config.build_modality()).named_parameters())
    for name, value in start.items():
        if not value.requires_grad or name == "backbone.embedding.hidden":
            continue
        still = name.startswith("backbone.")
        assert torch.equal(weights[0][name], value) == still, name
        if still:
            assert not torch.equal(weights[1][name], value), name


@pytest.fixture(scope="module")
def first(launch, tmp_path_factory):
    """A run of ours, to start from."""
    folder = tmp_path_factory.mktemp("first") / "run"
    launch(run, 1, data="digits", output_dir=str(folder), max_steps=2, **TINY).results()
    return folder


def test_the_encoder_of_a_short_run_moves_too(launch, first, tmp_path):
    """The recipe's ten steps of the heads alone would be all of it."""
    options = {"data": "digits", "init_from": str(first), "output_dir": str(tmp_path / "run"), "max_steps": 3} | SHORT
    ranks = launch(pretrained, 1, options=options)
    ranks.results()
    assert "head_steps 1 instead of the recipe's 10: the encoder is to move within 3 steps" in ranks.output()
    folders = checkpoint.newest(first), checkpoint.newest(tmp_path / "run")
    before, after = (load_file(f / "model.safetensors")["backbone.encoder.norm.weight"] for f in folders)
    assert not torch.equal(before, after)
    given = options | {"output_dir": str(tmp_path / "other"), "head_steps": 3}
    assert "head_steps 3 of 3 steps: the encoder would never move" in launch(refused, 1, options=given).results()[0]


def test_a_run_starts_from_another_run(launch, first, tmp_path):
    """Its sizes and statistics, another objective; heads are fresh; and it goes on when that run is gone."""
    source = shutil.copytree(first, tmp_path / "source")
    options = {"data": "digits", "init_from": str(source), "output_dir": str(tmp_path / "second"), "max_steps": 4}
    more = {"objective": "mae", "save_steps": 2, "learning_rate": 1e-9, "head_steps": 0, "train_last": 3}
    given = SHORT | options | more
    launch(pretrained, 1, options=given).results()
    old = load_file(first / "checkpoint-2" / "model.safetensors")
    new = load_file(tmp_path / "second" / "checkpoint-4" / "model.safetensors")
    for name, value in old.items():
        if name.startswith("backbone.encoder"):
            torch.testing.assert_close(new[name], value, atol=1e-6, rtol=0)
    config = yaml.safe_load((tmp_path / "second" / "config.yaml").read_text())
    assert config["encoder"]["width"] == 32 and config["origin"]["encoder.width"] == "checkpoint"
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "second" / "checkpoint-4")
    launch(pretrained, 1, options=given).results()
    again = load_file(tmp_path / "second" / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(new[name], again[name]) for name in new)


def unwatched(options: dict) -> None:
    from triptych.evaluation import online

    online.watch = lambda *_: None
    pretrained(options)


def refused(options: dict) -> str:
    try:
        pretrained(options)
    except UserError as error:
        return str(error)


def pretrained(options: dict) -> dict:
    from triptych import train

    return {k: v for k, v in train.pretrain(options).items() if isinstance(v, float)}


@pytest.mark.parametrize(("ranks", "stages"), [(1, (0,)), pytest.param(2, (0, 3), marks=pytest.mark.slow)])
def test_adapters_resume_and_go_on_merged(launch, first, tmp_path, ranks, stages):
    """Killed and resumed is bit for bit not killed; stages agree; what starts from such a run starts from the sum."""
    options = SHORT | {"data": "digits", "init_from": str(first), "max_steps": 4, "save_steps": 2, "lora_rank": 2}
    options |= {"train_last": 2, "head_steps": 0, "trunk_scale": 0.3, "learning_rate": 0.01}
    options |= {"warmup_steps": 0, "eval_steps": 4}
    options |= {"per_device_train_batch_size": 8 // ranks}

    def trained(folder, stage: int) -> dict[str, torch.Tensor]:
        more = {"deepspeed": {"zero_optimization": {"stage": stage}}, "output_dir": str(folder)}
        launch(pretrained, ranks, options=options | more).results()
        made = load_file(folder / "checkpoint-4" / "model.safetensors")
        shutil.rmtree(folder / "checkpoint-4")
        return made

    weights = {stage: trained(tmp_path / str(stage), stage) for stage in stages}
    for stage in stages:
        again = trained(tmp_path / str(stage), stage)
        assert all(torch.equal(again[name], value) for name, value in weights[stage].items())
        torch.testing.assert_close(again, weights[0], atol=5e-5, rtol=0)
    if len(stages) > 1:  # the other stage goes on where this one stopped
        torch.testing.assert_close(trained(tmp_path / "0", 3), weights[0], atol=5e-5, rtol=0)
    folder = tmp_path / str(stages[-1])
    weights = load_file(folder / "checkpoint-2" / "model.safetensors")
    up = [value for name, value in weights.items() if "lora_B" in name]
    assert up and all(value.abs().max() > 1e-3 for value in up)
    _, objective, _ = from_run(folder)
    begun = load_file(first / "checkpoint-2" / "model.safetensors")
    name = "encoder.blocks.2.mlp.up.weight"
    mine = dict(objective.backbone.named_parameters())[name]
    assert torch.equal(mine, merged(weights)[f"backbone.{name}"])
    assert (mine - begun[f"backbone.{name}"]).abs().max() > 1e-4
    made, _, config = objective_of()
    find(str(folder), "image").load(made.backbone)
    assert torch.equal(dict(made.backbone.named_parameters())[name], mine)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_a_run_that_preserves_its_start_goes_on_without_its_source(launch, first, tmp_path, ranks, stage):
    """Bit for bit, and as the loss of one process; the encoder stays nearer to its start than without."""
    source = shutil.copytree(first, tmp_path / "source")
    options = {"data": "digits", "max_steps": 4, "save_steps": 2, "train_last": 3, "head_steps": 0, "optim": "sgd"}
    options |= {"init_from": str(source), "learning_rate": 0.1, "warmup_steps": 0, "trunk_scale": 1.0}

    def trained(name: str, ranks: int, stage: int, preserve: float) -> dict[str, torch.Tensor]:
        folder = tmp_path / name
        more = {"output_dir": str(folder), "deepspeed": {"zero_optimization": {"stage": stage}}}
        more |= {"preserve": preserve, "per_device_train_batch_size": 8 // ranks}
        launch(pretrained, ranks, options=SHORT | options | more).results()
        return load_file(folder / "checkpoint-4" / "model.safetensors")

    whole, free = trained("run", ranks, stage, 30.0), trained("free", ranks, stage, 0.0)
    if ranks > 1:
        torch.testing.assert_close(whole, trained("alone", 1, 0, 30.0), atol=1e-5, rtol=0)
    assert not any("start" in name for name in whole) and whole.keys() == free.keys()
    assert not (tmp_path / "free" / KEPT).exists()
    start, begun = from_run(first)[1].backbone, load_file(tmp_path / "run" / KEPT)
    assert all(torch.equal(begun[name], value) for name, value in start.state_dict().items())
    data, number = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8), torch.arange(16)
    view = start.modality.prepare(View(data=data, seed=number, identity=number))
    away = {name: distance(from_run(tmp_path / name)[1].backbone(view), start(view)) for name in ("run", "free")}
    assert away["run"] < 0.7 * away["free"], away
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    again = trained("run", ranks, stage, 30.0)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    config, _, found = from_run(tmp_path / "run")
    assert all(torch.equal(begun[k], v) for k, v in published(config, found).state_dict().items())
    (tmp_path / "run" / KEPT).write_bytes(b"rot")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    failed = launch(refused, 1, options=SHORT | options | {"output_dir": str(tmp_path / "run"), "preserve": 30.0})
    assert "is damaged, and --preserve needs it: put it back from a copy, or start" in failed.results()[0]


def test_init_from_brings_a_recipe_that_the_user_s_word_goes_before(first):
    config = read({"data": "digits", "init_from": str(first), "output_dir": "run"})
    assert config.objective["name"] == "simclr" and config.run.train_last == 3 and config.run.head_steps == 10
    assert config.origin["train_last"] == config.origin["objective.temperature"] == "recipe"
    mine = read({"data": "digits", "init_from": str(first), "train_last": 1, "objective": "mae", "output_dir": "run"})
    assert mine.run.train_last == 1 and mine.objective["name"] == "mae" and mine.origin["train_last"] == "file"
    assert "head" not in mine.objective


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_the_online_probe_changes_nothing_and_says_what_it_saw(launch, first, tmp_path, ranks, stage):
    """Weights bit for bit as without it, before and after a resume; the start is judged before the first step."""
    few = str(tmp_path / "few.parquet")
    builtin("digits")["train"].select(range(400)).to_parquet(few)
    labels = {"probe_data": few, "keep": "best"} | ({"probe_keep": few} if ranks > 1 else {})
    shared = SHORT | {"data": "digits", "init_from": str(first), "max_steps": 6, "eval_steps": 2, "save_steps": 3}
    shared |= {"logging_steps": 1, "deepspeed": {"zero_optimization": {"stage": stage}}}
    shared |= {"per_device_train_batch_size": 8 // ranks, "head_steps": 1, "learning_rate": 0.01, "train_last": 3}
    weights, said = {}, {}
    for name, more in {"without": {}, "labels": labels, "own": {}}.items():
        if name == "own" and ranks == 1:
            return  # the same code; its figures have a test of their own
        given = shared | more | {"output_dir": str(tmp_path / name)}
        launch(unwatched if name == "without" else pretrained, ranks, options=given).results()
        if name != "without":
            shutil.rmtree(tmp_path / name / "checkpoint-6")
            said[name] = launch(pretrained, ranks, options=given)
            said[name].results()
        weights[name] = load_file(tmp_path / name / "checkpoint-6" / "model.safetensors")
        assert all(torch.equal(weights[name][k], v) for k, v in weights["without"].items())
        lines = [line for line in support.metrics(tmp_path / name) if any("_gain" in k or "own_" in k for k in line)]
        assert [line["step"] for line in lines] == ([] if name == "without" else [0, 2, 4, 6])
        if name == "labels":
            assert lines[0]["probe_linear_gain"] == lines[0]["probe_knn_gain"] == 0
            assert any(line["probe_linear_gain"] for line in lines)
            chosen = {line["step"]: line["probe_selection"] for line in lines[1:]}
            best, output = checkpoint.best(tmp_path / name), said[name].output()
            assert ranks > 1 or chosen[checkpoint.number(best)] == max(chosen.values())
            number = r"[+-]\d+\.\d ± \d+\.\d \(10 labels a class"
            assert re.search(f"(?m)^on {few}: .* the start.* {number}", output)
            assert ranks == 1 or re.search(f"(?m)^on {few}, to be kept: .*{number}", output)
    assert lines[0]["own_start_distance"] == pytest.approx(0, abs=1e-6)
    assert lines[-1]["own_start_distance"] > 1e-3
    assert "without labels nothing says whether the encoder is better" in said["own"].output()


class Told(Labels):
    """Labels of which the hits are given: of the start, and of each evaluation, as shares of the test rows."""

    def __init__(self, *shares: float, rows: int = 400):
        self.name, self.measure, self.shares, self.rows = "told", "told", list(shares), rows

    def see(self, backbone, device):
        share = self.shares.pop(0)
        order = np.random.RandomState(0).permutation(self.rows // 2).repeat(2)  # rows that choose and others, alike
        hits = np.tile(order < share * self.rows / 2, (5, 1))
        return {"linear": hits, "knn": hits[:1]}


def judged(*shares: float, keep: tuple[float, ...] | None = None, rows: int = 400) -> OnlineProbe:
    made = OnlineProbe("cpu", Told(*shares, rows=rows), keep and Told(*keep))
    for step in range(len(shares)):
        made(torch.nn.Identity(), step)
        if step:
            made.improved()
    return made


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((0.5, 0.6), "better than the start by +10.0 ± 2.1"),
        ((0.5, 0.5), "no difference from the start that it can show: +0.0 ± 0.0"),
        ((0.5, 0.51), "no difference from the start that it can show: +1.0 ± 0.7"),
        ((0.5, 0.4), "WORSE than the start: -10.0 ± 2.1"),
        ((0.5, 0.0), "WORSE than the start: -50.0 ± 3.5"),
        ((1.0, 1.0), "no difference from the start"),
    ],
)
def test_the_verdict(shares, words):
    (said,) = judged(*shares).verdict()
    assert said.startswith(f"on told: {words}"), said
    assert ("use the start" in said) == ("better" not in said)


def test_the_best_is_chosen_by_rows_that_are_not_printed_and_loses_nothing_that_is_to_be_kept():
    made = judged(0.5, 0.7, 0.6)
    assert made.best_step == 1
    last, best = made.verdict(best=True)
    assert "better than the start by +10.0" in last and "step 1: +20.0 ± 2.8" in best
    made = judged(0.5, 0.7, 0.6, keep=(0.5, 0.3, 0.5))  # the first lost what was to be kept
    assert made.best_step == 2 and "no loss that it can show: +0.0 ± 0.0" in made.verdict(best=True)[-1]
    made = judged(0.5, 0.7, 0.6, keep=(0.5, 0.3, 0.2))
    assert made.best_step is None and "no checkpoint was kept" in made.verdict(best=True)[1]
    assert "told, to be kept: LOST: -" in made.verdict()[-1]
    again = OnlineProbe("cpu", Told(0.5), Told(0.5))
    assert again.load(json.loads(json.dumps(made.state())), made.tensors())
    assert all(np.array_equal(again.start["probe"][kind], hits) for kind, hits in made.start["probe"].items())
    assert not OnlineProbe("cpu", Told(0.5)).load(None, {})
    again.start["probe"]["linear"] = again.start["probe"]["linear"][:, :-1]
    with pytest.raises(UserError, match="told is not what the start was judged on"):
        again(torch.nn.Identity(), 1)


def words_of(**more):
    """An objective on tiny texts, and a table of pairs of them."""
    modality = support.config("text", "simclr", "run").build_modality()
    rows = support.rows_of("text", modality, 60)
    objective = support.config("text", "simclr", "run").build_objective(modality)
    texts = rows.table["text"][:]
    pairs = {"sentence1": texts[:30], "sentence2": texts[30:], "score": [float(i % 7) for i in range(30)]} | more
    return objective, datasets.Dataset.from_dict(pairs)


def test_pairs_with_scores_are_judged_by_spearman_s_correlation(tmp_path, capsys):
    objective, table = words_of()
    spoilt = {3: {"score": None}, 5: {"sentence2": " "}}
    table = datasets.Dataset.from_list([row | spoilt.get(i, {}) for i, row in enumerate(table)])
    table.to_parquet(tmp_path / "test.parquet")
    made = judge_of("probe_data", str(tmp_path), Data(), objective.backbone.modality)
    assert "1 of 30 pairs have no score: left out" in capsys.readouterr().out
    seen = made.see(objective.backbone.eval(), torch.device("cpu"))["spearman"]
    assert seen.shape == (2, 28)
    good = table.select([i for i in range(30) if i not in spoilt])
    x, y = (
        torch.from_numpy(extract(objective.backbone, Rows(good, side, None, "", made.sides[0].modality)).x["native"])
        for side in ("sentence1", "sentence2")
    )
    cosine, said = torch.nn.functional.cosine_similarity(x, y).tolist(), good["score"][:]
    assert sorted(said) == sorted(seen[1])
    np.testing.assert_allclose(sorted(cosine), sorted(seen[0]), atol=1e-6)
    assert made.value(seen, slice(None)).mean == pytest.approx(100 * spearmanr(cosine, said).statistic, abs=1e-3)
    assert made.value(seen, slice(None), seen) == (0.0, None, 0.0)


def test_the_error_of_a_correlation_is_that_of_other_pairs():
    """Its bootstrap is near the deviation over many sets of pairs, for one encoder and for the gain of two."""
    random, values, gains, errors = np.random.RandomState(0), [], [], []
    made = Pairs("", None, None)
    for _ in range(60):
        said = random.randn(150)
        start, now = (np.stack([said + noise * random.randn(150), said]) for noise in (1.0, 0.8))
        values.append(made.value(now, slice(None)))
        gains.append(made.value(now, slice(None), start))
        errors.append((values[-1].error, gains[-1].error))
    for scores, found in zip((values, gains), np.transpose(errors), strict=True):
        assert found.mean() == pytest.approx(np.std([s.mean for s in scores]), rel=0.25)
    assert spearman(np.ones(5), np.arange(5)) == 0


def test_what_cannot_judge_is_refused(tmp_path):
    objective, table = words_of(score=[1.0] * 30)
    table.to_parquet(tmp_path / "alike.parquet")
    with pytest.raises(UserError, match="probe_keep .*: all scores are alike"):
        judge_of("probe_keep", str(tmp_path / "alike.parquet"), Data(), objective.backbone.modality)
    table.select(range(9)).remove_columns("score").add_column("score", list(range(9))).to_parquet(
        tmp_path / "few.parquet"
    )
    with pytest.raises(UserError, match="9 rows to judge on say nothing; give at least 20"):
        judge_of("probe_data", str(tmp_path / "few.parquet"), Data(), objective.backbone.modality)
    texts, rare = support.cells("text", 60)[0] * 4, [["a", "b"][: 1 + (i % 20 == 0)] for i in range(240)]
    for name, column, words in (("rare", rare, "no label that 5 rows"), ("few", list("ab") * 120, "3 groups to judge")):
        data = {"text": texts, "label": column, "who": [f"p{i // 16}" for i in range(240)]}
        datasets.Dataset.from_dict(data).to_parquet(tmp_path / f"{name}.parquet")
        asked = Data(group="who" if name == "few" else None)
        with pytest.raises(UserError, match=f"probe_data .*: .*{words}"):
            judge_of("probe_data", str(tmp_path / f"{name}.parquet"), asked, objective.backbone.modality)


def test_of_long_texts_fewer_judge_by_fewer_windows(tmp_path, capsys, monkeypatch):
    """An evaluation of documents of many windows would take longer than the training between two."""
    objective, _ = words_of()
    long = [" ".join(support.cells("text", 60)[0])] * 60
    table = datasets.Dataset.from_dict({"text": long, "label": [i % 2 for i in range(60)]})
    for split in ("train", "test"):
        table.to_parquet(tmp_path / f"{split}.parquet")
    modality = objective.backbone.modality
    windows = len(modality.samples(table.select([0]), "text"))
    assert windows > 3
    monkeypatch.setattr(online, "MOST", 80)
    made = judge_of("probe_data", str(tmp_path), Data(), modality)
    assert [len(part) for part in made.rows if part is not None and not isinstance(part, Classes)] == [40] * 4
    said = capsys.readouterr().out
    assert "to learn: 40 of 60 long rows, by at most 2 windows of each" in said and "to judge: 40 of 60" in said
    count = 0

    def counted(backbone, view, *_):
        nonlocal count
        count += len(view)

    handle = objective.backbone.register_forward_pre_hook(lambda module, given: counted(module, *given))
    made.see(objective.backbone, torch.device("cpu"))
    handle.remove()
    assert count == 2 * 80  # windows, of both kinds of rows
    monkeypatch.setattr(online, "MOST", 30)
    assert online.few(made.rows.learn.select(range(5)), "") == 5  # all, by six windows each


def test_an_encoder_that_broke_is_worse_than_its_start():
    objective, _ = words_of()
    modality = objective.backbone.modality
    table = datasets.Dataset.from_dict({"text": support.cells("text", 60)[0], "label": [i % 2 for i in range(60)]})
    rows = Rows(table, "text", "label", "texts", modality)
    y = np.arange(60) % 2
    own = Unlabelled(list(two_views(objective, rows)), modality)
    parts = (
        Labels("texts", Labelled(rows, rows, Classes(["0", "1"]), y, y, None)),
        Pairs("pairs", (rows, rows), y.astype(float)),
    )
    made = OnlineProbe(torch.device("cpu"), *parts, own)
    made(objective.backbone, 0)
    with torch.no_grad():
        objective.backbone.encoder.norm.weight.fill_(torch.nan)
    made(objective.backbone, 1)
    labels, _, features = made.verdict()
    assert "WORSE than the start" in labels and "not finite: the encoder is broken" in features


def test_keep_best_wants_labels():
    with pytest.raises(UserError, match="keep best: without labels"):
        read({"data": "digits", "keep": "best"})
