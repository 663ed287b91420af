"""The colours of a page: the colour-blind tell its lines apart, and it can be read in the light and in the dark."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from triptych.evaluation import report_page

# What is left of linear RGB without one kind of cones: Machado, Oliveira and Fernandes 2009, table 1, severity 1.
COLOUR_BLIND = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def linear_rgb(colour: str) -> np.ndarray:
    value = np.array(to_rgb(colour))
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of linear RGB, white D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ rgb.clip(0, 1) / to_xyz.sum(1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's ratio of two luminances."""
    low, high = sorted(float(np.dot([0.2126, 0.7152, 0.0722], linear_rgb(c))) + 0.05 for c in (one, other))
    return high / low


def palettes() -> dict[str, dict[str, str]]:
    """The colours of report.css by name, on a light and on a dark page."""
    light, dark = (
        (Path(report_page.__file__).parent / "report.css").read_text().split("@media (prefers-color-scheme: dark)")
    )
    light, dark = (dict(re.findall(r"--(\w+): (#[0-9a-f]+);", part.partition("}")[0])) for part in (light, dark))
    return {"light": light, "dark": light | dark}


@pytest.mark.parametrize("kind", COLOUR_BLIND)
def test_the_colour_blind_tell_lines_apart(kind):
    """A difference of 15 is seen at a glance; a brighter palette for dark pages had two colours 9 apart."""
    seen = [lab(np.array(COLOUR_BLIND[kind]) @ linear_rgb(colour)) for colour in report_page.OKABE_ITO]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15
    assert {name: [c for k, c in sorted(p.items()) if k[0] == "c"] for name, p in palettes().items()} == dict.fromkeys(
        ("light", "dark"), list(report_page.OKABE_ITO)
    )


@pytest.mark.parametrize("page", ["light", "dark"])
def test_a_page_can_be_read_in_the_light_and_in_the_dark(page):
    """WCAG 2.1: 7 for words (AAA), 3 for what is drawn; the fifth and sixth line on white are known to be paler."""
    colours = palettes()[page]
    assert min(contrast(colours["ink"], colours[under]) for under in ("paper", "soft")) > 7
    assert contrast(colours["mark"], colours["paper"]) > 4.5
    drawn = [contrast(colour, colours["paper"]) for colour in report_page.OKABE_ITO]
    assert min(drawn[:4]) > 3 and min(drawn) > 2.2
