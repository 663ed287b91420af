"""RoBERTa-PreLayerNorm: loss and gradient as the native class's, and weights there and back, bit for bit."""

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
    RobertaPreLayerNormModel,
    pipeline,
)

from triptych.encoders.native import FAMILIES, make, start_from
from triptych.modalities import EVALUATION, Text
from triptych.objectives import MAE, Decoder, Masked, SimCLR, masking
from triptych.training.command_line import read

FAMILY = FAMILIES["roberta-prelayernorm"]
WORDS = "river stone light garden music winter table paper window forest market child engine sugar letter".split()


@pytest.fixture(scope="module")
def texts():
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, random.integers(1, 30))) for _ in range(24)]


@pytest.fixture(scope="module")
def text(texts, tmp_path_factory):
    made = Text(vocab_size=300, max_length=48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        made.fit(datasets.Dataset.from_dict({"text": texts}), "text")
    return made


@pytest.fixture(scope="module")
def objective(text):
    torch.manual_seed(0)
    made = Masked(make(text, width=32, depth=3, heads=2))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.fixture(scope="module")
def export(objective, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    FAMILY.export(objective.backbone, objective.head).save_pretrained(folder)
    objective.backbone.modality.save(str(folder))
    return folder


def packed(text, texts, view=EVALUATION):
    samples = [text.view(text.read(t), view, i) for i, t in enumerate(texts)]
    return text.prepare(text.collate(samples, torch.arange(len(texts))))


def test_loss_and_gradient_equal_the_native_class(text, texts, objective):
    view = packed(text, texts)
    chosen = masking.hide(view, 0.3, "random", 3, text.hideable(view))
    data, hide = text.corrupt(view.data, chosen, masking.random(view, 3))
    seen = torch.where(hide, text.mask, data)
    objective.zero_grad()
    loss = objective([view])["loss"]
    loss.backward()

    native = FAMILY.export(objective.backbone, objective.head)
    length = 1 + max((view.segment == i + 1).sum().item() for i in range(len(texts)))
    ids = torch.full((len(texts), length), text.padding)
    labels = torch.full_like(ids, -100)
    ids[:, 0] = text.first
    for i in range(len(texts)):
        here = view.segment == i + 1
        ids[i, 1 : 1 + here.sum()] = seen[here]
        labels[i, 1 : 1 + here.sum()] = torch.where(chosen, view.data, -100)[here]
    output = native(input_ids=ids, attention_mask=(ids != text.padding).long(), labels=labels)
    output.loss.backward()
    torch.testing.assert_close(loss, output.loss, atol=1e-5, rtol=1e-5)
    gradient = {name: p.grad for name, p in native.named_parameters()}
    ours = objective.backbone
    prefix = "roberta_prelayernorm."
    pairs = {
        "embeddings.word_embeddings.weight": ours.embedding.words.weight.grad,
        "embeddings.position_embeddings.weight": ours.embedding.positions.weight.grad,
        "embeddings.token_type_embeddings.weight": ours.embedding.types.weight.grad,
        "embeddings.LayerNorm.weight": ours.embedding.norm.weight.grad,
        "encoder.layer.0.attention.self.key.weight": ours.encoder.blocks[0].attention.qkv.weight.grad.chunk(3)[1],
        "encoder.layer.1.output.dense.weight": ours.encoder.blocks[1].mlp.down.weight.grad,
        "LayerNorm.bias": ours.encoder.norm.bias.grad,
    }
    pairs = {prefix + name: grad for name, grad in pairs.items()} | {
        "lm_head.dense.weight": objective.head.dense.weight.grad,
        "lm_head.bias": objective.head.bias.grad,
    }
    for name, grad in pairs.items():
        torch.testing.assert_close(grad, gradient[name], atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_hidden_states_after_export_are_ours(text, texts, objective, export):
    tokenizer, native = AutoTokenizer.from_pretrained(export), AutoModel.from_pretrained(export).eval()
    view = packed(text, texts)
    with torch.no_grad():
        output = native(
            **tokenizer(texts, padding=True, truncation=True, return_tensors="pt"), output_hidden_states=True
        )
        layers = objective.backbone.encoder(*objective.backbone.tokens(view), every_layer=True)
        pooled = objective.backbone(view)
    torch.testing.assert_close(output.last_hidden_state[:, 0], pooled, atol=1e-5, rtol=1e-5)
    leads = view.samples.shape[1]
    for ours, theirs in zip(layers[:-1], output.hidden_states[:-1], strict=True):
        for i in range(len(texts)):
            pieces = ours[:, leads:][view.segment == i + 1]
            torch.testing.assert_close(pieces, theirs[i, 1 : 1 + len(pieces)], atol=1e-5, rtol=1e-5)


def test_without_head_the_pooler_is_deterministic(texts, text, objective, tmp_path):
    FAMILY.export(objective.backbone, None).save_pretrained(tmp_path)
    native = RobertaPreLayerNormModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        output = native(**text.tokenizer(texts[:2], padding=True, truncation=True, return_tensors="pt"))
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 0].tanh())


def test_native_classes_load_with_only_head_keys_new(export):
    _, info = AutoModelForMaskedLM.from_pretrained(export, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    _, info = AutoModelForSequenceClassification.from_pretrained(export, output_loading_info=True)
    assert info["missing_keys"] and all(k.startswith("classifier.") for k in info["missing_keys"])
    assert all(k.startswith("lm_head.") for k in info["unexpected_keys"])
    _, info = AutoModel.from_pretrained(export, output_loading_info=True)
    assert all(k.startswith("pooler.") for k in info["missing_keys"])


def test_fill_mask_gives_the_head_s_guess(text, objective, export):
    fill = pipeline("fill-mask", model=str(export))
    words = "river stone <mask> garden"
    ids = text.tokenizer(words, add_special_tokens=False)["input_ids"]  # raw text has no mask token
    view = packed(text, [{"ids": ids, "starts": [True] * len(ids)}])
    with torch.no_grad():
        guess = objective.head(objective.backbone.encode(view).pieces[view.data == text.mask])
    assert [g["token"] for g in fill(words, top_k=3)] == guess[0].topk(3).indices.tolist()


def published(folder, text, masked, **more):
    """A native checkpoint that this project did not make."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = RobertaPreLayerNormConfig(
        **sizes, vocab_size=320, max_position_embeddings=70, type_vocab_size=2, layer_norm_eps=1e-5, **more
    )
    native = (RobertaPreLayerNormForMaskedLM if masked else RobertaPreLayerNormModel)(config)
    for parameter in native.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    native.save_pretrained(folder)
    text.tokenizer.save_pretrained(folder)
    return native


@pytest.mark.parametrize("masked", [True, False])
def test_native_to_ours_to_native_is_equal_bit_for_bit(tmp_path, text, texts, masked):
    native = published(tmp_path, text, masked)
    start = start_from(str(tmp_path), "text")
    modality = Text(**start.modality)
    modality.fit(None, "text")
    backbone = make(modality, start.family.name, **start.encoder)
    start.load(backbone)
    objective = (Masked if masked else SimCLR)(backbone)
    start.load_heads(objective)
    back = start.family.export(backbone, objective.head)
    state, other = native.state_dict(), back.state_dict()
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, other[name]), name
    assert back.config.max_position_embeddings == 70 and back.config.vocab_size == 320
    assert modality.tokenizer.model_max_length == 48  # as it came
    with torch.no_grad():
        inputs = text.tokenizer(texts[:4], padding=True, truncation=True, return_tensors="pt")
        for a, b in zip(native.eval()(**inputs)[:1], back(**inputs)[:1], strict=True):
            assert torch.equal(a, b)


def test_starting_is_possible_with_shorter_windows_and_refused_with_another_padding(tmp_path, text):
    published(tmp_path, text, True)
    start = start_from(str(tmp_path), "text")
    for given, length in (({}, 68), ({"max_length": 16}, 16)):  # the checkpoint's, unless a run asks for less
        config = read({"modality": {"name": "text"} | given, "data": "texts.txt", "output_dir": "run"})
        config.adopt(start)
        modality = config.build_modality()
        assert (modality.max_length, modality.max_positions) == (length, 68)
    config.modality["max_length"] = 69
    with pytest.raises(ValueError, match="max_positions 68 is below modality.max_length 69"):
        config.build_modality()
    modality.fit(None, "text")
    backbone = make(modality, start.family.name, **start.encoder)
    start.load(backbone)
    start.load_heads(MAE(backbone, decoder=Decoder(16, 1)))  # the head has no use here
    start.model.config.pad_token_id = 3
    with pytest.raises(ValueError, match="pad token"):
        start.load(backbone)
