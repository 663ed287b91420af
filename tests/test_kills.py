"""Ten random kills, as `benchmarks/kills.py` makes a hundred: each run ends bit for bit as an undisturbed one."""

import runpy

import pytest
import support


@pytest.mark.slow
def test_ten_random_kills(tmp_path):
    made = runpy.run_path(str(support.ROOT / "benchmarks" / "kills.py"))["kills"](tmp_path / "kills", 10)
    assert len(made) == 10
    assert not any(line["differs"] for line in made), [line for line in made if line["differs"]]
    hits = [kill["signal"] for line in made for kill in line["kills"] if any(kill["codes"])]
    assert any(line["ranks"] == 2 for line in made) and set(hits) == {"SIGKILL", "SIGTERM"}
