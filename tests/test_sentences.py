"""Exports of texts are folders of sentence-transformers, too: with our pooling, our vectors, and nothing to warn of."""

import json
import warnings

import numpy as np
import pytest
import support
from finished import finished
from sentence_transformers import SentenceTransformer

from triptych import embed, pretrain
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


def came(folder, **settings):
    """An export of ours as somebody else might have published it: with a window, small letters and a prompt."""
    finished("text", "simclr", folder / "first", {"max_length": 16, "max_positions": 40}, pooling="tokens")
    out = export(folder / "first", to=str(folder / "in"))
    words = settings.pop("prompts", None)
    if words is not None:
        (out / "config_sentence_transformers.json").write_text(json.dumps(words))
    window = {"max_seq_length": 32, "do_lower_case": False} | settings
    (out / "sentence_bert_config.json").write_text(json.dumps(window))
    return out


def again(folder, source, **modality):
    """A run that started there, and its export."""
    pretrain(
        {
            "modality": {"name": "text", **modality},
            "init_from": str(source),
            "output_dir": str(folder / "run"),
            "per_device_train_batch_size": 4,
            "max_steps": 1,
            "device": "cpu",
        },
        data=support.sentences(16),
    )
    return export(folder / "run")


def test_what_comes_before_the_tokens_is_as_theirs(tmp_path, capfd):
    source = came(tmp_path, do_lower_case=True, prompts={"prompts": {"ask": "river "}, "default_prompt_name": "ask"})
    texts = ["River STONE", "Light garden."]
    theirs = SentenceTransformer(str(source), device="cpu")
    np.testing.assert_allclose(theirs.encode(texts, prompt=""), embed(source, texts), atol=1e-5)
    assert "puts its prompt 'ask' before every text; here none is put" in capfd.readouterr().out
    folder = again(tmp_path, source)
    back = SentenceTransformer(str(folder), device="cpu")
    assert back.default_prompt_name is None and back.prompts["ask"] == "river "
    np.testing.assert_allclose(back.encode(texts), embed(tmp_path / "run", texts), atol=1e-5)
    assert np.abs(embed(folder, texts) - embed(folder, [text.lower() for text in texts])).max() == 0


def test_the_run_s_window_goes_out(tmp_path, capsys):
    folder = again(tmp_path, came(tmp_path), max_length=20)
    assert "windows of 20 tokens, as the run's, not 32 (--modality.max_length 32)" in capsys.readouterr().out
    assert SentenceTransformer(str(folder), device="cpu").max_seq_length == 20
    texts = [" ".join(support.sentences(9))]
    np.testing.assert_allclose(embed(folder, texts), embed(tmp_path / "run", texts), atol=1e-5)


def test_a_module_that_normalises_makes_ours_of_unit_length(tmp_path):
    source = came(tmp_path)
    modules = json.loads((source / "modules.json").read_text())
    normal = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
    (source / "modules.json").write_text(json.dumps([*modules, normal]))
    texts = ["river stone", "light garden"]
    ours = embed(source, texts)
    theirs = SentenceTransformer(str(source), device="cpu").encode(texts)
    np.testing.assert_allclose(theirs, ours / np.linalg.norm(ours, axis=1, keepdims=True), atol=1e-5)
