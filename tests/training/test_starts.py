"""What a folder of ours stands for as a start, and for whoever reads a run: the same checkpoint, and a whole one."""

import json
import os
import shutil

import pytest
from finished import finished

from triptych.encoders.native import Native
from triptych.evaluation.load import from_run
from triptych.training import starts
from triptych.training.errors import UserError

READERS = {"from_run": lambda folder: from_run(folder)[2], "find": lambda folder: starts.find(folder, "image").folder}


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints, of which nothing was trained."""
    finished("image", "mae", tmp_path / "run")
    (first,) = (tmp_path / "run").glob("checkpoint-*")
    shutil.copytree(first, first.with_name("checkpoint-2"))
    shutil.copy(first / "config.yaml", tmp_path / "run" / "config.yaml")
    return tmp_path / "run"


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_folder_stands_for_one_whole_checkpoint(read, run, capsys):
    assert read(str(run)).name == "checkpoint-2"
    assert read(str(run / "checkpoint-1")).name == "checkpoint-1"
    (run / "best.json").write_text(json.dumps(1))
    assert read(str(run)).name == "checkpoint-1"
    assert "the best by the run's own probe" in capsys.readouterr().out
    os.truncate(run / "checkpoint-1" / "model.safetensors", 100)
    assert read(str(run)).name == "checkpoint-2"
    with pytest.raises(UserError, match=r"checkpoint-1 is damaged \(model.safetensors has 100 bytes, not .* another"):
        read(str(run / "checkpoint-1"))


def test_a_start_says_what_it_is(run):
    assert str(starts.find(str(run), "image")).startswith(
        f"{run}/checkpoint-2, vit; image_size 8, patch_size 4, channels 1"
    )


def test_what_an_earlier_version_kept_of_a_checkpoint_is_read(tmp_path):
    Native({"hidden_size": 8}, architecture="SomeModel", files={"a": "b"}).save(tmp_path)
    assert Native.load(tmp_path).files == {"a": "b"}
    (tmp_path / "files.json").unlink()
    found = Native.load(tmp_path)
    assert (found.files, found.config, found.architecture) == ({}, {"hidden_size": 8}, "SomeModel")
