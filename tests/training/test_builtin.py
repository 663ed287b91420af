"""The built-in data sets are the same wherever and whenever they are made."""

import io

import numpy as np
import soundfile

from triptych.training.builtin.docstrings import docstrings, prose
from triptych.training.builtin.tones import TIMBRES, split


def test_tones_are_the_same_on_every_call():
    a, b = split(16, 1), split(16, 1)
    assert a["audio"] == b["audio"] and a["label"] == b["label"]
    assert a.features["label"].names == list(TIMBRES) and sorted(set(a["label"])) == list(range(8))
    assert split(16, 2)["audio"] != a["audio"]
    wave, rate = soundfile.read(io.BytesIO(a[0]["audio"]["bytes"]))
    assert (len(wave), rate) == (16_000, 16_000) and 0.05 < np.abs(wave).max() <= 0.9


def test_docstrings_are_the_same_again_and_import_nothing():
    first, second = docstrings(20), docstrings(20)
    for part in ("train", "test"):
        assert first[part].to_dict() == second[part].to_dict()
    texts = first["train"]["text"][:] + first["test"]["text"][:]
    assert len(texts) == len(set(texts)) and all(len(t.split()) >= 12 and len(t) <= 500 for t in texts)
    names = first["train"].features["label"].names
    assert len(names) >= 5 and set(first["train"]["label"]) == set(range(len(names)))
    assert prose("One line.\n\nParameters\n----------\nx : int") == "One line."
    assert prose("Two\nlines.\n\n>>> import numpy") == "Two lines."
