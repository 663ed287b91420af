"""Text: windows, views, packing and masks."""

import copy

import datasets
import numpy as np
import pytest
import torch
from scipy import stats
from support import NOUNS, sentences

from triptych.encoders.native import make
from triptych.modalities import EVALUATION, BadSample, Text, View, ViewSpec
from triptych.modalities.text import half, span
from triptych.modalities.tokenizer import clean
from triptych.objectives import BYOL, MAE, Head, Mask, Masked, SimCLR, masking


def rows_of(texts, **columns) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts} | columns)


@pytest.fixture(scope="module")
def text():
    made = Text(vocab_size=400, max_length=48)
    made.fit(rows_of(sentences(200)), "text")
    return made


@pytest.fixture(scope="module")
def backbone(text):
    torch.manual_seed(0)
    made = make(text, width=32, depth=2, heads=2)
    for parameter in made.parameters():  # from their small initial values differences would not show
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def batch(text, texts, view=EVALUATION, first=0):
    made = [text.view(text.read(t), view, first + i) for i, t in enumerate(texts)]
    return made, torch.arange(first, first + len(texts))


def laid(text, samples, seed):
    """A packed view, as an objective gets it."""
    return text.prepare(text.collate(samples, seed))


def padded(text, samples, seed, rows=None):
    """A view with one sample a row, padded to the longest; or in the given rows."""
    lengths = [len(s["data"]) for s in samples]
    rows = rows or [[i] for i in range(len(samples))]
    shape = (len(rows), max(sum(lengths[i] for i in row) for row in rows) + 3)
    view = View(
        data=torch.full(shape, text.padding),
        seed=seed,
        position=torch.zeros(*shape, 1, dtype=torch.long),
        segment=torch.zeros(shape, dtype=torch.long),
        samples=torch.tensor([[i + 1 for i in row] + [0] * (max(map(len, rows)) - len(row)) for row in rows]),
        identity=torch.arange(len(samples)),
        group=torch.zeros(shape, dtype=torch.long) if text.whole_words else None,
    )
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            here = slice(start, start := start + lengths[i])
            view.data[r, here], view.segment[r, here] = samples[i]["data"], i + 1
            view.position[r, here, 0] = torch.arange(lengths[i])
    return text.prepare(view)


# Windows


def test_every_token_of_a_document_is_in_a_window_and_the_source_is_named(text):
    texts = ["", "river", " ".join(NOUNS * 20), "\n \r\n", "\ufeffstone light\r", None]
    rows = rows_of(texts, label=[0, 1, 2, 3, 4, 5])
    samples = text.samples(rows, "text")
    assert text.ignored == 3
    assert samples.column_names == ["text", "label", "source_row"]
    assert samples["label"] == samples["source_row"]
    for row in (1, 2, 4):
        windows = [w["ids"] for w, source in zip(samples["text"], samples["source_row"], strict=True) if source == row]
        assert sum(windows, []) == text.tokenizer(clean(texts[row]), add_special_tokens=False)["input_ids"]
        assert all(0 < len(w) <= text.max_length - 2 for w in windows)
    assert text.samples(rows, "text")._fingerprint == samples._fingerprint


def test_evaluation_view_is_the_tokenizer_output(text):
    for words in (["river"], NOUNS, NOUNS * 10):
        row = text.samples(rows_of([" ".join(words)]), "text")[0]["text"]
        native = text.tokenizer(" ".join(words), truncation=True)["input_ids"]
        for sample in (text.read(row), text.read(" ".join(words))):
            assert text.view(sample, EVALUATION, 0)["data"].tolist() == native[1:]
    assert len(native) == text.max_length


def test_blank_texts_are_bad_samples_and_blank_columns_an_error(text):
    with pytest.raises(BadSample):
        text.read(" \r\n")
    with pytest.raises(ValueError, match="none of 2 rows"):
        text.samples(rows_of(["", " "]), "text")


def test_wrong_settings_say_what_to_do():
    for wrong in (
        {"vocab_size": 100},
        {"max_length": 2},
        {"max_positions": 16, "max_length": 24},
        {"deletion": 1.0},
        {"row_length": 100},
    ):
        with pytest.raises(ValueError, match=f"modality.{next(iter(wrong))}"):
            Text(**wrong)
    with pytest.raises(ValueError, match="fit or load"):
        Text().samples(rows_of(["a"]), "text")


@pytest.mark.parametrize("written", ["price <s>10</s> now", "fill <mask> in or <pad> it", "<mask>", "a</s></s><unk>b"])
def test_special_tokens_in_raw_text_are_plain_text(text, written):
    """And the native default, which `fill-mask` needs, is as it was, also once saved."""
    window = text.samples(rows_of([written]), "text")[0]["text"]
    for ids in (window["ids"], text.read(written)["ids"].tolist()):
        assert not text.special[torch.tensor(ids)].any()
        assert text.tokenizer.decode(ids).strip() == written
        assert ids == text.tokenizer(written, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert text.special[torch.tensor(text.tokenizer(written)["input_ids"][1:-1])].any()
    text.read(written)
    assert text.tokenizer("<mask>")["input_ids"] == [text.first, text.mask, text.last]


def test_a_saved_tokenizer_has_the_native_default(text, tmp_path):
    from transformers import AutoTokenizer

    text.read("river <mask>")
    text.save(str(tmp_path))
    assert AutoTokenizer.from_pretrained(tmp_path)("<mask>")["input_ids"] == [text.first, text.mask, text.last]


# Views


@pytest.mark.parametrize("length", [1, 2, 3, 10, 40])
def test_split_views_are_disjoint_complete_and_never_empty(text, length):
    sample = {"ids": np.arange(10, 10 + length), "starts": np.ones(length, dtype=bool)}
    seen = set()
    for seed in range(60):
        one, two = (text.view(sample, ViewSpec(strength="strong", index=i), seed)["data"].tolist() for i in (0, 1))
        assert one[-1] == two[-1] == text.last and len(one) > 1 and len(two) > 1
        assert one == sorted(one[:-1]) + [text.last]
        if length > 1:
            assert sorted(one[:-1] + two[:-1]) == sample["ids"].tolist()
        seen.add(tuple(one))
    assert length < 10 or len(seen) > 50


def test_span_keeps_a_run_of_words_of_the_asked_length():
    starts = np.array([0, 1, 0, 1, 1, 0, 0, 1, 1, 0], dtype=bool)
    for seed in range(50):
        kept = span(starts, (0.4, 0.6), np.random.default_rng(seed))
        assert (np.diff(kept) == 1).all() and 2 <= starts[kept].sum() <= 3
        assert kept[0] == 0 or starts[kept[0]]
        assert kept[-1] == 9 or starts[kept[-1] + 1]
    for length in (1, 5):
        assert len(span(np.zeros(length, dtype=bool), (0.01, 0.02), np.random.default_rng(0))) == 1


def test_scale_deletion_and_identity(text):
    cropping = Text(vocab_size=400, max_length=48, augmentation="span", deletion=0.3)
    cropping.fit(rows_of(sentences(200)), "text")
    sample = cropping.read(" ".join(NOUNS[:14]))
    made = [cropping.view(sample, ViewSpec(scale=(0.5, 0.9), strength="strong", index=i), 3) for i in (0, 1)]
    assert made[0]["data"].tolist() != made[1]["data"].tolist()
    assert made[0]["identity"] == made[1]["identity"] != text.view(text.read("river"), EVALUATION, 0)["identity"]
    sizes = [len(cropping.view(sample, ViewSpec(strength="strong"), s)["data"]) - 1 for s in range(300)]
    assert np.mean(sizes) / len(sample["ids"]) == pytest.approx(0.7, abs=0.03)
    short = {"ids": np.array([9]), "starts": np.array([True])}
    assert all(len(cropping.view(short, ViewSpec(strength="strong"), s)["data"]) == 2 for s in range(50))
    weak = text.view(sample, ViewSpec(scale=(0.5, 0.5)), 0)["data"]
    assert len(weak) - 1 == pytest.approx(len(sample["ids"]) / 2, abs=4)


@pytest.mark.parametrize("length", [20, 200])
def test_halves_spans_and_deletions_are_distributed_as_they_should(text, length):
    sure, starts = 1e-4, np.ones(length, dtype=bool)
    first = np.array([half(length, 0, np.random.default_rng(s)) for s in range(800)])
    assert stats.binomtest(int(first.sum()), first.size, 0.5).pvalue > sure
    assert np.abs(np.corrcoef(first[:, :20].T) - np.eye(20)).max() < 5 / 800**0.5
    runs = [span(starts, (0.3, 0.8), np.random.default_rng(s)) for s in range(800)]
    sizes, places = np.array([len(r) for r in runs]), np.array([r[0] for r in runs])
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 800)
    assert stats.kstest((sizes + noise) / length, stats.uniform(0.3, 0.5).cdf).pvalue > sure
    assert stats.kstest((places + noise + 0.5) / (length - sizes + 1), stats.uniform.cdf).pvalue > sure
    deleting = copy.copy(text)
    deleting.augmentation, deleting.deletion = "span", 0.2
    sample = {"ids": np.arange(10, 10 + length), "starts": starts}
    left = [len(deleting.view(sample, ViewSpec(strength="strong"), s)["data"]) - 1 for s in range(400)]
    assert stats.binomtest(sum(left), 400 * length, 0.8).pvalue > sure
    assert len(deleting.view(sample, ViewSpec(), 0)["data"]) - 1 == length


# Packing


def test_row_length_gives_the_same_vectors_in_rows_of_one_length(text, backbone, monkeypatch):
    samples, seed = batch(text, sentences(24))
    free = backbone(laid(text, samples, seed))
    monkeypatch.setattr(text, "row_length", 64)
    view = laid(text, samples, seed)
    assert view.data.shape[1] + view.samples.shape[1] == 64
    torch.testing.assert_close(backbone(view), free, rtol=1e-5, atol=1e-5)


def test_equal_packed_padded_and_alone(text, backbone):
    samples, seed = batch(text, sentences(24))
    packed, plain = laid(text, samples, seed), padded(text, samples, seed)
    assert len(packed.data) < len(plain.data)
    with torch.no_grad():
        pooled = backbone(packed)
        torch.testing.assert_close(pooled, backbone(plain), atol=1e-5, rtol=1e-5)
        for i, sample in enumerate(samples):
            position = torch.arange(len(sample["data"]))[None, :, None]
            alone = View(data=sample["data"][None], seed=seed[i : i + 1], position=position)
            torch.testing.assert_close(pooled[i : i + 1], backbone(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["random", "block"])
@pytest.mark.parametrize("objective", [Masked, MAE])
def test_losses_are_equal_packed_padded_and_alone(text, backbone, objective, kind):
    torch.manual_seed(1)
    model = objective(backbone, mask=Mask(0.4, kind))
    samples, seed = batch(text, [t for t in sentences(40) if len(t.split()) > 1], first=100)
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    others = [order[i : i + 3] for i in range(0, len(order), 3)]
    views = [laid(text, samples, seed), padded(text, samples, seed), padded(text, samples, seed, others)]
    with torch.no_grad():
        losses = torch.stack([model([view])["loss"] for view in views])
        torch.testing.assert_close(losses, losses[:1].expand(3), atol=1e-5, rtol=1e-5)
        total = hidden = 0
        for i, sample in enumerate(samples):  # the batch's loss is the mean over its hidden pieces
            view = laid(text, [sample], seed[i : i + 1])
            count = masking.hide(view, 0.4, kind, 3, text.hideable(view)).sum()
            total, hidden = total + model([view])["loss"] * count, hidden + count
        torch.testing.assert_close(total / hidden, losses[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("objective", [SimCLR, BYOL])
def test_objectives_of_pooled_views_are_equal_packed_and_padded(text, backbone, objective):
    torch.manual_seed(1)
    model = objective(backbone, head=Head(32, 16))
    texts = sentences(12)
    losses = []
    for lay_out in (laid, padded):
        views = [lay_out(text, *batch(text, texts, view)) for view in model.views]
        losses.append(model(views)["loss"])
        losses[-1].backward()
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)


# Masks


@pytest.mark.parametrize("kind", sorted(masking.MASKINGS))
def test_masks_do_not_depend_on_packing_and_spare_specials(text, backbone, kind):
    texts = ["river", *sentences(30)]
    samples, seed = batch(text, texts)
    masks = []
    for view in (
        laid(text, samples, seed),
        padded(text, samples, seed),
        padded(text, samples, seed, [list(range(31))]),
    ):
        hide = masking.hide(view, 0.3, kind, 3, text.hideable(view))
        assert not (hide & (view.segment == 0)).any()
        ids = view.data[hide].tolist()
        assert not set(ids) & set(text.tokenizer.all_special_ids)
        places = [frozenset(view.position[..., 0][hide & (view.segment == i + 1)].tolist()) for i in range(len(texts))]
        assert all(places), "a text without a target"
        masks.append(places)
    assert masks[0] == masks[1] == masks[2]
    ordinary = [len(s["data"]) - 1 for s in samples]
    assert [len(p) for p in masks[0]] == [n - int(np.floor(n * 0.7)) for n in ordinary]


def test_masks_are_redrawn_with_the_seed(text):
    samples, seed = batch(text, [" ".join(NOUNS)])
    views = [laid(text, samples, seed + i) for i in range(20)]
    drawn = {tuple(masking.hide(v, 0.3, "random", 3, text.hideable(v)).flatten().tolist()) for v in views}
    assert len(drawn) == 20


def test_whole_words_are_hidden_together():
    text = Text(vocab_size=262, max_length=64, whole_words=True)  # next to no merges: letters
    text.fit(rows_of(sentences(5)), "text")
    samples, seed = batch(text, [" ".join(NOUNS[:8]) for _ in range(50)])
    view = laid(text, samples, seed)
    hide = masking.hide(view, 0.3, "random", 3, text.hideable(view))
    partly = 0
    for i in range(50):
        here = view.segment == i + 1
        word, hidden = view.group[here][:-1], hide[here][:-1]
        shares = [hidden[word == w].float().mean().item() for w in word.unique()]
        partly += sum(0 < s < 1 for s in shares)
    assert partly <= 50  # at most one word a text is cut short by the exact number of hidden tokens


def test_corruption_is_80_10_10_and_never_writes_a_special(text, backbone):
    data = torch.full((50, 400), int(text.read("river")["ids"][0]))
    whole = torch.ones_like(data)  # of one sample a row
    view = View(data=data, position=torch.arange(400)[None, :, None], seed=torch.arange(50), segment=whole)
    view = text.prepare(view).replace(segment=None)
    chosen = masking.hide(view, 0.5, "random", 3, text.hideable(view))
    changed, hide = text.corrupt(data, chosen, masking.random(view, 3))
    count = chosen.sum().item()
    assert not (hide & ~chosen).any() and not ((changed != data) & (hide | ~chosen)).any()
    assert hide.sum().item() / count == pytest.approx(0.8, abs=0.02)
    random = changed != data
    assert random.sum().item() / count == pytest.approx(0.1, abs=0.015)
    assert not text.special[changed].any()
    drawn = torch.bincount(changed[random], minlength=text.rows)[text.choice]
    assert (drawn > 0).sum() > 0.9 * len(text.choice)


def test_hidden_stands_for_the_mask_token_and_heads_share_the_embedding(text, backbone):
    view = laid(text, *batch(text, ["river stone light"]))
    hide = view.position[..., 0] == 1
    masked = view.replace(data=torch.where(hide, text.mask, view.data))
    torch.testing.assert_close(backbone.encode(view, hide).pieces, backbone.encode(masked).pieces)
    head = backbone.embedding.head(16)
    assert head.weight is backbone.embedding.words.weight
    assert head(torch.randn(3, 16)).shape == (3, text.rows)
    assert text.error(head(torch.randn(3, 16)), torch.tensor([5, 6, 7])).dtype == torch.float32


def test_dropped_tokens_are_neither_kept_nor_lost(text, backbone):
    view = laid(text, *batch(text, sentences(20)))
    hide = masking.hide(view, 0.6, "random", 3, text.droppable(view))
    dropped, dropped_valid, kept, kept_valid = masking.split(view, hide, 0.6)
    parts = [view.keep(dropped, dropped_valid), view.keep(kept, kept_valid)]

    def pieces(view):
        there = view.segment > 0
        triples = zip(view.segment[there], view.position[there][:, 0], view.data[there], strict=True)
        return sorted(tuple(int(v) for v in triple) for triple in triples)

    assert sorted(pieces(parts[0]) + pieces(parts[1])) == pieces(view)
    assert not (parts[0].data == text.last).any()


def test_unknown_words_are_dropped_and_kept_but_never_targets(tmp_path):
    """Of a text with many unknown words, MAE encodes all that it does not drop, and judges no unknown one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *NOUNS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    roles = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{k}_token": v for k, v in roles.items()}).save_pretrained(
        tmp_path
    )
    text = Text(tokenizer=str(tmp_path), max_length=32)
    text.load(str(tmp_path))
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice([*NOUNS, "unheard"], 20, p=[0.6 / 15] * 15 + [0.4])) for _ in range(24)]
    samples, seed = batch(text, texts)
    view = text.prepare(text.collate(samples, seed))
    unknown = view.data == text.tokenizer.unk_token_id
    assert 0.3 < unknown.float().mean() < 0.5
    assert not (text.hideable(view) & unknown).any()
    for ratio in (0.15, 0.5, 0.9):
        hide = masking.hide(view, ratio, "random", 3, text.droppable(view))
        assert (hide & unknown).sum() / unknown.sum() == pytest.approx(ratio, abs=0.12)
        dropped, valid, kept, there = masking.split(view, hide, ratio, text.stay)
        assert valid.sum() + there.sum() == (view.segment > 0).sum()
        count = torch.bincount(view.segment.flatten())[1:]
        assert torch.equal(
            torch.bincount(view.keep(kept, there).segment.flatten())[1:],
            1 + ((count - 1).double() * (1 - ratio)).long(),
        )
