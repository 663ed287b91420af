"""Data in memory: arrays, paths and tables train, are probed and embedded like files with the same contents."""

import io

import datasets
import numpy as np
import pyarrow
import pytest
import soundfile
import support
import torch
from finished import finished
from PIL import Image as pillow

from triptych import embed, pretrain
from triptych.modalities import MODALITIES
from triptych.probe import probe
from triptych.training.errors import UserError
from triptych.training.memory import HELD, held, tables
from triptych.training.settings import Data
from triptych.training.sources import load

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 12, 10, 3), dtype=np.uint8)


def picture() -> bytes:
    file = io.BytesIO()
    pillow.fromarray(PIXELS[0]).save(file, "PNG")
    return file.getvalue()


def read(modality, value):
    """What a modality reads of a value in memory, as an array."""
    made = modality.read(modality.cell(value))
    return np.asarray(made.wave if hasattr(made, "wave") else getattr(made, "values", made))


def test_a_picture_is_the_same_in_every_shape(tmp_path):
    image = MODALITIES["image"](16, 4)
    (tmp_path / "a.png").write_bytes(picture())
    for value in (PIXELS[0], pillow.fromarray(PIXELS[0]), picture(), tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(read(image, value), PIXELS[0])
    np.testing.assert_array_equal(read(image, {"bytes": picture()}), PIXELS[0])
    turned = pillow.fromarray(PIXELS[0])
    turned.getexif()[0x0112] = 6
    assert read(image, turned).shape == (10, 12, 3)


def test_deep_pictures_keep_their_levels():
    image = MODALITIES["image"](16, 4, channels=1, value_range=(0, 4095))
    deep = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    assert len(np.unique(read(image, deep))) == 4096
    for value in (deep.astype(np.int64), deep.astype(np.float32), deep.astype(np.float64), deep[..., None], deep[None]):
        np.testing.assert_allclose(read(image, value), read(image, deep), atol=1e-7)  # the division's rounding
    many = np.arange(5 * 64, dtype=np.uint16).reshape(8, 8, 5)
    image = MODALITIES["image"](16, 4, channels=5, value_range=(0, 4095))
    for value in (many, np.moveaxis(many, 2, 0)):
        np.testing.assert_allclose(read(image, value), np.moveaxis(many, 2, 0) / 4095, atol=1e-7)


def test_a_sound_is_the_same_in_every_shape(tmp_path):
    audio, wave = MODALITIES["audio"](0.5, 16, (8, 4)), support.tone(0.4, 16_000)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    expected = read(audio, tmp_path / "a.wav")
    for value in ((wave, 16_000), (wave.astype(float), 16_000), {"array": wave, "sampling_rate": 16_000}):
        np.testing.assert_array_equal(read(audio, value), expected)
    np.testing.assert_allclose(read(audio, (np.stack([wave, wave], 1), 16_000)), expected, atol=1e-6)
    whole = np.round(wave * 2**15).astype(np.int16)
    np.testing.assert_array_equal(read(audio, (whole, 16_000)), whole / np.float32(2**15))


def test_a_text_is_words_or_a_file_of_them(tmp_path):
    (tmp_path / "a.txt").write_text("river stone")
    (table,) = tables(["river stone", tmp_path / "a.txt", None], MODALITIES["text"]()).values()
    assert table["text"][:] == ["river stone", "river stone", None]


@pytest.mark.parametrize(
    "modality, data, words",
    [
        ("image", [PIXELS[0], np.zeros((2, 3, 8, 9))], r"sample 1: .* \[height width\] or .*\[2, 3, 8, 9\]"),
        ("image", [np.zeros((8, 8), dtype=complex)], "sample 0: an array of complex128"),
        ("image", [3.5], r"an array \[height width\].* this one is \[\]"),
        ("image", 3.5, "give a list of them"),
        ("image", PIXELS[0], "sample 0: an array of 10x3: a row of one picture"),
        ("image", [], "no samples"),
        ("image", {"pictures": PIXELS}, "has its samples in 'image'; there are pictures"),
        ("image", {"image": PIXELS, "label": [1, 2]}, "2 values in 'label', 6 in 'image'"),
        ("image", {"image": PIXELS[:2], "label": ["a", 1]}, "'label' is no column of values of one kind"),
        ("image", [torch.zeros(8, 8, requires_grad=True)], "sample 0: .* requires grad"),
        ("audio", [np.zeros(900)], r"a wave with its rate: \(wave, 16000\)"),
        ("audio", [(np.zeros(900), "fast")], "rate of a wave .* not 'fast'"),
        ("audio", [(np.zeros((2, 900)), 8000)], r"\[samples channels\], this one is \[2, 900\]"),
        ("audio", [(np.zeros(900, dtype=bool), 8000)], "wave of bool"),
        ("text", [b"river"], "a text is words"),
        ("text", datasets.Dataset.from_dict({"text": ["a"]}).to_iterable_dataset(), "streams"),
    ],
)
def test_what_is_no_sample_is_named(modality, data, words):
    with pytest.raises(UserError, match=words):
        tables(data, MODALITIES[modality](*((16, 4) if modality == "image" else ())))


def test_a_frame_is_its_columns():
    import pandas

    text = MODALITIES["text"]()
    columns = {"text": ["a", None, "c"], "label": pandas.array([1, None, 0], dtype="Int64"), "kind": ["x", None, "y"]}
    frame = pandas.DataFrame(columns, index=[5, 6, 7]).astype({"kind": "category"})
    for data in (frame, columns, pyarrow.Table.from_pandas(frame, preserve_index=False)):
        (table,) = tables(data, text).values()
        assert table.to_dict() == {"text": ["a", None, "c"], "label": [1, None, 0], "kind": ["x", None, "y"]}


def test_it_is_known_by_its_name_as_long_as_it_is_held():
    image = MODALITIES["image"](16, 4)
    with held(PIXELS, image) as name, held(PIXELS[:2], image) as other:
        assert len(load(Data(name=name), image)) == 6 and len(load(Data(name=other), image)) == 2
    assert not HELD
    with pytest.raises(UserError, match=r"data \(in memory\) is of another call or process: give it again"):
        load(Data(name=name), image)


def test_arrays_train_go_on_and_are_probed_as_a_dataset_is(tmp_path, capsys):
    pixels = np.concatenate([PIXELS, 255 - PIXELS] * 4)
    config = support.config("image", "mae", tmp_path / "run", max_steps=2)
    pretrain(config, list(pixels))
    assert "48 rows of (in memory)" in capsys.readouterr().out
    longer = support.config("image", "mae", tmp_path / "run", max_steps=3)
    image = tables(pixels, config.build_modality())["train"]
    pretrain(longer, image)
    out = capsys.readouterr().out
    assert "step 2 of 3" in out and "takes the place" not in out
    with pytest.raises(UserError, match="other data|another"):
        pretrain(support.config("image", "mae", tmp_path / "run", max_steps=4), list(pixels[:-1]))
    with pytest.raises(UserError, match="give it again"):
        probe(tmp_path / "run")
    labels = ["bright" if i % 12 < 6 else "dark" for i in range(48)]
    columns = {"image": pixels, "label": labels}
    rows = probe(tmp_path / "run", columns, device="cpu")
    split = datasets.DatasetDict({"train": image.add_column("label", labels)})
    assert probe(tmp_path / "run", split, device="cpu") == rows
    with pytest.raises(UserError, match="has no labels"):
        probe(tmp_path / "run", list(pixels))


def test_a_dataset_is_embedded_as_its_column_is(tmp_path):
    finished("text", "masked", tmp_path)
    words = support.sentences(6)
    table = datasets.Dataset.from_dict({"title": ["x"] * 6, "text": words})
    np.testing.assert_array_equal(embed(tmp_path, table), embed(tmp_path, words))
    with pytest.raises(UserError, match="several columns|data.column"):
        embed(tmp_path, table.rename_column("text", "body"))
    np.testing.assert_array_equal(embed(tmp_path, table, column="text"), embed(tmp_path, words))
