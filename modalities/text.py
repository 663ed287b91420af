"""Text: windows of token ids, spans and split views of them, packed into rows."""

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from triptych.modalities.base import BadSample, Modality, NoSamples
from triptych.modalities.domains import Count, Part, Within
from triptych.modalities.exhibit import Exhibit, Seen, Word
from triptych.modalities.hashing import generator, mix, uniform
from triptych.modalities.packing import pack, pack_fixed
from triptych.modalities.sizes import read_texts, text_sizes
from triptych.modalities.survey import Survey
from triptych.modalities.tokenizer import SPECIALS, clean, complete, plain_backend, published, train
from triptych.modalities.view import View, ViewSpec
from triptych.modalities.windows import windows, word_starts

SPLIT, SPAN, DELETE = 1, 2, 3  # what a view's random numbers are for
FROZEN, NUMBERS, NEAR = 0xF02E, 16, (-1, 0, 1)  # random vectors of tokens: their seed, their width, which neighbours'


class Text(Modality):
    """Documents or lines of text as token ids: every token of a document is in one of its windows.

    Args:
        tokenizer: hub id or folder of a fast tokenizer; pad, mask, first or last token are added where it has none.
            (The native position table begins after the pad's id, so that had better be small.) Default: a byte-level
            BPE, trained on the training rows.
        vocab_size: rows of the word embedding. Default: 8192 for the trained tokenizer, a named one's own size, below
            which it never is.
        max_length: tokens of a window, `<s>` and `</s>` included. Default: 128, or `max_positions` if they are fewer.
        max_positions: places of the position table. Default: `max_length`; a checkpoint to start from has its own.
        row_length: tokens of a row, into which several texts are packed, `<s>` and `</s>` included. A number makes all
            rows equally long, for `--compile`; batches of 128 texts and more fill them to 95 %. Default: as long as
            fills them best.
        whole_words: masked objectives hide whole words, where pieces are hidden at `random` (`mask.kind`); of the last
            word that is chosen only as many tokens as the ratio has room for.
        augmentation: strong views: `split` gives each token to one of two disjoint views (`scale` is not used); `span`
            keeps a random run of words, of a length in `scale`. Smaller views are shorter runs, of halves too.
        deletion: probability with which a strong view leaves out each of its tokens.
        token_types: rows of the token type table, of which the first is used. Default: the family's.
        tokenizer_revision: branch, tag or commit of a tokenizer on the hub.
    """

    leads = 1  # of a text: the first token
    stay = 1
    average = "tokens"  # as `sentence-transformers` has it: the first and the last token, too
    features = ("string", "large_string")
    sizes = ("max_length", "vocab_size")
    brought = ("tokenizer", "tokenizer_revision", "vocab_size")
    suffixes = (".txt", ".text", ".md")

    def __init__(
        self,
        tokenizer: str | None = None,
        vocab_size: Count | None = None,
        max_length: Annotated[int, Within("[3, inf)")] | None = None,
        max_positions: Count | None = None,
        row_length: Count | None = None,
        whole_words: bool = False,
        augmentation: Literal["split", "span"] = "split",
        deletion: Part = 0.0,
        token_types: Count | None = None,
        tokenizer_revision: str | None = None,
    ):
        least = len(SPECIALS) + 256
        if tokenizer is None and vocab_size is not None and vocab_size < least:
            raise ValueError(f"modality.vocab_size {vocab_size}: a byte-level tokenizer has at least {least}; try 8192")
        max_length = min(max_positions or 128, 128) if max_length is None else max_length
        if max_length < 3:
            raise ValueError(f"modality.max_length {max_length} leaves no room between <s> and </s>; try 128")
        if max_positions is not None and max_positions < max_length:
            raise ValueError(
                f"modality.max_positions {max_positions} is below modality.max_length {max_length}; lower the latter"
            )
        if row_length is not None and row_length < max_length:
            raise ValueError(
                f"modality.row_length {row_length} is below modality.max_length {max_length}; try {2 * max_length}"
            )
        if not 0 <= deletion < 1:
            raise ValueError(f"modality.deletion {deletion} is not in [0, 1); try 0.1")
        self.named, self.revision, self.vocab_size = tokenizer, tokenizer_revision, vocab_size
        self.limit = max_positions  # None: places are as many as the windows want
        self.max_length, self.max_positions = max_length, max_positions or max_length
        self.row_length = row_length
        self.whole_words, self.augmentation, self.deletion = whole_words, augmentation, deletion
        self.token_types = token_types
        self.tokenizer = None
        self.ignored = 0  # blank documents among the rows that `samples` was last given

    def fit(self, rows, column: str) -> None:
        """Load the named tokenizer, or train one on the rows. Before `samples`, `view` and `build`."""
        if self.named is None:
            self._adopt(train(rows, column, self.vocab_size or 8192))
            return
        try:
            self.load(self.named, **{} if self.revision is None else {"revision": self.revision})
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(
                f"modality.tokenizer {self.named}: no fast tokenizer can be read there; give a hub id or a folder "
                f"with a tokenizer.json ({reason})"
            ) from error

    def load(self, folder: str, **hub) -> None:
        self._adopt(published(folder, **hub))

    def _adopt(self, tokenizer) -> None:
        self.tokenizer = tokenizer = complete(tokenizer, self.token_types or 1)
        # A checkpoint's tokenizer may allow less than its table has; where the places are our own, it allows all.
        longest = tokenizer.model_max_length if self.limit else self.max_positions
        tokenizer.model_max_length = min(longest, self.max_positions)
        self.backend = plain_backend(tokenizer)
        self.first, self.last, self.padding, self.mask = (
            getattr(tokenizer, f"{role}_token_id") for role in ("cls", "sep", "pad", "mask")
        )
        self.rows = max(len(tokenizer), self.vocab_size or 0) if self.named else len(tokenizer)
        self.special = torch.zeros(self.rows, dtype=torch.bool)  # True for ids that are no text
        self.special[tokenizer.all_special_ids] = True
        self.special[[i for i, token in tokenizer.added_tokens_decoder.items() if token.special]] = True
        self.choice = (~self.special[: len(tokenizer)]).nonzero()[:, 0]  # ids that may replace another at random

    def survey(self, rows, column: str) -> Survey | None:
        return read_texts(rows, column)

    def sized(self, survey: Survey, pieces: float, given: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
        return text_sizes(survey.measures, pieces, given, usual)

    def pieces_of(self, survey: Survey) -> float:
        return survey.rows * survey.measures["mean"] / self.samples_of(survey)

    def samples_of(self, survey: Survey) -> float:
        return survey.rows * max(1.0, survey.measures["mean"] / (self.max_length - 2))

    def trained(self) -> str:
        words = len(self.tokenizer) if self.tokenizer is not None else self.vocab_size or 8192
        return f"windows of {self.max_length} tokens, of {words:,} words"

    def processor(self):
        if self.tokenizer is None:
            raise ValueError("text has no tokenizer yet: call fit or load first")
        return self.tokenizer

    def samples(self, rows, column: str, starts: None = None):
        """Windows of token ids, in `column`, in the order of the rows; `fit` comes first.

        The other columns go along, and `source_row` is the row's index. Blank documents give none (`self.ignored`).
        """
        self.processor()  # refuses where there is none yet
        made = windows(rows, column, self.backend, self.max_length - 2)
        sources = np.asarray(made["source_row"][:]) if len(made) else np.zeros(0)
        self.ignored = len(rows) - len(np.unique(sources))
        if not len(made):
            raise NoSamples(f"column {column!r}: none of {len(rows)} rows has any text")
        return made.with_format(None)

    def cell(self, value: Any) -> str | None:
        """Words are themselves; a `Path` is a file of them."""
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, os.PathLike):
            return Path(value).read_text(encoding="utf-8")
        raise ValueError(f"a text is words, or the Path of a file of words, not a {type(value).__name__}")

    def read(self, value) -> dict[str, np.ndarray]:
        """A window of `samples`, or a text, of which it takes the first window -> ids and where words start."""
        if value is None or isinstance(value, str):
            self.processor()
            encoding = self.backend.encode(clean(value), add_special_tokens=False)
            value = {"ids": encoding.ids[: self.max_length - 2], "starts": word_starts(encoding)[: self.max_length - 2]}
        if not len(value["ids"]):
            raise BadSample("blank text")
        return {"ids": np.asarray(value["ids"], dtype=np.int64), "starts": np.asarray(value["starts"], dtype=bool)}

    def describe(self, cell) -> str:
        text = clean(cell)
        return f"{len(text):,} characters, {text[:80]!r}{' ...' if len(text) > 80 else ''}"

    def view(self, sample: dict[str, np.ndarray], spec: ViewSpec, seed: int) -> dict[str, Tensor]:
        """The tokens that the view keeps, then `</s>`; `identity` is a hash of all of the window's."""
        ids, starts = sample["ids"], sample["starts"]
        kept = np.arange(len(ids))
        if spec.strength == "strong" and self.augmentation == "split":
            kept = kept[half(len(ids), spec.index % 2, generator(seed, spec.index // 2, SPLIT))]
            if spec.size < 1:
                kept = kept[span(starts[kept], (spec.size, spec.size), generator(seed, spec.index, SPAN))]
        elif spec.strength != "none" and (tuple(spec.scale) != (1.0, 1.0) or spec.size < 1):
            scale = tuple(min(part, spec.size) for part in spec.scale)
            kept = span(starts, scale, generator(seed, spec.index, SPAN))
        if spec.strength == "strong" and self.deletion:
            draw = generator(seed, spec.index, DELETE).random(len(kept))
            kept = kept[(draw >= self.deletion) | (draw == draw.max())]
        identity = int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little", signed=True)
        made = {"data": torch.from_numpy(np.append(ids[kept], self.last)), "identity": torch.tensor(identity)}
        if self.whole_words:
            word = np.cumsum(starts)
            made["group"] = torch.from_numpy(np.append(word[kept], word[-1] + 1))
        return made

    def collate(self, samples: list[dict[str, Tensor]], seed: Int[Tensor, " b"]) -> View:
        """Pack the samples into rows: of about equal length, or of `row_length` tokens with their leads."""
        lengths = [len(s["data"]) for s in samples]
        if self.row_length is None:
            rows = pack(lengths, self.leads)
            length, slots = max(sum(lengths[i] for i in row) for row in rows), max(map(len, rows))
        else:
            rows, slots = pack_fixed(lengths, self.leads, self.row_length)
            length = self.row_length - self.leads * slots
        shape = (len(rows), length)
        keys = {"data": self.padding, "position": 0, "segment": 0} | ({"group": 0} if self.whole_words else {})
        packed = {key: torch.full(shape, fill) for key, fill in keys.items()}
        packed["samples"] = torch.zeros(len(rows), slots, dtype=torch.long)
        for r, row in enumerate(rows):
            start = 0
            for slot, i in enumerate(row):
                here = slice(start, start + lengths[i])
                values = samples[i] | {"position": torch.arange(lengths[i]), "segment": i + 1}
                for key in keys:
                    packed[key][r, here] = values[key]
                packed["samples"][r, slot] = i + 1
                start += lengths[i]
        packed["position"] = packed["position"][..., None]
        return View(seed=seed, identity=torch.stack([s["identity"] for s in samples]), **packed)

    @torch.no_grad()
    def prepare(self, view: View) -> View:
        """Tells which tokens are ordinary. The tables go to the view's device once."""
        if self.special.device != view.data.device:
            self.special, self.choice = self.special.to(view.data.device), self.choice.to(view.data.device)
        return view.replace(ordinary=~self.special[view.data] & (view.segment > 0))

    def droppable(self, view: View) -> Bool[Tensor, "r n"]:
        """All but each text's last token, unknown ones too: what is not worth predicting may still be left out."""
        segment = view.segment
        ends = F.pad(segment[:, 1:] != segment[:, :-1], (0, 1), value=True)
        return (segment > 0) & ~ends

    def corrupt(self, data: Int[Tensor, "r n"], hide: Bool[Tensor, "r n"], seed: Int[Tensor, "r n"]):
        """Of the chosen, 80 % become the mask token, 10 % a random token, 10 % stay (BERT, Devlin et al. 2019)."""
        draw = uniform(seed, 1)
        other = self.choice[mix(seed, 2, data) % len(self.choice)]
        return torch.where(hide & (draw >= 0.8) & (draw < 0.9), other, data), hide & (draw < 0.8)

    def error(self, guess: Float[Tensor, "h v"], data: Int[Tensor, " h"]) -> Float[Tensor, " h"]:
        return F.cross_entropy(guess.float(), data, reduction="none")

    def exhibit(self, view: View, seen: Seen | None = None) -> list[Exhibit]:
        hidden = torch.zeros_like(view.segment) if seen is None else seen.hidden(view)
        guessed = torch.full_like(view.data, -1)
        if seen is not None and seen.guess is not None:
            row, at = seen.valid.nonzero(as_tuple=True)
            guessed[row, seen.index[row, at]] = seen.guess[row, at].argmax(-1)
        shown = []
        for number in range(1, len(view) + 1):
            here = (view.segment == number) & ~self.special.to(view.data.device)[view.data]
            tokens = zip(*(x[here].tolist() for x in (view.data, hidden, guessed)), strict=True)
            shown.append(Exhibit(words=tuple(self._words(tokens))))
        return shown

    def _words(self, tokens) -> Iterator[Word]:
        """Runs of visible tokens, and each hidden one apart."""
        said = self.backend.decode
        for is_hidden, run in groupby(tokens, key=lambda token: bool(token[1])):
            if not is_hidden:
                yield Word(said([token for token, *_ in run]))
                continue
            for token, _, guess in run:
                yield Word(said([token]), True, said([guess]) if guess >= 0 else None)

    @property
    def values(self) -> int:
        return len(NEAR) * NUMBERS

    def numbers(self, view: View) -> Float[Tensor, "r n p"]:
        """Frozen random vectors of a token and its two neighbours in its text; zeros beyond the text's ends.

        They are hashes of the ids, of mean 0 and variance 1: the same in every run, and no table.
        """
        column = torch.arange(NUMBERS, device=view.data.device)
        vectors = (uniform(mix(FROZEN, view.data)[..., None], column) - 0.5) * 12**0.5
        near = []
        for step in NEAR:
            there = view.segment.roll(-step, 1) == view.segment
            if step:  # a row's first piece has none before it, its last none after it
                there[:, 0 if step < 0 else -1] = False
            near.append(vectors.roll(-step, 1) * there[..., None])
        return torch.cat(near, dim=-1)

    def tokens(self) -> dict[str, Any]:
        """What decides which tokens a text becomes; how a pair of texts is put together does not."""
        self.processor()  # refuses where there is none yet
        parts = json.loads(self.backend.to_str()) | {"post_processor": None}
        return parts | {"special": [self.first, self.last, self.padding, self.mask]}

    def shown(self, view: View, other: "Text") -> View:
        """Of equal tokenizers, the same tokens."""
        return view

    def check_shown(self, other: "Text", pieces: bool) -> None:
        if self.tokens() != other.tokens():
            raise ValueError(f"its tokenizer is another one; give its own, modality.tokenizer {other.named}")
        if other.max_positions < self.max_length:
            raise ValueError(
                f"it has {other.max_positions} places for a text's tokens, modality.max_length is {self.max_length}; "
                f"lower that to {other.max_positions}"
            )


def half(length: int, which: int, random: np.random.Generator) -> Bool[np.ndarray, " n"]:
    """True for the tokens of one of two disjoint halves, neither empty. Both have the token of a text of one."""
    first = random.random(length) < 0.5
    if length == 1:
        return np.ones(1, dtype=bool)
    if first.all() or not first.any():
        first[random.integers(length)] ^= True
    return first if which == 0 else ~first


def span(starts: Bool[np.ndarray, " n"], scale: tuple[float, float], random: np.random.Generator):
    """Indices of the tokens of a random run of words, a fraction of them in `scale`, at least one."""
    begin = np.flatnonzero(starts)
    if len(begin) < 2:  # a script without spaces
        begin = np.arange(len(starts))
    begin[0] = 0  # a window may begin within a word
    count = max(1, round(random.uniform(*scale) * len(begin)))
    word = random.integers(len(begin) - count + 1)
    return np.arange(begin[word], np.append(begin, len(starts))[word + count])
