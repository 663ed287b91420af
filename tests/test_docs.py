"""README, CONTRIBUTING, docs/ and the heads of configs/: links, files and options that they name are there."""

import re

import pytest
import support

from triptych.embed import write
from triptych.encoders import EncoderSettings
from triptych.encoders.native import FAMILIES
from triptych.export import export
from triptych.modalities import MODALITIES
from triptych.modalities.domains import arguments, defaults
from triptych.objectives import OBJECTIVES
from triptych.probe import probe
from triptych.training.settings import Data, Run

ROOT = support.ROOT
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "configs").glob("*.yaml"))
FOLDERS = "benchmarks|configs|docs|encoders|evaluation|examples|modalities|objectives|tests|training"
# Of torchrun, deepspeed, sbatch, tensorboard and ruff.
OTHERS = "nproc_per_node nnodes rdzv_backend rdzv_endpoint signals_to_handle num_gpus signal logdir check".split()
MADE_UP = {"configs/image_NAME.yaml", "configs/MODALITY_NAME.yaml", "configs/continue_"}
WRONG = {"learning_rat", "ratio", "drows"}  # mistakes that docs/faults.md shows


def options() -> set[str]:
    """All options of the four commands, of the scripts and of other programs that the pages name."""
    groups = [(EncoderSettings, "encoder."), (Data, "data.")]
    groups += [(cls, "modality.") for cls in MODALITIES.values()]
    groups += [(cls, "objective.") for cls in OBJECTIVES.values()]
    known = {"help", "config", "show", "data", "modality", "encoder", "objective", *OTHERS}
    for owner in (Run, probe, export, write):
        known |= {name for name, *_ in arguments(owner)}
    for owner, prefix in groups:
        known |= {prefix + name for name, *_ in arguments(owner)} | set(defaults(owner, prefix))
    for file in [*(ROOT / "benchmarks").glob("*.py"), *ROOT.glob("examples/*.py"), ROOT / "evaluation" / "report.py"]:
        known |= set(re.findall(r"--([a-z_]+)", file.read_text()))
    return known


@pytest.fixture(scope="module")
def known():
    return options()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page, known):
    text = page.read_text()
    if page.suffix == ".yaml":
        text = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = page if not file else page.parent / file
        assert there.exists(), target
        assert not anchor or re.search(rf"^#+ `?{anchor}`?$", there.read_text(), re.M), target
    paths = {path.rstrip(".") for path in re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*)", text)} - MADE_UP
    assert not [path for path in paths if not (ROOT / path).exists()]
    said = {option.rstrip(".") for option in re.findall(r"(?<![\w-])--([a-z]\w*(?:\.\w+)*)", text)}
    wrong = said - known - (WRONG if page.name == "faults.md" else set())
    assert not wrong, wrong


@pytest.mark.parametrize("page", ["README.md", "docs/continuing.md"])
def test_families_are_all_named(page):
    text = (ROOT / page).read_text()
    assert not [name for name in FAMILIES if f"`{name}`" not in text]


def test_objectives_are_all_named_and_counted():
    text = (ROOT / "README.md").read_text()
    assert not [name for name in OBJECTIVES if f"`{name}`" not in text]
    assert len(OBJECTIVES) == 18 and "eighteen objectives" in " ".join(text.split())
