"""The scripts behind the figures run, and the figures that are kept are of the settings that are shipped."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import support

ROOT = Path(__file__).parents[1]
CELLS = importlib.util.spec_from_file_location("cells", ROOT / "benchmarks" / "cells.py")
cells = importlib.util.module_from_spec(CELLS)
CELLS.loader.exec_module(cells)


def test_the_measured_cells_are_those_of_the_shipped_configurations():
    for name, line in cells.lines().items():
        assert cells.agrees(line), f"{name} was measured with other settings: measure it again"


def test_another_setting_is_another_cell_and_a_new_option_is_not(monkeypatch):
    settings = cells.resolved("image_mae")
    line = {"cell": "image_mae", "config": cells.fingerprint(settings), "settings": json.loads(json.dumps(settings))}
    assert cells.agrees(line) and settings["seed"] == 0 and cells.resolved("image_mae#1")["seed"] == 1
    older = {k: v for k, v in line["settings"].items() if k != "modality.augmentation"}
    assert cells.agrees(line | {"settings": older, "config": cells.fingerprint(older)})
    forged = line["settings"] | {"learning_rate": 1.0}
    assert not cells.agrees(line | {"settings": forged})
    assert not cells.agrees(line | {"settings": forged, "config": cells.fingerprint(forged)})
    monkeypatch.setitem(cells.SAMPLES, "mae", (1_000, 1_000, 1_000))
    assert not cells.agrees(line)


def test_the_table_of_the_page_is_that_of_the_lines():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert cells.BEGIN not in page or page == cells.with_table(page), "python benchmarks/cells.py --docs"


# The script with its arguments, and constants that make it small.
SMALL = "import step; step.BATCH, step.SIZE, step.DEPTH = 4, 112, 2; step.PICTURES = step.inputs(); step.main()"
SCRIPTS = {
    "step": ["-c", SMALL, "--rounds", "1"],
    "step of SimCLR": ["-c", SMALL, "--simclr", "--rounds", "1"],
    "engine": ["-c", SMALL, "--engine", "--rounds", "1"],
    "filterbank": ["filterbank.py", "--rounds", "1", "--clips", "2"],
    "text": [
        "text_step.py",
        "{texts}",
        "--steps",
        "1",
        "--width",
        "32",
        "--heads",
        "2",
        "--depth",
        "1",
        "--batch",
        "8",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_prints_its_figures(name, tmp_path):
    texts = tmp_path / "texts.parquet"
    datasets.Dataset.from_dict({"text": support.cells("text", 64)[0]}).to_parquet(str(texts))
    command = [sys.executable, *(part.replace("{texts}", str(texts)) for part in SCRIPTS[name])]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0 and any(c.isdigit() for c in done.stdout), done.stderr[-2000:]


def test_the_page_of_objectives_is_made_of_their_words():
    import objectives_page

    assert objectives_page.PAGE.read_text() == objectives_page.page(), "python tests/objectives_page.py"
    assert all(cls.cost and cls.collapse and cls.choose for cls in objectives_page.OBJECTIVES.values())
