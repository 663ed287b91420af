"""Multi-crop: which views are asked for, and what each modality makes of a small one."""

import numpy as np
import pytest
import support
import torch

from triptych.modalities import MODALITIES, Audio, Image, Text, ViewSpec
from triptych.modalities.domains import build
from triptych.objectives import Crops


def test_two_large_views_come_first_then_the_small_ones():
    views = Crops(number=3, size=0.5, scale=(0.1, 0.3), large=(0.5, 0.9)).views()
    assert [(v.scale, v.size) for v in views] == [((0.5, 0.9), 1.0)] * 2 + [((0.1, 0.3), 0.5)] * 3
    assert [v.index for v in views] == [0, 1, 2, 3, 4] and {v.strength for v in views} == {"strong"}
    assert len(Crops(number=0).views()) == 2 and Crops().size == pytest.approx(96 / 224, abs=0.01)


@pytest.mark.parametrize("wrong", [{"size": 0.0}, {"size": 1.5}, {"number": -1}, {"scale": (0.4, 0.1)}])
def test_what_is_no_crop_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(Crops, wrong)


SPECS = Crops(number=2, size=0.5, scale=(0.2, 0.5), large=(0.8, 1.0)).views()


@pytest.mark.parametrize("name", MODALITIES)
def test_a_small_view_has_fewer_pieces(name):
    """On every modality, and any two views of a sample differ."""
    larger = {"image": {"image_size": 16}, "text": {"augmentation": "span", "max_length": 128}}
    modality = MODALITIES[name](**support.TINY[name] | larger.get(name, {}))
    modality.fit(support.table_of(name), name)
    cell = " ".join(support.NOUNS * 3) if name == "text" else support.cells(name, 1)[0][0]
    sample, pieces, made = modality.read(cell), [], []
    for spec in SPECS:
        view = modality.prepare(modality.collate([modality.view(sample, spec, 5)], torch.tensor([5])))
        pieces.append(view.data.shape[1] if view.segment is None else int((view.segment > 0).sum()) - 1)
        made.append(view.data[0].flatten().tolist())
    assert max(pieces[2:]) <= 0.7 * min(pieces[:2]), pieces
    assert all(made[i] != made[j] for i in range(4) for j in range(i))


def test_sizes_of_a_small_view():
    """Half of a picture's sides, half of a sound's time at all its frequencies, at most half of a text's words."""
    assert Image(32, 8).scaled(0.43) == (2, 2)
    assert Audio(seconds=1.0, tile=[128, 4]).scaled(0.5) == (1, 12)
    sample = {"ids": np.arange(10, 50), "starts": np.ones(40, dtype=bool)}
    text = Text(vocab_size=300, max_length=48, augmentation="span")
    text.last = 1
    for seed in range(50):
        small = text.view(sample, ViewSpec(scale=(0.3, 1.0), size=0.5, strength="strong"), seed)["data"][:-1]
        assert 12 <= len(small) <= 20 and (np.diff(small) == 1).all()
    assert len(text.view(sample, ViewSpec(size=0.5), 0)["data"]) == 21  # weak views, too
    text.augmentation = "split"
    for seed in range(50):
        whole, small = (text.view(sample, ViewSpec(size=s, strength="strong"), seed)["data"][:-1] for s in (1.0, 0.5))
        assert len(small) == round(len(whole) / 2) and set(small.tolist()) <= set(whole.tolist())
