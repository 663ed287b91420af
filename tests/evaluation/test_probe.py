"""Features, probes and few-label fine-tuning: what they read, what they refuse, what they can tell apart."""

import json

import datasets
import numpy as np
import pytest
import support
import torch
from finished import finished
from PIL import Image

import probe
from encoders.backbone import pool
from evaluation import probes
from evaluation.features import extract
from evaluation.finetune import finetune
from evaluation.probes import draw, linear, neighbours, over_draws
from modalities import EVALUATION, MODALITIES
from training.errors import UserError
from training.settings import Data
from training.sources import load


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
    features, row = extract(backbone, rows, batch=7)
    assert row.tolist() == list(range(40))
    for i in (0, 39):
        alone = rows.select([i])
        samples = modality.samples(alone.table, alone.column)
        found = {"native": [], "mean": []}
        for cell in samples[:][alone.column]:  # a text may be several
            made = modality.view(modality.read(cell), EVALUATION, 0)
            view = modality.prepare(modality.collate([made], torch.zeros(1, dtype=torch.long)))
            with torch.no_grad():
                encoded = backbone.encode(view)
                for pooling, kind in (("native", backbone.pooling), ("mean", "pieces")):
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
    features, row = extract(objective.backbone, loaded)
    assert windows > 2 and row.tolist() == [0, 1] and len(features["mean"]) == 2


def test_unreadable_rows_are_left_out(tmp_path):
    _, objective = finished("image", "mae", tmp_path / "run")
    rows = load(Data(name=str(table("image", tmp_path / "data", spoil=3))), objective.backbone.modality)
    features, row = extract(objective.backbone, rows)
    assert 3 not in row and len(row) == len(features["native"]) == 39


def test_probes_tell_classes_apart_and_noise_not():
    random = np.random.RandomState(0)
    y = np.arange(400) % 4
    x = random.randn(400, 8).astype(np.float32)
    x[:, :4] += 4 * np.eye(4)[y]
    noise = random.randn(400, 8).astype(np.float32)
    for judge in (linear, neighbours):
        assert judge(x[:200], y[:200], x[200:], y[200:]) > 90
        assert judge(noise[:200], y[:200], noise[200:], y[200:]) < 45
    mean, deviation = over_draws(linear, x[:200], y[:200], x[200:], y[200:], 2, 5)
    assert mean > 60 and deviation > 0


def test_a_draw_has_as_many_of_each_class():
    labels = np.array([0] * 30 + [1] * 5 + [2] * 10)
    index = draw(labels, 5, seed=1)
    assert np.bincount(labels[index]).tolist() == [5, 5, 5]
    assert (draw(labels, 5, 1) == index).all() and (draw(labels, 5, 2) != index).any()


def test_the_command_writes_a_table_beside_the_untrained_encoder(tmp_path, capsys):
    _, objective = finished("image", "mae", tmp_path / "run")
    data = table("image", tmp_path / "data")
    probe.main([str(tmp_path / "run"), "--data", str(data), "--labels", "[2,5]", "--draws", "3"])
    rows = json.loads((tmp_path / "run" / "probe.json").read_text())
    cells = {(r["encoder"], r["pooling"], r["probe"], r["labels"]) for r in rows}
    assert len(cells) == len(rows) == 2 * 2 * 2 * 2
    assert "cells are above the untrained encoder" in capsys.readouterr().out


def test_labels_in_words_are_numbered_together_and_rows_without_are_left_out(tmp_path, monkeypatch):
    finished("image", "mae", tmp_path / "run")
    cells, _ = support.cells("image", 40)
    columns = {
        "train": [None, *["ant", "bee", "cat"] * 13],
        "test": ["bee", "cat"] * 20,  # no ant: numbered alone, bees would be ants
    }
    feature = datasets.Features({"image": datasets.Image(decode=False), "kind": datasets.Value("string")})
    splits = {k: datasets.Dataset.from_dict({"image": cells, "kind": v}, features=feature) for k, v in columns.items()}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "data")
    judged = []

    def judge(x, y, test_x, test_y):
        judged.append((len(x), set(y), set(test_y)))
        return 50.0

    monkeypatch.setattr(probes, "PROBES", {"linear": judge})
    probe.probe(tmp_path / "run", data=str(tmp_path / "data"), label_column="kind")
    assert judged and all(seen == (39, {0, 1, 2}, {1, 2}) for seen in judged)
    splits["test"] = splits["test"].map(lambda row: {"kind": None})
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "without")
    with pytest.raises(UserError, match="no row has a label in column 'kind'"):
        probe.probe(tmp_path / "run", data=str(tmp_path / "without"), label_column="kind")


@pytest.mark.parametrize(
    ("argv", "same"),
    [
        ("runs/9 --labels 2 10 --draws 5", "runs/9 --labels [2,10] --draws 5"),
        ("runs/9 --labels=2,10", "runs/9 --labels [2,10]"),
        ("--labels 3 9_run", "--labels [3] 9_run"),
        ("runs/9 --labels [2,10]", "runs/9 --labels [2,10]"),
        ("runs/9 --draws 10", "runs/9 --draws 10"),
    ],
)
def test_labels_may_be_written_as_people_do(argv, same):
    assert probe.listed(argv.split()) == same.split()


def test_a_wrong_option_is_one_line(capsys):
    with pytest.raises(SystemExit, match=r"probe.py: .*labels.*"):
        probe.main(["run", "--labels", "many"])
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("change", "message"), [({"draws": 2}, "draws 2"), ({"label_column": "mood"}, "mood")])
def test_refusals_of_the_command(change, message, tmp_path):
    finished("image", "mae", tmp_path / "run")
    data = table("image", tmp_path / "data")
    with pytest.raises(UserError, match=message):
        probe.probe(tmp_path / "run", data=str(data), **change)
    with pytest.raises(UserError, match="no whole checkpoint"):
        probe.probe(data, data=str(data))


def test_fine_tuning_learns_what_can_be_learned(tmp_path):
    _, objective = finished("image", "mae", tmp_path / "run")
    modality = objective.backbone.modality
    folder = tmp_path / "data"
    for label, value in (("dark", 40), ("light", 210)):
        (folder / label).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(i).integers(value - 40, value + 40, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    rows = load(Data(name=str(folder)), modality)
    accuracy = finetune(objective.backbone, rows, rows.labels(), rows, rows.labels(), 600, batch=12)
    assert accuracy > 90
