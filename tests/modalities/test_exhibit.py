"""What people are shown: samples as they are, without what was hidden, with what was guessed in its place."""

import numpy as np
import pytest
import support
import torch

from triptych.modalities import EVALUATION, MODALITIES
from triptych.modalities.exhibit import Seen
from triptych.objectives import OBJECTIVES
from triptych.objectives.masking import hidden_index, hide
from triptych.training.loader import Samples

COUNT = 4


def views_of(name, modality, specs):
    rows = support.rows_of(name, modality)
    table = modality.samples(rows.table, rows.column).select_columns([rows.column])
    made = Samples(table, rows.column, modality, specs, 0, 10).__getitems__([(0, i) for i in range(COUNT)])
    return made["views"]


def modality_of(name, **settings):
    return MODALITIES[name](**support.TINY[name] | settings)


GRIDS = [
    ("image", {}),
    ("image", {"channels": 3, "target": "raw"}),
    ("image", {"channels": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}),
    ("audio", {}),
    ("audio", {"tile": (8, 8), "stride": (4, 4)}),
]


@pytest.mark.parametrize("name,settings", GRIDS)
def test_what_is_guessed_perfectly_is_what_was_there(name, settings):
    modality = modality_of(name, **settings)
    (raw,) = views_of(name, modality, (EVALUATION,))
    view = modality.prepare(raw)
    as_it_is = [one.picture for one in modality.exhibit(view)]
    hidden = hide(view, 0.5, "random", 1, modality.hideable(view))
    index, valid = hidden_index(view, hidden, 0.5)
    target = view.keep(index).data
    if modality.target == "normalised":
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + modality.variance_floor).sqrt()
    left = [one.picture for one in modality.exhibit(view, Seen(index, valid))]
    guessed = [one.picture for one in modality.exhibit(view, Seen(index, valid, target))]
    wrong = [one.picture for one in modality.exhibit(view, Seen(index, valid, target + 1))]
    assert len(as_it_is) == len(left) == COUNT
    for b in range(COUNT):
        gone = np.isnan(left[b])
        assert 0 < gone.mean() < 1
        if modality.stride == modality.tile:
            share = hidden[b].float().mean().item()
            assert gone.mean() == pytest.approx(share, abs=1e-6)
        np.testing.assert_allclose(left[b][~gone], as_it_is[b][~gone], atol=1e-6)
        np.testing.assert_allclose(guessed[b], as_it_is[b], atol=2e-3)
        np.testing.assert_allclose(wrong[b][~gone], as_it_is[b][~gone], atol=2e-3)
    assert np.abs(np.stack(wrong) - np.stack(as_it_is)).max() > 0.05
    assert all(0 <= p.min() and p.max() <= 1 for p in as_it_is)


def test_a_picture_is_that_of_its_pixels():
    modality = modality_of("image", channels=3)
    (raw,) = views_of("image", modality, (EVALUATION,))
    pixels = raw.data.permute(0, 2, 3, 1).float() / (1 if raw.data.is_floating_point() else 255)
    for one, picture in zip(modality.exhibit(raw), pixels, strict=True):
        np.testing.assert_allclose(one.picture, picture, atol=1e-5)


def test_a_sound_is_its_wave_without_padding_and_low_tones_are_at_the_bottom():
    modality = modality_of("audio", mean=-8.0, std=4.0, seconds=0.32)
    wave = support.tone(0.2, pitch=300.0)
    made = modality.view(modality.read({"bytes": support.encoded(wave), "path": "a.wav"}), EVALUATION, 0)
    raw = modality.collate([made], torch.zeros(1, dtype=torch.long))
    (one,) = modality.exhibit(raw)
    assert one.sound[1] == 16_000 and len(one.sound[0]) == pytest.approx(3200, abs=200)
    assert one.picture.shape == modality.extent
    loudest = one.picture[:, 4:12].mean(1).argmax()
    assert loudest > modality.extent[0] / 2


def test_words_are_those_of_the_text_and_guesses_stand_where_words_were_hidden():
    modality = modality_of("text")
    (raw,) = views_of("text", modality, (EVALUATION,))
    view = modality.prepare(raw)
    as_it_is = ["".join(word.text for word in one.words) for one in modality.exhibit(raw)]
    hidden = hide(view, 0.3, "random", 1, modality.hideable(view))
    index, valid = hidden_index(view, hidden, 0.3)
    right = torch.nn.functional.one_hot(view.keep(index).data, modality.rows).float()
    for one, text in zip(modality.exhibit(view, Seen(index, valid, right)), as_it_is, strict=True):
        assert text.strip() and "<s>" not in text
        assert "".join(word.text for word in one.words) == text
        assert any(word.hidden for word in one.words)
        assert all(word.guess == word.text for word in one.words if word.hidden)
    for one in modality.exhibit(view, Seen(index, valid, right.roll(1, -1))):
        assert all(word.guess != word.text for word in one.words if word.hidden)
    for one in modality.exhibit(view, Seen(index, valid)):
        assert all(word.guess is None for word in one.words)


@pytest.mark.parametrize("name", support.TINY)
def test_every_objective_says_what_it_saw(name, tmp_path):
    """And asks no other rank for it: it is shown by a process that has none."""
    hides = {"mae", "masked", "data2vec", "ijepa"}
    modality, made = modality_of(name), {}
    support.rows_of(name, modality)
    for objective in (o for o in OBJECTIVES if not support.needed(o)):
        config = support.config(name, objective, tmp_path)
        built = config.build_objective(modality)
        views = [modality.prepare(view) for view in views_of(name, modality, built.views)]
        with torch.no_grad():
            found = built.eval().seen(views)
        assert len(found) == len(views)
        made[objective] = found[0]
        if objective in hides:
            assert 0 < found[0].hidden(views[0]).float().mean() < 1
            assert all(len(modality.exhibit(views[0], found[0])) == COUNT for _ in found)
    assert hides <= {k for k, seen in made.items() if seen.index is not None}
    assert {k for k, seen in made.items() if seen.guess is not None} == {"mae", "masked"}
