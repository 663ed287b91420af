"""A source is walked over once a command, and afterwards anew."""

import pytest
import support

from triptych.embed import embed
from triptych.modalities import Image
from triptych.probe import probe
from triptych.train import pretrain
from triptych.training import finding
from triptych.training.finding import find
from triptych.training.once import walked_once
from triptych.training.settings import Data


@pytest.fixture
def walks(monkeypatch):
    """How often a folder was sorted out."""
    made, real = [], finding.sort_out
    monkeypatch.setattr(finding, "sort_out", lambda *asked: made.append(asked[1]) or real(*asked))
    return made


def test_what_is_found_again_is_a_copy_and_nothing_is_kept_afterwards(walks, tmp_path):
    data, image = Data(name=str(support.write_pictures(tmp_path / "data", 6))), Image(8, 4)
    with walked_once():
        first = find(data, image)
        first.notes.append("of the first")
        again = find(data, image)
        assert len(walks) == 1 and not again.notes and again.read["train"].args[0] is again
        assert len(again.read["train"]()) == 6
        find(Data(name=data.name, group="folder"), image)
        assert len(walks) == 2
    support.write_pictures(tmp_path / "data", 8)
    assert len(find(data, image).files["train"]) == 8 and len(walks) == 3


@pytest.mark.slow
def test_each_command_walks_once(walks, tmp_path):
    folder = support.write_pictures(tmp_path / "data", 110)
    rows = "".join(f"{i:03d}.png,{'ab'[i % 2]}\n" for i in range(110))
    (folder / "metadata.csv").write_text(f"file_name,label\n{rows}")
    options = {"data": {"name": str(folder)}, "max_steps": 1, "report": False, "probe_data": str(folder)}
    pretrain(support.config("image", "mae", tmp_path / "run", **options))
    assert len(walks) == 1
    probe(tmp_path / "run", data=str(folder), labels=[2], draws=3)
    assert len(walks) == 2
    embed(tmp_path / "run", str(folder))
    assert len(walks) == 3
