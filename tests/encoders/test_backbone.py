"""Views of several samples, sizes and orders give the vectors that each sample has alone."""

import pytest
import torch
from transformers import ViTConfig, ViTModel

from encoders import Backbone, Encoder, keep, pool_leads, pool_pieces, stack
from encoders.native import family_of
from modalities import Image, View

VIEWS = (View(), View(size=0.5), View(size=0.5, index=1))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    image = Image(32, 4, positions="learned")
    made = Backbone(image, Encoder(32, 2, 2))
    image.expect(VIEWS)
    return made.eval()


def pictures(backbone, view, count=3):
    side = int(32 * view.size)
    generator = torch.Generator().manual_seed(view.index)
    data = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    return backbone.modality.prepare({"data": data, "seed": torch.arange(count)})


@torch.no_grad()
def test_views_of_two_sizes_in_one_forward(backbone):
    views = [pictures(backbone, view) for view in VIEWS]
    together = backbone(stack(views))
    alone = torch.cat([backbone(view) for view in views])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_places_of_a_smaller_view_are_the_native_ones(backbone):
    small = pictures(backbone, VIEWS[1])
    family = family_of("image")
    native = ViTModel(ViTConfig.from_dict(family.native(backbone, None).config.to_dict())).eval()
    native.load_state_dict(family.state(backbone, None))
    pixels = small["data"].unflatten(1, (4, 4)).unflatten(-1, (3, 4, 4)).permute(0, 3, 1, 4, 2, 5).reshape(3, 3, 16, 16)
    theirs = native(pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(backbone(small), theirs[:, 0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_row_of_several_samples_is_each_alone(backbone):
    views = [keep(pictures(backbone, VIEWS[0]), torch.arange(n).expand(3, -1)) for n in (40, 20)]
    # Row 0 holds the first 40 pieces of picture 0 and the first 20 of picture 1; row 1, picture 2 and holes.
    packed = {
        "data": torch.stack(
            [torch.cat([views[0]["data"][0], views[1]["data"][1]]), views[0]["data"][2].repeat(2, 1)[:60]]
        ),
        "position": torch.stack([torch.cat([views[0]["position"][0], views[1]["position"][1]])] * 2),
        "segment": torch.tensor([[2] * 40 + [1] * 20, [3] * 40 + [0] * 20]),
        "samples": torch.tensor([[2, 1], [3, 0]]),
        "seed": torch.arange(3),
    }
    packed["position"][1, :40] = views[0]["position"][2]
    encoded = backbone.encode(packed)
    long, short = (backbone.encode(view) for view in views)
    for pool in (pool_leads, pool_pieces):
        alone = torch.stack([pool(short, views[1])[1], pool(long, views[0])[0], pool(long, views[0])[2]])
        torch.testing.assert_close(pool(encoded, packed), alone, atol=1e-5, rtol=0)


def test_an_undeclared_size_is_named(backbone):
    data = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"no view of \(6, 6\) pieces was declared"):
        backbone.modality.prepare({"data": data, "seed": torch.zeros(1, dtype=torch.long)})
