"""The scripts behind the figures run, and the figures that are kept are of the settings that are shipped."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import support
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import beside_lightly  # noqa: E402
import cells  # noqa: E402
import cells_page  # noqa: E402
import choice  # noqa: E402
import continue_page  # noqa: E402


def test_the_measured_cells_are_those_of_the_shipped_configurations():
    for name, line in cells.lines().items():
        assert cells.agrees(line), f"{name} was measured with other settings: measure it again"


def test_another_setting_is_another_cell_and_a_new_option_is_not(monkeypatch):
    settings = cells.resolved("image_mae")
    line = {"cell": "image_mae", "config": cells.fingerprint(settings), "settings": json.loads(json.dumps(settings))}
    assert cells.agrees(line) and settings["seed"] == 42 and cells.resolved("image_mae#1")["seed"] == 1
    older = {k: v for k, v in line["settings"].items() if k != "modality.augmentation"}
    assert cells.agrees(line | {"settings": older, "config": cells.fingerprint(older)})
    forged = line["settings"] | {"learning_rate": 1.0}
    assert not cells.agrees(line | {"settings": forged})
    assert not cells.agrees(line | {"settings": forged, "config": cells.fingerprint(forged)})
    monkeypatch.setitem(cells.SAMPLES, "mae", (1_000, 1_000, 1_000))
    assert not cells.agrees(line)


def test_the_table_of_the_page_is_that_of_the_lines():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert cells_page.BEGIN in page and page == cells_page.with_table(page), "python benchmarks/cells.py --docs"
    assert beside_lightly.BEGIN in page and page == beside_lightly.with_table(page), "beside_lightly.py --docs"
    assert continue_page.BEGIN in page and page == continue_page.with_tables(page), "benchmarks/continue.py --docs"
    page = choice.PAGE.read_text()
    assert page == choice.placed(page, "learns", choice.table(choice.lines())), "python benchmarks/choice.py --docs"


# The script with its arguments, and constants that make it small.
SMALL = "import step; step.BATCH, step.SIZE, step.DEPTH = 4, 112, 2; step.PICTURES = step.inputs(); step.main()"
SCRIPTS = {
    "step": ["-c", SMALL, "--rounds", "1"],
    "step of SimCLR": ["-c", SMALL, "--simclr", "--rounds", "1"],
    "engine": ["-c", SMALL, "--engine", "--rounds", "1"],
    "gpu": ["gpu.py", "--small", "--rounds", "1", "--seconds", "0.1"],
    "filterbank": ["filterbank.py", "--rounds", "1", "--clips", "2"],
    "text": "text_step.py {texts} --steps 1 --width 32 --heads 2 --depth 1 --batch 8".split(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_prints_its_figures(name, tmp_path):
    texts = tmp_path / "texts.parquet"
    datasets.Dataset.from_dict({"text": support.cells("text", 64)[0]}).to_parquet(str(texts))
    command = [sys.executable, *(part.replace("{texts}", str(texts)) for part in SCRIPTS[name])]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0 and any(c.isdigit() for c in done.stdout), done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", beside_lightly.SEEDS)
def test_lightly_s_side_trains_the_same_encoder(name, tmp_path):
    pictures, kind = support.cells("image", 96)
    table = datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features({"image": datasets.Image()}))
    (tmp_path / "cifar10").mkdir()
    table.to_parquet(str(tmp_path / "cifar10" / "train.parquet"))
    arguments = argparse.Namespace(data=tmp_path, work=tmp_path, samples=128)
    config = beside_lightly.configured(name, 0, arguments)
    trained = dict(beside_lightly.theirs(name, config).named_parameters())
    start = dict(config.build_objective(config.build_modality()).backbone.named_parameters())
    assert start.keys() == trained.keys()
    assert all(p.isfinite().all() for p in trained.values())
    assert sum(not torch.equal(p, start[n]) for n, p in trained.items()) > len(start) / 2


def test_the_page_of_objectives_is_made_of_their_words():
    import objectives_page

    assert objectives_page.PAGE.read_text() == objectives_page.page(), "python tests/objectives_page.py"
    assert all(cls.cost and cls.collapse and cls.choose for cls in objectives_page.OBJECTIVES.values())
