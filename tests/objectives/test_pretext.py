"""Position prediction and random-projection codes against loops over samples and pieces."""

import copy

import numpy as np
import pytest
import torch
from singles import KINDS, ONE, assert_equal, assert_seen, backbone_of, batch_of, fitted, shaken
from torch.nn import functional as F

from triptych.encoders.native import make
from triptych.modalities import EVALUATION, Image, Text
from triptych.objectives import Codes, Mask, Position, collectives, masking, pretext


def position(kind: str, **settings) -> Position:
    return shaken(Position(backbone_of(kind), **settings))


def lost_of(alone, modality, mask: Mask) -> list[int]:
    """Eligible pieces of one sample with the lowest noise, as many as the ratio says."""
    hideable = modality.hideable(alone)
    free = range(alone.data.shape[1]) if hideable is None else hideable[0].nonzero()[:, 0].tolist()
    noise = masking.random(alone, 1)[0].tolist()
    return sorted(free, key=lambda i: noise[i])[: len(free) - int(len(free) * (1 - mask.ratio))]


def position_loop(objective, singles) -> torch.Tensor:
    """The docstring's formula, sample by sample and piece by piece."""
    backbone, modality, errors = objective.backbone, objective.backbone.modality, []
    embedding = backbone.embedding
    for alone in singles:
        lost = lost_of(alone, modality, objective.mask)
        place = embedding.place(alone.position.expand(1, -1, -1), alone.grid)[0]
        rows = [objective.nowhere if i in lost else place[i] for i in range(len(place))]
        tokens = embedding.join(embedding.content(alone.data), torch.stack(rows)[None])
        tokens = torch.cat([embedding.lead()[None], tokens], dim=1)
        tokens = backbone.encoder(tokens)[0, embedding.leads :]
        if len(lost) < 2:
            continue
        vectors = objective.places(alone.position.expand(1, -1, -1)[:, lost], alone.grid)[0]
        for number, piece in enumerate(lost):
            scores = vectors @ objective.predict(tokens[piece]) / backbone.width**0.5
            errors.append(torch.logsumexp(scores, 0) - scores[number])
    return torch.stack(errors).mean()


@pytest.mark.parametrize("ratio", [0.75, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_position_is_its_formula(kind, ratio):
    objective = position(kind, mask=Mask(ratio))
    view, singles = batch_of(objective.backbone.modality, 6)
    other = copy.deepcopy(objective)
    assert_equal(objective, other, objective([view])["loss"], position_loop(other, singles))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_that_are_dropped_are_not_seen(kind):
    objective = position(kind, dropped=0.5)
    view, _ = batch_of(objective.backbone.modality)
    kept, _, index, valid = masking.drop(view, Mask(0.5), objective.backbone.modality)
    gone = torch.zeros_like(view.seed).new_zeros(view.data.shape[:2]).bool().scatter(1, index, valid)
    other = view.data.roll(1, 0)
    wide = gone.view(*gone.shape, *[1] * (view.data.ndim - 2))
    loss = objective([view])["loss"]
    assert loss == objective([view.replace(data=torch.where(wide, other, view.data))])["loss"] and loss > 0
    objective.dropped = 0.0
    assert torch.equal(objective([kept])["loss"], loss)


def test_a_sample_that_lost_one_place_has_nothing_to_tell():
    objective = position("text")
    text = objective.backbone.modality
    one = text.prepare(text.collate([text.view(text.read(ONE), EVALUATION, 0)], torch.tensor([5])))
    loss = objective([one])["loss"]
    assert loss == 0 and loss.requires_grad


def test_chance_is_the_logarithm_of_the_lost_places():
    objective = position("image")
    torch.nn.init.zeros_(objective.predict.weight)
    torch.nn.init.zeros_(objective.predict.bias)
    view, _ = batch_of(objective.backbone.modality)
    assert objective([view])["loss"].item() == pytest.approx(np.log(12), abs=1e-5)  # of 16 pieces 12 lost theirs


@pytest.mark.parametrize("modality, family", [("image", "dinov3_vit"), ("text", "modernbert"), ("text", "nomic_bert")])
def test_a_family_without_a_table_is_refused(modality, family):
    backbone = make(Image(16, 4) if modality == "image" else fitted(), family, width=32, depth=2, heads=2)
    with pytest.raises(ValueError, match="objective position: this family has no table of places") as refused:
        Position(backbone)
    assert "\n" not in str(refused.value)


def codes(kind: str, **settings) -> Codes:
    return shaken(Codes(backbone_of(kind), **{"codes": 32, "code_width": 8} | settings))


def numbers_of(alone, modality) -> np.ndarray:
    """A grid's values; of a text the frozen vectors of the token before, of it, of the token after, zeros elsewhere."""
    if not isinstance(modality, Text):
        return alone.data[0].double().numpy()
    ids = alone.data[0].tolist()
    torch.manual_seed(0)
    vector = {i: modality.numbers(alone.replace(data=torch.full_like(alone.data, i)))[0, 1, 16:32] for i in set(ids)}
    nothing = torch.zeros(16)
    padded = [nothing, *(vector[i] for i in ids), nothing]
    return torch.stack([torch.cat(padded[i : i + 3]) for i in range(len(ids))]).double().numpy()


def codes_loop(objective, singles) -> tuple[torch.Tensor, float]:
    """Equation 1 of BEST-RQ in numpy, and a softmax, piece by piece; beside it the codebook's use."""
    backbone, modality, errors, seen = objective.backbone, objective.backbone.modality, [], []
    embedding = backbone.embedding
    book, projection = objective.codebook.double().numpy(), objective.projection.double().numpy()
    book = book / np.linalg.norm(book, axis=1, keepdims=True)
    for alone in singles:
        lost, x = lost_of(alone, modality, objective.mask), numbers_of(alone, modality)
        content = list(embedding.content(alone.data)[0])
        content = torch.stack([embedding.hidden if i in lost else x for i, x in enumerate(content)])
        tokens = embedding.join(content[None], embedding.place(alone.position.expand(1, -1, -1), alone.grid))
        tokens = backbone.encoder(torch.cat([embedding.lead()[None], tokens], dim=1))[0, embedding.leads :]
        for piece in lost:
            z = (x[piece] - x[piece].mean()) / np.sqrt(x[piece].var() + 1e-5) @ projection
            distance = np.linalg.norm(
                book / np.linalg.norm(book, axis=1, keepdims=True) - z / np.linalg.norm(z), axis=1
            )
            seen.append(int(distance.argmin()))
            errors.append(-F.log_softmax(objective.predict(tokens[piece]), 0)[seen[-1]])
    share = np.bincount(seen, minlength=len(book)) / len(seen)
    share = share[share > 0]
    return torch.stack(errors).mean(), float(np.exp(-(share * np.log(share)).sum()) / len(book))


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_their_formula(kind):
    objective = codes(kind)
    view, singles = batch_of(objective.backbone.modality, 6)
    other = copy.deepcopy(objective)
    out = objective([view])
    expected, use = codes_loop(other, singles)
    assert out["code_use"].item() == pytest.approx(use, abs=1e-5) and not out["code_use"].requires_grad
    assert_equal(objective, other, out["loss"], expected)


def test_the_codebook_is_of_the_seed_and_in_the_checkpoint():
    books = []
    for seed in (0, 0, 1):
        backbone = backbone_of("image")
        torch.manual_seed(seed)
        books.append(Codes(backbone, codes=16))
    assert torch.equal(books[0].codebook, books[1].codebook) and torch.equal(books[0].projection, books[1].projection)
    assert not torch.equal(books[0].codebook, books[2].codebook)
    assert {"codebook", "projection"} <= set(books[0].state_dict()) & set(dict(books[0].named_buffers()))
    torch.testing.assert_close(books[0].codebook.norm(dim=-1), torch.ones(16))


def test_numbers_of_tokens_are_frozen_spread_and_of_their_own_text():
    text = fitted()
    view, singles = batch_of(text, 6)
    values = text.numbers(view)
    assert torch.equal(values, text.numbers(view)) and values.shape[-1] == text.values == 48
    for i, alone in enumerate(singles):
        assert torch.equal(values[view.segment == i + 1], text.numbers(alone)[0])
    every = text.numbers(view.replace(data=torch.arange(view.data.numel()).view_as(view.data)))[..., 16:32]
    assert abs(every.mean()) < 0.1 and abs(every.var() - 1) < 0.1
    assert len(every.flatten(0, 1).unique(dim=0)) == every.shape[0] * every.shape[1]


def position_is_right():
    test_position_is_its_formula("text", 0.75)


def codes_are_right():
    test_codes_are_their_formula("text")


def placed(self, view, hide=None, places=None, encode=pretext.Backbone.encode):
    return encode(self, view, hide)


def everywhere(scores, valid, segment, error=pretext.place_error):
    return error(scores, valid, None)


def seen(self, view, hide=None, places=None, encode=pretext.Backbone.encode):
    return encode(self, view, None, places)


def not_normalised(x, shape, *more, whole=F.layer_norm):
    """What enters the projection; the encoder's own norms stay."""
    return whole(x, shape, *more) if more else x + 0.5


PLANTED = {
    "no place is left out": (position_is_right, pretext.Backbone, "encode", placed),
    "places of other samples are candidates": (position_is_right, pretext, "place_error", everywhere),
    "lone places count": (
        position_is_right,
        pretext,
        "place_error",
        lambda *given, error=pretext.place_error: (error(*given)[0], torch.ones_like(given[1])),
    ),
    "contents are not hidden": (
        codes_are_right,
        pretext.Backbone,
        "encode",
        seen,
    ),
    "inputs are not normalised": (codes_are_right, pretext.F, "layer_norm", not_normalised),
    "neighbours are those of the row": (
        codes_are_right,
        Text,
        "numbers",
        lambda self, view, numbers=Text.numbers: numbers(self, view.replace(segment=torch.ones_like(view.segment))),
    ),
    "the use is that of all pieces": (
        codes_are_right,
        collectives,
        "total",
        lambda x: x + 1.0,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_seen(name, monkeypatch):
    assert_seen(monkeypatch, *PLANTED[name])
