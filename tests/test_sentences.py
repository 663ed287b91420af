"""Exports of texts are folders of sentence-transformers, too: with our pooling, our vectors, and nothing to warn of."""

import json
import warnings

import numpy as np
import pytest
import support
from finished import finished
from sentence_transformers import SentenceTransformer

from triptych import embed
from triptych.encoders.native import start_from
from triptych.evaluation.load import opened
from triptych.export import export

WINDOW = {"max_length": 16, "max_positions": 40}


@pytest.mark.parametrize("objective, pooling, inner", [("simclr", "tokens", ""), ("masked", "lead", "0_Transformer")])
def test_they_load_with_our_pooling_and_without_a_warning(objective, pooling, inner, tmp_path, capfd):
    finished("text", objective, tmp_path / "run", WINDOW, pooling=pooling)
    folder = export(tmp_path / "run")
    assert json.loads((folder / "modules.json").read_text())[0]["path"] == inner
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SentenceTransformer(str(folder), device="cpu")
    told = capfd.readouterr()
    assert "REPORT" not in told.err + told.out and "arning" not in told.err + told.out
    assert model.max_seq_length == WINDOW["max_length"]
    short = ["river stone", "Light  garden.", "table"]
    ours = embed(tmp_path / "run", short)
    np.testing.assert_allclose(model.encode(short), ours, atol=1e-5)
    # By another pooling they are others, so that the above can fail.
    other = {"lead": "tokens", "tokens": "lead"}[pooling]
    assert np.abs(ours - embed(tmp_path / "run", short, pooling=other)).max() > 0.01
    texts = [*short, " ".join(support.sentences(9))]  # the last in several windows, as many as the run's
    np.testing.assert_allclose(embed(folder, texts), embed(tmp_path / "run", texts), atol=1e-5)


def test_a_pooling_without_a_word_leaves_them_behind(tmp_path, capsys):
    finished("text", "simclr", tmp_path / "run", pooling="pieces")
    folder = export(tmp_path / "run")
    assert "no word for pooling pieces" in capsys.readouterr().out
    assert not [f.name for f in folder.iterdir() if f.is_dir() or f.name == "modules.json"]
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == WINDOW["max_length"]


def test_what_came_keeps_its_words_and_finds_its_model_beside_a_head(tmp_path):
    finished("text", "masked", tmp_path / "run", pooling="tokens")
    folder = export(tmp_path / "run")
    start = start_from(str(folder), "text")
    assert start.pooling == "tokens" and start.own == {"max_length": 16}
    normal = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
    modules = [*json.loads(start.native.files["modules.json"]), normal]
    start.native.files["modules.json"] = json.dumps(modules)
    found = opened(folder)
    found.modality.fit([], "")
    backbone = found.build()
    backbone.native = start.native
    plain = json.loads(start.family.files(backbone, start.family.export(backbone))["modules.json"])
    assert plain == [modules[0] | {"path": ""}, *modules[1:]]
    headed = start.family.files(backbone, start.model)
    assert headed["modules.json"] == start.native.files["modules.json"]
    assert "0_Transformer/sentence_bert_config.json" in headed
