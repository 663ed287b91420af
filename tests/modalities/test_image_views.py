"""What views of pictures are, in distribution or by value: a recipe is code, and another one must not pass for it."""

import numpy as np
import pytest
import torch
from scipy import stats

from modalities.hashing import generator
from modalities.image import crop

SURE = 1e-4  # of a fixed seed: a right distribution is refused once in 10,000 tests, a wrong one always


def described(boxes, height: int, width: int) -> np.ndarray:
    """Of boxes (left, top, right, bottom): area, logarithm of the aspect, and where they lie, each as a column."""
    left, top, right, bottom = np.asarray(boxes, dtype=float).T
    w, h = right - left, bottom - top
    free = [start / np.maximum(room, 1) for start, room in ((left, width - w), (top, height - h))]
    return np.stack([w * h / (width * height), np.log(w / h), *free], axis=1)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (0.9, 1.0), (0.3, 0.5)])
@pytest.mark.parametrize("size", [(300, 400), (120, 120), (400, 50), (30, 400), (8, 8)])
def test_crops_are_distributed_as_torchvision_s(size, scale):
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    picture, random, theirs = torch.empty(1, *size), generator(0, 1), []
    for _ in range(1500):
        top, left, h, w = RandomResizedCrop.get_params(picture, scale, (3 / 4, 4 / 3))
        theirs.append((left, top, left + w, top + h))
    ours = [crop(*size, scale, random) for _ in range(1500)]
    for a, b in zip(described(ours, *size).T, described(theirs, *size).T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > SURE


@pytest.mark.parametrize(
    "size, box", [((75, 100), (0, 0, 100, 75)), ((50, 400), (166, 0, 233, 50)), ((90, 9), (0, 39, 9, 51))]
)
def test_where_no_crop_fits_the_middle_is_taken_up_to_an_aspect(size, box):
    assert crop(*size, (0.999, 0.9999), generator(3)) == box


def test_small_crops_have_areas_and_aspects_as_drawn():
    """In a picture so large that all of them fit, areas are uniform, aspects log-uniform, and so are places."""
    boxes = [crop(4000, 4000, (0.1, 0.5), generator(i, 7)) for i in range(3000)]
    area, aspect, left, top = described(boxes, 4000, 4000).T
    assert stats.kstest(area, stats.uniform(0.1, 0.4).cdf).pvalue > SURE
    assert stats.kstest(aspect, stats.uniform(np.log(3 / 4), 2 * np.log(4 / 3)).cdf).pvalue > SURE
    for place in (left, top):
        assert stats.kstest(place, stats.uniform.cdf).pvalue > SURE
    assert crop(30, 40, (1.0, 1.0), generator(0)) == (0, 0, 40, 30)
