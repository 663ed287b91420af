"""Vectors: those that the probe judges and stock `transformers` computes, of data of any kind, in a table; search."""

import importlib
import io
import re

import datasets
import numpy as np
import pyarrow.parquet as parquet
import pytest
import soundfile
import support
from finished import finished
from PIL import Image as pillow

from triptych import embed
from triptych.evaluation.features import extract, vectors
from triptych.export import export
from triptych.training.memory import held, tables
from triptych.training.settings import Data
from triptych.training.sources import load

module = importlib.import_module("triptych.embed")
OBJECTIVE = {"image": "mae", "audio": "mae", "text": "masked"}
SETTINGS = {"image": {"image_size": 16, "channels": 3}, "audio": {}, "text": {}}
# How a stranger reads a cell; `features` is the model card's.
READ = {
    "image": lambda features, cell: features(pillow.open(io.BytesIO(cell["bytes"]))),
    "audio": lambda features, cell: features(*soundfile.read(io.BytesIO(cell["bytes"]), dtype="float32")),
    "text": lambda features, cell: features(cell),
}


@pytest.fixture(scope="module", params=OBJECTIVE)
def trained(request, tmp_path_factory):
    """The modality's name, a run, its objective, and its export."""
    run = tmp_path_factory.mktemp(request.param) / "run"
    _, made = finished(request.param, OBJECTIVE[request.param], run, SETTINGS[request.param])
    return request.param, run, made, export(run)


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """A run of pictures, and a folder of six, of which one is a copy and one is none."""
    folder = tmp_path_factory.mktemp("pictures")
    finished("image", "mae", folder / "run", SETTINGS["image"])
    (folder / "data" / "inner").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a", "b", "c", "inner/d"):
        (folder / "data" / f"{name}.png").write_bytes(support.picture(random))
    (folder / "data" / "e.png").write_bytes((folder / "data" / "b.png").read_bytes())
    (folder / "data" / "bad.png").write_bytes(b"no picture")
    return folder / "run", folder / "data"


def long(modality: str) -> list:
    """Cells of which the last takes several windows."""
    some = support.cells(modality, 5)[0]
    if modality == "audio":
        some.append({"bytes": support.encoded(support.tone(0.5)), "path": None})
    return [*some, " ".join(support.sentences(20))] if modality == "text" else some


def test_vectors_are_the_probe_s_and_those_of_stock_transformers(trained):
    modality, run, made, folder = trained
    cells = long(modality)
    ours = embed(run, cells, batch=3)
    assert ours.dtype == np.float32 and ours.shape == (len(cells), made.backbone.pooled_width)
    (table,) = tables(cells, made.backbone.modality).values()
    rows = load_of(table, made.backbone.modality)
    np.testing.assert_array_equal(ours, extract(made.backbone, rows, batch=3).x["native"])
    np.testing.assert_allclose(embed(str(folder), table), ours, atol=2e-6)
    scope: dict = {}
    code = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[0]
    exec(code.replace('folder = "."', f'folder = "{folder}"').rpartition("print(")[0], scope)
    theirs = np.stack([READ[modality](scope["features"], cell).numpy() for cell in cells])
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("modality", OBJECTIVE)
def test_an_export_keeps_a_pooling_that_its_native_head_has_not(modality, tmp_path):
    finished(modality, "simclr", tmp_path / "run", SETTINGS[modality], pooling="pieces")
    cells = long(modality)
    theirs = embed(export(tmp_path / "run"), cells)
    np.testing.assert_allclose(theirs, embed(tmp_path / "run", cells), atol=2e-6)


def load_of(table, modality):
    with held(table, modality) as name:
        return load(Data(name=name), modality)


def test_pieces_and_layers_are_those_whose_mean_is_the_vector(trained):
    modality, run, made, _ = trained
    cells = long(modality)
    pieces, layers = embed(run, cells, pieces=True), embed(run, cells, every="layer")
    both = embed(run, cells, pieces=True, every="layer", batch=2)
    depth = made.backbone.encoder.depth
    assert layers.shape == (len(cells), depth + 1, made.backbone.width)
    np.testing.assert_allclose(layers[:, -1], embed(run, cells), atol=1e-6)
    assert np.abs(layers[:, 0] - layers[:, -1]).max() > 0.01
    means = embed(run, cells, pooling="pieces")
    for i in range(len(cells)):
        assert both[i].shape == (depth + 1, *pieces[i].shape)
        np.testing.assert_allclose(both[i][-1], pieces[i], atol=1e-5)
        if modality != "text" and i < 5 or len(pieces[i]) <= 15:  # of one window
            np.testing.assert_allclose(pieces[i].mean(0), means[i], atol=1e-5)
    if modality == "image":
        assert pieces.shape == (5, 16, 32)
    else:  # all windows, one after another
        assert len(pieces[-1]) > len(pieces[0])
    if modality == "text":
        ids = made.backbone.modality.tokenizer(cells[-1], add_special_tokens=False)["input_ids"]
        assert len(pieces[-1]) == len(ids) + -(-len(ids) // 14)  # each window ends with its own last token


def test_of_several_readers_pieces_come_in_their_order(trained):
    modality, _, made, _ = trained
    cells = [long(modality)[-1], *(long(modality) * 8)]
    few, one = (module_vectors(made.backbone, cells, workers=w) for w in (2, 0))
    assert few.keys() == one.keys() == set(range(len(cells)))
    for row in one:
        np.testing.assert_allclose(few[row], one[row], atol=1e-5)


def module_vectors(backbone, cells, workers):
    (table,) = tables(cells, backbone.modality).values()
    return vectors(backbone, load_of(table, backbone.modality), None, batch=4, workers=workers)[0]


def test_a_table_holds_row_path_and_vector(pictured, tmp_path, capsys):
    run, data = pictured
    module.main([str(run), "--data", str(data), "--to", str(tmp_path / "new" / "features.parquet"), "--batch", "2"])
    printed = capsys.readouterr()
    assert "1 of 6 rows cannot be read, such as row 2" in printed.err and "bad.png" in printed.err
    assert "features.parquet: 5 vectors" in printed.out
    table = parquet.read_table(tmp_path / "new" / "features.parquet")
    assert table.column_names == ["row", "path", "vector"]
    assert table["row"].to_pylist() == [0, 1, 3, 4, 5]
    assert table["path"].to_pylist() == ["a.png", "b.png", "c.png", "e.png", "inner/d.png"]
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["features.parquet"]
    ours = embed(run, data)
    assert np.isnan(ours[2]).all() and not np.isnan(np.delete(ours, 2, 0)).any()
    np.testing.assert_allclose(np.stack(table["vector"].to_numpy()), np.delete(ours, 2, 0), atol=1e-6)


def test_other_columns_are_not_decoded(pictured, tmp_path, capsys):
    run, data = pictured
    cells = [{"bytes": (data / name).read_bytes(), "path": None} for name in ("a.png", "bad.png")]
    kind = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": cells[:1] * 2, "mask": cells}, features=kind)
    table.to_parquet(tmp_path / "in.parquet")
    module.main([str(run), "--data", str(tmp_path / "in.parquet"), "--to", str(tmp_path / "out.parquet")])
    assert "2 vectors" in capsys.readouterr().out


def test_a_table_of_pieces_and_layers_has_a_vector_a_line(pictured, tmp_path):
    run, data = pictured
    to = tmp_path / "all.parquet"
    module.main([str(run), "--data", str(data), "--to", str(to), "--pieces", "--every", "layer", "--batch", "2"])
    table = parquet.read_table(to).to_pandas()
    assert list(table) == ["row", "path", "layer", "piece", "vector"] and len(table) == 5 * 3 * 16
    ours = embed(run, data, pieces=True, every="layer")
    for line in table.sample(20, random_state=0).itertuples():
        np.testing.assert_allclose(line.vector, ours[line.row, line.layer, line.piece], atol=1e-5)


def test_search_finds_neighbours_and_duplicates(pictured, capsys, monkeypatch):
    run, data = pictured
    monkeypatch.setattr(module, "CHUNK", 2)
    arguments = [str(run), "--data", str(data), "--query", str(data / "b.png"), "--neighbours", "3"]
    module.main([*arguments, "--duplicates", "1"])
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("nearest to b.png:")
    near = lines[start + 1 : start + 4]
    assert {line.split()[-1] for line in near[:2]} == {"b.png", "e.png"} and near[0].split()[0] == "1.0000"
    assert "1 pairs of 5 rows with a cosine of at least 1" in lines
    assert lines[-1].split() == ["1.0000", "rows", "1", "and", "4", "b.png", "e.png"]
    module.main([str(run), "--data", str(data), "--query", str(data)])  # more of them than are embedded together
    assert capsys.readouterr().out.count("nearest to") == 5


def test_a_query_may_be_words(tmp_path, capsys):
    finished("text", "masked", tmp_path / "run")
    (tmp_path / "lines.txt").write_text("river stone light\ngarden music winter\n\ntable paper window\n")
    module.main([str(tmp_path / "run"), "--data", str(tmp_path / "lines.txt"), "--query", "garden music winter"])
    first = capsys.readouterr().out.partition("nearest to")[2].splitlines()[1]
    assert first.split()[:3] == ["1.0000", "row", "1"] and "garden music winter" in first
    module.main([str(tmp_path / "run"), "--data", str(tmp_path / "lines.txt"), "--query", "table " * 100])
    assert "nearest to" in capsys.readouterr().out  # though no file can have a name as long as that


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{run}", "--data", "{data}"], "nothing to do: give --to features.parquet"),
        (["{run}", "--data", "{data}", "--to", "x.csv"], "--to x.csv: the table is written as parquet"),
        (["{run}", "--data", "{data}", "--neighbours", "2"], "--neighbours 2: of what? give --query"),
        (["{run}", "--data", "{data}", "--neighbours", "0"], "neighbours"),
        (["{run}", "--data", "{data}", "--duplicates", "1.5"], "duplicates"),
        (["{run}", "--data", "{data}", "--query", "nowhere.png"], "--query nowhere.png: not a built-in"),
        (["{run}", "--data", "{data}", "--to", "x.parquet", "--weights", "teacher"], "this objective has none"),
        (["{data}", "--data", "{data}", "--to", "x.parquet"], "holds no whole checkpoint"),
        (["{export}", "--to", "x.parquet"], "only a run has data of its own"),
        (["{export}", "--data", "{data}", "--to", "x.parquet", "--weights", "teacher"], "weights teacher"),
        (["no/such/model", "--data", "{data}", "--to", "x.parquet"], "no/such/model: no such folder"),
        (["{run}", "--data", "{data}", "--to", "x.parquet", "--pooling", "mean"], "pooling"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, pictured, tmp_path, monkeypatch):
    run, data = pictured
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "{export}":
        arguments = [str(export(run, to=str(tmp_path / "exported"))), *arguments[1:]]
    with pytest.raises(SystemExit) as stop:
        module.main([a.format(run=run, data=data) for a in arguments])
    said = str(stop.value)
    assert said.startswith("embed.py: ") and words in said and "\n" not in said, said
    assert not (tmp_path / "x.parquet").exists()


def test_an_export_of_deep_pictures_has_its_range(tmp_path):
    finished("image", "mae", tmp_path / "run", SETTINGS["image"] | {"value_range": [0, 4095]})
    deep = [np.random.default_rng(i).integers(0, 200 * i + 2, (12, 12)).astype(np.uint16) for i in range(1, 4)]
    np.testing.assert_allclose(embed(export(tmp_path / "run"), deep), embed(tmp_path / "run", deep), atol=2e-6)


def test_the_function_is_the_function_whatever_was_imported():
    import triptych

    assert triptych.embed is module.embed and triptych.pretrain.__name__ == "pretrain"
