"""Views of several samples, sizes and orders give the vectors that each sample has alone."""

import dataclasses

import pytest
import torch

from triptych.encoders import POOLINGS, pool, pooled
from triptych.encoders.native import FAMILIES, make
from triptych.modalities import Image, View, ViewSpec, stack

VIEWS = (ViewSpec(), ViewSpec(size=0.5), ViewSpec(size=0.5, index=1))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    image = Image(32, 4, positions="learned")
    return make(image, width=32, depth=2, heads=2).eval()


def pictures(backbone, view, count=3):
    side = int(32 * view.size)
    generator = torch.Generator().manual_seed(view.index)
    data = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    return backbone.modality.prepare(View(data=data, seed=torch.arange(count)))


@torch.no_grad()
def test_views_of_two_sizes_take_one_forward_each(backbone):
    views, forwards = [pictures(backbone, spec) for spec in VIEWS], []
    hook = backbone.register_forward_hook(lambda _, inputs, __: forwards.append(inputs[0].data.shape[:2]))
    together = pooled(backbone, views)
    hook.remove()
    assert forwards == [(3, 64), (6, 16)]
    torch.testing.assert_close(together, torch.stack([backbone(view) for view in views]), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="several grids"):
        stack(views)


@torch.no_grad()
def test_places_of_a_smaller_view_are_the_native_ones(backbone):
    small = pictures(backbone, VIEWS[1])
    native = FAMILIES["vit"].export(backbone)
    pixels = small.data.unflatten(1, (4, 4)).unflatten(-1, (3, 4, 4)).permute(0, 3, 1, 4, 2, 5).reshape(3, 3, 16, 16)
    theirs = native(pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(backbone(small), theirs[:, 0], atol=2e-5, rtol=0)


@torch.no_grad()
def test_a_row_of_several_samples_is_each_alone(backbone):
    views = [pictures(backbone, VIEWS[0]).keep(torch.arange(n).expand(3, -1)) for n in (40, 20)]
    # Row 0 holds the first 40 pieces of picture 0 and the first 20 of picture 1; row 1, picture 2 and holes.
    packed = View(
        data=torch.stack([torch.cat([views[0].data[0], views[1].data[1]]), views[0].data[2].repeat(2, 1)[:60]]),
        position=torch.stack([torch.cat([views[0].position[0], views[1].position[1]])] * 2),
        segment=torch.tensor([[2] * 40 + [1] * 20, [3] * 40 + [0] * 20]),
        samples=torch.tensor([[2, 1], [3, 0]]),
        seed=torch.arange(3),
        grid=views[0].grid,
    )
    packed.position[1, :40] = views[0].position[2]
    encoded = backbone.encode(packed)
    long, short = (backbone.encode(view) for view in views)
    for kind in POOLINGS:
        alone = [pool(short, views[1], kind)[1], *(pool(long, views[0], kind)[i] for i in (0, 2))]
        torch.testing.assert_close(pool(encoded, packed, kind), torch.stack(alone), atol=1e-5, rtol=0)


def test_a_view_keeps_stacks_and_repeats_all_its_fields():
    view = View(
        data=torch.arange(6).view(2, 3),
        seed=torch.arange(3),
        position=torch.arange(3).view(1, 3, 1),
        segment=torch.tensor([[1, 1, 2], [3, 3, 0]]),
        samples=torch.tensor([[1, 2], [3, 0]]),
        identity=torch.arange(3),
        row=torch.arange(3),
        group=torch.arange(6).view(2, 3),
        ordinary=torch.ones(2, 3, dtype=torch.bool),
        secret=torch.ones(2, 3, 4, dtype=torch.bool),
        valid_frames=torch.arange(3),
        warp=torch.zeros(3, 6),
    )
    assert len(view.tensors()) == len(dataclasses.fields(View)) - 1, "a new field belongs in this test"
    kept = view.keep(torch.tensor([[2, 0], [1, 0]]))
    assert kept.data.tolist() == kept.group.tolist() == [[2, 0], [4, 3]]
    assert kept.position[..., 0].tolist() == [[2, 0], [1, 0]] and kept.segment.tolist() == [[2, 1], [3, 3]]
    twice = view.repeat(2)
    assert twice.segment.tolist() == [[1, 1, 2], [3, 3, 0], [4, 4, 5], [6, 6, 0]]
    assert twice.samples.tolist() == [[1, 2], [3, 0], [4, 5], [6, 0]]
    assert len(set(twice.seed.tolist())) == 6 and twice.identity.tolist() == twice.row.tolist() == [0, 1, 2] * 2
    for name, tensor in twice.tensors().items():
        assert len(tensor) in (4, 6), name
