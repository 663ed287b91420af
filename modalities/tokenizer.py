"""Tokenizers: a byte-level BPE trained on the rows, or a published one made to fit."""

import json
import logging
import os
import tempfile
from pathlib import Path

SPECIALS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}  # RoBERTa's, in its order
NEEDED = ("cls", "pad", "sep", "mask")
FORMAT = 2  # of the cached tokenizers and windows; raise it when the code that makes them changes
SENTENCES = "sentence_bert_config.json"  # of `sentence-transformers`, whatever the family


def clean(text: str | None) -> str:
    """Without byte-order marks, carriage returns and white space at the ends: they are no text."""
    return (text or "").replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n").strip()


def plain_backend(tokenizer):
    """A copy of the tokenizer's backend, set for raw text: all of it, in which `<s>` is three characters and no token.

    The tokenizer itself, which is saved, truncates and pads as it did; called with `split_special_tokens=True` it gives
    what this gives.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def published(path: str, **hub):
    """A tokenizer by its hub id or folder, with small letters where `sentence-transformers` would make them before it.

    Raises:
        OSError: nothing there, or no network.
    """
    from tokenizers.normalizers import Lowercase, Sequence
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import cached_file

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **hub)
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(path, SENTENCES, **missing, **hub)
    if file is None or not tokenizer.is_fast or not json.loads(Path(file).read_text()).get("do_lower_case"):
        return tokenizer
    backend = tokenizer.backend_tokenizer
    if "Lowercase" in str(backend.normalizer) or "lowercase=True" in str(backend.normalizer):
        return tokenizer
    backend.normalizer = Sequence([Lowercase(), *([] if backend.normalizer is None else [backend.normalizer])])
    return PreTrainedTokenizerFast(  # the published class would make its own again when it is loaded
        tokenizer_object=backend,
        model_input_names=tokenizer.model_input_names,
        model_max_length=tokenizer.model_max_length,
        **tokenizer.special_tokens_map,
    )


def train(rows, column: str, vocab_size: int):
    """A RoBERTa tokenizer with a byte-level BPE of the rows' text: the same for the same rows, and cached by them."""
    import datasets
    from datasets.fingerprint import Hasher
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
    from transformers import RobertaTokenizer

    name = Hasher.hash((rows._fingerprint, column, vocab_size, FORMAT)) + ".json"
    path = Path(datasets.config.HF_DATASETS_CACHE) / "triptych_tokenizers" / name
    if not path.exists():
        trained = Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS.values()),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        trained.train_from_iterator(excerpts(rows, column), trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(trained.to_str())
        os.replace(file.name, path)
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    return RobertaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        add_prefix_space=True,  # a word is the same token at the head of a window and within
        mask_token=AddedToken(SPECIALS["mask"], lstrip=True, special=True),
    )


def excerpts(rows, column: str, most: int = 50_000_000, piece: int = 1000):
    """Text to train a tokenizer on: rows evenly over the data, at most about `most` characters, in short pieces."""
    step, seen = max(1, len(rows) // 500_000), 0
    for batch in rows.select(range(0, len(rows), step)).select_columns([column]).iter(1000):
        for text in map(clean, batch[column]):
            yield from (text[i : i + piece] for i in range(0, len(text), piece))
            seen += len(text)
        if seen > most:
            return


def complete(tokenizer, types: int = 1):
    """A fast tokenizer with all the tokens that the model needs, that writes `<s>` before and `</s>` after a text.

    One that is so already stays as it is, unless it tells more token types than the model has.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    if not tokenizer.is_fast:
        raise ValueError("modality.tokenizer is not a fast tokenizer (one with a tokenizer.json)")
    for role, other in (("cls", "bos"), ("sep", "eos")):  # those of causal models
        if getattr(tokenizer, f"{role}_token") is None and getattr(tokenizer, f"{other}_token") is not None:
            setattr(tokenizer, f"{role}_token", getattr(tokenizer, f"{other}_token"))
    missing = {f"{role}_token": SPECIALS[role] for role in NEEDED if getattr(tokenizer, f"{role}_token") is None}
    if missing:
        logging.getLogger(__name__).warning("the tokenizer has no %s: added", ", ".join(missing))
        tokenizer.add_special_tokens(missing)
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    bare = plain_backend(tokenizer)
    inner, whole = (bare.encode("a a", add_special_tokens=special).ids for special in (False, True))
    if whole == [first, *inner, last] and ("token_type_ids" not in tokenizer.model_input_names or types > 1):
        return tokenizer
    if whole != [first, *inner, last] and not missing:
        logging.getLogger(__name__).warning(
            "the tokenizer does not write %s before and %s after a text: here it does, and in an export",
            tokenizer.cls_token,
            tokenizer.sep_token,
        )
    backend, cls, sep = tokenizer.backend_tokenizer, tokenizer.cls_token, tokenizer.sep_token
    backend.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} {sep} $B {sep}", special_tokens=[(cls, first), (sep, last)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],  # the native class has one token type
        **{f"{role}_token": getattr(tokenizer, f"{role}_token") for role in SPECIALS},
    )
