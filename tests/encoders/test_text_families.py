"""Families of text: hidden states, vectors, logits and weights are the native class's, and planted faults show."""

import json
import os
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM, AutoTokenizer

from triptych.encoders import encoder as trunk
from triptych.encoders.native import FAMILIES, make, start_from
from triptych.modalities import EVALUATION, Text
from triptych.objectives import Masked, SimCLR
from triptych.training.command_line import read

WORDS = "river stone light garden music winter table paper window forest market child engine sugar letter".split()
# Head width 12, and heads, depth and number of texts differ; every native text is longer than two windows of 2.
SIZE = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
MODERN = {"local_attention": 4, "classifier_pooling": "mean"}
PIECES, BYTES = "pieces", "bytes"  # tokenizers: BERT's, with the padding at 0, and RoBERTa's, with it at 1
CASES = {
    "roberta-prelayernorm": ("RobertaPreLayerNorm", BYTES, {"layer_norm_eps": 1e-5}),
    "bert": ("Bert", PIECES, {"max_position_embeddings": 70}),
    "roberta": ("Roberta", BYTES, {"layer_norm_eps": 1e-5, "type_vocab_size": 1, "max_position_embeddings": 70}),
    "xlm-roberta": ("XLMRoberta", BYTES, {"layer_norm_eps": 1e-5, "max_position_embeddings": 70}),
    "modernbert": ("ModernBert", PIECES, MODERN),
    "nomic_bert": ("NomicBert", PIECES, {}),
    "eurobert": ("EuroBert", BYTES, {}),
}
# The other native classes rotate, or take RMS norms, in float32.
EXACT = ("roberta-prelayernorm", "bert", "roberta", "xlm-roberta")


def tolerance(name):
    return 1e-10 if name in EXACT else 3e-6


@pytest.fixture(scope="module")
def texts():
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, n)) for n in (14, 9, 21, 11, 17)]


@pytest.fixture(scope="module")
def tokenizers(texts, tmp_path_factory):
    """Folders of both kinds."""
    made = {kind: tmp_path_factory.mktemp(kind) for kind in (PIECES, BYTES)}
    text = Text(vocab_size=300, max_length=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        text.fit(datasets.Dataset.from_dict({"text": texts}), "text")
    text.save(str(made[BYTES]))
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    transformers.BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(made[PIECES])
    return made


def published(name, folder, tokenizer, kind="ForMaskedLM", **more):
    """A checkpoint that this project did not make, every parameter random."""
    prefix, _, own = CASES[name]
    roles = AutoTokenizer.from_pretrained(tokenizer)
    ids = {"pad_token_id": roles.pad_token_id, "bos_token_id": roles.cls_token_id, "eos_token_id": roles.sep_token_id}
    if name == "modernbert":
        ids |= {"cls_token_id": roles.cls_token_id, "sep_token_id": roles.sep_token_id}
    if name == "eurobert":
        ids |= {"mask_token_id": roles.mask_token_id}
    config = getattr(transformers, f"{prefix}Config")(vocab_size=320, **SIZE | ids | own | more)
    native = getattr(transformers, prefix + kind)(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    native.save_pretrained(folder)
    roles.save_pretrained(folder)
    return native.eval()


@pytest.fixture(scope="module")
def checkpoint(tokenizers, tmp_path_factory):
    """`checkpoint(name, kind)`: a folder and the native model in it, made once."""
    made = {}

    def get(name, kind="ForMaskedLM"):
        if (name, kind) not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name, kind] = folder, published(name, folder, tokenizers[CASES[name][1]], kind)
        return made[name, kind]

    return get


def begin(folder, objective=Masked, encoder=None, **modality):
    """Ours, as a run starts from a checkpoint."""
    start = start_from(str(folder), "text")
    text = Text(**start.modality | modality)
    text.fit(None, "text")
    backbone = make(text, start.family.name, start.pooling, **start.encoder | (encoder or {}))
    start.load(backbone)
    made = objective(backbone)
    start.load_heads(made)
    return start, made.eval()


def packed(text, texts):
    """All texts in as few rows as there are."""
    samples = [text.view(text.read(t), EVALUATION, i) for i, t in enumerate(texts)]
    return text.prepare(text.collate(samples, torch.arange(len(texts))))


def differences(objective, native, texts, folder):
    """Largest relative difference of every hidden state, of the vector and of the logits; ours are packed."""
    backbone, dtype = objective.backbone, next(native.parameters()).dtype
    view, leads = packed(backbone.modality, texts), backbone.embedding.leads
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = native(**inputs, output_hidden_states=True)
        layers = backbone.to(dtype).encoder(*backbone.tokens(view), every_layer=True)
        vector, logits = backbone(view), objective.to(dtype).head(backbone.split(layers[-1], view).pieces)
    assert len(layers) == len(theirs.hidden_states) and view.samples.shape[1] > 1
    found = {}

    def compare(name, ours, theirs):
        found[name] = max(found.get(name, 0), ((ours - theirs).abs().max() / theirs.abs().max()).item())

    seen = inputs["attention_mask"][..., None]
    last = theirs.hidden_states[-1]
    wanted = last[:, 0] if backbone.pooling == "lead" else (last * seen).sum(1) / seen.sum(1)
    compare("vector", vector, wanted)
    slots = view.samples.shape[1] * leads
    for i in range(len(texts)):
        here = view.segment == i + 1
        length = here.sum()
        assert length + 1 == seen[i].sum()
        compare("logits", logits[here], theirs.logits[i, 1 : 1 + length])
        for number, (ours, its) in enumerate(zip(layers, theirs.hidden_states, strict=True)):
            compare(f"layer {number}", ours[:, slots:][here], its[i, 1 : 1 + length])
            compare(f"lead {number}", ours[:, :slots][view.samples == i + 1], its[i, :1])
    # Nothing of the encoder is left over.
    found["kept"] = float(any("pooler" not in name for name in backbone.native.kept))
    return found


def compared(name, checkpoint, texts):
    folder, native = checkpoint(name)
    _, objective = begin(folder)
    dtype = torch.float64 if name in EXACT else torch.float32
    return differences(objective, native.to(dtype), texts, folder)


@pytest.mark.parametrize("name", CASES)
def test_every_hidden_state_vector_and_logit_is_the_native_one(name, checkpoint, texts):
    found = compared(name, checkpoint, texts)
    assert max(found.values()) < tolerance(name), found


@pytest.mark.parametrize("name", CASES)
def test_packed_is_alone(name, checkpoint, texts):
    """Also with windows, and with rows of other company."""
    objective = begin(checkpoint(name)[0])[1].double()
    backbone, text = objective.backbone, objective.backbone.modality
    with torch.no_grad():
        together = backbone(packed(text, texts))
        alone = torch.cat([backbone(packed(text, [t])) for t in texts])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def same_files(first, second):
    """Two saved models have the same tensors bit for bit, and the same configuration."""
    states = [transformers.modeling_utils.load_state_dict(str(f / "model.safetensors")) for f in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert json.loads((first / "config.json").read_text()) == json.loads((second / "config.json").read_text())


@pytest.mark.parametrize("kind", ["ForMaskedLM", "Model"])
@pytest.mark.parametrize("name", CASES)
def test_native_to_ours_to_native_is_equal_bit_for_bit(name, kind, checkpoint, tmp_path):
    folder, native = checkpoint(name, kind)
    start, objective = begin(folder, Masked if kind == "ForMaskedLM" else SimCLR)
    back = start.family.export(objective.backbone, objective.head)
    assert type(back) is type(native)
    back.save_pretrained(tmp_path)
    same_files(folder, tmp_path)  # dropout and poolers too
    _, info = type(native).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info


@pytest.mark.parametrize("name", CASES)
def test_after_ten_steps_the_export_is_still_ours(name, checkpoint, texts, tmp_path):
    folder, _ = checkpoint(name)
    start, objective = begin(folder)
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-2)
    view = packed(objective.backbone.modality, texts)
    losses = []
    for _ in range(10):
        loss = objective([view])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    start.family.export(objective.backbone, objective.head).save_pretrained(tmp_path)
    native = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    dtype = torch.float64 if name in EXACT else torch.float32
    found = differences(objective.eval(), native.to(dtype), texts, folder)
    assert max(found.values()) < tolerance(name), found


@pytest.mark.parametrize("name", CASES)
def test_from_nothing_by_name(name, tokenizers, texts, tmp_path):
    text = Text(str(tokenizers[CASES[name][1]]), max_length=64)
    text.fit(None, "text")
    torch.manual_seed(0)
    objective = Masked(make(text, name, width=24, depth=3, heads=2))
    family = FAMILIES[name]
    family.export(objective.backbone, objective.head).save_pretrained(tmp_path)
    text.save(str(tmp_path))
    native, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(native).__name__ == family.masked_class and not info["missing_keys"]
    assert native.config.pad_token_id == text.padding and native.config.vocab_size == text.rows
    inputs = AutoTokenizer.from_pretrained(tmp_path)(texts[:2], padding=True, return_tensors="pt")
    with torch.no_grad():
        view = packed(text, texts[:2])
        ours = objective.backbone.encode(view).leads[view.samples > 0][:, 0]
        its = native.eval()(**inputs, output_hidden_states=True).hidden_states[-1][:, 0]
    torch.testing.assert_close(ours[view.samples[view.samples > 0].argsort()], its, rtol=0, atol=1e-5)
    # The classifier begins with our encoder; what is new is its head alone.
    _, info = getattr(transformers, family.classifier).from_pretrained(tmp_path, output_loading_info=True)
    new = ("classifier.", "dense.", "head.", "nomic_bert.pooler.")  # Nomic's file has no pooler
    assert info["missing_keys"] and all(k.startswith(new) for k in info["missing_keys"]), info


# Planted faults: what a family says wrongly, or what the encoder does wrongly, is seen by the comparison above.


def by_column(segment, place, window, wanted):
    columns = None if place is None else torch.arange(place.shape[1])[None, :, None].expand_as(place)
    return RIGHT_MASK(segment, columns, window, wanted)


RIGHT_MASK = trunk.attention_mask
BERT_VARIANT, ROBERTA_VARIANT = FAMILIES["bert"].variant, FAMILIES["roberta"].variant


def default(family, **changes):
    """The family's arguments with others among them; its configuration's words for them are not asked."""
    old = FAMILIES[family].default

    def made(width, depth):
        return old(width, depth) | changes

    said = FAMILIES[family].settings

    def settings(config):
        return {key: value for key, value in said(config).items() if key not in changes}

    return [(family, "default", made), (family, "settings", settings)]


def swapped(family):
    names = {"mlp.gate": "mlp.up", "mlp.up": "mlp.gate"}
    both = ("mlp.gate", "mlp.up")
    trunk = {names.get(k, both[::-1] if k == both else k): v for k, v in FAMILIES[family].trunk.items()}
    return [(family, "trunk", trunk)]


def variant(family, **changes):
    return [(family, "variant", replace(FAMILIES[family].variant, **changes))]


FAULTS = {
    "modernbert: one theta for both": default("modernbert", local_theta=160_000.0),
    "modernbert: silu for gelu": default("modernbert", activation="silu"),
    "modernbert: tanh-gelu for gelu": default("modernbert", activation="gelu_tanh"),
    "modernbert: gate and up swapped": swapped("modernbert"),
    "modernbert: window 1 for 2": default("modernbert", windows=(0, 1, 1)),
    "modernbert: window 3 for 2": default("modernbert", windows=(0, 3, 3)),
    "modernbert: no windows": default("modernbert", windows=(0, 0, 0)),
    "modernbert: windows in every block": default("modernbert", windows=(2, 2, 2)),
    "modernbert: windows by column": [(trunk, "attention_mask", by_column)],
    "modernbert: a norm before the first attention": default("modernbert", first_norm=True),
    "modernbert: eps 1e-6 for 1e-5": default("modernbert", eps=1e-6),
    "modernbert: head with silu": variant("modernbert", head_activation="silu"),
    "bert: pre for post": default("bert", order="pre"),
    "bert: eps 1e-6 for 1e-12": default("bert", eps=1e-6),
    "bert: places from the padding on": variant("bert", after_padding=True),
    "bert: token types left out": variant("bert", types=0),
    "bert: no norm of the embedding": variant("bert", norm=False),
    "bert: no query bias": default("bert", biases=("key", "value", "out", "mlp")),
    "bert: no key bias": default("bert", biases=("query", "value", "out", "mlp")),
    "roberta: places from 0": variant("roberta", after_padding=False),
    "roberta: tanh-gelu for gelu": default("roberta", activation="gelu_tanh"),
    "roberta-prelayernorm: post for pre": default("roberta-prelayernorm", order="post"),
    "nomic_bert: theta 10,000 for 1,000": default("nomic_bert", theta=10_000.0),
    "nomic_bert: gate and up swapped": swapped("nomic_bert"),
    "nomic_bert: no rotation": default("nomic_bert", theta=None),
    "nomic_bert: head with gelu": variant("nomic_bert", head_activation="gelu"),
    "eurobert: LayerNorm for RMS": default("eurobert", norm="layer", norm_bias=False),
    "eurobert: a norm of the embedding": variant("eurobert", norm=True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault, checkpoint, texts, monkeypatch):
    name = fault.partition(":")[0]
    compared(name, checkpoint, texts)  # without it all goes well, up to the end
    for owner, attribute, value in FAULTS[fault]:
        monkeypatch.setattr(FAMILIES[owner] if isinstance(owner, str) else owner, attribute, value)
    try:
        found = compared(name, checkpoint, texts)
    except (ValueError, RuntimeError):  # shapes do not fit, or it is refused
        return
    assert max(found.values()) > 3 * tolerance(name), found


# What came in goes out: the files of a sentence encoder, its tokenizer, its settings.

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
POOLING = {"word_embedding_dimension": 24, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


@pytest.fixture
def sentences(tokenizers, tmp_path):
    """A sentence encoder as `sentence-transformers` leaves one."""
    folder = tmp_path / "sentences"
    published("bert", folder, tokenizers[PIECES], "Model")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(POOLING))
    (folder / "modules.json").write_text(json.dumps(MODULES))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    inner = json.loads((folder / "tokenizer.json").read_text())  # as MiniLM's: it truncates and pads by itself
    inner["truncation"] = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(inner))
    return folder


def run(folder, to, texts, **options):
    (to.parent / "texts.txt").write_text("\n".join(texts * 4))
    head = {"hidden": 16, "out": 8}
    return {
        "modality": "text",
        "objective": {"name": "byol", "head": head},
        "data": str(to.parent / "texts.txt"),
        "init_from": str(folder),
        "output_dir": str(to),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "dataloader_num_workers": 0,
        "device": "cpu",
    } | options


def test_a_teacher_begins_at_the_start_and_all_that_came_goes_out(sentences, texts, tmp_path, monkeypatch):
    """train.py's own path: every teacher's backbone is the published encoder, bit for bit; the export has its files."""
    from triptych.export import export
    from triptych.train import pretrain
    from triptych.training.settings import Config

    seen, build = [], Config.build_objective

    def spied(self, modality, start=None):
        made = build(self, modality, start)
        if start is not None:
            native = FAMILIES["bert"].export(made.averaged()).state_dict()
            seen.append({name: tensor.clone() for name, tensor in native.items()})
        return made

    monkeypatch.setattr(Config, "build_objective", spied)
    pretrain(run(sentences, tmp_path / "run", texts, **{"modality.max_length": 32}))
    start = transformers.BertModel.from_pretrained(sentences)
    assert len(seen) == 1 and seen[0].keys() == start.state_dict().keys()
    assert all(torch.equal(tensor, seen[0][name]) for name, tensor in start.state_dict().items())

    made = export(tmp_path / "run")
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        assert (made / name).read_text() == (sentences / name).read_text()
    back = transformers.BertModel.from_pretrained(made)
    assert torch.equal(back.pooler.dense.weight, start.pooler.dense.weight)  # brought, not trained
    assert not torch.equal(back.encoder.layer[0].output.dense.weight, start.encoder.layer[0].output.dense.weight)
    assert back.config.hidden_dropout_prob == 0.1 and back.config.max_position_embeddings == 70
    # The tokenizer is what stock transformers makes of the published one.
    AutoTokenizer.from_pretrained(sentences).save_pretrained(tmp_path / "stock")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        ours, stock = (json.loads((f / name).read_text()) for f in (made, tmp_path / "stock"))
        assert ours == stock, name


@pytest.mark.parametrize(
    "said, pooling, mode",
    [
        ({}, "tokens", (False, True)),
        ({"pooling": "tokens"}, "tokens", (False, True)),
        ({"pooling": "lead"}, "lead", (True, False)),
        ({"pooling": "pieces"}, "pieces", None),
    ],
)
def test_the_user_s_pooling_goes_before_the_checkpoint_s(said, pooling, mode, sentences, texts, tmp_path):
    start = start_from(str(sentences), "text")
    config = read(run(sentences, tmp_path / "run", texts, **said))
    config.adopt(start)
    text = config.build_modality()
    text.fit(None, "text")
    backbone = config.build_objective(text, start).backbone
    assert backbone.pooling == pooling and text.max_length == 70
    files = start.family.files(backbone, start.model)
    if mode is None:
        assert list(files) == ["sentence_bert_config.json"]  # the window alone
        return
    out = json.loads(files["1_Pooling/config.json"])
    assert (out["pooling_mode_cls_token"], out["pooling_mode_mean_tokens"]) == mode


@pytest.mark.parametrize("pooling", ["pooling_mode_max_tokens", "pooling_mode_lasttoken"])
def test_a_pooling_that_is_none_of_ours_is_said(pooling, sentences, capsys):
    (sentences / "1_Pooling/config.json").write_text(
        json.dumps(POOLING | {"pooling_mode_mean_tokens": False, pooling: True})
    )
    assert start_from(str(sentences), "text").pooling is None
    assert f"pooling {pooling.removeprefix('pooling_mode_')}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "came", [{"pooling_mode_weightedmean_tokens": True}, {"pooling_mode": ["cls", "mean"]}, {"pooling_mode": "max"}]
)
def test_a_pooling_that_is_none_of_ours_goes_out_as_the_run_s(came, sentences):
    from sentence_transformers import SentenceTransformer

    (sentences / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 24} | came))
    start, objective = begin(sentences, SimCLR)
    assert start.pooling is None and objective.backbone.pooling == "lead"
    files = start.family.files(objective.backbone, start.model)
    (sentences / "1_Pooling/config.json").write_text(files["1_Pooling/config.json"])
    words = SentenceTransformer(str(sentences), device="cpu").encode("river")
    ids = AutoTokenizer.from_pretrained(sentences)("river", return_tensors="pt")
    with torch.no_grad():
        first = transformers.BertModel.from_pretrained(sentences)(**ids).last_hidden_state[0, 0]
    np.testing.assert_allclose(words, first, atol=1e-5)


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json"])
def test_a_damaged_file_is_named(name, sentences):
    (sentences / name).write_text("{")
    with pytest.raises(ValueError, match=f"init_from {sentences}: its {name} cannot be read: Expecting"):
        start_from(str(sentences), "text")


def test_a_module_with_weights_stays_behind_and_is_named(sentences, capsys):
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (sentences / "modules.json").write_text(json.dumps([*MODULES, dense]))
    start = start_from(str(sentences), "text")
    assert "its module Dense is not trained" in capsys.readouterr().out
    assert start.pooling == "tokens" and list(start.native.files) == ["1_Pooling/config.json"]


def test_what_was_brought_survives_a_checkpoint(sentences, tmp_path):
    from triptych.encoders.native import Native

    start, _ = begin(sentences, SimCLR)
    start.native.save(tmp_path / "native")
    again = Native.load(tmp_path / "native")
    assert again.files == start.native.files and again.config == json.loads(json.dumps(start.native.config))
    assert all(torch.equal(again.kept[name], tensor) for name, tensor in start.native.kept.items()) and again.kept


def test_a_pooler_beside_a_head_is_kept_too(checkpoint, tmp_path):
    """bert-base-uncased is a masked LM whose file holds a pooler, which the masked-LM class does not have."""
    folder, native = checkpoint("bert", "ForPreTraining")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    transformers.BertTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "mixed")
    (tmp_path / "mixed/config.json").write_text(json.dumps(config))
    (tmp_path / "mixed/model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    start, objective = begin(tmp_path / "mixed")
    assert torch.equal(objective.head.dense.weight, native.cls.predictions.transform.dense.weight)
    start.family.export(objective.backbone, objective.head).save_pretrained(tmp_path / "back")
    _, info = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert {k.split(".")[0] for k in info["missing_keys"]} == {"classifier"}
    back = transformers.BertModel.from_pretrained(tmp_path / "back")
    assert torch.equal(back.pooler.dense.weight, native.bert.pooler.dense.weight)


@pytest.mark.parametrize("name", ["bert", "nomic_bert", "modernbert", "eurobert"])
def test_a_brought_head_goes_out_where_it_is_asked_for(name, checkpoint):
    """With `keep_heads`, from an objective that has none: the tied decoder too."""
    folder, native = checkpoint(name)
    start, objective = begin(folder, SimCLR)
    back = start.family.export(objective.backbone, objective.head, keep_heads=True)
    assert type(back) is type(native)
    assert all(torch.equal(tensor, back.state_dict()[key]) for key, tensor in native.state_dict().items())


def test_a_sentence_encoder_has_no_head_and_that_is_said(sentences, capsys):
    begin(sentences)
    assert "there is no masked-LM head, so the head starts fresh" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXACT)
def test_a_decoder_is_refused(name, tokenizers, tmp_path):
    """Its tokens see those before them only: ours would see all, and the export's would not."""
    published(name, tmp_path, tokenizers[CASES[name][1]], "Model", is_decoder=True)
    with pytest.raises(ValueError, match="it is a decoder"):
        start_from(str(tmp_path), "text")


def test_an_adapter_quantised_weights_and_no_padding_are_refused(tokenizers, tmp_path):
    """Of an adapted model the names are others, and its projections stayed random."""
    from peft import LoraConfig, get_peft_model

    published("roberta", tmp_path, tokenizers[BYTES], "Model")
    config = json.loads((tmp_path / "config.json").read_text())
    for change, words in (
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"its weights are quantised \(gptq\)"),
        ({"pad_token_id": None}, "has no pad_token_id"),
        ({}, "an adapter of peft"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        if not change:
            model = transformers.RobertaModel.from_pretrained(tmp_path)
            get_peft_model(model, LoraConfig(r=2, target_modules=["query"])).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=words):
            start_from(str(tmp_path), "text")


def test_planted_code_is_never_run(tokenizers, tmp_path):
    """Nomic's published files name classes of their own, in `auto_map`."""
    published("nomic_bert", tmp_path, tokenizers[PIECES])
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass A: pass\n")
    for file, kinds in (("config.json", ("AutoConfig", "AutoModel")), ("tokenizer_config.json", ("AutoTokenizer",))):
        settings = json.loads((tmp_path / file).read_text())
        value = {kind: "planted.A" if kind != "AutoTokenizer" else ["planted.A", None] for kind in kinds}
        (tmp_path / file).write_text(json.dumps(settings | {"auto_map": value}))
    start, objective = begin(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert not hasattr(start.family.export(objective.backbone).config, "auto_map")


def test_files_that_are_read_and_those_that_are_refused(checkpoint, tokenizers, tmp_path):
    folder, native = checkpoint("bert")
    for number, how in enumerate(({"max_shard_size": "20KB"}, {"dtype": torch.bfloat16}, {"dtype": torch.float16})):
        copy, to = transformers.BertForMaskedLM.from_pretrained(folder), tmp_path / str(number)
        copy.to(how.pop("dtype", torch.float32)).save_pretrained(to, **how)
        AutoTokenizer.from_pretrained(folder).save_pretrained(to)
        _, objective = begin(to)
        weight = objective.backbone.encoder.blocks[1].mlp.up.weight
        assert weight.dtype == torch.float32
        assert torch.equal(weight, copy.state_dict()["bert.encoder.layer.1.intermediate.dense.weight"].float())
    assert list((tmp_path / "0").glob("model-0000*-of-*"))
    pickled = tmp_path / "pickled"
    native.config.save_pretrained(pickled)
    torch.save(native.state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="init_from .*safetensors.*; pickles .* are not read: .*save_pretrained"):
        start_from(str(pickled), "text")


def test_a_revision_is_asked_for(monkeypatch):
    """The hub is asked for the pinned commit: for the modality, for the model and then for the tokenizer."""
    asked = []

    def refuse(path, **hub):
        asked.append(hub.get("revision"))
        raise OSError("no network")

    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", refuse)
    read({"data": "texts", "modality": "text", "init_from": "me/encoder", "init_revision": "0123abc"})
    read({"data": "texts", "init_from": "me/encoder", "init_revision": "0123abc"})
    with pytest.raises(ValueError, match="init_from me/encoder: no network"):
        start_from("me/encoder", "text", "0123abc")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ValueError, match="no network"):
        Text("me/encoder", tokenizer_revision="0123abc").fit(None, "text")
    assert asked == ["0123abc"] * 3


@pytest.mark.parametrize(
    "name, argument, words",
    [
        ("bert", {"norm": "rms"}, "encoder.norm rms: the native class BertModel has layer only"),
        ("bert", {"theta": 1e4}, "encoder.theta"),
        ("modernbert", {"first_norm": True}, "encoder.first_norm"),
        ("modernbert", {"biases": ("query",)}, r"encoder.biases \['query'\]: .* \[\] or \['mlp'\] or"),
        (
            "modernbert",
            {"depth": 2, "windows": (1, 3)},
            r"encoder.windows \[1, 3\]: .* windows of one width only, and 0",
        ),
        ("nomic_bert", {"biases": ("query",)}, "encoder.biases"),
    ],
)
def test_what_the_native_class_cannot_say_is_refused_before_training(name, argument, words):
    with pytest.raises(ValueError, match=words):
        FAMILIES[name].architecture(**argument)


def test_windows_of_128_tokens_and_longer_ones_on_request(tokenizers, tmp_path, texts):
    """ModernBERT's 8,192 places would be its windows; a window that the table has no places for is refused."""
    published("modernbert", tmp_path / "modern", tokenizers[PIECES])
    published("bert", tmp_path / "bert", tokenizers[PIECES])
    for name, given, length in (("modern", {}, 128), ("modern", {"max_length": 512}, 512), ("bert", {}, 70)):
        config = read(run(tmp_path / name, tmp_path / "run", texts, modality={"name": "text"} | given))
        config.adopt(start_from(str(tmp_path / name), "text"))
        assert config.build_modality().max_length == length
    config = read(run(tmp_path / "bert", tmp_path / "run", texts, modality={"name": "text", "max_length": 512}))
    config.adopt(start_from(str(tmp_path / "bert"), "text"))
    with pytest.raises(ValueError, match="modality.max_positions 70 is below modality.max_length 512"):
        config.build_modality()


def checkpoints():
    """Real checkpoints of texts, in a folder that `TRIPTYCH_CHECKPOINTS` names."""
    found = sorted(Path(os.environ.get("TRIPTYCH_CHECKPOINTS", os.devnull)).glob("*/config.json"))
    return [f.parent for f in found if json.loads(f.read_text()).get("model_type") in CASES]


@pytest.mark.parametrize("folder", checkpoints(), ids=str)
def test_a_real_checkpoint(folder):
    """Vectors are the native ones, by the pooling that its files name; all weights go out again bit for bit."""
    texts = [
        "A man is playing a guitar.",
        "Zürich's trams run on time, mostly; 3 of 4 do.",
        "[MASK] in raw text is no token, they say. " * 3,
        "In 1904 he published a paper on the motion of small particles suspended in liquids at rest.",
    ]
    start, objective = begin(folder, SimCLR)
    backbone, tokenizer = objective.backbone, AutoTokenizer.from_pretrained(folder)
    native = getattr(transformers, start.family.base_class).from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(texts, padding=True, return_tensors="pt", split_special_tokens=True)
    with torch.no_grad():
        ours = backbone(packed(backbone.modality, texts))
        last = native(**inputs).last_hidden_state
    seen = inputs["attention_mask"][..., None]
    theirs = last[:, 0] if backbone.pooling == "lead" else (last * seen).sum(1) / seen.sum(1)
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    print(f"{folder.name}: pooling {backbone.pooling}, vectors {difference:.1e} apart")
    assert difference < 3e-6
    back = start.family.export(backbone).state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in native.state_dict().items())


def test_a_pooler_that_is_not_in_the_file_is_no_noise(checkpoint, tmp_path):
    """transformers fills what is missing at random; that was not brought, so the identity goes out."""
    folder, _ = checkpoint("bert")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertModel"]}
    transformers.BertTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    start, objective = begin(tmp_path, SimCLR)
    assert not start.native.kept
    back = start.family.export(objective.backbone)
    assert torch.equal(back.pooler.dense.weight, torch.eye(24)) and not back.pooler.dense.bias.any()
