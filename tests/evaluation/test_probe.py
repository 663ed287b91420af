"""Features, probes and few-label fine-tuning: what they read, what they refuse, what they can tell apart."""

import copy
import dataclasses
import datetime
import json
import shutil
import weakref

import datasets
import numpy as np
import pytest
import support
import torch
from finished import finished
from PIL import Image
from safetensors.torch import load_file, save_file

from triptych import probe
from triptych.encoders.backbone import pool
from triptych.encoders.native import make
from triptych.evaluation.features import extract, spread_over
from triptych.evaluation.finetune import finetune, tuned
from triptych.evaluation.labels import Labelled, hold_out
from triptych.evaluation.load import from_run, published
from triptych.evaluation.online import Labels
from triptych.evaluation.probes import draw, linear, measured, outputs, over_draws, score
from triptych.evaluation.tasks import Classes, Numbers, Several
from triptych.export import export
from triptych.modalities import EVALUATION, MODALITIES
from triptych.training.checkpoint import digest
from triptych.training.errors import UserError
from triptych.training.settings import Data
from triptych.training.sources import load


def table(name: str, folder, count: int = 40, spoil: int | None = None):
    """Rows of a modality with two classes, as a folder with a train and a test split."""
    cells, kind = support.cells(name, count)
    if spoil is not None:
        cells[spoil] = {"bytes": b"nothing", "path": "spoilt"}
    feature = datasets.Value("string") if kind == "string" else getattr(datasets, kind)(decode=False)
    features = datasets.Features({name: feature, "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_list([{name: cell, "label": i % 2} for i, cell in enumerate(cells)]).cast(features)
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        rows.to_parquet(str(folder / f"{split}.parquet"))
    return folder


@pytest.mark.parametrize("name", MODALITIES)
def test_features_are_those_of_each_sample_alone(name, tmp_path):
    _, objective = finished(name, "mae", tmp_path / "run")
    backbone = objective.backbone
    modality = backbone.modality
    rows = load(Data(name=str(table(name, tmp_path / "data")), column=name), modality)
    features, row, bad = extract(backbone, rows, batch=7)
    assert not bad
    assert row.tolist() == list(range(40))
    for i in (0, 39):
        alone = rows.select([i])
        samples = modality.samples(alone.table, alone.column)
        found = {"native": [], "mean": []}
        for cell in samples[:][alone.column]:  # a long text is several, and so is a long sound
            made = modality.view(modality.read(cell), EVALUATION, 0)
            view = modality.prepare(modality.collate([made], torch.zeros(1, dtype=torch.long)))
            with torch.no_grad():
                encoded = backbone.encode(view)
                for pooling, kind in (("native", backbone.pooling), ("mean", modality.average)):
                    found[pooling].append(pool(encoded, view, kind)[0].numpy())
        for pooling, vectors in found.items():
            np.testing.assert_allclose(features[pooling][i], np.mean(vectors, axis=0), atol=2e-5)


def test_a_long_text_is_the_mean_of_its_windows(tmp_path):
    _, objective = finished("text", "masked", tmp_path / "run")
    modality = objective.backbone.modality
    words = "river stone light garden music winter table paper window forest"
    rows = datasets.Dataset.from_dict({"text": ["river stone", f"{words} {words} {words}"]})
    rows.to_parquet(str(tmp_path / "long.parquet"))
    loaded = load(Data(name=str(tmp_path / "long.parquet"), column="text"), modality)
    windows = len(modality.samples(loaded.table, "text"))
    features, row, _ = extract(objective.backbone, loaded)
    assert windows > 2 and row.tolist() == [0, 1] and len(features["mean"]) == 2
    fewer, row, _ = extract(objective.backbone, loaded, most=2)
    assert row.tolist() == [0, 1] and not np.allclose(fewer["mean"][1], features["mean"][1])


def test_a_long_sound_is_the_mean_of_windows_that_hear_all_of_it(tmp_path):
    _, objective = finished("audio", "mae", tmp_path / "run")
    modality = objective.backbone.modality
    window, random = modality.window, np.random.default_rng(0)
    waves = [
        random.standard_normal(n).astype(np.float32) * 0.1 for n in (window // 2, window, 2 * window, 3 * window + 7)
    ]
    folder = tmp_path / "sounds"
    folder.mkdir()
    pieces = []
    for i, wave in enumerate(waves):
        cuts = [*range(0, len(wave) - window, window), max(0, len(wave) - window)]
        pieces += [(i, wave[at : at + window]) for at in cuts]
        (folder / f"{i}.wav").write_bytes(support.encoded(wave, subtype="FLOAT"))
    assert [i for i, _ in pieces] == [0, 1, 2, 2, 3, 3, 3, 3]
    heard = set(np.concatenate([at + np.arange(window) for at in (0, window, 2 * window, 2 * window + 7)]).tolist())
    assert heard == set(range(3 * window + 7))
    (tmp_path / "pieces").mkdir()
    for n, (_, wave) in enumerate(pieces):
        (tmp_path / "pieces" / f"{n}.wav").write_bytes(support.encoded(wave, subtype="FLOAT"))
    whole = extract(objective.backbone, load(Data(name=str(folder)), modality), batch=3)
    parts = extract(objective.backbone, load(Data(name=str(tmp_path / "pieces")), modality))
    for pooling, x in whole.x.items():
        means = [parts.x[pooling][[k for k, (j, _) in enumerate(pieces) if j == i]].mean(0) for i in range(4)]
        np.testing.assert_allclose(x, means, atol=2e-5)
    fewer = extract(objective.backbone, load(Data(name=str(folder)), modality), most=6)  # one of each, its middle
    np.testing.assert_allclose(fewer.x["native"], parts.x["native"][[0, 1, 3, 6]], atol=2e-5)


def test_samples_are_spread_evenly_over_each_row():
    owner = np.repeat([0, 2, 3], [1, 7, 3])
    assert spread_over(owner, 1).tolist() == [0, 4, 9]
    assert spread_over(owner, 3).tolist() == [0, 2, 4, 6, 8, 9, 10]
    assert spread_over(owner, 9).tolist() == list(range(11))


@pytest.mark.fault("unreadable rows in a probe", "left out of all figures", "which rows")
def test_unreadable_rows_are_left_out_and_named(tmp_path):
    _, objective = finished("image", "mae", tmp_path / "run")
    rows = load(Data(name=str(table("image", tmp_path / "data", spoil=3))), objective.backbone.modality)
    for workers in (0, 2):
        features, row, bad = extract(objective.backbone, rows, batch=5, workers=workers)
        assert 3 not in row and len(row) == len(features["native"]) == 39
        assert bad.keys() == {3} and bad[3][0] == "spoilt" and "not a readable picture" in bad[3][1]


@pytest.mark.fault("an encoder whose features are not finite", "refused by the probe", "which encoder, and what to do")
def test_features_that_are_not_finite_are_refused(tmp_path, capsys):
    finished("image", "mae", tmp_path / "run", noise=0)
    file = tmp_path / "run" / "checkpoint-1" / "model.safetensors"
    weights = {k: v.fill_(torch.nan) if k == "backbone.encoder.norm.weight" else v for k, v in load_file(file).items()}
    save_file(weights, file)
    manifest = file.with_name("manifest.json")
    kept = json.loads(manifest.read_text())
    kept["model.safetensors"] = {"size": file.stat().st_size, "sha256": digest(file)}
    manifest.write_text(json.dumps(kept))
    data = save(tmp_path / "data", {"train": ["a", "b"] * 20})
    with pytest.raises(UserError, match="features of the pretrained encoder are not finite"):
        probe.probe(tmp_path / "run", data=data, label_column="kind")


def test_an_online_probe_of_which_no_row_can_be_read_says_why():
    modality = MODALITIES["image"](8, 4)
    rows = support.rows_of("image", modality)
    rows = dataclasses.replace(rows, table=rows.table.map(lambda row: {"image": {"bytes": b"none", "path": None}}))
    y = np.arange(len(rows)) % 2
    judge = Labels("mine", Labelled(rows, rows, Classes(["a", "b"]), y, y, None))
    with pytest.raises(UserError, match="mine: none of 40 rows to judge by can be used: not a readable picture"):
        judge.see(make(modality, width=8, depth=1, heads=1), torch.device("cpu"))


def test_a_sound_that_breaks_off_is_left_out_whole(tmp_path):
    _, objective = finished("audio", "mae", tmp_path / "run")
    (folder := tmp_path / "data").mkdir()
    whole = support.encoded(np.random.default_rng(0).standard_normal(48_000) / 10, format="FLAC")
    for name, content in (("a", whole), ("b", whole[: len(whole) // 2]), ("c", whole)):
        (folder / f"{name}.flac").write_bytes(content)
    rows = load(Data(name=str(folder)), objective.backbone.modality)
    features, row, bad = extract(objective.backbone, rows, batch=3)
    assert row.tolist() == [0, 2] and len(features["mean"]) == 2
    assert bad.keys() == {1} and bad[1][0].endswith("b.flac") and "its header promises" in bad[1][1]


def test_probes_tell_classes_apart_and_noise_not():
    random = np.random.RandomState(0)
    y = np.arange(400) % 4
    x = random.randn(400, 8).astype(np.float32)
    x[:, :4] += 4 * np.eye(4)[y]
    noise = random.randn(400, 8).astype(np.float32)
    for kind in ("linear", "knn"):
        for v, low, high in ((x, 0.9, 1.0), (noise, 0.0, 0.45)):
            task = Classes(list("abcd"))
            made = measured(task, outputs(task, kind, v[:200], y[:200], v[200:], None, 1), y[200:])
            assert low <= made["accuracy"].mean() <= high
            assert made["auroc"].mean() > 0.95 if v is x else 0.4 < made["auroc"].mean() < 0.6
    hits, none = (over_draws(linear, v[:200], y[:200], v[200:], y[200:], 2, 5) for v in (x, noise))
    assert hits.shape == none.shape == (5, 200)
    assert score(hits).mean > 60 and score(hits).deviation > 0
    assert score(hits, none).sure and not score(none, hits).sure and not score(hits, hits).sure


def test_a_difference_is_paired_and_its_error_is_that_of_draws_and_rows():
    hits = np.array([[1, 1, 1, 0], [1, 0, 1, 0]], dtype=bool)
    other = np.array([[1, 0, 1, 0], [1, 0, 0, 0]], dtype=bool)
    found = score(hits, other)  # differences: one row in each draw, another one each time
    rows = 100 * np.array([0, 0.5, 0.5, 0])
    assert found.mean == 25 and found.deviation == 0
    assert found.error == pytest.approx(np.sqrt(rows.var(ddof=1) / 4))
    one = score(hits[:1])
    assert one.mean == 75 and one.deviation is None and one.error == pytest.approx(100 * np.sqrt(0.25 / 4))
    more = score(hits)
    assert more.deviation == pytest.approx(25 / np.sqrt(2))
    assert more.error == pytest.approx(np.sqrt(more.deviation**2 / 2 + 100**2 * np.var([1, 0.5, 1, 0], ddof=1) / 4))


def test_without_a_difference_sure_is_rare():
    """Two encoders that are equally good, on draws and rows of their own luck: at most a few in a hundred are sure."""
    random = np.random.RandomState(0)
    sure = 0
    for _ in range(400):
        row, draws = random.randn(60), random.randn(2, 10, 1)
        both = (row + 0.5 * draws + random.randn(2, 10, 60)) > 0
        sure += score(both[0], both[1]).sure
    assert sure < 20


def test_a_draw_has_as_many_of_each_class():
    labels = np.array([0] * 30 + [1] * 5 + [2] * 10)
    index = draw(labels, 5, seed=1)
    assert np.bincount(labels[index]).tolist() == [5, 5, 5]
    assert (draw(labels, 5, 1) == index).all() and (draw(labels, 5, 2) != index).any()


def test_the_command_writes_a_table_beside_the_untrained_encoder(tmp_path, capsys):
    finished("image", "mae", tmp_path / "run")
    data = table("image", tmp_path / "data")
    probe.main([str(tmp_path / "run"), "--data", str(data), "--labels", "[2,5]", "--draws", "3"])
    rows = json.loads((tmp_path / "run" / "probe.json").read_text())
    cells = {(r["encoder"], r["pooling"], r["probe"], r["labels"]) for r in rows}
    assert len(cells) == len(rows) == 3 * 2 * 2 * 2
    said = capsys.readouterr().out
    assert "cells are above the untrained encoder by more than two standard errors" in said
    assert "always answering the largest (a): 50.0" in said
    mine = [r for r in rows if r["encoder"] == "pretrained"]
    assert all(r["none"] == 50.0 and r["above"].keys() == {"random", "plain", "largest class"} for r in mine)
    for r in mine:
        for name in ("random", "plain"):
            other = next(
                o for o in rows if o["encoder"] == name and all(o[k] == r[k] for k in ("labels", "probe", "pooling"))
            )
            assert r["above"][name]["mean"] == pytest.approx(r["accuracy"] - other["accuracy"])
    assert said.count(": gain") == sum(r["above"][name]["sure"] for r in mine for name in ("random", "plain"))
    assert said.count("Linear probe of ") == 2 and {(r["data"], r["step"]) for r in rows} == {(str(data), 1)}


def test_a_run_that_started_somewhere_is_shown_beside_that(tmp_path, capsys):
    finished("image", "mae", tmp_path / "first", {"positions": "learned", "channels": 3}, noise=1)
    start = export(tmp_path / "first")
    capsys.readouterr()
    options = {"init_from": str(start), "encoder": {"name": "tiny"}}
    config, objective = finished("image", "mae", tmp_path / "run", {"positions": "learned", "channels": 3}, **options)
    data = table("image", tmp_path / "data")
    rows = probe.probe(tmp_path / "run", data=str(data), labels=[3], draws=3)
    assert {r["encoder"] for r in rows} == {"pretrained", "random", "published", "plain"}
    assert rows[0]["above"].keys() == {"random", "published", "plain", "largest class"}
    said = capsys.readouterr().out
    assert "of 4 cells are above the published start" in said
    begun = published(config, tmp_path / "run" / "checkpoint-1")
    first = from_run(tmp_path / "first")[1].backbone
    assert torch.equal(begun.encoder.norm.bias, first.encoder.norm.bias)
    assert not torch.equal(begun.encoder.norm.bias, objective.backbone.encoder.norm.bias)
    shutil.rmtree(start)
    rows = probe.probe(tmp_path / "run", data=str(data), labels=[3], draws=3)
    assert {r["encoder"] for r in rows} == {"pretrained", "random", "plain"}
    assert "published start, which cannot be read" in capsys.readouterr().out


NAMED = {"image": datasets.Image(decode=False)}


def save(folder, columns: dict[str, list], feature=None):
    """Splits of pictures with the labels `columns` has for each, of one type."""
    cells, _ = support.cells("image", 40)
    made = datasets.DatasetDict()
    for split, values in columns.items():
        features = None if feature is None else datasets.Features(NAMED | {"kind": feature})
        made[split] = datasets.Dataset.from_dict({"image": cells[: len(values)], "kind": values}, features=features)
        made[split] = made[split].cast_column("image", NAMED["image"])
    made.save_to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    finished("image", "mae", folder)
    return folder


@pytest.fixture
def seen(monkeypatch):
    """What a probe is given: rows, classes to learn from, classes to judge."""
    seen = []

    def answers(task, kind, x, y, test_x, few, draws):
        seen.append((len(x), set(y.tolist())))
        return [task.constant(np.arange(len(test_x)) % len(task.names))]

    def judge(task, made, test_y, groups):
        seen[-1] = *seen[-1][:2], set(test_y.tolist())
        return measured(task, made, test_y, groups)

    monkeypatch.setattr("triptych.evaluation.probes.outputs", answers)
    monkeypatch.setattr("triptych.evaluation.probes.measured", judge)
    return seen


def test_labels_in_words_are_numbered_together_and_rows_without_are_counted(run, seen, tmp_path, capsys):
    columns = {
        "train": [None, *["ant", "bee", "cat"] * 13],
        "test": ["bee", "cat"] * 20,  # no ant: numbered alone, bees would be ants
    }
    probe.probe(run, data=save(tmp_path / "data", columns), label_column="kind")
    assert seen and all(each == (39, {0, 1, 2}, {1, 2}) for each in seen)
    said = capsys.readouterr().out
    assert "train: 1 of 40 rows have no label in column 'kind': left out" in said
    assert "no row to judge of class ant" in said
    columns["test"] = [None] * 40
    without = save(tmp_path / "without", columns, datasets.Value("string"))
    with pytest.raises(UserError, match="split test: no row has a label in column 'kind'"):
        probe.probe(run, data=without, label_column="kind", test_split="test")
    probe.probe(run, data=without, label_column="kind")
    assert "no row has a label in column 'kind': not judged on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "feature", "rows", "classes"),
    [
        ([True, False] * 20, None, 40, 2),
        ([-1, 1] * 20, None, 40, 2),  # in a column of plain numbers -1 is a class
        ([0, 1, -1, 2] * 10, datasets.ClassLabel(names=["a", "b", "c"]), 30, 3),  # and of a class label none
        ([1.0, 0.0, None, 1.0] * 10, None, 30, 2),
        ([1.0, 0.0, float("nan"), 1.0] * 10, None, 30, 2),
        ([1.0, 0.0, float("inf"), 1.0] * 10, None, 30, 2),
        (["a ", "", " ", "b", "a", " b"] * 6, None, 24, 2),
        (list(range(20)) * 2, None, 40, 20),
    ],
)
def test_labels_of_many_kinds(labels, feature, rows, classes, run, seen, tmp_path):
    data = save(tmp_path / "data", {"train": labels, "test": labels}, feature)
    probe.probe(run, data=data, label_column="kind")
    assert seen and all(each == (rows, set(range(classes)), set(range(classes))) for each in seen)


@pytest.mark.fault("labels that are no classes", "refused", "what they are, and the way out")
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([{"a": 1}] * 40, "column 'kind' holds fields of several values"),
        ([f"file {i}" for i in range(40)] + ["b"] * 0, "holds 80 different words in 80 rows: a name of each row"),
        ([7] * 40, "one label only .7."),
        ([datetime.date(2020, 1, 1 + i % 2) for i in range(40)], "holds date values"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message, run, tmp_path):
    other = [f"{v}b" for v in labels] if isinstance(labels[0], str) else labels
    data = save(tmp_path / "data", {"train": labels, "test": other})
    with pytest.raises(UserError, match=message):
        probe.probe(run, data=data, label_column="kind")


@pytest.mark.parametrize(
    ("there", "asked", "read"),
    [
        (("train", "test"), {}, "test"),
        (("train", "validation"), {}, "validation"),
        (("train", "validation", "test"), {"test_split": "val"}, "validation"),
        (("train", "dev"), {}, "dev"),
        (("train",), {}, None),
        (("fold1", "fold2"), {"train_split": "fold1", "test_split": "fold2"}, "fold2"),
    ],
)
def test_splits_go_by_any_of_their_names(there, asked, read, run, seen, tmp_path, capsys):
    sizes = {name: 40 - 4 * i for i, name in enumerate(there)}
    data = save(tmp_path / "data", {name: ["a", "b"] * (n // 2) for name, n in sizes.items()})
    probe.probe(run, data=data, label_column="kind", **asked)
    learn, judge = (32, 8) if read is None else (40, sizes[read])
    assert seen[0][0] == learn
    said = capsys.readouterr().out
    assert f"{learn} rows to learn from, {judge} to judge" in said
    assert ("held out to judge, by class" in said) == (read is None)


def test_of_a_small_class_one_row_is_held_out():
    learn, judge = hold_out(np.array([0] * 50 + [1] * 2 + [2]), 1000)
    assert len(judge) == 11 and len(learn) == 42
    assert 52 in learn and sum(i in judge for i in (50, 51)) == 1


def test_the_column_is_the_run_s_own_or_the_one_that_is_named(tmp_path, capsys):
    finished("text", "masked", tmp_path / "run", data={"name": "elsewhere", "column": "review"})
    columns = {"title": support.sentences(40), "review": support.sentences(40, 1), "mood": ["good", "bad"] * 20}
    for name, lost in (("same", ()), ("other", ("review",)), ("two", ("review",))):
        kept = {k: v for k, v in columns.items() if k not in lost}
        kept |= {"body": columns["review"]} if name == "two" else {}
        datasets.Dataset.from_dict(kept).to_csv(str(tmp_path / f"{name}.csv"))
    for name, asked, column in (("same", {}, "review"), ("same", {"column": "title"}, "title"), ("other", {}, "title")):
        probe.probe(
            tmp_path / "run", data=str(tmp_path / f"{name}.csv"), label_column="mood", draws=3, labels=[3], **asked
        )
        assert f"column {column!r}" in capsys.readouterr().out
    with pytest.raises(UserError, match="title, body"):
        probe.probe(tmp_path / "run", data=str(tmp_path / "two.csv"), label_column="mood")


@pytest.mark.parametrize(
    ("argv", "same"),
    [
        ("runs/9 --labels 2 10 --draws 5", "runs/9 --labels [2,10] --draws 5"),
        ("runs/9 --labels=2,10", "runs/9 --labels [2,10]"),
        ("--labels 3 9_run", "--labels [3] 9_run"),
        ("runs/9 --labels [2,10]", "runs/9 --labels [2,10]"),
        ("runs/9 --draws 10", "runs/9 --draws 10"),
        ("runs/9 --data.column a --data b --data.label_column=c", "runs/9 --column a --data b --label_column=c"),
    ],
)
def test_labels_may_be_written_as_people_do(argv, same):
    assert probe.listed(argv.split()) == same.split()


def test_a_wrong_option_is_one_line(capsys):
    with pytest.raises(SystemExit, match=r"probe.py: .*labels.*"):
        probe.main(["run", "--labels", "many"])
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 2}, "draws 2"),
        ({"label_column": "mood"}, "mood"),
        ({"most": 0}, "most 0 is below 1"),
        ({"labels": [0]}, "labels 0 is below 1"),
        ({"test_split": "holdout"}, "no split 'holdout'; it has test, train"),
        ({"test_split": "train"}, "the split that the probe learns from"),
        ({"column": "picture"}, "picture"),
        ({"device": "cuda"}, "device cuda: no GPU is visible"),
    ],
)
def test_refusals_of_the_command(change, message, tmp_path):
    finished("image", "mae", tmp_path / "run")
    data = table("image", tmp_path / "data")
    with pytest.raises(UserError, match=message):
        probe.probe(tmp_path / "run", data=str(data), **change)
    with pytest.raises(UserError, match="no whole checkpoint"):
        probe.probe(data, data=str(data))


def test_fine_tuning_learns_what_can_be_learned(tmp_path, monkeypatch):
    _, objective = finished("image", "mae", tmp_path / "run")
    modality = objective.backbone.modality
    folder = tmp_path / "data"
    for label, value in (("dark", 40), ("light", 210)):
        (folder / label).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(i).integers(value - 40, value + 40, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    rows = load(Data(name=str(folder)), modality)
    y, marks = rows.labels(), np.eye(2, dtype=int)[rows.labels()]
    made, most, read = [], [], modality.read

    def watched(cell):
        found = read(cell)
        made.append(weakref.ref(found))
        most.append(sum(one() is not None for one in made))
        return found

    monkeypatch.setattr(modality, "read", watched)
    monkeypatch.setattr("triptych.evaluation.finetune.HELD", 8)
    for task, labels in ((Classes(["a", "b"]), y), (Several(["a", "b"]), marks), (Numbers(["value"]), 40.0 + 170 * y)):
        backbone = copy.deepcopy(objective.backbone)
        output = tuned(backbone, task, rows, labels, rows, 600, batch=12, pooling="native")
        assert task.values(task.decides, output, labels).mean() > 0.8, task.name
    assert finetune(objective.backbone, rows, y, rows, y, 600, batch=12) > 90
    assert 0 < max(most) < len(rows), "pictures of a whole set may not fit into memory"


def test_a_probe_also_fine_tunes_beside_scratch(run, tmp_path, capsys):
    data = str(table("image", tmp_path / "data", count=12))
    probe.main([str(run), "--data", data, "--labels", "2", "--draws", "3", "--finetune", "12"])
    rows = json.loads((run / "probe.json").read_text())
    found = {r["encoder"]: r for r in rows if r["probe"] == "finetune"}
    assert found.keys() == {"pretrained", "random"} and found["pretrained"]["above"]["random"]["error"] >= 0
    assert "finetune" in capsys.readouterr().out
    assert probe.listed(["run", "--finetune", "--labels", "2"])[1] == f"--finetune={probe.SAMPLES}"
