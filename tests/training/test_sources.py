"""Rows of every kind of source: files, splits, columns, labels, and what is left out."""

import json
from collections import Counter

import datasets
import numpy as np
import pytest
import support

from modalities import Image
from training.errors import UserError
from training.settings import Data
from training.sources import load, splits_of


@pytest.fixture(scope="module")
def table():
    cells, _ = support.cells("image", 12)
    features = datasets.Features(
        {"picture": datasets.Image(decode=False), "kind": datasets.ClassLabel(names=["a", "b"])}
    )
    return datasets.Dataset.from_list([{"picture": c, "kind": i % 2} for i, c in enumerate(cells)], features=features)


def pixels(rows) -> list[bytes]:
    return [np.asarray(rows.modality.read(row[rows.column])).tobytes() for row in rows.table]


def test_tables_of_pictures(table, tmp_path, capsys):
    modality = Image(8, 4)
    wanted = [np.asarray(modality.read(c)).tobytes() for c in table["picture"]]
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "test": table.select(range(4))}).save_to_disk(tmp_path / "two")
    (tmp_path / "parts").mkdir()
    table.select(range(6)).to_parquet(tmp_path / "parts" / "train-0.parquet")
    table.select(range(6, 12)).to_parquet(tmp_path / "parts" / "train-1.parquet")
    for source in ("a.parquet", "one", "two", "parts"):
        rows = load(Data(name=str(tmp_path / source)), modality)
        assert (rows.column, rows.label, len(rows)) == ("picture", "kind", 12), source
        assert pixels(rows) == wanted, source
        assert rows.labels().tolist() == [0, 1] * 6
        assert "column 'picture' (the only one of type Image)" in capsys.readouterr().out
    assert splits_of(Data(name=str(tmp_path / "two")), modality) == ["train", "test"]
    assert len(load(Data(name=str(tmp_path / "two"), split="test"), modality)) == 4


def test_lists_of_pictures_are_unrolled(table, tmp_path):
    cells = table["picture"][:]
    rows = [{"frames": cells[i : i + 3]} for i in range(0, 12, 3)]
    features = datasets.Features({"frames": datasets.List(datasets.Image(decode=False))})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "frames.parquet")
    assert len(load(Data(name=str(tmp_path / "frames.parquet")), Image(8, 4))) == 12


def test_folders_of_pictures(tmp_path):
    modality = Image(8, 4)
    support.write_pictures(tmp_path / "flat", 3)
    rows = load(Data(name=str(tmp_path / "flat")), modality)
    assert len(rows) == 3 and rows.label is None
    for name in ("cat", "dog"):
        support.write_pictures(tmp_path / "classes" / name, 2)
    (tmp_path / "classes" / ".cache").mkdir()
    (tmp_path / "classes" / ".cache" / "x.png").write_bytes(b"")
    rows = load(Data(name=str(tmp_path / "classes")), modality)
    assert rows.table.features[rows.label].names == ["cat", "dog"] and rows.labels().tolist() == [0, 0, 1, 1]
    for split, count in (("train", 3), ("validation", 2), ("test", 1)):
        support.write_pictures(tmp_path / "splits" / split / "cat", count)
        support.write_pictures(tmp_path / "splits" / split / "dog", count)
    assert splits_of(Data(name=str(tmp_path / "splits")), modality) == ["test", "train", "validation"]
    assert [len(load(Data(name=str(tmp_path / "splits")), modality, s)) for s in ("train", "validation", "test")] == [
        6,
        4,
        2,
    ]
    support.write_pictures(tmp_path / "splits", 1)
    with pytest.raises(UserError, match="1 files lie beside the split folders"):
        load(Data(name=str(tmp_path / "splits")), modality)
    one = load(Data(name=str(tmp_path / "flat" / "000.png")), modality)
    assert len(one) == 1


def test_tables_of_text(tmp_path):
    from modalities import Text

    texts, modality = ["one line", "two, with a comma", "three"], Text()
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": t, "n": 1}) + "\n" for t in texts))
    (tmp_path / "a.json").write_text(json.dumps([{"body": t, "n": 1} for t in texts]))
    datasets.Dataset.from_dict({"body": texts, "n": [1, 2, 3]}).to_csv(tmp_path / "a.csv")
    datasets.Dataset.from_dict({"body": texts, "n": [1, 2, 3]}).to_csv(tmp_path / "a.tsv", sep="\t")
    for name in ("a.jsonl", "a.json", "a.csv", "a.tsv"):
        rows = load(Data(name=str(tmp_path / name)), modality)
        assert rows.column == "body" and rows.table["body"][:] == texts, name
    (tmp_path / "a.txt").write_text("\n".join(texts))
    assert len(load(Data(name=str(tmp_path / "a.txt")), modality)) == 3
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.json").write_text((tmp_path / "a.json").read_text())
    (tmp_path / "mixed" / "a.csv").write_text((tmp_path / "a.csv").read_text())
    with pytest.raises(UserError, match="tables of several kinds"):
        load(Data(name=str(tmp_path / "mixed")), modality)


def test_built_in_digits():
    rows = load(Data(name="digits"), Image(8, 4, channels=1))
    assert len(rows) == 1200 and rows.column == "image" and Counter(rows.labels().tolist()).keys() == set(range(10))
    assert splits_of(Data(name="digits"), rows.modality) == ["train", "test"]
