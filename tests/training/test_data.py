"""Rows of every kind of source, and an order of samples that is a pure function of seed, epoch and step."""

import json
from collections import Counter

import datasets
import numpy as np
import pytest
import support
import torch

from modalities import Image, View
from training.config import Data, UserError
from training.data import Order, Samples, held_out, load, loader, splits_of

CPU = torch.device("cpu")


def joined(order: Order, first: int, last: int, micro: int, ranks: int) -> list[list[tuple[int, int]]]:
    """Global micro-batches of steps, from what each rank is given."""
    parts = [list(order.micro_batches(first, last, micro, rank, ranks)) for rank in range(ranks)]
    return [sum(together, []) for together in zip(*parts, strict=True)]


def test_order_is_that_of_one_rank_on_any_number_of_ranks():
    def order():
        return Order(100, 24, 5)

    whole = joined(order(), 0, 9, 1, 1)
    for ranks in (1, 2, 3, 4):
        for micro in (1, 2):
            parts = joined(order(), 0, 9, micro, ranks)
            steps = [sum(parts[i : i + micro], []) for i in range(0, len(parts), micro)]
            assert steps == whole, (ranks, micro)


def test_order_can_start_anywhere():
    whole = joined(Order(100, 24, 5), 0, 12, 2, 2)
    for first in (1, 3, 4, 5, 11):  # an epoch is four steps
        assert joined(Order(100, 24, 5), first, 12, 2, 2) == whole[2 * first :]


def test_an_epoch_has_each_sample_once():
    order = Order(96, 24, 5)
    epochs = [[i for s in range(4 * e, 4 * e + 4) for i in order.step(s)[1]] for e in range(3)]
    assert all(sorted(e) == list(range(96)) for e in epochs)
    assert epochs[0] != epochs[1] and epochs[0] != [int(i) for s in range(4) for i in Order(96, 24, 6).step(s)[1]]
    with pytest.raises(UserError, match="10 samples to train on, fewer than a step's batch of 24"):
        Order(10, 24, 5)


def test_views_do_not_depend_on_workers_or_ranks(pictures):
    rows = load(Data(name=str(pictures)), Image(8, 4))
    views = (View(scale=(0.2, 1.0)), View(scale=(0.2, 1.0), strength="strong", index=1))
    samples = Samples(rows.table, rows.column, rows.modality, views, 3, 10)

    def batches(ranks, workers):
        made = []
        for rank in range(ranks):
            order = Order(len(rows), 12, 3).micro_batches(0, 6, 1, rank, ranks)
            made.append(list(loader(samples, order, workers, CPU)))
        return [
            [torch.cat([p["views"][v]["data"] for p in parts]) for v in (0, 1)] for parts in zip(*made, strict=True)
        ]

    one = batches(1, 0)
    for ranks, workers in ((1, 1), (1, 3), (2, 0), (3, 2)):
        for a, b in zip(one, batches(ranks, workers), strict=True):
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    # The same row in another epoch gives other views.
    first, second = (samples.__getitems__([(epoch, 0)])["views"][0]["data"] for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_held_out_rows_are_a_function_of_their_number():
    training, evaluation = held_out(10_000, 0.01)
    assert sorted([*training, *evaluation]) == list(range(10_000))
    assert 60 < len(evaluation) < 140
    more = held_out(20_000, 0.01)[1]
    assert set(evaluation) == {i for i in more if i < 10_000}
    assert set(evaluation) < set(held_out(10_000, 0.05)[1])
    assert len(held_out(1000, 0.0)[1]) == 0


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


def test_replacements_come_in_a_fixed_order_and_are_told_apart(pictures):
    names = sorted(p.name for p in pictures.iterdir())
    for bad in (3, 7):
        (pictures / names[bad]).write_bytes(b"none")
    rows = load(Data(name=str(pictures)), Image(8, 4))
    samples = Samples(rows.table, rows.column, rows.modality, (View(),), 3, 10, numbers=np.arange(48) + 100)
    batch = [(0, 2), (0, 3), (0, 7), (0, 8)]
    made = samples.__getitems__(batch)
    assert set(made["bad"]) == {103, 107}
    used = made["views"][0]["identity"].tolist()
    assert used[0] == 2 and used[3] == 8 and not {3, 7} & set(used)
    assert samples.__getitems__(batch)["views"][0]["identity"].tolist() == used
    assert len(made["views"][0]["data"]) == 4
