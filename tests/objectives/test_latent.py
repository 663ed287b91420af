"""data2vec 2.0 and I-JEPA against loops over samples, masks and layers."""

import copy

import numpy as np
import pytest
import torch
from singles import KINDS, ONE, assert_equal, assert_seen, backbone_of, batch_of, shaken
from torch.nn import functional as F

from triptych.encoders import Backbone
from triptych.modalities import EVALUATION, View
from triptych.modalities.hashing import mix
from triptych.modalities.view import REPEAT, stack
from triptych.objectives import IJEPA, Data2Vec, Decoder, Mask, Progress, latent, masking


def predicted(predictor, backbone, alone, kept, wanted):
    """Tokens of the wanted pieces of one sample, and its leads, both as the docstrings say it."""
    view = alone.keep(kept[None])
    encoded = backbone.encode(view)
    grid = alone.grid
    place = alone.position.expand(1, -1, -1)
    leads = predictor.embed(encoded.leads.flatten(1, 2))
    seen = predictor.embed(encoded.pieces) + predictor.places(place[:, kept], grid)
    holes = predictor.hidden + predictor.places(place[:, wanted], grid)
    tokens = predictor.encoder(torch.cat([leads, seen, holes], dim=1))
    return tokens[0, len(leads[0]) + len(kept) :], encoded.leads[0, 0, 0]


def teacher_targets(teacher, alone, layers: int, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Section 3.1 of data2vec 2.0, of one sample, in numpy."""
    with torch.no_grad():
        x, segment, place = teacher.tokens(alone)
        given = []
        for block in teacher.encoder.blocks:
            x = x + block.attention(block.norm1(x), None, None, x.shape[1])
            given.append(block.mlp(block.norm2(x)))
            x = x + given[-1]
    a = np.stack([g[0, teacher.embedding.leads :].double().numpy() for g in given[-layers:]])  # [k n d]
    inner = a[:, used]
    mean, variance = inner.mean(1, keepdims=True), inner.var(1, keepdims=True)
    y = ((a - mean) / np.sqrt(variance + 1e-5)).mean(0)
    whole = inner.mean((0, 1))
    return tuple((v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5) for v in (y, whole))


def loop(objective, singles) -> torch.Tensor:
    """data2vec 2.0 sample by sample and mask by mask."""
    backbone, modality, mask = objective.backbone, objective.backbone.modality, objective.mask
    errors, of_leads = [], []
    for alone in singles:
        hideable = modality.hideable(alone)
        used = np.ones(alone.data.shape[1], bool) if hideable is None else hideable[0].numpy()
        y, whole = teacher_targets(objective.teacher[0], alone, objective.layers, used)
        for number in range(objective.masks):
            seed = mix(alone.seed, REPEAT, number)
            hide = masking.hide(alone.replace(seed=seed), mask.ratio, mask.kind, mask.block, modality.droppable(alone))
            kept, gone = (~hide[0]).nonzero()[:, 0], hide[0].nonzero()[:, 0]
            tokens, lead = predicted(objective.predictor, backbone, alone, kept, gone)
            for guess, piece in zip(objective.predict(tokens), gone.tolist(), strict=True):
                if used[piece]:
                    errors.append((guess - torch.tensor(y[piece]).float()).square().mean())
            if objective.lead:
                of_leads.append((objective.predict_whole(lead) - torch.tensor(whole).float()).square().mean())
    loss = torch.stack(errors).mean()
    return loss + objective.lead * torch.stack(of_leads).mean() if objective.lead else loss


def data2vec(kind: str, **settings) -> Data2Vec:
    made = Data2Vec(backbone_of(kind), decoder=Decoder(16, 1, 2), half_life=100, **settings)
    return shaken(made)  # students move away from what the teacher copied


@pytest.mark.parametrize(
    "settings",
    [
        {"mask": Mask(0.6, "inverse_block", 2), "masks": 3},
        {"mask": Mask(0.5), "masks": 1, "layers": 1, "lead": 0.0},
    ],
    ids=["three masks", "one mask, top layer, no lead"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_data2vec_is_its_formula(kind, settings):
    objective = data2vec(kind, **settings)
    view, singles = batch_of(objective.backbone.modality)
    other = copy.deepcopy(objective)
    out = objective([view])
    assert_equal(objective, other, out["loss"], loop(other, singles))
    assert out["features"].shape == (len(view), objective.backbone.width)


def test_data2vec_s_teacher_follows_and_is_what_targets_are_made_of():
    objective = data2vec("image")
    view, _ = batch_of(objective.backbone.modality)
    before = objective.targets(view)[0]
    objective.after_step([], Progress(1, 10**9, 100))  # one half-life
    after = objective.targets(view)[0]
    assert not torch.allclose(before, after, atol=1e-3) and objective.averaged() is objective.teacher[0]
    assert not after.requires_grad


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(ValueError, match="objective.layers 3: the encoder has 2 blocks"):
        data2vec("image", layers=3)


def of_blocks(self, view):
    """Outputs of whole blocks, residual sums and all."""
    layers = self.encoder(*self.tokens(view), every_layer=True)
    return [self.split(tokens, view).pieces for tokens in layers[1:]]


def data2vec_is_right():
    test_data2vec_is_its_formula("text", {"mask": Mask(0.5), "masks": 2})


PLANTED = {
    "targets of data2vec are not normalised": (latent, "normalised", lambda values, *_: values),
    "they are normalised over rows": (latent, "counted", lambda view, _: view.one_a_row().segment.clamp(max=1)),
    "they are of whole blocks": (Backbone, "branches", of_blocks),
    "every mask of a sample is the same": (View, "repeat", lambda view, count: stack([view] * count)),
    "targets are another sample's": (latent, "take", lambda values, index: masking.take(values.roll(1, 1), index)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_of_data2vec_is_seen(name, monkeypatch):
    assert_seen(monkeypatch, data2vec_is_right, *PLANTED[name])


def blocks_of(alone, modality, share: float, count: int) -> tuple[list[set], list[int]]:
    """Blocks of one sample that the predictor is asked for, and the pieces of its context (`masking.boxes`)."""
    position = alone.position.expand(1, -1, -1)[0].tolist()
    droppable = modality.droppable(alone)
    free = [True] * len(position) if droppable is None else droppable[0].tolist()
    if alone.grid is None:
        lengths = [sum(free)]
        sides = [max(1, round(lengths[0] * share))]
    else:
        lengths = list(alone.grid)
        axes = sum(length > 1 for length in lengths)
        sides = [max(1, round(length * share ** (1 / axes))) if length > 1 else 1 for length in lengths]
    seed, blocks = mix(int(alone.seed), masking.SALT + 2), []
    for number in range(count):
        corner = [mix(seed, number, k) % (n - s + 1) for k, (n, s) in enumerate(zip(lengths, sides, strict=True))]
        near = [all(c <= x < c + s for c, x, s in zip(corner, p, sides, strict=True)) for p in position]
        blocks.append({i for i, (hit, may) in enumerate(zip(near, free, strict=True)) if hit and may})
    union = set().union(*blocks)
    noise = masking.random(alone, 1)[0].tolist()
    order = sorted((i for i, may in enumerate(free) if may), key=lambda i: (i not in union, noise[i]))
    gone = set(order[: max(0, min(count * int(np.prod(sides)), len(order) - 1))])
    # Of a row without holes all of a block is asked for, also what stays in the context; that does not count.
    return [block & gone if alone.grid is None else block for block in blocks], [
        i for i in range(len(position)) if i not in gone
    ]


def ijepa_loop(objective, singles) -> torch.Tensor:
    """Equation 1 of I-JEPA, sample by sample and block by block."""
    backbone, modality, errors = objective.backbone, objective.backbone.modality, []
    for alone in singles:
        with torch.no_grad():
            y = objective.teacher[0].encode(alone).pieces[0].double().numpy()
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
        hideable = modality.hideable(alone)
        blocks, context = blocks_of(alone, modality, objective.share, objective.blocks)
        for block in map(sorted, blocks):
            if not block:
                continue
            tokens, _ = predicted(objective.predictor, backbone, alone, torch.tensor(context), torch.tensor(block))
            for guess, piece in zip(objective.predict(tokens), block, strict=True):
                if piece not in context and (hideable is None or hideable[0, piece]):
                    far = (guess - torch.tensor(y[piece]).float()).abs()
                    errors.append(torch.where(far < 1, far**2 / 2, far - 0.5).mean())
    return torch.stack(errors).mean()


def ijepa(kind: str, **settings) -> IJEPA:
    return shaken(IJEPA(backbone_of(kind), decoder=Decoder(16, 1, 2), half_life=100, **settings))


@pytest.mark.parametrize("blocks, share", [(4, 0.175), (2, 0.3), (3, 0.6)])
@pytest.mark.parametrize("kind", KINDS)
def test_ijepa_is_its_formula(kind, blocks, share):
    objective = ijepa(kind, blocks=blocks, share=share)
    view, singles = batch_of(objective.backbone.modality, 6)
    other = copy.deepcopy(objective)
    out = objective([view])
    assert_equal(objective, other, out["loss"], ijepa_loop(other, singles))
    assert out["features"].shape == (len(view), objective.backbone.width)


def test_a_sample_of_one_piece_is_no_target():
    """Nor does anything of it go to waste: the context keeps it."""
    objective = ijepa("text")
    text = objective.backbone.modality
    one = text.collate([text.view(text.read(ONE), EVALUATION, 0)], torch.tensor([5]))
    assert int(text.prepare(one).ordinary.sum()) == 1
    loss = objective([text.prepare(one)])["loss"]
    assert loss == 0 and loss.requires_grad


def test_the_context_holds_nothing_of_the_targets():
    objective = ijepa("image", blocks=3, share=0.2)
    view, _ = batch_of(objective.backbone.modality)
    made = masking.boxes(view, 0.2, 3)
    encoded = objective.backbone.encode(view.keep(made.kept_index))
    target = torch.zeros_like(view.data[..., 0]).bool()
    for index in made.index:
        target.scatter_(1, index, True)
    other = view.replace(data=torch.where(target[..., None], 7.0, view.data))
    assert torch.equal(objective.backbone.encode(other.keep(made.kept_index)).pieces, encoded.pieces)
    assert not torch.equal(objective.targets(other), objective.targets(view))


def ijepa_is_right():
    test_ijepa_is_its_formula("text", 2, 0.3)


def whole_boxes(*arguments, boxes=masking.boxes):
    """The context holds the targets, too."""
    made = boxes(*arguments)
    view = arguments[0]
    index = torch.arange(view.data.shape[1]).expand(len(view.data), -1)
    return made._replace(kept_index=index, kept_valid=view.segment > 0)


def not_normalised(x, shape, *more, whole=F.layer_norm):
    """Targets stay as they are, the encoder's own norms, too."""
    return whole(x, shape, *more) if more else x


PLANTED_IJEPA = {
    "targets of I-JEPA are not normalised": (
        latent.F,
        "layer_norm",
        lambda x, shape, *more, n=F.layer_norm: n(x, shape, *more) if more else x,
    ),
    "its context holds the targets": (masking, "boxes", whole_boxes),
    "all blocks lie in one place": (masking, "mix", lambda seed, *more: mix(seed, *([0] * len(more)))),
    "its targets are the student's": (
        IJEPA,
        "targets",
        lambda self, view: latent.F.layer_norm(self.backbone.encode(view).pieces.detach(), (self.backbone.width,)),
    ),
}


@pytest.mark.parametrize("name", PLANTED_IJEPA)
def test_a_planted_fault_of_ijepa_is_seen(name, monkeypatch):
    assert_seen(monkeypatch, ijepa_is_right, *PLANTED_IJEPA[name])
