"""Rows of every kind of source: files, splits, columns, labels, and what is left out."""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import shutil
import tarfile
import unicodedata
import zipfile
from collections import Counter

import datasets
import numpy as np
import pytest
import support

from triptych.modalities import Audio, BadSample, Image, Text
from triptych.modalities.archives import parted
from triptych.training.errors import UserError
from triptych.training.kinds import modality_in
from triptych.training.settings import Data
from triptych.training.sources import fingerprint, like, load, relative, split_called, splits_of


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


def test_lists_that_are_as_long_go_along(tmp_path, capsys):
    columns = {"text": ["a", "b", "c"], "label": [1, 0, 1], "more": [1]}
    write(tmp_path, **{"columns.json": json.dumps(columns)})
    rows, said = read(tmp_path / "columns.json", Text(), capsys)
    assert rows.table["text"][:] == ["a", "b", "c"] and rows.labels().tolist() == [1, 0, 1]
    assert "columns that do not go along with the items of 'text': more" in said


def test_lists_of_pictures_are_unrolled(table, tmp_path):
    cells = table["picture"][:]
    rows = [{"frames": cells[i : i + 3]} for i in range(0, 12, 3)]
    features = datasets.Features({"frames": datasets.List(datasets.Image(decode=False))})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "frames.parquet")
    assert len(load(Data(name=str(tmp_path / "frames.parquet")), Image(8, 4))) == 12


def test_folders_and_lists_of_sounds(tmp_path):
    modality, random = Audio(seconds=0.16, mel_bins=16, tile=(8, 4)), np.random.default_rng(0)
    write(tmp_path, **{f"{c}/{i}.wav": support.sound(random) for c in "ab" for i in range(2)})
    rows = load(Data(name=str(tmp_path)), modality)
    assert [modality.read(row["audio"]).length for row in rows.table] == [4000] * 4 and classes(rows) == [*"aabb"]
    clips = [{"bytes": support.sound(random), "path": None} for _ in range(3)]
    made = datasets.Dataset.from_list([{"clips": clips, "n": 1}, {"clips": [], "n": 2}, {"clips": clips[:1], "n": 3}])
    features = {"clips": datasets.List(datasets.Audio(decode=False)), "n": datasets.Value("int64")}
    made.cast(datasets.Features(features)).to_parquet(tmp_path / "lists.parquet")
    rows = load(Data(name=str(tmp_path / "lists.parquet")), modality)
    assert rows.table["n"][:] == [1, 1, 1, 3]
    assert [modality.read(row["clips"]).length for row in rows.table] == [4000] * 4


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


# One rule for a folder. Each test makes the odd folder and says what is read, and what is said of the rest.


def write(folder, **files) -> str:
    """Files by name, `/` between folders: text, bytes, or a number of small pictures in a folder of that name."""
    for name, content in files.items():
        path = folder / name
        if isinstance(content, int):
            support.write_pictures(path, content)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(folder)


def lines(count: int, word: str = "text") -> str:
    return "".join(json.dumps({"text": f"{word} number {i}"}) + "\n" for i in range(count))


def read(folder, modality, capsys, split=None, **data):
    """Rows, and what was said."""
    capsys.readouterr()
    rows = load(Data(name=str(folder), **data), modality, split)
    return rows, capsys.readouterr().out


def classes(rows) -> list[str]:
    return [rows.table.features[rows.label].names[v] for v in rows.labels()]


def test_documentation_and_hidden_files_are_no_data(tmp_path, capsys):
    written = {"README.md": "About\nthis", "LICENSE": "MIT", "LICENCE.txt": "MIT", "CITATION.cff": "x"}
    written |= {".gitattributes": "x", ".git/config": "x", "dataset_infos.json": "{}"}
    write(tmp_path / "clone", **written, **{"data/train-00000.jsonl": lines(9)})
    rows, said = read(tmp_path / "clone", Text(), capsys)
    assert len(rows) == 9 and rows.table[0]["text"] == "text number 0"
    assert (
        "2 hidden (.git, .gitattributes)" in said
        and "5 documentation (CITATION.cff, LICENCE.txt, LICENSE, ...)" in said
    )
    write(tmp_path / "texts", **written, **{"a.txt": "one\ntwo\n"})
    assert len(read(tmp_path / "texts", Text(), capsys)[0]) == 2
    write(tmp_path / "only", **{"README.md": "About\nthis", "LICENSE": "MIT"})
    with pytest.raises(UserError, match=r"nothing but documentation \(LICENSE, README.md\).*--data .*only/"):
        load(Data(name=str(tmp_path / "only")), Text())
    assert len(load(Data(name=str(tmp_path / "only" / "README.md")), Text())) == 2  # named, it is read
    support.write_pictures(tmp_path / "pictures", 3)
    write(tmp_path / "pictures", **written, **{"notes.txt": "x"})
    rows, said = read(tmp_path / "pictures", Image(8, 4), capsys)
    assert len(rows) == 3 and "1 other files (notes.txt)" in said and "documentation" in said


@pytest.mark.fault("tables beside text files", "asked for", "tables beside text files: --data FILE")
def test_a_table_beside_text_is_asked_for_and_one_of_pictures_wins(tmp_path, capsys, table):
    write(tmp_path / "both", **{"data/a.jsonl": lines(5), "vocabulary.txt": "a\nb"})
    with pytest.raises(
        UserError, match=r"tables \(data/a.jsonl\) beside text files \(vocabulary.txt\).*--data .*a.jsonl"
    ):
        load(Data(name=str(tmp_path / "both")), Text())
    assert len(load(Data(name=str(tmp_path / "both" / "data")), Text())) == 5
    # A table that only names the files is beside them.
    write(
        tmp_path / "index", **{"a/1.txt": "one\nmore", "b/2.txt": "two", "index.csv": "file,words\n1.txt,1\n2.txt,1\n"}
    )
    rows, said = read(tmp_path / "index", Text(), capsys)
    assert (
        len(rows) == 2
        and "tables beside the files; to read one, name it, or join it by --data.metadata (index.csv)" in said
    )
    support.write_pictures(tmp_path / "pictures" / "assets", 2)
    table.to_parquet(tmp_path / "pictures" / "train.parquet")
    rows, said = read(tmp_path / "pictures", Image(8, 4), capsys)
    assert len(rows) == 12 and "2 files beside the tables" in said
    write(tmp_path / "kaggle", **{"images": 4, "train.csv": "id,label\n0,a\n", "test.csv": "id\n0\n"})
    rows, said = read(tmp_path / "kaggle", Image(8, 4), capsys)
    assert (
        len(rows) == 4
        and "2 tables beside the files; to read one, name it, or join it by --data.metadata (test.csv, train.csv)"
        in said
    )
    write(tmp_path / "kinds", **{"a.json": "[]", "b.csv": "text\nx\n"})
    with pytest.raises(UserError, match=r"tables of several kinds \(csv, json: a.json, b.csv\); name one file"):
        load(Data(name=str(tmp_path / "kinds")), Text())


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train", "test"], {"train", "test"}),
        (["training", "dev", "Testing"], {"train", "validation", "test"}),
        (["train2017", "val2017"], {"train", "validation"}),
        (["my-train_images", "eval"], {"train", "test"}),
        (["train-clean-100", "train-clean-360", "dev-clean", "test-other"], {"train", "validation", "test"}),
        (["bus", "car", "train"], {"train"}),  # a class
        (["train_station", "train_track", "beach"], {"train"}),  # classes
        (["trainer", "tester"], {"train"}),  # no words of splits
        (["test"], {"test"}),
        (["cat/train", "dog/test", "dog/train"], {"train", "test"}),
        (["deep/down/here/train", "deep/down/here/val"], {"train", "validation"}),
        (["images/train", "images/test"], {"train", "test"}),
    ],
)
def test_splits_are_words_of_datasets_in_folders(names, splits, tmp_path):
    write(tmp_path, **dict.fromkeys((f"{name}/cat" for name in names), 1), **{f"{name}/dog": 1 for name in names})
    assert set(splits_of(Data(name=str(tmp_path)), Image(8, 4))) == splits


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.jsonl", "test.jsonl"], {"train": 2, "test": 2}),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "validation-00000-of-00001.jsonl"],
         {"train": 4, "validation": 2}),
        (["train-00000-of-00001.jsonl", "unsupervised-00000-of-00001.jsonl"], {"train": 2, "unsupervised": 2}),
        (["train.jsonl", "test.jsonl", "sample_submission.jsonl"], {"train": 2, "test": 2}),
        (["data.jsonl", "test.jsonl"], {"train": 2, "test": 2}),
        (["wiki_TRAIN.JSONL", "wiki_valid.jsonl"], {"train": 2, "validation": 2}),
        (["a.jsonl", "b.jsonl"], {"train": 4}),
        (["train/a.jsonl", "dev/test.jsonl"], {"train": 2, "validation": 2}),  # folders go first
        (["train.jsonl", "test.jsonl", "__train_2.jsonl"], {"train": 4, "test": 2}),
    ],
    ids=str,
)  # fmt: skip
def test_splits_are_words_of_datasets_in_names_of_tables(names, splits, tmp_path, capsys):
    write(tmp_path, **{name: lines(2, name) for name in names})
    found = splits_of(Data(name=str(tmp_path)), Text())
    assert {split: len(load(Data(name=str(tmp_path)), Text(), split)) for split in found} == splits
    if "sample_submission.jsonl" in names:
        assert "names say no split, beside others that do (sample_submission.jsonl)" in capsys.readouterr().out
    assert "test" not in load(Data(name=str(tmp_path)), Text()).table[0]["text"]


def test_splits_in_names_of_text_and_of_pictures(tmp_path, capsys):
    write(tmp_path / "wiki", **{"wiki.train.txt": "a\nb\nc\n", "wiki.test.txt": "d\n", "README.txt": "x\n"})
    assert splits_of(Data(name=str(tmp_path / "wiki")), Text()) == ["test", "train"]
    assert len(load(Data(name=str(tmp_path / "wiki")), Text())) == 3
    one = (support.picture(np.random.default_rng(0)),)[0]
    write(tmp_path / "all", **{f"{split}_{i}.png": one for split in ("train", "test") for i in range(3)})
    assert len(load(Data(name=str(tmp_path / "all")), Image(8, 4))) == 3
    write(tmp_path / "some", **{f"{name}.png": one for name in ("train_1", "test_1", "me", "you")})
    rows, said = read(tmp_path / "some", Image(8, 4), capsys)
    assert len(rows) == 4 and "2 of 4 file names hold words of splits (test_1.png, train_1.png)" in said


@pytest.mark.fault("split folders beside others", "refused", "look like splits beside others")
def test_splits_among_other_folders_are_refused(tmp_path):
    write(tmp_path / "a", **{"train/a": 1, "test/a": 1, "ground_truth/a": 1})
    with pytest.raises(UserError, match=r"look like splits \(test, train\) beside others \(ground_truth\)"):
        load(Data(name=str(tmp_path / "a")), Image(8, 4))
    write(
        tmp_path / "b", **{"bottle/train/good": 1, "bottle/test/bad": 1, "bottle/truth/bad": 1, "cable/train/good": 1}
    )
    with pytest.raises(UserError, match="look like splits"):
        load(Data(name=str(tmp_path / "b")), Image(8, 4))


def test_a_split_by_any_of_its_words(tmp_path):
    write(tmp_path, **{"train": 3, "val": 2})
    source = Data(name=str(tmp_path))
    for word in ("val", "validation", "valid", "dev"):
        assert len(load(source, Image(8, 4), word)) == 2
    assert len(load(Data(name=str(tmp_path), split="training"), Image(8, 4))) == 3
    for word in ("test", "vall", "extra"):
        with pytest.raises(UserError, match=f"has no split '{word}'; it has train, validation: name one, --data.split"):
            load(source, Image(8, 4), word)
    assert split_called("val", ["train", "test"]) is None and split_called("eval", ["train", "test"]) == "test"


def test_class_folders_of_text_are_documents(tmp_path, capsys):
    files = {
        f"{s}/{c}/{i}.txt": f"{s} {c} {i}\nmore\n" for s in ("train", "test") for c in ("neg", "pos") for i in (1, 2)
    }
    write(tmp_path / "acl", **files, **{"train/pos/__init__.txt": "odd", "test/unsup/1.txt": "none"})
    rows, said = read(tmp_path / "acl", Text(), capsys)
    assert len(rows) == 5 and "a file is a sample" in said and "other splits: test" in said
    # Labels and documents stay together, whatever a file is called.
    assert classes(rows) == ["neg", "neg", "pos", "pos", "pos"]
    assert rows.table["text"][:] == ["train neg 1\nmore\n", "train neg 2\nmore\n", "train pos 1\nmore\n",
                                     "train pos 2\nmore\n", "odd"]  # fmt: skip
    test, said = read(tmp_path / "acl", Text(), capsys, "test")
    assert test.labels().tolist() == [0, 0, 1, 1, -1]
    assert "test: 1 files have no class of train's, and no label (test/unsup/1.txt)" in said
    write(tmp_path / "loose", **{"a.txt": "one\ntwo", "b.txt": "three"})
    rows, said = read(tmp_path / "loose", Text(), capsys)
    assert len(rows) == 3 and "a line is a sample" in said
    # What is cached is of the file as it was.
    write(tmp_path / "acl", **{"train/neg/1.txt": "another"})
    assert load(Data(name=str(tmp_path / "acl")), Text()).table[0]["text"] == "another"


def test_an_accent_is_the_same_class_however_it_is_written(tmp_path):
    write(
        tmp_path, **{f"{s}/{unicodedata.normalize(form, 'café')}": 1 for s, form in (("train", "NFC"), ("test", "NFD"))}
    )
    write(tmp_path, **{"train/b": 1, "test/b": 1})
    for split in ("train", "test"):
        assert sorted(load(Data(name=str(tmp_path)), Image(8, 4), split).labels().tolist()) == [0, 1]


def test_labels_of_folders_that_disappear_are_said(tmp_path, capsys):
    write(tmp_path, **{"cat/persian": 1, "dog": 1})
    rows, said = read(tmp_path, Image(8, 4), capsys)
    assert len(rows) == 2 and rows.label is None
    assert "no labels of folders: a class is a folder that holds its files, here they are 1 or 2 deep" in said


def test_metadata_anywhere_and_with_any_name_of_its_column(tmp_path, capsys, table):
    for split, kind in (("train", "cat"), ("test", "dog")):
        write(tmp_path / "set", **{split: 3})
        rows = "".join(f"{i:03d}.png,{kind}{i}\n" for i in range(3))
        write(tmp_path / "set", **{f"{split}/metadata.csv": "name,label\n" + rows})
    for split, kind in (("train", "cat"), ("test", "dog")):
        rows, said = read(tmp_path / "set", Image(8, 4), capsys, split)
        assert rows.label == "label" and rows.labels().tolist() == [f"{kind}{i}" for i in range(3)]
        assert "left out" not in said
    for name, content in (
        ("metadata.tsv", "path\tnote\n./000.png\ta\n001.png\tb\n001.png\tc\ngone.png\td\n"),
        ("metadata.jsonl", "".join(json.dumps({"f": f, "note": n}) + "\n" for f, n in
                                   [("000.png", "a"), ("001.png", "b"), ("001.png", "c"), ("gone.png", "d")])),
    ):  # fmt: skip
        folder = tmp_path / name.replace(".", "_")
        write(folder / "of", pictures=3)
        write(folder, **{f"of/pictures/{name}": content})
        rows, said = read(folder, Image(8, 4), capsys)
        assert rows.table["note"][:] == ["a", "b", None]
        assert f"of/pictures/{name}: 1 rows without a file, 1 files without a row" in said
        assert "1 files have several rows, of which the first counts (of/pictures/001.png)" in said
    write(tmp_path / "two", **{"a": 2, "a/metadata.csv": "f,n\n000.png,1\n", "metadata.csv": "f,n\na/000.png,2\n"})
    rows, said = read(tmp_path / "two", Image(8, 4), capsys)
    assert "data: metadata.csv: 1 files have several rows, of which the first counts (a/000.png)" in said
    assert rows.table["n"][:] == [1, None]
    write(tmp_path / "none", **{"a": 2, "metadata.csv": "x,y\n1,2\n"})
    assert (
        "metadata of which no column names the files (metadata.csv)" in read(tmp_path / "none", Image(8, 4), capsys)[1]
    )
    numbers = "age,id,label\n1,0000,x\n1,0001,y\n0,0002,z\n"
    write(tmp_path / "numbers", **{"a/metadata.csv": numbers, "b/metadata.csv": "age\n0\n1\n1\n"})
    for i in range(6):
        support.write_pictures(tmp_path / "one", 1)
        (tmp_path / "one" / "000.png").rename(tmp_path / "numbers" / "ab"[i // 3] / f"{i % 3:04d}.png")
    rows, said = read(tmp_path / "numbers", Image(8, 4), capsys)
    assert rows.labels().tolist() == ["x", "y", "z", None, None, None]
    assert "a/metadata.csv: numbers in column 'id' are taken for names of files" in said
    assert "metadata of which no column names the files (b/metadata.csv)" in said
    write(tmp_path / "both", **{"a": 1, "b": 1, "metadata.csv": "file_name,label\na/000.png,x\nb/000.png,y\n"})
    rows, said = read(tmp_path / "both", Image(8, 4), capsys)
    assert rows.labels().tolist() == ["x", "y"] and "labels are those of the metadata's column" in said


def test_metadata_names_files_as_people_write_them(tmp_path, capsys):
    folder = tmp_path / "set"
    write(folder, **{"a": 4})
    named = ["cafe\u0301.png", "B.PNG", "c d.png", "e.png"]
    for old, new in zip(sorted((folder / "a").iterdir()), named, strict=True):
        old.rename(folder / "a" / new)
    for root in ("", f"{folder}/", "/elsewhere/set/", "C:\\set\\set\\"):
        rows = [f"{root}a/{name},{i}\n" for i, name in enumerate(["caf\u00e9.png", "b.png", "c d.png ", "e.png"])]
        write(folder, **{"metadata.csv": "file_name,label\n" + "".join(rows)})
        rows, said = read(folder, Image(8, 4), capsys)
        assert {os.path.basename(p): x for p, x in zip(rows.paths(), rows.labels(), strict=True)} == {
            name: i for i, name in enumerate(named)
        }, root
        assert "without" not in said and "left out" not in said
    (folder / "a" / "b.png").symlink_to("B.PNG")  # of several that are alike none is meant
    rows, said = read(folder, Image(8, 4), capsys)
    assert rows.labels().tolist() == [None, 1, 2, 0, 3]


def test_labels_that_are_vectors_or_of_several_types(tmp_path, capsys):
    lines = {
        "hot": [[1, 0, 1], [0, 0, 0], None, [0, 1, 0]],
        "truth": [[True, False], [False, True], None, [False, False]],
        "gaps": [[1, None], [0, 1], None, [1.0, 0.0]],
        "ids": [[0, 1], [1], None, [0]],
        "mixed": [1, "one", None, "two"],
    }
    write(tmp_path, **{f"{k}.jsonl": "".join(json.dumps({"text": "a", "label": v}) + "\n" for v in vs)
                       for k, vs in lines.items()})  # fmt: skip
    for name, words in {
        "hot": [["0", "2"], [], None, ["1"]],
        "truth": [["0"], ["1"], None, []],
        "gaps": [None, ["1"], None, ["0"]],
        "ids": lines["ids"],
        "mixed": lines["mixed"],
    }.items():
        rows, said = read(tmp_path / f"{name}.jsonl", Text(), capsys)
        assert rows.table["label"][:] == words and ("vectors of 0 and 1" in said) == (name in ("hot", "truth", "gaps"))


def test_a_folder_with_the_name_of_a_built_in_set(tmp_path, capsys, monkeypatch):
    write(tmp_path, digits=3)
    monkeypatch.chdir(tmp_path)
    rows, said = read("digits", Image(8, 4), capsys)
    assert len(rows) == 1200 and "the folder of that name is not used: ./digits is it" in said
    assert len(read("./digits", Image(8, 4), capsys)[0]) == 3
    for option in ("subset", "revision"):
        with pytest.raises(UserError, match="data digits is built in"):
            load(Data(name="digits", **{option: "x"}), Image(8, 4))
    with pytest.raises(UserError, match="data.revision x: .* has no revisions"):
        load(Data(name="./digits", revision="x"), Image(8, 4))
    with pytest.raises(UserError, match="data.subset x: .* names no subsets"):
        load(Data(name="./digits", subset="x"), Image(8, 4))


def test_options_of_files_are_none_of_rows_and_other_data_is_read_without_them(tmp_path):
    support.table_of("text").save_to_disk(tmp_path / "saved")
    saved, modality = str(tmp_path / "saved"), Text()
    for option, value in (("document", "file"), ("metadata", "a.csv"), ("encoding", "latin-1"), ("segments", True)):
        with pytest.raises(UserError, match=f"data.{option} {value}: .* holds rows, and this is about files; leave it"):
            load(Data(**{"name": saved, option: value}), modality)
    write(tmp_path / "files", a=1)
    (tmp_path / "far.csv").write_text("file,label\nelsewhere.png,1\n")
    with pytest.raises(UserError, match="data.metadata .*far.csv: none of its columns names files of"):
        load(Data(name=str(tmp_path / "files"), metadata=str(tmp_path / "far.csv")), Image(8, 4))
    # What a run's data was read with is no word about other data, which could not be read at all.
    own = Data(name="mine", document="file", encoding="latin-1", metadata="mine.csv", subset="a")
    assert like(own, saved, modality) == Data(name=saved)


def test_tables_of_paths(tmp_path, capsys, monkeypatch):
    write(tmp_path / "set", pics=4)
    rows = "".join(f"pics/{i:03d}.png,{'ab'[i % 2]},x{i}\n" for i in range(4))
    write(tmp_path / "set", **{"labels.csv": "file,label,id\n" + rows, "tables/inner.csv": "file,label,id\n" + rows})
    monkeypatch.chdir(tmp_path)
    rows, said = read("set/labels.csv", Image(8, 4), capsys)
    assert rows.column == "file" and len(pixels(rows)) == 4 and rows.labels().tolist() == ["a", "b", "a", "b"]
    assert "the only one that names files, paths" in said
    assert pixels(load(Data(name=str(tmp_path / "set/labels.csv"), column="file"), Image(8, 4))) == pixels(rows)
    with pytest.raises(
        UserError, match=r"names no file that is there \(pics/000.png\): paths are relative to set/tables"
    ):
        load(Data(name="set/tables/inner.csv"), Image(8, 4))
    # Files in a folder of which the table says nothing, as in Common Voice.
    write(tmp_path / "voice", **{"clips/a": 2, "t.csv": "path\na/000.png\na/001.png\n"})
    rows, said = read("voice/t.csv", Image(8, 4), capsys)
    assert len(pixels(rows)) == 2 and "the files of column 'path' were found in voice/clips" in said
    write(tmp_path / "voice", **{"other/a": 2})
    with pytest.raises(UserError, match=r"names files of several folders \(voice/clips, voice/other: a/000.png\)"):
        load(Data(name="voice/t.csv"), Image(8, 4))
    write(tmp_path, **{"net.csv": "url,label\nhttps://example.org/a.png,1\n"})
    with pytest.raises(UserError, match="holds addresses .*download the files"):
        load(Data(name="net.csv"), Image(8, 4))
    write(tmp_path / "set", **{"windows.csv": "file\n.\\pics\\000.png\n"})
    assert pixels(load(Data(name="set/windows.csv"), Image(8, 4))) == pixels(rows)[:1]
    write(tmp_path / "set", **{"some.csv": "file\npics/000.png\npics/gone.png\n"})
    rows = load(Data(name="set/some.csv"), Image(8, 4))
    with pytest.raises(BadSample, match="no such file: set/pics/gone.png"):
        rows.modality.read(rows.table[1]["file"])
    with pytest.raises(UserError, match=r"data.column 'n' holds int64, which modality image does not read"):
        write(tmp_path, **{"n.csv": "n,file\n1,set/pics/000.png\n"})
        load(Data(name="n.csv", column="n"), Image(8, 4))


def test_types_of_columns_that_other_writers_use(tmp_path, table):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    texts = ["a b", "c d"]
    for name, column in {
        "view": pa.array(texts, pa.string_view()),
        "large": pa.array(texts, pa.large_string()),
        "categories": pa.array(texts).dictionary_encode(),
        "lists": pa.array([texts, []]),
    }.items():
        parquet.write_table(pa.table({"text": column, "n": [1, 2]}), tmp_path / f"{name}.parquet")
        rows = load(Data(name=str(tmp_path / f"{name}.parquet")), Text())
        assert rows.table["text"][:] == texts and rows.table.features["text"].dtype == "string", name
        assert rows.table["n"][:] == ([1, 1] if name == "lists" else [1, 2])
    cells = [{"bytes": c["bytes"]} for c in table["picture"]]
    for name, column in {
        "struct": pa.array(cells),
        "binary": pa.array([c["bytes"] for c in cells]),
        "large_binary": pa.array([c["bytes"] for c in cells], pa.large_binary()),
    }.items():
        parquet.write_table(pa.table({"picture": column, "n": list(range(12))}), tmp_path / f"{name}.parquet")
        assert pixels(load(Data(name=str(tmp_path / f"{name}.parquet")), Image(8, 4))) == [
            np.asarray(Image(8, 4).read(c)).tobytes() for c in cells
        ], name


def test_labels_are_no_samples(tmp_path):
    write(tmp_path, **{"a.csv": "review,label\ngood,pos\nbad,neg\n", "b.csv": "review,sentiment\ngood,pos\nbad,neg\n"})
    assert load(Data(name=str(tmp_path / "a.csv")), Text()).column == "review"
    rows = load(Data(name=str(tmp_path / "b.csv"), label_column="sentiment"), Text())
    assert (rows.column, rows.label) == ("review", "sentiment")
    with pytest.raises(UserError, match=r"several columns .*review, sentiment"):
        load(Data(name=str(tmp_path / "b.csv")), Text())


BAD = b"caf\xe9"


@pytest.mark.fault(
    "bytes that are not UTF-8",
    "good rows are read; refused if many would be lost",
    "b.csv is not UTF-8 in 2 lines, such as 5, 7",
)
@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl"])
def test_bytes_that_are_not_utf_8(kind, tmp_path, capsys):
    def content(bad: set[int], count: int = 40) -> bytes:
        rows = [BAD if i in bad else b"row %d" % i for i in range(count)]
        if kind == "jsonl":
            return b"".join(b'{"text": "%b"}\n' % r for r in rows)
        return (b"text\n" if kind == "csv" else b"") + b"\n".join(rows) + b"\n"

    write(tmp_path / "few", **{f"a.{kind}": content(set()), f"b.{kind}": content({3, 5})})
    rows, said = read(tmp_path / "few", Text(), capsys)
    texts = rows.table["text"][:]
    assert len(texts) == 78 and all(t.startswith("row ") for t in texts)
    first = 5 if kind == "csv" else 4
    assert (
        f"b.{kind} is not UTF-8 in 2 lines, such as {first}, {first + 2}" in said
        and "2 rows that are not UTF-8" in said
    )
    write(tmp_path / "many", **{f"a.{kind}": content(set(range(0, 40, 2)))})
    with pytest.raises(UserError, match=rf"a.{kind} is not UTF-8 in 20 lines.*20 rows would be lost.*iconv"):
        load(Data(name=str(tmp_path / "many")), Text())


def test_encodings_and_separators_are_seen(tmp_path, capsys):
    write(tmp_path, **{
        "bom.csv": b"\xef\xbb\xbftext,label\na,1\n",
        "bom.jsonl": b'\xef\xbb\xbf{"text":"a"}\n',
        "wide.txt": "a\n".encode("utf-16"),
        "wide.csv": "text,label\na,1\n".encode("utf-16"),
        "semicolon.csv": "text;label\na;1\n",
        "UPPER.CSV": "text,label\na,1\n",
        "tabs/1.tsv": "text\tlabel\na\t1\n",
    })  # fmt: skip
    for name in ("bom.csv", "bom.jsonl", "wide.txt", "wide.csv", "semicolon.csv", "UPPER.CSV", "tabs"):
        rows, said = read(tmp_path / name, Text(), capsys)
        assert rows.column == "text" and rows.table["text"][:] == ["a"], name
        assert (rows.label == "label") == ("csv" in name.lower() or name == "tabs"), name
        assert ("semicolon.csv: its separator is ';'" in said) == (name == "semicolon.csv")
    stray = 'text\tlabel\n"a quote that does not end\t1\nx\t0\nan "end"\t1\n'
    fine = 'text\tlabel\n"he said ""hi"""\t1\n"two\nlines"\t0\n'
    write(tmp_path, **{"stray.tsv": stray, "fine.tsv": fine})
    rows, said = read(tmp_path / "stray.tsv", Text(), capsys)
    assert rows.table["text"][:] == ['"a quote that does not end', "x", 'an "end"']
    assert "stray.tsv: its quotes are text" in said
    assert load(Data(name=str(tmp_path / "fine.tsv")), Text()).table["text"][:] == ['he said "hi"', "two\nlines"]
    ended = "text;label\na b;1;\nc;2;\n"
    swallowed = 'text,label\n"a\nb",1\n"c,1\nd,0\nthe "end",1\n'
    commas = "text;label\n1,5 m;1,5\nc;2\n"
    write(tmp_path, **{"ended.csv": ended, "swallowed.csv": swallowed, "commas.csv": commas})
    rows, said = read(tmp_path / "commas.csv", Text(), capsys)
    assert rows.table["text"][:] == ["1,5 m", "c"] and rows.labels().tolist() == [1.5, 2] and "a decimal comma" in said
    rows, said = read(tmp_path / "ended.csv", Text(), capsys)
    assert rows.table["text"][:] == ["a b", "c"] and rows.labels().tolist() == [1, 2] and "a quote" not in said
    write(tmp_path, **{"spaced.csv": 'text, label\n"a, b", "x, y"\nc, z\n', "codes.csv": "text,label\na,007\nb,7\n"})
    rows, said = read(tmp_path / "spaced.csv", Text(), capsys)
    assert rows.table["text"][:] == ["a, b", "c"] and rows.labels().tolist() == ["x, y", "z"]
    assert "codes.csv: numbers in column 'label' begin with zeros" in read(tmp_path / "codes.csv", Text(), capsys)[1]
    write(tmp_path, **{"named.csv": "text,label\nr1,a,1\nr2,b,0\n", "bare.csv": "text\nwell, a\nb\nc, d\n"})
    rows, said = read(tmp_path / "named.csv", Text(), capsys)
    assert rows.table["text"][:] == ["a", "b"] and "3 cells, its columns 2 names: 'r1' is taken for the name of" in said
    with pytest.raises(UserError, match="bare.csv: rows of 2 and of 1 cells, 1 names .*: quote cells that hold ','"):
        load(Data(name=str(tmp_path / "bare.csv")), Text())
    rows, said = read(tmp_path / "swallowed.csv", Text(), capsys)
    assert len(rows) == 2 and "swallowed.csv: a quote in line 4 may make one row of several" in said
    write(tmp_path / "docs", **{"a/1.txt": "hallo".encode("utf-16"), "b/2.txt": BAD, "b/3.txt": "welt"})
    rows, said = read(tmp_path / "docs", Text(), capsys)
    assert rows.table["text"][:] == ["hallo", "welt"] and "1 files that are not UTF-8 (b/2.txt)" in said


@pytest.mark.fault("a broken table among many", "refused", "its name, cannot be read")
def test_an_unreadable_table_of_many_is_named(tmp_path, capsys, table):
    for i in range(3):
        table.to_parquet(tmp_path / f"{i}.parquet")
    (tmp_path / "1.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:200])
    with pytest.raises(UserError, match=r"1.parquet.* cannot be read"):
        load(Data(name=str(tmp_path)), Image(8, 4))
    write(tmp_path / "csv", **{"a.csv": "text\nx\n", "b.csv": "", "c.csv": "text\n"})
    rows, said = read(tmp_path / "csv", Text(), capsys)
    assert len(rows) == 1 and "1 empty (b.csv)" in said
    for name, content, says in (("none.csv", "", "empty: none.csv"), ("head.csv", "text\n", "holds no rows")):
        write(tmp_path, **{name: content})
        with pytest.raises(UserError, match=says):
            load(Data(name=str(tmp_path / name)), Text())
    write(tmp_path / "columns", **{"a.csv": "text,label\nx,1\n", "b.csv": "body,label\nx,1\n"})
    with pytest.raises(UserError, match=r"a.csv has the columns text .*, but b.csv body .*: give all files the same"):
        load(Data(name=str(tmp_path / "columns")), Text())


def test_links_archives_and_odd_names(tmp_path, capsys):
    write(tmp_path / "real", a=2, b=2)
    folder = tmp_path / "set [1]*?"  # what `datasets` takes for a pattern
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "real")
    (folder / "circle").symlink_to(folder)
    (folder / "broken.png").symlink_to(tmp_path / "nowhere")
    (folder / "self.png").symlink_to("self.png")
    write(folder, **{"more.tar.gz": "x", "Thumbs.db": "x"})
    os.rename(tmp_path / "real" / "a" / "000.png", os.fsencode(tmp_path / "real" / "a") + b"/caf\xe9.PNG")
    rows, said = read(folder, Image(8, 4), capsys)
    assert len(pixels(rows)) == 4 and classes(rows) == ["a", "a", "b", "b"]
    assert "1 links to a folder above (circle)" in said and "2 broken links or no files (broken.png, self.png)" in said
    assert "1 archives that are not opened; extract them (more.tar.gz)" in said and "1 hidden (Thumbs.db)" in said
    write(tmp_path / "t[1]", **{"a.csv": "text\nx\n"})
    assert len(load(Data(name=str(tmp_path / "t[1]")), Text())) == 1


def test_archives_hold_splits_and_texts(tmp_path, capsys):
    for split, count in (("train", 3), ("test", 2)):
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "w") as archive:
            for i in range(count):
                archive.writestr(f"{'ab'[i % 2]}/{i}.png", support.picture(np.random.default_rng(i)))
            archive.writestr("inner.zip", b"x")
    rows, said = read(tmp_path, Image(8, 4), capsys)
    assert len(pixels(rows)) == 3 and classes(rows) == ["a", "a", "b"] and "other splits: test" in said
    assert "2 tables or archives within an archive; extract it (test.zip/inner.zip, train.zip/inner.zip)" in said
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("a/1.txt", "one\nmore")
        archive.writestr("b/2.txt", "two")
    rows = load(Data(name=str(tmp_path / "texts.zip")), Text())
    assert rows.table["text"][:] == ["one\nmore", "two"] and classes(rows) == ["a", "b"]
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:  # lines, where there are no folders
        archive.writestr("1.txt", "one\nmore")
        archive.writestr("2.txt", "two")
    assert load(Data(name=str(tmp_path / "texts.zip")), Text()).table["text"][:] == ["one", "more", "two"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="a.zip"):
        load(Data(name=str(tmp_path / "broken")), Image(8, 4))


def shard(path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_shards_of_a_web_dataset(tmp_path, capsys):
    """A sample is the files of one name; those of a class are its label. Shards may repeat the names of others."""
    pictures = [support.picture(np.random.default_rng(i)) for i in range(6)]
    for part, numbers in (("train-0000", (0, 1)), ("train-0001", (2, 3)), ("test-0000", (4, 5))):
        files = {f"{i % 2:05d}.png": pictures[i] for i in numbers}
        files |= {f"{i % 2:05d}.cls": b"%d" % (2 * i) for i in numbers} | {"00000.json": b"{}"}
        shard(tmp_path / f"{part}.tar", files)
    rows, said = read(tmp_path, Image(8, 4), capsys)
    assert rows.labels().tolist() == [0, 2, 4, 6] and "labels 'label'; other splits: test" in said
    assert [parted(row["image"]["path"])[0] for row in rows.table] == ["00000.png", "00001.png"] * 2
    wanted = [np.asarray(rows.modality.read({"bytes": p, "path": None})).tobytes() for p in pictures[:4]]
    assert pixels(rows) == wanted
    assert "3 tables or archives within an archive; extract it (test-0000.tar/00000.json" in said
    assert relative(rows.table[0]["image"]["path"], str(tmp_path)) == "00000.png::train-0000.tar"
    shard(tmp_path / "test-0000.tar", {"1.png": pictures[0], "1.cls": b"cat"})
    with pytest.raises(UserError, match="1.cls holds b'cat', no number of a class"):
        load(Data(name=str(tmp_path), split="test"), Image(8, 4))
    shard(tmp_path / "plain.tar", {f"{'ab'[i % 2]}/{i}.png": p for i, p in enumerate(pictures)})
    rows = load(Data(name=str(tmp_path / "plain.tar")), Image(8, 4))
    assert classes(rows) == ["a", "a", "a", "b", "b", "b"]
    assert modality_in(str(tmp_path)) == ("image", "11 files such as .png")


@pytest.mark.parametrize("compress", [gzip, bz2, lzma])
def test_tables_of_text_may_be_compressed(compress, tmp_path, capsys):
    suffix = {gzip: "gz", bz2: "bz2", lzma: "xz"}[compress]
    for split in ("train", "test"):
        with compress.open(tmp_path / f"c4-{split}.00000-of-00001.json.{suffix}", "wt") as file:
            file.write(lines(3, split))
    rows, said = read(tmp_path, Text(), capsys)
    assert rows.table["text"][:] == [f"train number {i}" for i in range(3)] and "other splits: test" in said
    assert modality_in(str(tmp_path))[0] == "text"
    with compress.open(tmp_path / f"a.csv.{suffix}", "wb") as file:
        file.write('text;label\ncaf\u00e9;1\n"x;y";0\n'.encode("latin-1"))
    rows, said = read(tmp_path / f"a.csv.{suffix}", Text(), capsys, encoding="latin-1")
    assert rows.table["text"][:] == ["caf\u00e9", "x;y"] and rows.labels().tolist() == [1, 0]
    with compress.open(tmp_path / f"a.tsv.{suffix}", "wt") as file:
        file.write('text\tlabel\n"so\t1\nit goes"\t0\n')
    rows, said = read(tmp_path / f"a.tsv.{suffix}", Text(), capsys)
    assert rows.table["text"][:] == ['"so', 'it goes"'] and "its quotes are text" in said
    with compress.open(tmp_path / f"pictures.parquet.{suffix}", "wb") as file:
        file.write(b"PAR1")
    with pytest.raises(UserError, match="extract its archives"):
        load(Data(name=str(tmp_path / f"pictures.parquet.{suffix}")), Text())


def test_subsets_of_a_clone(tmp_path, capsys):
    head = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/*.jsonl\n" for name in ("de", "en")
    )
    write(tmp_path, **{"README.md": head + "---\nText", "de/a.jsonl": lines(2, "eins"), "en/a.jsonl": lines(3, "one")})
    with pytest.raises(UserError, match=r"several subsets \(de, en\): name one, --data.subset"):
        load(Data(name=str(tmp_path)), Text())
    with pytest.raises(UserError, match=r"no such subset; did you mean en\?; there are de, en"):
        load(Data(name=str(tmp_path), subset="eng"), Text())
    rows, said = read(tmp_path, Text(), capsys, subset="en")
    assert len(rows) == 3 and "subset 'en'" in said and "1 subsets (de)" in said


def test_what_data_is_does_not_depend_on_where_it_lies(tmp_path, monkeypatch):
    write(tmp_path / "a", train=5)
    with zipfile.ZipFile(tmp_path / "a" / "more.zip", "w") as archive:
        archive.writestr("x.png", support.picture(np.random.default_rng(3)))
    shutil.copy(tmp_path / "a" / "train" / "000.png", os.fsencode(tmp_path / "a") + b"/caf\xe9.png")
    shutil.move(tmp_path / "a" / "train", tmp_path / "a" / "data")
    shutil.copytree(tmp_path / "a", tmp_path / "dat" / "a")
    monkeypatch.chdir(tmp_path)

    def identity(name) -> str:
        return fingerprint(load(Data(name=str(name)), Image(8, 4)))

    one = identity("a")
    assert {identity(n) for n in ("a/", "./a", tmp_path / "a", "dat/a", tmp_path / "dat" / "a")} == {one}
    moved = tmp_path / "dat" / "a" / "data"
    content = (moved / "002.png").read_bytes()
    for change in (
        lambda: (moved / "002.png").rename(moved / "other.png"),
        lambda: (moved / "002.png").write_bytes(content + b" "),
        lambda: (moved / "002.png").write_bytes(content[:-1] + b"x"),
        lambda: (moved / "002.png").unlink(),
    ):
        change()
        assert identity("dat/a") != one
        (moved / "other.png").unlink(missing_ok=True)
        (moved / "002.png").write_bytes(content)
        assert identity("dat/a") == one
    write(tmp_path, **{"t/a.txt": "one\ntwo\n", "u/a.txt": "one\ntwo\n", "v/a.txt": "one\nTwo\n"})
    texts = [fingerprint(load(Data(name=f"{name}/a.txt"), Text())) for name in "tuv"]
    assert texts[0] == texts[1] != texts[2]


def test_show_says_how_a_source_is_read_and_trains_nothing(tmp_path, capsys, monkeypatch):
    from triptych import train

    write(
        tmp_path / "set",
        **{"train/cat": 2, "train/dog": 1, "val/cat": 1, "README.md": "x", "train/cat/odd.png": "none"},
    )
    monkeypatch.chdir(tmp_path)
    train.main(["--data", "set", "--show"])
    said = capsys.readouterr().out
    for wanted in (
        r"source +set, as image",
        r"files +5 .png",
        r"split +train: 4 rows .*read now",
        r"split +validation: 1 rows",
        r"columns +image \(Image\), label \(ClassLabel\)",
        r"labels +column 'label', 2 different: cat 3, dog 1",
        r"left out +1 documentation \(README.md\)",
        r"sample +0: train/cat/000.png: a picture of 12×12, RGB \[cat\]",
        r"sample +2: train/cat/odd.png: unusable: not a readable picture",
        r"sample +3: train/dog/000.png: .*\[dog\]",
    ):
        assert re.search(wanted, said), (wanted, said)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]
    write(tmp_path, **{"a.txt": "hello\n"})
    train.main(["--data", "a.txt", "--modality", "text", "--show"])
    assert "sample     0: 5 characters, 'hello'" in capsys.readouterr().out
    train.main(["--data", "tones", "--modality", "audio", "--show"])
    assert "sample     0: 1.00 s of sound, 16000 Hz in the file [" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="train.py: data nowhere/at/all: no such file or folder"):
        train.main(["--data", "nowhere/at/all", "--show"])


def test_rows_that_disappear_are_said(tmp_path, capsys, table):
    write(
        tmp_path,
        **{
            "a.csv": "text,label\nNA,1\nword,0\n,1\n",
            "b.csv": "3,a title of many words that is longer than a name\n4,x\n",
        },
    )
    assert (
        "2 of 3 rows have nothing in column 'text' (in a csv, words such as NA"
        in read(tmp_path / "a.csv", Text(), capsys)[1]
    )
    assert "first row of b.csv is taken for names of columns (3, a title" in read(tmp_path / "b.csv", Text(), capsys)[1]
    write(tmp_path / "test", **{"test.csv": "text\nx\n"})
    assert len(load(Data(name=str(tmp_path / "test" / "test.csv")), Text())) == 1  # named, it is trained on
    with pytest.raises(UserError, match="has no split 'train'; it has test: name one, --data.split"):
        load(Data(name=str(tmp_path / "test")), Text())
    table.to_parquet(tmp_path / "pictures.parquet")
    with pytest.raises(UserError, match="no column of type string.*; it looks like modality image"):
        load(Data(name=str(tmp_path / "pictures.parquet")), Text())
    datasets.Dataset.from_dict({"wave": [{"array": [0.0, 1.0], "rate": 9}]}).to_parquet(tmp_path / "waves.parquet")
    with pytest.raises(UserError, match=r"there are wave \(dict\); arrays are read from files \(.npy, .wav"):
        load(Data(name=str(tmp_path / "waves.parquet")), Text())
    write(tmp_path / "odd", **{"a/1": "x", "b/2": "y"})
    with pytest.raises(UserError, match=r"reads \(2 no suffix\); it reads .txt, .text, .md"):
        load(Data(name=str(tmp_path / "odd")), Text())
    with zipfile.ZipFile(tmp_path / "tables.zip", "w") as archive:
        archive.writestr("train.csv", "text\nx\n")
    with pytest.raises(UserError, match=r"reads \(1 .csv\); extract its archives"):
        load(Data(name=str(tmp_path / "tables.zip")), Text())
