"""Families of text: hidden states, vectors, logits and weights are the native class's, and planted faults show."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM, AutoTokenizer

from encoders import encoder as trunk
from encoders.native import FAMILIES, make, start_from
from modalities import EVALUATION, Text
from objectives import Masked, SimCLR

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
