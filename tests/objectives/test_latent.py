"""data2vec 2.0 and I-JEPA against loops over samples, masks and layers."""

import copy

import numpy as np
import pytest
import torch
from singles import KINDS, assert_equal, assert_seen, backbone_of, batch_of, shaken

from triptych.encoders import Backbone
from triptych.modalities import View
from triptych.modalities.hashing import mix
from triptych.modalities.view import REPEAT, stack
from triptych.objectives import Data2Vec, Decoder, Mask, Progress, latent, masking


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
