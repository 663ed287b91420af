"""What a folder of ours stands for as a start, and for whoever reads a run: the same checkpoint, and a whole one."""

import json
import os
import shutil
from pathlib import Path

import pytest
import support
import torch
from finished import finished
from transformers import AutoModel

from triptych.encoders.native import Native, family_of, start_from, teacher_for
from triptych.evaluation.load import from_run, opened
from triptych.export import export
from triptych.modalities import MODALITIES, Audio, Image, Text
from triptych.objectives import OBJECTIVES
from triptych.objectives.base import Objective
from triptych.training import starts
from triptych.training.command_line import read
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


def test_a_card_says_that_its_checkpoint_is_the_best(run, tmp_path):
    def said(to: str) -> str:
        return (export(str(run), str(tmp_path / to)) / "README.md").read_text()

    assert "checkpoint-2`\n" in said("last") and "the best by" not in said("last again")
    (run / "best.json").write_text(json.dumps(1))
    assert "checkpoint-1`, the best by the run's own probe (`keep: best`)" in said("best")


def test_a_start_says_what_it_is(run):
    assert str(starts.find(str(run), "image")).startswith(
        f"{run}/checkpoint-2, vit; image_size 8, patch_size 4, channels 1"
    )


def test_what_was_given_goes_before_what_a_folder_says(tmp_path):
    given = {"mean": 0.25, "std": 0.5, "value_range": (0, 1023)}
    made = Image(8, 4, mean=0.1, value_range=(0, 4095))
    made.save(str(tmp_path))
    mine, open_ = Image(8, 4, **given), Image(8, 4)
    mine.load(str(tmp_path))
    open_.load(str(tmp_path))
    assert (mine.mean, mine.std, mine.value_range) == ([0.25] * 3, [0.5] * 3, (0, 1023))
    assert (open_.mean, open_.value_range) == (made.mean, made.value_range)
    Audio(1, mean=-4.0, std=2.0).save(str(tmp_path))
    mine, open_ = Audio(1, std=3.0), Audio(1)
    for _ in range(2):
        mine.load(str(tmp_path))
        open_.load(str(tmp_path))
        assert (mine.mean, mine.std, open_.mean, open_.std) == (-4, 3, -4, 2)


def test_a_tokenizer_of_another_than_the_start_is_refused():
    start = starts.RunStart(family_of("text"), {"vocab_size": 8192}, {}, None, Path("run"), brought=Text.brought)
    assert start.adapted({"vocab_size": 8192, "max_length": 9}) == ({"vocab_size": 8192}, None)
    with pytest.raises(UserError, match="modality.tokenizer mine was given, but init_from run brings its own; leave"):
        start.adapted({"tokenizer": "mine"})


def test_what_an_earlier_version_kept_of_a_checkpoint_is_read(tmp_path):
    Native({"hidden_size": 8}, architecture="SomeModel", files={"a": "b"}).save(tmp_path)
    assert Native.load(tmp_path).files == {"a": "b"}
    (tmp_path / "files.json").unlink()
    found = Native.load(tmp_path)
    assert (found.files, found.config, found.architecture) == ({}, {"hidden_size": 8}, "SomeModel")


def test_a_revision_that_nothing_has_is_refused(tmp_path):
    with pytest.raises(UserError, match="init_revision main: .* is a folder, which has no revisions; leave it out"):
        starts.find(str(tmp_path), "image", "main")
    with pytest.raises(UserError, match="^revision main: .* is a folder, which has no revisions; leave it out"):
        opened(tmp_path, revision="main")
    with pytest.raises(ValueError, match="objective.teacher: .* is a folder, which has no revisions; leave main out"):
        teacher_for(str(tmp_path), Image(8, 4), "main")
    with pytest.raises(UserError, match="init_revision main: there is nothing that it is of; give --init_from"):
        read({"data": "pictures", "init_revision": "main"})


@pytest.mark.parametrize(("name", "same", "other"), [("channels", 1, 3), ("mean", [0.5], 0.4), ("std", 0.25, 0.5)])
def test_what_the_first_convolution_of_a_run_was_made_for_is_not_changed_in_silence(name, same, other):
    its = {"channels": 1, "mean": 0.5, "std": [0.25]}
    start = starts.RunStart(family_of("image", "vit"), its, {}, None, Path("run"))
    assert start.adapted({name: same}) == (its, None)
    with pytest.raises(UserError, match=f"modality.{name} {other} was given, .* start from the export, whose first"):
        start.adapted({name: other})
    fitted = starts.RunStart(family_of("image", "vit"), {"channels": 1}, {}, None, Path("run"))
    assert fitted.adapted({}) == ({"channels": 1}, None)


AVERAGED = [name for name, kind in OBJECTIVES.items() if kind.averaged is not Objective.averaged]


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("objective", AVERAGED)
def test_a_teacher_of_averages_begins_at_the_start(objective, modality):
    """It has the checkpoint's weights, as the student does; a fresh one would teach noise for many steps."""
    folder = support.teacher(modality)
    config = support.config(modality, objective, "run", init_from=folder, encoder={"width": 24, "depth": 1})
    start = start_from(folder, modality)
    config.adopt(start)
    adapter = config.build_modality()
    adapter.load(folder)
    made = config.build_objective(adapter, start)
    published = AutoModel.from_pretrained(folder).state_dict()
    student, teacher = (family_of(modality).export(b).state_dict() for b in (made.backbone, made.averaged()))
    torch.testing.assert_close(teacher, published, atol=1e-7, rtol=0)  # grey's weights are summed, and spread again
    assert all(torch.equal(student[name], tensor) for name, tensor in teacher.items())
