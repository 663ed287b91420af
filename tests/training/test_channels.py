"""Pictures whose channels lie in several columns: read as an array of them is, from names and from bytes."""

import io

import datasets
import numpy as np
import pytest
import torch
from finished import finished
from PIL import Image as pillow
from transformers import AutoImageProcessor

from triptych.embed import embed
from triptych.evaluation.features import extract
from triptych.export import export
from triptych.modalities import EVALUATION, BadSample, Image, Text
from triptych.probe import probe
from triptych.train import show
from triptych.training.errors import UserError
from triptych.training.settings import Data
from triptych.training.sources import fingerprint, load

BOTH = {"channels": 2, "value_range": (0, 4095)}


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    pillow.fromarray(values).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def data(tmp_path):
    """A csv that names a file a channel, the same as bytes in a table, and as arrays."""
    random, lines, rows = np.random.default_rng(0), ["red,nir,label"], []
    for kind in ("red", "nir", "arrays"):
        (tmp_path / kind).mkdir()
    for i in range(20):
        values = random.integers(0, 4096, (2, 12, 10)).astype(np.uint16)
        for name, channel in zip(("red", "nir"), values, strict=True):
            (tmp_path / name / f"{i:02d}.png").write_bytes(png(channel))
        np.save(tmp_path / "arrays" / f"{i:02d}.npy", values)
        lines.append(f"red/{i:02d}.png,nir/{i:02d}.png,{'ab'[i % 2]}")
        rows.append({name: {"bytes": png(channel)} for name, channel in zip(("nir", "red"), values[::-1], strict=True)})
    (tmp_path / "named.csv").write_text("\n".join(lines))
    kind = datasets.Image(decode=False)
    table = datasets.Dataset.from_list(rows).cast(datasets.Features({"nir": kind, "red": kind}))
    datasets.concatenate_datasets([table.select(range(7)), table.select(range(7, 20))]).save_to_disk(tmp_path / "held")
    return tmp_path


def test_they_are_what_an_array_of_them_is(data):
    image = Image(8, 4, **BOTH)
    arrays = load(Data(name=str(data / "arrays")), image)
    wanted = [image.read(cell).values for cell in arrays.table["image"]]
    for name, column in (("named.csv", "red,nir"), ("held", ["red", "nir"])):
        rows = load(Data(name=str(data / name), column=column), image)
        assert rows.column == "red,nir" and rows.table.column_names[-1] == "red,nir"
        assert all(torch.equal(image.read(c).values, v) for c, v in zip(rows.table["red,nir"], wanted, strict=True))
        picked = rows.select([19, 3])
        assert torch.equal(image.read(picked.table[0]["red,nir"]).values, wanted[19])
    rows = load(Data(name=str(data / "named.csv"), column="red,nir"), image)
    assert [path[-11:-4] for path in rows.paths()][:2] == ["/red/00", "/red/01"] and rows.label == "label"
    swapped = load(Data(name=str(data / "held"), column="nir,red"), image)
    assert torch.equal(image.read(swapped.table[4]["nir,red"]).values, wanted[4].flip(0))
    before = fingerprint(rows)
    (data / "nir" / "07.png").write_bytes(png(np.zeros((12, 10), np.uint16)))
    assert fingerprint(rows) != before


def test_how_it_is_read_is_shown_with_the_sizes_that_would_be_chosen(data, capsys):
    show({"data": {"name": str(data / "named.csv"), "column": "red,nir"}, "modality": "image"})
    said = capsys.readouterr().out
    assert "column 'red,nir' (as asked, a channel each)" in said
    assert "red/00.png: a picture of 10×12, 2 channels of uint16" in said and "unusable" not in said


def test_what_does_not_fit_is_a_bad_sample_that_names_the_column(data, tmp_path):
    image = Image(8, 4, **BOTH)
    rows = load(Data(name=str(data / "named.csv"), column="red,nir"), image)
    flat = np.zeros((12, 10), np.uint8)
    (data / "nir" / "00.png").write_bytes(png(np.zeros((9, 10), np.uint16)))
    (data / "nir" / "01.png").write_bytes(png(flat))
    (data / "nir" / "02.png").unlink()
    (data / "nir" / "03.png").write_bytes(b"nothing")
    said = (
        "sizes: red 10×12, nir 10×9",
        "kinds of values: red integers, nir bytes",
        "nir: no such file",
        "nir: not a readable picture",
    )
    for i, words in enumerate(said):
        with pytest.raises(BadSample, match=words):
            image.read(rows.table[i]["red,nir"])
    csv = (data / "named.csv").read_text().splitlines()
    (data / "named.csv").write_text("\n".join([csv[0], "red/00.png,,a", *csv[2:]]))
    rows = load(Data(name=str(data / "named.csv"), column="red,nir"), image)
    with pytest.raises(BadSample, match="nir: nothing there"):
        image.read(rows.table[0]["red,nir"])


@pytest.mark.parametrize(
    ("column", "modality", "words"),
    [
        ("red,nir", Image(8, 4, channels=3), "names 2 columns, each a channel, and modality.channels is 3: give"),
        ("red,blue", Image(8, 4, channels=2), "data.column 'blue': no such column"),
        ("red,nir", Text(max_length=16), "data.column 'red,nir': no such column"),
    ],
)
def test_what_cannot_be_is_refused(column, modality, words, data):
    with pytest.raises(UserError, match=words):
        load(Data(name=str(data / "named.csv"), column=column), modality)


def test_a_run_is_probed_embedded_and_exported_with_lines_that_make_its_pixels(data, tmp_path):
    name = str(data / "named.csv")
    options = {"data": {"name": name, "column": "red,nir"}}
    _, objective = finished("image", "mae", tmp_path / "run", BOTH, **options)
    image = objective.backbone.modality
    rows = load(Data(name=name, column="red,nir"), image)
    found = embed(tmp_path / "run")
    np.testing.assert_allclose(found, extract(objective.backbone, rows).x["native"], atol=1e-5)
    assert {r["data"] for r in probe(tmp_path / "run", labels=[2], draws=3)} == {name}
    export(tmp_path / "run", to=str(tmp_path / "exported"))
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "Channels: red, nir, in this order, each in a file of its own" in card
    code, scope = card.partition("```python\n")[2].partition("def features")[0], {}
    exec(code.replace('"."', f'"{tmp_path / "exported"}"'), scope)
    values = np.concatenate([scope["read"](data / column / "05.png") for column in ("red", "nir")])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "exported")
    theirs = processor(values, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
    view = image.view(image.read(rows.table[5]["red,nir"]), EVALUATION, 0)
    ours = image.uncut(image.prepare(image.collate([view], torch.zeros(1, dtype=torch.long))))
    torch.testing.assert_close(theirs, ours, atol=2e-6, rtol=1e-5)
    assert 'np.concatenate([read("red.png"), read("nir.png")])' in card
