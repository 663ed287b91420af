"""What views of pictures are, in distribution or by value: a recipe is code, and another one must not pass for it."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as pillow
from scipy import stats

from triptych.modalities import Image, ViewSpec, image
from triptych.modalities.hashing import generator
from triptych.modalities.image_views import AUGMENTATIONS, Strong, crop, distort

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


# Colours


def spread(samples, low: float, high: float) -> None:
    """The samples are uniform between the two."""
    assert stats.kstest(samples, stats.uniform(low, high - low).cdf).pvalue > SURE


def share(events, expected: float) -> None:
    assert stats.binomtest(int(sum(events)), len(events), expected).pvalue > SURE


OFF = Strong(0, 0, 0, 0, jitter=1, grey=0)
COLOURED = pillow.fromarray(np.tile(np.array([[[120, 60, 90]], [[60, 100, 120]]], np.uint8), (8, 16, 1)))


def drawn(picture, strong: Strong, count: int = 400) -> list[np.ndarray]:
    return [np.asarray(distort(picture, strong, generator(seed, 5)), dtype=float) for seed in range(count)]


def test_recipes_are_those_of_the_papers():
    """SimCLR, appendix A (strength 1); BYOL, appendix B, table 6."""
    assert AUGMENTATIONS == {
        "light": (Strong(0.4, 0.4, 0.4, 0.1, 0.8, 0.2, 0.0, 0.0),),
        "simclr": (Strong(0.8, 0.8, 0.8, 0.2, 0.8, 0.2, 0.5, 0.0),),
        "byol": (Strong(0.4, 0.4, 0.2, 0.1, 0.8, 0.2, 1.0, 0.0), Strong(0.4, 0.4, 0.2, 0.1, 0.8, 0.2, 0.1, 0.2)),
    }


def test_brightness_contrast_and_saturation_are_uniform_factors():
    grey = pillow.new("L", (8, 8), 100)
    spread([a.mean() / 100 for a in drawn(grey, replace(OFF, brightness=0.5))], 0.495, 1.505)
    halves = pillow.fromarray(np.repeat(np.array([[80, 120]], np.uint8), 8, 0))
    spread([(a[0, 1] - a[0, 0]) / 40 for a in drawn(halves, replace(OFF, contrast=0.8))], 0.18, 1.82)
    plain = np.ptp(np.asarray(drawn(COLOURED, OFF, 1)[0])[0, 0])
    spread([np.ptp(a[0, 0]) / plain for a in drawn(COLOURED, replace(OFF, saturation=0.6))], 0.37, 1.63)


def test_hue_turns_by_a_share_of_the_circle():
    red = pillow.new("RGB", (4, 4), (200, 0, 0))
    turns = [colorsys.rgb_to_hsv(*(a[0, 0] / 255))[0] for a in drawn(red, replace(OFF, hue=0.1))]
    spread([(t + 0.5) % 1 - 0.5 for t in turns], -0.103, 0.103)


def test_each_distortion_has_its_probability():
    same = np.asarray(COLOURED, dtype=float)
    share([not np.array_equal(a, same) for a in drawn(COLOURED, Strong(0.9, 0, 0, 0, jitter=0.8, grey=0))], 0.8)
    share([np.ptp(a, axis=2).max() == 0 for a in drawn(COLOURED, Strong(0, 0, 0, 0, jitter=0, grey=0.2))], 0.2)
    bright = pillow.new("L", (8, 8), 200)
    solarised = drawn(bright, Strong(jitter=0, grey=0, solarize=0.2))
    assert {a.max() for a in solarised} == {200, 55}
    share([a.max() == 55 for a in solarised], 0.2)
    point = np.zeros((225, 225), np.uint8)
    point[112, 112] = 255
    blurred = drawn(pillow.fromarray(point), Strong(jitter=0, grey=0, blur=0.5), 300)
    share([a[112, 112] < 255 for a in blurred], 0.5)
    widths = [np.sqrt(((np.arange(225) - 112) ** 2 * a.sum(0)).sum() / a.sum()) for a in blurred if a.max() < 250]
    assert 1.2 < max(widths) < 2.3 and np.median(widths) == pytest.approx(1.05, abs=0.3)


# Views


def views(modality: Image, spec: ViewSpec, count: int = 400) -> list[np.ndarray]:
    ramp = pillow.fromarray(np.tile(np.arange(16, dtype=np.uint8) * 10, (16, 1)))
    return [modality.view(ramp, spec, seed)["data"][0].numpy().astype(float) for seed in range(count)]


@pytest.mark.parametrize("flip", [0.5, 0.2, 0.0, 1.0])
def test_flips_have_their_probability(flip):
    made = views(Image(16, 4, channels=1, flip=flip), ViewSpec())
    share([a[0, 0] > a[0, -1] for a in made], flip)
    assert all(a[0, 0] < a[0, -1] for a in views(Image(16, 4, channels=1), ViewSpec(strength="none"), 20))


@pytest.mark.parametrize("recipe", AUGMENTATIONS)
def test_strong_views_are_distorted_by_their_recipe_and_weak_ones_never(recipe, monkeypatch):
    seen = []
    monkeypatch.setattr(image, "distort", lambda picture, strong, random: seen.append(strong) or picture)
    modality = Image(16, 4, channels=1, augmentation=recipe)
    for index in range(3):
        views(modality, ViewSpec(strength="strong", index=index), 1)
    first, last = AUGMENTATIONS[recipe][0], AUGMENTATIONS[recipe][-1]
    assert seen == [first, last, last]
    views(modality, ViewSpec(), 1)
    assert len(seen) == 3


def moved(**settings) -> np.ndarray:
    """By draw, the affine map `[3 2]` that takes (1, x, y) of a point to where it lies in the view; from the centre."""
    size, points = 101, [(30, 30), (70, 30), (30, 70)]
    modality, maps = Image(size, 101, channels=1, **settings), []
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1)
    blobs = [np.exp(-((grid - p) ** 2).sum(-1) / 18) * 250 for p in points]
    for seed in range(200):
        ends = []
        for blob in blobs:
            made = np.asarray(modality._affine(pillow.fromarray(blob.astype(np.uint8)), generator(seed, 3)), float)
            ends.append((made[..., None] * grid).sum((0, 1)) / made.sum() - 50)
        maps.append(np.linalg.solve(np.array([[1, x - 50, y - 50] for x, y in points]), np.array(ends)))
    return np.array(maps)


def test_turns_shifts_zooms_and_shears_are_uniform_up_to_their_settings():
    turn = moved(rotation=15.0)
    spread(np.degrees(np.arctan2(turn[:, 1, 1], turn[:, 1, 0])), -15.3, 15.3)
    shift = moved(shift=0.1)[:, 0] / 101
    spread(shift[:, 0], -0.102, 0.102)
    spread(shift[:, 1], -0.102, 0.102)
    zoom = np.log(np.linalg.det(moved(zoom=0.25)[:, 1:])) / 2
    spread(zoom, -np.log(1.25) - 0.005, np.log(1.25) + 0.005)
    shear = moved(shear=0.2)[:, 1:]
    spread(shear[:, 1, 0], -0.205, 0.205)
    assert np.abs(shear[:, 0, 1]).max() < 0.02 and np.abs(np.linalg.det(shear) - 1).max() < 0.02
