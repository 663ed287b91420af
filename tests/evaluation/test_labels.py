"""Labels of every kind, groups that stay together, and what a probe says of both."""

import json
import re
from decimal import Decimal

import datasets
import numpy as np
import pytest
import support
from finished import finished
from PIL import Image

from triptych.evaluation.labels import hold_out, labelled, splits, task_of
from triptych.modalities import MODALITIES, Text
from triptych.probe import probe
from triptych.training.errors import UserError
from triptych.training.groups import groups_of, suspected
from triptych.training.loader import held_out
from triptych.training.memory import held
from triptych.training.settings import Data
from triptych.training.sources import load


@pytest.mark.parametrize(
    ("values", "asked", "name", "names"),
    [
        (["a", "b", "a"], None, "classes", ["a", "b"]),
        (["a|b", "b", "c | a"], None, "several", ["a", "b", "c"]),
        (["a|b", "b", "a|b"], "classes", "classes", ["a|b", "b"]),
        ([("a", "b"), (), ("c",)], None, "several", ["a", "b", "c"]),
        (["a", "b", "a"], "several", "several", ["a", "b"]),
        ([0.5, 1, 2.5], None, "regression", ["kind"]),
        ([0, 1, 1], None, "classes", ["0", "1"]),
        ([0, 1, 1], "regression", "regression", ["kind"]),
        ([*range(30), *range(30)], None, "classes", [str(i) for i in range(30)]),  # numbers of classes have no gaps
        ([*range(18, 48), *range(18, 48)], None, "regression", ["kind"]),  # ages
    ],
)
def test_the_task_is_that_of_the_labels(values, asked, name, names):
    task, (first, second) = task_of([values, values[:2]], "kind", asked)
    assert (task.name, task.names) == (name, names) and (second == first[:2]).all()
    if name == "several":
        rows = [{n for n, mark in zip(names, row, strict=True) if mark} for row in first]
        assert rows[0] == ({"a", "b"} if asked is None else {"a"}) and (rows[1] == set() or rows[1] == {"b"})


@pytest.mark.parametrize(
    ("values", "asked", "message"),
    [
        (["a", 1], None, "holds numbers and words"),
        (["a", "b"], "regression", "task regression: column 'kind' holds words"),
        ([("a",), ()], "classes", "task classes: column 'kind' holds lists"),
        (list(range(40)), "classes", "40 different numbers in 40 rows: a name of each row.*--task regression"),
        ([f"a|{i}" for i in range(40)], None, "41 different words in 80 rows"),
        ([(), ()], None, "one label only"),
    ],
)
def test_what_makes_no_task_is_refused(values, asked, message):
    with pytest.raises(UserError, match=message):
        task_of([values], "kind", asked)


def test_numbers_of_classes_stay_so_in_a_part_of_the_rows():
    common = [i for i in range(50) if not 9 < i < 20]
    labels = [*range(10, 20), *common * 10]  # without a gap, but not in the rows that are taken
    with held({"image": [np.zeros((8, 8), np.uint8)] * 410, "label": labels}, finished_modality()) as name:
        assert splits(Data(name=name), finished_modality(), "train", None, 100).task.name == "classes"


def test_decimals_are_numbers():
    text = MODALITIES["text"]()
    with held({"text": list("abcd"), "label": [*map(Decimal, ("1.5", "2", "3")), None]}, text) as name:
        rows, values = labelled(load(Data(name=name), text), "train")
    assert values == [1.5, 2, 3] and len(rows) == 3


def test_labels_that_differ_in_capitals_or_accents_are_pointed_at(capsys):
    text = MODALITIES["text"]()
    for labels, told in (
        (["Cat ", "dog", "cat"], True),
        (["e\u0301", "a", "a|\u00e9"], True),
        (["a", "b", "a "], False),
    ):
        with held({"text": list("abc"), "label": labels}, text) as name:
            labelled(load(Data(name=name), text), "train")
        assert ("count as two" in capsys.readouterr().out) == told


def test_a_split_without_the_column_of_labels_is_not_judged_on(tmp_path, capsys):
    text = MODALITIES["text"]()
    for column, named in (("label", None), ("target", "target")):
        folder = tmp_path / column
        folder.mkdir()
        (folder / "train.csv").write_text(f"text,{column}\n" + "one,a\ntwo,b\n" * 10)
        (folder / "test.csv").write_text("text\nthree\n")
        found = splits(Data(name=str(folder), label_column=named), text, "train", None, 100)
        assert len(found.learn) == 16 and len(found.judge) == 4
        assert f"split test: no row has a label in column {column!r}: not judged on" in capsys.readouterr().out


@pytest.mark.parametrize("y", [np.arange(300) % 3, np.arange(300) / 7, np.eye(3)[np.arange(300) % 3]])
def test_no_group_is_on_both_sides(y):
    groups = np.array([f"p{i // 4}" for i in range(300)])
    learn, judge = hold_out(y, 1000, groups)
    assert not set(groups[learn]) & set(groups[judge]) and len(learn) + len(judge) == 300
    assert 40 <= len(judge) <= 80
    few = hold_out(np.array([0, 0, 1, 1]), 9, np.array(["a", "a", "b", "b"]))  # as far as it goes
    assert sorted(len(part) for part in few) == [2, 2]


def patients(folder, name=lambda p, i: f"patient_{p:04d}_{i}.png", count: int = 24, each: int = 3, **columns):
    """Pictures of patients, in a folder, with the columns of a metadata.csv."""
    folder.mkdir(parents=True)
    random, lines = np.random.default_rng(0), []
    for p in range(count):
        for i in range(each):
            file = folder / name(p, i)
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
            values = [of(p, i) for of in columns.values()]
            lines.append(",".join([name(p, i), *map(str, values)]))
    if columns:
        (folder / "metadata.csv").write_text("\n".join([",".join(["file_name", *columns]), *lines]) + "\n")
    return str(folder)


def rows_of(folder, **data):
    return load(Data(name=str(folder), **data), finished_modality())


def finished_modality():
    from triptych.modalities import Image

    return Image(8, 4)


def test_groups_are_of_columns_files_and_folders(tmp_path, capsys):
    columns = {"who": lambda p, i: p if p else "", "age": lambda p, i: 20 + p}
    folder = patients(tmp_path / "flat", **columns)
    found = {asked: groups_of(rows_of(folder, group=asked), "here") for asked in ("who", r"patient_(\d+)_", r"_\d+_")}
    assert "3 of 72 rows here have no who: they count as one" in capsys.readouterr().out
    for names in found.values():
        assert len(names) == 72 and len(set(names)) == 24 and len(set(names[:3])) == 1
    assert set(found[r"patient_(\d+)_"]) == {f"{p:04d}" for p in range(24)}
    nested = patients(tmp_path / "nested", lambda p, i: f"p{p}/{i}.png")
    assert len(set(groups_of(rows_of(nested, group="folder"), "here"))) == 24
    assert len(set(groups_of(rows_of(nested, group="file").select(range(9)), "here"))) == 9
    for asked, message in (("whom", r"no such column; did you mean who\?.*in no file's name"), ("(", "and no pattern")):
        with pytest.raises(UserError, match=message):
            groups_of(rows_of(folder, group=asked), "here")


def test_so_few_groups_that_no_error_is_known_are_pointed_at(tmp_path, capsys):
    for count, said in ((10, "only 2 groups (who) judge: what is called sure may"), (40, "")):
        columns = {"who": lambda p, i: f"p{p}", "label": lambda p, i: p % 2}
        data = patients(tmp_path / str(count), count=count, each=6, **columns)
        found = splits(Data(name=data, group="who"), finished_modality(), "train", None, 1000)
        output = capsys.readouterr().out
        assert said in output and ("groups (who)" in output) == bool(said)
        assert len(np.unique(found.groups)) == count // 5


def test_groups_are_held_out_of_training_whole():
    names = np.array([f"p{i // 5}" for i in range(5000)])
    learn, held = held_out(5000, 0.1, names)
    assert not set(names[learn]) & set(names[held]) and 300 < len(held) < 700 and len(learn) + len(held) == 5000
    again = held_out(2500, 0.1, names[2500:])[1]  # a group's lot is by its name
    assert set(names[2500:][again]) == {n for n in names[held] if int(n[1:]) >= 500}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (lambda p, i: f"patient_{p:04d}_{i}.png", r"patient_0000_0, patient_0000_1.*--group '\(\.\+\)"),
        (lambda p, i: f"{p}-take{i}-{p % 2}.png", r"0-take0-0, 0-take1-0"),
        (lambda p, i: f"p{p}/{i}.png", "--group folder"),
        (lambda p, i: f"{i}/p{p}.png", None),
        (lambda p, i: f"{'abc'[i]}/img_{p}.png", None),
        (lambda p, i: f"{p * 3 + i}.png", None),
    ],
)
def test_file_names_that_look_like_groups_are_pointed_at(name, said, tmp_path):
    rows = rows_of(patients(tmp_path / "data", name), label_column=None)
    rows.label = None if said == "--group folder" else "label"
    found = suspected(rows)
    assert found is None if said is None else re.search(said, found)
    rows.group = "file"
    assert suspected(rows) is None


def test_paragraphs_of_one_file_are_pointed_at(tmp_path):
    for i in range(12):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[i % 2] / f"{i}.txt").write_text("one\n\ntwo\n\nthree\n")
    texts = {unit: load(Data(name=str(tmp_path), document=unit), Text()) for unit in ("file", "paragraph")}
    assert suspected(texts["file"]) is None
    assert suspected(texts["paragraph"]).endswith("to keep these on one side: --group file")


def test_rows_to_learn_from_that_are_judged_are_left_out(tmp_path, capsys):
    cells, _ = support.cells("image", 40)
    made = datasets.DatasetDict()
    for split, first in (("train", 0), ("test", 16)):
        who = [f"p{(first + i) // 2}" for i in range(40)]
        made[split] = datasets.Dataset.from_dict({"image": cells, "label": ["a", "b"] * 20, "who": who})
        made[split] = made[split].cast_column("image", datasets.Image(decode=False))
    made.save_to_disk(tmp_path / "data")
    found = splits(Data(name=str(tmp_path / "data"), group="who"), finished_modality(), "train", None, 100)
    assert len(found.learn) == 16 and len(found.judge) == 40 and len(set(found.groups)) == 20
    assert "24 rows to learn from are of a who that is in test, too: left out" in capsys.readouterr().out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    finished("image", "mae", folder)
    return folder


def test_a_probe_of_each_task_with_groups(run, tmp_path, capsys):
    columns = {
        "who": lambda p, i: f"p{p}",
        "age": lambda p, i: 20.5 + p,
        "findings": lambda p, i: "ab|c"[: 1 + 3 * (p % 2)] if p % 5 else "",
        "rare": lambda p, i: "no" if p % 6 else "yes",
        "left": lambda p, i: p % 2,
        "right": lambda p, i: int(p % 3 == 0),
    }
    data = patients(tmp_path / "data", each=6, **columns)
    asked = {"age": "regression", "findings": "several", "rare": "classes", "left,right": "several"}
    others = {"regression": {"spearman"}, "several": {"auroc"}}
    others["classes"] = {"balanced_accuracy", "macro_f1", "auroc"}
    for label, task in asked.items():
        rows = probe(run, data, label_column=label, group="who", labels=[8], draws=3)
        said = capsys.readouterr().out
        assert {r["task"] for r in rows} == {task} and len(rows) == 3 * 2 * 2
        assert set(rows[0]["others"]) == others[task]
        for row in (r for r in rows if r["encoder"] == "pretrained"):
            for name, found in {row["measure"]: row, **row["others"]}.items():
                assert np.isfinite(found[name]) and found["above"]["random"]["error"] >= 0, (label, name)
        assert "rows are held out to judge, by who" in said and "groups" in said
        assert json.loads((run / "probe.json").read_text()) == rows
        if label == "rare":
            assert "macro F1 × 100" in said and "balanced accuracy × 100" in said  # classes are not even
        if label == "findings":
            assert "30 of 144 rows have no label" in said and "mAP at random" in said and "label by label" in said
            assert rows[0]["by_label"].keys() == {"a", "ab", "c"}
        if label == "age":
            assert "R² × 100" in said and "deviation" in said
