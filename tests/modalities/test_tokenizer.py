"""Tokenizers, trained and from elsewhere, and the odd documents that they are given."""

import json
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from support import NOUNS, VERBS, sentences
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from triptych.encoders.native import make
from triptych.modalities import Text
from triptych.modalities.tokenizer import clean
from triptych.objectives import Masked

CASES = Path(__file__).parents[2].parent / "shared" / "cases"


def rows_of(texts, **columns) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts} | columns)


def test_the_trained_tokenizer_is_the_same_again_and_loads_natively(tmp_path):
    text, again = Text(vocab_size=400, max_length=48), Text(vocab_size=400, max_length=48)
    text.fit(rows_of(sentences(200)), "text")
    again.fit(rows_of(sentences(200)), "text")
    assert again.tokenizer.get_vocab() == text.tokenizer.get_vocab()
    text.save(str(tmp_path))
    native = AutoTokenizer.from_pretrained(tmp_path)
    assert native.model_max_length == 48
    assert native("river stone <mask>")["input_ids"] == text.tokenizer("river stone <mask>")["input_ids"]
    assert native.convert_ids_to_tokens(native("river")["input_ids"])[::2] == ["<s>", "</s>"]
    loaded = Text(vocab_size=400, max_length=48)
    loaded.load(str(tmp_path))
    assert (
        loaded.rows == text.rows and loaded.read("river light")["ids"].tolist() == native("river light").input_ids[1:-1]
    )


# Tokenizers from elsewhere


def word_level(folder, specials=(), words=90, **roles):
    vocabulary = {w: i for i, w in enumerate([*specials, "[UNK]", *NOUNS, *VERBS, *(f"rare{i}" for i in range(words))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **roles).save_pretrained(folder)
    return len(vocabulary)


def step(text, rows, column="text"):
    """Prepare, and do one masked step; returns samples and the objective."""
    samples = text.samples(rows, column)
    objective = Masked(make(text, width=32, depth=1, heads=2))
    made = [text.view(text.read(samples[i][column]), objective.views[0], i) for i in range(min(16, len(samples)))]
    loss = objective([text.prepare(text.collate(made, torch.arange(len(made))))])["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    return samples, objective


def test_a_tokenizer_without_special_tokens_gets_them(tmp_path):
    known = word_level(tmp_path / "old")
    text = Text(tokenizer=str(tmp_path / "old"), max_length=16)
    rows = rows_of(sentences(40))
    text.fit(rows, "text")
    _, objective = step(text, rows)
    assert objective.backbone.embedding.words.num_embeddings == len(text.tokenizer) == known + 4
    text.save(str(tmp_path / "new"))
    native = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert native.model_max_length == 16 and native.mask_token == "<mask>" and native.pad_token == "<pad>"
    assert native.convert_ids_to_tokens(native("river walks")["input_ids"]) == ["<s>", "river", "walks", "</s>"]


def test_a_named_tokenizer_sets_the_sizes(tmp_path):
    roles = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    known = word_level(tmp_path, tuple(roles.values()), words=1200, model_max_length=10, **roles)
    for asked, rows in ((None, known), (100, known), (2000, 2000)):
        text = Text(tokenizer=str(tmp_path), vocab_size=asked, max_length=24, max_positions=40)
        text.fit(rows_of(["river"]), "text")
        _, objective = step(text, rows_of(["river rare1199 walks"] * 3))
        assert objective.backbone.embedding.words.num_embeddings == rows
        assert objective.backbone.embedding.positions.num_embeddings == text.tokenizer.pad_token_id + 1 + 40
        assert text.tokenizer.model_max_length == 40
        assert text.tokenizer.unk_token_id not in text.read("river rare1199 walks")["ids"]


def test_long_documents_are_prepared_quickly():
    rows = rows_of([" ".join(NOUNS * 4000), "0x" * 100_000])
    text, start = Text(vocab_size=400), time.time()
    text.fit(rows, "text")
    samples = text.samples(rows, "text")
    assert time.time() - start < 20
    assert sum(len(w["ids"]) for w in samples["text"]) == sum(
        len(text.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in rows["text"]
    )


# The shared cases


def case(name: str) -> tuple[Path, dict]:
    folder = CASES / "text" / name
    if not folder.exists():
        pytest.skip("the shared cases are not here")
    return folder, json.loads((CASES / "expected.json").read_text())[f"text/{name}"]


def lines(path: Path) -> datasets.Dataset:
    return datasets.load_dataset("text", data_files=str(path), split="train")


def test_case_bom_crlf_blank():
    folder, expected = case("bom_crlf_blank")
    text = Text(vocab_size=500)
    rows = lines(folder / "windows.txt")
    text.fit(rows, "text")
    samples, _ = step(text, rows)
    assert len(set(samples["source_row"])) == expected["good"] == expected["exact"]["documents"]
    assert text.ignored in (expected["ignored"], expected["ignored"] - 1)  # the loader may drop the file's last line
    words = [text.tokenizer.decode(w["ids"]).strip() for w in samples["text"]]
    assert words[0].startswith(expected["exact"]["first_characters"])
    assert not any("\ufeff" in w or "\r" in w for w in words)


def test_case_long_line():
    folder, expected = case("long_line")
    rows, text, start = lines(folder / "docs.txt"), Text(), time.time()
    text.fit(rows, "text")
    samples = text.samples(rows, "text")
    assert time.time() - start < 60
    assert len(set(samples["source_row"])) == expected["good"]
    count = np.zeros(len(rows), dtype=int)
    np.add.at(count, np.array(samples["source_row"][:]), [len(w["ids"]) for w in samples["text"]])
    longest = int(np.argmax([len(t) for t in rows["text"]]))
    assert count[longest] >= expected["exact"]["longest_line_words"]
    assert count.sum() == sum(
        len(e)
        for e in text.tokenizer.backend_tokenizer.encode_batch(
            [clean(t) for t in rows["text"]], add_special_tokens=False
        )
    )


def test_case_text_columns():
    folder, expected = case("text_columns")
    rows = datasets.load_dataset("parquet", data_files=str(folder / "data.parquet"), split="train")
    text, column = Text(vocab_size=500), expected["args"]["text_column"]
    text.fit(rows, column)
    samples, _ = step(text, rows, column)
    assert len(samples) >= expected["good"]
    assert {n for n, f in rows.features.items() if f.dtype in Text.features} == {"id", "title", "body", "lang"}


@pytest.mark.parametrize("name", ["tokenizer_no_pad_mask", "tokenizer_too_large"])
def test_case_tokenizers(name, tmp_path):
    folder, expected = case(name)
    text = Text(tokenizer=str(folder / "tokenizer"), max_length=expected["args"].get("max_length", 128))
    rows = lines(folder / "data" / "docs.txt")
    text.fit(rows, "text")
    samples, objective = step(text, rows)
    assert len(set(samples["source_row"])) == expected["good"]
    text.save(str(tmp_path))
    native = AutoTokenizer.from_pretrained(tmp_path)
    rows, places = (
        objective.backbone.embedding.words.num_embeddings,
        objective.backbone.embedding.positions.num_embeddings,
    )
    assert native.model_max_length == text.max_length == places - native.pad_token_id - 1
    assert rows == len(native) >= expected["exact"].get("vocabulary", 1198) + 2
    assert native.mask_token is not None and native.pad_token is not None
    rare = native.get_vocab().get("rare1063")
    assert rare is None or any(rare in w["ids"] for w in samples["text"])


def test_a_tokenizer_that_writes_no_first_and_last_token_is_said(tmp_path, caplog):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "river"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "cls", "sep", "mask", "unk")}
    PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(tmp_path)
    text = Text(tokenizer=str(tmp_path))
    text.fit(rows_of(["river"]), "text")
    assert "does not write [CLS] before and [SEP] after a text" in caplog.text
    assert text.tokenizer("river").input_ids == [1, 5, 2]
