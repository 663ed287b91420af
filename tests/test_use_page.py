"""docs/use.md: its commands and its Python run as they stand, one after another."""

import re
import shlex

import numpy as np
import pytest
import support
from finished import finished

from triptych import __main__ as console
from triptych.train import main as train


@pytest.mark.slow
def test_every_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    support.write_pictures(tmp_path / "pictures", 24)
    (tmp_path / "pictures/metadata.csv").write_text(
        "file_name,label\n" + "".join(f"{i:03d}.png,{'ab'[i % 2]}\n" for i in range(24))
    )
    finished("image", "mae", tmp_path / "runs/mine", {"channels": 3})
    blocks = re.findall(r"```(\w+)\n(.*?)```", (support.ROOT / "docs/use.md").read_text(), re.S)
    shell, python = ([text for kind, text in blocks if kind == wanted] for wanted in ("sh", "python"))
    assert len(shell) + len(python) == len(blocks) == 7
    commands = [shlex.split(line) for text in shell for line in text.splitlines()]
    assert all(name == "triptych" and rest[0] in console.COMMANDS for name, *rest in commands)
    for _, name, *rest in commands:
        if name == "train":  # the process ends with it
            train([*rest, "--encoder.depth", "1", "--per_device_train_batch_size", "4", "--report_to", "none"])
        else:
            console.main([name, *rest])
    for made in ("runs/new/checkpoint-1", "exported", "features.parquet", "pieces.parquet", "layers.parquet"):
        assert (tmp_path / made).exists()
    out = capsys.readouterr().out
    assert "nearest to 000.png:" in out and "pairs of 24 rows" in out
    scope: dict = {}
    for text in python:
        exec(text, scope)
    assert scope["vectors"].shape == (2, 32) and scope["pieces"].shape == (6, 4, 32)
    assert scope["layers"].shape == (6, 3, 32) and not np.isnan(scope["layers"]).any()
